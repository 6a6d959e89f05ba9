//! What the owner knows of the clusters that the pods run in, and what may be done beside running them.
//!
//! Settings are TOML. A file that is named brings its drop-ins along: the `*.toml` files of the
//! directory `FILE.d`, in the order of their names; a directory that is named stands for the `*.toml`
//! files in it. Files are merged key by key: of two files with the same key the later one wins, tables
//! are merged, everything else (lists, too) is replaced. A key that is not known is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::document::{AllowData, GuestApiData, GuestResources, ServiceEnv};

/// Every key with its default, for `nacre policy generate --print-settings`.
pub const DEFAULT: &str = include_str!("default-settings.toml");

/// Largest settings file, in bytes.
const LARGEST: u64 = 1 << 20;
/// Port of the endpoint that guests have for their containers.
const GUEST_PORT: u16 = 8006;
/// Most files of one directory.
const MOST_FILES: usize = 256;

/// Why settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A file or directory cannot be read.
    #[error("settings {file}: {problem}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        problem: String,
    },
    /// A file has another form.
    #[error("settings {file}:{line}: {problem}")]
    Form {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// Settings, merged and complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Names of runtime profiles.
    pub runtimes: Vec<String>,
    /// What is merged into the profiles before they are embedded, by name.
    pub profile_changes: BTreeMap<String, Value>,
    /// Grants to the host.
    pub allow: AllowData,
    /// Grants to containers.
    pub guest_api: GuestApiData,
    /// Whether the host may read containers' output.
    pub logs: bool,
    /// Paths of the node of which hostPath volumes may show anything at or below.
    pub host_paths: Vec<String>,
    /// Volumes whose files may change while the pod runs.
    pub volume_updates: VolumeUpdates,
    /// Registries.
    pub registry: Registry,
    /// What the cluster does.
    pub kubernetes: Kubernetes,
}

/// Volumes whose files may change while the pod runs, where they are not fixed by the document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum VolumeUpdates {
    /// All or none.
    All(bool),
    /// Those of these names.
    Named(Vec<String>),
}

impl VolumeUpdates {
    pub(crate) fn permit(&self, volume: &str) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Named(names) => names.iter().any(|name| name == volume),
        }
    }
}

/// How images are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Registries (`host[:port]`) that are asked over plain HTTP.
    pub danger_plain_http: Vec<String>,
    /// PEM file of the certificate authorities for https.
    pub ca_file: Option<PathBuf>,
    /// Credentials for private images, as `docker login` keeps them.
    pub credentials_file: Option<PathBuf>,
}

/// What the cluster does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// Which service variables the kubelet adds; absent: as `enableServiceLinks` of the pod says.
    pub service_env: Option<ServiceEnv>,
    /// Whether pods that say nothing get a service-account token.
    pub automount_token: bool,
    /// Whether the kubelet runs with `--seccomp-default`.
    pub seccomp_default: bool,
    /// Anchored regular expression of the directory in which a claim is mounted on the node.
    pub claim_source: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            runtimes: named("containerd-*"),
            profile_changes: BTreeMap::new(),
            allow: AllowData::default(),
            guest_api: GuestApiData { resources: GuestResources::All(true), ..Default::default() },
            logs: true,
            host_paths: Vec::new(),
            volume_updates: VolumeUpdates::All(true),
            registry: Registry::default(),
            kubernetes: Kubernetes {
                service_env: None,
                automount_token: true,
                seccomp_default: false,
                claim_source: "^(mount|pvc-[0-9a-f-]{36})$".into(),
            },
        }
    }
}

