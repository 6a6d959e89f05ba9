//! Kernel, cgroups, devices, memory, storage and clock.

use std::path::Path;

use super::finding::{Finding, Status, Tee};
use super::host::{Device, DeviceCall, Entry, Host, Missing, Part, line, text};

/// What the host has, beside what virtualization needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) kernel: Result<String, Missing>,
    /// Whether the unified hierarchy is mounted.
    cgroup2: bool,
    vhost_vsock: Result<(), Missing>,
    vhost_net: Result<(), Missing>,
    tun: Result<(), Missing>,
    memory: Result<Memory, Missing>,
    /// The file system of the directory for scratch disks, or of what it will be made in.
    storage: Option<Entry>,
    clock: Result<bool, Missing>,
}

/// From `/proc/meminfo`, in KiB but for the numbers of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    available: u64,
    total: u64,
    huge_pages: u64,
    huge_pages_free: u64,
    huge_page_kib: u64,
}

impl System {
    pub(crate) fn gather(host: &dyn Host, storage: &Path) -> System {
        let open = |device| match host.device(DeviceCall::Open(device)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Missing::of(&error)),
        };
        System {
            kernel: line(host, "/proc/sys/kernel/osrelease"),
            cgroup2: host.look(Path::new("/sys/fs/cgroup/cgroup.controllers")).is_ok(),
            vhost_vsock: open(Device::VhostVsock),
            vhost_net: open(Device::VhostNet),
            tun: open(Device::Tun),
            memory: memory(host),
            storage: storage.ancestors().find_map(|path| host.look(path).ok()),
            clock: host.clock_synchronised().map_err(|error| Missing::of(&error)),
        }
    }
}

fn memory(host: &dyn Host) -> Result<Memory, Missing> {
    const MOST_BYTES: usize = 64 * 1024;
    let text = text(host, "/proc/meminfo", Part::Whole(MOST_BYTES))?;
    let number = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    let needed = |name: &str| {
        number(name).ok_or_else(|| Missing::Broken(format!("it has no number {name}")))
    };
    Ok(Memory {
        available: needed("MemAvailable")?,
        total: needed("MemTotal")?,
        huge_pages: number("HugePages_Total").unwrap_or_default(),
        huge_pages_free: number("HugePages_Free").unwrap_or_default(),
        huge_page_kib: number("Hugepagesize").unwrap_or_default(),
    })
}

/// Major and minor number of a kernel's release.
fn release(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

pub(crate) fn kernel_findings(system: &System, tee: Tee) -> [Finding; 2] {
    const KERNEL: &str = "kernel.version";
    const CGROUPS: &str = "cgroup.version";
    let first = match tee {
        Tee::Snp => Some((6, 11)),
        Tee::Tdx => Some((6, 16)),
        Tee::None | Tee::EmulatedSnp => None,
    };
    let kernel = match (&system.kernel, first) {
        (Err(missing), _) => Finding::warn(
            KERNEL,
            format!("the kernel's release {missing}"),
            "mount procfs at /proc",
        ),
        (Ok(kernel), Some(first)) if release(kernel).is_some_and(|found| found < first) => {
            let (major, minor) = first;
            let advice = format!(
                "Linux {major}.{minor} is the first that hosts {tee} guests; a distribution may have brought \
                 it to an older one: kvm.vm-types decides"
            );
            Finding::warn(KERNEL, kernel, advice)
        }
        (Ok(kernel), _) => Finding::pass(KERNEL, kernel),
    };
    let cgroups = if system.cgroup2 {
        Finding::pass(CGROUPS, "cgroup v2")
    } else {
        Finding::warn(
            CGROUPS,
            "cgroup v1",
            "pods run; boot with systemd.unified_cgroup_hierarchy=1: Kubernetes leaves cgroup v1 behind",
        )
    };
    [kernel, cgroups]
}

pub(crate) fn device_findings(system: &System) -> [Finding; 3] {
    let vsock = match &system.vhost_vsock {
        Ok(()) => Finding::pass("device.vhost-vsock", "/dev/vhost-vsock opens"),
        Err(Missing::Denied) => Finding::unseen("device.vhost-vsock", "/dev/vhost-vsock"),
        Err(missing) => Finding::warn(
            "device.vhost-vsock",
            format!("/dev/vhost-vsock {missing}"),
            "load the module vhost_vsock: without it the agent is reached through virtio-serial, which \
             is slower and serves one connection at a time",
        ),
    };
    let net = match &system.vhost_net {
        Ok(()) => "/dev/vhost-net opens; pods do not use it".to_owned(),
        Err(missing) => format!("/dev/vhost-net {missing}; pods do not use it"),
    };
    let tun = match &system.tun {
        Ok(()) => Finding::pass("device.tun", "/dev/net/tun opens"),
        Err(Missing::Denied) => Finding::unseen("device.tun", "/dev/net/tun"),
        Err(missing) => Finding::fail(
            "device.tun",
            format!("/dev/net/tun {missing}"),
            "load the module tun: each pod's network is a tap; in a container, hand /dev/net/tun in",
        ),
    };
    [vsock, Finding::skip("device.vhost-net", net), tun]
}

/// What pods take of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Memory of a pod that asks for none, in MiB.
    pub memory_mib: u32,
    /// What it takes on the host beside that, in MiB.
    pub host_mib: u32,
    /// Its scratch disk, in MiB; 0 for none.
    pub scratch_disk_mib: u32,
}

