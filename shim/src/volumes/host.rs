//! What a path that containerd binds into a container is on this host, judged by where the kubelet keeps
//! the volumes of pods: `.../pods/<uid>/volumes/<plugin>/<name>`, and for a `subPath`
//! `.../pods/<uid>/volume-subpaths/<name>/<container>/<number>`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::VolumeError;
use crate::spec::HostMount;

/// Largest table of mounts that is read, in bytes: a busy node has thousands.
const MOST_MOUNT_BYTES: u64 = 16 * 1024 * 1024;

/// What is bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Volume {
    /// Begins empty; the guest makes it.
    EmptyDir(EmptyDir),
    /// The kubelet exchanges its files while the pod runs.
    Changing,
    /// Files that the kubelet or containerd made for the pod, such as `/etc/hosts`.
    PodFile,
    /// Anything else of this host, or a volume with data that outlives the pod.
    Lasting,
}

/// A volume that begins empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EmptyDir {
    /// As the pod's owner calls it.
    pub(super) name: String,
    /// Where the kubelet has made it on this host.
    pub(super) directory: PathBuf,
    /// The part of it that the container sees.
    pub(super) part: PathBuf,
    pub(super) medium: Medium,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// The node's disk.
    Default,
    /// Memory, with a bound in bytes if the kubelet gave one.
    Memory { size: Option<u64> },
}

const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Plugins whose volumes the kubelet exchanges as a whole.
const CHANGING: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// Files of a container that every runtime brings, whatever they are on the host.
const POD_FILES: [&str; 4] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"];

/// Says what a mount's source is.
pub(super) fn classify(mount: &HostMount) -> Result<Volume, VolumeError> {
    let Some((pod, rest)) = split_at_pod(&mount.source) else {
        let known = POD_FILES.iter().any(|file| mount.destination == Path::new(file));
        return Ok(if known { Volume::PodFile } else { Volume::Lasting });
    };
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    if let Some((name, is_part)) = empty_dir_name(&pod, &rest) {
        return empty_dir(mount, &pod, name, is_part);
    }
    match rest.as_slice() {
        ["volumes", plugin, _] if CHANGING.contains(plugin) => Ok(Volume::Changing),
        ["volume-subpaths", name, _, _]
            if CHANGING
                .iter()
                .any(|plugin| pod.join("volumes").join(plugin).join(name).is_dir()) =>
        {
            // The kubelet does not exchange what a subPath shows.
            Ok(Volume::PodFile)
        }
        ["volumes" | "volumeDevices", ..] | ["volume-subpaths", _, _, _] => Ok(Volume::Lasting),
        _ => Ok(Volume::PodFile),
    }
}

/// Whether this is a volume that begins empty, or a part of one.
pub(crate) fn is_empty_dir(source: &Path) -> bool {
    split_at_pod(source).is_some_and(|(pod, rest)| {
        let rest: Vec<_> = rest.iter().map(String::as_str).collect();
        empty_dir_name(&pod, &rest).is_some()
    })
}

/// The name of the volume that begins empty, and whether only a part of it is meant.
fn empty_dir_name<'a>(pod: &Path, rest: &[&'a str]) -> Option<(&'a str, bool)> {
    match *rest {
        ["volumes", EMPTY_DIR, name] => Some((name, false)),
        ["volume-subpaths", name, _, _] => {
            let is_one = pod.join("volumes").join(EMPTY_DIR).join(name).is_dir();
            is_one.then_some((name, true))
        }
        _ => None,
    }
}

/// What the copy of this is called in the guest: as what is copied; what a `subPath` shows by the container's name and
/// the mount's number, since the number alone says nothing: the policy must see which mount it is.
pub(super) fn copied_name(source: &Path) -> String {
    let part = split_at_pod(source).and_then(|(_, rest)| match rest.as_slice() {
        [kind, _, container, number] if kind == "volume-subpaths" => {
            Some(format!("{container}.{number}"))
        }
        _ => None,
    });
    part.unwrap_or_else(|| {
        source.file_name().unwrap_or_default().to_string_lossy().chars().take(64).collect()
    })
}

/// `.../pods/<uid>` and the plain components behind it.
fn split_at_pod(path: &Path) -> Option<(PathBuf, Vec<String>)> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.components().all(plain) {
        return None;
    }
    let parts: Vec<&str> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
    // The last such directory: the kubelet's own root may lie beneath one of that name.
    let kinds = ["volumes", "volume-subpaths", "volumeDevices", "containers", "etc-hosts"];
    let at = parts.windows(3).rposition(|part| part[0] == "pods" && kinds.contains(&part[2]))?;
    let pod = parts[..at + 2].iter().collect();
    Some((pod, parts[at + 2..].iter().map(|part| (*part).to_owned()).collect()))
}