impl Settings {
    /// Reads files and directories, in this order, over the defaults.
    ///
    /// # Errors
    /// [`SettingsError`] with file and line.
    pub fn read(paths: &[PathBuf]) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for path in paths {
            let files = if path.is_dir() {
                toml_files(path)?
            } else {
                let mut drop_ins = path.clone().into_os_string();
                drop_ins.push(".d");
                let drop_ins = PathBuf::from(drop_ins);
                let mut files = vec![path.clone()];
                if drop_ins.is_dir() {
                    files.extend(toml_files(&drop_ins)?);
                }
                files
            };
            for file in files {
                settings.merge(&file.display().to_string(), &read_text(&file)?)?;
            }
        }
        Ok(settings)
    }

    /// Merges one file's text over these settings.
    ///
    /// # Errors
    /// [`SettingsError::Form`]; these settings are unusable then.
    pub fn merge(&mut self, file: &str, text: &str) -> Result<(), SettingsError> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        let form = |at: usize, problem: String| SettingsError::Form {
            file: file.to_owned(),
            line: line_of(at),
            problem,
        };
        let layer: Layer = toml::from_str(text).map_err(|error| {
            form(error.span().map_or(0, |span| span.start), error.message().to_owned())
        })?;
        let known = nacre_policy::runtimes();
        let unknown = |name: &str| {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            format!("the runtime {name:?} is not known: this release has {}", names.join(", "))
        };
        if let Some(runtimes) = layer.runtimes {
            let at = runtimes.span().start;
            let runtimes = runtimes.into_inner();
            if runtimes.is_empty() {
                return Err(form(at, "runtimes is empty: no request would be allowed".into()));
            }
            self.runtimes.clear();
            for name in runtimes {
                let names = named(&name);
                if names.is_empty() {
                    return Err(form(at, unknown(&name)));
                }
                self.runtimes.extend(names);
            }
            self.runtimes.sort();
            self.runtimes.dedup();
        }
        for (name, changes) in layer.profile {
            let at = name.span().start;
            let name = name.into_inner();
            if !known.contains_key(&name) {
                return Err(form(at, unknown(&name)));
            }
            let changes = serde_json::to_value(changes)
                .map_err(|error| form(at, format!("profile.{name}: {error}")))?;
            merge_values(self.profile_changes.entry(name).or_insert(Value::Null), changes);
        }
        if let Some(paths) = layer.host_paths {
            let at = paths.span().start;
            let paths = paths.into_inner();
            let sound =
                |path: &String| path.starts_with('/') && !path.split('/').any(|c| c == "..");
            if let Some(path) = paths.iter().find(|path| !sound(path)) {
                return Err(form(at, format!("{path:?} is not an absolute path without \"..\"")));
            }
            self.host_paths = paths;
        }
        replace(&mut self.volume_updates, layer.volume_updates);
        if let Some(ports) = &layer.allow.port_forward
            && let Some(port) = ports.get_ref().iter().find(|port| [0, GUEST_PORT].contains(port))
        {
            let problem = format!(
                "port {port} cannot be forwarded: it is no port of a container ({GUEST_PORT} is the guest's own)"
            );
            return Err(form(ports.span().start, problem));
        }
        layer.allow.over(&mut self.allow);
        if let Some(resources) = layer.guest_api.resources {
            let at = resources.span().start;
            self.guest_api.resources = resources.into_inner();
            if let GuestResources::Named(names) = &self.guest_api.resources
                && let Some(name) = names.iter().find(|name| !names_resources(name))
            {
                let problem = format!(
                    "{name:?} names no resource: write \"repository/type/tag\", with \"*\" at the end for any rest"
                );
                return Err(form(at, problem));
            }
        }
        replace(&mut self.guest_api.token, layer.guest_api.token);
        replace(&mut self.guest_api.evidence, layer.guest_api.evidence);
        replace(&mut self.guest_api.aael, layer.guest_api.aael);
        replace(&mut self.logs, layer.logs);
        replace(&mut self.registry.danger_plain_http, layer.registry.danger_plain_http);
        let some = |file: PathBuf| Some(file).filter(|file| !file.as_os_str().is_empty());
        if let Some(ca_file) = layer.registry.ca_file {
            self.registry.ca_file = some(ca_file);
        }
        if let Some(credentials_file) = layer.registry.credentials_file {
            self.registry.credentials_file = some(credentials_file);
        }
        if let Some(service_env) = layer.kubernetes.service_env {
            self.kubernetes.service_env = match service_env {
                ServiceEnvKey::Auto => None,
                ServiceEnvKey::None => Some(ServiceEnv::None),
                ServiceEnvKey::Kubernetes => Some(ServiceEnv::Kubernetes),
                ServiceEnvKey::All => Some(ServiceEnv::All),
            };
        }
        replace(&mut self.kubernetes.automount_token, layer.kubernetes.automount_token);
        replace(&mut self.kubernetes.seccomp_default, layer.kubernetes.seccomp_default);
        if let Some(pattern) = layer.kubernetes.claim_source {
            let at = pattern.span().start;
            let pattern = pattern.into_inner();
            if !(pattern.starts_with('^') && pattern.ends_with('$')) {
                return Err(form(at, "claim_source must begin with ^ and end with $".into()));
            }
            self.kubernetes.claim_source = pattern;
        }
        Ok(())
    }

    /// The profile to embed, if the settings change any that is used or if `embedded` asks for it.
    ///
    /// # Errors
    /// If a profile is not known; [`Settings::merge`] has looked at that.
    pub fn profile(&self, embedded: bool) -> Result<Option<Value>, nacre_policy::UnknownRuntime> {
        let used = self.profile_changes.keys().any(|name| self.runtimes.contains(name));
        if !used && !embedded {
            return Ok(None);
        }
        let changed = self.runtimes.iter().map(|name| {
            let mut profile = nacre_policy::merge_runtimes(&[name])?;
            if let Some(changes) = self.profile_changes.get(name) {
                merge_values(&mut profile, changes.clone());
            }
            Ok(profile)
        });
        let changed = changed.collect::<Result<Vec<_>, _>>()?;
        Ok(Some(nacre_policy::unite_profiles(changed)))
    }
}

