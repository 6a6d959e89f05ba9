//! What tests of confidential launches run with: the firmware of SEV-SNP and TDX guests, a QEMU that knows
//! TDX, and headers of a kernel that does. They come from Debian's development suite, which keeps a version
//! for some weeks; where the mirror has moved on, the tests that need them are skipped, visibly.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nacre_guest_image::Pins;
use nacre_guest_image::firmware::without_variables;

use crate::setup::store;
use crate::step::Step;
use crate::tree::Tree;

/// Name of the starter, beneath the prefix's `qemu-11` directory.
const STARTER: &str = "qemu-system-x86_64";

/// Starts QEMU 11 by its own suite's dynamic loader, since the system's libc may be too old for it. Needs
/// nothing of the environment: the shim gives its VMs none.
const STARTER_TEXT: &str = "#!/bin/sh
# Made by `cargo xtask setup`.
here=${0%/*}
lib=\"$here/usr/lib/x86_64-linux-gnu\"
exec \"$lib/ld-linux-x86-64.so.2\" --library-path \"$lib\" --argv0 qemu-system-x86_64 \"$here/usr/bin/qemu-system-x86_64\" \"$@\"
";

/// Fetches firmware, QEMU, and headers of a kernel that has both kinds of guests. What cannot be had is
/// said, and no error.
pub(crate) fn fetch(tree: &Tree) -> Result<()> {
    fetch_firmware(tree)?;
    let step = Step::new("QEMU for confidential guests");
    let pins = Pins::shipped()?;
    let store = store(tree);
    let say = |line: &str| step.say(line);
    let headers = tree.prefix().join("linux-headers");
    if let Err(error) = store.unpack(&pins.kernel_headers, &headers, &say) {
        step.say(format!("comparisons with the kernel's headers will be SKIPPED: {error:#}"));
    }
    let qemu = tree.prefix().join("qemu-11");
    let ready = store.unpack(&pins.qemu_11.packages, &qemu, &say).map_err(Into::into);
    if let Err(error) = ready.and_then(|()| starter(&qemu)) {
        step.say(format!("tests with QEMU 11 will be SKIPPED: {error:#}"));
    }
    step.done();
    Ok(())
}

/// Fetches the firmware alone, for which images are measured.
pub(crate) fn fetch_firmware(tree: &Tree) -> Result<()> {
    let step = Step::new("firmware of confidential guests");
    let pins = Pins::shipped()?;
    let firmware = tree.prefix().join("firmware");
    let say = |line: &str| step.say(line);
    let ready = store(tree).unpack(&pins.firmware, &firmware, &say).map_err(Into::into);
    if let Err(error) = ready.and_then(|()| without_keys(&firmware)) {
        step.say(format!("tests with it, and measurements, will be SKIPPED: {error}"));
    }
    step.done();
    Ok(())
}

/// Writes the firmware of TDX guests without the keys that come with it.
fn without_keys(firmware: &Path) -> Result<()> {
    let directory = firmware.join("usr/share/ovmf");
    let packaged = directory.join("OVMF.inteltdx.ms.fd");
    let image = fs::read(&packaged).with_context(|| format!("read {}", packaged.display()))?;
    let emptied = without_variables(&image).with_context(|| packaged.display().to_string())?;
    let path = directory.join("OVMF.inteltdx.fd");
    if fs::read(&path).ok().as_deref() != Some(&*emptied) {
        fs::write(&path, emptied).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Writes the starter and tries it.
fn starter(qemu: &Path) -> Result<()> {
    let path = qemu.join(STARTER);
    if fs::read(&path).ok().as_deref() != Some(STARTER_TEXT.as_bytes()) {
        fs::write(&path, STARTER_TEXT).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let output = Command::new(&path).arg("--version").env_clear().output();
    let output = output.with_context(|| format!("failed to start {}", path.display()))?;
    if !output.status.success() {
        bail!(
            "{} does not run: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
