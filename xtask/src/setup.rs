//! What a fresh Debian needs: packages, a QEMU that is new enough, and a kernel that lets us.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::slice::from_ref;

use anyhow::{Context, Result, bail};
use nacre_guest_image::Pins;
use nacre_guest_image::debian::Store;

use crate::step::{Step, run};
use crate::tree::{Tree, find_program};

/// The oldest QEMU that boots the guest's kernel reliably in software emulation.
const OLDEST_QEMU: (u32, u32) = (9, 1);

/// What the machine is made ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compiling and the guest image.
    Building,
    /// Also running VMs under containerd.
    Vms,
}

/// A Debian package and the file that shows that it, or an equal, is there.
struct Need {
    package: &'static str,
    found_by: &'static str,
    purpose: Purpose,
}

const fn need(package: &'static str, found_by: &'static str, purpose: Purpose) -> Need {
    Need { package, found_by, purpose }
}

const NEEDS: &[Need] = &[
    need("libseccomp-dev", "/usr/lib/x86_64-linux-gnu/libseccomp.a", Purpose::Building),
    need("protobuf-compiler", "protoc", Purpose::Building),
    need("xz-utils", "xz", Purpose::Building),
    need("containerd", "containerd", Purpose::Vms),
    need("containernetworking-plugins", "/usr/lib/cni/bridge", Purpose::Vms),
    need("docker-registry", "docker-registry", Purpose::Vms),
    need("busybox-static", "/usr/share/doc/busybox-static", Purpose::Vms),
    need("skopeo", "skopeo", Purpose::Vms),
    need("gnupg", "gpg", Purpose::Vms),
    need("iproute2", "tc", Purpose::Vms),
    need("iptables", "iptables", Purpose::Vms),
    need("nftables", "nft", Purpose::Vms),
];

/// Services of those packages, which Debian starts when it installs them.
const SERVICES: [&str; 2] = ["containerd", "docker-registry"];

/// Checks the machine and installs what is missing. Cheap when nothing is.
pub(crate) fn prepare(tree: &Tree, purpose: Purpose) -> Result<()> {
    let step = Step::new("setup");
    check_debian()?;
    if purpose == Purpose::Vms {
        check_machine(tree)?;
    }
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|need| need.purpose == Purpose::Building || purpose == Purpose::Vms)
        .filter(|need| !is_there(need.found_by))
        .map(|need| need.package.to_owned())
        .collect();
    install(tree, &step, &missing)?;
    if purpose == Purpose::Vms {
        qemu(tree, &step)?;
    }
    step.done();
    Ok(())
}

/// Fetches the other containerd releases the tests know. Returns those that could not be had: their
/// tests are skipped, visibly, since a mirror that has moved on is no fault of this tree.
pub(crate) fn further_containerds(tree: &Tree) -> Result<Vec<String>> {
    let step = Step::new("further containerd releases");
    let pins = Pins::shipped()?;
    let mut missing = Vec::new();
    for (release, package) in &pins.containerd {
        let destination = tree.prefix().join(format!("containerd-{release}"));
        let unpacked = store(tree).unpack(from_ref(package), &destination, &|line| step.say(line));
        if let Err(error) = unpacked {
            step.say(format!("tests with containerd {release} will be SKIPPED: {error}"));
            missing.push(release.clone());
        }
    }
    step.done();
    Ok(missing)
}

/// Fetches the Docker that the tests know. Without it their story of Docker is skipped, visibly, as with
/// the containerd releases.
pub(crate) fn docker(tree: &Tree) -> Result<()> {
    let step = Step::new("Docker");
    let destination = tree.prefix().join("docker");
    let packages = &Pins::shipped()?.docker.packages;
    if let Err(error) = store(tree).unpack(packages, &destination, &|line| step.say(line)) {
        step.say(format!("tests with Docker will be SKIPPED: {error}"));
    }
    step.done();
    Ok(())
}

/// The pinned packages of this tree.
pub(crate) fn store(tree: &Tree) -> Store {
    Store::new(&tree.prefix(), Path::new("/etc/apt"))
}

fn check_debian() -> Result<()> {
    for program in ["apt-get", "dpkg-deb", "dpkg-query"] {
        if find_program(program).is_none() {
            bail!(
                "{program} is missing: Nacre is developed on Debian 12 or later (a container or VM of \
                 it will do, with root, /dev/net/tun and network namespaces)"
            );
        }
    }
    Ok(())
}

fn is_there(found_by: &str) -> bool {
    if found_by.starts_with('/') {
        Path::new(found_by).exists()
    } else {
        find_program(found_by).is_some()
    }
}

/// What cannot be installed: rights and kernel features.
fn check_machine(tree: &Tree) -> Result<()> {
    // Asks for a password now, if it must, not in the middle.
    run(&mut tree.root_command("true")?).context("root is needed for containerd and networks")?;
    let mut unshare = tree.root_command("unshare")?;
    let output = unshare.args(["--net", "--mount", "true"]).output().context("unshare")?;
    if !output.status.success() {
        bail!(
            "no network namespace can be made here ({}): in a container, give it more rights (for \
             instance --privileged)",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()), // root may
        Err(error) => bail!(
            "/dev/net/tun cannot be opened ({error}): pods need it for their network; load the module \
             tun, or give the container that device"
        ),
    }
}

