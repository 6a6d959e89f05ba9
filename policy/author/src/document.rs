//! The policy document: what a pod's owner allows, as data for the rules of the guest image.
//!
//! A document is Rego text of three parts: the package (with `--standalone` also the rules), then
//! `policy_data := {...}`, then whatever rules its owner appended. Equal data gives equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the rules that the data is for.
pub const VERSION: u64 = nacre_policy::VERSION;

const PACKAGE: &str = "package agent_policy\n";
const DATA: &str = "policy_data := ";
/// Largest document that is read, in bytes: what the engine takes.
const LARGEST: usize = nacre_policy::LARGEST_DOCUMENT;

/// Why text is no policy document of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Too many bytes.
    #[error("the document has {0} bytes, more than the {LARGEST} that an agent takes")]
    Size(usize),
    /// No `policy_data`.
    #[error(
        "the document has no line that begins with `{DATA}`: it was not written by `nacre policy \
         generate` (documents in plain Rego can be tested, but not compared or checked)"
    )]
    NoData,
    /// More than one.
    #[error("line {0}: the document defines `policy_data` a second time")]
    TwoData(usize),
    /// The data has another form.
    #[error("line {line}: policy_data: {problem}")]
    Data {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// For other rules.
    #[error("policy_data.version is {0}, and this `nacre` reads version {VERSION}")]
    Version(u64),
}

/// A document in its three parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// What stands before the data.
    pub before: String,
    /// The data.
    pub data: PolicyData,
    /// What stands behind it.
    pub after: String,
}

impl Document {
    /// A document of `data` and nothing else. Data with `standalone` set brings the rules along.
    #[must_use]
    pub fn new(data: PolicyData) -> Self {
        let before = if data.standalone {
            format!("{}\n", nacre_policy::RULES.trim_end())
        } else {
            PACKAGE.to_owned()
        };
        Self { before: before + "\n", data, after: String::new() }
    }

    /// The text. Keys are sorted, and each field of a container has a line.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = self.before.clone();
        text.push_str(DATA);
        // The types of this module have no keys but strings, and no numbers but integers.
        let data = serde_json::to_value(&self.data).unwrap_or_default();
        layout(&data, &[], &mut text);
        text.push('\n');
        text.push_str(&self.after);
        text
    }

    /// Reads a text.
    ///
    /// # Errors
    /// [`DocumentError`] for anything but data of version 1; a field that is not known is an error.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        if text.len() > LARGEST {
            return Err(DocumentError::Size(text.len()));
        }
        let mut found = None;
        let mut at = 0;
        for (number, line) in text.split_inclusive('\n').enumerate() {
            if line.starts_with(DATA) {
                if found.is_some() {
                    return Err(DocumentError::TwoData(number + 1));
                }
                found = Some((number, at));
            }
            at += line.len();
        }
        let (lines_before, at) = found.ok_or(DocumentError::NoData)?;
        let body = &text[at + DATA.len()..];
        let problem = |error: &serde_json::Error| DocumentError::Data {
            line: lines_before + error.line().max(1),
            problem: without_place(error),
        };
        let mut versions = serde_json::Deserializer::from_str(body).into_iter::<Value>();
        let version = versions.next().and_then(Result::ok);
        let version = version.as_ref().and_then(|data| data.get("version")).and_then(Value::as_u64);
        if let Some(version) = version.filter(|version| *version != VERSION) {
            return Err(DocumentError::Version(version));
        }
        let mut values = serde_json::Deserializer::from_str(body).into_iter::<PolicyData>();
        let data = match values.next() {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Err(problem(&error)),
            None => return Err(DocumentError::NoData),
        };
        let after = &body[values.byte_offset()..];
        let after = after.strip_prefix('\n').unwrap_or(after).to_owned();
        Ok(Self { before: text[..at].to_owned(), data, after })
    }
}

