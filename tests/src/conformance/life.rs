//! How sandboxes and containers begin, end and begin again.

use std::collections::HashSet;

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;

use super::kubelet::Sandbox;
use super::{Stage, resources};

/// Where the kubelet keeps the file for a container's last words, inside.
const LAST_WORDS: &str = "/run/world/kubelet/pods/uid-life/containers/words/3f9c01aa";

/// An error that says what was expected.
fn is_not_found<T: std::fmt::Debug>(result: anyhow::Result<T>) -> anyhow::Result<()> {
    match result {
        Ok(found) => bail!("there is one: {found:?}"),
        Err(error) if error.to_string().contains("NotFound") => Ok(()),
        Err(error) => Err(error),
    }
}

/// Starts the pod that most scenes share.
pub(super) async fn begin(stage: &Stage<'_>) -> anyhow::Result<Sandbox> {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("runtime-status", async {
            let mut runtime = stage.world.cri.runtime();
            let version =
                runtime.version(cri::VersionRequest { version: "v1".into() }).await?.into_inner();
            ensure!(version.runtime_name == "containerd" && version.runtime_api_version == "v1");
            let status = runtime.status(cri::StatusRequest { verbose: false }).await?.into_inner();
            let conditions = status.status.unwrap_or_default().conditions;
            for wanted in ["RuntimeReady", "NetworkReady"] {
                let found = conditions.iter().find(|condition| condition.r#type == wanted);
                ensure!(found.is_some_and(|condition| condition.status), "{conditions:?}");
            }
            Ok(())
        })
        .await;
    report
        .check("unknown-ids", async {
            let nobody = "0123456789abcdef";
            is_not_found(kubelet.sandbox_status(nobody).await)?;
            is_not_found(kubelet.status(nobody).await)
        })
        .await;
    report
        .check("unknown-ids-ended", async {
            let nobody = "0123456789abcdef";
            // The kubelet repeats what it is not sure of: stopping and removing nothing is fine.
            kubelet.stop_sandbox(nobody).await?;
            kubelet.remove_sandbox(nobody).await?;
            kubelet.stop(nobody, 1).await?;
            kubelet.remove(nobody).await
        })
        .await;
    let mut config = kubelet.sandbox("life");
    config.annotations.insert("example.org/note".into(), "kept".into());
    let sysctls = [("net.ipv4.ip_unprivileged_port_start", "81"), ("kernel.shm_rmid_forced", "1")];
    if let Some(linux) = &mut config.linux {
        linux.sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        linux.cgroup_parent = resources::GROUP.to_owned();
    }
    let pod = kubelet.run(config).await?;
    sandbox(stage, &pod).await;
    Ok(pod)
}

async fn sandbox(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("sandbox-status", async {
            let status = kubelet.sandbox_status(&pod.id).await?;
            ensure!(status.state() == cri::PodSandboxState::SandboxReady && status.created_at > 0);
            ensure!(status.metadata == pod.config.metadata, "{status:?}");
            ensure!(status.labels == pod.config.labels, "{status:?}");
            ensure!(status.annotations == pod.config.annotations, "{status:?}");
            Ok(())
        })
        .await;
    report
        .check("runtime-handler", async {
            let status = kubelet.sandbox_status(&pod.id).await?;
            ensure!(status.runtime_handler == "nacre", "{:?}", status.runtime_handler);
            Ok(())
        })
        .await;
    report
        .check("sandbox-addresses", async {
            let network = kubelet.sandbox_status(&pod.id).await?.network.unwrap_or_default();
            let more: Vec<_> = network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
            ensure!(network.ip.starts_with("10.88."), "{network:?}");
            ensure!(more.len() == 1 && more[0].starts_with("fd00:88:"), "{network:?}");
            Ok(())
        })
        .await;
    report
        .check("sandbox-list", async {
            let label = [("app".to_owned(), "life".to_owned())];
            let ready = cri::PodSandboxStateValue { state: 0 };
            let filter = cri::PodSandboxFilter {
                label_selector: label.clone().into(),
                state: Some(ready),
                ..Default::default()
            };
            let found = kubelet.sandboxes(filter).await?;
            ensure!(found.len() == 1 && found[0].id == pod.id, "{found:?}");
            let other = [("app".to_owned(), "other".to_owned())].into();
            let filter = cri::PodSandboxFilter { label_selector: other, ..Default::default() };
            ensure!(kubelet.sandboxes(filter).await?.is_empty());
            let filter = cri::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
            ensure!(kubelet.sandboxes(filter).await?.len() == 1);
            Ok(())
        })
        .await;
    report
        .check("sandbox-name-reserved", async {
            match kubelet.run(pod.config.clone()).await {
                Ok(second) => bail!("a second pod of that name and attempt runs: {}", second.id),
                Err(error) => ensure!(error.to_string().contains("reserved"), "{error}"),
            }
            Ok(())
        })
        .await;
}

