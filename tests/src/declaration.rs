//! What a test declares of a container, and the two ways in which it is said: to the pod's owner as a
//! Kubernetes manifest, and to containerd as the kubelet would say it after reading that manifest.

use k8s_cri::v1 as cri;
use serde_json::{Map, Value, json};

use crate::volumes::{Shown, Volume};

/// What the kubelet asks for unless a container has `procMount: Unmasked`.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container that a pod will have. See [`container`].
#[derive(Debug, Clone)]
pub struct Declaration {
    pub(crate) name: String,
    pub(crate) image: String,
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    directory: Option<String>,
    user: Option<i64>,
    image_user: String,
    memory_mib: Option<i64>,
    cpu_thousandths: Option<i64>,
    pub(crate) files: Vec<Files>,
    pub(crate) volumes: Vec<Shown>,
}

/// Files from a `ConfigMap`, shown in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// Name of the `ConfigMap`, and of the volume.
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) content: Vec<(String, String)>,
}

/// Declares a container of an image that was pushed.
pub fn container(name: &str, image: &str) -> Declaration {
    Declaration {
        name: name.to_owned(),
        image: image.to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        directory: None,
        user: None,
        image_user: String::new(),
        memory_mib: None,
        cpu_thousandths: None,
        files: Vec::new(),
        volumes: Vec::new(),
    }
}

impl Declaration {
    /// Arguments, after the image's entrypoint.
    #[must_use]
    pub fn args<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.args = words.map(str::to_owned).to_vec();
        self
    }

    /// A shell script in place of the image's command.
    #[must_use]
    pub fn script(self, text: &str) -> Self {
        self.args(["sh", "-c", text])
    }

    /// It does nothing for as long as the test lasts.
    #[must_use]
    pub fn idle(self) -> Self {
        self.args(["sleep", "1000"])
    }

    /// What runs instead of the image's entrypoint.
    #[must_use]
    pub fn command<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.command = words.map(str::to_owned).to_vec();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Working directory.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Self {
        self.directory = Some(path.to_owned());
        self
    }

    /// User id to run as.
    #[must_use]
    pub fn user(mut self, uid: i64) -> Self {
        self.user = Some(uid);
        self
    }

    /// The user that its image names: a kubelet reads it there and passes it on.
    #[must_use]
    pub fn image_user(mut self, name: &str) -> Self {
        name.clone_into(&mut self.image_user);
        self
    }

    /// Memory limit in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: i64) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// CPU limit in thousandths.
    #[must_use]
    pub fn cpu_thousandths(mut self, limit: i64) -> Self {
        self.cpu_thousandths = Some(limit);
        self
    }

    /// Shows files of a `ConfigMap` in the directory `target`.
    #[must_use]
    pub fn files<const N: usize>(
        mut self,
        config_map: &str,
        target: &str,
        content: [(&str, &str); N],
    ) -> Self {
        let content = content.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        let files = Files { name: config_map.to_owned(), target: target.to_owned(), content };
        self.files.push(files);
        self
    }

    /// Shows a volume at `target`.
    #[must_use]
    pub fn volume(self, volume: &Volume, target: &str) -> Self {
        self.shown(volume, target, None, false)
    }

    /// Shows a volume that the container cannot write to.
    #[must_use]
    pub fn volume_read_only(self, volume: &Volume, target: &str) -> Self {
        self.shown(volume, target, None, true)
    }

    /// Shows a part of a volume (`subPath`).
    #[must_use]
    pub fn volume_part(self, volume: &Volume, part: &str, target: &str) -> Self {
        self.shown(volume, target, Some(part.to_owned()), false)
    }

    fn shown(
        mut self,
        volume: &Volume,
        target: &str,
        part: Option<String>,
        read_only: bool,
    ) -> Self {
        let (volume, target) = (volume.clone(), target.to_owned());
        self.volumes.push(Shown { volume, target, part, read_only });
        self
    }

    /// As an entry of `spec.containers`.
    pub(crate) fn to_kubernetes(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("name".into(), json!(self.name));
        entry.insert("image".into(), json!(self.image));
        if !self.command.is_empty() {
            entry.insert("command".into(), json!(self.command));
        }
        if !self.args.is_empty() {
            entry.insert("args".into(), json!(self.args));
        }
        if !self.env.is_empty() {
            let pair = |(name, value): &(String, String)| json!({ "name": name, "value": value });
            entry.insert("env".into(), self.env.iter().map(pair).collect());
        }
        if let Some(directory) = &self.directory {
            entry.insert("workingDir".into(), json!(directory));
        }
        if let Some(uid) = self.user {
            entry.insert("securityContext".into(), json!({ "runAsUser": uid }));
        }
        let mut limits = Map::new();
        limits.extend(self.memory_mib.map(|mib| ("memory".into(), json!(format!("{mib}Mi")))));
        limits.extend(self.cpu_thousandths.map(|cpu| ("cpu".into(), json!(format!("{cpu}m")))));
        if !limits.is_empty() {
            entry.insert("resources".into(), json!({ "limits": limits }));
        }
        if !self.files.is_empty() || !self.volumes.is_empty() {
            let mount = |files: &Files| json!({ "name": files.name, "mountPath": files.target });
            let files = self.files.iter().map(mount);
            let mounted = self.volumes.iter().filter(|shown| shown.device().is_none());
            let volumes = mounted.map(Shown::to_kubernetes);
            entry.insert("volumeMounts".into(), files.chain(volumes).collect());
        }
        let devices: Vec<Value> =
            self.volumes.iter().filter_map(Shown::device).map(|(entry, _)| entry).collect();
        if !devices.is_empty() {
            entry.insert("volumeDevices".into(), devices.into());
        }
        Value::Object(entry)
    }

    /// As the kubelet asks containerd for it; `mounts` are what it prepared on the node.
    pub(crate) fn to_cri(
        &self,
        mounts: Vec<cri::Mount>,
        namespaces: cri::NamespaceOption,
    ) -> cri::ContainerConfig {
        let image = cri::ImageSpec {
            image: self.image.clone(),
            user_specified_image: self.image.clone(),
            ..Default::default()
        };
        let pair = |(key, value): (String, String)| cri::KeyValue { key, value };
        let linux = cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                run_as_user: self.user.map(|value| cri::Int64Value { value }),
                run_as_username: self.image_user.clone(),
                masked_paths: MASKED.map(str::to_owned).to_vec(),
                readonly_paths: READONLY.map(str::to_owned).to_vec(),
                ..Default::default()
            }),
            resources: Some(resources(
                self.cpu_thousandths.unwrap_or(0),
                self.memory_mib.unwrap_or(0),
            )),
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: 0 }),
            image: Some(image),
            command: self.command.clone(),
            args: self.args.clone(),
            working_dir: self.directory.clone().unwrap_or_default(),
            envs: self.env.iter().cloned().chain(service_variables()).map(pair).collect(),
            mounts,
            devices: self.volumes.iter().filter_map(Shown::device).map(|(_, cri)| cri).collect(),
            log_path: format!("{}.log", self.name),
            linux: Some(linux),
            ..Default::default()
        }
    }
}

