//! Pods and containers, through CRI.

use std::collections::HashMap;
use std::fs;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;

use crate::cluster_dns;
use crate::cri::call;
use crate::ctr::Output;
use crate::world::{RUNTIME_HANDLER, Runtime, World};

type Pending<'w, T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + 'w>>;

/// A pod to be run: `.await` it.
#[derive(Debug)]
pub struct PodBuilder<'w> {
    world: &'w World,
    config: cri::PodSandboxConfig,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod<'w> {
    world: &'w World,
    id: String,
    config: cri::PodSandboxConfig,
}

/// A container to be started in a pod.
#[derive(Debug)]
pub struct ContainerBuilder<'p> {
    pod: &'p Pod<'p>,
    config: cri::ContainerConfig,
    linux: cri::LinuxContainerConfig,
}

/// A container.
#[derive(Debug)]
pub struct Container<'p> {
    world: &'p World,
    id: String,
    log: String,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128+n for signal n.
    pub code: i32,
    /// One word: `Completed`, `Error`, `OOMKilled` ...
    pub reason: String,
    /// For people.
    pub message: String,
}

impl<'w> PodBuilder<'w> {
    pub(crate) fn new(world: &'w World, name: &str) -> PodBuilder<'w> {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "stories".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: format!("/run/world/logs/{name}"),
            dns_config: Some(cri::DnsConfig {
                servers: vec![cluster_dns::ADDRESS.to_owned()],
                searches: vec!["world.test".to_owned()],
                options: Vec::new(),
            }),
            annotations: [(RUNTIME_HANDLER.to_owned(), world.runtime_handler().to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_processes()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        PodBuilder { world, config }
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> PodBuilder<'w> {
        self.config.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    async fn run(self) -> anyhow::Result<Pod<'w>> {
        let PodBuilder { world, config } = self;
        if world.runtime == Runtime::Nacre {
            world.products().check()?;
        }
        fs::create_dir_all(world.path(&config.log_directory))?;
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: world.runtime_handler().to_owned(),
        };
        let mut runtime = world.cri.runtime();
        let id = call("RunPodSandbox", runtime.run_pod_sandbox(request)).await?.pod_sandbox_id;
        Ok(Pod { world, id, config })
    }
}

impl<'w> IntoFuture for PodBuilder<'w> {
    type Output = anyhow::Result<Pod<'w>>;
    type IntoFuture = Pending<'w, Pod<'w>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl Pod<'_> {
    /// containerd's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A container to be started.
    pub fn container(&self, name: &str, image: &str) -> ContainerBuilder<'_> {
        let image = cri::ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image),
            log_path: format!("{name}.log"),
            ..Default::default()
        };
        let mut linux = cri::LinuxContainerConfig::default();
        linux.security_context.get_or_insert_default().namespace_options = Some(own_processes());
        ContainerBuilder { pod: self, config, linux }
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

impl<'p> ContainerBuilder<'p> {
    /// Arguments, after the image's entrypoint.
    #[must_use]
    pub fn args<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.config.args = words.map(str::to_owned).to_vec();
        self
    }

    /// A shell script in place of the image's command.
    #[must_use]
    pub fn script(self, text: &str) -> Self {
        self.args(["sh", "-c", text])
    }

    /// What runs instead of the image's entrypoint.
    #[must_use]
    pub fn command<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.config.command = words.map(str::to_owned).to_vec();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.config.envs.push(cri::KeyValue { key: name.to_owned(), value: value.to_owned() });
        self
    }

    /// Working directory.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Self {
        path.clone_into(&mut self.config.working_dir);
        self
    }

    /// User id to run as.
    #[must_use]
    pub fn user(mut self, uid: i64) -> Self {
        let context = self.linux.security_context.get_or_insert_default();
        context.run_as_user = Some(cri::Int64Value { value: uid });
        self
    }

    /// Shows a file or directory of the world at `target`.
    #[must_use]
    pub fn mount(mut self, source: &str, target: &str) -> Self {
        self.config.mounts.push(cri::Mount {
            container_path: target.to_owned(),
            host_path: source.to_owned(),
            readonly: true,
            ..Default::default()
        });
        self
    }

    /// Memory limit in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: i64) -> Self {
        self.linux.resources = Some(memory(mib));
        self
    }

    /// Sees the processes of the whole pod.
    #[must_use]
    pub fn shared_processes(mut self) -> Self {
        let context = self.linux.security_context.get_or_insert_default();
        let namespaces = context.namespace_options.get_or_insert_default();
        namespaces.set_pid(cri::NamespaceMode::Pod);
        self
    }

    /// Has a terminal.
    #[must_use]
    pub fn tty(mut self) -> Self {
        self.config.tty = true;
        self.config.stdin = true;
        self
    }

    /// Pulls the image if containerd does not know it, creates the container, starts it.
    pub async fn start(self) -> anyhow::Result<Container<'p>> {
        let world = self.pod.world;
        let image = self.config.image.clone().unwrap_or_default().image;
        if !world.has_image(&image).await? {
            world.pull(&image).await?;
        }
        let container = self.create().await?;
        let mut runtime = world.cri.runtime();
        let request = cri::StartContainerRequest { container_id: container.id.clone() };
        call("StartContainer", runtime.start_container(request)).await?;
        Ok(container)
    }

    async fn create(self) -> anyhow::Result<Container<'p>> {
        let ContainerBuilder { pod, mut config, linux } = self;
        config.linux = Some(linux);
        let log = format!("{}/{}", pod.config.log_directory, config.log_path);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut runtime = pod.world.cri.runtime();
        let id = call("CreateContainer", runtime.create_container(request)).await?.container_id;
        Ok(Container { world: pod.world, id, log })
    }
}

