//! `nacre-bench`: figures for docs/specification.md, as Markdown.

mod images;
mod secrets;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};
use nacre_tests::{Image, Products, World, container};

/// Measures Nacre on this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How long a pod takes to start, against a bare boot of the same kernel; and memory.
    Start {
        /// How often each is measured; the table shows medians.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// What a secret adds to the start of a pod, its broker on the same host.
    Secrets {
        /// How often each is measured; the table shows medians.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// What pulling an image costs, against skopeo with umoci and containerd.
    Images(images::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let table = match Arguments::parse().what {
        What::Images(arguments) => images::measure(&arguments)?,
        What::Start { runs } => {
            let world = World::new().await?;
            measure(&world, runs).await.inspect_err(|_| world.show_logs())?
        }
        What::Secrets { runs } => {
            let world = World::new().await?;
            secrets::measure(&world, runs).await.inspect_err(|_| world.show_logs())?
        }
    };
    println!("{table}");
    Ok(())
}

/// Milliseconds, by what they were spent on.
type Samples = BTreeMap<String, Vec<f64>>;

async fn measure(world: &World, runs: u32) -> anyhow::Result<String> {
    let image = world.push(&Image::busybox("bench"))?;
    // A first pod warms the page cache, and shows how the VM is launched.
    let bare = warm_up(world, &image).await?;
    let mut samples = Samples::new();
    let mut memory = Samples::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        let time = bare.boot().context("the bare boot failed")?;
        samples.entry("bare boot".into()).or_default().push(time);
        one_pod(world, &image, run, &mut samples, &mut memory).await?;
    }
    report(world, &samples, &memory, runs)
}

async fn warm_up(world: &World, image: &str) -> anyhow::Result<BareBoot> {
    let pod = world.pod("warm-up").with(container("app", image).script("echo up")).await?;
    let app = pod.start("app").await?;
    app.wait_for("up").await?;
    let machine = world.virtual_machines()?.into_iter().next().context("no VM runs")?;
    let command = fs::read(format!("/proc/{}/cmdline", machine.pid))?;
    let words: Vec<String> = command
        .split(|b| *b == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    pod.stop().await?;
    pod.remove().await?;
    BareBoot::like(&words, world.products(), world.logs())
}

/// Phases that are a part of others: of `boot` and of `create`.
const NESTED: [&str; 3] = [": kernel", ": agent", ": pull"];

async fn one_pod(
    world: &World,
    image: &str,
    run: u32,
    samples: &mut Samples,
    memory: &mut Samples,
) -> anyhow::Result<()> {
    let mut note = |what: &str, started: Instant| {
        let time = started.elapsed().as_secs_f64() * 1000.0;
        samples.entry(what.to_owned()).or_default().push(time);
    };
    let logged = world.containerd_log()?.len();
    let app = container("app", image).script("echo up; exec sleep 1000");
    // The policy is the owner's work, done before.
    let pod = world.pod(&format!("bench-{run}")).with(app).with_policy()?;
    let started = Instant::now();
    let pod = pod.await?;
    let ready = started.elapsed().as_secs_f64() * 1000.0;
    note("RunPodSandbox to ready", started);
    let started = Instant::now();
    let app = pod.start("app").await?;
    app.wait_for("up").await?;
    note("CreateContainer to first output byte", started);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (name, process) in [
        ("shim", world.shims()?.into_iter().next()),
        ("QEMU", world.virtual_machines()?.into_iter().next()),
    ] {
        let process = process.with_context(|| format!("no {name} runs"))?;
        memory.entry(format!("{name} RSS")).or_default().push(resident_mib(process.pid)?);
    }
    let log = world.containerd_log()?;
    let mut outside = ready;
    for (name, time) in phases(log.get(logged..).unwrap_or_default(), pod.id(), app.id()) {
        if !name.starts_with("phase container") && !NESTED.iter().any(|n| name.ends_with(n)) {
            outside -= time;
        }
        samples.entry(name).or_default().push(time);
    }
    let rest = "phase pod: outside the others (containerd, CNI, start of the shim)";
    samples.entry(rest.to_owned()).or_default().push(outside);
    pod.stop().await?;
    pod.remove().await?;
    let left = world.leftovers().await?;
    ensure!(left.is_empty(), "the pod left something behind: {left:?}");
    Ok(())
}

/// The shim's `start report:` lines of one pod: `sandbox=<id> container=<id or -> phase=<..> ms=<..>`.
fn phases(log: &str, sandbox: &str, container: &str) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for line in log.lines() {
        let Some((_, report)) = line.split_once("start report: ") else { continue };
        let field = |name: &str| {
            let (_, value) = report.split_once(&format!("{name}="))?;
            value.split([' ', '"', '\\']).next()
        };
        let (Some(of), Some(phase)) = (field("container"), field("phase")) else { continue };
        let time = field("ms").and_then(|ms| ms.parse().ok());
        if field("sandbox") != Some(sandbox) {
            continue;
        }
        if let Some(time) = time {
            let whose = match of {
                "-" => "pod",
                id if id == container => "container",
                _ => "pause",
            };
            found.push((format!("phase {whose}: {phase}"), time));
        }
    }
    found
}

/// A boot of the same kernel by the same QEMU, with nothing in it.
struct BareBoot {
    qemu: PathBuf,
    options: Vec<String>,
}

/// Options that the bare boot takes over from a pod's VM, each with its value.
const SHARED_OPTIONS: [&str; 11] = [
    "-M",
    "-machine",
    "-accel",
    "-cpu",
    "-m",
    "-smp",
    "-L",
    "-kernel",
    "-append",
    "-object",
    "-overcommit",
];
/// What the trivial init says.
const UP: &str = "the bare guest is up";

impl BareBoot {
    fn like(pod: &[String], products: &Products, directory: &Path) -> anyhow::Result<BareBoot> {
        let initrd = directory.join("bare.cpio");
        fs::write(&initrd, bare_initrd()?)?;
        let mut options = Vec::new();
        for pair in pod.windows(2) {
            if SHARED_OPTIONS.contains(&pair[0].as_str()) {
                options.extend_from_slice(pair);
            }
        }
        ensure!(
            options.iter().any(|o| o == "-kernel"),
            "the pod's VM has another command line: {pod:?}"
        );
        let fixed = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "stdio,id=console",
            "-device",
            "virtconsole,chardev=console",
            "-initrd",
        ];
        options.extend(fixed.map(str::to_owned));
        options.push(initrd.display().to_string());
        Ok(BareBoot { qemu: products.qemu(), options })
    }

    /// Milliseconds from the start of QEMU to init's line.
    fn boot(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut child = Command::new(&self.qemu)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("failed to run {}", self.qemu.display()))?;
        let output = child.stdout.take().context("stdout was asked for")?;
        let mut lines = BufReader::new(output).lines();
        let found = lines.any(|line| line.is_ok_and(|line| line.contains(UP)));
        let time = started.elapsed().as_secs_f64() * 1000.0;
        let _ = child.kill();
        child.wait()?;
        if !found {
            bail!("QEMU ended before the guest was up: {:?}", self.options);
        }
        Ok(time)
    }
}

