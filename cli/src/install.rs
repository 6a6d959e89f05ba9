//! `nacre install`, `nacre uninstall` and `nacre containerd-config`.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nacre_node_install::{
    Bundle, Choices, Installed, Kept, Release, Root, Services, Step, Systemd, Uninstalled,
    Unmanaged, VmUser,
};
use serde::Serialize;

use crate::Verdict;
use crate::input::write_or_print;
use crate::output::Output;

/// Put Nacre on this node, or a new version beside the one that is there.
///
/// Programs and guest image go to /opt/nacre/VERSION, and /opt/nacre/current points to the version that new pods
/// get; pods that run keep theirs, and it goes when the last of them has ended. Units go to /etc/systemd/system,
/// configurations to /etc/nacre, and the handlers nacre, nacre-snp and nacre-tdx into containerd's configuration (K3s'
/// and RKE2's, too). containerd is asked first whether it would understand it and do all else as before; if it
/// does not come back with it, it gets back what it had. Files that you changed stay as they are. Repeating it does
/// nothing; what you named (--containerd, --containerd-config, --qemu) is kept. The installing is done by the program
/// in what is installed: another version brings its own units and configurations.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre-0.1.0/bin/nacre install            from the directory that this program is in
  nacre install --from nacre-0.2.0         a new version
  nacre install --dry-run                  what would it do?
  nacre install --vm-user nacre-vm         QEMU runs as an unprivileged user
  nacre install --output json | jq -r '.steps[] | .what + \" \" + .to'

Then: nacre check

Exit status: 0 installed; 2 it could not be.")]
pub(crate) struct Arguments {
    /// What is to be installed: a directory with bin and share [default: the one with this program].
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    node: Node,
    /// QEMU, where the directory brings none and it is in another place than usual [default: as before].
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Run QEMU as this user, who is made if absent, and no longer as root without capabilities. Later installations
    /// keep it.
    #[arg(long, value_name = "NAME")]
    vm_user: Option<VmUser>,
    /// Give all pods of this node to Nacre: containerd 1.6 cannot do otherwise, and pods without Nacre (those of the
    /// cluster, too) then find no files.
    #[arg(long)]
    danger_all_pods: bool,
    #[command(flatten)]
    output: Output,
}

/// Take Nacre off this node.
///
/// containerd's configuration becomes what it was before `nacre install`; what was added to it since stays.
/// Files that you changed stay, and so do /var/lib/nacre and versions that pods still use. Drain the node first:
/// while pods of Nacre run it refuses.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre uninstall --dry-run
  nacre uninstall

Exit status: 0 nothing is installed any more; 2 it could not be done, or pods run.")]
pub(crate) struct Removal {
    #[command(flatten)]
    node: Node,
    /// Leave pods behind that run. containerd will not be able to tell them anything.
    #[arg(long)]
    danger_with_running_pods: bool,
    #[command(flatten)]
    output: Output,
}

/// What is where on the node.
#[derive(Args)]
struct Node {
    /// containerd's program [default: as before, or K3s' or RKE2's, or one in /usr/local/bin or /usr/bin].
    #[arg(long, value_name = "PROGRAM")]
    containerd: Option<PathBuf>,
    /// containerd's configuration [default: as before, or K3s' or RKE2's template, or /etc/containerd/config.toml].
    #[arg(long, value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// The node's file system, for images of nodes: all starts when they boot.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Start and restart nothing: you do, or the next installation.
    #[arg(long)]
    no_start: bool,
    /// Only say what would be done. containerd is not asked whether it would understand its configuration.
    #[arg(long)]
    dry_run: bool,
}

/// Print the lines that lead containerd's pods to Nacre, as deploy/containerd has them.
///
/// For nodes whose configuration something else writes. `nacre install` adds them by itself. What they say at their
/// beginning matters: which version they have, and what containerd forgets when they are there.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre containerd-config --release 1.7
  nacre containerd-config --release 2 -o nacre.toml

Exit status: 0 written; 2 it could not be.")]
pub(crate) struct Lines {
    /// containerd's release.
    #[arg(long, value_enum)]
    release: Wanted,
    /// Where to write them [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Wanted {
    /// 1.6
    #[value(name = "1.6")]
    V1_6,
    /// 1.7
    #[value(name = "1.7")]
    V1_7,
    /// 2.0 and later
    #[value(name = "2")]
    V2,
}

pub(crate) fn print_lines(arguments: &Lines) -> anyhow::Result<Verdict> {
    let release = match arguments.release {
        Wanted::V1_6 => Release::V1_6,
        Wanted::V1_7 => Release::V1_7,
        Wanted::V2 => Release::V2,
    };
    write_or_print(arguments.to.as_deref(), &release.shipped())?;
    Ok(Verdict::Good)
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let from = match &arguments.from {
        Some(from) => from.clone(),
        None => own_directory()?,
    };
    if let Some(error) = handed_over(&from)? {
        return Err(error);
    }
    let bundle = Bundle::open(&from, env!("CARGO_PKG_VERSION"))?;
    let choices = Choices {
        qemu: arguments.qemu.clone(),
        vm_user: arguments.vm_user.clone(),
        danger_all_pods: arguments.danger_all_pods,
        ..arguments.node.choices()
    };
    let node = &arguments.node;
    node.check()?;
    let root = Root::new(&node.root);
    let done = nacre_node_install::install(&root, &bundle, &choices, node.services())?;
    arguments.output.show(&done, |done| installed(done, node))?;
    Ok(Verdict::Good)
}

