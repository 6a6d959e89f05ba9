//! Compiles the programs and makes the guest image.

use std::os::unix::process::CommandExt;
use std::slice::from_ref;

use anyhow::{Context, Result};
use nacre_guest_image::{Inputs, Pins};

use crate::setup::store;
use crate::step::{Step, run};
use crate::tree::Tree;

/// The pause program's profile: no unwinding, no standard library.
const FREESTANDING: &str = "freestanding";

/// What runs on the host, and the owner's tool: runtime, snapshotter, cache, `nacre`, and the harness with demo
/// and bench. Always named together: cargo compiles dependencies anew for each set of features, which
/// depends on the packages that are named.
pub(crate) const HOST: [&str; 5] =
    ["nacre-shim", "nacre-snapshotter", "nacre-cache", "nacre", "nacre-tests"];

/// Compiles everything that runs in a demo or a test with VMs.
pub(crate) fn programs(tree: &Tree) -> Result<()> {
    guest_programs(tree)?;
    let step = Step::new("host programs");
    compile(tree, "release", &HOST)?;
    step.done();
    Ok(())
}

/// Compiles what the guest image holds. Not together with the host's: none of its crates may change
/// the agent's bytes, which are measured.
pub(crate) fn guest_programs(tree: &Tree) -> Result<()> {
    let step = Step::new("guest programs");
    compile(tree, "release", &["nacre-agent"])?;
    compile(tree, FREESTANDING, &["nacre-pause"])?;
    step.done();
    Ok(())
}

/// Compiles the bench of images, and the engine as a program for it. No VM has a part in it.
pub(crate) fn image_bench(tree: &Tree) -> Result<()> {
    let step = Step::new("host programs and the image engine");
    compile(tree, "release", &HOST)?;
    let mut cargo = tree.cargo("build");
    cargo.args(["--locked", "--release", "--package", "nacre-image-pull", "--example", "pull"]);
    run(&mut cargo)?;
    step.done();
    Ok(())
}

fn compile(tree: &Tree, profile: &str, packages: &[&str]) -> Result<()> {
    let mut cargo = tree.cargo("build");
    cargo.args(["--locked", "--bins", "--profile", profile]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    run(&mut cargo)
}

/// Builds kernel, initrd and manifest from the pinned packages and the compiled programs.
pub(crate) fn image(tree: &Tree) -> Result<()> {
    let step = Step::new("guest image");
    let progress = |line: &str| step.say(line);
    let pins = Pins::shipped()?;
    let (kernel, certificates) = (tree.prefix().join("kernel"), tree.prefix().join("certificates"));
    store(tree).unpack(from_ref(&pins.kernel.package), &kernel, &progress)?;
    store(tree).unpack(from_ref(&pins.certificates), &certificates, &progress)?;
    let shell = tree.prefix().join("development-shell");
    store(tree).unpack(from_ref(&pins.development_shell), &shell, &progress)?;
    let inputs = Inputs {
        pins: &pins,
        kernel: &kernel,
        certificates: &certificates,
        agent: &tree.programs_of("release").join("nacre-agent"),
        pause: &tree.programs_of(FREESTANDING).join("nacre-pause"),
        development_shell: &shell,
    };
    let manifest = nacre_guest_image::build(inputs, &tree.prefix().join("image"), &progress)?;
    for artifact in [&manifest.kernel.vmlinux, &manifest.initrd.file, &manifest.initrd.development]
    {
        step.say(format!("{} {}", artifact.sha256, artifact.name));
    }
    step.done();
    Ok(())
}

/// Writes what guests of the image measure beside its manifest, as a release of it carries.
pub(crate) fn measurements(tree: &Tree) -> Result<()> {
    let step = Step::new("host programs and measurements");
    compile(tree, "release", &HOST)?;
    let mut nacre = tree.command(tree.programs_of("release").join("nacre"));
    nacre.args(["measure", "--release"]).arg(tree.prefix().join("image"));
    nacre.arg("--firmware").arg(tree.prefix().join("firmware/usr/share/ovmf"));
    run(&mut nacre)?;
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
