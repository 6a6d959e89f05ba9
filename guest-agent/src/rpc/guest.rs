//! Requests about the guest as a whole.

use std::fs;
use std::io::Write;
use std::time::Duration;

use nacre_protocol::agent::{
    AgentDetails, GuestDetailsResponse, OnlineCPUMemRequest, ReseedRandomDevRequest,
    SetGuestDateTimeRequest,
};
use nacre_protocol::channel::{DRIVER_EPHEMERAL, DRIVER_IMAGE_PULL};
use rustix::time::{ClockId, Timespec};

use crate::boot;
use crate::error::RpcError;
use crate::sandbox::Sandbox;

/// Time for the answer to `DestroySandbox` to reach the host before the VM powers off.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Most bytes that the host may mix into the random generator at once.
const MOST_SEED: usize = 4096;

/// Ends all containers, and the VM shortly after the answer.
pub(super) async fn destroy(sandbox: &Sandbox) -> Result<(), RpcError> {
    sandbox.destroy().await;
    rustix::fs::sync();
    tokio::spawn(async {
        tokio::time::sleep(LAST_WORDS).await;
        boot::power_off();
    });
    Ok(())
}

/// Loads a driver of the guest image.
pub(super) fn load(sandbox: &Sandbox, module: &str) -> Result<(), RpcError> {
    sandbox
        .modules
        .ensure(module)
        .map_err(|e| RpcError::internal("failed to load a driver of the guest", e))
}

pub(super) fn details() -> GuestDetailsResponse {
    GuestDetailsResponse {
        agent_details: Some(AgentDetails {
            version: env!("CARGO_PKG_VERSION").into(),
            init_daemon: true,
            storage_handlers: vec![DRIVER_IMAGE_PULL.into(), DRIVER_EPHEMERAL.into()],
            supports_seccomp: true,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

pub(super) fn set_time(request: &SetGuestDateTimeRequest) -> Result<(), RpcError> {
    let micros = u32::try_from(request.Usec).ok().filter(|micros| *micros < 1_000_000);
    let micros = micros.ok_or_else(|| RpcError::invalid("Usec", "must be between 0 and 999999"))?;
    let time = Timespec { tv_sec: request.Sec, tv_nsec: i64::from(micros) * 1_000 };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|e| RpcError::internal("failed to set the clock", e))
}

/// Mixes in what the host sends; it is not credited as entropy, since the host knows it.
pub(super) fn reseed(request: &ReseedRandomDevRequest) -> Result<(), RpcError> {
    if request.data.is_empty() || request.data.len() > MOST_SEED {
        let why = format!("must be 1 to {MOST_SEED} bytes");
        return Err(RpcError::invalid("data", why));
    }
    let device = fs::OpenOptions::new().write(true).open("/dev/urandom");
    device
        .and_then(|mut device| device.write_all(&request.data))
        .map_err(|e| RpcError::internal("failed to mix into the random generator", e))
}

/// The kernel brings CPUs and memory up by itself; this only checks that it did.
pub(super) fn online(request: &OnlineCPUMemRequest) -> Result<(), RpcError> {
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
    Ok(())
}
