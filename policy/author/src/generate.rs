//! From a workload, its images and the settings to the policy document: what the kubelet and the runtime
//! will ask of the guest for this pod, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::accounts::{ImageAccounts, users};
use crate::capabilities::capabilities;
use crate::document::{
    Arg, ArgPattern, ContainerData, CopyData, PodData, PolicyData, SeccompData, ServiceEnv, VERSION,
};
use crate::mounts::mounts;
use crate::settings::Settings;
use crate::signals;
use crate::workload::{
    ArgValue, Container, Content, EnvValue, Note, Pod, PodName, ProjectedFile, Role, Seccomp,
    USUAL_TERMINATION_LOG, VolumeKind, Workload,
};
use crate::yaml::Pinned;

/// Where images are looked up. The command asks registries; tests answer by themselves.
pub trait Images {
    /// What `reference` names, as written in the YAML.
    ///
    /// # Errors
    /// Words that say what failed and what to do.
    fn image(&mut self, reference: &str) -> Result<ImageFacts, String>;
}

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// `host/path`, normalised.
    pub name: String,
    /// Tag of the reference, `latest` if it has neither tag nor digest.
    pub tag: Option<String>,
    /// Digest that pins it: the reference's own, else that of the manifest.
    pub digest: String,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `User`.
    pub user: String,
    /// `StopSignal`.
    pub stop_signal: String,
    /// Content of `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// Content of `/etc/group`.
    pub group: Vec<u8>,
}

/// What is asked of the generator beside the settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The document brings rules and profile along.
    pub standalone: bool,
    /// Images stay named by their tags: the registry decides what runs.
    pub danger_unpinned: bool,
}

/// Why there is no policy for a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}: {problem}")]
pub struct GenerateError {
    /// The file.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// Such as `container web`.
    pub what: String,
    /// What is wrong and what to do.
    pub problem: String,
}

/// A workload's policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The data.
    pub data: PolicyData,
    /// What the owner should know.
    pub notes: Vec<Note>,
    /// Images as written and as pinned, by their lines.
    pub pinned: Vec<Pinned>,
}

/// Writes the policy of one workload.
///
/// # Errors
/// [`GenerateError`] with file, line and remedy.
pub fn generate(
    workload: &Workload,
    images: &mut dyn Images,
    settings: &Settings,
    options: Options,
) -> Result<Generated, GenerateError> {
    let mut generator =
        Generator { workload, settings, options, notes: Vec::new(), pinned: Vec::new() };
    let mut containers = BTreeMap::new();
    for container in &workload.pod.containers {
        let data = generator.container(container, images)?;
        containers.insert(container.name.clone(), data);
    }
    let runtime = settings
        .profile(options.standalone)
        .map_err(|error| generator.error("settings", workload.line, error.to_string()))?;
    let source = workload.source.rsplit('/').next().unwrap_or_default();
    let data = PolicyData {
        version: VERSION,
        standalone: options.standalone,
        source: Some(source.to_owned()).filter(|source| !source.is_empty()),
        runtimes: if runtime.is_some() { Vec::new() } else { settings.runtimes.clone() },
        runtime,
        pod: pod(workload),
        containers,
        copies: copies(&workload.pod),
        allow: settings.allow.clone(),
    };
    let mut notes = generator.notes;
    notes.sort();
    notes.dedup();
    Ok(Generated { data, notes, pinned: generator.pinned })
}

pub(crate) struct Generator<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) settings: &'a Settings,
    options: Options,
    notes: Vec<Note>,
    pinned: Vec<Pinned>,
}

