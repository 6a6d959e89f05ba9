//! What pulling an image costs: Nacre's engine, skopeo with umoci, containerd; one registry, one tmpfs,
//! one run, interleaved.

mod content;
mod peers;
mod process;
mod registry;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::median;
use content::Made;
use peers::{Containerd, Nacre, Peer, Umoci};
use process::Cost;
use registry::Registry;

/// How the bench is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the table shows medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print everything that was measured as JSON
    #[arg(long)]
    json: bool,
    /// Nacre's engine as a program: example `pull` of nacre-image-pull, from a release build
    #[arg(long)]
    puller: Option<PathBuf>,
    /// Do not count system calls
    #[arg(long)]
    no_strace: bool,
}

/// A tmpfs that goes with the bench.
struct Room(PathBuf);

impl Room {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("nacre-bench-images-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"mode=755,size=4g")
            .context("failed to mount a tmpfs; the bench needs root")?;
        Ok(Self(path))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What one peer needed for one image.
struct Samples {
    peer: &'static str,
    image: &'static str,
    costs: Vec<Cost>,
    /// System calls, from a run of their own.
    calls: Option<u64>,
    /// Why there is nothing.
    problem: Option<String>,
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<String> {
    let puller = match &arguments.puller {
        Some(path) => path.clone(),
        None => {
            let this = std::env::current_exe()?;
            this.parent().context("no directory")?.join("examples/pull")
        }
    };
    ensure!(
        puller.exists(),
        "{} is not there; build it by `cargo build --release -p nacre-image-pull --example pull`",
        puller.display()
    );
    // Dropped in the opposite order: the servers before the room they are in.
    let room = Room::make()?;
    let registry = Registry::start(&room.0.join("registry"))?;
    eprintln!("making the images");
    let images = content::make()?;
    for image in &images {
        registry.push(image)?;
    }
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Nacre::new(puller, room.0.join("nacre")))];
    for peer in [
        Umoci::find(room.0.join("umoci")).map(|peer| Box::new(peer) as Box<dyn Peer>),
        Containerd::start(&room.0.join("containerd")).map(|peer| Box::new(peer) as Box<dyn Peer>),
    ] {
        match peer {
            Ok(peer) => peers.push(peer),
            Err(problem) => eprintln!("SKIPPED: {problem:#}"),
        }
    }
    let samples = sample(arguments, &registry, &images, &mut peers)?;
    Ok(if arguments.json {
        serde_json::to_string_pretty(&report(&samples, &images))?
    } else {
        table(&samples, &images, arguments.runs)
    })
}

fn sample(
    arguments: &Arguments,
    registry: &Registry,
    images: &[Made],
    peers: &mut [Box<dyn Peer>],
) -> anyhow::Result<Vec<Samples>> {
    let mut samples = Vec::new();
    for image in images {
        for peer in &mut *peers {
            // The first pull warms caches; if it fails, there is nothing to measure.
            let reference = registry.reference(image);
            let problem = peer.pull(&reference).err().map(|problem| format!("{problem:#}"));
            peer.forget(&reference)?;
            if let Some(problem) = &problem {
                eprintln!("{} cannot pull {}: {problem}", peer.name(), image.name);
            }
            let (peer, image) = (peer.name(), image.name);
            samples.push(Samples { peer, image, costs: Vec::new(), calls: None, problem });
        }
    }
    for run in 1..=arguments.runs {
        eprintln!("run {run} of {}", arguments.runs);
        each(&mut samples, registry, images, peers, |peer, reference, samples| {
            samples.costs.push(peer.pull(reference)?);
            Ok(())
        })?;
    }
    if !arguments.no_strace && process::find("strace").is_none() {
        eprintln!("SKIPPED: system calls are not counted without strace (apt-get install strace)");
    } else if !arguments.no_strace {
        eprintln!("counting system calls");
        each(&mut samples, registry, images, peers, |peer, reference, samples| {
            samples.calls = Some(peer.calls(reference)?);
            Ok(())
        })?;
    }
    Ok(samples)
}

/// Lets each peer do something with each image that it can pull, and forget it.
fn each(
    samples: &mut [Samples],
    registry: &Registry,
    images: &[Made],
    peers: &mut [Box<dyn Peer>],
    mut work: impl FnMut(&mut dyn Peer, &str, &mut Samples) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let pairs = images.iter().flat_map(|image| (0..peers.len()).map(move |peer| (image, peer)));
    let pairs: Vec<_> = pairs.collect();
    for ((image, peer), samples) in pairs.into_iter().zip(samples) {
        if samples.problem.is_none() {
            let reference = registry.reference(image);
            work(&mut *peers[peer], &reference, samples)?;
            peers[peer].forget(&reference)?;
        }
    }
    Ok(())
}

impl Samples {
    fn median(&self, value: fn(&Cost) -> f64) -> f64 {
        median(&self.costs.iter().map(value).collect::<Vec<_>>())
    }
}

fn entries(images: &[Made], name: &str) -> f64 {
    let image = images.iter().find(|image| image.name == name);
    image.map_or(f64::NAN, |image| f64::from(image.entries))
}

fn megabytes(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "image sizes are far below 2^52")]
    let bytes = bytes as f64;
    bytes / 1e6
}

