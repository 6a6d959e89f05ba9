//! What the owner's YAML says of a pod, complete and already checked: the input of the policy document.
//!
//! Every value here has been resolved as the API server and the kubelet would resolve it: defaults are filled in,
//! `$(VAR)` references are expanded, `ConfigMap` and Secret keys are looked up. What only the cluster can know when the
//! pod runs (its IP address, its generated name) stays visible as [`EnvValue::FromPod`] or [`EnvValue::Pattern`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Where Kubernetes has the file for a container's last words unless the container says otherwise.
pub const USUAL_TERMINATION_LOG: &str = "/dev/termination-log";

/// A value and the line (counted from 1) of the YAML file at which it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub line: u32,
}

/// Everything that was read from the owner's files.
#[derive(Debug, Default)]
pub struct Reading {
    /// The workloads, in the order of the files.
    pub workloads: Vec<Workload>,
    /// `ConfigMaps` of the same files.
    pub config_maps: Vec<DataObject>,
    /// Secrets of the same files.
    pub secrets: Vec<DataObject>,
    /// What the owner should know although nothing is wrong.
    pub notes: Vec<Note>,
}

/// A remark that stops nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The file.
    pub file: String,
    /// Line in the file.
    pub line: u32,
    /// The remark.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// A `ConfigMap` or a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataObject {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: Option<String>,
    /// `data`, `binaryData` and `stringData` together, decoded.
    pub data: BTreeMap<String, Content>,
    /// The file.
    pub file: String,
    /// Line of the object in the file.
    pub line: u32,
}

/// Bytes that may be confidential: Debug shows their number only. Cloning shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Arc<[u8]>);

impl Content {
    /// Wraps bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes. The caller keeps them out of messages and logs.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

/// Text out of a Secret: Debug shows its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text. The caller keeps it out of messages and logs.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<secret, {} bytes>", self.0.len())
    }
}

/// One object that makes pods, and the pod that it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `Pod`, `Deployment`, ...
    pub kind: String,
    /// `metadata.name` of the object itself, or `metadata.generateName` if that is all it has.
    pub object_name: String,
    /// What the pods are called.
    pub name: PodName,
    /// `metadata.namespace`.
    pub namespace: Option<String>,
    /// The file.
    pub source: String,
    /// Number of the YAML document within the file, from 0: where an annotation is to be inserted.
    pub document: usize,
    /// Line at which the object starts.
    pub line: u32,
    /// The pod.
    pub pod: Pod,
}

/// What a pod is called, or its hostname.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodName {
    /// Exactly so.
    Exact(String),
    /// So, followed by characters that the cluster chooses.
    Prefix(String),
    /// An anchored regular expression.
    Pattern(String),
}

/// A pod as the kubelet will run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `spec.hostname`, `spec.hostnameOverride`, or what the controller sets; absent: the pod's name.
    pub hostname: Option<PodName>,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `spec.shareProcessNamespace`.
    pub shared_pid: bool,
    /// `spec.securityContext.sysctls`.
    pub sysctls: BTreeMap<String, String>,
    /// `spec.enableServiceLinks` (default true): variables for every service of the namespace.
    pub service_links: bool,
    /// Whether a service-account token is mounted without being asked for: the pod's word, else that of a
    /// `ServiceAccount` in the same files; absent: the cluster's account decides (by default it is mounted).
    pub automount_token: Option<bool>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the pod, without those that controllers add.
    pub labels: BTreeMap<String, String>,
    /// Init containers first, in order, then the others.
    pub containers: Vec<Container>,
    /// The volumes, with those of a `StatefulSet`'s claim templates.
    pub volumes: Vec<Volume>,
    /// `spec.securityContext.fsGroup`.
    pub fs_group: Option<u32>,
    /// `spec.securityContext.supplementalGroups`.
    pub supplemental_groups: Vec<u32>,
    /// `spec.securityContext.supplementalGroupsPolicy: Strict`: the image's groups are not added.
    pub strict_groups: bool,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<String>,
    /// `spec.dnsPolicy` is `None`, or `spec.dnsConfig` is there: the pod's resolv.conf is the owner's.
    pub custom_dns: bool,
    /// Lines of `metadata`, `annotations`, `spec`, `hostname`, `sysctls`, `shared_pid`, `security`, ... as far as present.
    pub lines: BTreeMap<&'static str, u32>,
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the others.
    Sidecar,
    /// An ordinary container.
    App,
}

