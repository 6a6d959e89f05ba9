//! A node's configuration: one TOML file in which every key is known. `config.toml` beside this crate's
//! manifest has them all, with their defaults and what they mean.
//!
//! It decides which machine the node's pods get, and so what they measure: the shim launches by it, and the
//! owner's tool computes from it what a genuine guest measures. It trusts the file's author, the node's
//! administrator, and checks it so that mistakes are told before a machine boots.

#![forbid(unsafe_code)]

mod confidential;
pub mod sizing;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use confidential::{SignedLaunchError, SnpSection, TdxSection};
use nacre_hypervisor::{Accelerator, HostUser, QemuPaths, UnknownUser, longest_command_line};
use nacre_image_manifest::GuestImage;
pub use nacre_image_manifest::OpenError;
use nacre_protocol::channel::{MOST_VOLUMES, kernel_parameter};
use serde::Deserialize;

/// Where the configuration is unless the runtime option `ConfigPath` names another file.
pub const DEFAULT_PATH: &str = "/etc/nacre/config.toml";

/// Where the configurations of containerd's handlers are.
const DIRECTORY: &str = "/etc/nacre";

/// The smallest scratch disk, in MiB: what fits into less fits into memory.
pub const LEAST_SCRATCH_DISK_MIB: u32 = 64;
/// The largest: 4 TiB, half of what the guest's file system is made for.
const MOST_SCRATCH_DISK_MIB: u32 = 4 * 1024 * 1024;

/// A configuration beyond this size is a mistake.
const MOST_BYTES: u64 = 256 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// It is no TOML, or has other keys.
    #[error("{origin} is not a valid configuration: {cause}")]
    Parse {
        /// Where the text is from.
        origin: String,
        /// What the parser says, on one line.
        cause: String,
    },
    /// A value cannot be used.
    #[error("{origin}: {key} {problem}")]
    Value {
        /// Where the text is from.
        origin: String,
        /// Section and key.
        key: &'static str,
        /// What is wrong and what to give instead.
        problem: String,
    },
}

/// Why there is nothing to boot guests from.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is no image where the configuration says.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The kernel would cut the end of its parameters off, which are measured and of which the agent's are part.
    #[error(
        "the kernel's command line has {length} bytes with what the configuration adds, and guests of this \
         vm.tee take {longest}: shorten vm.kernel_parameters, agent.log or registry.danger_plain_http"
    )]
    CommandLine {
        /// Its bytes.
        length: usize,
        /// Most bytes.
        longest: usize,
    },
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[vm]`: the virtual machines.
    pub vm: VmSection,
    /// `[pod]`: what pods get that bring none.
    pub pod: PodSection,
    /// `[emulated]`: emulated secure processors.
    pub emulated: EmulatedSection,
    /// `[snp]`: AMD SEV-SNP.
    pub snp: SnpSection,
    /// `[tdx]`: Intel TDX.
    pub tdx: TdxSection,
    /// `[registry]`: registries, as guests ask them.
    pub registry: RegistrySection,
    /// `[cache]`: the node's cache of image blobs.
    pub cache: CacheSection,
    /// `[agent]`: the agent in the guest.
    pub agent: AgentSection,
    /// `[storage]`: disks for pods.
    pub storage: StorageSection,
    /// `[telemetry]`: where spans of starts go.
    pub telemetry: TelemetrySection,
    /// `[shim]`: the shim itself.
    pub shim: ShimSection,
}

/// `[vm]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSection {
    /// Program that runs the VMs.
    pub qemu: PathBuf,
    /// Whom they run as: a user of the host by name or as `UID:GID`; empty: root.
    pub user: String,
    /// Directories with QEMU's data and firmware, searched in this order.
    pub firmware_dirs: Vec<PathBuf>,
    /// Directory of the guest image.
    pub image: PathBuf,
    /// Whether its development initrd is booted.
    pub danger_development_image: bool,
    /// What runs the guest's instructions.
    pub accelerator: AcceleratorKey,
    /// What vouches for the guest.
    pub tee: Tee,
    /// Virtual processors of a pod.
    pub vcpus: u32,
    /// What an annotation may raise them to.
    pub max_vcpus: u32,
    /// Memory of a pod, in MiB.
    pub memory_mib: u32,
    /// What an annotation may raise it to, in MiB.
    pub max_memory_mib: u32,
    /// Time from the launch to the agent's first answer, in seconds.
    pub boot_timeout_seconds: u32,
    /// More kernel parameters, separated by spaces.
    pub kernel_parameters: String,
}

