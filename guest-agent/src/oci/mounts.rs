//! Mounts within a container.

use std::path::PathBuf;

use nacre_protocol::oci as proto;
use oci_spec::runtime::Mount;

use super::{check_path, refuse_if};
use crate::error::RpcError;

const MOST_MOUNTS: usize = 512;

/// A checked mount.
#[derive(Debug)]
pub(crate) struct ParsedMount {
    /// Path of the mount in the request.
    pub(crate) field: String,
    /// For the runtime library; the source of a bind mount is still the request's.
    pub(crate) mount: Mount,
    /// What a bind mount wants to bind.
    pub(crate) bind: Option<BindSource>,
}

/// A path in the guest that a request wants to show to a container. Whether it may is decided where
/// it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindSource(pub(crate) PathBuf);

/// Checks mounts. `field` is their path in the request. Parents come before what is mounted within them,
/// whatever order the host gave: one that came later would hide it.
pub(crate) fn parse(field: &str, mounts: &[proto::Mount]) -> Result<Vec<ParsedMount>, RpcError> {
    if mounts.len() > MOST_MOUNTS {
        let why = format!("{} are more than the {MOST_MOUNTS} allowed", mounts.len());
        return Err(RpcError::invalid(field, why));
    }
    let each = mounts.iter().enumerate();
    let parsed = each.map(|(index, mount)| parse_one(format!("{field}[{index}]"), mount));
    let mut parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    parsed.sort_by_key(|parsed| parsed.mount.destination().components().count());
    Ok(parsed)
}

fn parse_one(field: String, mount: &proto::Mount) -> Result<ParsedMount, RpcError> {
    let part = |name: &str| format!("{field}.{name}");
    check_path(&part("destination"), &mount.destination)?;
    let at_root = mount.destination.split('/').all(|part| matches!(part, "" | "."));
    refuse_if(at_root, &part("destination"), "must not be the container's root")?;
    let binds = mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    let kind = match mount.type_.as_str() {
        "bind" | "none" | "" if binds || mount.type_ == "bind" => Kind::Bind,
        "proc" => Kind::Proc,
        "sysfs" => Kind::Sysfs,
        "tmpfs" => Kind::Tmpfs,
        "devpts" => Kind::Devpts,
        "mqueue" => Kind::Mqueue,
        "cgroup" | "cgroup2" => Kind::Cgroup,
        other => {
            let why = format!(
                "{other:?} is not supported: use proc, sysfs, tmpfs, devpts, mqueue, cgroup or bind"
            );
            return Err(RpcError::invalid(part("type"), why));
        }
    };
    refuse_if(binds && kind != Kind::Bind, &part("options"), "bind is for mounts of type bind")?;
    for option in &mount.options {
        check_option(&part("options"), kind, option)?;
    }
    let writable = !mount.options.iter().any(|option| option == "ro");
    let must_not_write = matches!(kind, Kind::Sysfs | Kind::Cgroup);
    let why = format!("{} is read-only in this guest: add \"ro\"", mount.type_);
    refuse_if(must_not_write && writable, &part("options"), &why)?;
    let mut parsed = Mount::default();
    parsed.set_destination(mount.destination.clone().into());
    parsed.set_typ(Some(kind.name().into()));
    parsed.set_options(Some(mount.options.clone()));
    parsed.set_source(Some(kind.name().into()));
    let bind = if kind == Kind::Bind {
        check_path(&part("source"), &mount.source)?;
        Some(BindSource(mount.source.clone().into()))
    } else {
        None
    };
    Ok(ParsedMount { field, mount: parsed, bind })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Proc,
    Sysfs,
    Tmpfs,
    Devpts,
    Mqueue,
    Cgroup,
}

impl Kind {
    /// As the runtime library knows it; it turns `cgroup` into version 2 by itself.
    fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Proc => "proc",
            Self::Sysfs => "sysfs",
            Self::Tmpfs => "tmpfs",
            Self::Devpts => "devpts",
            Self::Mqueue => "mqueue",
            Self::Cgroup => "cgroup",
        }
    }

    /// Options with a value that the file system itself reads.
    fn data_options(self) -> &'static [&'static str] {
        match self {
            Self::Tmpfs => &["size", "mode", "uid", "gid", "nr_inodes"],
            Self::Devpts => &["mode", "uid", "gid", "ptmxmode"],
            _ => &[],
        }
    }
}

