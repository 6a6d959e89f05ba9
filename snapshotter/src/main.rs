//! `nacre-snapshotter`: a containerd snapshotter that keeps image layers off the host.
//!
//! A Nacre guest pulls its images itself, so the host has no use for layers, and a host that is not
//! trusted has no business with them. containerd insists on unpacking what it pulls; this program
//! tells it that every layer is there already, and lends containers an empty directory. Left on the
//! host are the manifest and the image's configuration, which CRI wants to read. Where that names its user, the
//! directory has account files in which the name has a number that the guest replaces.
//!
//! It trusts containerd, on whose side of the boundary it runs. It never fetches, unpacks or mounts.

mod accounts;
mod api;
mod filter;
mod images;
mod service;
mod store;
mod usage;

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Parser;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::images::Images;
use crate::service::Service;
use crate::store::Store;
use crate::usage::Usages;

/// Keeps image layers off a containerd host: Nacre's guests pull them by themselves.
#[derive(Debug, Parser)]
#[command(version, after_long_help = HOW_TO)]
struct Arguments {
    /// Directory for the snapshots' records and the empty directories lent to containers.
    #[arg(long, default_value = "/var/lib/nacre/snapshotter")]
    root: PathBuf,
    /// Unix socket to serve on; a stale one is replaced.
    #[arg(long, default_value = "/run/nacre/snapshotter.sock")]
    socket: PathBuf,
    /// Where the shims' run directories are: what containers have written is read there.
    #[arg(long, default_value = nacre_run_directory::RUN_ROOT)]
    run_root: PathBuf,
    /// Where containerd serves; it is asked which users images name. Can be given more than once, and those
    /// that are not there are left out.
    #[arg(long, default_values = CONTAINERD_SOCKETS)]
    containerd: Vec<String>,
    /// What to log on stderr: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log: tracing::Level,
}

/// containerd's own place, and that of K3s and RKE2.
const CONTAINERD_SOCKETS: [&str; 2] =
    ["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"];

const HOW_TO: &str = r#"Start it before containerd, and name it in /etc/containerd/config.toml:

  [proxy_plugins.nacre]
    type = "snapshot"
    address = "/run/nacre/snapshotter.sock"

Then let CRI use it. Containers that run without Nacre find no files in it, so on a node that also
runs others give it to Nacre's runtime only, where containerd can.

containerd 1.6 has one snapshotter for all of CRI (a node for Nacre pods only):
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "nacre"
    disable_snapshot_annotations = false

containerd 1.7, for one runtime (pods need the annotation "io.containerd.cri.runtime-handler: nacre",
or their images are pulled for the general snapshotter; otherwise set it for all as with 1.6):
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nacre]
    snapshotter = "nacre"

containerd 2.x (version = 3), for one runtime (same annotation):
  [proxy_plugins.nacre]
    type = "snapshot"
    address = "/run/nacre/snapshotter.sock"
    platform = "linux/amd64"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre]
    snapshotter = "nacre"
  [plugins.'io.containerd.cri.v1.images'.runtime_platforms.nacre]
    platform = "linux/amd64"
    snapshotter = "nacre"
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux/amd64"
    snapshotter = "nacre"
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux/amd64"
    snapshotter = "overlayfs"

By hand: ctr image pull --snapshotter nacre IMAGE; ctr run --snapshotter nacre ...
(ctr of containerd 1.6 fetches layers before it asks; what it unpacks is dropped at once.)
See that it works: after a pull by CRI, `ctr -n k8s.io content ls` shows a manifest and a config, and
no layers. After a restart of this program containerd's first call may fail and the next succeeds."#;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // What is made here is for root alone, unless said otherwise.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // One thread: the store answers one request at a time, and a record must be on disk before the answer.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(&arguments))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let store = Store::open(&arguments.root)
        .with_context(|| format!("failed to open the snapshots in {}", arguments.root.display()))?;
    let listener = listen(&arguments.socket)
        .await
        .with_context(|| format!("failed to listen on {}", arguments.socket.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let count = store.len();
    let listener = Arc::new(listener);
    let connections = futures_util::stream::unfold(listener, |listener| async move {
        let connection = listener.accept().await.map(|(stream, _)| stream);
        Some((connection, listener))
    });
    let usages = Usages::new(arguments.run_root.clone());
    let service = Service::new(store, usages, Images::new(arguments.containerd.clone()));
    tracing::info!(socket = %arguments.socket.display(), snapshots = count, "ready");
    tonic::transport::Server::builder()
        .serve_with_incoming_shutdown(SnapshotsServer::new(service), connections, async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
        .context("failed to serve")?;
    std::fs::remove_file(&arguments.socket)
        .with_context(|| format!("failed to remove {}", arguments.socket.display()))?;
    tracing::info!("stopped");
    Ok(())
}

/// Binds the socket, in place of one that nobody listens on any more.
async fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("it exists and is not a socket; give another --socket or remove it");
        }
        Ok(_) => {
            if UnixStream::connect(socket).await.is_ok() {
                bail!("another process listens on it; stop that, or give another --socket");
            }
            std::fs::remove_file(socket)?;
        }
    }
    Ok(UnixListener::bind(socket)?)
}