/// `vm.accelerator`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorKey {
    /// KVM where it can work, else software emulation.
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// Software emulation.
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

/// `vm.tee`: what vouches for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// Nothing: it gets no secret.
    None,
    /// An emulated AMD secure processor: for development.
    EmulatedSnp,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Tee {
    /// The configuration that is for this TEE alone, if the node has one: containerd's handlers for SEV-SNP and TDX
    /// are shipped with `ConfigPath`s of their own (`deploy/containerd`). Without it, [`DEFAULT_PATH`] holds.
    #[must_use]
    pub fn own_configuration(self) -> Option<PathBuf> {
        self.configuration_in(Path::new(DIRECTORY))
    }

    fn configuration_in(self, directory: &Path) -> Option<PathBuf> {
        let name = match self {
            Tee::None | Tee::EmulatedSnp => return None,
            Tee::Snp => "snp.toml",
            Tee::Tdx => "tdx.toml",
        };
        // One that is there and cannot be read is an error of its reader, not absent.
        Some(directory.join(name)).filter(|path| path.symlink_metadata().is_ok())
    }
}

/// What a guest is booted from: all of it is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The image that has them.
    pub image: GuestImage,
    /// Kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// The kernel's whole command line.
    pub command_line: String,
}

/// `[emulated]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmulatedSection {
    /// Where the development root is kept; made when absent.
    pub directory: PathBuf,
    /// Whether guests are launched under a policy that lets the host debug them.
    pub danger_debug: bool,
}

/// `[pod]`; an empty path means none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodSection {
    /// Initdata (TOML) of pods without the annotation.
    pub default_initdata: PathBuf,
    /// Policy (Rego) that the host sends to guests whose initdata brings none.
    pub danger_set_policy: PathBuf,
    /// What the images of a pod take that does not say it, in MiB.
    pub images_mib: u32,
}

/// `[registry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySection {
    /// `host` or `host:port` of registries that guests may ask over plain HTTP.
    pub danger_plain_http: Vec<String>,
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSection {
    /// Socket of the daemon; empty: pods do without it.
    pub socket: PathBuf,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSection {
    /// Filter of the agent's log.
    pub log: String,
    /// Directory for recorded requests of development images; empty: nothing is recorded.
    pub danger_record: PathBuf,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSection {
    /// Where the files behind scratch disks are; they have no names there.
    pub directory: PathBuf,
    /// Size of a pod's scratch disk, in MiB; 0: none.
    pub scratch_disk_mib: u32,
    /// What an annotation may raise it to, in MiB.
    pub max_scratch_disk_mib: u32,
    /// Places for volumes in a pod's machine.
    pub volumes: u32,
    /// What an annotation may raise it to.
    pub max_volumes: u32,
}

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// `http://ADDRESS:PORT` of an OpenTelemetry collector; empty: no spans are sent.
    pub otlp_endpoint: String,
}

/// `[shim]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShimSection {
    /// Level of the shim's log.
    pub log: LogLevel,
}

/// `shim.log`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What may fail.
    Warn,
    /// What happens.
    Info,
    /// How.
    Debug,
    /// Everything.
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
            user: String::new(),
            firmware_dirs: vec!["/opt/nacre/share/qemu".into(), "/opt/nacre/share/seabios".into()],
            image: "/opt/nacre/share/nacre".into(),
            danger_development_image: false,
            accelerator: AcceleratorKey::Auto,
            tee: Tee::None,
            vcpus: 1,
            max_vcpus: 16,
            memory_mib: 512,
            max_memory_mib: 16384,
            boot_timeout_seconds: 60,
            kernel_parameters: String::new(),
        }
    }
}

impl Default for PodSection {
    fn default() -> Self {
        PodSection {
            default_initdata: PathBuf::new(),
            danger_set_policy: PathBuf::new(),
            images_mib: 128,
        }
    }
}

impl Default for EmulatedSection {
    fn default() -> Self {
        EmulatedSection { directory: "/var/lib/nacre/emulated".into(), danger_debug: false }
    }
}

impl Default for CacheSection {
    fn default() -> Self {
        CacheSection { socket: "/run/nacre/cache.sock".into() }
    }
}

impl Default for AgentSection {
    fn default() -> Self {
        AgentSection { log: "info".to_owned(), danger_record: PathBuf::new() }
    }
}

