//! The agent of a Nacre guest: process 1 of the VM. It serves the agent API to the host, pulls images
//! and runs containers.
//!
//! It trusts the measured guest image and kernel command line, and nobody else. Each request of the
//! host is checked before anything is done; what the host says cannot name a path, a device or a
//! kernel setting outside of what a pod owns.
//!
//! The pod's policy judges every request first: a handler takes what the policy allowed, and nothing
//! else. One that is handed a request as it came does not compile:
//!
//! ```compile_fail,E0308
//! # use nacre_agent::{RpcError, Sandbox, containers};
//! # use nacre_protocol::agent::StartContainerRequest;
//! async fn forgets_the_policy(
//!     sandbox: &Sandbox,
//!     request: StartContainerRequest,
//! ) -> Result<(), RpcError> {
//!     containers::start(sandbox, &request).await?;
//!     Ok(())
//! }
//! ```
//!
//! The same with a request that went through the gate does:
//!
//! ```
//! # use std::sync::Arc;
//! # use nacre_agent::{RpcError, Sandbox, containers};
//! # use nacre_policy::Gate;
//! # use nacre_protocol::agent::StartContainerRequest;
//! async fn asks_the_policy(
//!     gate: &Arc<Gate>,
//!     sandbox: &Sandbox,
//!     request: StartContainerRequest,
//! ) -> Result<(), RpcError> {
//!     if let Ok(allowed) = gate.judge(request) {
//!         containers::start(sandbox, &allowed).await?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! And nobody but the gate can say that a request was allowed:
//!
//! ```compile_fail,E0451
//! # use std::sync::Arc;
//! # use nacre_policy::{Gate, PolicyAllowed};
//! fn forges(gate: Arc<Gate>) -> PolicyAllowed {
//!     PolicyAllowed { gate, pending: Default::default() }
//! }
//! ```

mod boot;
mod cgroup;
mod clock;
mod container;
mod copy_file;
mod debug_shell;
mod device_policy;
mod devices;
mod disk;
mod entropy;
mod error;
mod host_visible;
mod images;
mod initdata;
mod launcher;
mod lockdown;
mod modules;
mod network;
mod node_cache;
mod oci;
mod oom;
mod pod_volumes;
mod policy;
mod port;
mod ports;
mod process;
#[allow(unsafe_code)]
mod raw;
mod reaper;
mod rpc;
mod sandbox;
mod seal;
mod secrets;
mod start_report;
mod storage;
mod streams;
mod tee;
mod transport;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nacre_protocol::agent_ttrpc::create_agent_service;
use nacre_protocol::health_ttrpc::create_health;
use nacre_protocol::ports_ttrpc::create_ports;
use nacre_protocol::start_report::{HOST_VISIBLE, Phase};

use crate::boot::Boot;
use crate::devices::{Kind, Machine};
use crate::images::Images;
use crate::modules::{ModuleError, Modules};
use crate::network::Network;
use crate::ports::Ports;
use crate::reaper::Reaper;
use crate::rpc::Agent;
use crate::secrets::Secrets;
use crate::storage::{GuestStorage, Volumes};

pub use error::RpcError;
pub use rpc::{Allowed, containers};
pub use sandbox::Sandbox;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == launcher::ARGUMENT) {
        return launcher::run();
    }
    if std::process::id() != 1 {
        eprintln!("nacre-agent is the first process of a Nacre guest and runs nowhere else");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        eprintln!("nacre-agent: {error:#}");
    }
    boot::power_off();
    ExitCode::FAILURE
}

/// Returns only if the guest cannot go on.
fn run() -> anyhow::Result<()> {
    let started = Instant::now();
    let boot = boot::early()?;
    host_visible::log_to_console(&boot.parameters)?;
    // Before anything is loaded, made or believed.
    entropy::check()?;
    let machine = Machine::inspect()?;
    clock::not_before_image()?;
    // One thread: an idle pod costs little, and the kernel's answers to process numbers stay true
    // between two steps of a task.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(boot, machine, started))
}

async fn serve(boot: Boot, machine: Machine, started: Instant) -> anyhow::Result<()> {
    let signals = Reaper::signals().context("failed to watch child processes")?;
    let reaper = Arc::new(Reaper::default());
    let reaping = Arc::clone(&reaper);
    tokio::spawn(async move { reaping.run(signals).await });
    let modules = Modules::new();
    let bound = tee::bind(&machine, &modules, &boot.parameters).await?;
    let (initdata, gate) = (bound.initdata.as_deref(), Arc::clone(&bound.gate));
    let secrets = Arc::new(Secrets::new(initdata, bound.tee.clone(), Arc::clone(&gate))?);
    let storage = GuestStorage::find(&machine, &modules);
    let volumes = Volumes::new(initdata)?;
    volumes.load_drivers(&modules)?;
    load_drivers(&machine, &modules)?;
    let sealed = seal::seal(modules).context("failed to close this guest")?;
    let plain_http = boot.parameters.plain_http;
    let images = Images::new(initdata, plain_http, Arc::clone(&secrets), storage.clone())?;
    let images = Arc::new(images);
    let sandbox = Sandbox::new(reaper, gate, secrets, storage.clone(), images, volumes)?;
    let sandbox = Arc::new(sandbox);
    // Of a failure, the first container's creation tells.
    tokio::spawn(async move { drop(storage.ready().await) });
    let watching = Arc::clone(&sandbox);
    tokio::spawn(async move {
        if let Err(error) = watching.oom.run().await {
            tracing::error!("containers that run out of memory are no longer noticed: {error}");
        }
    });
    let network = Network::open().await?;
    // Before the first container: none of them can take the address.
    secrets::serve(&sandbox).await.context("failed to serve 127.0.0.1:8006 for containers")?;
    debug_shell::offer(Arc::clone(&sandbox.reaper), &sealed);
    let listener = transport::listen(&machine, &sealed).await?;
    let ports = Ports::default();
    let agent = Agent { sandbox: Arc::clone(&sandbox), network, ports, gate: bound.gate };
    let agent = Arc::new(agent);
    let mut server = ttrpc::asynchronous::Server::new()
        .add_listener(listener)
        .register_service(create_agent_service(agent.clone()))
        .register_service(create_ports(agent.clone()))
        .register_service(create_health(agent));
    server.start().await.context("failed to serve")?;
    let warming = Arc::clone(&sandbox);
    tokio::spawn(async move { warming.secrets.warm_up().await });
    sandbox.report.record("-", Phase::Kernel, boot.kernel);
    sandbox.report.record("-", Phase::Agent, started.elapsed());
    sandbox.report.record("-", Phase::Attestation, bound.attestation);
    sandbox.report.record("-", Phase::Policy, bound.policy);
    tracing::info!(
        target: HOST_VISIBLE,
        kernel_ms = milliseconds(boot.kernel),
        agent_ms = milliseconds(started.elapsed()),
        "serving"
    );
    std::future::pending().await
}

/// Loads what requests will need: later there is no loading.
fn load_drivers(machine: &Machine, modules: &Modules) -> Result<(), ModuleError> {
    for (kind, driver) in
        [(Kind::Network, "virtio_net"), (Kind::Vsock, "vmw_vsock_virtio_transport")]
    {
        if machine.has(kind) {
            modules.ensure(driver)?;
        }
    }
    // Layers of images, and who asks on the loopback interface.
    modules.ensure("overlay")?;
    modules.ensure(secrets::ASKER_MODULE)?;
    modules.ensure_owners()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
