//! From the specification in a request to the one that the runtime library gets.
//!
//! The request is untrusted: every field is checked, and what this guest does not support is refused
//! by name rather than left out. Namespaces, cgroup, root and hostname are the agent's to decide.

mod mounts;
mod process;
mod seccomp;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nacre_protocol::oci as proto;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxNamespace, LinuxNamespaceType, Mount, Process, Root, RootBuilder, Spec,
};

use crate::error::RpcError;

pub(crate) use mounts::{BindSource, ParsedMount, parse as parse_mounts};
pub(crate) use process::{all_capabilities, capability_sets, parse as parse_process};

/// Bounds of one specification. Whole requests are at most 4 MiB (ttrpc's limit).
const MOST_PATHS: usize = 256;
const MOST_SYSCTLS: usize = 128;
const LONGEST_PATH: usize = 4096;

/// Sysctls of the IPC namespace, which the pod has of its own.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// A checked specification.
#[derive(Debug)]
pub(crate) struct ParsedSpec {
    /// The container's first process.
    pub(crate) process: Process,
    /// In the order in which they are made.
    pub(crate) mounts: Vec<ParsedMount>,
    /// Settings of the VM's network, which is the pod's.
    pub(crate) network_sysctls: HashMap<String, String>,
    root: Root,
    linux: Linux,
}

/// The namespaces that the agent gives a container. The network is the VM's.
#[derive(Debug, Clone)]
pub(crate) struct PodNamespaces {
    /// The pod's.
    pub(crate) ipc: PathBuf,
    /// The pod's.
    pub(crate) uts: PathBuf,
    /// That of the pod's first container; absent for one of its own.
    pub(crate) pid: Option<PathBuf>,
}

impl ParsedSpec {
    /// Checks `spec`. `rootfs` is the only root that it may name.
    pub(crate) fn parse(spec: &proto::Spec, rootfs: &Path) -> Result<Self, RpcError> {
        refuse_if(spec.Hooks.is_some(), "OCI.Hooks", "hooks would run outside of the container")?;
        refuse_if(spec.Windows.is_some(), "OCI.Windows", "this is a Linux guest")?;
        refuse_if(spec.Solaris.is_some(), "OCI.Solaris", "this is a Linux guest")?;
        let root = spec.Root.as_ref().ok_or_else(|| missing("OCI.Root"))?;
        if Path::new(&root.Path) != rootfs {
            let why = format!("must be {}, where the image is mounted", rootfs.display());
            return Err(RpcError::invalid("OCI.Root.Path", why));
        }
        let process = spec.Process.as_ref().ok_or_else(|| missing("OCI.Process"))?;
        let linux = spec.Linux.as_ref().ok_or_else(|| missing("OCI.Linux"))?;
        let root = RootBuilder::default()
            .path(rootfs)
            .readonly(root.Readonly)
            .build()
            .map_err(|e| RpcError::invalid("OCI.Root", e))?;
        let (linux, network_sysctls) = parse_linux(linux)?;
        Ok(Self {
            process: parse_process("OCI.Process", process)?,
            mounts: parse_mounts("OCI.Mounts", &spec.Mounts)?,
            network_sysctls,
            root,
            linux,
        })
    }

    /// The container's filter of system calls.
    pub(crate) fn seccomp(&self) -> Option<&oci_spec::runtime::LinuxSeccomp> {
        self.linux.seccomp().as_ref()
    }

    /// Adds nodes for devices that the agent gives the container.
    pub(crate) fn add_devices(&mut self, devices: Vec<LinuxDevice>) {
        self.linux.set_devices((!devices.is_empty()).then_some(devices));
    }

    /// The specification for the runtime library. `mounts` have their final sources.
    pub(crate) fn into_runtime_spec(
        self,
        mounts: Vec<Mount>,
        namespaces: &PodNamespaces,
        cgroup: &str,
    ) -> Spec {
        let mut linux = self.linux;
        linux.set_namespaces(Some(namespaces.entries()));
        linux.set_cgroups_path(Some(cgroup.into()));
        let mut spec = Spec::default();
        spec.set_version("1.0.2".into());
        spec.set_process(Some(self.process));
        spec.set_root(Some(self.root));
        spec.set_hostname(None);
        spec.set_mounts(Some(mounts));
        spec.set_linux(Some(linux));
        spec
    }
}