pub(crate) fn remove(arguments: &Removal) -> anyhow::Result<Verdict> {
    let node = &arguments.node;
    node.check()?;
    let danger = arguments.danger_with_running_pods;
    let done = nacre_node_install::uninstall(
        &Root::new(&node.root),
        &node.choices(),
        danger,
        node.services(),
    )?;
    arguments.output.show(&done, |done| uninstalled(done, node))?;
    Ok(Verdict::Good)
}

/// Becomes the `nacre` of what is to be installed, which knows its own units and configurations; returns why it could
/// not, or nothing if it is that program already or there is none (which is told in its place).
fn handed_over(from: &Path) -> anyhow::Result<Option<anyhow::Error>> {
    let Ok(theirs) = from.join("bin/nacre").canonicalize() else { return Ok(None) };
    let own = std::env::current_exe().context("failed to find this program")?;
    if own.canonicalize().is_ok_and(|own| own == theirs) {
        return Ok(None);
    }
    let error = Command::new(&theirs).args(std::env::args_os().skip(1)).exec();
    Ok(Some(anyhow::Error::new(error).context(format!("failed to run {}", theirs.display()))))
}

/// The directory with `bin/nacre`, if that is this program.
fn own_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let directory = program.parent().filter(|bin| bin.ends_with("bin")).and_then(Path::parent);
    let directory = directory.filter(|directory| directory.join("share/nacre").is_dir());
    directory.map(Path::to_owned).with_context(|| {
        format!(
            "{} is not in a directory that can be installed: name one with --from",
            program.display()
        )
    })
}

impl Node {
    fn choices(&self) -> Choices {
        Choices {
            containerd: self.containerd.clone(),
            config: self.containerd_config.clone(),
            dry_run: self.dry_run,
            ..Choices::default()
        }
    }

    fn services(&self) -> &'static dyn Services {
        match (self.root == Path::new("/"), self.no_start) {
            (true, false) => &Systemd,
            (true, true) => &Unmanaged { at_boot: false },
            (false, _) => &Unmanaged { at_boot: true },
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.root.is_absolute(), "--root {} is no absolute path", self.root.display());
        let runs_systemd = Path::new("/run/systemd/system").is_dir();
        let starts = !self.no_start && self.root == Path::new("/") && !self.dry_run;
        ensure!(
            !starts || runs_systemd,
            "systemd does not run here: use --no-start, and start the programs in /opt/nacre/bin yourself"
        );
        Ok(())
    }
}

/// Says what was done.
#[derive(Serialize)]
struct Lists<'a> {
    steps: &'a [Step],
    left: &'a [PathBuf],
    kept: &'a [Kept],
}

impl Lists<'_> {
    fn write(&self, text: &mut String) {
        for step in self.steps {
            let _ = writeln!(text, "  {:8} {}", step.what, step.to);
        }
        for path in self.left {
            let _ = writeln!(text, "  left     {}: it is not nacre's", path.display());
        }
        for kept in self.kept {
            let count = kept.processes.len();
            let _ = writeln!(text, "  kept     version {}: {count} processes use it", kept.version);
        }
    }
}

fn installed(done: &Installed, node: &Node) -> String {
    let mut text = match (done.steps.is_empty(), node.dry_run) {
        (true, _) => format!("Version {} is installed; nothing to do.\n", done.version),
        (false, true) => format!("Version {} would be installed:\n", done.version),
        (false, false) => format!("Version {} is installed:\n", done.version),
    };
    Lists { steps: &done.steps, left: &done.left, kept: &done.kept }.write(&mut text);
    if !node.dry_run && !done.steps.is_empty() {
        let starts = done.steps.iter().any(|step| step.what == "restart");
        let touched =
            done.steps.iter().any(|step| step.what == "write" && step.to.contains("containerd"));
        if touched && !starts && node.root == Path::new("/") {
            text.push_str(
                "containerd was not restarted: restart it, or its pods stay without Nacre.\n",
            );
        }
        text.push_str("`nacre check` says what this node can run.\n");
    }
    text
}

fn uninstalled(done: &Uninstalled, node: &Node) -> String {
    let mut text = match (done.steps.is_empty(), node.dry_run) {
        (true, _) => "Nacre is not installed; nothing to do.\n".to_owned(),
        (false, true) => "Nacre would be taken off this node:\n".to_owned(),
        (false, false) => "Nacre was taken off this node; /var/lib/nacre stays:\n".to_owned(),
    };
    Lists { steps: &done.steps, left: &done.left, kept: &done.kept }.write(&mut text);
    if let Some(why) = &done.unasked {
        let _ = writeln!(
            text,
            "containerd could not be asked what it makes of its configuration without Nacre: {why}"
        );
    }
    text
}
