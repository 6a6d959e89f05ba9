//! The OCI runtime specification that containerd wrote, as the agent in the guest is to get it.
//!
//! What is meant for this host and has no meaning in the guest is left out; what would need the host
//! inside the guest is refused with a reason. Nothing is guessed: an unknown namespace or mount type
//! is an error.

mod process;
mod resources;
mod seccomp;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nacre_configuration::sizing::annotation::PREFIX;
use nacre_protocol::start_report::Failure;
use nacre_protocol::{initdata, oci};
use oci_spec::runtime as spec;
use protobuf::MessageField;

pub(crate) use process::{process, process_from_json};
pub(crate) use resources::{resources, resources_from_json};

use crate::docker::NetworkHook;
use crate::error::{Code, Coded};
use crate::volumes;

/// Largest `config.json` in bytes; an argument list alone may have 2 MiB.
const MOST_BYTES: u64 = 8 * 1024 * 1024;

/// Why a specification cannot be carried out in a guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("cannot read {path}: {cause}")]
    Read { path: PathBuf, cause: String },
    #[error("{what} is not valid: {cause}")]
    Parse { what: &'static str, cause: String },
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} {problem}")]
    Value { field: String, problem: String },
    #[error("{field} cannot be given to a pod in a virtual machine: {reason}")]
    Unsupported { field: String, reason: &'static str },
}

impl Coded for SpecError {
    fn code(&self) -> Code {
        match self {
            SpecError::Read { .. } => Code::NOT_FOUND,
            SpecError::Unsupported { .. } => Code::UNIMPLEMENTED,
            SpecError::Parse { .. } | SpecError::Missing { .. } | SpecError::Value { .. } => {
                Code::INVALID_ARGUMENT
            }
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Unsupported)
    }
}

pub(crate) fn unsupported(field: impl Into<String>, reason: &'static str) -> SpecError {
    SpecError::Unsupported { field: field.into(), reason }
}

/// Reads `config.json` of a bundle.
pub(crate) fn read(bundle: &Path) -> Result<spec::Spec, SpecError> {
    let path = bundle.join("config.json");
    let text = crate::files::read_text(&path, MOST_BYTES)
        .map_err(|cause| SpecError::Read { path, cause: cause.to_string() })?;
    serde_json::from_str(&text)
        .map_err(|cause| SpecError::Parse { what: "config.json", cause: cause.to_string() })
}

/// The annotations of a specification.
pub(crate) fn annotations(spec: &spec::Spec) -> HashMap<String, String> {
    spec.annotations().clone().unwrap_or_default()
}

/// Without what was meant for this program, and without initdata, which the guest has had before.
fn annotations_for_guest(spec: &spec::Spec) -> HashMap<String, String> {
    let mut annotations = annotations(spec);
    annotations.retain(|key, _| key != initdata::ANNOTATION && !key.starts_with(PREFIX));
    annotations
}

/// The network that a specification asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NetworkWanted {
    /// The namespace that CNI prepared.
    Path(PathBuf),
    /// A new one: nothing but loopback.
    Isolated,
}

/// Reads the network of a pod's first container.
pub(crate) fn network(spec: &spec::Spec) -> Result<NetworkWanted, SpecError> {
    for (position, namespace) in namespaces(spec).iter().enumerate() {
        if namespace.typ() != spec::LinuxNamespaceType::Network {
            continue;
        }
        return match namespace.path() {
            None => Ok(NetworkWanted::Isolated),
            Some(path) if path.as_os_str().is_empty() => Ok(NetworkWanted::Isolated),
            Some(path) if path.is_absolute() => Ok(NetworkWanted::Path(path.clone())),
            Some(path) => Err(SpecError::Value {
                field: format!("linux.namespaces[{position}].path"),
                problem: format!("is {path:?}: it must be absolute"),
            }),
        };
    }
    Err(unsupported(
        "the host's network",
        "the guest has a network stack of its own; run it without hostNetwork (ctr: without --net-host)",
    ))
}

/// Whether the container shares the process namespace of its pod.
pub(crate) fn shares_pod_processes(spec: &spec::Spec) -> bool {
    namespaces(spec).iter().any(|namespace| {
        namespace.typ() == spec::LinuxNamespaceType::Pid && namespace.path().is_some()
    })
}

