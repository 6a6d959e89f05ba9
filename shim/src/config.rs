//! The shim's configuration: one TOML file in which every key is known.

use std::path::{Path, PathBuf};

use nacre_hypervisor::Accelerator;
use nacre_protocol::channel::kernel_parameter;
use serde::Deserialize;

use crate::error::{Code, Coded};

/// Where the configuration is unless the runtime option `ConfigPath` names another file.
pub(crate) const DEFAULT_PATH: &str = "/etc/nacre/config.toml";

/// A configuration beyond this size is a mistake.
const MOST_BYTES: u64 = 256 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{origin} is not a valid configuration: {cause}")]
    Parse { origin: String, cause: String },
    #[error("{origin}: {key} {problem}")]
    Value { origin: String, key: &'static str, problem: String },
    #[error("the runtime options are not a runtimeoptions.v1.Options message: {0}")]
    Options(String),
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) vm: VmSection,
    pub(crate) pod: PodSection,
    pub(crate) registry: RegistrySection,
    pub(crate) agent: AgentSection,
    pub(crate) shim: ShimSection,
}

/// `[vm]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VmSection {
    pub(crate) qemu: PathBuf,
    pub(crate) firmware_dirs: Vec<PathBuf>,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) accelerator: AcceleratorKey,
    pub(crate) vcpus: u32,
    pub(crate) max_vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) max_memory_mib: u32,
    pub(crate) boot_timeout_seconds: u32,
    pub(crate) kernel_parameters: String,
}

/// `vm.accelerator`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AcceleratorKey {
    Auto,
    Kvm,
    Tcg,
}

impl From<AcceleratorKey> for Accelerator {
    fn from(key: AcceleratorKey) -> Self {
        match key {
            AcceleratorKey::Auto => Accelerator::Auto,
            AcceleratorKey::Kvm => Accelerator::Kvm,
            AcceleratorKey::Tcg => Accelerator::Tcg,
        }
    }
}

/// `[pod]`; an empty path means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PodSection {
    pub(crate) default_initdata: PathBuf,
    pub(crate) danger_set_policy: PathBuf,
}

/// `[registry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RegistrySection {
    pub(crate) danger_plain_http: Vec<String>,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AgentSection {
    pub(crate) log: String,
    /// Empty: nothing is recorded.
    pub(crate) danger_record: PathBuf,
}

/// `[shim]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ShimSection {
    pub(crate) log: LogLevel,
}

/// `shim.log`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

impl Default for VmSection {
    fn default() -> Self {
        VmSection {
            qemu: "/opt/nacre/bin/qemu-system-x86_64".into(),
            firmware_dirs: vec!["/opt/nacre/share/qemu".into(), "/opt/nacre/share/seabios".into()],
            kernel: "/opt/nacre/share/nacre/vmlinux".into(),
            initrd: "/opt/nacre/share/nacre/initrd.img".into(),
            accelerator: AcceleratorKey::Auto,
            vcpus: 1,
            max_vcpus: 16,
            memory_mib: 512,
            max_memory_mib: 16384,
            boot_timeout_seconds: 60,
            kernel_parameters: String::new(),
        }
    }
}

impl Default for AgentSection {
    fn default() -> Self {
        AgentSection { log: "info".to_owned(), danger_record: PathBuf::new() }
    }
}

impl Default for ShimSection {
    fn default() -> Self {
        ShimSection { log: LogLevel::Info }
    }
}

impl Config {
    /// Reads the configuration that the runtime options name; without one, the default file; without
    /// that, the defaults, and says so in the log.
    pub(crate) fn load(options: &RuntimeOptions) -> Result<Config, ConfigError> {
        if !options.config_path.is_empty() {
            return Config::read(Path::new(&options.config_path));
        }
        if !options.config_body.trim().is_empty() {
            return Config::parse(&options.config_body, "the runtime options");
        }
        match Config::read(Path::new(DEFAULT_PATH)) {
            Err(ConfigError::Read { cause, .. })
                if cause.kind() == std::io::ErrorKind::NotFound =>
            {
                tracing::info!("{DEFAULT_PATH} is absent: the built-in defaults hold");
                Config::parse("", "the built-in defaults")
            }
            other => other,
        }
    }

    fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = crate::files::read_text(path, MOST_BYTES)
            .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Config::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|cause| ConfigError::Parse {
            origin: origin.to_owned(),
            cause: one_line(&cause.to_string()),
        })?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| {
            Err(ConfigError::Value { origin: origin.to_owned(), key, problem })
        };
        let vm = &self.vm;
        for (key, path) in
            [("vm.qemu", &vm.qemu), ("vm.kernel", &vm.kernel), ("vm.initrd", &vm.initrd)]
                .into_iter()
                .chain(vm.firmware_dirs.iter().map(|dir| ("vm.firmware_dirs", dir)))
        {
            if !path.is_absolute() {
                return wrong(key, format!("is {path:?}: give an absolute path"));
            }
        }
        for (key, path) in [
            ("pod.default_initdata", &self.pod.default_initdata),
            ("pod.danger_set_policy", &self.pod.danger_set_policy),
            ("agent.danger_record", &self.agent.danger_record),
        ] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return wrong(key, format!("is {path:?}: give an absolute path, or \"\" for none"));
            }
        }
        for (key, value, least, most) in [
            ("vm.max_vcpus", vm.max_vcpus, 1, 255),
            ("vm.vcpus", vm.vcpus, 1, vm.max_vcpus),
            ("vm.max_memory_mib", vm.max_memory_mib, 128, 64 * 1024 * 1024),
            ("vm.memory_mib", vm.memory_mib, 128, vm.max_memory_mib),
            ("vm.boot_timeout_seconds", vm.boot_timeout_seconds, 1, 600),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(key, format!("is {value}: give a number from {least} to {most}"));
            }
        }
        if vm.kernel_parameters.chars().any(|c| c.is_control() || !c.is_ascii()) {
            return wrong("vm.kernel_parameters", "must be printable ASCII".to_owned());
        }
        for registry in &self.registry.danger_plain_http {
            if !is_registry(registry) {
                return wrong(
                    "registry.danger_plain_http",
                    format!("has {registry:?}: give \"host\" or \"host:port\""),
                );
            }
        }
        if self.agent.log.is_empty()
            || !self.agent.log.chars().all(|c| c.is_ascii_alphanumeric() || "_=,:-".contains(c))
        {
            return wrong("agent.log", "must be a filter such as info or nacre_agent=debug".into());
        }
        Ok(())
    }

    /// Kernel parameters for the guest, each one word.
    pub(crate) fn kernel_parameters(&self) -> Vec<String> {
        let mut parameters = vec![format!("{}={}", kernel_parameter::LOG, self.agent.log)];
        if !self.registry.danger_plain_http.is_empty() {
            parameters.push(format!(
                "{}={}",
                kernel_parameter::DANGER_PLAIN_HTTP,
                self.registry.danger_plain_http.join(",")
            ));
        }
        for (key, path) in [
            (kernel_parameter::DANGER_SET_POLICY, &self.pod.danger_set_policy),
            (kernel_parameter::DANGER_RECORD, &self.agent.danger_record),
        ] {
            if !path.as_os_str().is_empty() {
                parameters.push(format!("{key}=1"));
            }
        }
        parameters.extend(self.vm.kernel_parameters.split_whitespace().map(str::to_owned));
        parameters
    }
}

fn is_registry(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

/// What the administrator wrote in containerd's configuration for this runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuntimeOptions {
    pub(crate) config_path: String,
    pub(crate) config_body: String,
}

impl RuntimeOptions {
    /// Reads the options of a create request. containerd uses several names for the same message;
    /// a message of another runtime says nothing about this one.
    pub(crate) fn decode(type_url: &str, value: &[u8]) -> Result<RuntimeOptions, ConfigError> {
        if !type_url.ends_with("runtimeoptions.v1.Options") {
            if !type_url.is_empty() {
                tracing::warn!(
                    "runtime options of type {type_url} are not for this runtime: ignored"
                );
            }
            return Ok(RuntimeOptions::default());
        }
        RuntimeOptions::parse(value).map_err(|cause| ConfigError::Options(cause.to_string()))
    }

