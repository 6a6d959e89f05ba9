//! Numbers of processors that are measured.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use nacre_configuration::Config;
use nacre_configuration::sizing::{ContainerRole, ContainerShare, Machine, PodShare, Wishes};
use nacre_policy_author::kubernetes::{SourceFile, read as read_yaml};
use nacre_policy_author::workload::{Container, Role, Workload};

use crate::input::read;

/// Those that are given and those of the pods, each once; without either, all that pods may have.
pub(super) fn vcpus(given: &[u32], pods: &[PathBuf], config: &Config) -> anyhow::Result<Vec<u32>> {
    let most = config.vm.max_vcpus;
    let mut all: BTreeSet<u32> = given.iter().copied().collect();
    for count in given {
        ensure!(
            (1..=most).contains(count),
            "--vcpus {count}: give 1 to {most}, the configuration's vm.max_vcpus"
        );
    }
    let files = pods
        .iter()
        .map(|path| Ok(SourceFile { name: path.display().to_string(), content: read(path)? }))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !files.is_empty() {
        let reading = read_yaml(&files)?;
        ensure!(
            !reading.workloads.is_empty(),
            "the files have no workload: no Pod and nothing that makes pods"
        );
        for workload in &reading.workloads {
            all.insert(machine(workload, config)?.vcpus);
        }
    }
    if all.is_empty() {
        return Ok((1..=most).collect());
    }
    Ok(all.into_iter().collect())
}

/// The machine that the shim makes for pods of a workload.
fn machine(workload: &Workload, config: &Config) -> anyhow::Result<Machine> {
    let named = || format!("{}: {}/{}", workload.source, workload.kind, workload.object_name);
    let pod = &workload.pod;
    for container in &pod.containers {
        // The kubelet would count what the pod says, which is not known here.
        ensure!(
            container.resources.cpu_limit.is_some() || container.resources.linux.cpu_quota == 0,
            "{}: has CPU limits for the pod as a whole: give its number of processors with --vcpus",
            named()
        );
    }
    let share = PodShare::of_containers(&pod.containers.iter().map(share).collect::<Vec<_>>());
    let machine = Wishes::read(&pod.annotations, config)
        .and_then(|wishes| Machine::of(&wishes, &share, config));
    machine.with_context(named)
}

fn share(container: &Container) -> ContainerShare {
    let resources = &container.resources;
    ContainerShare {
        role: match container.role {
            Role::Init => ContainerRole::Init,
            Role::Sidecar => ContainerRole::Sidecar,
            Role::App => ContainerRole::App,
        },
        cpu_limit: resources.cpu_limit.unwrap_or(0),
        cpu_request: resources.cpu_request.unwrap_or(0),
        memory_limit: resources.memory_limit.unwrap_or(0),
    }
}