fn namespaces(spec: &spec::Spec) -> Vec<spec::LinuxNamespace> {
    spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default()
}

/// A host file or directory that a container wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMount {
    /// Position among the converted mounts.
    pub(crate) position: usize,
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    /// Whether the container cannot write there.
    pub(crate) read_only: bool,
}

/// A block device of this host that a container wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Path in the container.
    pub(crate) path: String,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    /// Whether the container cannot write to it.
    pub(crate) read_only: bool,
}

/// A converted specification.
#[derive(Debug)]
pub(crate) struct Converted {
    /// What the agent gets; sources of `host_mounts` are still the host's.
    pub(crate) spec: oci::Spec,
    /// What has to be copied into the guest first.
    pub(crate) host_mounts: Vec<HostMount>,
    /// What has to become a disk of the machine first.
    pub(crate) devices: Vec<HostDevice>,
    /// What was left out, for the log.
    pub(crate) left_out: Vec<String>,
}

impl Converted {
    /// The pod's own container runs a program of the guest that reads no files.
    pub(crate) fn drop_host_mounts(&mut self) {
        for mount in self.host_mounts.drain(..).rev() {
            self.spec.Mounts.remove(mount.position);
        }
    }
}

/// Converts a container's specification; its root file system will be at `root` in the guest.
pub(crate) fn convert(source: &spec::Spec, root: &str) -> Result<Converted, SpecError> {
    refuse_foreign_parts(source)?;
    let mut left_out = Vec::new();
    let process_spec = source.process().as_ref().ok_or(SpecError::Missing { field: "process" })?;
    let (mounts, host_mounts) = mounts(source.mounts().as_deref().unwrap_or_default())?;
    let readonly = source.root().as_ref().and_then(spec::Root::readonly).unwrap_or(false);
    let devices = source.linux().as_ref().map(block_devices).transpose()?.unwrap_or_default();
    let spec = oci::Spec {
        Version: source.version().clone(),
        Process: MessageField::some(process(process_spec, &mut left_out)?),
        Root: MessageField::some(oci::Root {
            Path: root.to_owned(),
            Readonly: readonly,
            ..Default::default()
        }),
        Hostname: source.hostname().clone().unwrap_or_default(),
        Mounts: mounts,
        Annotations: annotations_for_guest(source),
        Linux: MessageField::some(linux(source, &devices, &mut left_out)?),
        ..Default::default()
    };
    Ok(Converted { spec, host_mounts, devices, left_out })
}

fn refuse_foreign_parts(source: &spec::Spec) -> Result<(), SpecError> {
    if let Some(hooks) = source.hooks() {
        for (name, hooks) in [
            ("prestart", hooks.prestart()),
            ("createRuntime", hooks.create_runtime()),
            ("createContainer", hooks.create_container()),
            ("startContainer", hooks.start_container()),
            ("poststart", hooks.poststart()),
            ("poststop", hooks.poststop()),
        ] {
            let is_dockers = name == "prestart" && NetworkHook::of(source).is_some();
            if !is_dockers && hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()) {
                return Err(unsupported(
                    format!("hooks.{name}"),
                    "programs of the host cannot run in the guest; start the container without hooks",
                ));
            }
        }
    }
    for (field, present) in [
        ("solaris", source.solaris().is_some()),
        ("windows", source.windows().is_some()),
        ("vm", source.vm().is_some()),
        ("zos", source.zos().is_some()),
    ] {
        if present {
            return Err(unsupported(field, "the guest runs Linux, set up by the configuration"));
        }
    }
    Ok(())
}