fn empty_dir(
    mount: &HostMount,
    pod: &Path,
    name: &str,
    is_part: bool,
) -> Result<Volume, VolumeError> {
    let directory = pod.join("volumes").join(EMPTY_DIR).join(name);
    let failed = |cause| VolumeError::Read {
        path: mount.source.clone(),
        destination: mount.destination.clone(),
        cause,
    };
    let table = mount_table().map_err(failed)?;
    // The table knows no symbolic links, which the kubelet's root may be or lie behind.
    let resolved = directory.canonicalize().map_err(failed)?;
    let part = if is_part {
        let point = mount.source.canonicalize().map_err(failed)?;
        part_of(&table, &resolved, &point).ok_or_else(|| {
            failed(io::Error::other(format!("it is not mounted from {}", directory.display())))
        })?
    } else {
        PathBuf::new()
    };
    let medium = match mounted_at(&table, &resolved) {
        Some(found) if found.kind == "hugetlbfs" => {
            return Err(VolumeError::HugePages { destination: mount.destination.clone() });
        }
        Some(found) if found.kind == "tmpfs" => Medium::Memory { size: found.size() },
        _ => Medium::Default,
    };
    Ok(Volume::EmptyDir(EmptyDir { name: name.to_owned(), directory, part, medium }))
}

fn mount_table() -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = fs::File::open("/proc/self/mountinfo")?;
    file.take(MOST_MOUNT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_MOUNT_BYTES {
        return Err(io::Error::other("this host has too many mounts"));
    }
    Ok(text)
}

/// A line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Debug)]
struct MountLine<'a> {
    device: &'a str,
    /// What of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (fixed, rest) = line.split_once(" - ")?;
        let mut fixed = fixed.split(' ').skip(2);
        let (device, root, point) = (fixed.next()?, fixed.next()?, fixed.next()?);
        let mut rest = rest.split(' ');
        let (kind, _, options) = (rest.next()?, rest.next()?, rest.next()?);
        Some(Self { device, root: unescaped(root), point: unescaped(point), kind, options })
    }

    /// The bound of a tmpfs, in bytes.
    fn size(&self) -> Option<u64> {
        let size = self.options.split(',').find_map(|option| option.strip_prefix("size="))?;
        size.strip_suffix('k')?.parse::<u64>().ok()?.checked_mul(1024)
    }
}

/// Blanks and the like are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| *first == b'\\').and_then(|d| u8::from_str_radix(d, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// The uppermost mount at exactly this path.
fn mounted_at<'a>(table: &'a str, path: &Path) -> Option<MountLine<'a>> {
    table.lines().filter_map(MountLine::parse).rfind(|line| line.point == path)
}

