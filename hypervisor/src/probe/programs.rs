//! QEMU and containerd, by what they say of themselves.

use std::path::{Path, PathBuf};

use super::finding::{Finding, Status, Tee};
use super::host::{Host, Kind, Missing};
use crate::QemuVersion;

/// A program that answered `--version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// Major and minor number.
    pub(crate) numbers: (u32, u32),
    /// As the program says it, such as `10.0.2`.
    pub(crate) text: String,
}

/// What QEMU says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qemu {
    pub(crate) path: PathBuf,
    pub(crate) version: Result<Version, Missing>,
    /// Whether it knows `sev-snp-guest`.
    pub(crate) snp: bool,
    /// Whether it knows `tdx-guest`.
    pub(crate) tdx: bool,
}

impl Qemu {
    pub(crate) fn gather(host: &dyn Host, path: &Path) -> Qemu {
        let version = ask_version(host, path, "QEMU emulator version ");
        let objects = match &version {
            Ok(_) => host.run(path, &["-object", "help"]).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let objects = String::from_utf8_lossy(&objects);
        let knows = |object| objects.lines().any(|line| line.trim() == object);
        Qemu {
            path: path.to_owned(),
            version,
            snp: knows("sev-snp-guest"),
            tdx: knows("tdx-guest"),
        }
    }
}

/// containerd, where the path of programs has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Containerd {
    pub(crate) path: Option<PathBuf>,
    pub(crate) version: Result<Version, Missing>,
}

impl Containerd {
    pub(crate) fn gather(host: &dyn Host, program_dirs: &[PathBuf]) -> Containerd {
        let path = find_program(host, program_dirs, "containerd");
        let version = match &path {
            Some(path) => ask_version(host, path, "containerd "),
            None => Err(Missing::Absent),
        };
        Containerd { path, version }
    }
}

/// The first executable of a name.
pub(crate) fn find_program(host: &dyn Host, dirs: &[PathBuf], name: &str) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join(name)).find(|path| is_program(host, path))
}

pub(crate) fn is_program(host: &dyn Host, path: &Path) -> bool {
    host.look(path).is_ok_and(|entry| entry.kind == Kind::File && entry.executable)
}

/// Asks a program for its version: after `prefix` on the first line, in the first word that begins with a
/// number, perhaps after a `v`.
fn ask_version(host: &dyn Host, path: &Path, prefix: &str) -> Result<Version, Missing> {
    let answer = host.run(path, &["--version"]).map_err(|error| Missing::of(&error))?;
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    let version = line.strip_prefix(prefix).and_then(|rest| {
        rest.split_whitespace().map(|word| word.strip_prefix('v').unwrap_or(word)).find_map(version)
    });
    version.ok_or_else(|| Missing::Broken(format!("--version answers {line:?}")))
}

fn version(word: &str) -> Option<Version> {
    let number = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    };
    let (major, rest) = word.split_once('.')?;
    // Of 10.0.2+ds only 10.0.2.
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    Some(Version {
        numbers: (major.parse().ok()?, number(rest)?),
        text: word[..end].trim_end_matches('.').to_owned(),
    })
}

/// The oldest QEMU with `tdx-guest`.
const TDX_QEMU: (u32, u32) = (10, 1);

pub(crate) fn qemu_findings(qemu: &Qemu, tee: Tee) -> [Finding; 2] {
    [qemu_version(qemu, tee), qemu_objects(qemu, tee)]
}

fn qemu_version(qemu: &Qemu, tee: Tee) -> Finding {
    const ID: &str = "qemu.version";
    let shown = qemu.path.display();
    let version = match &qemu.version {
        Ok(version) => version,
        Err(missing) => {
            let advice = "install QEMU 9.1 or later (10.1 for TDX), or correct vm.qemu";
            return Finding::fail(ID, format!("{shown} {missing}"), advice);
        }
    };
    let found = format!("{} at {shown}", version.text);
    let least = (QemuVersion::LEAST.major, QemuVersion::LEAST.minor);
    if version.numbers < least {
        let advice = format!("install QEMU {} or later", QemuVersion::LEAST);
        return Finding::fail(ID, found, advice);
    }
    if tee == Tee::Tdx && version.numbers < TDX_QEMU {
        return Finding::fail(ID, found, "install QEMU 10.1 or later: it is the first with TDX");
    }
    Finding::pass(ID, found)
}

fn qemu_objects(qemu: &Qemu, tee: Tee) -> Finding {
    const ID: &str = "qemu.objects";
    let known = [(qemu.snp, "sev-snp-guest"), (qemu.tdx, "tdx-guest")];
    let names: Vec<&str> =
        known.iter().filter(|(known, _)| *known).map(|&(_, name)| name).collect();
    let found = match names.as_slice() {
        [] => "knows no confidential guests".to_owned(),
        names => names.join(", "),
    };
    if qemu.version.is_err() {
        return Finding::skip(ID, "see qemu.version");
    }
    let advice =
        "install a QEMU that was built with it: 9.1 or later for sev-snp-guest, 10.1 for tdx-guest";
    let status = match tee {
        Tee::None | Tee::EmulatedSnp => Status::NotApplicable,
        Tee::Snp if qemu.snp => Status::Pass,
        Tee::Tdx if qemu.tdx => Status::Pass,
        Tee::Snp | Tee::Tdx => Status::Fail,
    };
    Finding::new(ID, status, found, advice)
}

/// The oldest containerd that pods are tested with.
const LEAST_CONTAINERD: (u32, u32) = (1, 6);

pub(crate) fn containerd_finding(containerd: &Containerd) -> Finding {
    const ID: &str = "containerd.version";
    match (&containerd.path, &containerd.version) {
        (Some(path), Ok(version)) if version.numbers < LEAST_CONTAINERD => Finding::fail(
            ID,
            format!("{} at {}", version.text, path.display()),
            "install containerd 1.6 or later",
        ),
        (Some(path), Ok(version)) => {
            Finding::pass(ID, format!("{} at {}", version.text, path.display()))
        }
        (Some(path), Err(missing)) => Finding::warn(
            ID,
            format!("{} {missing}", path.display()),
            "see that containerd runs; 1.6, 1.7 and 2.x are known to work",
        ),
        (None, _) => Finding::warn(
            ID,
            "no containerd on the path of programs",
            "install containerd 1.6 or later; where Kubernetes brings its own (k3s, RKE2), name its \
             configuration with --containerd-config",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (word, numbers, text) in [
            ("10.0.2", (10, 0), "10.0.2"),
            ("9.1", (9, 1), "9.1"),
            ("1.6.20~ds1", (1, 6), "1.6.20"),
            ("2.1.9+unknown", (2, 1), "2.1.9"),
            ("2.2.0-rc.1", (2, 2), "2.2.0"),
            ("7.2-rc1", (7, 2), "7.2"),
        ] {
            assert_eq!(version(word).unwrap(), Version { numbers, text: text.to_owned() });
        }
        for word in ["", "ten", "10", "-1.2", ".5", "1.", "99999999999.1", "github.com/x"] {
            assert_eq!(version(word), None, "{word}");
        }
    }
}
