//! Kubernetes' side of the same arithmetic: a `RuntimeClass` whose `overhead.podFixed` the scheduler, quotas and
//! the pod's control group add to the limits of a pod's containers. It is one number for all pods, so it is
//! made for the largest memory limit that is to be covered.

use std::fmt;

use super::{CpuAsked, GRANULE_MIB, HOST_MIB, Machine, MemoryLimit, PodShare, SizingError, Wishes};
use crate::{Config, Tee};

/// Processor time that a pod takes outside its vCPUs, in thousandths of a CPU: the VMM's main loop, the shim.
/// At rest both take next to nothing; this is for the data of pulls, streams and network that pass through.
const CPU_THOUSANDTHS: u32 = 100;

/// The largest memory limit that the shipped file covers, in MiB.
pub const SHIPPED_LARGEST_LIMIT_MIB: u32 = 4096;

/// A `RuntimeClass` for pods whose machines are launched in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeClass {
    /// Its name and that of containerd's handler.
    pub name: &'static str,
    /// Label of the nodes that can run such pods: `nacre check --labels` writes it.
    pub label: &'static str,
    /// `overhead.podFixed.memory`, in MiB.
    pub memory_mib: u32,
    /// `overhead.podFixed.cpu`, in thousandths of a CPU.
    pub cpu_thousandths: u32,
    /// The largest memory limit that the overhead covers, in MiB.
    pub largest_limit_mib: u32,
    /// What is counted for images, in MiB.
    pub images_mib: u32,
}

impl RuntimeClass {
    /// One for each way of launching: plain, SEV-SNP, TDX.
    ///
    /// # Errors
    /// If pods with that limit have no machine under that configuration.
    pub fn all(config: &Config, largest_limit_mib: u32) -> Result<[RuntimeClass; 3], SizingError> {
        let of = |name, tee, label| RuntimeClass::of(name, tee, label, config, largest_limit_mib);
        Ok([
            of("nacre", Tee::None, "nacre.io/tee-none")?,
            of("nacre-snp", Tee::Snp, "nacre.io/tee-snp")?,
            of("nacre-tdx", Tee::Tdx, "nacre.io/tee-tdx")?,
        ])
    }

    fn of(
        name: &'static str,
        tee: Tee,
        label: &'static str,
        config: &Config,
        largest_limit_mib: u32,
    ) -> Result<RuntimeClass, SizingError> {
        let mut config = config.clone();
        config.vm.tee = tee;
        let beside = |limit_mib: u32| {
            let share = PodShare {
                cpu: CpuAsked::Limit { thousandths: u64::from(config.vm.max_vcpus) * 1000 },
                memory: MemoryLimit::Bytes(u64::from(limit_mib) << 20),
            };
            let machine = Machine::of(&Wishes::default(), &share, &config)?;
            Ok::<_, SizingError>(machine.memory_mib.saturating_sub(limit_mib))
        };
        // What is added to a limit grows with it, but for images that are larger than the limit. In between,
        // a limit may be rounded up further.
        let most = beside(1)?.max(beside(largest_limit_mib.max(1))?) + GRANULE_MIB - 1;
        let memory_mib = most + HOST_MIB;
        Ok(RuntimeClass {
            name,
            label,
            memory_mib,
            cpu_thousandths: CPU_THOUSANDTHS,
            largest_limit_mib,
            images_mib: if config.storage.scratch_disk_mib > 0 { 0 } else { config.pod.images_mib },
        })
    }
}

/// As YAML.
impl fmt::Display for RuntimeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuntimeClass { name, label, memory_mib, cpu_thousandths, .. } = self;
        writeln!(f, "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {name}")?;
        writeln!(f, "handler: {name}\noverhead:\n  podFixed:")?;
        writeln!(f, "    memory: {memory_mib}Mi\n    cpu: {cpu_thousandths}m")?;
        writeln!(f, "scheduling:\n  nodeSelector:\n    {label}: \"true\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizing::NodeMemory;

    #[test]
    fn the_overhead_covers_every_limit_up_to_the_largest() {
        let mut config = Config::default();
        for largest in [256, SHIPPED_LARGEST_LIMIT_MIB] {
            let classes = RuntimeClass::all(&config, largest).unwrap();
            for (class, tee) in classes.iter().zip([Tee::None, Tee::Snp, Tee::Tdx]) {
                config.vm.tee = tee;
                for limit in 1..=u64::from(largest) {
                    let share = PodShare {
                        cpu: CpuAsked::Limit { thousandths: 16_000 },
                        memory: MemoryLimit::Bytes(limit << 20),
                    };
                    let machine = Machine::of(&Wishes::default(), &share, &config).unwrap();
                    let reserved = limit + u64::from(class.memory_mib);
                    let node = NodeMemory {
                        total_mib: 1 << 20,
                        available_mib: 1 << 20,
                        pod_limit_mib: Some(reserved),
                    };
                    assert!(machine.on(node).is_ok(), "{limit} of {largest}: {machine:?}");
                }
                config.vm.tee = Tee::None;
            }
        }
    }

    #[test]
    fn confidential_pods_and_larger_ones_cost_more() {
        let config = Config::default();
        let overheads =
            |largest| RuntimeClass::all(&config, largest).unwrap().map(|c| c.memory_mib);
        let ([plain, snp, tdx], [large, ..]) = (overheads(1024), overheads(8192));
        assert!(plain < snp && snp == tdx && plain < large, "{plain} {snp} {tdx} {large}");
        let error = RuntimeClass::all(&config, 16384).unwrap_err().to_string();
        assert!(error.contains("vm.max_memory_mib"), "{error}");
    }
}