/// The path within `volume` that is mounted at `point`.
fn part_of(table: &str, volume: &Path, point: &Path) -> Option<PathBuf> {
    let part = mounted_at(table, point)?;
    // The file system that holds the volume, and where in it the volume is.
    let holder = table
        .lines()
        .filter_map(MountLine::parse)
        .filter(|line| volume.starts_with(&line.point))
        .enumerate()
        .max_by_key(|(number, line)| (line.point.components().count(), *number))?
        .1;
    let volume_in_it = holder.root.join(volume.strip_prefix(&holder.point).ok()?);
    let beneath = part.root.strip_prefix(&volume_in_it).ok()?;
    (part.device == holder.device).then(|| beneath.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, destination: &str) -> HostMount {
        HostMount {
            position: 0,
            source: source.into(),
            destination: destination.into(),
            read_only: true,
        }
    }

    #[test]
    fn volumes_are_known_by_where_the_kubelet_keeps_them() {
        let pod = "/var/lib/kubelet/pods/0c0b36ae";
        for (source, destination, expected) in [
            (format!("{pod}/volumes/kubernetes.io~configmap/cfg"), "/c", Volume::Changing),
            (format!("{pod}/volumes/kubernetes.io~secret/s"), "/s", Volume::Changing),
            (
                format!("{pod}/volumes/kubernetes.io~projected/kube-api-access-1"),
                "/t",
                Volume::Changing,
            ),
            (format!("{pod}/volumes/kubernetes.io~csi/pvc-1/mount"), "/d", Volume::Lasting),
            (format!("{pod}/volumes/kubernetes.io~nfs/n"), "/d", Volume::Lasting),
            (format!("{pod}/volume-subpaths/absent/app/0"), "/d", Volume::Lasting),
            (format!("{pod}/etc-hosts"), "/etc/hosts", Volume::PodFile),
            (format!("{pod}/containers/app/1d6f0b5e"), "/my/log", Volume::PodFile),
            ("/run/containerd/x/resolv.conf".into(), "/etc/resolv.conf", Volume::PodFile),
            ("/srv/pods/data".into(), "/data", Volume::Lasting),
            ("/srv/pods/x/other/thing".into(), "/data", Volume::Lasting),
            ("/etc".into(), "/etc/hosts.d", Volume::Lasting),
            (format!("{pod}/volumes/../../../etc"), "/data", Volume::Lasting),
        ] {
            assert_eq!(classify(&mount(&source, destination)).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn copies_of_parts_are_named_by_their_mount() {
        let pod = "/var/lib/kubelet/pods/0c0b36ae";
        for (source, name) in [
            (format!("{pod}/volumes/kubernetes.io~configmap/cfg"), "cfg"),
            (format!("{pod}/volume-subpaths/cfg/app/0"), "app.0"),
            (format!("{pod}/volume-subpaths/cfg/sidecar/0"), "sidecar.0"),
            ("/srv/volume-subpaths/cfg/app/0".into(), "0"),
            ("/".into(), ""),
        ] {
            assert_eq!(copied_name(Path::new(&source)), name, "{source}");
        }
    }

    #[test]
    fn an_empty_directory_says_its_name_and_medium() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("pods/u/volumes/kubernetes.io~empty-dir/work");
        fs::create_dir_all(&directory).unwrap();
        let found = classify(&mount(directory.to_str().unwrap(), "/work")).unwrap();
        let expected = EmptyDir {
            name: "work".into(),
            directory,
            part: PathBuf::new(),
            medium: Medium::Default,
        };
        assert_eq!(found, Volume::EmptyDir(expected));
    }

    #[test]
    fn a_medium_is_found_behind_a_symbolic_link() {
        let table = mount_table().unwrap();
        let mut lines = table.lines().filter_map(MountLine::parse);
        // Something else can be mounted over one.
        let is_seen = |line: &MountLine<'_>| {
            mounted_at(&table, &line.point).is_some_and(|top| top.kind == "tmpfs")
        };
        let memory =
            lines.find(|line| line.kind == "tmpfs" && line.point.is_dir() && is_seen(line));
        let memory = memory.expect("every Linux has a tmpfs somewhere").point;
        let root = tempfile::tempdir().unwrap();
        let volumes = root.path().join("pods/u/volumes").join(EMPTY_DIR);
        fs::create_dir_all(&volumes).unwrap();
        std::os::unix::fs::symlink(memory, volumes.join("mem")).unwrap();
        let found = classify(&mount(volumes.join("mem").to_str().unwrap(), "/mem")).unwrap();
        let Volume::EmptyDir(found) = found else { panic!("{found:?}") };
        assert!(matches!(found.medium, Medium::Memory { .. }), "{found:?}");
        assert_eq!(found.name, "mem");
    }

    const TABLE: &str = "\
        22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:40 / /k/pods/u/volumes/kubernetes.io~empty-dir/mem rw shared:7 - tmpfs tmpfs rw,size=65536k\n\
        31 22 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/work/a\\040b /k/pods/u/volume-subpaths/work/app/0 rw - ext4 /dev/sda1 rw\n\
        32 22 0:40 /part /k/pods/u/volume-subpaths/mem/app/1 rw - tmpfs tmpfs rw,size=65536k\n\
        33 22 8:2 /k/pods/u/volumes/kubernetes.io~empty-dir/work/x /k/pods/u/volume-subpaths/work/app/2 rw - ext4 /dev/sdb rw\n\
        34 22 8:1 /etc /k/pods/u/volume-subpaths/work/app/3 rw - ext4 /dev/sda1 rw\n\
        broken line\n";

    #[test]
    fn parts_are_found_in_the_table_of_mounts() {
        let volume = |name| PathBuf::from("/k/pods/u/volumes/kubernetes.io~empty-dir").join(name);
        let part = |name, number: u8| {
            let point = format!("/k/pods/u/volume-subpaths/{name}/app/{number}");
            part_of(TABLE, &volume(name), Path::new(&point))
        };
        assert_eq!(part("work", 0), Some("a b".into()));
        assert_eq!(part("mem", 1), Some("part".into()));
        assert_eq!(part("work", 2), None, "another file system");
        assert_eq!(part("work", 3), None, "beside the volume");
        assert_eq!(part("work", 4), None, "not mounted");
        let memory = mounted_at(TABLE, &volume("mem")).unwrap();
        assert_eq!((memory.kind, memory.size()), ("tmpfs", Some(64 << 20)));
        assert!(mounted_at(TABLE, &volume("work")).is_none());
    }
}
