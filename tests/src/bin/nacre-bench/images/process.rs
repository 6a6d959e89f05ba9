//! Runs programs and says what they needed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// What some work needed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Seconds.
    pub(super) wall: f64,
    /// Seconds of user and system time, of all processes.
    pub(super) cpu: f64,
    /// Most resident memory.
    pub(super) peak_mib: f64,
}

impl Cost {
    /// One after the other.
    pub(super) fn then(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            peak_mib: self.peak_mib.max(next.peak_mib),
        }
    }
}

/// Where a program is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.exists())
}

/// Runs a program to its end. CPU time is that of the program and of the children it waited for, to
/// 10 ms; memory that of the program itself.
pub(super) fn run(command: &mut Command) -> anyhow::Result<Cost> {
    let before = times("/proc/self/stat", CHILDREN)?;
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run {command:?}"))?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak_mib = 0.0;
    let ended = loop {
        // The mark of the highest memory only rises, so the last one that is seen is the highest.
        peak_mib = high_water(&status).unwrap_or(peak_mib);
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall = begin.elapsed().as_secs_f64();
    if !ended.success() {
        bail!("{command:?} failed: {}", said(&mut child));
    }
    Ok(Cost { wall, cpu: times("/proc/self/stat", CHILDREN)? - before, peak_mib })
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut errors) = child.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut errors, &mut text);
    }
    text.trim().chars().rev().take(500).collect::<Vec<_>>().into_iter().rev().collect()
}

/// Which times of `/proc/PID/stat` count: proc(5) numbers utime, stime, cutime and cstime 14 to 17.
pub(super) const ALL: std::ops::Range<usize> = 14..18;
const CHILDREN: std::ops::Range<usize> = 16..18;

/// Seconds of CPU time.
pub(super) fn times(path: &str, fields: std::ops::Range<usize>) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(path)?;
    // The name, second, may hold anything; the fields behind it are numbered from 3.
    let (_, after) = stat.rsplit_once(')').context("no name in it")?;
    let all: Vec<f64> = after.split_whitespace().map(|f| f.parse().unwrap_or_default()).collect();
    let wanted = all.get(fields.start - 3..fields.end - 3).context("too few fields")?;
    Ok(wanted.iter().sum::<f64>() / 100.0)
}

/// The most memory that a process had, in MiB.
pub(super) fn high_water(status: &str) -> Option<f64> {
    let status = std::fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}

/// System calls of a program and all that it starts.
pub(super) fn calls(command: &Command, summary: &Path) -> anyhow::Result<u64> {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-c", "-o"]).arg(summary).arg("--").arg(command.get_program());
    traced.args(command.get_args());
    run(&mut traced)?;
    total(summary)
}

/// The sum in what `strace -c` writes.
pub(super) fn total(summary: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(summary)?;
    let line = text.lines().find(|line| line.trim_end().ends_with(" total"));
    let calls = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls.with_context(|| format!("strace wrote no sum: {text}"))
}

/// A server that ends with the bench.
pub(super) struct Server(pub(super) Child);

impl Server {
    pub(super) fn start(
        command: &mut Command,
        log: &Path,
        ready: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let log_file = std::fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("failed to run {command:?}"))?;
        let mut server = Self(child);
        let begin = Instant::now();
        while !ready() {
            let text = || std::fs::read_to_string(log).unwrap_or_default();
            ensure!(server.0.try_wait()?.is_none(), "{command:?} ended: {}", text());
            ensure!(begin.elapsed() < Duration::from_secs(30), "{command:?} hangs: {}", text());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            if self.0.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
