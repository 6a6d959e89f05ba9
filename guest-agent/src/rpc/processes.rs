//! Requests about processes and their streams.

use std::sync::Arc;

use nacre_policy::Denied;
use nacre_protocol::agent::{
    CloseStdinRequest, ExecProcessRequest, ReadStreamRequest, ReadStreamResponse,
    SignalProcessRequest, TtyWinResizeRequest, WaitProcessRequest, WaitProcessResponse,
    WriteStreamRequest, WriteStreamResponse,
};
use nacre_protocol::channel::STREAM_CHUNK;
use protobuf::well_known_types::empty::Empty;

use super::Allowed;
use crate::error::RpcError;
use crate::oci::{missing, refuse_if};
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::streams::{Output, Streams};

pub(crate) async fn exec(
    sandbox: &Sandbox,
    request: &Allowed<ExecProcessRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    refuse_if(request.string_user.is_some(), "string_user", "the user comes with process.User")?;
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    let why = "streams go through ReadStdout, ReadStderr and WriteStdin";
    refuse_if(ports != [0, 0, 0], "stdin_port, stdout_port, stderr_port", why)?;
    let process = request.process.as_ref().ok_or_else(|| missing("process"))?;
    sandbox.container(&request.container_id)?.exec(&request.exec_id, process).await?;
    Ok(Empty::new())
}

pub(crate) fn signal(
    sandbox: &Sandbox,
    request: &Allowed<SignalProcessRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    sandbox.container(&request.container_id)?.signal(&request.exec_id, request.signal)?;
    Ok(Empty::new())
}

pub(crate) async fn wait(
    sandbox: &Sandbox,
    request: &Allowed<WaitProcessRequest>,
) -> Result<WaitProcessResponse, RpcError> {
    let request = request.get();
    let process = sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    let status = process.wait().await?;
    Ok(WaitProcessResponse { status, ..Default::default() })
}

pub(crate) async fn write_stdin(
    sandbox: &Sandbox,
    request: &Allowed<WriteStreamRequest>,
) -> Result<WriteStreamResponse, RpcError> {
    let request = request.get();
    let why = format!("must be at most {STREAM_CHUNK} bytes");
    refuse_if(request.data.len() > STREAM_CHUNK, "data", &why)?;
    let process = sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    process.streams.stdin.write(&request.data).await?;
    let len = u32::try_from(request.data.len()).map_err(|e| RpcError::invalid("data", e))?;
    Ok(WriteStreamResponse { len, ..Default::default() })
}

/// What a process writes: stdout or stderr.
pub(crate) type Which = fn(&Streams) -> &Output;

pub(crate) async fn read(
    sandbox: &Sandbox,
    which: Which,
    request: &Allowed<ReadStreamRequest>,
) -> Result<ReadStreamResponse, RpcError> {
    let request = request.get();
    let most = length(request)?;
    let process = named(sandbox, request)?;
    let data = which(&process.streams).read(most).await?;
    Ok(ReadStreamResponse { data, ..Default::default() })
}

/// The host may not have this output, but the process must not wait for a reader for ever.
pub(crate) fn discard(sandbox: &Sandbox, which: Which, denied: &Denied<ReadStreamRequest>) {
    if let Ok(process) = named(sandbox, denied.request()) {
        tokio::spawn(async move { which(&process.streams).discard().await });
    }
}

fn named(sandbox: &Sandbox, request: &ReadStreamRequest) -> Result<Arc<Process>, RpcError> {
    sandbox.container(&request.container_id)?.process(&request.exec_id)
}

pub(crate) fn close_stdin(
    sandbox: &Sandbox,
    request: &Allowed<CloseStdinRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    let process = sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    process.streams.stdin.close();
    Ok(Empty::new())
}

pub(crate) fn resize_terminal(
    sandbox: &Sandbox,
    request: &Allowed<TtyWinResizeRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    let size = |field: &str, number: u32| {
        u16::try_from(number).map_err(|_| RpcError::invalid(field, "must be at most 65535"))
    };
    let (rows, columns) = (size("row", request.row)?, size("column", request.column)?);
    let process = sandbox.container(&request.container_id)?.process(&request.exec_id)?;
    process.streams.resize(rows, columns)?;
    Ok(Empty::new())
}

fn length(request: &ReadStreamRequest) -> Result<usize, RpcError> {
    let length = usize::try_from(request.len).unwrap_or(usize::MAX);
    refuse_if(length == 0, "len", "must be at least 1")?;
    Ok(length)
}