fn table(samples: &[Samples], images: &[Made], runs: u32) -> String {
    let mut table = String::new();
    for image in images {
        let _ = writeln!(
            table,
            "{}: {:.0} MB packed, {:.0} MB unpacked, {} layers, {} entries; medians of {runs}\n",
            image.name,
            megabytes(image.packed()),
            megabytes(image.unpacked),
            image.layers.len(),
            image.entries
        );
        table += "| | wall s | x | CPU s | x | peak MiB | x | system calls / entry |\n";
        table += "|---|---|---|---|---|---|---|---|\n";
        let mut ours: Option<[f64; 3]> = None;
        for samples in samples.iter().filter(|samples| samples.image == image.name) {
            if samples.problem.is_some() {
                let _ = writeln!(table, "| {} | cannot pull it | | | | | | |", samples.peer);
                continue;
            }
            let values = [|c: &Cost| c.wall, |c: &Cost| c.cpu, |c: &Cost| c.peak_mib]
                .map(|f| samples.median(f));
            let ours = *ours.get_or_insert(values);
            let _ = write!(table, "| {} |", samples.peer);
            for ((value, ours), digits) in values.into_iter().zip(ours).zip([2, 2, 0]) {
                let _ = write!(table, " {value:.digits$} | {:.1} |", value / ours);
            }
            let calls = samples.calls.map_or("-".to_owned(), |calls| {
                #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
                let each = calls as f64 / entries(images, image.name);
                format!("{each:.1}")
            });
            let _ = writeln!(table, " {calls} |");
        }
        table.push('\n');
    }
    table
}

fn report(samples: &[Samples], images: &[Made]) -> Value {
    let images: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({
                "image": image.name,
                "packed_bytes": image.packed(),
                "unpacked_bytes": image.unpacked,
                "layers": image.layers.len(),
                "entries": image.entries,
            })
        })
        .collect();
    let samples: Vec<Value> = samples
        .iter()
        .map(|samples| {
            let all = |value: fn(&Cost) -> f64| samples.costs.iter().map(value).collect::<Vec<_>>();
            json!({
                "peer": samples.peer,
                "image": samples.image,
                "wall_s": all(|c| c.wall),
                "cpu_s": all(|c| c.cpu),
                "peak_mib": all(|c| c.peak_mib),
                "system_calls": samples.calls,
                "problem": samples.problem,
            })
        })
        .collect();
    json!({ "images": images, "samples": samples })
}

/// An empty directory, whatever was there.
fn emptied(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path)
            .with_context(|| format!("failed to remove {}", path.display()))?;
    }
    std::fs::create_dir_all(path).with_context(|| format!("failed to make {}", path.display()))
}