/// Profiles of that name, or with `*` at its end of those that begin so.
fn named(name: &str) -> Vec<String> {
    let matches = |known: &String| match name.strip_suffix('*') {
        Some(prefix) => known.starts_with(prefix),
        None => known == name,
    };
    let mut names: Vec<String> = nacre_policy::runtimes().keys().cloned().collect();
    names.retain(matches);
    names.sort();
    names
}

/// `repository/type/tag`, or the beginning of one with a `*`.
fn names_resources(name: &str) -> bool {
    let (begin, open) = match name.strip_suffix('*') {
        Some(begin) => (begin, true),
        None => (name, false),
    };
    let slashes = begin.bytes().filter(|byte| *byte == b'/').count();
    let plain = !begin.contains(['*', ':', ' ']) && !begin.starts_with('/');
    plain && (slashes == 2 && !begin.ends_with('/') || open && slashes <= 2)
}

fn replace<T>(value: &mut T, other: Option<T>) {
    if let Some(other) = other {
        *value = other;
    }
}

/// Objects are merged, everything else is replaced.
fn merge_values(value: &mut Value, other: Value) {
    match (value, other) {
        (Value::Object(value), Value::Object(other)) => {
            for (key, other) in other {
                merge_values(value.entry(key).or_insert(Value::Null), other);
            }
        }
        (value, other) => *value = other,
    }
}

fn read_text(path: &Path) -> Result<String, SettingsError> {
    let failed =
        |problem: String| SettingsError::Read { file: path.display().to_string(), problem };
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > LARGEST {
        return Err(failed(format!("has {size} bytes, more than {LARGEST}")));
    }
    std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))
}

fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let failed =
        |problem: String| SettingsError::Read { file: directory.display().to_string(), problem };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| failed(e.to_string()))? {
        let path = entry.map_err(|e| failed(e.to_string()))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
        if files.len() > MOST_FILES {
            return Err(failed(format!("has more than {MOST_FILES} settings files")));
        }
    }
    files.sort();
    Ok(files)
}

/// One file: what it leaves out stays as it was.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    runtimes: Option<toml::Spanned<Vec<String>>>,
    logs: Option<bool>,
    host_paths: Option<toml::Spanned<Vec<String>>>,
    volume_updates: Option<VolumeUpdates>,
    #[serde(default)]
    allow: AllowLayer,
    #[serde(default)]
    guest_api: GuestApiLayer,
    #[serde(default)]
    registry: RegistryLayer,
    #[serde(default)]
    kubernetes: KubernetesLayer,
    #[serde(default)]
    profile: BTreeMap<toml::Spanned<String>, toml::Table>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowLayer {
    exec: Option<Vec<Vec<String>>>,
    exec_any: Option<bool>,
    terminal: Option<bool>,
    stdin: Option<bool>,
    update_container: Option<bool>,
    pause: Option<bool>,
    set_time: Option<bool>,
    termination_message: Option<bool>,
    port_forward: Option<toml::Spanned<Vec<u16>>>,
    annotations: Option<Vec<String>>,
}