    /// `runtimeoptions.v1.Options`: `type_url` = 1, `config_path` = 2, `config_body` = 3.
    fn parse(value: &[u8]) -> protobuf::Result<RuntimeOptions> {
        let mut options = RuntimeOptions::default();
        let mut input = protobuf::CodedInputStream::from_bytes(value);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                18 => options.config_path = input.read_string()?,
                26 => options.config_body = input.read_string()?,
                other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_says_the_defaults_and_names_every_key() {
        let text = include_str!("../config.toml");
        assert_eq!(Config::parse(text, "config.toml").unwrap(), Config::default());
        // Every key is written out: without any one of its lines the file would still equal the
        // defaults, so count them.
        let keys = text.lines().filter(|l| !l.starts_with('#') && l.contains(" = ")).count();
        assert_eq!(keys, 17);
        Config::default().check("defaults").unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[vm]\nmemory = 1", "memory"),
            ("[vmm]", "vmm"),
            ("[vm]\nvcpus = 0", "vm.vcpus is 0: give a number from 1 to 16"),
            ("[vm]\nvcpus = 17", "vm.vcpus is 17"),
            ("[vm]\nvcpus = -1", "vcpus"),
            ("[vm]\nmemory_mib = 64", "vm.memory_mib is 64: give a number from 128 to 16384"),
            ("[vm]\nboot_timeout_seconds = 601", "vm.boot_timeout_seconds"),
            ("[vm]\nqemu = \"qemu\"", "vm.qemu is \"qemu\": give an absolute path"),
            ("[vm]\nfirmware_dirs = [\"x\"]", "vm.firmware_dirs"),
            ("[vm]\naccelerator = \"xen\"", "xen"),
            ("[vm]\nkernel_parameters = \"a\\nb\"", "vm.kernel_parameters"),
            ("[registry]\ndanger_plain_http = [\"a,b\"]", "registry.danger_plain_http"),
            ("[registry]\ndanger_plain_http = [\"http://a\"]", "host:port"),
            ("[agent]\nlog = \"a b\"", "agent.log"),
            ("[agent]\ndanger_record = \"here\"", "agent.danger_record is \"here\""),
            ("[pod]\ndefault_initdata = \"x\"", "pod.default_initdata is \"x\""),
            ("[pod]\ndanger_set_policy = \"x\"", "pod.danger_set_policy is \"x\""),
            ("[pod]\nset_policy = \"/x\"", "set_policy"),
            ("[shim]\nlog = \"loud\"", "loud"),
            ("vm = 3", "vm"),
            ("[vm", "line 1"),
        ] {
            let error = Config::parse(text, "t").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn kernel_parameters_are_words() {
        let mut config = Config::default();
        config.registry.danger_plain_http = vec!["10.88.0.1:5000".into(), "[::1]:5000".into()];
        config.vm.kernel_parameters = " quiet  nokaslr ".into();
        config.pod.danger_set_policy = "/p".into();
        config.agent.danger_record = "/r".into();
        assert_eq!(
            config.kernel_parameters(),
            [
                "nacre.log=info",
                "nacre.danger_plain_http=10.88.0.1:5000,[::1]:5000",
                "nacre.danger_set_policy=1",
                "nacre.danger_record=1",
                "quiet",
                "nokaslr"
            ]
        );
    }

    #[test]
    fn runtime_options_are_found_under_any_of_their_names() {
        let mut value = vec![10, 1, b't', 18, 4];
        value.extend(b"/a/b");
        for name in ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"] {
            let options = RuntimeOptions::decode(name, &value).unwrap();
            assert_eq!(options.config_path, "/a/b");
        }
        let other = RuntimeOptions::decode("containerd.runc.v1.Options", &value).unwrap();
        assert_eq!(other, RuntimeOptions::default());
        assert!(RuntimeOptions::decode("runtimeoptions.v1.Options", &[18, 200]).is_err());
    }

    #[test]
    fn a_named_file_must_exist() {
        let options = RuntimeOptions { config_path: "/absent/c".into(), ..Default::default() };
        assert!(Config::load(&options).unwrap_err().to_string().contains("/absent/c"));
    }
}
