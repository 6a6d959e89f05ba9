//! The guest's numbers in the form that containerd reads: `io.containerd.cgroups.v2.Metrics`.

use containerd_shim_protos::cgroups_v2::metrics;
use nacre_protocol::agent::{BlkioStats, CgroupStats, NetworkStats, StatsContainerResponse};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField, MessageFull};

use crate::error::printable;

/// Most entries of a kind (devices, sizes of pages, interfaces) that are passed on; a pod has a few.
const MOST_ENTRIES: usize = 64;
/// Longest name of one, in bytes.
const MOST_NAME: usize = 64;

/// Converts an answer of the agent. containerd finds the type by its bare name.
pub(crate) fn convert(answer: &StatsContainerResponse) -> protobuf::Result<Any> {
    let cgroup = answer.cgroup_stats.get_or_default();
    let metrics = metrics::Metrics {
        pids: MessageField::some(metrics::PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(cgroup)),
        memory: MessageField::some(memory(cgroup)),
        io: MessageField::some(io(cgroup.blkio_stats.get_or_default())),
        hugetlb: hugetlb(cgroup),
        memory_events: MessageField::some(memory_events(cgroup)),
        network: answer.network_stats.iter().take(MOST_ENTRIES).map(network).collect(),
        ..Default::default()
    };
    Ok(Any {
        type_url: metrics::Metrics::descriptor().full_name().to_owned(),
        value: metrics.write_to_bytes()?,
        ..Default::default()
    })
}

/// The agent counts in nanoseconds, cgroup v2 in microseconds.
fn cpu(cgroup: &CgroupStats) -> metrics::CPUStat {
    let usage = cgroup.cpu_stats.cpu_usage.get_or_default();
    let throttling = cgroup.cpu_stats.throttling_data.get_or_default();
    metrics::CPUStat {
        usage_usec: usage.total_usage / 1000,
        user_usec: usage.usage_in_usermode / 1000,
        system_usec: usage.usage_in_kernelmode / 1000,
        nr_periods: throttling.periods,
        nr_throttled: throttling.throttled_periods,
        throttled_usec: throttling.throttled_time / 1000,
        ..Default::default()
    }
}

fn memory(cgroup: &CgroupStats) -> metrics::MemoryStat {
    let memory = cgroup.memory_stats.get_or_default();
    let stat = |key: &str| memory.stats.get(key).copied().unwrap_or(0);
    metrics::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max_usage,
        swap_usage: memory.swap_usage.usage,
        swap_limit: memory.swap_usage.limit,
        swap_max_usage: memory.swap_usage.max_usage,
        ..Default::default()
    }
}

fn memory_events(cgroup: &CgroupStats) -> metrics::MemoryEvents {
    metrics::MemoryEvents { max: cgroup.memory_stats.usage.failcnt, ..Default::default() }
}

fn hugetlb(cgroup: &CgroupStats) -> Vec<metrics::HugeTlbStat> {
    let mut sizes: Vec<_> = cgroup.hugetlb_stats.iter().take(MOST_ENTRIES).collect();
    sizes.sort_by_key(|(size, _)| *size);
    sizes
        .into_iter()
        .map(|(size, stats)| metrics::HugeTlbStat {
            current: stats.usage,
            max: stats.max_usage,
            pagesize: printable(size, MOST_NAME),
            failcnt: stats.failcnt,
            ..Default::default()
        })
        .collect()
}

