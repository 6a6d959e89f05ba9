//! The requests of a kubelet, one word each, with all that CRI lets it say.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;

use crate::cluster_dns;
use crate::cri::call;
use crate::ctr::Output;
use crate::world::{PATIENCE, RUNTIME_HANDLER, World};

/// A kubelet that asks for pods of one runtime handler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kubelet<'w> {
    pub(super) world: &'w World,
    pub(super) handler: &'static str,
}

/// A sandbox that was made, and how it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) config: cri::PodSandboxConfig,
}

impl<'w> Kubelet<'w> {
    /// An ordinary pod.
    pub(super) fn sandbox(&self, name: &str) -> cri::PodSandboxConfig {
        let namespaces = cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "conformance".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: format!("/run/world/logs/{}-{name}", self.handler),
            dns_config: Some(cri::DnsConfig {
                servers: vec![cluster_dns::ADDRESS.to_owned()],
                searches: vec!["world.test".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            labels: [("app".to_owned(), name.to_owned())].into(),
            annotations: [(RUNTIME_HANDLER.to_owned(), self.handler.to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes a sandbox.
    pub(super) async fn run(&self, config: cri::PodSandboxConfig) -> anyhow::Result<Sandbox> {
        fs::create_dir_all(self.world.path(&config.log_directory))?;
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.to_owned(),
        };
        let mut runtime = self.world.cri.runtime();
        let id = call("RunPodSandbox", runtime.run_pod_sandbox(request)).await?.pod_sandbox_id;
        Ok(Sandbox { id, config })
    }

    pub(super) async fn sandbox_status(&self, id: &str) -> anyhow::Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let mut runtime = self.world.cri.runtime();
        let answer = call("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?;
        answer.status.context("no status")
    }

    pub(super) async fn sandboxes(
        &self,
        filter: cri::PodSandboxFilter,
    ) -> anyhow::Result<Vec<cri::PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut runtime = self.world.cri.runtime();
        Ok(call("ListPodSandbox", runtime.list_pod_sandbox(request)).await?.items)
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("StopPodSandbox", runtime.stop_pod_sandbox(request)).await.map(drop)
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("RemovePodSandbox", runtime.remove_pod_sandbox(request)).await.map(drop)
    }

    /// Makes a container.
    pub(super) async fn create(
        &self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> anyhow::Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let mut runtime = self.world.cri.runtime();
        Ok(call("CreateContainer", runtime.create_container(request)).await?.container_id)
    }

    pub(super) async fn start(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("StartContainer", runtime.start_container(request)).await.map(drop)
    }

    /// Makes a container and starts it.
    pub(super) async fn launch(
        &self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> anyhow::Result<String> {
        let id = self.create(sandbox, config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Runs a container to its end; its output and exit code.
    pub(super) async fn finish(
        &self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> anyhow::Result<(String, i32)> {
        let log = format!("{}/{}", sandbox.config.log_directory, config.log_path);
        let id = self.launch(sandbox, config).await?;
        let status = self.ended(&id).await?;
        Ok((self.logged(&log, "stdout")?, status.exit_code))
    }

    pub(super) async fn status(&self, id: &str) -> anyhow::Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut runtime = self.world.cri.runtime();
        let answer = call("ContainerStatus", runtime.container_status(request)).await?;
        answer.status.context("no status")
    }

    pub(super) async fn containers(
        &self,
        filter: cri::ContainerFilter,
    ) -> anyhow::Result<Vec<cri::Container>> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let mut runtime = self.world.cri.runtime();
        Ok(call("ListContainers", runtime.list_containers(request)).await?.containers)
    }

    /// Waits until a container has ended.
    pub(super) async fn ended(&self, id: &str) -> anyhow::Result<cri::ContainerStatus> {
        let ended = || async {
            let status = self.status(id).await?;
            Ok((status.state() == cri::ContainerState::ContainerExited).then_some(status))
        };
        eventually("the container ends", ended).await
    }

    pub(super) async fn stop(&self, id: &str, grace_seconds: i64) -> anyhow::Result<()> {
        let request =
            cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let mut runtime = self.world.cri.runtime();
        call("StopContainer", runtime.stop_container(request)).await.map(drop)
    }

    pub(super) async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("RemoveContainer", runtime.remove_container(request)).await.map(drop)
    }

    /// Runs a command in a container; `timeout` in seconds, 0 for none.
    pub(super) async fn exec(
        &self,
        id: &str,
        words: &[&str],
        timeout: i64,
    ) -> anyhow::Result<Output> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        let mut runtime = self.world.cri.runtime();
        let answer = call("ExecSync", runtime.exec_sync(request)).await?;
        Ok(Output { stdout: answer.stdout, stderr: answer.stderr, code: answer.exit_code })
    }

    /// Runs a shell script in a container; returns what it prints, an error if it fails.
    pub(super) async fn sh(&self, id: &str, script: &str) -> anyhow::Result<String> {
        let output = self.exec(id, &["sh", "-c", script], 0).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.code == 0, "{script:?} ended with {}: {said}", output.code);
        Ok(output.text())
    }

    pub(super) async fn update(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> anyhow::Result<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            windows: None,
            annotations: HashMap::new(),
        };
        let mut runtime = self.world.cri.runtime();
        call("UpdateContainerResources", runtime.update_container_resources(request))
            .await
            .map(drop)
    }

    pub(super) async fn reopen_log(&self, id: &str) -> anyhow::Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("ReopenContainerLog", runtime.reopen_container_log(request)).await.map(drop)
    }

    pub(super) async fn stats(&self, id: &str) -> anyhow::Result<cri::ContainerStats> {
        let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
        let mut runtime = self.world.cri.runtime();
        call("ContainerStats", runtime.container_stats(request)).await?.stats.context("no stats")
    }

    pub(super) async fn list_stats(
        &self,
        sandbox: &Sandbox,
    ) -> anyhow::Result<Vec<cri::ContainerStats>> {
        let filter =
            cri::ContainerStatsFilter { pod_sandbox_id: sandbox.id.clone(), ..Default::default() };
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let mut runtime = self.world.cri.runtime();
        Ok(call("ListContainerStats", runtime.list_container_stats(request)).await?.stats)
    }

    pub(super) async fn sandbox_stats(
        &self,
        sandbox: &Sandbox,
    ) -> anyhow::Result<cri::LinuxPodSandboxStats> {
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: sandbox.id.clone() };
        let mut runtime = self.world.cri.runtime();
        let answer = call("PodSandboxStats", runtime.pod_sandbox_stats(request)).await?;
        answer.stats.and_then(|stats| stats.linux).context("no stats of a Linux pod")
    }

