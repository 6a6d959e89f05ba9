//! What a pod asks for: annotations of its owner, and limits as the kubelet sums them.

use std::collections::HashMap;

use super::{SizingError, is_confidential, least_memory_mib};
use crate::{Config, LEAST_SCRATCH_DISK_MIB, StorageSection};

/// Names of annotations.
pub mod annotation {
    /// What every annotation to the shim begins with. None of them reaches the guest.
    pub const PREFIX: &str = "io.nacre.";
    /// Number of virtual processors.
    pub const VCPUS: &str = "io.nacre.vm.vcpus";
    /// The machine's whole memory, in MiB.
    pub const MEMORY_MIB: &str = "io.nacre.vm.memory_mib";
    /// What the pod's images take when they are unpacked, in MiB.
    pub const IMAGES_MIB: &str = "io.nacre.vm.images_mib";
    /// Size of the scratch disk, in MiB; 0 for none.
    pub const SCRATCH_DISK_MIB: &str = "io.nacre.vm.scratch_disk_mib";
    /// Number of volumes that the pod can get while it runs.
    pub const VOLUMES: &str = "io.nacre.vm.volumes";

    // containerd's, of PodSandboxConfig.linux.resources: pkg/cri/annotations in 1.6 and 1.7,
    // internal/cri/annotations in 2.1. All four or none of them are there.
    pub(super) const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
    pub(super) const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
    pub(super) const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
    pub(super) const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
}

use annotation::{
    CPU_PERIOD, CPU_QUOTA, CPU_SHARES, IMAGES_MIB, MEMORY, MEMORY_MIB, PREFIX, SCRATCH_DISK_MIB,
    VCPUS, VOLUMES,
};

/// Largest CPU quota and period, in microseconds: a quota of 100,000 CPUs in the kernel's longest period.
const MOST_MICROSECONDS: u64 = 100_000_000_000;

/// Which annotation an error is about, and its value, cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Name of the annotation.
    pub key: &'static str,
    /// The beginning of its value.
    pub value: String,
}

/// Why an annotation cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// It is none of ours.
    #[error(
        "annotation {0} is unknown: {VCPUS}, {MEMORY_MIB}, {IMAGES_MIB}, {SCRATCH_DISK_MIB} and {VOLUMES} are \
         the ones a pod may set"
    )]
    Unknown(String),
    /// It is out of bounds.
    #[error(
        "annotation {} is {:?}: give a number from {least} to {most}; the upper bound is {bound} in the \
         configuration", .wish.key, .wish.value
    )]
    Value {
        /// Which.
        wish: Wish,
        /// Least value.
        least: u32,
        /// Most.
        most: u32,
        /// Key of the configuration that decides.
        bound: &'static str,
    },
    /// This node has no scratch disks.
    #[error(
        "annotation {SCRATCH_DISK_MIB} is {0:?}, but storage.max_scratch_disk_mib is 0 in the \
         configuration: pods get no scratch disk on this node"
    )]
    NoScratchDisks(String),
    /// containerd's annotation is not what containerd writes.
    #[error("annotation {} is {:?}: containerd writes {expected} there", .wish.key, .wish.value)]
    Malformed {
        /// Which.
        wish: Wish,
        /// What it should be.
        expected: &'static str,
    },
}

/// What the owner chose; each within the administrator's bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// The machine's memory, in MiB.
    pub memory_mib: Option<u32>,
    /// What the images take, in MiB.
    pub images_mib: Option<u32>,
    /// Scratch disk, in MiB; 0 for none.
    pub scratch_disk_mib: Option<u32>,
    /// Places for volumes.
    pub volumes: Option<u32>,
}

