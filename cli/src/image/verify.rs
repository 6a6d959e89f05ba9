//! `nacre image verify`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use nacre_image_manifest::{GuestImage, MEASUREMENTS, Problem, VerifyError};
use serde::Serialize;

use crate::Verdict;
use crate::input::print;
use crate::output::{Output, print_json};

/// Check an installed guest image against its manifest.
///
/// Every file, every entry of the initrd, the development image's only difference, and that nothing else is
/// in the directory; all that is wrong is listed. A manifest that stands beside the files says that they
/// belong together, not whose they are: for that, give the manifest that you trust. The values in
/// measurements.json are not computed anew.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre image verify
  nacre image verify /opt/nacre/share/nacre --manifest release/manifest.json
  nacre image verify company-image --output json

Exit status: 0 the image is what its manifest says; 1 it is not; 2 there is no image or manifest that can
be read.")]
pub(crate) struct Arguments {
    /// The image's directory.
    #[arg(value_name = "DIR", default_value_os_t = super::installed())]
    directory: PathBuf,
    /// The manifest that the image is held to [default: the one in the directory].
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown<'a> {
    image: String,
    /// Hash of the manifest: what the whole image is known by.
    manifest_sha256: String,
    kernel: &'a str,
    command_line: &'a str,
    verified: bool,
    problems: Vec<ShownProblem<'a>>,
    /// Files whose contents nothing was compared with, and how to do it.
    not_checked: Vec<NotChecked>,
}

#[derive(Serialize)]
struct NotChecked {
    file: &'static str,
    what: &'static str,
    instead: &'static str,
}

/// Only `nacre measure` can tell whether the numbers in it are right.
fn not_checked(image: &GuestImage) -> Vec<NotChecked> {
    let there = image.directory().join(MEASUREMENTS).exists();
    let measurements = NotChecked {
        file: MEASUREMENTS,
        what: "the values",
        instead: "compare with `nacre measure --release`",
    };
    there.then_some(measurements).into_iter().collect()
}

#[derive(Serialize)]
struct ShownProblem<'a> {
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a str>,
    problem: String,
}

impl<'a> From<&'a Problem> for ShownProblem<'a> {
    fn from(problem: &'a Problem) -> Self {
        let Problem { file, entry, fault } = problem;
        Self { file, entry: entry.as_deref(), problem: fault.to_string() }
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let image = match &arguments.manifest {
        Some(manifest) => GuestImage::open_by(&arguments.directory, manifest)?,
        None => GuestImage::open(&arguments.directory)?,
    };
    let problems = match image.verify() {
        Ok(_) => Vec::new(),
        Err(VerifyError { problems, .. }) => problems,
    };
    if arguments.output.is_json() {
        let shown = Shown {
            image: image.directory().display().to_string(),
            manifest_sha256: image.manifest_file().sha256.to_string(),
            kernel: &image.manifest().kernel.release,
            command_line: image.command_line(),
            verified: problems.is_empty(),
            problems: problems.iter().map(ShownProblem::from).collect(),
            not_checked: not_checked(&image),
        };
        print_json(&shown)?;
    } else {
        print(&text(&image, &problems))?;
    }
    Ok(if problems.is_empty() { Verdict::Good } else { Verdict::Bad })
}

fn text(image: &GuestImage, problems: &[Problem]) -> String {
    let manifest = image.manifest();
    let mut text = format!("{}\n", image.directory().display());
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:23} {value}");
    };
    line("manifest", &image.manifest_file().sha256.to_string());
    line("kernel", &manifest.kernel.release.escape_debug().to_string());
    line("command line", image.command_line());
    for (name, value) in super::build::additions(manifest) {
        line(name, &value);
    }
    for problem in problems {
        let _ = writeln!(text, "{problem}");
    }
    for NotChecked { file, what, instead } in not_checked(image) {
        let _ = writeln!(text, "not checked: {what} in {file}: {instead}");
    }
    let (artifacts, entries) = (manifest.artifacts().len(), manifest.files.len());
    let _ = match problems.len() {
        0 => writeln!(text, "verified: {artifacts} files, {entries} entries of the initrd"),
        1 => writeln!(text, "NOT what its manifest says: 1 problem"),
        count => writeln!(text, "NOT what its manifest says: {count} problems"),
    };
    text
}
