//! Compiles the programs and makes the guest image.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use nacre_guest_image::{Inputs, Pins};

use crate::setup::store;
use crate::step::{Step, run};
use crate::tree::Tree;

/// What runs in the guest.
const GUEST: [&str; 2] = ["nacre-agent", "nacre-pause"];

/// What runs on the host: runtime, snapshotter, and the harness's programs.
const HOST: [&str; 3] = ["nacre-shim", "nacre-snapshotter", "nacre-tests"];

/// Compiles everything that runs in a demo or a test with VMs.
pub(crate) fn programs(tree: &Tree) -> Result<()> {
    compile(tree, "programs", &[&GUEST[..], &HOST].concat())
}

/// Compiles what the guest image holds.
pub(crate) fn guest_programs(tree: &Tree) -> Result<()> {
    compile(tree, "guest programs", &GUEST)
}

fn compile(tree: &Tree, name: &'static str, packages: &[&str]) -> Result<()> {
    let step = Step::new(name);
    let mut cargo = tree.cargo("build");
    cargo.args(["--release", "--locked", "--bins"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    run(&mut cargo)?;
    step.done();
    Ok(())
}

/// Builds kernel, initrd and manifest from the pinned packages and the compiled programs.
pub(crate) fn image(tree: &Tree) -> Result<()> {
    let step = Step::new("guest image");
    let progress = |line: &str| step.say(line);
    let pins = Pins::shipped()?;
    let (kernel, certificates) = (tree.prefix().join("kernel"), tree.prefix().join("certificates"));
    store(tree).unpack(&[pins.kernel.package.clone()], &kernel, &progress)?;
    store(tree).unpack(&[pins.certificates.clone()], &certificates, &progress)?;
    let inputs = Inputs {
        pins: &pins,
        kernel: &kernel,
        certificates: &certificates,
        agent: &tree.programs().join("nacre-agent"),
        pause: &tree.programs().join("nacre-pause"),
    };
    let manifest = nacre_guest_image::build(inputs, &tree.prefix().join("image"), &progress)?;
    for artifact in [&manifest.kernel.vmlinux, &manifest.initrd.file] {
        step.say(format!("{} {}", artifact.sha256, artifact.name));
    }
    step.done();
    Ok(())
}

/// Becomes one of our programs, as root. Returns only if that fails.
pub(crate) fn exec(
    tree: &Tree,
    program: &str,
    arguments: impl Iterator<Item = String>,
) -> Result<()> {
    let path = tree.programs().join(program);
    let error = tree.root_command(&path)?.args(arguments).exec();
    Err(error).with_context(|| format!("failed to start {}", path.display()))
}
