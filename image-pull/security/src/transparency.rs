//! Transparency logs (Rekor): that a signature was entered, and when. All from what came with the
//! signature; no log is asked.

mod body;
mod tree;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::envelope::Envelope;
use crate::key::PublicKey;
use crate::time::Period;

/// Lines of signatures in a checkpoint that are tried.
const CHECKPOINT_SIGNATURES: usize = 16;

/// A log that is trusted.
#[derive(Debug)]
pub(crate) struct Log {
    /// As entries name it; SHA-256 of its key if nothing else is said.
    pub(crate) id: [u8; 32],
    pub(crate) key: PublicKey,
    /// When its promises count.
    pub(crate) valid: Period,
}

impl Log {
    /// A log of which only the key is known.
    pub(crate) fn of_key(key: PublicKey) -> Self {
        Self { id: key.id(), key, valid: Period::ALWAYS }
    }
}

/// An entry of a log, with what proves it. Nothing of it is verified.
#[derive(Debug)]
pub(crate) struct LogEntry {
    pub(crate) log_id: [u8; 32],
    /// Position in the log.
    pub(crate) index: i64,
    /// Seconds since 1970; only [`LogEntry::promise`] vouches for it.
    pub(crate) integrated_time: i64,
    /// The entry itself: canonical JSON.
    pub(crate) body: Vec<u8>,
    /// The log's signature over the entry, its time and position ("signed entry timestamp").
    pub(crate) promise: Option<Vec<u8>>,
    pub(crate) proof: Option<Proof>,
}

/// Proof that an entry is in a tree whose root the log signed (RFC 9162, section 2.1.3).
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) index: u64,
    pub(crate) size: u64,
    pub(crate) root: [u8; 32],
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) checkpoint: String,
}

/// Who signed what is in the log, as an entry holds it.
#[derive(Clone, Copy)]
pub(crate) enum LoggedSigner<'a> {
    /// DER of the certificate.
    Certificate(&'a [u8]),
    Key(&'a PublicKey),
}

impl LoggedSigner<'_> {
    fn der(&self) -> &[u8] {
        match self {
            Self::Certificate(der) => der,
            Self::Key(key) => key.spki(),
        }
    }
}

/// Proof that a trusted log holds this very signature.
#[derive(Debug)]
pub(crate) struct Logged {
    /// When it was entered, if the log promised that; seconds since 1970.
    pub(crate) time: Option<i64>,
}

/// One entry that proves the signature to be in one of the logs is enough; entries of logs that are
/// not known prove nothing. The error is the last entry's.
pub(crate) fn logged(
    envelope: &Envelope,
    signer: LoggedSigner<'_>,
    logs: &[Log],
) -> Result<Vec<Logged>, String> {
    let mut good = Vec::new();
    let mut problem = "it is in no transparency log".to_owned();
    for entry in &envelope.entries {
        match verified(entry, logs).and_then(|logged| {
            body::check(&entry.body, envelope, signer)?;
            Ok(logged)
        }) {
            Ok(logged) => good.push(logged),
            Err(why) => problem = format!("its log entry: {why}"),
        }
    }
    if good.is_empty() { Err(problem) } else { Ok(good) }
}

/// Whatever the entry brings must hold, and it must bring something.
fn verified(entry: &LogEntry, logs: &[Log]) -> Result<Logged, String> {
    let log = logs.iter().find(|log| log.id == entry.log_id).ok_or("is of an unknown log")?;
    if entry.promise.is_none() && entry.proof.is_none() {
        return Err("has neither a promise nor a proof".into());
    }
    if let Some(proof) = &entry.proof {
        check_proof(proof, &entry.body, log)?;
    }
    let time = match &entry.promise {
        None => None,
        Some(promise) => {
            if !log.key.verifies(&promised(entry), promise) {
                return Err("the promise is not the log's".into());
            }
            if !log.valid.contains(entry.integrated_time) {
                return Err("was promised when the log was not trusted".into());
            }
            Some(entry.integrated_time)
        }
    };
    Ok(Logged { time })
}

/// What the log signs as its promise: canonical JSON (RFC 8785) of the entry. Neither base64 nor
/// hexadecimal digits need escapes.
fn promised(entry: &LogEntry) -> Vec<u8> {
    format!(
        r#"{{"body":"{}","integratedTime":{},"logID":"{}","logIndex":{}}}"#,
        STANDARD.encode(&entry.body),
        entry.integrated_time,
        hex::encode(entry.log_id),
        entry.index
    )
    .into_bytes()
}

fn check_proof(proof: &Proof, body: &[u8], log: &Log) -> Result<(), String> {
    let root = tree::root(proof.index, proof.size, tree::leaf(body), &proof.hashes);
    if root != Some(proof.root) {
        return Err("is not in the log's tree".into());
    }
    let Checkpoint { size, root } = checkpoint(&proof.checkpoint, log)?;
    if size != proof.size || root != proof.root {
        return Err("the checkpoint is of another tree".into());
    }
    Ok(())
}

/// A tree that the log signed.
struct Checkpoint {
    size: u64,
    root: [u8; 32],
}

/// A signed note (c2sp.org/signed-note, c2sp.org/tlog-checkpoint): lines of text, an empty line,
/// lines of signatures `— name base64(4 bytes of key hash, signature)`.
fn checkpoint(note: &str, log: &Log) -> Result<Checkpoint, String> {
    let form = "the checkpoint is malformed";
    let (text, signatures) = note.split_once("\n\n").ok_or(form)?;
    let signed = format!("{text}\n");
    let by_log = |line: &str| {
        let encoded = line.strip_prefix("\u{2014} ")?.split_once(' ')?.1;
        let bytes = STANDARD.decode(encoded).ok()?;
        let signature = bytes.get(4..)?;
        log.key.verifies(signed.as_bytes(), signature).then_some(())
    };
    if !signatures.lines().take(CHECKPOINT_SIGNATURES).any(|line| by_log(line).is_some()) {
        return Err("the checkpoint is not the log's".into());
    }
    let mut lines = text.lines().skip(1);
    let size = lines.next().and_then(|line| line.parse().ok()).ok_or(form)?;
    let root = lines.next().and_then(|line| STANDARD.decode(line).ok()).ok_or(form)?;
    Ok(Checkpoint { size, root: root.try_into().map_err(|_| form)? })
}