fn linux(
    source: &spec::Spec,
    given: &[HostDevice],
    left_out: &mut Vec<String>,
) -> Result<oci::Linux, SpecError> {
    let linux = source.linux().as_ref().ok_or(SpecError::Missing { field: "linux" })?;
    let has_mappings = |mappings: &Option<Vec<spec::LinuxIdMapping>>| {
        mappings.as_ref().is_some_and(|mappings| !mappings.is_empty())
    };
    if has_mappings(linux.uid_mappings()) || has_mappings(linux.gid_mappings()) {
        return Err(unsupported(
            "linux.uidMappings",
            "user namespaces are not supported in the guest; run the pod without hostUsers: false",
        ));
    }
    for (field, present) in [
        ("linux.personality", linux.personality().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|map| !map.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|map| !map.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
    ] {
        if present {
            return Err(unsupported(field, "it concerns the host's hardware or kernel"));
        }
    }
    refuse_devices(linux.devices().as_deref().unwrap_or_default())?;
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        left_out.push("linux.mountLabel (a label of the host's SELinux)".to_owned());
    }
    let mut resources =
        linux.resources().as_ref().map(|found| resources(found, left_out)).transpose()?;
    if let Some(resources) = &mut resources {
        // Numbers of this host. The guest makes rules for the disks that the container gets.
        resources.Devices.retain(|rule| {
            let meant = |device: &HostDevice| {
                rule.Type == "b" && (rule.Major, rule.Minor) == (device.major, device.minor)
            };
            !given.iter().any(meant)
        });
    }
    Ok(oci::Linux {
        Sysctl: linux.sysctl().clone().unwrap_or_default(),
        Resources: resources.into(),
        Namespaces: guest_namespaces(linux.namespaces().as_deref().unwrap_or_default())?,
        Seccomp: linux.seccomp().as_ref().map(seccomp::seccomp).transpose()?.into(),
        RootfsPropagation: linux.rootfs_propagation().clone().unwrap_or_default(),
        MaskedPaths: linux.masked_paths().clone().unwrap_or_default(),
        ReadonlyPaths: linux.readonly_paths().clone().unwrap_or_default(),
        ..Default::default()
    })
}

/// The agent decides about the network and joins the pod's namespaces; a path of this host means
/// nothing there.
fn guest_namespaces(
    namespaces: &[spec::LinuxNamespace],
) -> Result<Vec<oci::LinuxNamespace>, SpecError> {
    use spec::LinuxNamespaceType as Type;
    let mut kept = Vec::new();
    for (position, namespace) in namespaces.iter().enumerate() {
        let name = match namespace.typ() {
            Type::Network | Type::Cgroup => continue,
            Type::Mount => "mount",
            Type::Uts => "uts",
            Type::Ipc => "ipc",
            Type::Pid => "pid",
            Type::User | Type::Time => {
                return Err(unsupported(
                    format!("linux.namespaces[{position}] ({:?})", namespace.typ()),
                    "only mount, uts, ipc, pid, network and cgroup namespaces are",
                ));
            }
        };
        kept.push(oci::LinuxNamespace { Type: name.to_owned(), ..Default::default() });
    }
    for (name, setting) in
        [("pid", "hostPID"), ("ipc", "hostIPC"), ("mount", "a shared mount namespace")]
    {
        if !kept.iter().any(|namespace| namespace.Type == name) {
            return Err(SpecError::Unsupported {
                field: format!("the host's {name} namespace ({setting})"),
                reason: "the guest has a kernel of its own",
            });
        }
    }
    Ok(kept)
}

/// Devices that every container has anyway; the guest makes its own.
const DEFAULT_DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

fn refuse_devices(devices: &[spec::LinuxDevice]) -> Result<(), SpecError> {
    for (position, device) in devices.iter().enumerate() {
        let known = DEFAULT_DEVICES.iter().any(|path| device.path() == Path::new(path));
        if !known && device.typ() != spec::LinuxDeviceType::B {
            return Err(unsupported(
                format!("linux.devices[{position}] ({})", device.path().display()),
                "of the host's devices only block devices can be disks of the guest; name no others, and run the \
                 pod without privileged: true",
            ));
        }
    }
    Ok(())
}

