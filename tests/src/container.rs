//! Containers that were created, through CRI.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;

use crate::cri::call;
use crate::ctr::Output;
use crate::declaration::resources;
use crate::world::{PATIENCE, World};

/// A container.
#[derive(Debug)]
pub struct Container<'w> {
    world: &'w World,
    id: String,
    log: String,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128+n for signal n.
    pub code: i32,
    /// One word: `Completed`, `Error`, `OOMKilled` ...
    pub reason: String,
    /// For people.
    pub message: String,
}

impl<'w> Container<'w> {
    pub(crate) fn new(world: &'w World, id: String, log: String) -> Container<'w> {
        Container { world, id, log }
    }

    /// containerd's name for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in the container and waits for it.
    pub async fn exec<const N: usize>(&self, words: [&str; N]) -> anyhow::Result<Output> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.map(str::to_owned).to_vec(),
            timeout: 120,
        };
        let mut runtime = self.world.cri.runtime();
        let answer = call("ExecSync", runtime.exec_sync(request)).await?;
        Ok(Output { stdout: answer.stdout, stderr: answer.stderr, code: answer.exit_code })
    }

    /// Runs a shell script in the container; returns what it prints, an error if it fails.
    pub async fn sh(&self, script: &str) -> anyhow::Result<String> {
        let output = self.exec(["sh", "-c", script]).await?;
        ensure!(
            output.code == 0,
            "{script:?} ended with {}: {}{}",
            output.code,
            output.text(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.text())
    }

    /// What it has written to stdout.
    pub fn stdout(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.stream("stdout")?).into_owned())
    }

    /// What it has written to stderr.
    pub fn stderr(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.stream("stderr")?).into_owned())
    }

    /// What it has written to stdout, as bytes. CRI's log keeps lines: `<time> <stream> <F|P> <text>`.
    pub fn stream(&self, stream: &str) -> anyhow::Result<Vec<u8>> {
        let log = fs::read(self.world.path(&self.log))?;
        let mut bytes = Vec::new();
        for line in log.split_inclusive(|b| *b == b'\n') {
            let mut words = line.splitn(4, |b| *b == b' ');
            let (_time, name, tag) = (words.next(), words.next(), words.next());
            let text = words.next().context("the container's log has another form")?;
            if name == Some(stream.as_bytes()) {
                let full = tag == Some(b"F");
                let partial = text
                    .strip_suffix(
                        b"
",
                    )
                    .unwrap_or(text);
                bytes.extend_from_slice(if full { text } else { partial });
            }
        }
        Ok(bytes)
    }

    /// Waits until stdout contains `text`.
    pub async fn wait_for(&self, text: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.stdout()?.contains(text) {
            if started.elapsed() > PATIENCE {
                bail!("no {text:?} in {:?}", self.stdout()?);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits until it has ended.
    pub async fn wait_exit(&self) -> anyhow::Result<Exit> {
        let started = Instant::now();
        loop {
            let status = self.status().await?;
            if status.state() == cri::ContainerState::ContainerExited {
                let (code, reason, message) = (status.exit_code, status.reason, status.message);
                return Ok(Exit { code, reason, message });
            }
            ensure!(started.elapsed() < PATIENCE, "it still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it runs.
    pub async fn runs(&self) -> anyhow::Result<bool> {
        Ok(self.status().await?.state() == cri::ContainerState::ContainerRunning)
    }

    async fn status(&self) -> anyhow::Result<cri::ContainerStatus> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = call("ContainerStatus", runtime.container_status(request)).await?;
        answer.status.context("the container has no status")
    }

    /// Stops it: SIGTERM, and SIGKILL after `grace` seconds.
    pub async fn stop(&self, grace: i64) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        call("StopContainer", runtime.stop_container(request)).await.map(drop)
    }

    /// Removes it.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        call("RemoveContainer", runtime.remove_container(request)).await.map(drop)
    }

    /// Changes its memory limit, in MiB.
    pub async fn set_memory_mib(&self, mib: i64) -> anyhow::Result<()> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources(0, mib)),
            windows: None,
            annotations: HashMap::new(),
        };
        call("UpdateContainerResources", runtime.update_container_resources(request))
            .await
            .map(drop)
    }

    /// Processor time used, in nanoseconds, and memory in use, in bytes.
    pub async fn stats(&self) -> anyhow::Result<(u64, u64)> {
        let mut runtime = self.world.cri.runtime();
        let request = cri::ContainerStatsRequest { container_id: self.id.clone() };
        let stats = call("ContainerStats", runtime.container_stats(request)).await?.stats;
        let stats = stats.context("no statistics")?;
        let cpu = stats.cpu.and_then(|c| c.usage_core_nano_seconds).context("no CPU time")?;
        let memory = stats.memory.and_then(|m| m.working_set_bytes).context("no memory")?;
        Ok((cpu.value, memory.value))
    }
}
