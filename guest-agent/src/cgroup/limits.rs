//! From the resources in a request to values of control files.

use nacre_protocol::oci as proto;

use crate::error::RpcError;
use crate::oci::refuse_if;

/// The least that Linux takes for a CPU quota, and its bounds for a period, in microseconds.
const LEAST_QUOTA: i64 = 1_000;
const PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
const DEFAULT_PERIOD: u64 = 100_000;
/// Bounds of `cpu.shares` in version 1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Checked values of control files. Zero in the request means "not given".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    settings: Vec<(String, String)>,
}

impl Limits {
    /// Checks `resources`. `field` is their path in the request. Device rules are not among them.
    pub(crate) fn parse(field: &str, resources: &proto::LinuxResources) -> Result<Self, RpcError> {
        let mut limits = Self::default();
        if let Some(memory) = resources.Memory.as_ref() {
            limits.memory(&format!("{field}.Memory"), memory)?;
        }
        if let Some(cpu) = resources.CPU.as_ref() {
            limits.cpu(&format!("{field}.CPU"), cpu)?;
        }
        if let Some(pids) = resources.Pids.as_ref().filter(|pids| pids.Limit != 0) {
            limits.set("pids.max", most(pids.Limit));
        }
        if let Some(io) = resources.BlockIO.as_ref() {
            let field = format!("{field}.BlockIO");
            let only_weight = proto::LinuxBlockIO { Weight: io.Weight, ..Default::default() };
            let why = "limits for single devices are not supported: the guest has other devices";
            refuse_if(*io != only_weight, &field, why)?;
            if io.Weight != 0 {
                let why = "must be between 10 and 1000";
                refuse_if(!(10..=1000).contains(&io.Weight), &format!("{field}.Weight"), why)?;
                // The scale of version 2 is ten times as long.
                let weight = 1 + (u64::from(io.Weight) - 10) * 9999 / 990;
                limits.set("io.weight", weight.to_string());
            }
        }
        for (index, page) in resources.HugepageLimits.iter().enumerate() {
            limits.huge_pages(&format!("{field}.HugepageLimits[{index}]"), page)?;
        }
        if let Some(network) = resources.Network.as_ref() {
            let given = network.ClassID != 0 || !network.Priorities.is_empty();
            let why = "network classes and priorities are the host's, not the guest's";
            refuse_if(given, &format!("{field}.Network"), why)?;
        }
        Ok(limits)
    }

    /// File and value, in the order in which they are to be written.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(file, value)| (file.as_str(), value.as_str()))
    }

    fn memory(&mut self, field: &str, memory: &proto::LinuxMemory) -> Result<(), RpcError> {
        let kernel = memory.Kernel > 0 || memory.KernelTCP > 0;
        let why = "cgroup v2 counts kernel memory in Limit: leave it out";
        refuse_if(kernel, &format!("{field}.Kernel"), why)?;
        let why = "cgroup v2 has no swappiness of a group: leave it out";
        refuse_if(memory.Swappiness != 0, &format!("{field}.Swappiness"), why)?;
        let why = "cgroup v2 cannot switch it off: leave it out";
        refuse_if(memory.DisableOOMKiller, &format!("{field}.DisableOOMKiller"), why)?;
        if memory.Swap > 0 {
            // In the request swap is memory and swap together, in version 2 swap alone.
            let swap = memory.Swap.checked_sub(memory.Limit.max(0)).filter(|swap| *swap >= 0);
            let swap = swap.filter(|_| memory.Limit > 0).ok_or_else(|| {
                RpcError::invalid(format!("{field}.Swap"), "must not be below Limit")
            })?;
            self.set("memory.swap.max", swap.to_string());
        } else if memory.Swap < 0 {
            self.set("memory.swap.max", most(memory.Swap));
        }
        if memory.Limit != 0 {
            self.set("memory.max", most(memory.Limit));
        }
        if memory.Reservation != 0 {
            self.set("memory.low", most(memory.Reservation));
        }
        Ok(())
    }

    fn cpu(&mut self, field: &str, cpu: &proto::LinuxCPU) -> Result<(), RpcError> {
        let realtime = cpu.RealtimeRuntime != 0 || cpu.RealtimePeriod != 0;
        let why = "cgroup v2 has no real-time limits: leave them out";
        refuse_if(realtime, &format!("{field}.RealtimeRuntime"), why)?;
        if cpu.Shares != 0 {
            let shares = cpu.Shares.clamp(*SHARES.start(), *SHARES.end());
            let weight = 1 + (shares - SHARES.start()) * 9999 / (SHARES.end() - SHARES.start());
            self.set("cpu.weight", weight.to_string());
        }
        let period = if cpu.Period == 0 { DEFAULT_PERIOD } else { cpu.Period };
        let why = "must be between 1000 and 1000000 microseconds";
        refuse_if(!PERIODS.contains(&period), &format!("{field}.Period"), why)?;
        if cpu.Quota > 0 {
            let why = "must be at least 1000 microseconds";
            refuse_if(cpu.Quota < LEAST_QUOTA, &format!("{field}.Quota"), why)?;
            self.set("cpu.max", format!("{} {period}", cpu.Quota));
        } else if cpu.Quota < 0 || cpu.Period != 0 {
            self.set("cpu.max", format!("max {period}"));
        }
        for (file, name, list) in
            [("cpuset.cpus", "Cpus", &cpu.Cpus), ("cpuset.mems", "Mems", &cpu.Mems)]
        {
            if !list.is_empty() {
                let plain = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-');
                let bad = list.len() > 1024 || !list.chars().all(plain);
                refuse_if(bad, &format!("{field}.{name}"), "must be a list such as 0-3,5")?;
                self.set(file, list.clone());
            }
        }
        Ok(())
    }

    fn huge_pages(
        &mut self,
        field: &str,
        page: &proto::LinuxHugepageLimit,
    ) -> Result<(), RpcError> {
        let known = matches!(page.Pagesize.as_str(), "2MB" | "1GB");
        refuse_if(!known, &format!("{field}.Pagesize"), "must be 2MB or 1GB")?;
        let file = format!("hugetlb.{}.max", page.Pagesize);
        // Kubernetes sends a zero for each page size of the node; the guest may not have that size.
        if page.Limit > 0 || std::path::Path::new("/sys/fs/cgroup/nacre").join(&file).exists() {
            self.set(&file, page.Limit.to_string());
        }
        Ok(())
    }

    fn set(&mut self, file: &str, value: String) {
        self.settings.push((file.to_owned(), value));
    }
}

