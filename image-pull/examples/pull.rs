//! Pulls one image and prints what that cost, as one line of JSON: seconds of wall clock and CPU, peak
//! resident memory. For measurements: `pull REFERENCE DIRECTORY [--plain-http] [--ca FILE]`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nacre_image_pull::{Progress, PullConfig, Puller, Registries};

fn main() {
    if let Err(error) = run() {
        eprintln!("pull: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: pull REFERENCE DIRECTORY [--plain-http] [--ca FILE]";
    let (reference, store) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let mut registries = Registries::default();
    while let Some(option) = arguments.next() {
        match option.as_str() {
            "--plain-http" => {
                let host = reference.split('/').next().unwrap_or_default();
                registries.danger_plain_http.push(host.to_owned());
            }
            "--ca" => registries.ca_file = Some(PathBuf::from(arguments.next().ok_or(usage)?)),
            _ => return Err(usage.into()),
        }
    }
    // As the guest's agent does it: one thread for everything but the layers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Instant::now();
    let puller = Puller::new(PullConfig { registries, ..PullConfig::new(store) })?;
    let last = Arc::new(Mutex::new(Progress::default()));
    let seen = last.clone();
    let report = move |progress| *seen.lock().expect("no panic under lock") = progress;
    let image = runtime.block_on(puller.pull(&reference, report))?;
    let wall = begun.elapsed().as_secs_f64();
    let Progress { layers, bytes, .. } = *last.lock().expect("no panic under lock");
    let (cpu, rss) = (cpu_seconds()?, peak_rss_kib()?);
    println!(
        r#"{{"wall_s":{wall:.3},"cpu_s":{cpu:.2},"peak_rss_kib":{rss},"layers":{layers},"bytes":{bytes},"manifest":"{}"}}"#,
        image.manifest_digest
    );
    // What was pulled stays for whoever looks at it: a dropped image takes its layers along.
    std::process::exit(0);
}

/// User and system time of this process, from `/proc/self/stat` (proc(5), fields 14 and 15, in ticks of
/// 10 ms).
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after) = stat.rsplit_once(')').ok_or("/proc/self/stat has another form")?;
    let mut fields = after.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default();
    Ok((ticks() + ticks()) / 100.0)
}

/// `VmHWM` of this process, in KiB.
fn peak_rss_kib() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
