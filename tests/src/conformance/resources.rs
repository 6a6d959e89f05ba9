//! Limits, and the figures that the kubelet counts by.

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;

use super::Stage;
use super::kubelet::{Kubelet, Sandbox, eventually};
use crate::control_groups;
use crate::registry;
use crate::world::World;

const MIB: u64 = 1 << 20;
/// What the memory-hungry container holds.
const HELD_MIB: u64 = 24;

/// The pod's group, below the mount points of the controllers.
pub(super) const GROUP: &str = "/conformance";

/// Makes the pod's group, as the kubelet does. It goes with the world.
pub(super) fn make_group(world: &World) -> anyhow::Result<()> {
    const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "freezer", "devices"];
    let root = world.path(control_groups::ROOT);
    let hierarchies = if root.join("cgroup.controllers").exists() {
        vec![root]
    } else {
        CONTROLLERS.iter().map(|name| root.join(name)).filter(|mount| mount.is_dir()).collect()
    };
    for hierarchy in hierarchies {
        let group = hierarchy.join(GROUP.trim_start_matches('/'));
        std::fs::create_dir(&group)
            .with_context(|| format!("failed to make the control group {}", group.display()))?;
    }
    Ok(())
}

fn limits(cpu_quota: i64, memory_mib: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota,
        cpu_shares: 512,
        memory_limit_in_bytes: memory_mib << 20,
        ..Default::default()
    }
}

fn value(number: Option<cri::UInt64Value>) -> u64 {
    number.map(|number| number.value).unwrap_or_default()
}

pub(super) async fn containers(stage: &Stage<'_>, pod: &Sandbox) {
    limited(stage, pod).await;
    // It holds some memory and uses some processor time, and does nothing from then on.
    let script = format!(
        "head -c {} /dev/zero | tr '\\0' x >/tmp/held; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); \
         done; echo ready; sleep 1000",
        HELD_MIB << 20
    );
    let config = stage.script("figures", &script);
    let log = format!("{}/{}", pod.config.log_directory, config.log_path);
    let started = async {
        let id = stage.kubelet.launch(pod, config).await?;
        stage.kubelet.logs(&log, "ready").await?;
        anyhow::Ok(id)
    };
    match started.await {
        Ok(id) => {
            figures(stage, pod, &id).await;
            compared(stage, &id).await;
        }
        // The behaviours that need it will be called not reached.
        Err(error) => eprintln!("the container of the figures does not start: {error:#}"),
    }
}

async fn limited(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("memory-limit-oom-killed", async {
            let mut config = stage.script("oom", "exec tail /dev/zero");
            config.linux.get_or_insert_default().resources = Some(limits(0, 24));
            let id = kubelet.launch(pod, config).await?;
            let ended = kubelet.ended(&id).await?;
            ensure!((ended.exit_code, ended.reason.as_str()) == (137, "OOMKilled"), "{ended:?}");
            Ok(())
        })
        .await;
    report
        .check("update-resources", async {
            let mut config = stage.script("updated", "sleep 1000");
            config.linux.get_or_insert_default().resources = Some(limits(50_000, 64));
            let id = kubelet.launch(pod, config).await?;
            let show = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
            let before = kubelet.sh(&id, show).await?;
            ensure!(before == format!("{}\n50000 100000", 64 * MIB), "{before:?}");
            kubelet.update(&id, limits(25_000, 128)).await?;
            let after = kubelet.sh(&id, show).await?;
            ensure!(after == format!("{}\n25000 100000", 128 * MIB), "{after:?}");
            kubelet.remove(&id).await
        })
        .await;
}