impl Container<'_> {
    /// containerd's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in the container and waits for it.
    pub async fn exec<const N: usize>(&self, words: [&str; N]) -> anyhow::Result<Output> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.map(str::to_owned).to_vec(),
            timeout: 120,
        };
        let mut runtime = self.world.cri.runtime();
        let answer = call("ExecSync", runtime.exec_sync(request)).await?;
        Ok(Output { stdout: answer.stdout, stderr: answer.stderr, code: answer.exit_code })
    }

    /// Runs a shell script in the container; returns what it prints, an error if it fails.
    pub async fn sh(&self, script: &str) -> anyhow::Result<String> {
        let output = self.exec(["sh", "-c", script]).await?;
        ensure!(
            output.code == 0,
            "{script:?} ended with {}: {}{}",
            output.code,
            output.text(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.text())
    }

    /// What it has written to stdout.
    pub fn stdout(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.stream("stdout")?).into_owned())
    }

    /// What it has written to stderr.
    pub fn stderr(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.stream("stderr")?).into_owned())
    }

    /// What it has written to stdout, as bytes. CRI's log keeps lines: `<time> <stream> <F|P> <text>`.
    pub fn stream(&self, stream: &str) -> anyhow::Result<Vec<u8>> {
        let log = fs::read(self.world.path(&self.log))?;
        let mut bytes = Vec::new();
        for line in log.split_inclusive(|b| *b == b'\n') {
            let mut words = line.splitn(4, |b| *b == b' ');
            let (_time, name, tag) = (words.next(), words.next(), words.next());
            let text = words.next().context("the container's log has another form")?;
            if name == Some(stream.as_bytes()) {
                let full = tag == Some(b"F");
                let partial = text
                    .strip_suffix(
                        b"
",
                    )
                    .unwrap_or(text);
                bytes.extend_from_slice(if full { text } else { partial });
            }
        }
        Ok(bytes)
    }

    /// Waits until stdout contains `text`.
    pub async fn wait_for(&self, text: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.stdout()?.contains(text) {
            if started.elapsed() > Duration::from_secs(60) {
                bail!("no {text:?} in {:?}", self.stdout()?);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits until it has ended.
    pub async fn wait_exit(&self) -> anyhow::Result<Exit> {
        let started = Instant::now();
        loop {
            let status = self.status().await?;
            if status.state() == cri::ContainerState::ContainerExited {
                let (code, reason, message) = (status.exit_code, status.reason, status.message);
                return Ok(Exit { code, reason, message });
            }
            ensure!(started.elapsed() < Duration::from_secs(120), "it still runs after 120 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it runs.
    pub async fn runs(&self) -> anyhow::Result<bool> {
        Ok(self.status().await?.state() == cri::ContainerState::ContainerRunning)
    }

    async fn status(&self) -> anyhow::Result<cri::ContainerStatus> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = call("ContainerStatus", runtime.container_status(request)).await?;
        answer.status.context("the container has no status")
    }

    /// Stops it: SIGTERM, and SIGKILL after `grace` seconds.
    pub async fn stop(&self, grace: i64) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        call("StopContainer", runtime.stop_container(request)).await.map(drop)
    }

    /// Removes it.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        call("RemoveContainer", runtime.remove_container(request)).await.map(drop)
    }

    /// Changes its memory limit, in MiB.
    pub async fn set_memory_mib(&self, mib: i64) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(memory(mib)),
            windows: None,
            annotations: HashMap::new(),
        };
        call("UpdateContainerResources", runtime.update_container_resources(request))
            .await
            .map(drop)
    }

    /// Processor time used, in nanoseconds, and memory in use, in bytes.
    pub async fn stats(&self) -> anyhow::Result<(u64, u64)> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::ContainerStatsRequest { container_id: self.id.clone() };
        let stats = call("ContainerStats", runtime.container_stats(request)).await?.stats;
        let stats = stats.context("no statistics")?;
        let cpu = stats.cpu.and_then(|c| c.usage_core_nano_seconds).context("no CPU time")?;
        let memory = stats.memory.and_then(|m| m.working_set_bytes).context("no memory")?;
        Ok((cpu.value, memory.value))
    }
}

/// What the kubelet asks for unless a pod says otherwise: each container sees its own processes only.
fn own_processes() -> cri::NamespaceOption {
    let mut options = cri::NamespaceOption::default();
    options.set_pid(cri::NamespaceMode::Container);
    options
}

fn memory(mib: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { memory_limit_in_bytes: mib << 20, ..Default::default() }
}
