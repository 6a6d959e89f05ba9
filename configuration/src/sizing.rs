//! How large a pod's machine is. The shim launches by it, and the owner's tool computes it beforehand.
//!
//! ```text
//! vCPUs  = io.nacre.vm.vcpus,
//!          else the pod's CPU limit, rounded up,
//!          else the greater of vm.vcpus and the pod's CPU request, rounded up
//! memory = io.nacre.vm.memory_mib,
//!          else the least multiple of 16 MiB that is at least
//!              memory limit + images        (or, if that is more, images + a quarter for their inodes)
//!            + 96 MiB                       the agent and its files
//!            + 48 MiB + 2 MiB for each vCPU + 2 % of the memory          the guest's kernel
//!            + bounce buffers               6 % of the memory, 64 to 1024 MiB, in confidential guests;
//!                                           in others 64 MiB above 2048 MiB of memory
//!          and 256 MiB at least in confidential guests
//! images = io.nacre.vm.images_mib, else pod.images_mib; 0 with a scratch disk
//! ```
//!
//! Without a memory limit the memory is `vm.memory_mib`, or the same sum with 64 MiB in place of the limit
//! where images demand more. Nothing is cut to fit: a pod above `vm.max_vcpus` or `vm.max_memory_mib` is
//! refused, with this sum.
//!
//! The numbers come from whoever runs the pod, and are distrusted: each is bounded and named in errors. The
//! host can give a guest less memory than this, or none; the guest then fails, and reveals nothing.

mod asked;
mod node;
mod runtime_class;
#[cfg(test)]
mod tests;

use std::fmt;

use nacre_hypervisor::LEAST_CONFIDENTIAL_MIB;
use nacre_protocol::guest_memory::{MemoryStore, RESERVED_MIB};

pub use asked::{
    ContainerRole, ContainerShare, CpuAsked, MemoryLimit, PodShare, Wish, WishError, Wishes,
    annotation,
};
pub use node::{FittingMachine, HOST_MIB, NodeError, NodeMemory};

pub use runtime_class::{RuntimeClass, SHIPPED_LARGEST_LIMIT_MIB};

use crate::{Config, StorageSection, Tee};

/// Memory is given in multiples of this, so that pods that differ little have machines that do not.
pub const GRANULE_MIB: u32 = 16;

/// The least memory of a machine whose memory is not encrypted, in MiB.
const LEAST_MEMORY_MIB: u32 = 128;
/// What the guest's kernel takes for its code and data, in MiB. Measured: 40.
const KERNEL_MIB: u64 = 48;
/// What it takes for each vCPU, in MiB. Measured: below 2.
const VCPU_MIB: u64 = 2;
/// One part in so many goes to descriptions of pages, hash tables, and pages that are kept free. Measured:
/// 1.75 %, and a few MiB that are kept free.
const KERNEL_SHARE: u64 = 50;
/// Bounce buffers: least and most, in MiB, and percent of the memory in confidential guests
/// (`arch/x86/mm/mem_encrypt.c` of the guest's kernel).
const BOUNCE_MIB: (u64, u64) = (64, 1024);
const BOUNCE_PERCENT: u64 = 6;
/// Above this, in MiB, a machine has memory that 32-bit devices cannot reach, and the kernel makes the least
/// bounce buffers in any guest.
const BELOW_4G_MIB: u64 = 2048;
/// What containers get at least of a pod without a memory limit, in MiB.
const LEAST_FOR_CONTAINERS_MIB: u64 = 64;

/// The size of a pod's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Scratch disk, in MiB; 0 for none.
    pub scratch_disk_mib: u32,
    /// Places for volumes.
    pub volumes: u32,
    /// What the memory is for.
    pub plan: MemoryPlan,
}

/// What a machine's memory is for, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The containers'.
    pub containers: Containers,
    /// The images'; 0 with a scratch disk.
    pub images_mib: u64,
    /// Whether the owner said how large the images are.
    pub images_declared: bool,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the guest's memory is encrypted.
    pub confidential: bool,
}

