//! Those that are compared, each with a store of its own on the same tmpfs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::emptied;
use super::process::{ALL, Cost, Server, calls, find, high_water, run, times, total};

/// Something that makes an unpacked image of a reference.
pub(super) trait Peer {
    fn name(&self) -> &'static str;
    /// Pulls and unpacks.
    fn pull(&mut self, reference: &str) -> anyhow::Result<Cost>;
    /// The same, counting system calls.
    fn calls(&mut self, reference: &str) -> anyhow::Result<u64>;
    /// Removes all that was pulled.
    fn forget(&mut self, reference: &str) -> anyhow::Result<()>;
}

/// Our engine, as a process.
pub(super) struct Nacre {
    program: PathBuf,
    store: PathBuf,
}

impl Nacre {
    pub(super) fn new(program: PathBuf, store: PathBuf) -> Self {
        Self { program, store }
    }

    fn command(&self, reference: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(reference).arg(&self.store).arg("--plain-http");
        command
    }
}

impl Peer for Nacre {
    fn name(&self) -> &'static str {
        "Nacre"
    }

    fn pull(&mut self, reference: &str) -> anyhow::Result<Cost> {
        emptied(&self.store)?;
        run(&mut self.command(reference))
    }

    fn calls(&mut self, reference: &str) -> anyhow::Result<u64> {
        emptied(&self.store)?;
        calls(&self.command(reference), &self.store.with_extension("strace"))
    }

    fn forget(&mut self, _reference: &str) -> anyhow::Result<()> {
        emptied(&self.store)
    }
}

/// skopeo copies to a directory, umoci unpacks it.
pub(super) struct Umoci {
    directory: PathBuf,
}

impl Umoci {
    pub(super) fn find(directory: PathBuf) -> anyhow::Result<Self> {
        for program in ["skopeo", "umoci"] {
            ensure!(find(program).is_some(), "{program} is not here (apt-get install {program})");
        }
        Ok(Self { directory })
    }

    fn commands(&self, reference: &str) -> [Command; 2] {
        let directory = self.directory.join("oci");
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{reference}"))
            .arg(format!("oci:{}:latest", directory.display()));
        let mut unpack = Command::new("umoci");
        unpack
            .args(["unpack", "--image"])
            .arg(format!("{}:latest", directory.display()))
            .arg(self.directory.join("bundle"));
        [copy, unpack]
    }
}

impl Peer for Umoci {
    fn name(&self) -> &'static str {
        "skopeo + umoci"
    }

    fn pull(&mut self, reference: &str) -> anyhow::Result<Cost> {
        emptied(&self.directory)?;
        let [mut copy, mut unpack] = self.commands(reference);
        Ok(run(&mut copy)?.then(run(&mut unpack)?))
    }

    fn calls(&mut self, reference: &str) -> anyhow::Result<u64> {
        emptied(&self.directory)?;
        let [copy, unpack] = self.commands(reference);
        let summary = self.directory.join("strace");
        Ok(calls(&copy, &summary)? + calls(&unpack, &summary)?)
    }

    fn forget(&mut self, _reference: &str) -> anyhow::Result<()> {
        emptied(&self.directory)
    }
}

/// A containerd of our own, and its client.
pub(super) struct Containerd {
    directory: PathBuf,
    server: Server,
}

impl Containerd {
    pub(super) fn start(directory: &Path) -> anyhow::Result<Self> {
        for program in ["containerd", "ctr"] {
            ensure!(find(program).is_some(), "{program} is not here (apt-get install containerd)");
        }
        emptied(directory)?;
        let shown = directory.display();
        let config = directory.join("config.toml");
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = \"{shown}/socket\"\n"
            ),
        )?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).args(["--log-level", "error"]);
        let ready = || {
            let mut version = Command::new("ctr");
            version.arg("--address").arg(directory.join("socket")).arg("version");
            version.stdout(Stdio::null()).stderr(Stdio::null());
            directory.join("socket").exists() && version.status().is_ok_and(|s| s.success())
        };
        let server = Server::start(&mut command, &directory.join("log"), ready)?;
        Ok(Self { directory: directory.to_owned(), server })
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.join("socket"));
        command.args(["--namespace", "bench"]).args(arguments);
        command
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.server.0.id())
    }
}

impl Peer for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    /// Of the client and of the daemon, and of what that started.
    fn pull(&mut self, reference: &str) -> anyhow::Result<Cost> {
        // 5 resets the mark of the highest memory (proc(5)).
        std::fs::write(self.proc("clear_refs"), "5")?;
        let before = times(&self.proc("stat"), ALL)?;
        let client = run(&mut self.ctr(&["image", "pull", "--plain-http", reference]))?;
        let daemon = times(&self.proc("stat"), ALL)? - before;
        let peak = high_water(&self.proc("status")).context("containerd is gone")?;
        Ok(Cost { wall: client.wall, cpu: client.cpu + daemon, peak_mib: client.peak_mib + peak })
    }

    /// Of the daemon; its client does little.
    fn calls(&mut self, reference: &str) -> anyhow::Result<u64> {
        let summary = self.directory.join("strace");
        let mut strace = Command::new("strace")
            .args(["-f", "-c", "-p", &self.server.0.id().to_string(), "-o"])
            .arg(&summary)
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_secs(1));
        let pulled = run(&mut self.ctr(&["image", "pull", "--plain-http", reference]));
        kill_process(Pid::from_child(&strace), Signal::INT)?;
        strace.wait()?;
        pulled?;
        total(&summary)
    }

    fn forget(&mut self, reference: &str) -> anyhow::Result<()> {
        // Also what a pull that failed left.
        run(&mut self.ctr(&["image", "remove", "--sync", reference]))?;
        let blobs = self.directory.join("root/io.containerd.content.v1.content/blobs/sha256");
        let left = std::fs::read_dir(&blobs).map_or(0, Iterator::count);
        ensure!(left == 0, "containerd keeps {left} blobs, the next pull would not be one");
        Ok(())
    }
}