impl PodNamespaces {
    fn entries(&self) -> Vec<LinuxNamespace> {
        let entry = |kind, path: Option<&PathBuf>| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind);
            namespace.set_path(path.cloned());
            namespace
        };
        vec![
            entry(LinuxNamespaceType::Ipc, Some(&self.ipc)),
            entry(LinuxNamespaceType::Uts, Some(&self.uts)),
            entry(LinuxNamespaceType::Pid, self.pid.as_ref()),
            entry(LinuxNamespaceType::Mount, None),
            entry(LinuxNamespaceType::Cgroup, None),
        ]
    }
}

fn parse_linux(linux: &proto::Linux) -> Result<(Linux, HashMap<String, String>), RpcError> {
    let user = "user namespaces are not supported in this guest";
    refuse_if(!linux.UIDMappings.is_empty(), "OCI.Linux.UIDMappings", user)?;
    refuse_if(!linux.GIDMappings.is_empty(), "OCI.Linux.GIDMappings", user)?;
    refuse_if(linux.IntelRdt.is_some(), "OCI.Linux.IntelRdt", "not available in this guest")?;
    refuse_if(!linux.MountLabel.is_empty(), "OCI.Linux.MountLabel", NO_SELINUX)?;
    check_namespaces(&linux.Namespaces)?;
    check_devices(&linux.Devices)?;
    let (network, ipc) = parse_sysctls(&linux.Sysctl)?;
    let mut parsed = Linux::default();
    parsed.set_resources(None);
    parsed.set_devices(None);
    parsed.set_sysctl((!ipc.is_empty()).then_some(ipc));
    parsed.set_rootfs_propagation(propagation(&linux.RootfsPropagation)?);
    parsed.set_masked_paths(Some(paths("OCI.Linux.MaskedPaths", &linux.MaskedPaths)?));
    parsed.set_readonly_paths(Some(paths("OCI.Linux.ReadonlyPaths", &linux.ReadonlyPaths)?));
    if let Some(filter) = linux.Seccomp.as_ref() {
        parsed.set_seccomp(Some(seccomp::parse("OCI.Linux.Seccomp", filter)?));
    }
    Ok((parsed, network))
}

pub(crate) const NO_SELINUX: &str = "SELinux is not available in this guest: leave the label to the VM, or disable it in containerd";
pub(crate) const NO_APPARMOR: &str =
    "AppArmor is not available in this guest: set the profile to unconfined or leave it out";

/// Namespaces are the agent's choice: the request may name kinds, but no path, which would be the host's.
fn check_namespaces(namespaces: &[proto::LinuxNamespace]) -> Result<(), RpcError> {
    for (index, namespace) in namespaces.iter().enumerate() {
        let field = format!("OCI.Linux.Namespaces[{index}]");
        match namespace.Type.as_str() {
            "pid" | "ipc" | "uts" | "mount" | "cgroup" | "network" => {}
            other => {
                let why = format!("{other:?} namespaces are not supported in this guest");
                return Err(RpcError::invalid(format!("{field}.Type"), why));
            }
        }
        let why = "paths of the host mean nothing in the guest: leave it empty";
        refuse_if(!namespace.Path.is_empty(), &format!("{field}.Path"), why)?;
    }
    Ok(())
}

/// The runtime library makes the default devices itself.
fn check_devices(devices: &[proto::LinuxDevice]) -> Result<(), RpcError> {
    const DEFAULTS: [(&str, i64, i64); 8] = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
        ("/dev/console", 5, 1),
        ("/dev/ptmx", 5, 2),
    ];
    for (index, device) in devices.iter().enumerate() {
        let known = DEFAULTS.iter().any(|(path, major, minor)| {
            device.Path == *path && device.Major == *major && device.Minor == *minor
        });
        let why = format!(
            "{:?} ({}:{}) is a device of the host: only the default devices exist in this guest",
            device.Path, device.Major, device.Minor
        );
        refuse_if(!known, &format!("OCI.Linux.Devices[{index}]"), &why)?;
    }
    Ok(())
}