impl Default for StorageSection {
    fn default() -> Self {
        StorageSection {
            directory: "/var/lib/nacre/scratch".into(),
            scratch_disk_mib: 0,
            max_scratch_disk_mib: 16384,
            volumes: 2,
            max_volumes: MOST_VOLUMES,
        }
    }
}

impl Default for ShimSection {
    fn default() -> Self {
        ShimSection { log: LogLevel::Info }
    }
}

impl TelemetrySection {
    /// The collector, if there is one.
    #[must_use]
    pub fn collector(&self) -> Option<SocketAddr> {
        // A name would have to be looked up by each shim, and a slow answer would hold it up.
        self.otlp_endpoint.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or something in it is not as it should be.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let failed = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let mut text = String::new();
        let read = File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
            .map_err(failed)?;
        if read as u64 > MOST_BYTES {
            return Err(failed(io::Error::other(format!("larger than {MOST_BYTES} bytes"))));
        }
        Config::parse(&text, &path.display().to_string())
    }

    /// Reads a text; `origin` says in errors where it is from.
    ///
    /// # Errors
    /// If something in it is not as it should be.
    pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
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
        for (key, path) in [
            ("vm.qemu", &vm.qemu),
            ("vm.image", &vm.image),
            ("emulated.directory", &self.emulated.directory),
            ("storage.directory", &self.storage.directory),
        ]
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
            ("cache.socket", &self.cache.socket),
        ] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return wrong(key, format!("is {path:?}: give an absolute path, or \"\" for none"));
            }
        }
        let least_mib = sizing::least_memory_mib(sizing::is_confidential(vm.tee));
        for (key, value, least, most) in [
            ("vm.max_vcpus", vm.max_vcpus, 1, 255),
            ("vm.vcpus", vm.vcpus, 1, vm.max_vcpus),
            ("vm.max_memory_mib", vm.max_memory_mib, least_mib, 64 * 1024 * 1024),
            ("vm.memory_mib", vm.memory_mib, least_mib, vm.max_memory_mib),
            ("vm.boot_timeout_seconds", vm.boot_timeout_seconds, 1, 600),
            ("pod.images_mib", self.pod.images_mib, 0, vm.max_memory_mib),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(key, format!("is {value}: give a number from {least} to {most}"));
            }
        }
        if let Err((key, problem)) = self.check_confidential() {
            return wrong(key, problem);
        }
        let storage = &self.storage;
        for (key, value, most) in [
            ("storage.max_scratch_disk_mib", storage.max_scratch_disk_mib, MOST_SCRATCH_DISK_MIB),
            ("storage.scratch_disk_mib", storage.scratch_disk_mib, storage.max_scratch_disk_mib),
        ] {
            if value != 0 && !(LEAST_SCRATCH_DISK_MIB..=most).contains(&value) {
                let range = format!("{LEAST_SCRATCH_DISK_MIB} to {most}");
                return wrong(
                    key,
                    format!("is {value}: give a number from {range}, or 0 for none"),
                );
            }
        }
        for (key, value, most) in [
            ("storage.max_volumes", storage.max_volumes, MOST_VOLUMES),
            ("storage.volumes", storage.volumes, storage.max_volumes),
        ] {
            if value > most {
                return wrong(key, format!("is {value}: give a number from 0 to {most}"));
            }
        }
        if !vm.user.is_empty() && !is_user(&vm.user) {
            let problem = format!(
                "is {:?}: give the name of an unprivileged user, such as nacre-vm, or UID:GID, or \"\" for root",
                vm.user
            );
            return wrong("vm.user", problem);
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
        let telemetry = &self.telemetry;
        if !telemetry.otlp_endpoint.is_empty() && telemetry.collector().is_none() {
            let given = &telemetry.otlp_endpoint;
            let problem = format!(
                "is {given:?}: give http://ADDRESS:PORT of a collector on this node, such as \
                 http://127.0.0.1:4318, or \"\" for none"
            );
            return wrong("telemetry.otlp_endpoint", problem);
        }
        if self.agent.log.is_empty()
            || !self.agent.log.chars().all(|c| c.is_ascii_alphanumeric() || "_=,:-".contains(c))
        {
            return wrong("agent.log", "must be a filter such as info or nacre_agent=debug".into());
        }
        Ok(())
    }

    /// What guests are booted from.
    ///
    /// # Errors
    /// If there is no image where the configuration says, or the kernel takes less than the whole command line.
    pub fn guest(&self) -> Result<Guest, GuestError> {
        let image = GuestImage::open(&self.vm.image)?;
        let initrd = if self.vm.danger_development_image {
            image.development_initrd()
        } else {
            image.initrd()
        };
        let words = [image.command_line().to_owned()].into_iter().chain(self.kernel_parameters());
        let command_line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        let (kernel, confidential) = match self.vm.tee {
            Tee::None | Tee::EmulatedSnp => (image.vmlinux(), false),
            // UEFI firmware starts only a bzImage.
            Tee::Snp | Tee::Tdx => (image.bzimage(), true),
        };
        let (length, longest) = (command_line.len(), longest_command_line(confidential));
        if length > longest {
            return Err(GuestError::CommandLine { length, longest });
        }
        Ok(Guest { image, kernel, initrd, command_line })
    }

    /// Settings by which guests protect less than the image promises, or may: keys of this file. Guests launched so
    /// measure other values than guests without them, and an owner who registers these accepts that.
    ///
    /// Kernel parameters are among them whatever they say: nobody can list those that switch a protection off.
    /// `emulated.danger_debug` is not: it is no part of a measurement, and reports show it.
    #[must_use]
    pub fn dangers(&self) -> Vec<&'static str> {
        let given = |path: &Path| !path.as_os_str().is_empty();
        let dangers = [
            ("vm.danger_development_image", self.vm.danger_development_image),
            ("vm.kernel_parameters", !self.vm.kernel_parameters.trim().is_empty()),
            ("pod.danger_set_policy", given(&self.pod.danger_set_policy)),
            ("registry.danger_plain_http", !self.registry.danger_plain_http.is_empty()),
            ("agent.danger_record", given(&self.agent.danger_record)),
        ];
        dangers.into_iter().filter_map(|(key, is_set)| is_set.then_some(key)).collect()
    }

    /// What this configuration adds to the image's kernel parameters, each one word.
    fn kernel_parameters(&self) -> Vec<String> {
        let mut parameters = vec![format!("{}={}", kernel_parameter::LOG, self.agent.log)];
        // The agent looks for this TEE, and for no other: it is measured, so that a host cannot talk it into
        // another.
        let tee = match self.vm.tee {
            Tee::None => None,
            Tee::EmulatedSnp => Some("emulated-snp"),
            Tee::Snp => Some("snp"),
            Tee::Tdx => Some("tdx"),
        };
        parameters.extend(tee.map(|tee| format!("{}={tee}", kernel_parameter::TEE)));
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

    /// Whom QEMU runs as; `None`: as root, without capabilities. Only a node knows its users, so that this is
    /// no part of what [`Config::parse`] checks.
    ///
    /// # Errors
    /// If this host has no such user.
    pub fn vm_user(&self) -> Result<Option<HostUser>, UnknownUser> {
        let name = Some(self.vm.user.as_str()).filter(|name| !name.is_empty());
        name.map(HostUser::find).transpose()
    }

    /// QEMU and where its firmware is.
    #[must_use]
    pub fn qemu_paths(&self) -> QemuPaths {
        let VmSection { qemu, firmware_dirs, .. } = &self.vm;
        QemuPaths { binary: qemu.clone(), firmware_dirs: firmware_dirs.clone() }
    }
}