    /// Where containerd's streaming server will serve a command.
    pub(super) async fn exec_url(
        &self,
        id: &str,
        words: &[&str],
        input: bool,
        terminal: bool,
    ) -> anyhow::Result<String> {
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            tty: terminal,
            stdin: input,
            stdout: true,
            stderr: !terminal,
        };
        let mut runtime = self.world.cri.runtime();
        Ok(call("Exec", runtime.exec(request)).await?.url)
    }

    /// Where containerd's streaming server will attach to a container.
    pub(super) async fn attach_url(&self, id: &str) -> anyhow::Result<String> {
        let request = cri::AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            tty: false,
            stdout: true,
            stderr: true,
        };
        let mut runtime = self.world.cri.runtime();
        Ok(call("Attach", runtime.attach(request)).await?.url)
    }

    /// Where containerd's streaming server will forward a port.
    pub(super) async fn port_forward_url(&self, id: &str, port: u16) -> anyhow::Result<String> {
        let request =
            cri::PortForwardRequest { pod_sandbox_id: id.to_owned(), port: vec![port.into()] };
        let mut runtime = self.world.cri.runtime();
        Ok(call("PortForward", runtime.port_forward(request)).await?.url)
    }

    /// What a container's log (a path inside) holds of one stream.
    pub(super) fn logged(&self, log: &str, stream: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        for line in LogLine::parse_all(&fs::read_to_string(self.world.path(log))?)? {
            if line.stream == stream {
                text.push_str(&line.text);
                if line.full {
                    text.push('\n');
                }
            }
        }
        Ok(text)
    }

    /// Waits until a container's log holds some text in stdout.
    pub(super) async fn logs(&self, log: &str, wanted: &str) -> anyhow::Result<()> {
        let found = || async {
            let text = self.logged(log, "stdout").unwrap_or_default();
            Ok(text.contains(wanted).then_some(()))
        };
        eventually(&format!("{log} holds {wanted:?}"), found).await
    }
}

/// A line of a container's log: `<RFC 3339 time> <stream> <F|P> <text>`.
#[derive(Debug)]
pub(super) struct LogLine {
    pub(super) time: String,
    pub(super) stream: String,
    /// A whole line, or the last part of one.
    pub(super) full: bool,
    pub(super) text: String,
}

impl LogLine {
    pub(super) fn parse_all(log: &str) -> anyhow::Result<Vec<LogLine>> {
        let parse = |line: &str| {
            let mut words = line.splitn(4, ' ').map(str::to_owned);
            let mut word = || words.next().with_context(|| format!("a line of the log: {line:?}"));
            let (time, stream, tag, text) = (word()?, word()?, word()?, word()?);
            ensure!(tag == "F" || tag == "P", "a line of the log has the tag {tag:?}");
            Ok(LogLine { time, stream, full: tag == "F", text })
        };
        log.lines().map(parse).collect()
    }
}

/// Waits until `probe` finds something.
pub(super) async fn eventually<T, F>(what: &str, probe: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
