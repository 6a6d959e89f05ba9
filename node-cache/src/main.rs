//! `nacre-cache`: the node's cache of image blobs, and how to ask it for its numbers.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nacre_cache::{Config, ConfigError, DEFAULT_PATH, Server, ask_for_statistics};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Most threads that wait for the disk.
const DISK_THREADS: usize = 64;
/// How long the end may take: a blob that is being written to the disk.
const FAREWELL: Duration = Duration::from_secs(5);

const TEACHING: &str = "\
Without a command, the daemon runs until SIGTERM or SIGINT. One a node, started before its pods: a \
pod finds it when its virtual machine starts, or does without it.

  # /etc/nacre/cache.toml; every key may be left out
  max_bytes = 21474836480            # of the daemon's own blobs, for each namespace
  containerd_content = []            # serve nothing from containerd's store
  [namespaces]
  allow = [\"k8s.io\", \"default\"]      # whose pods are served
  containerd = [\"k8s.io\"]            # whose pods get blobs from containerd's store
  shared = false                     # one store for all namespaces

The shim looks for the daemon at `[cache] socket` of /etc/nacre/config.toml. A guest trusts the \
daemon with nothing: it hashes what it gets, and asks the registry for what does not come or is \
wrong. The daemon, and so this host, learns which digests a pod asks for, their sizes and when. It \
sees no image names, no credentials, and no plain layer that needed credentials.

To empty the cache, stop the daemon and remove /var/lib/nacre/cache.";

/// Node cache of image blobs: serves guests blobs by digest, so that many pods of one image cost one download.
#[derive(Parser)]
#[command(version, about, after_help = TEACHING, disable_help_subcommand = true)]
struct Arguments {
    /// Configuration. Without this option the default file may be absent.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the counters of the daemon that runs.
    Stats {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reads the configuration, says what is wrong with it, and does nothing.
    Check,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-cache: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configuration(arguments.config.as_deref())?;
    match arguments.command {
        None => serve(&config),
        Some(Command::Check) => Ok(()),
        Some(Command::Stats { json }) => {
            let statistics = ask_for_statistics(&config.socket)?;
            if json {
                println!("{}", serde_json::to_string(&statistics)?);
            } else {
                println!("{statistics}");
            }
            Ok(())
        }
    }
}

fn configuration(named: Option<&Path>) -> Result<Config, ConfigError> {
    match (named, Config::read(named.unwrap_or(Path::new(DEFAULT_PATH)))) {
        (None, Err(ConfigError::Read { cause, .. }))
            if cause.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(Config::default())
        }
        (_, read) => read,
    }
}

fn serve(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("log is not a log filter")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // A guest's gets hold a file each.
    let files = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: files.maximum, maximum: files.maximum };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!("the limit of open files stays as it is: {errno}");
    }
    // One thread answers, others wait for the disk.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .build()?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::bind(config)?;
        let end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        server.run(end).await;
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(FAREWELL);
    served
}