/// A user's name as useradd(8) allows it, or two numbers. Root is none: that is the empty name.
fn is_user(text: &str) -> bool {
    const LONGEST_NAME: usize = 32;
    let is_number = |text: &str| text.parse::<u32>().is_ok_and(|number| number != 0);
    match text.split_once(':') {
        Some((uid, gid)) => is_number(uid) && is_number(gid),
        None => {
            let starts = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
            starts && text.len() <= LONGEST_NAME && text.chars().all(inner) && text != "root"
        }
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
        assert_eq!(keys, 38);
        Config::default().check("defaults").unwrap();
    }

    #[test]
    fn spans_go_to_an_address_and_to_no_name() {
        let collector = |endpoint: &str| {
            let text = format!("[telemetry]\notlp_endpoint = {endpoint:?}\n");
            Config::parse(&text, "c").map(|config| config.telemetry.collector())
        };
        assert_eq!(collector("").unwrap(), None);
        let local = Some("127.0.0.1:4318".parse().unwrap());
        assert_eq!(collector("http://127.0.0.1:4318").unwrap(), local);
        assert!(collector("http://[::1]:4318/").unwrap().is_some());
        for wrong in [
            "127.0.0.1:4318",
            "https://127.0.0.1:4318",
            "http://collector:4318",
            "http://127.0.0.1",
        ] {
            let error = collector(wrong).unwrap_err().to_string();
            assert!(error.contains("telemetry.otlp_endpoint is"), "{error}");
        }
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
            (
                "[vm]\ntee = \"snp\"\nmemory_mib = 255",
                "vm.memory_mib is 255: give a number from 256 to 16384",
            ),
            (
                "[vm]\ntee = \"tdx\"\nmemory_mib = 128\nmax_memory_mib = 255",
                "vm.max_memory_mib is 255: give a number from 256",
            ),
            ("[vm]\nboot_timeout_seconds = 601", "vm.boot_timeout_seconds"),
            ("[vm]\nqemu = \"qemu\"", "vm.qemu is \"qemu\": give an absolute path"),
            ("[vm]\nfirmware_dirs = [\"x\"]", "vm.firmware_dirs"),
            ("[vm]\nuser = \"root\"", "vm.user is \"root\": give the name of an unprivileged user"),
            ("[vm]\nuser = \"0:0\"", "vm.user is \"0:0\""),
            ("[vm]\nuser = \"1000:0\"", "vm.user is \"1000:0\""),
            ("[vm]\nuser = \"nacre vm\"", "vm.user is \"nacre vm\""),
            ("[vm]\nuser = 1000", "user"),
            ("[vm]\nimage = \"here\"", "vm.image is \"here\": give an absolute path"),
            ("[vm]\naccelerator = \"xen\"", "xen"),
            ("[vm]\nkernel_parameters = \"a\\nb\"", "vm.kernel_parameters"),
            ("[vm]\ntee = \"sgx\"", "sgx"),
            ("[emulated]\ndirectory = \"here\"", "emulated.directory is \"here\""),
            ("[emulated]\ndebug = true", "debug"),
            ("[registry]\ndanger_plain_http = [\"a,b\"]", "registry.danger_plain_http"),
            ("[registry]\ndanger_plain_http = [\"http://a\"]", "host:port"),
            ("[cache]\nsocket = \"cache.sock\"", "cache.socket is \"cache.sock\""),
            ("[agent]\nlog = \"a b\"", "agent.log"),
            ("[agent]\ndanger_record = \"here\"", "agent.danger_record is \"here\""),
            ("[pod]\ndefault_initdata = \"x\"", "pod.default_initdata is \"x\""),
            ("[pod]\ndanger_set_policy = \"x\"", "pod.danger_set_policy is \"x\""),
            ("[pod]\nset_policy = \"/x\"", "set_policy"),
            ("[pod]\nimages_mib = 16385", "pod.images_mib is 16385: give a number from 0 to 16384"),
            ("[storage]\ndirectory = \"x\"", "storage.directory is \"x\""),
            ("[storage]\nscratch_disk_mib = 63", "give a number from 64 to 16384, or 0 for none"),
            (
                "[storage]\nmax_scratch_disk_mib = 9999999",
                "storage.max_scratch_disk_mib is 9999999",
            ),
            (
                "[storage]\nscratch_disk_mib = 64\nmax_scratch_disk_mib = 0",
                "storage.scratch_disk_mib is 64",
            ),
            ("[storage]\nscratch_mib = 64", "scratch_mib"),
            ("[storage]\nmax_volumes = 9", "storage.max_volumes is 9: give a number from 0 to 8"),
            ("[storage]\nvolumes = 2\nmax_volumes = 1", "storage.volumes is 2"),
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
    fn a_user_is_looked_up_on_the_node_and_nowhere_else() {
        let user =
            |name: &str| Config::parse(&format!("[vm]\nuser = {name:?}"), "t").unwrap().vm_user();
        assert_eq!(user("").unwrap(), None);
        assert_eq!(user("998:997").unwrap().unwrap().to_string(), "998:997");
        let error = user("nobody-has-this-name").unwrap_err().to_string();
        assert!(error.contains("nacre install --vm-user"), "{error}");
    }

    #[test]
    fn settings_that_weaken_guests_are_named() {
        assert!(Config::default().dangers().is_empty());
        let dangers = |text: &str| Config::parse(text, "t").unwrap().dangers();
        for (section, key, value) in [
            ("vm", "danger_development_image", "true"),
            ("vm", "kernel_parameters", "\"nokaslr\""),
            ("pod", "danger_set_policy", "\"/p\""),
            ("registry", "danger_plain_http", "[\"r:5000\"]"),
            ("agent", "danger_record", "\"/r\""),
        ] {
            assert_eq!(
                dangers(&format!("[{section}]\n{key} = {value}")),
                [format!("{section}.{key}")]
            );
        }
        assert!(dangers("[vm]\nkernel_parameters = \" \"").is_empty());
        assert!(dangers("[agent]\nlog = \"debug\"\n[emulated]\ndanger_debug = true").is_empty());
        // A key that is called dangerous in the file is one of these, or is told elsewhere.
        let shipped = include_str!("../config.toml");
        let keys = shipped.lines().filter(|line| line.starts_with("danger_")).count();
        assert_eq!(keys, 5, "four that the guest gets, and emulated.danger_debug");
    }

    #[test]
    fn hardware_may_have_a_configuration_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let own = |tee: Tee| tee.configuration_in(directory.path());
        for tee in [Tee::None, Tee::EmulatedSnp, Tee::Snp, Tee::Tdx] {
            assert_eq!(own(tee), None);
        }
        for name in ["snp.toml", "tdx.toml"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(own(Tee::Snp), Some(directory.path().join("snp.toml")));
        assert_eq!(own(Tee::Tdx), Some(directory.path().join("tdx.toml")));
        assert_eq!(own(Tee::EmulatedSnp), None);
    }

    #[test]
    fn kernel_parameters_are_words() {
        let mut config = Config::default();
        config.registry.danger_plain_http = vec!["10.88.0.1:5000".into(), "[::1]:5000".into()];
        config.vm.kernel_parameters = " quiet  nokaslr ".into();
        config.vm.tee = Tee::EmulatedSnp;
        config.pod.danger_set_policy = "/p".into();
        config.agent.danger_record = "/r".into();
        assert_eq!(
            config.kernel_parameters(),
            [
                "nacre.log=info",
                "nacre.tee=emulated-snp",
                "nacre.danger_plain_http=10.88.0.1:5000,[::1]:5000",
                "nacre.danger_set_policy=1",
                "nacre.danger_record=1",
                "quiet",
                "nokaslr"
            ]
        );
    }

    #[test]
    fn a_command_line_that_a_kernel_would_cut_boots_nothing() {
        let hash = "ab".repeat(32);
        let artifact = |name| format!(r#"{{"name":"{name}","size":1,"sha256":"{hash}"}}"#);
        let origin = format!(r#"{{"package":"p","version":"1","sha256":"{hash}"}}"#);
        let (vmlinux, bzimage) = (artifact("vmlinux"), artifact("vmlinuz"));
        let (initrd, development) = (artifact("initrd.img"), artifact("development.img"));
        let manifest = format!(
            r#"{{"format":2,"kernel":{{"release":"6","package":{origin},"vmlinux":{vmlinux},"bzimage":{bzimage}}},
                "initrd":{{"file":{initrd},"zstd_size":1,"development":{development}}},
                "command_line":"quiet","certificates":{origin},"files":[]}}"#
        );
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("manifest.json"), manifest).unwrap();
        let mut config = Config::default();
        config.vm.image = directory.path().to_owned();
        for (tee, longest) in [
            // Emulated guests are told how fast their counter counts.
            (Tee::None, 2022),
            (Tee::EmulatedSnp, 2022),
            // OVMF and TDVF put "initrd=initrd " before it.
            (Tee::Snp, 2033),
            (Tee::Tdx, 2033),
        ] {
            config.vm.tee = tee;
            config.vm.kernel_parameters.clear();
            let room = longest - config.guest().unwrap().command_line.len() - 1;
            config.vm.kernel_parameters = "x".repeat(room);
            assert_eq!(config.guest().unwrap().command_line.len(), longest);
            config.vm.kernel_parameters.push('x');
            let error = config.guest().unwrap_err();
            assert!(
                matches!(error, GuestError::CommandLine { length, .. } if length == longest + 1)
            );
            assert!(error.to_string().contains("shorten vm.kernel_parameters"), "{error}");
        }
        config.vm.image = directory.path().join("absent");
        assert!(matches!(config.guest().unwrap_err(), GuestError::Open(_)));
    }
}
