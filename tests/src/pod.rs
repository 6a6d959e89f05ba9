//! Pods, through CRI.

use std::fs;
use std::future::{Future, IntoFuture};
use std::pin::Pin;

use anyhow::Context as _;
use k8s_cri::v1 as cri;
use nacre_protocol::initdata;

use crate::broker::Broker;
use crate::cluster_dns;
use crate::container::Container;
use crate::cri::call;
use crate::declaration::{Declaration, pod_resources};
use crate::world::{RUNTIME_HANDLER, Runtime, World};
use crate::{kubelet, policy, yaml};

type Pending<'w, T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + 'w>>;

/// A pod to be run: `.await` it.
#[derive(Debug)]
pub struct PodBuilder<'w> {
    world: &'w World,
    name: String,
    containers: Vec<Declaration>,
    annotations: Vec<(String, String)>,
    shared_processes: bool,
    settings: String,
    /// Its policy's initdata, as the annotation's text.
    policy: Option<String>,
    brings_policy: bool,
    /// Initdata that the policy is added to, a path inside.
    base: Option<String>,
    control_group: String,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod<'w> {
    world: &'w World,
    id: String,
    config: cri::PodSandboxConfig,
    containers: Vec<Declaration>,
}

impl<'w> PodBuilder<'w> {
    pub(crate) fn new(world: &'w World, name: &str) -> PodBuilder<'w> {
        PodBuilder {
            world,
            name: name.to_owned(),
            containers: Vec::new(),
            annotations: Vec::new(),
            shared_processes: false,
            settings: String::new(),
            policy: None,
            brings_policy: true,
            base: None,
            control_group: String::new(),
        }
    }

    /// Declares a container, to be started with [`Pod::start`]. The pod's policy knows these and no
    /// others.
    #[must_use]
    pub fn with(mut self, container: Declaration) -> PodBuilder<'w> {
        self.containers.push(container);
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> PodBuilder<'w> {
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its containers see each other's processes.
    #[must_use]
    pub fn shared_processes(mut self) -> PodBuilder<'w> {
        self.shared_processes = true;
        self
    }

