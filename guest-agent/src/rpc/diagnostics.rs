//! What the agent tells about itself.

use std::fs;

use nacre_protocol::agent::{GetDiagnosticDataRequest, GetDiagnosticDataResponse, Metrics};
use nacre_protocol::start_report::LOG_TYPE;

use crate::error::RpcError;
use crate::sandbox::Sandbox;

pub(super) fn get(
    sandbox: &Sandbox,
    request: &GetDiagnosticDataRequest,
) -> Result<GetDiagnosticDataResponse, RpcError> {
    if request.log_type != LOG_TYPE {
        let why = format!("{:?} is not known: use {LOG_TYPE:?}", request.log_type);
        return Err(RpcError::invalid("log_type", why));
    }
    Ok(GetDiagnosticDataResponse { data: sandbox.report.to_text(), ..Default::default() })
}

/// The agent's own size, as Prometheus' text format names such figures.
pub(super) fn metrics() -> Result<Metrics, RpcError> {
    let fail = |e: std::io::Error| RpcError::internal("failed to read the agent's own figures", e);
    let status = fs::read_to_string("/proc/self/status").map_err(fail)?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident.and_then(|text| text.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.and_then(|number| number.parse().ok()).unwrap_or(0);
    let bytes = kilobytes * 1024;
    let files = fs::read_dir("/proc/self/fd").map_err(fail)?.count();
    let metrics = format!("process_resident_memory_bytes {bytes}\nprocess_open_fds {files}\n");
    Ok(Metrics { metrics, ..Default::default() })
}
