//! Commands, terminals, ports and logs.

use std::time::Duration;

use anyhow::{bail, ensure};
use k8s_cri::v1 as cri;

use super::Stage;
use super::kubelet::{LogLine, Sandbox, eventually};
use super::streaming::{Channels, RESIZE, STDERR, STDIN, STDOUT};

/// Port of the server that the pod has for itself.
const PORT: u16 = 8099;

pub(super) async fn containers(stage: &Stage<'_>, pod: &Sandbox) {
    let script = format!(
        "mkdir /www; echo served >/www/index.html; httpd -p 127.0.0.1:{PORT} -h /www; echo up; \
         while read -r line; do echo \"got $line\"; done; sleep 1000"
    );
    let mut config = stage.script("streams", &script);
    config.stdin = true;
    let log = format!("{}/{}", pod.config.log_directory, config.log_path);
    let up = async {
        let target = stage.kubelet.launch(pod, config).await?;
        stage.kubelet.logs(&log, "up").await.map(|()| target)
    };
    let target = match up.await {
        Ok(target) => target,
        // The behaviours that need it will be called not reached.
        Err(error) => return eprintln!("the container of the streams is not up: {error:#}"),
    };
    exec_sync(stage, &target).await;
    streaming(stage, pod, &target).await;
    logs(stage, pod).await;
    if let Err(error) = stage.kubelet.remove(&target).await {
        eprintln!("{error:#}");
    }
}

async fn exec_sync(stage: &Stage<'_>, target: &str) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("exec-sync", async {
            let script = "echo out; echo err >&2; exit 7";
            let output = kubelet.exec(target, &["sh", "-c", script], 30).await?;
            ensure!((output.code, output.text().as_str()) == (7, "out"), "{output:?}");
            ensure!(output.stderr == b"err\n", "{output:?}");
            Ok(())
        })
        .await;
    report
        .check("exec-sync-timeout", async {
            match kubelet.exec(target, &["sleep", "4321"], 1).await {
                Ok(output) => bail!("it ends: {output:?}"),
                Err(error) => ensure!(error.to_string().contains("DeadlineExceeded"), "{error}"),
            }
            let gone = || async {
                let left = kubelet.sh(target, "ps | grep '[s]leep 4321' || true").await?;
                Ok(left.is_empty().then_some(()))
            };
            eventually("the command that took too long is gone", gone).await
        })
        .await;
    report
        .check("exec-sync-absent", async {
            match kubelet.exec(target, &["/no/such/program"], 10).await {
                Ok(output) => ensure!(output.code != 0, "{output:?}"),
                Err(error) => ensure!(error.to_string().contains("/no/such/program"), "{error}"),
            }
            Ok(())
        })
        .await;
}

async fn streaming(stage: &Stage<'_>, pod: &Sandbox, target: &str) {
    let (world, kubelet, report) = (stage.world, &stage.kubelet, stage.report);
    report
        .check("exec-streams", async {
            let words = ["sh", "-c", "read -r word; echo \"out $word\"; echo err >&2; exit 6"];
            let url = kubelet.exec_url(target, &words, true, false).await?;
            let mut channels = Channels::open(world, &url).await?;
            channels.send(STDIN, b"in\n").await?;
            ensure!(channels.exit_code().await? == 6);
            ensure!(channels.text(STDOUT) == "out in\n" && channels.text(STDERR) == "err\n");
            Ok(())
        })
        .await;
    report
        .check("exec-terminal", async {
            let url = kubelet.exec_url(target, &["sh"], true, true).await?;
            let mut channels = Channels::open(world, &url).await?;
            channels.send(RESIZE, br#"{"Width":91,"Height":33}"#).await?;
            // The new size may take a moment longer than the first line that is typed.
            for line in 0.. {
                let typed = format!("stty size; echo line\"\"{line}.\n");
                channels.send(STDIN, typed.as_bytes()).await?;
                channels.wait_for(STDOUT, &format!("line{line}.")).await?;
                if channels.text(STDOUT).contains("33 91") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            channels.send(STDIN, b"exit 3\n").await?;
            ensure!(channels.exit_code().await? == 3);
            Ok(())
        })
        .await;
    report
        .check("attach", async {
            let mut channels = Channels::open(world, &kubelet.attach_url(target).await?).await?;
            channels.send(STDIN, b"hello\n").await?;
            channels.wait_for(STDOUT, "got hello").await
        })
        .await;
    report
        .check("port-forward", async {
            let url = kubelet.port_forward_url(&pod.id, PORT).await?;
            let mut channels = Channels::open(world, &format!("{url}?port={PORT}")).await?;
            channels.send(STDIN, b"GET / HTTP/1.0\r\n\r\n").await?;
            channels.wait_for(STDIN, "served").await
        })
        .await;
}

async fn logs(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    let file =
        |config: &cri::ContainerConfig| format!("{}/{}", pod.config.log_directory, config.log_path);
    report
        .check("log-format", async {
            let script =
                "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf end";
            let config = stage.script("log", script);
            let log = file(&config);
            kubelet.finish(pod, config).await?;
            let text = std::fs::read_to_string(stage.world.path(&log))?;
            let lines = LogLine::parse_all(&text)?;
            for line in &lines {
                // RFC 3339 with nanoseconds: 2026-01-02T03:04:05.678901234Z
                let time = line.time.as_bytes();
                ensure!(time.len() >= 20 && time[4] == b'-' && time[10] == b'T', "{line:?}");
                ensure!(line.stream == "stdout" || line.stream == "stderr", "{line:?}");
            }
            let long: Vec<_> = lines.iter().filter(|line| line.text.starts_with('x')).collect();
            ensure!(long.len() > 1 && long.iter().rev().skip(1).all(|part| !part.full));
            ensure!(long.last().is_some_and(|part| part.full), "the last part is not the last");
            ensure!(long.iter().map(|part| part.text.len()).sum::<usize>() == 40_000);
            ensure!(kubelet.logged(&log, "stderr")? == "two\n");
            let out = kubelet.logged(&log, "stdout")?;
            ensure!(out.starts_with("one\n") && out.trim_end().ends_with("end"), "{}", out.len());
            Ok(())
        })
        .await;
    report
        .check("log-rotation", async {
            let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
            let config = stage.script("rotated", script);
            let log = file(&config);
            let id = kubelet.launch(pod, config).await?;
            kubelet.logs(&log, "3\n").await?;
            let old = format!("{log}.1");
            std::fs::rename(stage.world.path(&log), stage.world.path(&old))?;
            kubelet.reopen_log(&id).await?;
            kubelet.logs(&log, "\n").await?;
            kubelet.remove(&id).await?;
            let both = kubelet.logged(&old, "stdout")? + &kubelet.logged(&log, "stdout")?;
            for (position, line) in both.lines().enumerate() {
                ensure!(line == (position + 1).to_string(), "a line is lost or doubled: {both:?}");
            }
            Ok(())
        })
        .await;
    report
        .check("log-rotation-of-ended", async {
            let id = kubelet.launch(pod, stage.script("log-ended", "true")).await?;
            kubelet.ended(&id).await?;
            match kubelet.reopen_log(&id).await {
                Ok(()) => bail!("the log of a container that has ended is opened again"),
                Err(error) => ensure!(error.to_string().contains("not running"), "{error}"),
            }
            Ok(())
        })
        .await;
}