fn install(tree: &Tree, step: &Step, packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    step.say(format!("installing missing Debian packages: {}", packages.join(" ")));
    // apt must not start services, nor remove what stands in a package's way.
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = tree.root_command("env")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1", "apt-get", "-qq"]);
        run(command.args(["-o", "Dpkg::Use-Pty=0"]).args(arguments).stdin(Stdio::null()))
    };
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages.iter().map(String::as_str));
    apt(&arguments)?;
    for service in SERVICES.iter().filter(|service| packages.iter().any(|p| p == *service)) {
        disable(tree, step, service)?;
    }
    Ok(())
}

/// We need the program, not the service.
fn disable(tree: &Tree, step: &Step, service: &str) -> Result<()> {
    if find_program("systemctl").is_none() {
        return Ok(());
    }
    let mut systemctl = tree.root_command("systemctl")?;
    let output = systemctl.args(["disable", "--now", "--quiet", service]).output()?;
    step.say(if output.status.success() {
        format!("the service {service} is not started; `systemctl enable {service}` changes that")
    } else {
        format!("the service {service} could not be disabled; it is not needed")
    });
    Ok(())
}

/// Unpacks the pinned QEMU beneath the prefix, unless the system's own is new enough.
fn qemu(tree: &Tree, step: &Step) -> Result<()> {
    let system = find_program("qemu-system-x86_64").and_then(|path| qemu_version(&path));
    if let Some((major, minor)) = system
        && (major, minor) >= OLDEST_QEMU
    {
        step.say(format!("QEMU {major}.{minor} of the system is used"));
        return Ok(());
    }
    let prefix = tree.prefix().join("qemu");
    let pins = Pins::shipped()?;
    store(tree).unpack(&pins.qemu, &prefix, &|line| step.say(line))?;
    let binary = prefix.join("usr/bin/qemu-system-x86_64");
    if qemu_version(&binary).is_none() {
        install(tree, step, &missing_libraries(tree, &pins)?)?;
    }
    let Some((major, minor)) = qemu_version(&binary) else {
        let output = Command::new(&binary).arg("--version").output();
        let why = output.map(|o| String::from_utf8_lossy(&o.stderr).trim().to_owned());
        bail!("{} does not run: {}", binary.display(), why.unwrap_or_else(|e| e.to_string()));
    };
    let found = system.map_or("none".to_owned(), |(major, minor)| format!("{major}.{minor}"));
    step.say(format!("QEMU {major}.{minor} beneath target/nacre/qemu (the system's: {found})"));
    Ok(())
}

/// Major and minor number, if it runs: "QEMU emulator version 10.0.2 (Debian ...)".
fn qemu_version(binary: &Path) -> Option<(u32, u32)> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    parse_qemu_version(std::str::from_utf8(&output.stdout).ok()?)
}

fn parse_qemu_version(text: &str) -> Option<(u32, u32)> {
    let version = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Libraries the unpacked QEMU depends on and the system lacks.
fn missing_libraries(tree: &Tree, pins: &Pins) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for package in &pins.qemu {
        let file = store(tree).fetch(package, &|_| {})?;
        let output = Command::new("dpkg-deb").arg("--field").arg(file).arg("Depends").output()?;
        let depends = String::from_utf8_lossy(&output.stdout).into_owned();
        missing.extend(libraries(&depends).filter(|name| !is_installed(name)).map(str::to_owned));
    }
    Ok(missing)
}

/// Names of the libraries in a `Depends` field; of alternatives the first.
fn libraries(depends: &str) -> impl Iterator<Item = &str> {
    let names = depends.split(',').filter_map(|word| word.split_whitespace().next());
    names.filter(|name| name.starts_with("lib") || name.starts_with("zlib"))
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let output = query.args(["--show", "--showformat=${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.stdout == b"installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions_are_read() {
        let bookworm = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)\nCopyright";
        assert_eq!(parse_qemu_version(bookworm), Some((7, 2)));
        assert_eq!(parse_qemu_version("QEMU emulator version 10.0.2\n"), Some((10, 0)));
        assert!((10, 0) >= OLDEST_QEMU && (9, 0) < OLDEST_QEMU);
        assert_eq!(parse_qemu_version("QEMU emulator version x"), None);
        assert_eq!(parse_qemu_version(""), None);
    }

    #[test]
    fn libraries_are_picked_from_depends() {
        let depends =
            "libaio1 (>= 0.3.93), libc6 (>= 2.34), zlib1g (>= 1:1.2.0), seabios (>> 1.16)";
        assert_eq!(libraries(depends).collect::<Vec<_>>(), ["libaio1", "libc6", "zlib1g"]);
    }
}