/// Gathers the entries "Read" and "Write" of a device into one.
fn io(blkio: &BlkioStats) -> metrics::IOStat {
    let mut usage: Vec<metrics::IOEntry> = Vec::new();
    let bytes = blkio.io_service_bytes_recursive.iter().map(|entry| (entry, true));
    let operations = blkio.io_serviced_recursive.iter().map(|entry| (entry, false));
    for (entry, is_bytes) in bytes.take(MOST_ENTRIES).chain(operations.take(MOST_ENTRIES)) {
        let known =
            usage.iter().position(|found| (found.major, found.minor) == (entry.major, entry.minor));
        let position = known.unwrap_or_else(|| {
            usage.push(metrics::IOEntry {
                major: entry.major,
                minor: entry.minor,
                ..Default::default()
            });
            usage.len() - 1
        });
        let found = &mut usage[position];
        match (entry.op.to_ascii_lowercase().as_str(), is_bytes) {
            ("read", true) => add(&mut found.rbytes, entry.value),
            ("write", true) => add(&mut found.wbytes, entry.value),
            ("read", false) => add(&mut found.rios, entry.value),
            ("write", false) => add(&mut found.wios, entry.value),
            _ => {}
        }
    }
    metrics::IOStat { usage, ..Default::default() }
}

/// The guest may give any numbers.
fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value);
}

fn network(stats: &NetworkStats) -> metrics::NetworkStat {
    metrics::NetworkStat {
        name: printable(&stats.name, MOST_NAME),
        rx_bytes: stats.rx_bytes,
        rx_packets: stats.rx_packets,
        rx_errors: stats.rx_errors,
        rx_dropped: stats.rx_dropped,
        tx_bytes: stats.tx_bytes,
        tx_packets: stats.tx_packets,
        tx_errors: stats.tx_errors,
        tx_dropped: stats.tx_dropped,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use nacre_protocol::agent::{BlkioStatsEntry, CpuStats, CpuUsage};

    use super::*;

    #[test]
    fn numbers_keep_their_meaning() {
        let entry = |op: &str, value| BlkioStatsEntry {
            major: 8,
            op: op.to_owned(),
            value,
            ..Default::default()
        };
        let mut cgroup = CgroupStats {
            cpu_stats: MessageField::some(CpuStats {
                cpu_usage: MessageField::some(CpuUsage {
                    total_usage: 5_000,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            blkio_stats: MessageField::some(BlkioStats {
                io_service_bytes_recursive: vec![entry("Read", 10), entry("Write", 20)],
                io_serviced_recursive: vec![entry("read", 1)],
                ..Default::default()
            }),
            ..Default::default()
        };
        cgroup.memory_stats.mut_or_insert_default().stats.insert("anon".to_owned(), 7);
        let answer = StatsContainerResponse {
            cgroup_stats: MessageField::some(cgroup),
            ..Default::default()
        };
        let any = convert(&answer).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.anon), (5, 7));
        let disk = &metrics.io.usage[0];
        assert_eq!((metrics.io.usage.len(), disk.rbytes, disk.wbytes, disk.rios), (1, 10, 20, 1));
        assert!(convert(&StatsContainerResponse::new()).is_ok());
    }

    #[test]
    fn what_a_guest_exaggerates_is_cut() {
        let entry = |number: u64| BlkioStatsEntry {
            major: number % 100_000,
            op: "Read".to_owned(),
            value: u64::MAX,
            ..Default::default()
        };
        let mut cgroup = CgroupStats::new();
        let blkio = cgroup.blkio_stats.mut_or_insert_default();
        blkio.io_service_bytes_recursive =
            [entry(1), entry(1)].into_iter().chain((0..200_000).map(entry)).collect();
        for number in 0..10_000 {
            cgroup.hugetlb_stats.insert("9".repeat(number % 1000), Default::default());
        }
        let network = NetworkStats { name: "\u{1b}[2J".repeat(1000), ..Default::default() };
        let answer = StatsContainerResponse {
            cgroup_stats: MessageField::some(cgroup),
            network_stats: vec![network; 10_000],
            ..Default::default()
        };
        let any = convert(&answer).unwrap();
        assert!(any.value.len() < 32 * 1024, "{}", any.value.len());
        let metrics = metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.io.usage[0].rbytes, u64::MAX);
        assert!(!metrics.network[0].name.contains('\u{1b}'));
    }
}
