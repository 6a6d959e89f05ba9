//! The directory that `nacre install` takes: programs, guest image and what belongs to them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::step::Step;
use crate::tree::Tree;

/// Programs of a node.
const PROGRAMS: [&str; 4] =
    ["nacre", "containerd-shim-nacre-v2", "nacre-snapshotter", "nacre-cache"];
/// Files beside them, by their places in this tree.
const DOCUMENTS: [&str; 5] = [
    "LICENSE",
    "docs/install.md",
    "configuration/config.toml",
    "node-cache/cache.toml",
    "deploy/image/install-node.sh",
];
/// Directory in `target/nacre`.
const NAME: &str = "bundle";

/// Puts it together beneath `target/nacre`, anew each time: nothing of an earlier one stays.
pub(crate) fn make(tree: &Tree) -> Result<()> {
    let step = Step::new("bundle");
    let bundle = tree.prefix().join(NAME);
    match fs::remove_dir_all(&bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let image = tree.prefix().join("image");
    for program in PROGRAMS {
        copy(&tree.programs_of("release").join(program), &bundle.join("bin").join(program))?;
    }
    for entry in fs::read_dir(&image).with_context(|| image.display().to_string())? {
        let entry = entry?;
        ensure!(entry.file_type()?.is_file(), "{} is no file", entry.path().display());
        copy(&entry.path(), &bundle.join("share/nacre").join(entry.file_name()))?;
    }
    for document in DOCUMENTS {
        let from = tree.root().join(document);
        let name = from.file_name().context("a document has a name")?;
        copy(&from, &bundle.join("share/doc").join(name))?;
    }
    step.say(bundle.display().to_string());
    step.done();
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory)?;
    fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))?;
    Ok(())
}