/// A container as the kubelet will ask the runtime for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// `name`.
    pub name: String,
    /// What it is in the pod.
    pub role: Role,
    /// Whether it is started again after it has ended: its own `restartPolicy` or the pod's.
    pub restartable: bool,
    /// `image`, as written.
    pub image: Located<String>,
    /// `command`; absent: the image's entrypoint.
    pub command: Option<Vec<ArgValue>>,
    /// `args`; absent: the image's, if `command` is absent too.
    pub args: Option<Vec<ArgValue>>,
    /// `workingDir`; absent: the image's.
    pub working_dir: Option<String>,
    /// Variables of `envFrom` and `env` (not the service variables), in name order, each name once.
    pub env: Vec<EnvVar>,
    /// Security settings, the container's over the pod's.
    pub security: Security,
    /// `volumeMounts`.
    pub mounts: Vec<VolumeMount>,
    /// `volumeDevices`.
    pub devices: Vec<VolumeDevice>,
    /// `resources`.
    pub resources: Resources,
    /// Commands of exec probes and lifecycle hooks, as they are run (the kubelet does not expand them).
    pub exec: Vec<ExecCommand>,
    /// `lifecycle.stopSignal`, such as `SIGQUIT`.
    pub stop_signal: Option<Located<String>>,
    /// `stdin`.
    pub stdin: bool,
    /// `stdinOnce`.
    pub stdin_once: bool,
    /// `tty`.
    pub tty: bool,
    /// `terminationMessagePath` (default [`USUAL_TERMINATION_LOG`]).
    pub termination_message_path: String,
    /// Lines of the fields that are present: `container`, `image`, `command`, `args`, `cwd`, `env`, `env_from`,
    /// `security`, `user`, `group`, `non_root`, `readonly_root`, `no_new_privileges`, `capabilities`, `seccomp`,
    /// `proc_mount`, `mounts`, `devices`, `resources`, `exec`, `stdin`, `tty`, `restart`.
    pub lines: BTreeMap<&'static str, u32>,
}

/// A variable of a container's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: EnvValue,
    /// Line of its `env` entry, or of the `envFrom` entry that brings it.
    pub line: u32,
}

/// The value of a variable after `$(VAR)` expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// Known, and no secret.
    Literal(String),
    /// Known, with parts that come from a Secret.
    Secret(SecretText),
    /// Decided when the pod runs.
    FromPod(PodFact),
    /// An anchored regular expression: known text (quoted) around parts that are decided when the pod runs.
    Pattern {
        /// The expression.
        regex: SecretText,
        /// Whether a part of it comes from a Secret.
        secret: bool,
    },
}

/// An element of a command line: the same cases as a variable.
pub type ArgValue = EnvValue;

/// A fact about a pod that is decided when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodFact {
    /// `status.podIP`.
    Ip,
    /// `status.podIPs`: addresses with commas.
    Ips,
    /// `status.hostIP`.
    HostIp,
    /// `status.hostIPs`.
    HostIps,
    /// `spec.nodeName`.
    NodeName,
    /// `metadata.name`.
    PodName,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `spec.serviceAccountName`.
    ServiceAccount,
    /// A label or an annotation that a controller adds.
    Label,
    /// A `resourceFieldRef` that falls back to what the node has: a number.
    Number,
    /// A service variable that is an address or a host: `KUBERNETES_SERVICE_HOST`, `..._ADDR`.
    ServiceHost,
    /// A service variable that is a port number.
    ServicePort,
    /// A service variable that is a URL: `tcp://10.0.0.1:443`.
    ServiceUrl,
    /// A service variable that is a protocol: `tcp`, `udp`, `sctp`.
    ServiceProtocol,
}