pub(crate) fn resource_findings(system: &System, needs: Needs, storage: &Path) -> [Finding; 4] {
    [
        free_memory(system, needs),
        huge_pages(system),
        free_storage(system, needs, storage),
        clock(system),
    ]
}

fn free_memory(system: &System, needs: Needs) -> Finding {
    const ID: &str = "memory";
    let memory = match &system.memory {
        Ok(memory) => memory,
        Err(missing) => {
            let found = format!("/proc/meminfo {missing}");
            return Finding::fail(ID, found, "mount procfs at /proc");
        }
    };
    let (available, total) = (memory.available / 1024, memory.total / 1024);
    let pod = u64::from(needs.memory_mib).saturating_add(needs.host_mib.into()).max(1);
    let pods = available / pod;
    let found = format!(
        "{available} of {total} MiB available: {pods} pods of {pod} MiB ({} by vm.memory_mib, {} on the host)",
        needs.memory_mib, needs.host_mib
    );
    // What is available comes and goes with other pods; a node is not less able for it.
    match pods {
        _ if total < pod => Finding::fail(ID, found, "add memory, or lower vm.memory_mib"),
        0 => Finding::warn(
            ID,
            found,
            "no further pod may start: free memory, or lower vm.memory_mib",
        ),
        1 => Finding::warn(
            ID,
            found,
            "a second pod may not start: free memory, or lower vm.memory_mib",
        ),
        _ => Finding::pass(ID, found),
    }
}

fn huge_pages(system: &System) -> Finding {
    const ID: &str = "huge-pages";
    let Ok(memory) = &system.memory else { return Finding::skip(ID, "unknown") };
    let Memory { huge_pages, huge_pages_free, huge_page_kib, .. } = memory;
    if *huge_pages == 0 {
        return Finding::skip(ID, "none are set aside; pods do not use them");
    }
    let found = format!(
        "{huge_pages_free} of {huge_pages} pages of {huge_page_kib} KiB are free; pods do not use them"
    );
    let aside = huge_pages.saturating_mul(*huge_page_kib);
    if aside > memory.total / 2 {
        let advice =
            "give most of them back (vm.nr_hugepages): the memory of pods is ordinary memory";
        return Finding::warn(ID, found, advice);
    }
    Finding::skip(ID, found)
}

fn free_storage(system: &System, needs: Needs, storage: &Path) -> Finding {
    const ID: &str = "storage";
    let shown = storage.display();
    let Some(entry) = system.storage else {
        return Finding::fail(ID, format!("{shown} cannot be made"), "correct storage.directory");
    };
    let free = entry.free / (1024 * 1024);
    let found = format!("{free} MiB free for {shown}");
    let needed = u64::from(needs.scratch_disk_mib);
    match needed {
        0 => Finding::skip(ID, format!("{found}; pods have no scratch disk by default")),
        _ if free < needed => Finding::fail(
            ID,
            format!("{found}, less than one scratch disk of {needed} MiB"),
            "free space, lower storage.scratch_disk_mib, or choose another storage.directory",
        ),
        _ if free / 2 < needed => {
            Finding::warn(ID, found, "a second pod may fill it: guests then read and write errors")
        }
        _ => Finding::pass(ID, found),
    }
}

fn clock(system: &System) -> Finding {
    const ID: &str = "clock";
    match &system.clock {
        Ok(true) => Finding::pass(ID, "synchronised"),
        Ok(false) => Finding::warn(
            ID,
            "the kernel does not count it as synchronised",
            "run an NTP service (chrony, systemd-timesyncd): a wrong clock makes certificates look expired",
        ),
        Err(missing) => {
            Finding::new(ID, Status::Warn, format!("adjtimex {missing}"), "see timedatectl")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_two_numbers() {
        assert_eq!(release("6.18.44-fc-v445"), Some((6, 18)));
        assert_eq!(release("6.11-rc3"), Some((6, 11)));
        for text in ["", "six.1", "6", "-6.1", "6."] {
            assert_eq!(release(text), None, "{text}");
        }
    }
}
