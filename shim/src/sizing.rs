//! How large the machine of a pod is, and whether this host has room for it: [`nacre_configuration::sizing`]
//! decides, here is read what it decides by.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use nacre_configuration::Config;
use nacre_configuration::sizing::{
    FittingMachine, Machine, NodeError, NodeMemory, PodShare, SizingError, Wishes,
};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, Spec};

use nacre_protocol::start_report::Failure;

use crate::annotations::{AnnotationError, Kind};
use crate::control_group::{CONTROL_GROUPS, pod_group};
use crate::error::{Code, Coded};
use crate::files::read_text;

const MEMINFO: &str = "/proc/meminfo";
/// Largest file that is read here, in bytes.
const MOST_BYTES: u64 = 64 * 1024;

/// Why a pod gets no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SizeError {
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Sizing(#[from] SizingError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("cannot tell how much memory this node has: {path}: {cause}")]
    Unknown { path: PathBuf, cause: io::Error },
}

impl Coded for SizeError {
    fn code(&self) -> Code {
        match self {
            SizeError::Annotation(_) | SizeError::Sizing(_) => Code::INVALID_ARGUMENT,
            SizeError::Node(_) => Code::RESOURCE_EXHAUSTED,
            SizeError::Unknown { .. } => Code::UNAVAILABLE,
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Size)
    }
}

/// The machine of a pod whose first container has that specification.
pub(crate) fn machine(
    spec: &Spec,
    annotations: &HashMap<String, String>,
    config: &Config,
) -> Result<FittingMachine, SizeError> {
    machine_among(Path::new(CONTROL_GROUPS), spec, annotations, config)
}

/// Control groups are at `groups`.
fn machine_among(
    groups: &Path,
    spec: &Spec,
    annotations: &HashMap<String, String>,
    config: &Config,
) -> Result<FittingMachine, SizeError> {
    let wishes = Wishes::read(annotations, config)?;
    let share = match Kind::of(annotations)? {
        // There is no kubelet, and no container beside this one.
        Kind::Single => own_limits(spec),
        Kind::Sandbox | Kind::Member { .. } => PodShare::from_cri(annotations)?,
    };
    let machine = Machine::of(&wishes, &share, config)?;
    let node = node_memory(groups, spec)?;
    tracing::info!("machine of {machine}");
    Ok(machine.on(node)?)
}

/// What the specification of a container says of its own control group.
fn own_limits(spec: &Spec) -> PodShare {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let positive = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    PodShare::of_group(
        positive(cpu.and_then(LinuxCpu::quota)),
        cpu.and_then(LinuxCpu::period).unwrap_or(0),
        cpu.and_then(LinuxCpu::shares).unwrap_or(0),
        positive(memory.and_then(LinuxMemory::limit)),
    )
}

fn node_memory(groups: &Path, spec: &Spec) -> Result<NodeMemory, SizeError> {
    let unknown = |cause| SizeError::Unknown { path: MEMINFO.into(), cause };
    let text = read_text(Path::new(MEMINFO), MOST_BYTES).map_err(unknown)?;
    let mebibytes = |key| {
        let missing = || unknown(io::Error::other(format!("it has no {key}")));
        kibibytes(&text, key).map(|kib| kib >> 10).ok_or_else(missing)
    };
    let group = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    Ok(NodeMemory {
        total_mib: mebibytes("MemTotal")?,
        available_mib: mebibytes("MemAvailable")?,
        pod_limit_mib: group
            .and_then(|group| pod_group(group).ok())
            .filter(|pod| pod != Path::new(""))
            .and_then(|pod| limit(groups, &pod)),
    })
}

fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The memory limit of a group, in MiB, in whichever version of control groups this host has.
fn limit(root: &Path, group: &Path) -> Option<u64> {
    let file = match root.join("cgroup.controllers").exists() {
        true => root.join(group).join("memory.max"),
        false => root.join("memory").join(group).join("memory.limit_in_bytes"),
    };
    let text = read_text(&file, MOST_BYTES).ok()?;
    // "max", or in the first version a number near the largest, is none.
    text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60).map(|bytes| bytes >> 20)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_node_s_memory_is_read_by_name() {
        let text =
            "MemTotal:       24729600 kB\nMemFree:        1 kB\nMemAvailable:    3145728 kB\n";
        assert_eq!(kibibytes(text, "MemTotal"), Some(24_729_600));
        assert_eq!(kibibytes(text, "MemAvailable"), Some(3 << 20));
        assert_eq!(kibibytes(text, "Mem"), None);
        assert_eq!(kibibytes("MemTotal: x kB", "MemTotal"), None);
        assert_eq!(kibibytes("MemTotal: 1", "MemTotal"), None);
        let here = node_memory(Path::new(CONTROL_GROUPS), &Spec::default()).unwrap();
        assert!(here.total_mib >= here.available_mib && here.available_mib > 0, "{here:?}");
    }

    #[test]
    fn limits_of_both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |group: &str| limit(root.path(), Path::new(group));
        write("memory/kubepods/pod1/memory.limit_in_bytes", "268435456\n");
        write("memory/kubepods/pod2/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/kubepods/pod3/memory.limit_in_bytes", "-1\n");
        assert_eq!(of("kubepods/pod1"), Some(256));
        for none in ["kubepods/pod2", "kubepods/pod3", "kubepods/absent"] {
            assert_eq!(of(none), None, "{none}");
        }
        write("cgroup.controllers", "cpu memory\n");
        write("kubepods/pod1/memory.max", "536870912\n");
        write("kubepods/pod2/memory.max", "max\n");
        assert_eq!(of("kubepods/pod1"), Some(512));
        assert_eq!(of("kubepods/pod2"), None);
    }

    #[test]
    fn a_machine_beyond_its_pod_s_limit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("memory/kubepods/pod1");
        fs::create_dir_all(&group).unwrap();
        let spec = r#"{"ociVersion": "1.0.2", "linux": {"cgroupsPath": "/kubepods/pod1/0123",
            "resources": {"memory": {"limit": 268435456}}}}"#;
        let spec: Spec = serde_json::from_str(spec).unwrap();
        for (limit_mib, missing) in [(256_u64, Some(352)), (607, Some(1)), (608, None)] {
            let bytes = (limit_mib << 20).to_string();
            fs::write(group.join("memory.limit_in_bytes"), bytes).unwrap();
            let config = Config::default();
            match (machine_among(root.path(), &spec, &HashMap::new(), &config), missing) {
                (Ok(machine), None) => assert_eq!(machine.memory_mib(), 544),
                (Err(error), Some(missing)) => {
                    let words = format!("raise the overhead by {missing} MiB");
                    assert!(error.to_string().contains(&words), "{error}");
                }
                (other, _) => panic!("{limit_mib}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_container_by_itself_is_sized_by_its_own_limits() {
        let spec = r#"{"ociVersion": "1.0.2", "linux": {"resources": {
            "memory": {"limit": 1073741824}, "cpu": {"quota": 150000, "period": 100000}}}}"#;
        let spec: Spec = serde_json::from_str(spec).unwrap();
        let machine = machine(&spec, &HashMap::new(), &Config::default()).unwrap();
        assert_eq!((machine.vcpus(), machine.memory_mib()), (2, 1328));
        let none = self::machine(&Spec::default(), &HashMap::new(), &Config::default()).unwrap();
        assert_eq!((none.vcpus(), none.memory_mib()), (1, 512));
    }
}