impl PodFact {
    /// The name used in the policy document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ips => "ips",
            Self::HostIp => "host_ip",
            Self::HostIps => "host_ips",
            Self::NodeName => "node_name",
            Self::PodName => "pod_name",
            Self::Namespace => "namespace",
            Self::Uid => "uid",
            Self::ServiceAccount => "service_account",
            Self::Label => "label",
            Self::Number => "number",
            Self::ServiceHost => "service_host",
            Self::ServicePort => "service_port",
            Self::ServiceUrl => "service_url",
            Self::ServiceProtocol => "service_protocol",
        }
    }

    /// A regular expression, not anchored, that every value of this fact matches. It has no capture groups.
    #[must_use]
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Ip | Self::HostIp => r"[0-9a-fA-F:.]{2,45}",
            Self::Ips | Self::HostIps => r"[0-9a-fA-F:.]{2,45}(?:,[0-9a-fA-F:.]{2,45})*",
            Self::NodeName | Self::PodName | Self::ServiceAccount => {
                r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
            }
            Self::Namespace => r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?",
            Self::Uid => r"[-0-9a-zA-Z]{1,64}",
            Self::Label => r"[-A-Za-z0-9_.]{0,63}",
            Self::Number => r"[0-9]{1,20}",
            Self::ServiceHost => r"[0-9a-zA-Z:.-]{1,253}",
            Self::ServicePort => r"[0-9]{1,5}",
            Self::ServiceUrl => r"(?:tcp|udp|sctp)://[0-9a-zA-Z:.\[\]-]{1,253}:[0-9]{1,5}",
            Self::ServiceProtocol => r"(?:tcp|udp|sctp)",
        }
    }
}

/// Security settings of a container, merged with the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// `runAsUser`; absent: the image's user.
    pub run_as_user: Option<u32>,
    /// `runAsGroup`; absent: the image's group.
    pub run_as_group: Option<u32>,
    /// `runAsNonRoot`.
    pub non_root: bool,
    /// `readOnlyRootFilesystem`.
    pub readonly_root: bool,
    /// `allowPrivilegeEscalation` (default true): its absence is `no_new_privileges`.
    pub allow_privilege_escalation: bool,
    /// `capabilities.add`, as `CAP_NET_ADMIN` or `ALL`.
    pub capabilities_add: BTreeSet<String>,
    /// `capabilities.drop`, in the same form.
    pub capabilities_drop: BTreeSet<String>,
    /// `seccompProfile`.
    pub seccomp: Seccomp,
    /// `appArmorProfile`.
    pub app_armor: AppArmor,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    /// `seLinuxOptions` are there.
    pub se_linux: Option<SeLinux>,
}

/// System call filter asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Nothing said: the kubelet's default, `Unconfined` unless it runs with `--seccomp-default`.
    #[default]
    Unset,
    /// `RuntimeDefault`.
    RuntimeDefault,
    /// `Unconfined`.
    Unconfined,
}

/// `AppArmor` profile asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AppArmor {
    /// Nothing said: the runtime's default.
    #[default]
    Unset,
    /// `RuntimeDefault`.
    RuntimeDefault,
    /// `Unconfined`.
    Unconfined,
    /// `Localhost`, with the profile's name.
    Localhost(String),
}

/// `seLinuxOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeLinux {
    /// `user`.
    pub user: Option<String>,
    /// `role`.
    pub role: Option<String>,
    /// `type`.
    pub kind: Option<String>,
    /// `level`.
    pub level: Option<String>,
}

/// One entry of `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// `mountPath`, as the kubelet passes it on.
    pub path: String,
    /// `name` of the volume; it exists in [`Pod::volumes`].
    pub volume: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `recursiveReadOnly` is `Enabled` or `IfPossible`.
    pub recursive_read_only: bool,
    /// `subPath`, or `subPathExpr` expanded.
    pub sub_path: Option<EnvValue>,
    /// Index of this entry among the container's `volumeMounts`: the kubelet names the mount of a subPath by it.
    pub index: usize,
    /// `mountPropagation` (`Bidirectional` is refused).
    pub propagation: Propagation,
    /// Line of the entry.
    pub line: u32,
}

/// Whether mounts made on the host show up in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// `None`.
    #[default]
    None,
    /// `HostToContainer`.
    HostToContainer,
}

/// One entry of `volumeDevices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDevice {
    /// `devicePath`.
    pub path: String,
    /// `name` of a claim's volume.
    pub volume: String,
    /// Line of the entry.
    pub line: u32,
}

