//! Usage figures of a control group, in the form of the agent API.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use nacre_protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData,
    MemoryStats, PidsStats, ThrottlingData,
};

use super::Cgroup;

const NANOS_PER_MICRO: u64 = 1_000;

impl Cgroup {
    /// Reads the figures. Files of controllers that the kernel lacks count as zero.
    pub(crate) fn stats(&self) -> io::Result<CgroupStats> {
        let cpu = table(&fs::read_to_string(self.path().join("cpu.stat"))?);
        Ok(CgroupStats {
            cpu_stats: Some(cpu_stats(&cpu)).into(),
            memory_stats: Some(memory_stats(self.path())).into(),
            pids_stats: Some(PidsStats {
                current: number(self.path(), "pids.current"),
                limit: number(self.path(), "pids.max"),
                ..Default::default()
            })
            .into(),
            blkio_stats: Some(io_stats(&text(self.path(), "io.stat"))).into(),
            hugetlb_stats: huge_pages(self.path()),
            ..Default::default()
        })
    }
}

fn cpu_stats(table: &HashMap<String, u64>) -> CpuStats {
    let get = |name: &str| table.get(name).copied().unwrap_or(0);
    let nanos = |name: &str| get(name).saturating_mul(NANOS_PER_MICRO);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: nanos("usage_usec"),
            usage_in_kernelmode: nanos("system_usec"),
            usage_in_usermode: nanos("user_usec"),
            ..Default::default()
        })
        .into(),
        throttling_data: Some(ThrottlingData {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: nanos("throttled_usec"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory_stats(group: &Path) -> MemoryStats {
    let stats = table(&text(group, "memory.stat"));
    let events = table(&text(group, "memory.events"));
    MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        usage: Some(MemoryData {
            usage: number(group, "memory.current"),
            max_usage: number(group, "memory.peak"),
            failcnt: events.get("max").copied().unwrap_or(0),
            limit: number(group, "memory.max"),
            ..Default::default()
        })
        .into(),
        swap_usage: Some(MemoryData {
            usage: number(group, "memory.swap.current"),
            limit: number(group, "memory.swap.max"),
            ..Default::default()
        })
        .into(),
        use_hierarchy: true,
        stats,
        ..Default::default()
    }
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_stats(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for word in words {
            let Some((name, Ok(value))) = word.split_once('=').map(|(n, v)| (n, v.parse())) else {
                continue;
            };
            let entry = |op: &str| BlkioStatsEntry {
                major,
                minor,
                op: op.into(),
                value,
                ..Default::default()
            };
            match name {
                "rbytes" => stats.io_service_bytes_recursive.push(entry("Read")),
                "wbytes" => stats.io_service_bytes_recursive.push(entry("Write")),
                "rios" => stats.io_serviced_recursive.push(entry("Read")),
                "wios" => stats.io_serviced_recursive.push(entry("Write")),
                _ => {}
            }
        }
    }
    stats
}

fn huge_pages(group: &Path) -> HashMap<String, HugetlbStats> {
    let sizes = ["2MB", "1GB"]
        .into_iter()
        .filter(|size| group.join(format!("hugetlb.{size}.current")).exists());
    sizes
        .map(|size| {
            let usage = number(group, &format!("hugetlb.{size}.current"));
            (size.to_owned(), HugetlbStats { usage, ..Default::default() })
        })
        .collect()
}

/// Lines of a name and a number.
fn table(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// `max` is the highest number; an absent file is zero.
fn number(group: &Path, file: &str) -> u64 {
    match text(group, file).trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

fn text(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_in_nanoseconds() {
        let stats = cpu_stats(&table("usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_throttled 1\n"));
        assert_eq!(stats.cpu_usage.total_usage, 7000);
        assert_eq!(stats.throttling_data.throttled_periods, 1);
    }

    #[test]
    fn io_is_counted_by_device() {
        let stats = io_stats("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nodd\n254:1 x\n");
        assert_eq!(stats.io_service_bytes_recursive.len(), 2);
        assert_eq!(stats.io_serviced_recursive[1].value, 4);
        assert_eq!(stats.io_serviced_recursive[1].major, 8);
    }
}