/// The message without serde's own " at line L column C", which counts from elsewhere.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Objects are spread over lines down to the fields of a container and of the pod; what is below
/// stays in one line.
fn layout(value: &Value, path: &[&str], text: &mut String) {
    let spread = match path {
        [] | ["containers" | "pod" | "copies" | "allow"] | ["containers", _] => true,
        ["containers", _, field] => *field == "mounts",
        _ => false,
    };
    match value {
        Value::Object(fields) if spread && !fields.is_empty() => {
            let indent = "  ".repeat(path.len() + 1);
            text.push('{');
            for (number, (key, value)) in sorted(fields).into_iter().enumerate() {
                text.push_str(if number == 0 { "\n" } else { ",\n" });
                text.push_str(&format!("{indent}{}: ", Value::from(key.as_str())));
                layout(value, &[path, &[key]].concat(), text);
            }
            text.push_str(&format!("\n{}}}", "  ".repeat(path.len())));
        }
        Value::Object(fields) => {
            text.push('{');
            for (number, (key, value)) in sorted(fields).into_iter().enumerate() {
                text.push_str(if number == 0 { "" } else { ", " });
                text.push_str(&format!("{}: ", Value::from(key.as_str())));
                layout(value, &[path, &[key, ""]].concat(), text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (number, item) in items.iter().enumerate() {
                text.push_str(if number == 0 { "" } else { ", " });
                layout(item, &[path, &["", "", "", ""]].concat(), text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

fn sorted(fields: &serde_json::Map<String, Value>) -> BTreeMap<&String, &Value> {
    fields.iter().collect()
}

/// `policy_data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyData {
    /// Version of the rules.
    pub version: u64,
    /// The document brings the rules along.
    #[serde(default, skip_serializing_if = "is_false")]
    pub standalone: bool,
    /// File that it was made from, for explanations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Names of the profiles whose additions are expected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<String>,
    /// A profile of its own instead of named ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Value>,
    /// What concerns the pod as a whole.
    #[serde(default)]
    pub pod: PodData,
    /// Containers by name.
    #[serde(default)]
    pub containers: BTreeMap<String, ContainerData>,
    /// Contents of volumes by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, CopyData>,
    /// What the owner of the cluster may do beside running the pod.
    #[serde(default, skip_serializing_if = "AllowData::is_nothing")]
    pub allow: AllowData,
}

/// `policy_data.pod`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodData {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What its name begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_prefix: Option<String>,
    /// Anchored regular expression of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_pattern: Option<String>,
    /// Its namespace; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its host name; absent: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Anchored regular expression of its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_pattern: Option<String>,
    /// Containers see each other's processes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared_pid: bool,
    /// Kernel settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Line of each field in the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lines: BTreeMap<String, u32>,
}

/// An element of a command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Arg {
    /// Exactly this.
    Text(String),
    /// Decided when the pod runs.
    Pattern(ArgPattern),
}

/// What an element that is decided at run time looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgPattern {
    /// Anchored regular expression.
    pub pattern: String,
}

/// Which service variables the kubelet may add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceEnv {
    /// None.
    None,
    /// Those of the API server: `KUBERNETES_...`.
    #[default]
    Kubernetes,
    /// Those of every service of the namespace.
    All,
}

/// Which system call filter is expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompData {
    /// The runtime's own.
    Runtime,
    /// None.
    #[default]
    Unconfined,
}

/// Numbers that a process runs with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserData {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Additional groups, as a set.
    pub groups: Vec<u32>,
}

/// A container of `policy_data.containers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerData {
    /// `registry/name@digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `registry/name:tag`: whatever the registry says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tag: Option<String>,
    /// The command line.
    pub args: Vec<Arg>,
    /// Working directory.
    pub cwd: String,
    /// Variables, `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Variables that are a fact about the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_from_pod: BTreeMap<String, String>,
    /// Variables that hold such facts among other text: anchored regular expressions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_pattern: BTreeMap<String, String>,
    /// Names of variables whose values no explanation shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_env: Vec<String>,
    /// The command line holds secrets: no explanation shows it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub secret_args: bool,
    /// Variables of services.
    #[serde(default)]
    pub service_env: ServiceEnv,
    /// Any one of these.
    pub users: Vec<UserData>,
    /// Capabilities; absent: the runtime's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Whether programs can gain privileges.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_new_privileges: bool,
    /// Whether the root file system is read-only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly_root: bool,
    /// Whether it has a terminal.
    #[serde(default, skip_serializing_if = "is_false")]
    pub terminal: bool,
    /// Whether the host may write to its standard input.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// System call filter.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seccomp: SeccompData,
    /// `/proc` without masked paths.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unmasked: bool,
    /// Mounts by destination.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, MountData>,
    /// Block devices by path in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Microseconds a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Relative weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Commands that may be executed in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<Vec<String>>,
    /// Signals beside TERM and KILL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<u32>,
    /// Whether the host may read its output.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub logs: bool,
    /// Its `terminationMessagePath`, where it is not `/dev/termination-log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_log: Option<String>,
    /// What it may ask of the guest's endpoint.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guest_api: GuestApiData,
    /// Runs to its end before the next one starts.
    #[serde(default, skip_serializing_if = "is_false")]
    pub init: bool,
    /// Starts among the init containers, and goes on beside the others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sidecar: bool,
    /// May be started again after it has ended.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub restartable: bool,
    /// Line of each field in the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lines: BTreeMap<String, u32>,
}