impl Wishes {
    /// Reads the annotations of a pod that begin with [`annotation::PREFIX`].
    ///
    /// # Errors
    /// If one is unknown or out of bounds.
    pub fn read<'a>(
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
        config: &Config,
    ) -> Result<Wishes, SizingError> {
        let mut ours: Vec<_> =
            annotations.into_iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
        ours.sort();
        let vm = &config.vm;
        let mut wishes = Wishes::default();
        for (key, value) in ours {
            match key.as_str() {
                VCPUS => {
                    wishes.vcpus = Some(number(VCPUS, value, 1, vm.max_vcpus, "vm.max_vcpus")?);
                }
                MEMORY_MIB => {
                    let most = vm.max_memory_mib;
                    let least = least_memory_mib(is_confidential(vm.tee));
                    let mib = number(MEMORY_MIB, value, least, most, "vm.max_memory_mib")?;
                    wishes.memory_mib = Some(mib);
                }
                IMAGES_MIB => {
                    let disk = config.storage.max_scratch_disk_mib;
                    let (most, bound) = match vm.max_memory_mib > disk {
                        true => (vm.max_memory_mib, "vm.max_memory_mib"),
                        false => (disk, "storage.max_scratch_disk_mib"),
                    };
                    wishes.images_mib = Some(number(IMAGES_MIB, value, 0, most, bound)?);
                }
                SCRATCH_DISK_MIB => {
                    wishes.scratch_disk_mib = Some(scratch_disk(value, &config.storage)?);
                }
                VOLUMES => {
                    let most = config.storage.max_volumes;
                    wishes.volumes = Some(number(VOLUMES, value, 0, most, "storage.max_volumes")?);
                }
                other => {
                    let shown = other.chars().take(128).collect();
                    return Err(WishError::Unknown(shown).into());
                }
            }
        }
        Ok(wishes)
    }
}

/// 0 for none.
fn scratch_disk(value: &str, storage: &StorageSection) -> Result<u32, WishError> {
    if value == "0" {
        return Ok(0);
    }
    let most = storage.max_scratch_disk_mib;
    if most == 0 {
        return Err(WishError::NoScratchDisks(cut(value)));
    }
    let bound = "storage.max_scratch_disk_mib";
    number(SCRATCH_DISK_MIB, value, LEAST_SCRATCH_DISK_MIB, most, bound)
}

fn number(
    key: &'static str,
    value: &str,
    least: u32,
    most: u32,
    bound: &'static str,
) -> Result<u32, WishError> {
    let digits_only = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u32>() {
        Ok(number) if digits_only && (least..=most).contains(&number) => Ok(number),
        _ => Err(WishError::Value { wish: Wish { key, value: cut(value) }, least, most, bound }),
    }
}

fn cut(value: &str) -> String {
    value.chars().take(32).collect()
}

/// The pod's part of its node, as the kubelet sums it: that of its containers, or that of its init
/// containers where one of those has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodShare {
    /// Processors.
    pub cpu: CpuAsked,
    /// Memory. Containers without a limit count nothing where others have one.
    pub memory: MemoryLimit,
}

/// Processors, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuAsked {
    /// The pod gets no more.
    Limit {
        /// Thousandths of a CPU.
        thousandths: u64,
    },
    /// It gets this much where others want the rest.
    Request {
        /// Thousandths of a CPU.
        thousandths: u64,
    },
    /// Nothing is known.
    Nothing,
}

/// A limit of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// In bytes; not 0.
    Bytes(u64),
    /// There is none.
    None,
}

/// A container's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerShare {
    /// When it runs.
    pub role: ContainerRole,
    /// Thousandths of a CPU; 0: none.
    pub cpu_limit: u64,
    /// Thousandths of a CPU; 0: none.
    pub cpu_request: u64,
    /// Bytes; 0: none.
    pub memory_limit: u64,
}

/// When a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerRole {
    /// Alone, but for the sidecars before it.
    Init,
    /// From its turn among the init containers on.
    Sidecar,
    /// With the others.
    App,
}

impl PodShare {
    /// Nothing is asked for.
    pub const NOTHING: PodShare = PodShare { cpu: CpuAsked::Nothing, memory: MemoryLimit::None };

