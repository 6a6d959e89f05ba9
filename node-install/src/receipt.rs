//! What an installation left on the node, so that it can be taken away again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::NodeError;
use crate::edit::Edit;
use crate::files::{Root, read_text, replace};
use crate::node_files::VmUser;

/// Where it is kept.
pub(crate) const RECEIPT: &str = "/var/lib/nacre/install/receipt.json";

/// The record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Receipt {
    /// Files that were written, and the hash of what was written: who changed them since keeps them.
    pub(crate) files: BTreeMap<PathBuf, String>,
    /// Symbolic links that were made, and where they point.
    pub(crate) links: BTreeMap<PathBuf, String>,
    pub(crate) containerd: Option<ContainerdReceipt>,
    /// Whom QEMU runs as, if not as root: the next installation keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_user: Option<VmUser>,
    /// Units were written and not started yet: whoever was interrupted starts them the next time.
    #[serde(default)]
    pub(crate) units_pending: bool,
}

/// containerd's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContainerdReceipt {
    /// The file that was changed, on the node.
    pub(crate) config: PathBuf,
    /// Its text before Nacre; none if there was no file.
    pub(crate) before: Option<String>,
    /// Hash of the text with Nacre.
    pub(crate) after: String,
    /// What was set, for a file that was changed further since.
    pub(crate) edits: Vec<Edit>,
    /// The file beside it that has Nacre's lines, where it imports one.
    pub(crate) drop_in: Option<PathBuf>,
}

impl Receipt {
    pub(crate) fn read(root: &Root) -> Result<Option<Receipt>, NodeError> {
        let path = root.at(RECEIPT);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| NodeError::Receipt { path, problem: error.to_string() })
    }

    pub(crate) fn write(&self, root: &Root) -> Result<(), NodeError> {
        let path = root.at(RECEIPT);
        let text = serde_json::to_string_pretty(self).map_err(|error| NodeError::Receipt {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        replace(&path, &format!("{text}\n"), 0o600)
    }

    /// Whether a file is still what was written.
    pub(crate) fn is_own(&self, path: &Path, text: &str) -> bool {
        self.files.get(path).is_some_and(|hash| *hash == crate::files::hash(text))
    }
}