type Sysctls = HashMap<String, String>;

/// Those of the network, which the agent sets, and those of the IPC namespace.
fn parse_sysctls(sysctls: &Sysctls) -> Result<(Sysctls, Sysctls), RpcError> {
    if sysctls.len() > MOST_SYSCTLS {
        let why = format!("{} are more than the {MOST_SYSCTLS} allowed", sysctls.len());
        return Err(RpcError::invalid("OCI.Linux.Sysctl", why));
    }
    let (mut network, mut ipc) = (HashMap::new(), HashMap::new());
    for (name, value) in sysctls {
        let field = format!("OCI.Linux.Sysctl[{name:?}]");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let safe = name.chars().all(plain) && !name.contains("..") && !name.contains("//");
        refuse_if(!safe, &field, "not the name of a kernel setting")?;
        refuse_if(value.len() > LONGEST_PATH, &field, "the value is too long")?;
        // Either separator may be used; then a dot may be part of an interface's name.
        let dotted = if name.contains('/') {
            name.replace('/', "\0").replace('.', "/").replace('\0', ".")
        } else {
            name.clone()
        };
        if dotted.starts_with("net.") {
            network.insert(dotted, value.clone());
        } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            ipc.insert(dotted, value.clone());
        } else {
            let why = "not a setting of a namespace: only net.*, the IPC settings of kernel.* and \
                       fs.mqueue.* belong to a pod";
            return Err(RpcError::invalid(field, why));
        }
    }
    Ok((network, ipc))
}

fn propagation(text: &str) -> Result<Option<String>, RpcError> {
    match text {
        "" => Ok(None),
        "private" | "rprivate" => Ok(Some("private".into())),
        "slave" | "rslave" => Ok(Some("slave".into())),
        other => {
            let why = format!("{other:?} is not supported: use private or slave");
            Err(RpcError::invalid("OCI.Linux.RootfsPropagation", why))
        }
    }
}

fn paths(field: &str, paths: &[String]) -> Result<Vec<String>, RpcError> {
    if paths.len() > MOST_PATHS {
        let why = format!("{} are more than the {MOST_PATHS} allowed", paths.len());
        return Err(RpcError::invalid(field, why));
    }
    for (index, path) in paths.iter().enumerate() {
        check_path(&format!("{field}[{index}]"), path)?;
    }
    Ok(paths.to_vec())
}

/// Absolute, bounded, without `..` and NUL.
pub(crate) fn check_path(field: &str, path: &str) -> Result<(), RpcError> {
    refuse_if(!path.starts_with('/'), field, &format!("{path:?} must be absolute"))?;
    refuse_if(path.len() > LONGEST_PATH, field, "the path is too long")?;
    refuse_if(path.contains('\0'), field, "must not contain NUL")?;
    let up = path.split('/').any(|component| component == "..");
    refuse_if(up, field, &format!("{path:?} must not contain .."))
}

pub(crate) fn refuse_if(refuse: bool, field: &str, why: &str) -> Result<(), RpcError> {
    if refuse { Err(RpcError::invalid(field, why)) } else { Ok(()) }
}

pub(crate) fn missing(field: &str) -> RpcError {
    RpcError::invalid(field, "is missing")
}