/// Where the containers' part comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// The pod's memory limit, in MiB.
    Limit(u64),
    /// The pod has none: what the configuration's memory leaves.
    NoLimit,
    /// The owner chose the machine's memory: what it leaves.
    Chosen,
}

/// Why there is no machine for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizingError {
    /// An annotation cannot be honoured.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// Too many processors.
    #[error(
        "the pod's CPU {what} of {thousandths}m needs {vcpus} vCPUs, and vm.max_vcpus is {most} in the \
         configuration: lower it, or raise vm.max_vcpus"
    )]
    Vcpus {
        /// `limit` or `request`.
        what: &'static str,
        /// Thousandths of a CPU.
        thousandths: u64,
        /// Rounded up.
        vcpus: u64,
        /// The bound.
        most: u32,
    },
    /// Too much memory.
    #[error(
        "the machine needs {needed} MiB of memory, and vm.max_memory_mib is {most} in the configuration: \
         {plan}; lower the limits, give a scratch disk (annotation io.nacre.vm.scratch_disk_mib) for the \
         images, or raise vm.max_memory_mib"
    )]
    Memory {
        /// The sum, in MiB.
        needed: u64,
        /// The bound, in MiB.
        most: u32,
        /// What it is for.
        plan: MemoryPlan,
    },
    /// The owner chose less memory than the images take.
    #[error(
        "annotation io.nacre.vm.images_mib is {images}, but images can take {store} MiB of a machine with \
         {memory} MiB of memory (annotation io.nacre.vm.memory_mib): give it {needed} MiB, or leave that \
         annotation out, or give a scratch disk (io.nacre.vm.scratch_disk_mib)"
    )]
    ImagesInMemory {
        /// What the images take, in MiB.
        images: u64,
        /// Where they must be, in MiB.
        store: u64,
        /// The machine's memory, in MiB.
        memory: u32,
        /// Least memory, in MiB.
        needed: u64,
    },
    /// The scratch disk is too small for the images.
    #[error(
        "annotation io.nacre.vm.images_mib is {images}, but images can take {store} MiB of a scratch disk of \
         {disk} MiB: give one of {needed} MiB (annotation io.nacre.vm.scratch_disk_mib; \
         storage.max_scratch_disk_mib is {most} in the configuration)"
    )]
    ImagesOnDisk {
        /// What the images take, in MiB.
        images: u64,
        /// What the disk holds, in MiB.
        store: u64,
        /// The disk's size, in MiB.
        disk: u32,
        /// Least size of the disk, in MiB.
        needed: u64,
        /// The bound, in MiB.
        most: u32,
    },
}

impl Machine {
    /// The machine for a pod that asks for that, on a node with that configuration.
    ///
    /// # Errors
    /// If there can be none.
    pub fn of(wishes: &Wishes, pod: &PodShare, config: &Config) -> Result<Machine, SizingError> {
        let vm = &config.vm;
        let vcpus = match wishes.vcpus {
            Some(chosen) => chosen,
            None => vcpus(pod.cpu, vm.vcpus, vm.max_vcpus)?,
        };
        let scratch_disk_mib = wishes.scratch_disk_mib.unwrap_or(config.storage.scratch_disk_mib);
        let volumes = wishes.volumes.unwrap_or(config.storage.volumes);
        let images_mib = u64::from(wishes.images_mib.unwrap_or(config.pod.images_mib));
        if scratch_disk_mib > 0 && wishes.images_mib.is_some() {
            images_fit_on_disk(images_mib, scratch_disk_mib, &config.storage)?;
        }
        let plan = MemoryPlan {
            containers: match (wishes.memory_mib, pod.memory) {
                (Some(_), _) => Containers::Chosen,
                (None, MemoryLimit::Bytes(bytes)) => Containers::Limit(bytes.div_ceil(1 << 20)),
                (None, MemoryLimit::None) => Containers::NoLimit,
            },
            images_mib: if scratch_disk_mib > 0 { 0 } else { images_mib },
            images_declared: wishes.images_mib.is_some(),
            vcpus,
            confidential: is_confidential(vm.tee),
        };
        let needed = plan.needed_mib();
        let memory = match wishes.memory_mib {
            Some(chosen) => {
                plan.images_fit_in(chosen)?;
                u64::from(chosen)
            }
            None if plan.containers == Containers::NoLimit => needed.max(vm.memory_mib.into()),
            None => needed,
        };
        let most = vm.max_memory_mib;
        match u32::try_from(memory) {
            Ok(memory_mib) if memory_mib <= most => {
                Ok(Machine { vcpus, memory_mib, scratch_disk_mib, volumes, plan })
            }
            _ => Err(SizingError::Memory { needed: memory, most, plan }),
        }
    }
}