impl Generator<'_> {
    pub(crate) fn error(
        &self,
        what: impl Into<String>,
        line: u32,
        problem: impl Into<String>,
    ) -> GenerateError {
        GenerateError {
            file: self.workload.source.clone(),
            line,
            what: what.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn note(&mut self, line: u32, text: impl Into<String>) {
        let file = self.workload.source.clone();
        self.notes.push(Note { file, line, text: text.into() });
    }

    fn container(
        &mut self,
        container: &Container,
        images: &mut dyn Images,
    ) -> Result<ContainerData, GenerateError> {
        let pod = &self.workload.pod;
        let what = format!("container {}", container.name);
        let line = |key: &str| {
            let lines = &container.lines;
            lines
                .get(key)
                .or_else(|| lines.get("container"))
                .copied()
                .unwrap_or(container.image.line)
        };
        let image = images
            .image(&container.image.value)
            .map_err(|problem| self.error(&what, container.image.line, problem))?;
        let security = &container.security;
        let mut groups = pod.supplemental_groups.clone();
        groups.extend(pod.fs_group);
        let accounts =
            ImageAccounts { user: &image.user, passwd: &image.passwd, group: &image.group };
        let users = users(accounts, security, &groups, pod.strict_groups)
            .map_err(|error| self.error(&what, line("user"), error.to_string()))?;
        let (args, secret_args) = args(container, &image);
        if args.is_empty() {
            let problem = "neither the container nor its image (Entrypoint, Cmd) names a program: set command";
            return Err(self.error(&what, line("container"), problem));
        }
        let env = Env::of(container, &image)
            .map_err(|problem| self.error(&what, line("env"), problem))?;
        let cwd = [container.working_dir.as_deref().unwrap_or_default(), &image.working_dir, "/"];
        let cwd = cwd.into_iter().find(|cwd| !cwd.is_empty()).unwrap_or("/");
        if !cwd.starts_with('/') {
            let problem = format!("the working directory {cwd:?} is not absolute: set workingDir");
            return Err(self.error(&what, line("cwd"), problem));
        }
        let capabilities = capabilities(security, &self.settings.runtimes)
            .map_err(|problem| self.error(&what, line("capabilities"), problem))?;
        let signals = self.signals(container, &image)?;
        let mounts = mounts(self, container)?;
        for device in &container.devices {
            self.note(
                device.line,
                format!(
                    "block device {}: say in volumes.toml of the initdata what is on it, or the guest refuses it",
                    device.path
                ),
            );
        }
        let resources = container.resources.linux;
        let seccomp = match security.seccomp {
            Seccomp::RuntimeDefault => SeccompData::Runtime,
            Seccomp::Unset if self.settings.kubernetes.seccomp_default => SeccompData::Runtime,
            Seccomp::Unset | Seccomp::Unconfined => SeccompData::Unconfined,
        };
        let (pinned, tagged) = self.pin(container, &image);
        let some = |n: u64| Some(n).filter(|n| *n > 0);
        Ok(ContainerData {
            image: pinned,
            image_tag: tagged,
            args,
            cwd: cwd.to_owned(),
            env: env.known,
            env_from_pod: env.facts,
            env_pattern: env.patterns,
            secret_env: env.secret,
            secret_args,
            service_env: self.service_env(),
            users,
            capabilities,
            no_new_privileges: !security.allow_privilege_escalation,
            readonly_root: security.readonly_root,
            terminal: container.tty,
            stdin: container.stdin,
            seccomp,
            unmasked: security.unmasked_proc,
            mounts,
            devices: sorted(container.devices.iter().map(|device| device.path.clone())),
            memory_limit: some(resources.memory_limit),
            cpu_quota: Some(resources.cpu_quota).filter(|quota| *quota > 0),
            cpu_period: some(resources.cpu_period).filter(|_| resources.cpu_quota > 0),
            cpu_shares: container.resources.cpu_request.map(|_| resources.cpu_shares),
            exec: sorted(container.exec.iter().map(|exec| exec.command.clone())),
            signals,
            logs: self.settings.logs,
            termination_log: Some(container.termination_message_path.clone())
                .filter(|path| path != USUAL_TERMINATION_LOG),
            guest_api: self.settings.guest_api.clone(),
            init: container.role == Role::Init,
            sidecar: container.role == Role::Sidecar,
            restartable: container.restartable,
            lines: container_lines(&container.lines),
        })
    }

    fn pin(
        &mut self,
        container: &Container,
        image: &ImageFacts,
    ) -> (Option<String>, Option<String>) {
        let written = &container.image.value;
        if self.options.danger_unpinned && !written.contains('@') {
            let tag = image.tag.as_deref().unwrap_or("latest");
            return (None, Some(format!("{}:{tag}", image.name)));
        }
        if !written.contains('@') {
            let pinned = format!("{written}@{}", image.digest);
            self.pinned.push(Pinned { written: written.clone(), pinned });
        }
        (Some(format!("{}@{}", image.name, image.digest)), None)
    }

    fn service_env(&self) -> ServiceEnv {
        let by_pod =
            if self.workload.pod.service_links { ServiceEnv::All } else { ServiceEnv::Kubernetes };
        self.settings.kubernetes.service_env.unwrap_or(by_pod)
    }

    fn signals(
        &self,
        container: &Container,
        image: &ImageFacts,
    ) -> Result<Vec<u32>, GenerateError> {
        let what = format!("container {}", container.name);
        let unknown = |name: &str, line, whose| {
            let problem = format!("{whose} {name:?} is not the name or number of a signal");
            self.error(&what, line, problem)
        };
        let mut numbers = BTreeSet::new();
        if !image.stop_signal.is_empty() {
            let number = signals::number(&image.stop_signal).ok_or_else(|| {
                unknown(&image.stop_signal, container.image.line, "the image's StopSignal")
            })?;
            numbers.insert(number);
        }
        if let Some(signal) = &container.stop_signal {
            let number = signals::number(&signal.value)
                .ok_or_else(|| unknown(&signal.value, signal.line, "stopSignal"))?;
            numbers.insert(number);
        }
        // These two may always be sent.
        numbers.retain(|number| ![signals::TERM, signals::KILL].contains(number));
        Ok(numbers.into_iter().collect())
    }
}

fn pod(workload: &Workload) -> PodData {
    let mut data = PodData {
        namespace: workload.namespace.clone(),
        shared_pid: workload.pod.shared_pid,
        sysctls: workload.pod.sysctls.clone(),
        lines: pod_lines(&workload.pod.lines),
        ..PodData::default()
    };
    match workload.name.clone() {
        PodName::Exact(name) => data.name = Some(name),
        PodName::Prefix(prefix) => data.name_prefix = Some(prefix),
        PodName::Pattern(pattern) => data.name_pattern = Some(pattern),
    }
    match workload.pod.hostname.clone() {
        None => {}
        Some(PodName::Exact(name)) => data.hostname = Some(name),
        Some(PodName::Prefix(prefix)) => {
            let prefix = regex_escape(&prefix);
            data.hostname_pattern = Some(format!("^{prefix}[-a-z0-9]{{1,63}}$"));
        }
        Some(PodName::Pattern(pattern)) => data.hostname_pattern = Some(pattern),
    }
    data
}

/// Fields of a container by the names that the rules' explanations give them, which are Kubernetes' own.
const CONTAINER_FIELDS: [(&str, &[&str]); 16] = [
    ("allowPrivilegeEscalation", &["no_new_privileges"]),
    ("args", &["args", "command"]),
    ("capabilities", &["capabilities"]),
    ("cwd", &["cwd"]),
    ("env", &["env", "env_from"]),
    ("exec", &["exec"]),
    ("image", &["image"]),
    ("mounts", &["mounts"]),
    ("procMount", &["proc_mount"]),
    ("readOnlyRootFilesystem", &["readonly_root"]),
    ("resources", &["resources"]),
    ("seccompProfile", &["seccomp"]),
    ("stdin", &["stdin"]),
    ("tty", &["tty"]),
    ("user", &["user", "group", "non_root"]),
    ("devices", &["devices"]),
];

fn container_lines(lines: &BTreeMap<&'static str, u32>) -> BTreeMap<String, u32> {
    let found = CONTAINER_FIELDS.iter().filter_map(|(field, keys)| {
        let line = keys.iter().find_map(|key| lines.get(key))?;
        Some(((*field).to_owned(), *line))
    });
    found.collect()
}

fn pod_lines(lines: &BTreeMap<&'static str, u32>) -> BTreeMap<String, u32> {
    let explained = ["hostname", "namespace", "sysctls"];
    let found = lines.iter().filter(|(key, _)| explained.contains(key));
    found.map(|(key, line)| ((*key).to_owned(), *line)).collect()
}

/// Quotes what a regular expression would understand.
pub(crate) fn regex_escape(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\.+*?()|[]{}^$#&-~".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// `command` replaces entrypoint and command of the image, `args` only the latter.
fn args(container: &Container, image: &ImageFacts) -> (Vec<Arg>, bool) {
    let fixed = |words: &[String]| words.iter().cloned().map(Arg::Text).collect::<Vec<_>>();
    let given = |words: &[ArgValue]| words.iter().map(arg).collect::<Vec<_>>();
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    let line = match (command.is_empty(), args.is_empty()) {
        (true, true) => [fixed(&image.entrypoint), fixed(&image.cmd)].concat(),
        (true, false) => [fixed(&image.entrypoint), given(args)].concat(),
        (false, _) => [given(command), given(args)].concat(),
    };
    let is_secret = |word: &ArgValue| {
        matches!(word, EnvValue::Secret(_) | EnvValue::Pattern { secret: true, .. })
    };
    (line, command.iter().chain(args).any(is_secret))
}

fn arg(value: &ArgValue) -> Arg {
    let pattern = |pattern: String| Arg::Pattern(ArgPattern { pattern });
    match value {
        EnvValue::Literal(text) => Arg::Text(text.clone()),
        EnvValue::Secret(text) => Arg::Text(text.reveal().to_owned()),
        EnvValue::FromPod(fact) => pattern(format!("^(?:{})$", fact.pattern())),
        EnvValue::Pattern { regex, .. } => pattern(regex.reveal().to_owned()),
    }
}

/// Facts that the rules know by name; of others they get the pattern.
const FACTS: [&str; 10] = [
    "host_ip",
    "host_ips",
    "ip",
    "ips",
    "namespace",
    "node_name",
    "number",
    "pod_name",
    "service_account",
    "uid",
];

/// A container's environment: the image's, with the pod's over it.
#[derive(Default)]
struct Env {
    known: Vec<String>,
    facts: BTreeMap<String, String>,
    patterns: BTreeMap<String, String>,
    secret: Vec<String>,
}

impl Env {
    fn of(container: &Container, image: &ImageFacts) -> Result<Self, String> {
        let mut env = Self::default();
        let mut known: BTreeMap<&str, &str> = BTreeMap::new();
        for variable in &image.env {
            match variable.split_once('=') {
                Some((name, value)) if !name.is_empty() => drop(known.insert(name, value)),
                _ => {
                    return Err(format!(
                        "the image's Env has {variable:?}, which is not NAME=value"
                    ));
                }
            }
        }
        for variable in &container.env {
            let name = variable.name.as_str();
            known.remove(name);
            match &variable.value {
                EnvValue::Literal(value) => drop(known.insert(name, value)),
                EnvValue::Secret(value) => {
                    known.insert(name, value.reveal());
                    env.secret.push(name.to_owned());
                }
                EnvValue::FromPod(fact) if !FACTS.contains(&fact.name()) => {
                    env.patterns.insert(name.to_owned(), format!("^(?:{})$", fact.pattern()));
                }
                EnvValue::FromPod(fact) => {
                    env.facts.insert(name.to_owned(), fact.name().to_owned());
                }
                EnvValue::Pattern { regex, secret } => {
                    env.patterns.insert(name.to_owned(), regex.reveal().to_owned());
                    if *secret {
                        env.secret.push(name.to_owned());
                    }
                }
            }
        }
        env.known = known.iter().map(|(name, value)| format!("{name}={value}")).collect();
        env.secret = sorted(env.secret.drain(..));
        Ok(env)
    }
}

/// Contents of the volumes that stand in the owner's files.
fn copies(pod: &Pod) -> BTreeMap<String, CopyData> {
    let used: BTreeSet<&str> =
        pod.containers.iter().flat_map(|c| &c.mounts).map(|mount| mount.volume.as_str()).collect();
    let volumes = pod.volumes.iter().filter(|volume| used.contains(volume.name.as_str()));
    volumes
        .filter_map(|volume| {
            let data = match &volume.kind {
                VolumeKind::ConfigMap { files: Some(files), .. } => {
                    CopyData { files: digests(files), ..CopyData::default() }
                }
                VolumeKind::Secret { files: Some(files), .. } => {
                    CopyData { files: digests(files), secret: true, ..CopyData::default() }
                }
                VolumeKind::Projected { files, complete } => projected(files, *complete)?,
                _ => return None,
            };
            Some((volume.name.clone(), data))
        })
        .collect()
}

fn digests(files: &BTreeMap<String, Content>) -> BTreeMap<String, String> {
    files.iter().map(|(path, content)| (path.clone(), sha256(content))).collect()
}

fn projected(files: &BTreeMap<String, ProjectedFile>, complete: bool) -> Option<CopyData> {
    let mut data = CopyData { open: !complete, ..CopyData::default() };
    for (path, file) in files {
        match file {
            ProjectedFile::Config(content) => {
                data.files.insert(path.clone(), sha256(content));
            }
            ProjectedFile::Secret(content) => {
                data.files.insert(path.clone(), sha256(content));
                data.secret = true;
            }
            ProjectedFile::Token
            | ProjectedFile::Downward(_)
            | ProjectedFile::TrustBundle
            | ProjectedFile::Certificate => data.open = true,
        }
    }
    Some(data).filter(|data| !data.open || !data.files.is_empty())
}

fn sha256(content: &Content) -> String {
    hex::encode(Sha256::digest(content.reveal()))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
pub(crate) mod tests;