fn check_option(field: &str, kind: Kind, option: &str) -> Result<(), RpcError> {
    let known = match option {
        "ro" | "rw" | "nosuid" | "suid" | "nodev" | "dev" | "noexec" | "exec" | "relatime"
        | "norelatime" | "noatime" | "atime" | "nodiratime" | "diratime" | "strictatime"
        | "nostrictatime" | "private" | "rprivate" | "slave" | "rslave" => true,
        "bind" | "rbind" | "rro" => kind == Kind::Bind,
        "newinstance" => kind == Kind::Devpts,
        _ => option.split_once('=').is_some_and(|(name, value)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '%';
            kind.data_options().contains(&name)
                && (1..=20).contains(&value.len())
                && value.chars().all(plain)
        }),
    };
    let why = match option {
        "shared" | "rshared" => "mounts cannot propagate to the host: use private or slave".into(),
        _ => format!("{option:?} is not supported for {}", kind.name()),
    };
    refuse_if(!known, field, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> proto::Mount {
        proto::Mount {
            type_: kind.into(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn what_containerd_mounts_is_accepted() {
        let mounts = [
            mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "devpts", "/dev/pts", &["newinstance", "ptmxmode=0666", "gid=5"]),
            mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "relatime", "ro"]),
            mount("bind", "/run/x", "/etc/hosts", &["rbind", "rprivate", "rw"]),
            mount("", "/run/x", "/etc/hostname", &["bind"]),
        ];
        let parsed = parse("Mounts", &mounts).unwrap();
        let binds: Vec<_> = parsed.iter().filter(|mount| mount.bind.is_some()).collect();
        assert_eq!(binds[0].bind, Some(BindSource("/run/x".into())));
        assert_eq!(binds[1].mount.typ().as_deref(), Some("bind"));
        assert_eq!(binds.len(), 2);
    }

    #[test]
    fn parents_are_mounted_first() {
        let mounts = [
            mount("tmpfs", "tmpfs", "/a/b/c", &[]),
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/a", &[]),
            mount("tmpfs", "tmpfs", "/a/b", &[]),
        ];
        let parsed = parse("Mounts", &mounts).unwrap();
        let order: Vec<_> =
            parsed.iter().map(|m| (m.mount.destination().to_str().unwrap(), &*m.field)).collect();
        let expected = [
            ("/proc", "Mounts[1]"),
            ("/a", "Mounts[2]"),
            ("/a/b", "Mounts[3]"),
            ("/a/b/c", "Mounts[0]"),
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn other_mounts_are_refused_by_name() {
        for (mount, text) in [
            (mount("ext4", "/dev/vda", "/x", &[]), "Mounts[0].type: \"ext4\""),
            (mount("overlay", "overlay", "/x", &["lowerdir=/"]), "Mounts[0].type"),
            (mount("sysfs", "sysfs", "/sys", &["rw"]), "read-only"),
            (mount("cgroup", "cgroup", "/sys/fs/cgroup", &[]), "read-only"),
            (mount("bind", "run/x", "/x", &["rbind"]), "Mounts[0].source"),
            (mount("bind", "/run/../etc", "/x", &["rbind"]), "Mounts[0].source"),
            (mount("bind", "/run/x", "/x", &["rshared"]), "propagate"),
            (mount("tmpfs", "tmpfs", "/../x", &[]), "Mounts[0].destination"),
            (mount("tmpfs", "tmpfs", "/.", &[]), "Mounts[0].destination"),
            (mount("tmpfs", "tmpfs", "/x", &["mpol=bind"]), "mpol"),
            (mount("tmpfs", "tmpfs", "/x", &["size=1,nr_inodes=2"]), "size=1,"),
            (mount("proc", "proc", "/proc", &["bind"]), "bind"),
        ] {
            let error = parse("Mounts", &[mount]).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