impl Machine {
    /// What the guest's kernel has left of its memory at least, in MiB (`MemTotal`).
    #[must_use]
    pub fn left_by_kernel_mib(&self) -> u64 {
        left_by_kernel(self.memory_mib.into(), self.vcpus, self.plan.confidential)
    }
}

/// What decided the size, in numbers that add up to it.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { vcpus, memory_mib, plan, .. } = self;
        write!(f, "{vcpus} vCPUs and {memory_mib} MiB: ")?;
        match plan.containers {
            Containers::NoLimit if u64::from(*memory_mib) > plan.needed_mib() => {
                write!(f, "{memory_mib} (vm.memory_mib, no memory limit)")
            }
            Containers::Limit(_) | Containers::NoLimit | Containers::Chosen => write!(f, "{plan}"),
        }
    }
}

/// The least memory of a machine, in MiB.
pub(crate) fn least_memory_mib(confidential: bool) -> u32 {
    if confidential { LEAST_CONFIDENTIAL_MIB } else { LEAST_MEMORY_MIB }
}

/// Whether guests have their memory encrypted, and bounce buffers for what devices may see.
pub(crate) fn is_confidential(tee: Tee) -> bool {
    match tee {
        Tee::None | Tee::EmulatedSnp => false,
        Tee::Snp | Tee::Tdx => true,
    }
}

fn vcpus(asked: CpuAsked, default: u32, most: u32) -> Result<u32, SizingError> {
    let (what, thousandths) = match asked {
        CpuAsked::Limit { thousandths } => ("limit", thousandths),
        CpuAsked::Request { thousandths } => ("request", thousandths),
        CpuAsked::Nothing => return Ok(default),
    };
    let vcpus = thousandths.div_ceil(1000).max(1);
    match u32::try_from(vcpus) {
        Ok(vcpus) if vcpus <= most && what == "limit" => Ok(vcpus),
        Ok(vcpus) if vcpus <= most => Ok(vcpus.max(default)),
        _ => Err(SizingError::Vcpus { what, thousandths, vcpus, most }),
    }
}

/// What a guest's kernel has left of a machine's memory (`MemTotal`), at least, in MiB.
fn left_by_kernel(memory_mib: u64, vcpus: u32, confidential: bool) -> u64 {
    memory_mib.saturating_sub(kernel_mib(memory_mib, vcpus, confidential))
}

fn kernel_mib(memory_mib: u64, vcpus: u32, confidential: bool) -> u64 {
    KERNEL_MIB
        + VCPU_MIB * u64::from(vcpus)
        + memory_mib.div_ceil(KERNEL_SHARE)
        + bounce_mib(memory_mib, confidential)
}

fn bounce_mib(memory_mib: u64, confidential: bool) -> u64 {
    let (least, most) = BOUNCE_MIB;
    match confidential {
        true => (memory_mib.saturating_mul(BOUNCE_PERCENT) / 100).clamp(least, most),
        false if memory_mib > BELOW_4G_MIB => least,
        false => 0,
    }
}

impl MemoryPlan {
    /// The least memory of a machine, in MiB. More of anything never needs less.
    #[must_use]
    pub fn needed_mib(&self) -> u64 {
        self.memory_for(self.contents_mib().max(self.room_for_images()))
    }

    /// Containers and images.
    fn contents_mib(&self) -> u64 {
        let containers = match self.containers {
            Containers::Limit(limit) => limit,
            Containers::NoLimit | Containers::Chosen => LEAST_FOR_CONTAINERS_MIB,
        };
        containers.saturating_add(self.images_mib)
    }

