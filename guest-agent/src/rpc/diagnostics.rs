//! What the agent tells about itself.

use nacre_protocol::agent::{GetDiagnosticDataRequest, GetDiagnosticDataResponse};
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