/// What a container may ask of the guest's endpoint on 127.0.0.1:8006.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestApiData {
    /// Resources of the key broker.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: GuestResources,
    /// The attestation token with its key: with it the container can get whatever the pod can.
    #[serde(default, skip_serializing_if = "is_false")]
    pub token: bool,
    /// Evidence over data of the container's choice: with it the container can get a token of its own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub evidence: bool,
    /// Events in the runtime measurement.
    #[serde(default, skip_serializing_if = "is_false")]
    pub aael: bool,
}

/// Resources of the key broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GuestResources {
    /// All that the broker gives to this pod, or none.
    All(bool),
    /// `repository/type/tag`; `*` at the end stands for any rest.
    Named(Vec<String>),
}

impl Default for GuestResources {
    fn default() -> Self {
        Self::All(false)
    }
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A `ConfigMap`.
    Config,
    /// A Secret.
    Secret,
    /// Several sources.
    Projected,
    /// Fields of the pod.
    Downward,
    /// A directory that begins empty.
    EmptyDir,
    /// A file or directory of the node.
    HostPath,
    /// Persistent or otherwise from the node.
    Claim,
    /// A service-account token.
    Token,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountData {
    /// What is mounted.
    pub kind: MountKind,
    /// Last component of the path that the runtime binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Anchored regular expression of it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pattern: Option<String>,
    /// Whether the container cannot write there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Name of the volume in `copies`, where `source` is not its name; of an empty directory, always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Path within the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
    /// Anchored regular expression of it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path_pattern: Option<String>,
    /// An empty directory that is kept in memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub memory: bool,
    /// Its files may be exchanged while the container runs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub updates: bool,
}

/// Contents of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyData {
    /// Path below the mount -> SHA-256 of the content, hexadecimal.
    pub files: BTreeMap<String, String>,
    /// There may be other files: tokens, fields of the pod.
    #[serde(default, skip_serializing_if = "is_false")]
    pub open: bool,
    /// The contents are secret.
    #[serde(default, skip_serializing_if = "is_false")]
    pub secret: bool,
}

/// `policy_data.allow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowData {
    /// Commands that may be executed in any container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<Vec<String>>,
    /// Any command may.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exec_any: bool,
    /// Commands may have a terminal.
    #[serde(default, skip_serializing_if = "is_false")]
    pub terminal: bool,
    /// Commands may be written to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Limits of running containers may change.
    #[serde(default, skip_serializing_if = "is_false")]
    pub update_container: bool,
    /// Containers may be paused and resumed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pause: bool,
    /// The guest's clock may be set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub set_time: bool,
    /// Ports of the pod's localhost that the host may connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_forward: Vec<u16>,
    /// The host may read the file of a container's last words when it has ended.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub termination_message: bool,
    /// Annotations beside those of the runtime: names, `*` at the end matches any rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
}

impl Default for AllowData {
    fn default() -> Self {
        Self {
            exec: Vec::new(),
            exec_any: false,
            terminal: false,
            stdin: false,
            port_forward: Vec::new(),
            update_container: false,
            pause: false,
            set_time: false,
            termination_message: true,
            annotations: Vec::new(),
        }
    }
}

impl AllowData {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

fn yes() -> bool {
    true
}

// serde wants references.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_true(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !*value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
