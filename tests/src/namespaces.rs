//! A set of namespaces (processes, mounts, network, control groups) that dies with the process that made it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::control_groups::ControlGroups;
use crate::world::PATIENCE;

/// Enters the control groups that are its arguments, makes them roots, moves on to the daemons' within them, and
/// becomes what starts the first process.
const KEEPER: &str = r#"set -e
for group; do echo 0 >"$group/cgroup.procs"; done
exec unshare --cgroup sh -ec '
for group; do echo 0 >"$group/daemons/cgroup.procs"; done
exec unshare --pid --fork --kill-child --mount --net --mount-proc sh -c "$WORLD_INIT" sh "$@"
' sh "$@"
"#;

/// What the first process does: prepare, say so, then reap orphans for ever.
const INIT: &str = r#"set -e
mount -t tmpfs -o mode=755 nacre-world /run
mkdir -p /var/lib/cni /run/netns /run/lock /run/world
mount -t tmpfs -o mode=755 nacre-world /var/lib/cni
mount --bind /run/netns /run/netns
mount --make-shared /run/netns
# The world's control groups take the place of the host's.
mkdir /run/groups
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t tmpfs -o mode=755 nacre-world /run/groups
  for entry in /sys/fs/cgroup/*; do
    if [ -h "$entry" ]; then cp -P "$entry" /run/groups/; fi
  done
fi
for group; do
  place=${group%/*}
  place=/run/groups${place#/sys/fs/cgroup}
  mkdir -p "$place"
  mount --bind "$group" "$place"
done
umount --recursive /sys/fs/cgroup
mount --move /run/groups /sys/fs/cgroup
rmdir /run/groups
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  for controller in cpu memory pids io; do
    { echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; } 2>/dev/null || :
  done
fi
ip link set lo up
# An address of its own: else it takes the lowest of its ports', and each pod that goes may change it.
ip link add cni0 address 02:00:0a:58:00:01 type bridge
ip addr add 10.88.0.1/16 dev cni0
ip -6 addr add fd00:88::1/64 dev cni0 nodad
ip link set cni0 up
touch /run/world/ready
while :; do sleep 86400 & wait $!; done
"#;

/// Becomes the program that its arguments name, in the daemons' control groups.
const IN_DAEMONS_GROUPS: &str = r#"
for group in /sys/fs/cgroup/daemons /sys/fs/cgroup/*/daemons; do
  if [ -d "$group" ]; then echo 0 >"$group/cgroup.procs" || exit 1; fi
done
exec "$@"
"#;

/// A process inside, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id outside, to send signals to.
    pub pid: i32,
    /// Its id inside.
    pub inner_pid: i32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its command line, words separated by spaces.
    pub command: String,
}

/// The namespaces. Dropping them ends every process inside and all their mounts.
#[derive(Debug)]
pub(crate) struct Namespaces {
    keeper: Child,
    init: i32,
    /// After the keeper: they go when nobody is in them.
    _groups: ControlGroups,
}

impl Namespaces {
    /// Makes them, with a bridge `cni0` (10.88.0.1/16, `fd00:88::1/64`) and an empty `/run` of its own.
    ///
    /// They live no longer than the calling thread, unless `outlive` is set: then in a session of their
    /// own, which a terminal does not end. `name` is that of their control groups.
    pub(crate) fn create(name: &str, log: &Path, outlive: bool) -> anyhow::Result<Namespaces> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "this needs root (namespaces, VMs): use sudo"
        );
        let mut command = Command::new("setsid");
        if !outlive {
            command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]);
        }
        let groups = ControlGroups::make(name)?;
        command
            .args(["sh", "-c", KEEPER, "sh"])
            .args(groups.directories())
            .env("WORLD_INIT", INIT)
            .stdin(Stdio::null())
            .stdout(File::create(log)?)
            .stderr(fs::OpenOptions::new().append(true).open(log)?);
        let mut keeper =
            command.spawn().context("failed to run setpriv or setsid (package util-linux)")?;
        let started = Instant::now();
        loop {
            if let Some(status) = keeper.try_wait()? {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("failed to make namespaces: {status}: {}", said.trim());
            }
            if let Some(init) = only_child(keeper.id())
                && Path::new(&format!("/proc/{init}/root/run/world/ready")).exists()
            {
                return Ok(Namespaces { keeper, init, _groups: groups });
            }
            if started.elapsed() > PATIENCE {
                let _ = keeper.kill();
                let _ = keeper.wait();
                bail!("namespaces are not ready; see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The first process inside, by its id outside.
    pub(crate) fn init(&self) -> i32 {
        self.init
    }

    /// The process whose end ends all inside.
    pub(crate) fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    /// Where a path inside is to be found from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.init.to_string();
        command
            .args(["--target", &target, "--pid", "--mount", "--net", "--cgroup", "--"])
            .arg(program);
        command
    }

    /// A command that will run inside, as a daemon of the world: what it starts is in the world's control groups.
    pub(crate) fn daemon(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", IN_DAEMONS_GROUPS, "sh"]).arg(program);
        command
    }

    /// Runs a command inside and returns its output; an error if it fails.
    pub(crate) fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words[0]).args(&words[1..]).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed: {}", words.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Does something in the network inside, for example makes a socket, which stays there.
    pub(crate) fn in_network<T: Send>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> std::io::Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.init))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// All processes inside but the first one and its sleep.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let ours = fs::read_link(format!("/proc/{}/ns/pid", self.init))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let same = fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == ours);
            if !same || pid == self.init {
                continue;
            }
            // A process may end while it is looked at.
            if let Some(process) = describe(pid)
                && !(process.name == "sleep" && process.command == "sleep 86400")
            {
                found.push(process);
            }
        }
        Ok(found)
    }

    /// Sends a signal to a process inside.
    pub(crate) fn kill(&self, process: &Process, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(process.pid).context("a process has an id")?;
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("failed to kill {}", process.command))
    }

    /// What is mounted inside: mount point and type.
    pub(crate) fn mounts(&self) -> anyhow::Result<BTreeSet<String>> {
        let text = fs::read_to_string(format!("/proc/{}/mountinfo", self.init))?;
        let describe = |line: &str| {
            let (left, right) = line.split_once(" - ")?;
            Some(format!("{} ({})", left.split(' ').nth(4)?, right.split(' ').next()?))
        };
        Ok(text.lines().filter_map(describe).collect())
    }

    /// Names of the network interfaces inside.
    pub(crate) fn links(&self) -> anyhow::Result<BTreeSet<String>> {
        let text = self.run(&["ip", "-o", "link"])?;
        Ok(text.lines().filter_map(|l| l.split(": ").nth(1)).map(str::to_owned).collect())
    }

    /// Ends everything inside and waits for it.
    pub(crate) fn end(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        // The kernel kills the rest with the first process; its entry goes when all are gone.
        let started = Instant::now();
        while Path::new(&format!("/proc/{}", self.init)).exists() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn only_child(pid: u32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn describe(pid: i32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
    Some(Process {
        pid,
        inner_pid: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
        name: field("Name:")?.to_owned(),
        command,
    })
}