/// A command that the kubelet may execute in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    /// The command line.
    pub command: Vec<String>,
    /// The field that asks for it, such as `livenessProbe`.
    pub purpose: &'static str,
    /// Line of the command.
    pub line: u32,
}

/// `resources`, and what the kubelet makes of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// `requests.cpu` in thousandths of a CPU, or the limit where only that is given.
    pub cpu_request: Option<u64>,
    /// `limits.cpu` in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// `requests.memory` in bytes, or the limit.
    pub memory_request: Option<u64>,
    /// `limits.memory` in bytes.
    pub memory_limit: Option<u64>,
    /// Other limits (`ephemeral-storage`, `hugepages-2Mi`, `example.com/device`), rounded up to whole units.
    pub other_limits: BTreeMap<String, u64>,
    /// The control group's settings.
    pub linux: LinuxResources,
}

/// Settings of a container's control group as the kubelet passes them to the runtime; 0 is "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinuxResources {
    /// `cpu_shares`, from the CPU request, at least 2.
    pub cpu_shares: u64,
    /// `cpu_quota` in microseconds per period, from the CPU limit.
    pub cpu_quota: i64,
    /// `cpu_period` in microseconds.
    pub cpu_period: u64,
    /// `memory_limit_in_bytes`.
    pub memory_limit: u64,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// `name`.
    pub name: String,
    /// Where its content comes from.
    pub kind: VolumeKind,
    /// Line of the volume.
    pub line: u32,
}

/// Where a volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKind {
    /// `emptyDir`.
    EmptyDir {
        /// `medium: Memory`.
        memory: bool,
        /// `medium: HugePages...`, as written.
        huge_pages: Option<String>,
        /// `sizeLimit` in bytes.
        size_limit: Option<u64>,
    },
    /// `hostPath`.
    HostPath {
        /// `path`.
        path: String,
        /// `type`, such as `Directory`; empty: not checked.
        kind: String,
    },
    /// `configMap`.
    ConfigMap {
        /// `name`.
        name: String,
        /// Path below the mount -> content; absent: not in the owner's files, contents unverified.
        files: Option<BTreeMap<String, Content>>,
    },
    /// `secret`.
    Secret {
        /// `secretName`.
        name: String,
        /// As for a `ConfigMap`.
        files: Option<BTreeMap<String, Content>>,
    },
    /// `projected`.
    Projected {
        /// Path below the mount -> what stands there.
        files: BTreeMap<String, ProjectedFile>,
        /// Whether there are no other files: false if a source is optional and not in the owner's files.
        complete: bool,
    },
    /// `downwardAPI`.
    DownwardApi {
        /// Path below the mount -> what stands there.
        files: BTreeMap<String, ProjectedFile>,
    },
    /// `persistentVolumeClaim`, or a `StatefulSet`'s claim template.
    Claim {
        /// `claimName`, or the template's name.
        name: String,
        /// `volumeMode: Block`, where the claim stands in the same files.
        block: Option<bool>,
        /// `readOnly`.
        read_only: bool,
    },
    /// `ephemeral`: a claim that lives with the pod.
    Ephemeral {
        /// `volumeMode: Block`.
        block: bool,
    },
    /// `csi`: an inline volume of a driver.
    Csi {
        /// `driver`.
        driver: String,
        /// `readOnly`.
        read_only: bool,
    },
    /// `image`: the content of an image, read-only.
    Image {
        /// `reference`.
        reference: String,
    },
    /// Another kind that the node mounts: `nfs`, `iscsi`, `cephfs`, ...
    Other {
        /// The field's name.
        kind: String,
        /// `readOnly`.
        read_only: bool,
    },
}

/// A file of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectedFile {
    /// From a `ConfigMap`.
    Config(Content),
    /// From a Secret.
    Secret(Content),
    /// A `serviceAccountToken`.
    Token,
    /// A field of the pod; several lines of them for `metadata.labels` and `metadata.annotations`.
    Downward(Downward),
    /// A `clusterTrustBundle`.
    TrustBundle,
    /// Part of a `podCertificate`.
    Certificate,
}

/// A field of the pod as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Downward {
    /// One value.
    Value(EnvValue),
    /// All labels.
    Labels,
    /// All annotations.
    Annotations,
}