/// A container's limits as the kubelet gives them; requests are the limits, and 0 is none.
pub(crate) fn resources(cpu_thousandths: i64, memory_mib: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { oom_score_adj: 1000, ..group(cpu_thousandths, memory_mib) }
}

/// What the kubelet says of a whole pod: the sum.
pub(crate) fn pod_resources(containers: &[Declaration]) -> cri::LinuxContainerResources {
    let sum = |of: fn(&Declaration) -> Option<i64>| containers.iter().filter_map(of).sum();
    group(sum(|c| c.cpu_thousandths), sum(|c| c.memory_mib))
}

fn group(cpu_thousandths: i64, memory_mib: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: cpu_thousandths * 100,
        cpu_shares: (cpu_thousandths * 1024 / 1000).max(2),
        memory_limit_in_bytes: memory_mib << 20,
        ..Default::default()
    }
}

/// Where the cluster's API is: the kubelet tells every container.
fn service_variables() -> impl Iterator<Item = (String, String)> {
    const HOST: &str = "10.96.0.1";
    let url = format!("tcp://{HOST}:443");
    [
        ("KUBERNETES_SERVICE_HOST", HOST),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("KUBERNETES_PORT", &url),
        ("KUBERNETES_PORT_443_TCP", &url),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
        ("KUBERNETES_PORT_443_TCP_PORT", "443"),
        ("KUBERNETES_PORT_443_TCP_ADDR", HOST),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
}