impl AllowLayer {
    fn over(self, allow: &mut AllowData) {
        replace(&mut allow.exec, self.exec);
        replace(&mut allow.exec_any, self.exec_any);
        replace(&mut allow.terminal, self.terminal);
        replace(&mut allow.stdin, self.stdin);
        replace(&mut allow.update_container, self.update_container);
        replace(&mut allow.pause, self.pause);
        replace(&mut allow.set_time, self.set_time);
        replace(&mut allow.termination_message, self.termination_message);
        replace(&mut allow.port_forward, self.port_forward.map(toml::Spanned::into_inner));
        replace(&mut allow.annotations, self.annotations);
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GuestApiLayer {
    resources: Option<toml::Spanned<GuestResources>>,
    token: Option<bool>,
    evidence: Option<bool>,
    aael: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryLayer {
    danger_plain_http: Option<Vec<String>>,
    ca_file: Option<PathBuf>,
    credentials_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KubernetesLayer {
    service_env: Option<ServiceEnvKey>,
    automount_token: Option<bool>,
    seccomp_default: Option<bool>,
    claim_source: Option<toml::Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ServiceEnvKey {
    Auto,
    None,
    Kubernetes,
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str]) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for text in texts {
            settings.merge("s.toml", text).map_err(|e| e.to_string())?;
        }
        Ok(settings)
    }

    #[test]
    fn the_documented_file_is_the_default() {
        assert_eq!(merged(&[DEFAULT]).unwrap(), Settings::default());
        assert!(!Settings::default().runtimes.is_empty());
    }

    #[test]
    fn later_files_win_key_by_key() {
        let settings = merged(&[
            "host_paths = [\"/a\"]\n[allow]\nexec = [[\"sh\"]]\nstdin = true\n[registry]\nca_file = \"x\"",
            "host_paths = [\"/b\"]\n[allow]\nstdin = false\npause = true\nport_forward = [80, 65535]\n[kubernetes]\nservice_env = \"all\"",
        ])
        .unwrap();
        assert_eq!(settings.host_paths, ["/b"]);
        let guest_api =
            merged(&["[guest_api]\nresources = [\"a/b/c\", \"a/*\"]", "[guest_api]\naael = true"])
                .unwrap()
                .guest_api;
        assert_eq!(guest_api.resources, GuestResources::Named(vec!["a/b/c".into(), "a/*".into()]));
        assert!(guest_api.aael && !guest_api.token);
        assert_eq!(settings.allow.exec, [["sh"]]);
        assert!(!settings.allow.stdin && settings.allow.pause);
        assert_eq!(settings.allow.port_forward, [80, 65535]);
        assert_eq!(settings.registry.ca_file.as_deref(), Some(Path::new("x")));
        assert_eq!(settings.kubernetes.service_env, Some(ServiceEnv::All));
    }

    #[test]
    fn errors_have_a_line() {
        for (text, says) in [
            ("logs = true\nlog = 1", "s.toml:2: unknown field `log`"),
            ("[allow]\n\nexec_all = true", "s.toml:3: unknown field `exec_all`"),
            ("[registry]\nca_file = 7", "s.toml:2: invalid type"),
            ("[allow]\nport_forward = [80, 8006]", "s.toml:2: port 8006 cannot be forwarded"),
            ("[allow]\nport_forward = [0]", "s.toml:2: port 0 cannot be forwarded"),
            ("[allow]\nport_forward = [65536]", "s.toml:2: invalid value"),
            ("\nruntimes = [\"dockershim\"]", "s.toml:2: the runtime \"dockershim\" is not known"),
            ("runtimes = []", "s.toml:1: runtimes is empty"),
            ("\n[profile.dockershim]\nx = 1", "s.toml:2: the runtime \"dockershim\" is not known"),
            ("host_paths = [\"/a/../b\"]", "s.toml:1: \"/a/../b\" is not"),
            ("[kubernetes]\nclaim_source = \".*\"", "s.toml:2: claim_source must begin"),
            ("[kubernetes]\nservice_env = \"some\"", "s.toml:2: unknown variant `some`"),
            ("logs = ", "s.toml:1:"),
            ("[guest_api]\nresources = [\"default\"]", "s.toml:2: \"default\" names no resource"),
            ("[guest_api]\nresources = [\"a/b/*/d\"]", "s.toml:2: \"a/b/*/d\" names no resource"),
            ("[guest_api]\nresource = true", "s.toml:2: unknown field `resource`"),
        ] {
            let error = merged(&[text]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn drop_ins_come_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.toml");
        let drop_ins = directory.path().join("cluster.toml.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&file, "host_paths = [\"/file\"]\nlogs = false").unwrap();
        std::fs::write(drop_ins.join("20.toml"), "host_paths = [\"/20\"]").unwrap();
        std::fs::write(drop_ins.join("10.toml"), "host_paths = [\"/10\"]\n[allow]\npause = true")
            .unwrap();
        std::fs::write(drop_ins.join("30.txt"), "not toml").unwrap();
        let settings = Settings::read(&[file]).unwrap();
        assert_eq!(settings.host_paths, ["/20"]);
        assert!(!settings.logs && settings.allow.pause);
        assert_eq!(Settings::read(&[drop_ins]).unwrap().host_paths, ["/20"]);
        let error = Settings::read(&["/absent.toml".into()]).unwrap_err().to_string();
        assert!(error.starts_with("settings /absent.toml: "), "{error}");
    }

    #[test]
    fn a_changed_profile_is_embedded() {
        let name = &Settings::default().runtimes[0];
        let settings = merged(&[&format!("[profile.\"{name}\".example]\nkey = [\"x\"]")]).unwrap();
        let profile = settings.profile(false).unwrap().unwrap();
        assert_eq!(profile["example"]["key"][0], "x");
        assert_eq!(Settings::default().profile(false).unwrap(), None);
        assert!(Settings::default().profile(true).unwrap().is_some());
    }
}
