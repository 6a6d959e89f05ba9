//! Requests about the guest as a whole.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use nacre_policy::{Gate, SetPolicyError};
use nacre_protocol::agent::{
    AgentDetails, CopyFileRequest, CreateSandboxRequest, DestroySandboxRequest, GetOOMEventRequest,
    GuestDetailsRequest, GuestDetailsResponse, OOMEvent, OnlineCPUMemRequest,
    ReseedRandomDevRequest, SetGuestDateTimeRequest, SetPolicyRequest,
};
use nacre_protocol::channel::{DRIVER_BLOCK, DRIVER_EPHEMERAL, DRIVER_IMAGE_PULL, DRIVER_LOCAL};
use protobuf::well_known_types::empty::Empty;
use rustix::time::{ClockId, Timespec};

use super::Allowed;
use crate::boot;
use crate::error::RpcError;
use crate::sandbox::Sandbox;

/// Time for the answer to `DestroySandbox` to reach the host before the VM powers off.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Most bytes that the host may mix into the random generator at once.
const MOST_SEED: usize = 4096;

/// Makes what the pod's containers share.
pub(crate) fn create(
    sandbox: &Sandbox,
    request: &Allowed<CreateSandboxRequest>,
) -> Result<Empty, RpcError> {
    sandbox.create(request.get())?;
    Ok(Empty::new())
}

/// Ends all containers, and the VM shortly after the answer.
pub(crate) async fn destroy(
    sandbox: &Arc<Sandbox>,
    _: &Allowed<DestroySandboxRequest>,
) -> Result<Empty, RpcError> {
    sandbox.destroy().await;
    tokio::spawn(async {
        tokio::time::sleep(LAST_WORDS).await;
        boot::power_off();
    });
    Ok(Empty::new())
}

/// Takes a piece of a file that containers will see.
pub(crate) fn copy_file(
    sandbox: &Sandbox,
    request: &Allowed<CopyFileRequest>,
) -> Result<Empty, RpcError> {
    sandbox.with_copies(|copies| copies.copy(request.get()))?;
    Ok(Empty::new())
}

/// Waits for a container that runs out of memory.
pub(crate) async fn next_oom(
    sandbox: &Sandbox,
    _: &Allowed<GetOOMEventRequest>,
) -> Result<OOMEvent, RpcError> {
    let container_id = sandbox.oom.next().await;
    Ok(OOMEvent { container_id, ..Default::default() })
}

/// Binds the pod's policy, where the command line lets the host bring one. The gate decides: there is no
/// policy yet that could.
pub(crate) fn set_policy(gate: &Gate, request: &SetPolicyRequest) -> Result<Empty, RpcError> {
    match gate.set_policy(&request.policy) {
        Ok(()) => {
            tracing::warn!("the host has set the pod's policy, as the command line permits");
            Ok(Empty::new())
        }
        Err(error @ SetPolicyError::Policy(_)) => Err(RpcError::invalid("policy", error)),
        Err(error) => Err(RpcError::Denied(format!("policy denies SetPolicy: {error}"))),
    }
}

/// What this agent can do.
pub(crate) fn details(_: &Allowed<GuestDetailsRequest>) -> Result<GuestDetailsResponse, RpcError> {
    Ok(GuestDetailsResponse {
        agent_details: Some(AgentDetails {
            version: env!("CARGO_PKG_VERSION").into(),
            init_daemon: true,
            storage_handlers: [DRIVER_BLOCK, DRIVER_IMAGE_PULL, DRIVER_EPHEMERAL, DRIVER_LOCAL]
                .map(str::to_owned)
                .to_vec(),
            supports_seccomp: true,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    })
}

/// Sets the clock.
pub(crate) fn set_time(request: &Allowed<SetGuestDateTimeRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let micros = u32::try_from(request.Usec).ok().filter(|micros| *micros < 1_000_000);
    let micros = micros.ok_or_else(|| RpcError::invalid("Usec", "must be between 0 and 999999"))?;
    let time = Timespec { tv_sec: request.Sec, tv_nsec: i64::from(micros) * 1_000 };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|e| RpcError::internal("failed to set the clock", e))?;
    Ok(Empty::new())
}

/// Mixes in what the host sends; it is not credited as entropy, since the host knows it.
pub(crate) fn reseed(request: &Allowed<ReseedRandomDevRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    if request.data.is_empty() || request.data.len() > MOST_SEED {
        let why = format!("must be 1 to {MOST_SEED} bytes");
        return Err(RpcError::invalid("data", why));
    }
    let device = fs::OpenOptions::new().write(true).open("/dev/urandom");
    device
        .and_then(|mut device| device.write_all(&request.data))
        .map_err(|e| RpcError::internal("failed to mix into the random generator", e))?;
    Ok(Empty::new())
}

/// The kernel brings CPUs and memory up by itself; this only checks that it did.
pub(crate) fn online(request: &Allowed<OnlineCPUMemRequest>) -> Result<Empty, RpcError> {
    let request = request.get();
    let read = |path: &str| {
        fs::read_to_string(path)
            .map_err(|e| RpcError::internal(format!("failed to read {path}"), e))
    };
    let present = read("/sys/devices/system/cpu/present")?;
    let online = read("/sys/devices/system/cpu/online")?;
    if present != online {
        let why = format!("CPUs {} are present, but {} online", present.trim(), online.trim());
        return Err(RpcError::Precondition(why));
    }
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    if usize::try_from(request.nb_cpus).unwrap_or(usize::MAX) > count {
        let why = format!("{} CPUs were asked for, but the VM has {count}", request.nb_cpus);
        return Err(RpcError::Precondition(why));
    }
    Ok(Empty::new())
}
