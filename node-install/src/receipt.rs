//! What an installation left on the node, so that it can be taken away again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::NodeError;
use crate::edit::Edit;
use crate::files::{Root, read_text, replace};
use crate::install::Choices;
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
    /// What the administrator named: later installations and the removal keep it.
    #[serde(default)]
    pub(crate) named: Named,
    /// Whom QEMU runs as, if not as root: the next installation keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm_user: Option<VmUser>,
    /// Units were written and not started yet: who was interrupted, or was not to start anything, leaves it to the
    /// next time.
    #[serde(default)]
    pub(crate) units_pending: bool,
    /// The same of containerd and its configuration.
    #[serde(default)]
    pub(crate) containerd_pending: bool,
}

/// What is where on the node, where it was said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    pub(crate) containerd: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) qemu: Option<PathBuf>,
}

/// containerd's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContainerdReceipt {
    /// The file that was changed, on the node.
    pub(crate) config: PathBuf,
    /// Its text without Nacre; none if there was no file.
    pub(crate) before: Option<String>,
    /// Hash of the text with Nacre.
    pub(crate) after: String,
    /// What was set, for a file that was changed further since.
    pub(crate) edits: Vec<Edit>,
    /// The file beside it that has Nacre's lines, where it imports one.
    pub(crate) drop_in: Option<PathBuf>,
}

impl Receipt {
    /// Remembers what the administrator named now.
    pub(crate) fn keep(&mut self, choices: &Choices) {
        let Choices { containerd, config, qemu, .. } = choices;
        for (known, named) in [
            (&mut self.named.containerd, containerd),
            (&mut self.named.config, config),
            (&mut self.named.qemu, qemu),
        ] {
            if named.is_some() {
                known.clone_from(named);
            }
        }
    }

    /// containerd's program, where it is named now, or was and still is.
    pub(crate) fn program(&self, choices: &Choices) -> Option<PathBuf> {
        let known = || self.named.containerd.clone().filter(|program| program.is_file());
        choices.containerd.clone().or_else(known)
    }

    /// containerd's configuration, where it was named.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        let known = self.containerd.as_ref().map(|known| known.config.clone());
        // K3s' and RKE2's are found by their own place.
        let known = known.filter(|path| path.extension().is_none_or(|end| end != "tmpl"));
        self.named.config.clone().or(known)
    }

    pub(crate) fn read(root: &Root) -> Result<Option<Receipt>, NodeError> {
        let path = root.at(RECEIPT)?;
        let Some(text) = read_text(&path)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| NodeError::Receipt { path, problem: error.to_string() })
    }

    pub(crate) fn write(&self, root: &Root) -> Result<(), NodeError> {
        let path = root.at(RECEIPT)?;
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
