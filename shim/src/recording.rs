//! Requests that a development image has recorded, fetched before the sandbox ends.
//!
//! They hold whole specifications, secrets in them included: an ordinary guest records nothing,
//! whatever the host asks for.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::agent::{Agent, AgentError};

/// Most of one sandbox that is kept, in bytes.
const MOST_BYTES: usize = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("cannot write {path}: {cause}")]
    Write { path: String, cause: std::io::Error },
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the guest recorded more than {MOST_BYTES} bytes: the rest is left out")]
    TooMuch,
}

/// Writes all that the agent has recorded to `<directory>/<sandbox>.jsonl`, a request a line. What was
/// there of a sandbox of the same name is replaced.
pub(crate) async fn fetch(
    agent: &Agent,
    directory: &Path,
    sandbox: &str,
) -> Result<(), RecordingError> {
    let path = directory.join(format!("{sandbox}.jsonl"));
    let failed = |cause| RecordingError::Write { path: path.display().to_string(), cause };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    let mut written = 0;
    loop {
        let lines = agent.recorded_requests().await?;
        if lines.is_empty() {
            return Ok(());
        }
        written += lines.len();
        if written > MOST_BYTES {
            return Err(RecordingError::TooMuch);
        }
        file.write_all(lines.as_bytes()).map_err(failed)?;
    }
}