async fn figures(stage: &Stage<'_>, pod: &Sandbox, id: &str) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("stats-cpu-memory", async {
            let stats = kubelet.stats(id).await?;
            let cpu = stats.cpu.context("no cpu")?;
            ensure!(value(cpu.usage_core_nano_seconds) > 1_000_000 && cpu.timestamp > 0);
            let memory = stats.memory.context("no memory")?;
            let (used, set) = (value(memory.usage_bytes), value(memory.working_set_bytes));
            ensure!(0 < set && set < 256 * MIB, "{memory:?}");
            ensure!(used == 0 || set <= used, "{memory:?}");
            let attributes = stats.attributes.context("no attributes")?;
            ensure!(attributes.id == id && attributes.labels["container"] == "figures");
            Ok(())
        })
        .await;
    report
        .check("stats-list", async {
            let all = kubelet.list_stats(pod).await?;
            let found = all.iter().filter_map(|stats| stats.attributes.as_ref());
            ensure!(found.filter(|attributes| attributes.id == id).count() == 1, "{all:?}");
            Ok(())
        })
        .await;
    report
        .check("stats-filesystem", async {
            let written = || async {
                let layer = kubelet.stats(id).await?.writable_layer;
                let used = layer.and_then(|layer| layer.used_bytes).map_or(0, |used| used.value);
                Ok((used >= HELD_MIB * MIB).then_some(()))
            };
            // containerd asks its snapshotters every ten seconds.
            eventually("the writable layer is counted", written).await
        })
        .await;
    report
        .check("stats-sandbox", async {
            let stats = kubelet.sandbox_stats(pod).await?;
            let container = stats.containers.iter().filter_map(|it| it.attributes.as_ref());
            let mut ids = container.map(|attributes| attributes.id.as_str());
            ensure!(ids.any(|found| found == id), "{stats:?}");
            let cpu = value(stats.cpu.context("no cpu")?.usage_core_nano_seconds);
            let memory = value(stats.memory.context("no memory")?.working_set_bytes);
            ensure!(cpu > 0 && memory > HELD_MIB * MIB, "{cpu} ns, {memory} bytes");
            Ok(())
        })
        .await;
    report
        .check("stats-network", async {
            let network = kubelet.sandbox_stats(pod).await?.network.context("no network")?;
            let eth0 = network.default_interface.context("no default interface")?;
            ensure!(eth0.name == "eth0" && value(eth0.rx_bytes) > 0, "{eth0:?}");
            ensure!(value(eth0.tx_bytes) > 0, "{eth0:?}");
            Ok(())
        })
        .await;
}

/// The same container by runc, in the same world: figures of the same size mean the same.
async fn compared(stage: &Stage<'_>, ours: &str) {
    let report = stage.report;
    report
        .check("stats-as-runc", async {
            let kubelet = Kubelet { handler: "runc", ..stage.kubelet };
            // Until now their layers are on no disk of this node.
            let pause = format!("{}/pause:1", registry::ADDRESS);
            for image in [&pause, &stage.image] {
                stage.world.pull_for(image, kubelet.handler).await?;
            }
            let pod = kubelet.run(kubelet.sandbox("compared")).await?;
            let result = compare(stage, &kubelet, &pod, ours).await;
            kubelet.remove_sandbox(&pod.id).await?;
            result
        })
        .await;
}

async fn compare(
    stage: &Stage<'_>,
    runc: &Kubelet<'_>,
    pod: &Sandbox,
    ours: &str,
) -> anyhow::Result<()> {
    let id = runc.launch(pod, stage.script("figures", "sleep 1000")).await?;
    let busy = format!(
        "head -c {} /dev/zero | tr '\\0' x >/dev/shm/held; \
         i=0; while [ $i -lt 6000 ]; do i=$((i+1)); done",
        HELD_MIB << 20
    );
    let mut grown = Vec::new();
    for (kubelet, id) in [(runc, id.as_str()), (&stage.kubelet, ours)] {
        let before = kubelet.stats(id).await?;
        kubelet.sh(id, &busy).await?;
        let after = kubelet.stats(id).await?;
        let set = |stats: &cri::ContainerStats| {
            stats.memory.as_ref().map_or(0, |memory| value(memory.working_set_bytes))
        };
        let time = |stats: &cri::ContainerStats| {
            stats.cpu.as_ref().map_or(0, |cpu| value(cpu.usage_core_nano_seconds))
        };
        let memory = set(&after).saturating_sub(set(&before));
        let cpu = time(&after).saturating_sub(time(&before));
        eprintln!("{}: {memory} bytes and {cpu} ns more", kubelet.handler);
        ensure!(cpu > 10_000_000, "{}: {cpu} ns for a busy loop", kubelet.handler);
        grown.push(memory);
    }
    for memory in &grown {
        let held = HELD_MIB * MIB;
        // What the two counted before, caches above all, may have gone meanwhile.
        let expected = held - 4 * MIB..held + 8 * MIB;
        ensure!(expected.contains(memory), "{grown:?} for {held} bytes");
    }
    Ok(())
}
