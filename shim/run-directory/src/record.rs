//! What would be left after a crash.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::ProcessRef;

const RECORD: &str = "record.json";
const MOST_BYTES: u64 = 64 * 1024;

/// What would be left after a crash, and whose it was. Fields that an older shim did not write are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The pod, where a kubelet made it.
    pub pod: Option<PodName>,
    /// containerd's namespace, such as `k8s.io`.
    pub containerd_namespace: String,
    /// The boot of the host that the processes belong to (`/proc/sys/kernel/random/boot_id`).
    boot: String,
    /// When the shim began with the sandbox, in seconds since 1970.
    pub started: u64,
    /// The shim's executable.
    pub program: Option<PathBuf>,
    /// The shim.
    pub shim: Option<ProcessRef>,
    /// The virtual machine's process.
    pub machine: Option<ProcessRef>,
    /// The pod's network namespace, where it has a path of its own. One without ends with the shim, its redirects too.
    pub namespace: Option<PathBuf>,
    /// Its interfaces that carry a redirect.
    pub interfaces: Vec<String>,
    /// The socket at which containerd reaches the shim.
    pub socket: Option<PathBuf>,
    /// Control groups made for this sandbox, the innermost first; they are removed once empty.
    pub control_groups: Vec<PathBuf>,
}

/// A pod's name in its cluster, as the kubelet gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique id.
    pub uid: String,
}

impl Record {
    /// What a shim knows of itself before it has made anything.
    pub(crate) fn of_this_process() -> Record {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Record {
            boot: this_boot(),
            started: since_1970.as_secs(),
            program: std::env::current_exe().ok(),
            shim: ProcessRef::of(std::process::id()),
            ..Record::default()
        }
    }

    /// The record in a run directory; an empty one where there is none.
    pub(crate) fn read(directory: &Path) -> io::Result<Record> {
        let text = match read_text(&directory.join(RECORD)) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            other => other?,
        };
        let mut record: Record = serde_json::from_str(&text)?;
        // Where /run outlives a reboot, a number and a start time may be somebody else's by now, and so may the
        // path of a namespace.
        if !record.boot.is_empty() && record.boot != this_boot() {
            (record.shim, record.machine, record.namespace) = (None, None, None);
        }
        Ok(record)
    }

    /// Replaces the record in a run directory as a whole.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let draft = directory.join("record.new");
        std::fs::write(&draft, serde_json::to_vec(self)?)?;
        std::fs::rename(&draft, directory.join(RECORD))
    }
}

fn this_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for a record"));
    }
    Ok(text)
}