/// Reads a word that the OCI specification enumerates.
fn word<T: serde::de::DeserializeOwned>(field: &str, text: &str) -> Result<T, RpcError> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| RpcError::invalid(field, format!("{text:?} is not supported")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOTFS: &str = "/run/kata-containers/a/rootfs";

    fn minimal() -> proto::Spec {
        let mut spec = proto::Spec::new();
        spec.Root.mut_or_insert_default().Path = ROOTFS.into();
        let process = spec.Process.mut_or_insert_default();
        process.Args = vec!["/pause".into()];
        process.User.mut_or_insert_default();
        process.Cwd = "/".into();
        spec.Linux.mut_or_insert_default();
        spec
    }

    fn refused(spec: &proto::Spec) -> String {
        ParsedSpec::parse(spec, Path::new(ROOTFS)).unwrap_err().to_string()
    }

    #[test]
    fn the_agent_decides_on_namespaces_and_cgroup() {
        let mut spec = minimal();
        let kind = |kind: &str| proto::LinuxNamespace { Type: kind.into(), ..Default::default() };
        spec.Linux.mut_or_insert_default().Namespaces = ["ipc", "uts", "mount"].map(kind).to_vec();
        spec.Linux.mut_or_insert_default().CgroupsPath = "/system.slice".into();
        let parsed = ParsedSpec::parse(&spec, Path::new(ROOTFS)).unwrap();
        let namespaces = PodNamespaces { ipc: "/ns/ipc".into(), uts: "/ns/uts".into(), pid: None };
        let runtime = parsed.into_runtime_spec(Vec::new(), &namespaces, "/nacre/a");
        let linux = runtime.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_ref().unwrap(), Path::new("/nacre/a"));
        let kinds: Vec<_> =
            linux.namespaces().as_ref().unwrap().iter().map(LinuxNamespace::typ).collect();
        assert!(kinds.contains(&LinuxNamespaceType::Pid), "own, although not asked for");
        assert!(!kinds.contains(&LinuxNamespaceType::Network), "the VM's");
        assert!(runtime.hostname().is_none());
        assert!(linux.masked_paths().as_ref().unwrap().is_empty(), "no defaults sneak in");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let linux = |change: fn(&mut proto::Linux)| {
            let mut spec = minimal();
            change(spec.Linux.mut_or_insert_default());
            refused(&spec)
        };
        let namespace = linux(|l| {
            l.Namespaces.push(proto::LinuxNamespace {
                Type: "ipc".into(),
                Path: "/proc/1/ns/ipc".into(),
                ..Default::default()
            });
        });
        assert!(namespace.contains("OCI.Linux.Namespaces[0].Path"), "{namespace}");
        let user = linux(|l| {
            l.Namespaces.push(proto::LinuxNamespace { Type: "user".into(), ..Default::default() });
        });
        assert!(user.contains("\"user\""), "{user}");
        let device = linux(|l| {
            l.Devices.push(proto::LinuxDevice { Path: "/dev/kvm".into(), ..Default::default() });
        });
        assert!(device.contains("/dev/kvm"), "{device}");
        let mapping = linux(|l| l.UIDMappings.push(proto::LinuxIDMapping::new()));
        assert!(mapping.contains("UIDMappings"), "{mapping}");
        let masked = linux(|l| l.MaskedPaths.push("/proc/../etc".into()));
        assert!(masked.contains("OCI.Linux.MaskedPaths[0]"), "{masked}");
        let shared = linux(|l| l.RootfsPropagation = "shared".into());
        assert!(shared.contains("RootfsPropagation"), "{shared}");
        let mut spec = minimal();
        spec.Hooks.mut_or_insert_default();
        assert!(refused(&spec).contains("OCI.Hooks"));
        let mut spec = minimal();
        spec.Root.mut_or_insert_default().Path = "/".into();
        assert!(refused(&spec).contains("OCI.Root.Path"));
        assert!(refused(&proto::Spec::new()).contains("OCI.Root: is missing"));
    }

    #[test]
    fn sysctls_are_sorted_by_their_namespace() {
        let mut spec = minimal();
        let sysctls = &mut spec.Linux.mut_or_insert_default().Sysctl;
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        sysctls.insert("net/ipv4/conf/eth0.1/forwarding".into(), "1".into());
        sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        let parsed = ParsedSpec::parse(&spec, Path::new(ROOTFS)).unwrap();
        assert!(parsed.network_sysctls.contains_key("net.ipv4.conf.eth0/1.forwarding"));
        assert_eq!(parsed.network_sysctls.len(), 2);
        assert_eq!(parsed.linux.sysctl().as_ref().unwrap().len(), 1);
        for bad in ["kernel.core_pattern", "vm.swappiness", "net.../../x"] {
            let mut spec = minimal();
            spec.Linux.mut_or_insert_default().Sysctl.insert(bad.into(), "|x".into());
            assert!(refused(&spec).contains(bad));
        }
    }
}
