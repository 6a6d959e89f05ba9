//! `nacre image build`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use clap::Args;
use nacre_guest_image::authorities::Authority;
use nacre_guest_image::drivers::{KernelPackage, ModuleFile};
use nacre_guest_image::{Additions, extend};
use nacre_image_manifest::{GuestImage, Manifest, VerifiedImage};

use crate::Verdict;
use crate::input::{print, read};
use crate::measure::measurements_of;

/// Make a guest image of one's own from an installed one, with certificate authorities and drivers.
///
/// The same additions to the same image give the same bytes wherever this runs, so that others can make them
/// again and compare. What was added is listed in the new image's manifest. Kernel, command line and programs
/// stay as they are; what guests measure does not.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre image build --ca company-root.pem -o company-image
  nacre image build --from company-image --module sensor.ko -o sensor-image
  nacre image build --driver wireguard --kernel-package linux-image-6.12.95+deb12-cloud-amd64.deb -o vpn-image

Nodes use the new image if their configuration says so: vm.image = \"DIR\". Key brokers need what it
measures: printed, and in DIR/measurements.json for nodes with the configuration as shipped; nacre measure
computes it for any other.

Exit status: 0 made; 2 something cannot be read, is not what it should be, or is there already.")]
pub(crate) struct Arguments {
    /// The image to build from; it is verified first.
    #[arg(long, value_name = "DIR", default_value_os_t = super::installed())]
    from: PathBuf,
    /// Certificate authorities (PEM) that TLS in the guest is to trust, for registries and key brokers. May be
    /// given several times.
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// A kernel module (.ko, .ko.xz or .ko.zst) that guests load at their start, built for the image's kernel.
    /// May be given several times.
    #[arg(long, value_name = "FILE")]
    module: Vec<PathBuf>,
    /// A module of the kernel's package that guests load at their start, by name. May be given several times.
    #[arg(long, value_name = "NAME", requires = "kernel_package")]
    driver: Vec<String>,
    /// The Debian package of the image's kernel, for --driver and for what modules depend on.
    #[arg(long, value_name = "FILE")]
    kernel_package: Option<PathBuf>,
    /// Directory of the firmware, OVMF.amdsev.fd and OVMF.inteltdx.fd, for which the new image is measured
    /// [default: where it is installed].
    #[arg(long, value_name = "DIR")]
    firmware: Option<PathBuf>,
    /// Where the new image goes: a directory that does not exist yet.
    #[arg(short = 'o', long = "to", value_name = "DIR")]
    to: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let Arguments { ca, module, driver, kernel_package, .. } = arguments;
    ensure!(
        !(ca.is_empty() && module.is_empty() && driver.is_empty()),
        "nothing is to be added: give --ca, --module or --driver"
    );
    let base = GuestImage::open(&arguments.from)?.verify()?;
    let additions = Additions {
        authorities: authorities(ca)?,
        modules: modules(module)?,
        drivers: driver.clone(),
        kernel_package: kernel_package
            .as_ref()
            .map(|path| KernelPackage::open(path, base.manifest()))
            .transpose()?,
    };
    let built = extend(&base, &additions, &arguments.to, &|line| eprintln!("nacre: {line}"))?;
    print(&text(&built))?;
    // The image is there and sound, whatever firmware is installed here.
    match measurements_of(&arguments.to, arguments.firmware.as_deref()) {
        Ok(release) => print(&release.write(&arguments.to)?)?,
        Err(error) => eprintln!("nacre: warning: the image was not measured: {error:#}"),
    }
    Ok(Verdict::Good)
}

fn authorities(files: &[PathBuf]) -> anyhow::Result<Vec<Authority>> {
    let mut all = Vec::new();
    for path in files {
        let found = Authority::read(&read(path)?).with_context(|| path.display().to_string())?;
        for authority in &found {
            if authority.is_expired(SystemTime::now()) {
                let subject = authority.subject();
                eprintln!(
                    "nacre: warning: {}: the certificate of {subject} has expired; guests refuse what it \
                     signed",
                    path.display()
                );
            }
        }
        all.extend(found);
    }
    Ok(all)
}

fn modules(files: &[PathBuf]) -> anyhow::Result<Vec<ModuleFile>> {
    let module = |path: &PathBuf| Ok(ModuleFile::read(&path.display().to_string(), &read(path)?)?);
    files.iter().map(module).collect()
}

fn text(built: &VerifiedImage) -> String {
    let directory = built.image().directory();
    let manifest = built.manifest();
    let mut text = format!("{}\n", directory.display());
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:23} {value}");
    };
    for artifact in manifest.artifacts() {
        line(&artifact.name, &artifact.sha256.to_string());
    }
    let file = built.image().manifest_file();
    line(&file.name, &file.sha256.to_string());
    for (name, value) in additions(manifest) {
        line(name, &value);
    }
    text
}

/// What the last step added, a line each.
pub(super) fn additions(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let Some(last) = manifest.extensions.last() else { return Vec::new() };
    let mut lines = vec![("made from", last.base.to_string())];
    for certificate in &last.certificates {
        let subject = certificate.subject.escape_debug();
        lines.push(("certificate authority", format!("{} {subject}", certificate.sha256)));
    }
    for module in &last.modules {
        let how = if module.loaded { "" } else { " (needed by others)" };
        lines.push(("module", format!("{} {}{how}", module.sha256, module.name.escape_debug())));
    }
    lines
}