/// Containers of one pod.
pub(super) async fn containers(stage: &Stage<'_>, pod: &Sandbox) {
    states(stage, pod).await;
    ends(stage, pod).await;
    order(stage, pod).await;
    surroundings(stage, pod).await;
}

async fn states(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("container-states", async {
            let id =
                kubelet.create(pod, stage.script("states", "echo up; sleep 1; exit 3")).await?;
            let created = kubelet.status(&id).await?;
            ensure!(created.state() == cri::ContainerState::ContainerCreated, "{created:?}");
            kubelet.start(&id).await?;
            let running = kubelet.status(&id).await?;
            ensure!(running.state() == cri::ContainerState::ContainerRunning, "{running:?}");
            ensure!(running.labels["container"] == "states" && running.image.is_some());
            let ended = kubelet.ended(&id).await?;
            ensure!((ended.exit_code, ended.reason.as_str()) == (3, "Error"), "{ended:?}");
            ensure!(0 < ended.created_at && ended.created_at <= ended.started_at, "{ended:?}");
            ensure!(ended.started_at <= ended.finished_at, "{ended:?}");
            kubelet.remove(&id).await
        })
        .await;
    report
        .check("container-list", async {
            let running = kubelet.launch(pod, stage.script("listed", "sleep 1000")).await?;
            let waiting = kubelet.create(pod, stage.script("waiting", "true")).await?;
            let state =
                |state: cri::ContainerState| cri::ContainerStateValue { state: state.into() };
            let ids = async |filter: cri::ContainerFilter| {
                let found = kubelet.containers(filter).await?;
                anyhow::Ok(found.into_iter().map(|it| it.id).collect::<HashSet<_>>())
            };
            let filter = cri::ContainerFilter {
                pod_sandbox_id: pod.id.clone(),
                state: Some(state(cri::ContainerState::ContainerRunning)),
                ..Default::default()
            };
            let found = ids(filter).await?;
            ensure!(found.contains(&running) && !found.contains(&waiting), "{found:?}");
            let label = [("container".to_owned(), "waiting".to_owned())].into();
            let filter = cri::ContainerFilter { label_selector: label, ..Default::default() };
            ensure!(ids(filter).await? == [waiting.clone()].into());
            kubelet.remove(&waiting).await?;
            kubelet.stop(&running, 0).await?;
            kubelet.remove(&running).await
        })
        .await;
    report
        .check("container-completes", async {
            let id = kubelet.launch(pod, stage.script("completes", "exit 0")).await?;
            let ended = kubelet.ended(&id).await?;
            ensure!((ended.exit_code, ended.reason.as_str()) == (0, "Completed"), "{ended:?}");
            Ok(())
        })
        .await;
    report
        .check("start-error", async {
            let mut config = stage.script("absent", "");
            config.args = vec!["/no/such/program".into()];
            let id = match kubelet.create(pod, config).await {
                Ok(id) => id,
                Err(error) => {
                    ensure!(error.to_string().contains("/no/such/program"), "{error}");
                    return Ok(());
                }
            };
            match kubelet.start(&id).await {
                Ok(()) => bail!("it starts"),
                Err(error) => ensure!(error.to_string().contains("/no/such/program"), "{error}"),
            }
            let status = kubelet.status(&id).await?;
            ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
            ensure!(status.exit_code != 0 && status.reason == "StartError", "{status:?}");
            kubelet.remove(&id).await
        })
        .await;
}