/// The block devices of a container: those of claims with `volumeMode: Block`.
fn block_devices(linux: &spec::Linux) -> Result<Vec<HostDevice>, SpecError> {
    let devices = linux.devices().as_deref().unwrap_or_default().iter().enumerate();
    let block = devices.filter(|(_, device)| device.typ() == spec::LinuxDeviceType::B);
    let rules = linux.resources().as_ref().and_then(|found| found.devices().as_deref());
    let each = block.map(|(position, device)| {
        let (major, minor) = (device.major(), device.minor());
        let rule = rules.unwrap_or_default().iter().find(|rule| is_rule_for(rule, major, minor));
        let access = rule.and_then(|rule| rule.access().clone()).unwrap_or_default();
        Ok(HostDevice {
            path: text(device.path(), &format!("linux.devices[{position}].path"))?,
            major,
            minor,
            read_only: !access.is_empty() && !access.contains('w'),
        })
    });
    each.collect()
}

/// A rule of containerd's for one block device of this host.
fn is_rule_for(rule: &spec::LinuxDeviceCgroup, major: i64, minor: i64) -> bool {
    rule.typ() == Some(spec::LinuxDeviceType::B)
        && rule.allow()
        && (rule.major(), rule.minor()) == (Some(major), Some(minor))
}

/// File systems that the guest's kernel makes by itself.
const GUEST_FILE_SYSTEMS: [&str; 7] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// Those of them that no container may write: what is in them is the whole guest's.
const READ_ONLY_FILE_SYSTEMS: [&str; 3] = ["sysfs", "cgroup", "cgroup2"];

fn mounts(source: &[spec::Mount]) -> Result<(Vec<oci::Mount>, Vec<HostMount>), SpecError> {
    let mut converted = Vec::new();
    let mut from_host = Vec::new();
    for (position, mount) in source.iter().enumerate() {
        let field = |name: &str| format!("mounts[{position}]{name}");
        let destination = mount.destination();
        if !destination.is_absolute() {
            return Err(SpecError::Value {
                field: field(".destination"),
                problem: format!("is {destination:?}: it must be absolute"),
            });
        }
        let has_mappings = |m: &Option<Vec<spec::LinuxIdMapping>>| {
            m.as_ref().is_some_and(|mappings| !mappings.is_empty())
        };
        if has_mappings(mount.uid_mappings()) || has_mappings(mount.gid_mappings()) {
            return Err(unsupported(field(".uidMappings"), "the guest has no id-mapped mounts"));
        }
        let options = mount.options().clone().unwrap_or_default();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind");
        let kind = if is_bind { "bind" } else { mount.typ().as_deref().unwrap_or_default() };
        let path = mount.source().clone().unwrap_or_default();
        let mut result = oci::Mount {
            destination: text(destination, &field(".destination"))?,
            type_: kind.to_owned(),
            options,
            ..Default::default()
        };
        let read_only = result.options.iter().any(|option| option == "ro" || option == "rro");
        if is_bind {
            // The pod's own, unless its owner has put a volume there.
            if destination == Path::new("/dev/shm") && !volumes::is_empty_dir(&path) {
                nacre_protocol::channel::SANDBOX_SHM.clone_into(&mut result.source);
            } else if path.is_absolute() {
                result.source = text(&path, &field(".source"))?;
                from_host.push(HostMount {
                    position: converted.len(),
                    source: path,
                    destination: destination.clone(),
                    read_only,
                });
            } else {
                return Err(SpecError::Value {
                    field: field(".source"),
                    problem: format!("is {path:?}: a bind needs an absolute path"),
                });
            }
        } else if READ_ONLY_FILE_SYSTEMS.contains(&kind) && !read_only {
            return Err(SpecError::Unsupported {
                field: format!("{} ({kind}, writable)", field("")),
                reason: "privileged containers do not get more of the guest's kernel than others; run the pod \
                         without privileged: true",
            });
        } else if GUEST_FILE_SYSTEMS.contains(&kind) {
            result.source = text(&path, &field(".source"))?;
        } else {
            return Err(SpecError::Unsupported {
                field: format!("{} with type {kind:?}", field("")),
                reason: "only binds of files and the kernel's own file systems can be mounted in a \
                         guest",
            });
        }
        converted.push(result);
    }
    Ok((converted, from_host))
}

fn text(path: &Path, field: &str) -> Result<String, SpecError> {
    path.to_str().map(str::to_owned).ok_or_else(|| SpecError::Value {
        field: field.to_owned(),
        problem: "is not UTF-8".to_owned(),
    })
}

#[cfg(test)]
mod tests;