/// A newc archive with BusyBox and an init that says one line.
fn bare_initrd() -> anyhow::Result<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").context("package busybox-static is not here")?;
    let init = format!("#!/bin/busybox sh\necho {UP}\n/bin/busybox poweroff -f\n");
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o40755, (0, 0), &[]);
    entry(&mut archive, "dev", 0o40755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o20600, (5, 1), &[]);
    entry(&mut archive, "bin/busybox", 0o100_755, (0, 0), &busybox);
    entry(&mut archive, "init", 0o100_755, (0, 0), init.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive)
}

/// One newc entry: header, name and content, padded to four bytes each.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let mut header = String::from("070701");
    let (size, name_size) = (content.len(), name.len() + 1);
    // inode, mode, uid, gid, links, mtime, size, dev major and minor, rdev, name size, checksum
    let _ = write!(header, "{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}", archive.len(), 0, 0, 1, 0);
    let _ = write!(header, "{size:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, device.0, device.1);
    let _ = write!(header, "{name_size:08x}{:08x}", 0);
    for part in [[header.as_bytes(), name.as_bytes(), b"\0"].concat().as_slice(), content] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

/// Resident memory of a process in MiB.
fn resident_mib(pid: i32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

fn report(world: &World, samples: &Samples, memory: &Samples, runs: u32) -> anyhow::Result<String> {
    let mut table = format!("| medians of {runs} | ms |\n|---|---|\n");
    for (name, times) in samples {
        let _ = writeln!(table, "| {name} | {:.0} |", median(times));
    }
    let ratio = median(&samples["RunPodSandbox to ready"]) / median(&samples["bare boot"]);
    let _ = writeln!(table, "| sandbox ready / bare boot | {ratio:.2} x |");
    let _ = writeln!(table, "\n| size | MiB |\n|---|---|");
    for (name, sizes) in memory {
        let _ = writeln!(table, "| {name} | {:.1} |", median(sizes));
    }
    for (name, path) in
        [("initrd", world.products().initrd()), ("vmlinux", world.products().kernel())]
    {
        #[allow(clippy::cast_precision_loss, reason = "file sizes are far below 2^52")]
        let size = fs::metadata(&path)?.len() as f64 / f64::from(1 << 20);
        let _ = writeln!(table, "| {name} | {size:.1} |");
    }
    Ok(table)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
