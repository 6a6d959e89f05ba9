//! Limits of a container, at its creation and by an update.

use nacre_protocol::oci;
use oci_spec::runtime as spec;

use super::{SpecError, unsupported};

/// Reads the resources of an update request.
///
/// containerd repeats in it the rules about devices with which the container was created. They are in
/// force and cannot change, so they are left out.
pub(crate) fn resources_from_json(json: &[u8]) -> Result<oci::LinuxResources, SpecError> {
    let source: spec::LinuxResources = serde_json::from_slice(json).map_err(|cause| {
        SpecError::Parse { what: "the resources of the update request", cause: cause.to_string() }
    })?;
    let limits = resources(&source, &mut Vec::new())?;
    Ok(oci::LinuxResources { Devices: Vec::new(), ..limits })
}

/// Converts limits; `left_out` gets those that count the host's processors, nodes and disks.
pub(crate) fn resources(
    source: &spec::LinuxResources,
    left_out: &mut Vec<String>,
) -> Result<oci::LinuxResources, SpecError> {
    if source.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(unsupported("linux.resources.rdma", "the guest has no RDMA devices"));
    }
    let mut unified: Vec<_> = source.unified().iter().flatten().map(|(key, _)| key).collect();
    unified.sort();
    for key in unified {
        left_out.push(format!("linux.resources.unified.{key} (not in the agent API)"));
    }
    if source.network().is_some() {
        left_out.push("linux.resources.network (classes of the host's traffic)".to_owned());
    }
    Ok(oci::LinuxResources {
        Devices: source.devices().as_deref().unwrap_or_default().iter().map(device).collect(),
        Memory: source.memory().as_ref().map(memory).into(),
        CPU: source.cpu().as_ref().map(|found| cpu(found, left_out)).into(),
        Pids: source
            .pids()
            .as_ref()
            .map(|pids| oci::LinuxPids { Limit: pids.limit(), ..Default::default() })
            .into(),
        BlockIO: source.block_io().as_ref().map(|found| block_io(found, left_out)).into(),
        HugepageLimits: source
            .hugepage_limits()
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(hugepage_limit)
            .collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

/// Rules about kinds of devices; they count the same in any Linux.
fn device(source: &spec::LinuxDeviceCgroup) -> oci::LinuxDeviceCgroup {
    oci::LinuxDeviceCgroup {
        Allow: source.allow(),
        Type: source.typ().map(|typ| typ.as_str().to_owned()).unwrap_or_default(),
        // The specification writes "all of them" as absence, the agent API as -1.
        Major: source.major().unwrap_or(-1),
        Minor: source.minor().unwrap_or(-1),
        Access: source.access().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn memory(source: &spec::LinuxMemory) -> oci::LinuxMemory {
    oci::LinuxMemory {
        Limit: source.limit().unwrap_or(0),
        Reservation: source.reservation().unwrap_or(0),
        Swap: source.swap().unwrap_or(0),
        Kernel: source.kernel().unwrap_or(0),
        KernelTCP: source.kernel_tcp().unwrap_or(0),
        Swappiness: source.swappiness().unwrap_or(0),
        DisableOOMKiller: source.disable_oom_killer().unwrap_or(false),
        ..Default::default()
    }
}

fn cpu(source: &spec::LinuxCpu, left_out: &mut Vec<String>) -> oci::LinuxCPU {
    for (name, set) in [("cpus", source.cpus()), ("mems", source.mems())] {
        if set.as_ref().is_some_and(|set| !set.is_empty()) {
            left_out.push(format!("linux.resources.cpu.{name} (numbers of the host's hardware)"));
        }
    }
    oci::LinuxCPU {
        Shares: source.shares().unwrap_or(0),
        Quota: source.quota().unwrap_or(0),
        Period: source.period().unwrap_or(0),
        RealtimeRuntime: source.realtime_runtime().unwrap_or(0),
        RealtimePeriod: source.realtime_period().unwrap_or(0),
        ..Default::default()
    }
}

fn block_io(source: &spec::LinuxBlockIo, left_out: &mut Vec<String>) -> oci::LinuxBlockIO {
    let per_disk = source.weight_device().as_ref().is_some_and(|list| !list.is_empty())
        || [
            source.throttle_read_bps_device(),
            source.throttle_write_bps_device(),
            source.throttle_read_iops_device(),
            source.throttle_write_iops_device(),
        ]
        .iter()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
    if per_disk {
        left_out
            .push("linux.resources.blockIO, per device (numbers of the host's disks)".to_owned());
    }
    oci::LinuxBlockIO {
        Weight: source.weight().unwrap_or(0).into(),
        LeafWeight: source.leaf_weight().unwrap_or(0).into(),
        ..Default::default()
    }
}

fn hugepage_limit(source: &spec::LinuxHugepageLimit) -> Result<oci::LinuxHugepageLimit, SpecError> {
    let limit = u64::try_from(source.limit()).map_err(|_| SpecError::Value {
        field: "linux.resources.hugepageLimits.limit".to_owned(),
        problem: format!("is {}: it must not be negative", source.limit()),
    })?;
    Ok(oci::LinuxHugepageLimit {
        Pagesize: source.page_size().clone(),
        Limit: limit,
        ..Default::default()
    })
}
