//! Whether a machine fits on its node, now.
//!
//! Memory of a plain VM is taken page by page when the guest first touches it, and nodes are meant to be
//! overcommitted, limits of pods being above their requests: such a machine must fit on the node as a whole,
//! but of what is free now only what every guest touches. Memory of a confidential VM is pinned once touched,
//! cannot be reclaimed, and its bounce buffers and page states are touched at boot: all of it must be free.
//!
//! The pod's control group, where it has a limit, must have room for the machine and for what runs it on the
//! host, which is all in that group: the kernel would end it in the middle of its work. That limit is what the
//! scheduler reserved, the containers' limits and the overhead of the `RuntimeClass`.
//!
//! Nothing is reserved by this check; two pods that start together can both pass it.

use nacre_protocol::guest_memory::RESERVED_MIB;

use super::{Machine, kernel_mib};

/// What runs a machine on the host, beside the guest's memory, in MiB: memory of the VMM and the shim that no
/// other pod shares and nobody can reclaim, and page tables, which grow to 4 MiB for each GiB of the machine.
/// Measured: 30 to 37 without page tables. What they have mapped of files (the guest image, their own code)
/// is the node's page cache, once for all pods. Software emulation takes up to 1 GiB more, for translated
/// instructions.
pub const HOST_MIB: u32 = 64;

/// The node's memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeMemory {
    /// All of it.
    pub total_mib: u64,
    /// What can be had without pushing anything out (`MemAvailable`).
    pub available_mib: u64,
    /// The limit of the pod's control group.
    pub pod_limit_mib: Option<u64>,
}

/// Why a machine does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The node does not have so much.
    #[error(
        "the machine has {machine} MiB of memory and {HOST_MIB} MiB are for what runs it, but this node \
         has {total} MiB in all: lower the pod's limits or run it on a larger node"
    )]
    Total {
        /// The machine's memory, in MiB.
        machine: u32,
        /// The node's, in MiB.
        total: u64,
    },
    /// Too little is free.
    #[error(
        "the pod takes {needed} MiB of memory at once ({part}), but only {available} MiB are available on \
         this node: run fewer pods here, or reserve memory for them: requests, and the RuntimeClass' overhead"
    )]
    Available {
        /// What must be free, in MiB.
        needed: u64,
        /// Which part of the machine that is.
        part: &'static str,
        /// What is free, in MiB.
        available: u64,
    },
    /// The machine takes more than was reserved for its pod.
    #[error(
        "the machine has {machine} MiB of memory and {HOST_MIB} MiB are for what runs it, but the pod's \
         control group is limited to {limit} MiB, which is its containers' limits and the \
         overhead.podFixed of its RuntimeClass: raise the overhead by {missing} MiB (`nacre runtimeclass` \
         prints one that fits), or give the images a scratch disk (annotation \
         io.nacre.vm.scratch_disk_mib)"
    )]
    Unreserved {
        /// The machine's memory, in MiB.
        machine: u32,
        /// The limit of the pod's control group, in MiB.
        limit: u64,
        /// How much is missing, in MiB.
        missing: u64,
    },
}

/// A machine that fitted on its node a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FittingMachine {
    machine: Machine,
}

impl FittingMachine {
    /// Virtual processors.
    #[must_use]
    pub fn vcpus(self) -> u32 {
        self.machine.vcpus
    }

    /// Memory, in MiB.
    #[must_use]
    pub fn memory_mib(self) -> u32 {
        self.machine.memory_mib
    }

    /// Scratch disk, in MiB; 0 for none.
    #[must_use]
    pub fn scratch_disk_mib(self) -> u32 {
        self.machine.scratch_disk_mib
    }

    /// Places for volumes.
    #[must_use]
    pub fn volumes(self) -> u32 {
        self.machine.volumes
    }
}

impl Machine {
    /// Checks that the node has room for it.
    ///
    /// # Errors
    /// If it has not.
    pub fn on(self, node: NodeMemory) -> Result<FittingMachine, NodeError> {
        let machine = self.memory_mib;
        let whole = u64::from(machine) + u64::from(HOST_MIB);
        let (total, available) = (node.total_mib, node.available_mib);
        if whole > total {
            return Err(NodeError::Total { machine, total });
        }
        let (needed, part) = match self.plan.confidential {
            true => (whole, "all of a confidential machine"),
            false => (self.at_once_mib(), "what any guest touches, and its images"),
        };
        if needed > available {
            return Err(NodeError::Available { needed, part, available });
        }
        match node.pod_limit_mib {
            Some(limit) if whole > limit => {
                Err(NodeError::Unreserved { machine, limit, missing: whole - limit })
            }
            _ => Ok(FittingMachine { machine: self }),
        }
    }

    /// What a plain machine takes of the host as soon as its pod runs, in MiB.
    fn at_once_mib(&self) -> u64 {
        let kernel = kernel_mib(0, self.vcpus, false);
        let guest =
            (kernel + u64::from(RESERVED_MIB) + self.plan.images_mib).min(self.memory_mib.into());
        guest + u64::from(HOST_MIB)
    }
}