    fn room_for_images(&self) -> u64 {
        MemoryStore::room_for(self.images_mib << 20).div_ceil(1 << 20)
    }

    /// The least multiple of [`GRANULE_MIB`] of which the kernel leaves that room beside the agent's, and
    /// that a machine can have at all.
    fn memory_for(&self, room_mib: u64) -> u64 {
        // Far above what any machine has, and far from where sums overflow.
        let room = room_mib.min(1 << 40) + u64::from(RESERVED_MIB);
        // What the kernel takes never falls with the memory: from below this climbs to the least solution.
        let mut memory = u64::from(least_memory_mib(self.confidential));
        loop {
            let needed = room + kernel_mib(memory, self.vcpus, self.confidential);
            let needed = needed.next_multiple_of(GRANULE_MIB.into());
            if needed <= memory {
                return memory;
            }
            memory = needed;
        }
    }

    /// What images can take in the memory of a machine that has this much, in MiB.
    fn store_in(&self, memory_mib: u32) -> u64 {
        let left = left_by_kernel(memory_mib.into(), self.vcpus, self.confidential);
        MemoryStore::of(left << 20).quota_bytes >> 20
    }

    /// What the owner says of images must fit where the owner wants them; what the configuration assumes
    /// need not.
    fn images_fit_in(&self, memory: u32) -> Result<(), SizingError> {
        let (images, store) = (self.images_mib, self.store_in(memory));
        match self.images_declared && images > store {
            false => Ok(()),
            true => {
                let needed = self.memory_for(self.room_for_images());
                Err(SizingError::ImagesInMemory { images, store, memory, needed })
            }
        }
    }
}

/// The sum, in numbers that add up to [`MemoryPlan::needed_mib`].
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.containers {
            Containers::Limit(limit) => write!(f, "{limit} (memory limit)")?,
            Containers::NoLimit => write!(f, "{LEAST_FOR_CONTAINERS_MIB} (no memory limit)")?,
            Containers::Chosen => {
                return f.write_str("chosen by annotation io.nacre.vm.memory_mib");
            }
        }
        let said = match self.images_declared {
            true => "annotation io.nacre.vm.images_mib",
            false => "pod.images_mib",
        };
        let fixed = KERNEL_MIB + VCPU_MIB * u64::from(self.vcpus);
        write!(f, " + {} (images, {said})", self.images_mib)?;
        let inodes = self.room_for_images().saturating_sub(self.contents_mib());
        match inodes {
            0 => {}
            inodes => write!(f, " + {inodes} (their inodes)")?,
        }
        write!(f, " + {RESERVED_MIB} (agent) + {fixed} (kernel, {} vCPUs)", self.vcpus)?;
        let memory = self.needed_mib();
        write!(f, " + {} (2 %)", memory.div_ceil(KERNEL_SHARE))?;
        match bounce_mib(memory, self.confidential) {
            0 => {}
            bounce => write!(f, " + {bounce} (bounce buffers)")?,
        }
        let kernel = kernel_mib(memory, self.vcpus, self.confidential);
        let room = self.contents_mib().saturating_add(inodes);
        match memory.saturating_sub(room.saturating_add(u64::from(RESERVED_MIB) + kernel)) {
            0 => Ok(()),
            rounding if rounding < u64::from(GRANULE_MIB) => {
                write!(f, " + {rounding} (to a multiple of {GRANULE_MIB})")
            }
            rest => {
                let least = least_memory_mib(self.confidential);
                write!(f, " + {rest} (to {least}, the least of such a machine)")
            }
        }
    }
}

/// What a scratch disk holds at least: the guest keeps a tag beside each sector, and tables of files.
fn disk_store_mib(disk_mib: u64) -> u64 {
    (disk_mib * 7 / 8).saturating_sub(16)
}

fn images_fit_on_disk(images: u64, disk: u32, storage: &StorageSection) -> Result<(), SizingError> {
    let store = disk_store_mib(disk.into());
    if images <= store {
        return Ok(());
    }
    let needed = ((images + 16) * 8).div_ceil(7);
    let most = storage.max_scratch_disk_mib;
    Err(SizingError::ImagesOnDisk { images, store, disk, needed, most })
}
