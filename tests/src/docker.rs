//! Docker in a world: its daemon on the world's containerd, and its client.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::ctr::Output;
use crate::world::{PATIENCE, SHIM_CONFIG, SOCKET, World};

const DIRECTORY: &str = "/run/world/docker";
const HOST: &str = "unix:///run/world/docker/docker.sock";

/// A Docker daemon. Its runtime `nacre` is the shim under test.
#[derive(Debug)]
pub struct Docker<'w> {
    world: &'w World,
    client: PathBuf,
}

impl World {
    /// Starts Docker; nothing, with a word about it, if it was not fetched.
    pub async fn docker(&self) -> anyhow::Result<Option<Docker<'_>>> {
        let [daemon, client] = self.products().docker();
        if !daemon.exists() || !client.exists() {
            eprintln!("SKIPPED: {} is absent; `cargo xtask test` fetches it", daemon.display());
            return Ok(None);
        }
        fs::create_dir_all(self.path(DIRECTORY))?;
        let configuration = serde_json::json!({
            "runtimes": { "nacre": {
                "runtimeType": self.products().shim(),
                "options": { "ConfigPath": SHIM_CONFIG },
            }},
            "hosts": [HOST],
            "containerd": SOCKET,
            "data-root": format!("{DIRECTORY}/data"),
            "exec-root": format!("{DIRECTORY}/exec"),
            "pidfile": format!("{DIRECTORY}/pid"),
            "storage-driver": "vfs",
            // The world's own bridge, and addresses that CNI is far from. The world has no packet filter.
            "bridge": "cni0",
            "fixed-cidr": "10.88.200.0/24",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "ip-masq": false,
            "userland-proxy": false,
            "insecure-registries": ["10.88.0.1:5000"],
        });
        let file = format!("{DIRECTORY}/daemon.json");
        fs::write(self.path(&file), configuration.to_string())?;
        self.start_daemon(&daemon, &["--config-file", &file])?;
        let docker = Docker { world: self, client };
        let started = Instant::now();
        while docker.run(&["version"])?.code != 0 {
            ensure!(started.elapsed() < PATIENCE, "dockerd is not ready");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Some(docker))
    }
}

impl Docker<'_> {
    /// Runs the client with these arguments.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        let output = self
            .world
            .namespaces
            .command("timeout")
            .arg("120")
            .arg(&self.client)
            .args(["--host", HOST])
            .args(words)
            .current_dir("/")
            .env("HOME", DIRECTORY)
            .stdin(Stdio::null())
            .output()
            .context("failed to run docker")?;
        let code = output.status.code().unwrap_or(-1);
        Ok(Output { stdout: output.stdout, stderr: output.stderr, code })
    }

    /// The daemon's log.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.world.log_file("dockerd"))?)
    }

    /// Ends the daemon.
    pub fn stop(self) -> anyhow::Result<()> {
        self.world.end_daemon("dockerd", Signal::TERM)
    }
}