    /// The policy is generated with these settings (TOML), beside the world's.
    #[must_use]
    pub fn settings(mut self, text: &str) -> PodBuilder<'w> {
        self.settings.push_str(text);
        self.settings.push('\n');
        self
    }

    /// The policy lets the host run any command in the containers, with input and a terminal. Most
    /// stories look into their containers by that.
    #[must_use]
    pub fn exec_allowed(self) -> PodBuilder<'w> {
        self.settings("allow.exec_any = true\nallow.stdin = true\nallow.terminal = true")
    }

    /// Its containers' groups are within this one, which a kubelet makes and limits.
    #[must_use]
    pub fn control_group(mut self, path: &str) -> PodBuilder<'w> {
        self.control_group = path.to_owned();
        self
    }

    /// It gets secrets from a key broker. Its policy is made, but granting it something is the broker's.
    #[must_use]
    pub fn secrets_of(mut self, broker: &Broker<'_>) -> PodBuilder<'w> {
        self.base = Some(broker.initdata().to_owned());
        self
    }

    /// Its policy is added to this initdata (a path inside).
    #[must_use]
    pub fn initdata(mut self, path: &str) -> PodBuilder<'w> {
        self.base = Some(path.to_owned());
        self
    }

    /// It brings this initdata (an annotation's text), whatever is declared.
    #[must_use]
    pub fn with_initdata(mut self, annotation: &str) -> PodBuilder<'w> {
        self.policy = Some(annotation.to_owned());
        self
    }

    /// It brings no initdata, and so no policy.
    #[must_use]
    pub fn without_policy(mut self) -> PodBuilder<'w> {
        self.brings_policy = false;
        self
    }

    /// The manifest that the owner writes, in YAML.
    pub fn manifest(&self) -> String {
        let manifest = kubelet::manifest(&self.name, &self.containers, self.shared_processes);
        yaml::documents(&manifest)
    }

    /// Makes its policy now, not only when it starts. A pod without containers is no pod to Kubernetes:
    /// there is nothing to make a policy of.
    pub fn with_policy(mut self) -> anyhow::Result<PodBuilder<'w>> {
        let PodBuilder { world, name, containers, settings, policy, base, .. } = &self;
        let needed = self.brings_policy && !containers.is_empty() && policy.is_none();
        if needed && world.runtime == Runtime::Nacre {
            world.products().check()?;
            let policy =
                policy::generate(world, name, &self.manifest(), settings, base.as_deref())?;
            self.policy = Some(policy);
        }
        Ok(self)
    }

    /// The annotation with the pod's policy; empty before [`PodBuilder::with_policy`].
    pub fn annotation_text(&self) -> &str {
        self.policy.as_deref().unwrap_or_default()
    }

    async fn run(self) -> anyhow::Result<Pod<'w>> {
        let pod = self.with_policy()?;
        let world = pod.world;
        if world.runtime == Runtime::Nacre {
            world.products().check()?;
        }
        let mut config = pod.config();
        config.annotations.extend(pod.policy.map(|text| (initdata::ANNOTATION.to_owned(), text)));
        fs::create_dir_all(world.path(&config.log_directory))?;
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: world.runtime_handler().to_owned(),
        };
        let mut runtime = world.cri.runtime();
        let id = call("RunPodSandbox", runtime.run_pod_sandbox(request)).await?.pod_sandbox_id;
        Ok(Pod { world, id, config, containers: pod.containers })
    }

    /// As the kubelet asks containerd for it.
    fn config(&self) -> cri::PodSandboxConfig {
        let name = &self.name;
        let handler = (RUNTIME_HANDLER.to_owned(), self.world.runtime_handler().to_owned());
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: kubelet::NAMESPACE.to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: format!("/run/world/logs/{name}"),
            dns_config: Some(cri::DnsConfig {
                servers: vec![cluster_dns::ADDRESS.to_owned()],
                searches: vec!["world.test".to_owned()],
                options: Vec::new(),
            }),
            annotations: self.annotations.iter().cloned().chain([handler]).collect(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(self.shared_processes)),
                    ..Default::default()
                }),
                cgroup_parent: self.control_group.clone(),
                resources: Some(pod_resources(&self.containers)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

impl<'w> IntoFuture for PodBuilder<'w> {
    type Output = anyhow::Result<Pod<'w>>;
    type IntoFuture = Pending<'w, Pod<'w>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<'w> Pod<'w> {
    /// containerd's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts a declared container: pulls the image if containerd does not know it, creates the
    /// container, starts it.
    pub async fn start(&self, name: &str) -> anyhow::Result<Container<'w>> {
        let declared = self.containers.iter().find(|container| container.name == name);
        let declared = declared.with_context(|| format!("the pod has no container {name:?}"))?;
        if !self.world.has_image(&declared.image).await? {
            self.world.pull(&declared.image).await?;
        }
        let container = self.create(declared).await?;
        let mut runtime = self.world.cri.runtime();
        let request = cri::StartContainerRequest { container_id: container.id().to_owned() };
        call("StartContainer", runtime.start_container(request)).await?;
        Ok(container)
    }

    async fn create(&self, declared: &Declaration) -> anyhow::Result<Container<'w>> {
        let uid = self.config.metadata.as_ref().map(|metadata| metadata.uid.as_str());
        let mounts = kubelet::mounts(self.world, uid.unwrap_or_default(), declared)?;
        let config = declared.to_cri(mounts, self.namespaces());
        let log = format!("{}/{}", self.config.log_directory, config.log_path);
        // An earlier pod of this name may have written one.
        let _ = fs::remove_file(self.world.path(&log));
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let mut runtime = self.world.cri.runtime();
        let id = call("CreateContainer", runtime.create_container(request)).await?.container_id;
        Ok(Container::new(self.world, id, log))
    }

    fn namespaces(&self) -> cri::NamespaceOption {
        let linux = self.config.linux.as_ref();
        let context = linux.and_then(|linux| linux.security_context.as_ref());
        context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
    }

    /// Its addresses, IPv4 first.
    pub async fn addresses(&self) -> anyhow::Result<Vec<String>> {
        let mut runtime = self.world.cri.runtime();
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let status = call("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?.status;
        let network = status.and_then(|s| s.network).context("the pod has no network status")?;
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        Ok([network.ip].into_iter().chain(more).collect())
    }

    /// Whether containerd calls it ready.
    pub async fn ready(&self) -> anyhow::Result<bool> {
        let mut runtime = self.world.cri.runtime();
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let status = call("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?.status;
        Ok(status.is_some_and(|s| s.state() == cri::PodSandboxState::SandboxReady))
    }

    /// Stops the pod and all its containers.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        call("StopPodSandbox", runtime.stop_pod_sandbox(request)).await.map(drop)
    }

    /// Removes the pod, containers included.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        call("RemovePodSandbox", runtime.remove_pod_sandbox(request)).await.map(drop)
    }
}

/// What the kubelet asks for: each container sees its own processes only, unless the pod says otherwise.
fn namespaces(shared_processes: bool) -> cri::NamespaceOption {
    let mut options = cri::NamespaceOption::default();
    options.set_pid(if shared_processes {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    });
    options
}