async fn ends(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("stop-signal-of-image", async {
            let script = "trap 'echo usr1; exit 4' USR1; trap 'exit 5' TERM; echo up; \
                          while :; do sleep 0.1; done";
            let config = stage.script("polite", script);
            let log = format!("{}/{}", pod.config.log_directory, config.log_path);
            let id = kubelet.launch(pod, config).await?;
            kubelet.logs(&log, "up").await?;
            kubelet.stop(&id, 30).await?;
            let ended = kubelet.ended(&id).await?;
            ensure!(ended.exit_code == 4, "{ended:?}");
            Ok(())
        })
        .await;
    report
        .check("stop-grace-ends", async {
            let script = "trap '' TERM USR1; echo up; while :; do sleep 0.1; done";
            let config = stage.script("deaf", script);
            let log = format!("{}/{}", pod.config.log_directory, config.log_path);
            let id = kubelet.launch(pod, config).await?;
            kubelet.logs(&log, "up").await?;
            kubelet.stop(&id, 1).await?;
            let ended = kubelet.ended(&id).await?;
            ensure!(ended.exit_code == 137, "{ended:?}");
            Ok(())
        })
        .await;
    report
        .check("stop-and-remove-again", async {
            let id = kubelet.launch(pod, stage.script("twice", "sleep 1000")).await?;
            kubelet.stop(&id, 0).await?;
            kubelet.stop(&id, 0).await?;
            kubelet.remove(&id).await?;
            kubelet.remove(&id).await?;
            is_not_found(kubelet.status(&id).await)
        })
        .await;
    report
        .check("remove-running", async {
            let id = kubelet.launch(pod, stage.script("forced", "sleep 1000")).await?;
            kubelet.remove(&id).await?;
            is_not_found(kubelet.status(&id).await)
        })
        .await;
    report
        .check("restart-in-sandbox", async {
            let mut config = stage.script("again", "echo attempt $ATTEMPT; exit 1");
            let first = kubelet.launch(pod, config.clone()).await?;
            kubelet.ended(&first).await?;
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt = 1;
            }
            let second = kubelet.launch(pod, config).await?;
            kubelet.ended(&second).await?;
            ensure!(first != second && kubelet.status(&first).await?.exit_code == 1);
            kubelet.remove(&first).await?;
            kubelet.remove(&second).await
        })
        .await;
    report
        .check("termination-message", async {
            let path = stage.world.path(LAST_WORDS);
            std::fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            std::fs::write(&path, "")?;
            let mut config = stage.script("words", "printf 'disk on fire' >/dev/termination-log");
            config.mounts.push(cri::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: LAST_WORDS.into(),
                ..Default::default()
            });
            let (_, code) = kubelet.finish(pod, config).await?;
            let said = std::fs::read_to_string(&path)?;
            ensure!((code, said.as_str()) == (0, "disk on fire"), "{code}, {said:?}");
            Ok(())
        })
        .await;
}

async fn order(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("init-containers", async {
            let boot = "cat /proc/sys/kernel/random/boot_id";
            let mut kernels = HashSet::new();
            let mut last = 0;
            for name in ["init-1", "init-2", "app"] {
                let config = stage.script(name, boot);
                let log = format!("{}/{}", pod.config.log_directory, config.log_path);
                let id = kubelet.launch(pod, config).await?;
                let ended = kubelet.ended(&id).await?;
                ensure!(ended.exit_code == 0 && last <= ended.started_at, "{ended:?}");
                last = ended.finished_at;
                kernels.insert(kubelet.logged(&log, "stdout")?);
            }
            ensure!(kernels.len() == 1, "they ran under different kernels: {kernels:?}");
            Ok(())
        })
        .await;
    report
        .check("sidecar-restarts", async {
            let app = kubelet.launch(pod, stage.script("beside", "sleep 1000")).await?;
            let mut config = stage.script("sidecar", "sleep 1; exit 9");
            for attempt in 0..3 {
                if let Some(metadata) = &mut config.metadata {
                    metadata.attempt = attempt;
                }
                let id = kubelet.launch(pod, config.clone()).await?;
                ensure!(kubelet.ended(&id).await?.exit_code == 9);
                kubelet.remove(&id).await?;
            }
            let status = kubelet.status(&app).await?;
            ensure!(status.state() == cri::ContainerState::ContainerRunning, "{status:?}");
            kubelet.remove(&app).await
        })
        .await;
}