fn most(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl Fn(&mut proto::LinuxResources)) -> Result<Limits, RpcError> {
        let mut resources = proto::LinuxResources::new();
        change(&mut resources);
        Limits::parse("Resources", &resources)
    }

    fn value(limits: &Limits, file: &str) -> String {
        let mut settings = limits.settings();
        settings.find_map(|(name, value)| (name == file).then(|| value.to_owned())).unwrap()
    }

    #[test]
    fn values_are_those_that_runc_writes() {
        let limits = parse(|r| {
            let memory = r.Memory.mut_or_insert_default();
            (memory.Limit, memory.Swap) = (1000, 1500);
            let cpu = r.CPU.mut_or_insert_default();
            (cpu.Shares, cpu.Quota, cpu.Cpus) = (1024, 50_000, "0-1".into());
            r.Pids.mut_or_insert_default().Limit = -1;
        })
        .unwrap();
        assert_eq!(value(&limits, "memory.max"), "1000");
        assert_eq!(value(&limits, "memory.swap.max"), "500");
        assert_eq!(value(&limits, "cpu.weight"), "39");
        assert_eq!(value(&limits, "cpu.max"), "50000 100000");
        assert_eq!(value(&limits, "cpuset.cpus"), "0-1");
        assert_eq!(value(&limits, "pids.max"), "max");
    }

    #[test]
    fn what_is_not_given_is_left_alone() {
        let limits = parse(|r| {
            r.Memory.mut_or_insert_default();
            r.CPU.mut_or_insert_default();
            r.Pids.mut_or_insert_default();
            r.BlockIO.mut_or_insert_default();
            r.Network.mut_or_insert_default();
        });
        assert_eq!(limits.unwrap(), Limits::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (result, text) in [
            (parse(|r| r.Memory.mut_or_insert_default().Swappiness = 60), "Swappiness"),
            (parse(|r| r.Memory.mut_or_insert_default().Swap = 60), "Resources.Memory.Swap"),
            (parse(|r| r.CPU.mut_or_insert_default().Period = 1), "Resources.CPU.Period"),
            (parse(|r| r.CPU.mut_or_insert_default().Cpus = "0\n".into()), "Resources.CPU.Cpus"),
            (parse(|r| r.Network.mut_or_insert_default().ClassID = 1), "Resources.Network"),
            (
                parse(|r| {
                    r.HugepageLimits.push(proto::LinuxHugepageLimit {
                        Pagesize: "../x".into(),
                        ..Default::default()
                    });
                }),
                "HugepageLimits[0].Pagesize",
            ),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
