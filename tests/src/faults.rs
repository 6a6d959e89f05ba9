//! Doing harm to a world, and what a kubelet does afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use rustix::process::Signal;

use crate::control_groups;
use crate::cri::call;
use crate::namespaces::Process;
use crate::world::{PATIENCE, World};

/// A process that is stopped until this value is dropped.
#[derive(Debug)]
pub struct Frozen<'w> {
    world: &'w World,
    process: Process,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = self.world.namespaces.kill(&self.process, Signal::CONT);
    }
}

/// What a world holds: what must be the same before and after any number of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors of the daemons, by name.
    pub descriptors: Vec<(String, usize)>,
    /// Mounts.
    pub mounts: usize,
    /// Network interfaces.
    pub links: usize,
    /// Named network namespaces.
    pub network_namespaces: usize,
    /// Control groups of sandboxes.
    pub control_groups: usize,
    /// Processes.
    pub processes: usize,
}

impl Holdings {
    /// All but the descriptors: these may differ by connections that are idle.
    #[must_use]
    pub fn without_descriptors(&self) -> Holdings {
        Holdings { descriptors: Vec::new(), ..self.clone() }
    }
}

impl World {
    /// Stops a process as by `kill -STOP`: it is there, and does nothing.
    pub fn freeze(&self, process: &Process) -> anyhow::Result<Frozen<'_>> {
        self.namespaces.kill(process, Signal::STOP)?;
        Ok(Frozen { world: self, process: process.clone() })
    }

    /// Stops the registry: it accepts connections and answers none.
    pub fn freeze_registry(&self) -> anyhow::Result<Frozen<'_>> {
        self.freeze(&self.daemon("docker-registry")?)
    }

    /// A daemon's process, by the first 15 bytes of its name.
    pub fn daemon(&self, name: &str) -> anyhow::Result<Process> {
        let all = self.namespaces.processes()?;
        let found = all.into_iter().find(|process| process.name == name);
        found.with_context(|| format!("{name} does not run"))
    }

    /// Kills containerd with SIGKILL; its shims live on.
    pub fn kill_containerd(&self) -> anyhow::Result<()> {
        self.end_daemon("containerd", Signal::KILL)
    }

    /// Starts containerd again and waits until it is ready.
    pub async fn revive_containerd(&self) -> anyhow::Result<()> {
        self.start_containerd().await
    }

    /// Waits until a virtual machine's process is there that was not before.
    pub async fn new_machine(&self, known: &[Process]) -> anyhow::Result<Process> {
        self.appears(known, "a virtual machine", || self.virtual_machines()).await
    }

    /// Waits until a shim's process is there that was not before.
    pub async fn new_shim(&self, known: &[Process]) -> anyhow::Result<Process> {
        self.appears(known, "a shim", || self.shims()).await
    }

    async fn appears(
        &self,
        known: &[Process],
        what: &str,
        list: impl Fn() -> anyhow::Result<Vec<Process>>,
    ) -> anyhow::Result<Process> {
        let started = Instant::now();
        loop {
            if let Some(new) = list()?.into_iter().find(|p| known.iter().all(|k| k.pid != p.pid)) {
                return Ok(new);
            }
            ensure!(started.elapsed() < PATIENCE, "{what} does not appear");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops and removes every pod that containerd knows, as a kubelet does with pods it does not want;
    /// what fails is tried again. Returns how many there were.
    pub async fn remove_all_pods(&self) -> anyhow::Result<usize> {
        let started = Instant::now();
        let mut removed = 0;
        loop {
            let mut runtime = self.cri.runtime();
            let request = cri::ListPodSandboxRequest { filter: None };
            let pods = call("ListPodSandbox", runtime.list_pod_sandbox(request)).await?.items;
            if pods.is_empty() {
                return Ok(removed);
            }
            for pod in pods {
                match self.remove_pod(&pod.id).await {
                    Ok(()) => removed += 1,
                    Err(error) if started.elapsed() > PATIENCE => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        }
    }

    async fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        let mut runtime = self.cri.runtime();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        call("StopPodSandbox", runtime.stop_pod_sandbox(request)).await?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        call("RemovePodSandbox", runtime.remove_pod_sandbox(request)).await.map(drop)
    }

    /// What the world holds now.
    pub fn holdings(&self) -> anyhow::Result<Holdings> {
        let mut descriptors = Vec::new();
        let processes = self.namespaces.processes()?;
        for process in &processes {
            let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid));
            descriptors.push((process.name.clone(), open.map_or(0, Iterator::count)));
        }
        descriptors.sort();
        let names = self.path("/run/netns");
        let network_namespaces = names.read_dir().map_or(0, Iterator::count);
        Ok(Holdings {
            descriptors,
            mounts: self.namespaces.mounts()?.len(),
            links: self.namespaces.links()?.len(),
            network_namespaces,
            control_groups: control_groups::of_sandboxes(&self.path(control_groups::ROOT)).len(),
            processes: processes.len(),
        })
    }

    /// Resident memory of a process, in KiB.
    pub fn resident_kib(&self, process: &Process) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("{} has no VmRSS", process.name))
    }
}