/// What a container of this pod finds around it.
async fn surroundings(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("hostname", async {
            let (said, _) = kubelet.finish(pod, stage.script("hostname", "hostname")).await?;
            ensure!(said == "life\n", "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("dns-config", async {
            let script = "cat /etc/resolv.conf";
            let (said, _) = kubelet.finish(pod, stage.script("dns", script)).await?;
            for wanted in ["nameserver ", "search world.test", "options ndots:5"] {
                ensure!(said.contains(wanted), "{said:?}");
            }
            Ok(())
        })
        .await;
    report
        .check("sysctls", async {
            let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
                          /proc/sys/kernel/shm_rmid_forced";
            let (said, _) = kubelet.finish(pod, stage.script("sysctls", script)).await?;
            ensure!(said == "81\n1\n", "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("shared-memory", async {
            let script = "echo hello >/dev/shm/letter; df -k /dev/shm | tail -n 1";
            let (said, _) = kubelet.finish(pod, stage.script("shm-1", script)).await?;
            let size = said.split_whitespace().nth(1);
            ensure!(size == Some("65536"), "{said:?}");
            let script = "cat /dev/shm/letter";
            let (said, _) = kubelet.finish(pod, stage.script("shm-2", script)).await?;
            ensure!(said == "hello\n", "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("environment", async {
            let mut config = stage.script("env", "echo $WORD $PATH; pwd");
            let word = cri::KeyValue { key: "WORD".into(), value: "a  b".into() };
            config.envs.push(word);
            config.working_dir = "/etc".into();
            config.args[2] = "echo \"$WORD\" $PATH; pwd".into();
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(said == "a  b /bin\n/etc\n", "{said:?}");
            Ok(())
        })
        .await;
}

/// Stops and removes the pod, each twice.
pub(super) async fn end(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("sandbox-stop", async {
            let left = kubelet.launch(pod, stage.script("left", "sleep 1000")).await?;
            kubelet.stop_sandbox(&pod.id).await?;
            kubelet.stop_sandbox(&pod.id).await?;
            let status = kubelet.sandbox_status(&pod.id).await?;
            ensure!(status.state() == cri::PodSandboxState::SandboxNotready, "{status:?}");
            let status = kubelet.status(&left).await?;
            ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
            Ok(())
        })
        .await;
    report
        .check("sandbox-remove", async {
            kubelet.remove_sandbox(&pod.id).await?;
            kubelet.remove_sandbox(&pod.id).await?;
            is_not_found(kubelet.sandbox_status(&pod.id).await)?;
            let of_pod =
                cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
            let left = kubelet.containers(of_pod).await?;
            ensure!(left.is_empty(), "{left:?}");
            let left = stage.world.leftovers().await?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await;
}

/// The same pod once more: a second attempt, which is removed without being stopped.
pub(super) async fn again(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("sandbox-second-attempt", async {
            let mut config = kubelet.sandbox("life");
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt = 1;
            }
            let pod = kubelet.run(config).await?;
            let status = kubelet.sandbox_status(&pod.id).await?;
            ensure!(status.metadata.is_some_and(|metadata| metadata.attempt == 1));
            kubelet.launch(&pod, stage.script("app", "sleep 1000")).await?;
            kubelet.remove_sandbox(&pod.id).await?;
            is_not_found(kubelet.sandbox_status(&pod.id).await)
        })
        .await;
    Ok(())
}

/// A pod with ten containers, who see each other's processes.
pub(super) async fn crowd(stage: &Stage<'_>) -> anyhow::Result<()> {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    let mut config = kubelet.sandbox("crowd");
    let shared =
        || cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options = Some(shared());
    let pod = kubelet.run(config).await?;
    let member = |number: usize, script: &str| {
        let mut config = stage.script(&format!("member-{number}"), script);
        super::security(&mut config).namespace_options = Some(shared());
        config
    };
    report
        .check("ten-containers", async {
            for number in 1..=10 {
                let script = format!("sleep 10{number:02}");
                kubelet.launch(&pod, member(number, &script)).await?;
            }
            let filter =
                cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
            let all = kubelet.containers(filter).await?;
            let running = cri::ContainerState::ContainerRunning;
            let running = all.iter().filter(|it| it.state() == running).count();
            ensure!(running == 10, "{running} of {} run", all.len());
            Ok(())
        })
        .await;
    report
        .check("shared-processes", async {
            let id = kubelet.launch(&pod, member(11, "sleep 2000")).await?;
            let seen = kubelet.sh(&id, "ps").await?;
            ensure!(seen.contains("sleep 1010") && seen.contains("pause"), "{seen}");
            Ok(())
        })
        .await;
    kubelet.remove_sandbox(&pod.id).await
}