    /// Reads what containerd says of the kubelet's `PodSandboxConfig.linux.resources`. A pod without these
    /// annotations, from elsewhere than a kubelet, asks for nothing.
    ///
    /// # Errors
    /// If there is something else than containerd writes.
    pub fn from_cri(annotations: &HashMap<String, String>) -> Result<PodShare, SizingError> {
        let read = |key: &'static str, most: u64, expected: &'static str| {
            let Some(value) = annotations.get(key) else { return Ok(0) };
            let number = value.parse::<i64>().ok().filter(|_| !value.starts_with('+'));
            match number {
                // No limit.
                Some(-1) => Ok(0),
                Some(number) if u64::try_from(number).is_ok_and(|number| number <= most) => {
                    Ok(number.unsigned_abs())
                }
                _ => Err(WishError::Malformed { wish: Wish { key, value: cut(value) }, expected }),
            }
        };
        let microseconds = "a number of microseconds";
        let quota = read(CPU_QUOTA, MOST_MICROSECONDS, microseconds)?;
        let period = read(CPU_PERIOD, MOST_MICROSECONDS, microseconds)?;
        // 1024 for each CPU; the kernel takes 262,144 at most.
        let shares = read(CPU_SHARES, 262_144, "a number up to 262144")?;
        let bytes = read(MEMORY, i64::MAX.unsigned_abs(), "a number of bytes")?;
        if quota > 0 && period == 0 {
            let wish = Wish { key: CPU_PERIOD, value: "0".to_owned() };
            let expected = "a number of microseconds beside a quota";
            return Err(WishError::Malformed { wish, expected }.into());
        }
        Ok(PodShare::of_group(quota, period, shares, bytes))
    }

    /// What settings of a control group come to: quota and period in microseconds, shares of 1024 for each
    /// CPU, bytes of memory; 0 is none.
    #[must_use]
    pub fn of_group(quota: u64, period: u64, shares: u64, memory: u64) -> PodShare {
        let cpu = match (quota, period, shares) {
            // 2 are the least that there are: nothing was asked for.
            (0, _, 0..=2) | (1.., 0, _) => CpuAsked::Nothing,
            (0, _, shares) => {
                CpuAsked::Request { thousandths: shares.saturating_mul(1000).div_ceil(1024) }
            }
            (quota, period, _) => {
                CpuAsked::Limit { thousandths: quota.saturating_mul(1000).div_ceil(period) }
            }
        };
        PodShare { cpu, memory: memory_limit(memory) }
    }

    /// The sum that the kubelet makes (k8s.io/component-helpers, resource: `PodRequests`, `PodLimits`).
    #[must_use]
    pub fn of_containers(containers: &[ContainerShare]) -> PodShare {
        let sum = |of: fn(&ContainerShare) -> u64| {
            let (mut together, mut sidecars, mut most_of_init) = (0_u64, 0_u64, 0_u64);
            for container in containers {
                let own = of(container);
                match container.role {
                    ContainerRole::App => together = together.saturating_add(own),
                    ContainerRole::Sidecar => {
                        sidecars = sidecars.saturating_add(own);
                        together = together.saturating_add(own);
                        most_of_init = most_of_init.max(sidecars);
                    }
                    ContainerRole::Init => {
                        most_of_init = most_of_init.max(sidecars.saturating_add(own));
                    }
                }
            }
            together.max(most_of_init)
        };
        let (limit, request) = (sum(|c| c.cpu_limit), sum(|c| c.cpu_request));
        let cpu = match (limit, request) {
            (0, 0) => CpuAsked::Nothing,
            (0, thousandths) => CpuAsked::Request { thousandths },
            (thousandths, _) => CpuAsked::Limit { thousandths },
        };
        PodShare { cpu, memory: memory_limit(sum(|c| c.memory_limit)) }
    }
}

fn memory_limit(bytes: u64) -> MemoryLimit {
    if bytes == 0 { MemoryLimit::None } else { MemoryLimit::Bytes(bytes) }
}
