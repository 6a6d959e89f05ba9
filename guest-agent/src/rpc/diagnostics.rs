//! What the agent tells about itself.

use std::fs;

use nacre_policy::Gate;
use nacre_protocol::agent::{
    GetDiagnosticDataRequest, GetDiagnosticDataResponse, GetMetricsRequest, Metrics,
};
use nacre_protocol::channel::RECORDED_REQUESTS;
use nacre_protocol::{pull_progress, start_report, termination};

use super::Allowed;

use crate::error::RpcError;
use crate::sandbox::Sandbox;

/// The start report, the progress of pulls, recorded requests, or a container's last words.
pub(crate) fn get(
    sandbox: &Sandbox,
    gate: &Gate,
    request: &Allowed<GetDiagnosticDataRequest>,
) -> Result<GetDiagnosticDataResponse, RpcError> {
    let data = match request.get().log_type.as_str() {
        start_report::LOG_TYPE => sandbox.report.to_text(),
        pull_progress::LOG_TYPE => sandbox.images.progress_text(),
        RECORDED_REQUESTS => gate.take_records(),
        termination::LOG_TYPE => {
            let GetDiagnosticDataRequest { container_id, path, .. } = request.get();
            sandbox.container(container_id)?.last_words(path)?
        }
        other => {
            let known = [
                start_report::LOG_TYPE,
                pull_progress::LOG_TYPE,
                RECORDED_REQUESTS,
                termination::LOG_TYPE,
            ];
            let why = format!("{other:?} is not known: use one of {known:?}");
            return Err(RpcError::invalid("log_type", why));
        }
    };
    Ok(GetDiagnosticDataResponse { data, ..Default::default() })
}

/// The agent's own size, as Prometheus' text format names such figures.
pub(crate) fn metrics(_: &Allowed<GetMetricsRequest>) -> Result<Metrics, RpcError> {
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
