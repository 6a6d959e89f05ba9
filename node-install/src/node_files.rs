//! What is on a node beside programs and containerd's configuration: units, configurations, names on the path.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::NodeError;
use crate::bundle::Bundle;
use crate::files::Root;
use crate::handlers::HANDLERS;

/// A systemd unit.
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// Whether it is wanted at boot: the others are the administrator's choice, or belong to a timer.
    pub(crate) enabled: bool,
}

impl Unit {
    /// Whether it does something once, and so is not started by an installation: boot and timers do.
    pub(crate) fn is_oneshot(&self) -> bool {
        self.text.lines().any(|line| line == "Type=oneshot")
    }

    /// What makes it start at boot, as systemctl(1) does: a link to it, and where that points.
    pub(crate) fn wanted(&self) -> Option<(PathBuf, String)> {
        let by = self.text.lines().find_map(|line| line.strip_prefix("WantedBy="))?;
        let link = Path::new(UNIT_DIRECTORY).join(format!("{by}.wants")).join(self.name);
        Some((link, format!("{UNIT_DIRECTORY}/{}", self.name)))
    }
}

pub(crate) const UNITS: [Unit; 7] = [
    Unit {
        name: "nacre-snapshotter.service",
        text: include_str!("../../deploy/systemd/nacre-snapshotter.service"),
        enabled: true,
    },
    Unit {
        name: "nacre-cache.service",
        text: include_str!("../../node-cache/nacre-cache.service"),
        enabled: true,
    },
    Unit {
        name: "nacre-gc.service",
        text: include_str!("../../deploy/systemd/nacre-gc.service"),
        enabled: true,
    },
    Unit {
        name: "nacre-gc.timer",
        text: include_str!("../../deploy/systemd/nacre-gc.timer"),
        enabled: true,
    },
    Unit {
        name: "nacre-labels.service",
        text: include_str!("../../deploy/systemd/nacre-labels.service"),
        enabled: false,
    },
    Unit {
        name: "nacre-labels.timer",
        text: include_str!("../../deploy/systemd/nacre-labels.timer"),
        enabled: true,
    },
    Unit {
        name: "nacre-metrics.service",
        text: include_str!("../../deploy/systemd/nacre-metrics.service"),
        enabled: false,
    },
];

/// Where the users of programs are, on the node (sysusers.d(5)).
pub(crate) const SYSUSERS: &str = "/etc/sysusers.d/nacre-vm.conf";

/// Name of a user for QEMU, checked: it becomes part of files and an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmUser(String);

impl VmUser {
    /// The name in the shipped file.
    const SHIPPED: &str = "nacre-vm";
    /// The longest name that useradd(8) takes.
    const LONGEST: usize = 32;

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// What systemd-sysusers makes it by.
    pub(crate) fn sysusers(&self) -> String {
        let shipped = include_str!("../../deploy/systemd/nacre-vm.sysusers");
        shipped.replacen(&format!("u {} ", VmUser::SHIPPED), &format!("u {} ", self.0), 1)
    }

    /// Whether the node has it, by passwd(5).
    pub(crate) fn is_in(&self, passwd: &str) -> bool {
        passwd.lines().any(|line| line.split(':').next() == Some(&self.0))
    }
}

impl TryFrom<String> for VmUser {
    type Error = String;

    fn try_from(name: String) -> Result<VmUser, String> {
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        if starts && name.len() <= VmUser::LONGEST && name.chars().all(inner) && name != "root" {
            return Ok(VmUser(name));
        }
        Err(format!("{name:?} is no name for an unprivileged user: give one such as nacre-vm"))
    }
}

impl std::str::FromStr for VmUser {
    type Err = String;

    fn from_str(name: &str) -> Result<VmUser, String> {
        name.to_owned().try_into()
    }
}

impl From<VmUser> for String {
    fn from(user: VmUser) -> String {
        user.0
    }
}

/// Where units are, on the node.
pub(crate) const UNIT_DIRECTORY: &str = "/etc/systemd/system";

/// Names on containerd's and the administrator's path.
pub(crate) const PATH_LINKS: [(&str, &str); 2] = [
    ("/usr/local/bin/containerd-shim-nacre-v2", "/opt/nacre/bin/containerd-shim-nacre-v2"),
    ("/usr/local/bin/nacre", "/opt/nacre/bin/nacre"),
];

/// The shim's configurations, one for each handler: the shipped one, with what this node has in other places.
pub(crate) fn configurations(
    root: &Root,
    bundle: &Bundle,
    qemu: Option<&Path>,
    vm_user: Option<&VmUser>,
) -> Result<Vec<(PathBuf, String)>, NodeError> {
    let mut text = include_str!("../../configuration/config.toml").to_owned();
    let mut set = |key: &str, value: &str| {
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some((name, _)) if name == key => format!("{key} = {value}"),
                _ => line.to_owned(),
            })
            .collect();
        text = lines.join("\n") + "\n";
    };
    if let Some(user) = vm_user {
        set("user", &format!("{:?}", user.name()));
    }
    if !bundle.has_qemu() {
        let qemu = qemu_of_node(root, bundle, qemu)?;
        set("qemu", &format!("{:?}", qemu.display().to_string()));
        set("firmware_dirs", &format!("{:?}", firmware_directories(root, &qemu)?));
    }
    let texts = HANDLERS.iter().map(|handler| {
        let shipped = "tee = \"none\"";
        let text = text.replacen(shipped, &format!("tee = \"{}\"", handler.tee), 1);
        let text = if bundle.has_firmware() {
            text
        } else {
            text.replace("/opt/nacre/share/ovmf/", "/usr/share/ovmf/")
        };
        (PathBuf::from(handler.config), text)
    });
    Ok(texts.collect())
}

fn qemu_of_node(root: &Root, bundle: &Bundle, named: Option<&Path>) -> Result<PathBuf, NodeError> {
    const PLACES: [&str; 2] = ["/usr/local/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64"];
    let mut found = named.map(Path::to_owned);
    for place in PLACES {
        if found.is_none() && root.at(place)?.is_file() {
            found = Some(PathBuf::from(place));
        }
    }
    let qemu = found.ok_or_else(|| NodeError::Bundle {
        directory: bundle.directory().to_owned(),
        problem: format!(
            "it brings no QEMU, and the node has none ({}); install QEMU 9.1 or later (10.1 for TDX), or \
             name one with --qemu",
            PLACES.join(", ")
        ),
    })?;
    // One of an image needs that image's libraries: it cannot be asked here.
    if root.is_own() {
        check_qemu(&qemu)?;
    }
    Ok(qemu)
}

/// Whether it is new enough: pods would fail with an older one, one after the other.
fn check_qemu(program: &Path) -> Result<(), NodeError> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| NodeError::Program {
        command: format!("{} --version", program.display()),
        problem: error.to_string(),
    })?;
    let answer = String::from_utf8_lossy(&output.stdout);
    if is_new_enough(&answer) {
        return Ok(());
    }
    let answer = answer.lines().next().unwrap_or_default().to_owned();
    Err(NodeError::Qemu { program: program.to_owned(), answer })
}

/// By what it says, such as "QEMU emulator version 10.0.2 (Debian ...)".
fn is_new_enough(answer: &str) -> bool {
    const LEAST: (u32, u32) = (9, 1);
    let numbers = answer.strip_prefix("QEMU emulator version ").and_then(|rest| {
        let mut parts = rest.split(['.', ' ', '\n']).map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    });
    numbers.is_some_and(|numbers| numbers >= LEAST)
}

/// QEMU's own data and `SeaBIOS`, beside the program or where distributions have them.
fn firmware_directories(root: &Root, qemu: &Path) -> Result<Vec<String>, NodeError> {
    let beside = qemu.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).join("share");
    let mut found: Vec<String> = Vec::new();
    for share in [beside.as_path(), Path::new("/usr/share")] {
        for name in ["qemu", "seabios"] {
            let path = share.join(name);
            let shown = path.display().to_string();
            if root.at(&path)?.is_dir() && !found.contains(&shown) {
                found.push(shown);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_wanted_by_whom_they_name() {
        for unit in &UNITS {
            let (link, target) = unit.wanted().unzip();
            let name = unit.name;
            assert_eq!(target.is_some(), name != "nacre-labels.service", "{name}");
            if let Some(link) = link {
                let by = if name.ends_with(".timer") { "timers" } else { "multi-user" };
                assert_eq!(
                    link.display().to_string(),
                    format!("/etc/systemd/system/{by}.target.wants/{name}")
                );
            }
            assert_eq!(unit.is_oneshot(), name.contains("gc.s") || name.contains("labels.s"));
            let page =
                unit.text.lines().find_map(|line| line.strip_prefix("Documentation=file://"));
            let shipped = ["/opt/nacre/share/doc/install.md", "/opt/nacre/share/doc/cache.toml"];
            assert!(page.is_none_or(|page| shipped.contains(&page)), "{name}: {page:?}");
        }
    }

    #[test]
    fn an_old_qemu_is_no_qemu() {
        for (answer, is_good) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", true),
            ("QEMU emulator version 9.1.0", true),
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u19)", false),
            ("QEMU emulator version 9.0.4", false),
            ("something else", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(answer), is_good, "{answer}");
        }
        check_qemu(Path::new("/absent/qemu")).expect_err("nothing to ask");
        let error = check_qemu(Path::new("/bin/true")).expect_err("no QEMU").to_string();
        assert!(error.contains("/bin/true") && error.contains("9.1 or later"), "{error}");
    }

    #[test]
    fn a_users_name_is_a_name_and_its_file_has_it() {
        let user: VmUser = "pods_1".parse().unwrap();
        let text = user.sysusers();
        let line = text.lines().find(|line| !line.starts_with('#')).unwrap();
        assert_eq!(line, "u pods_1 - \"Virtual machines of Nacre\" / /usr/sbin/nologin");
        assert!(user.is_in("root:x:0:0::/:\npods_1:x:9:9::/:\n"));
        assert!(!user.is_in("root:x:0:0::/:\npods_10:x:9:9::/:\n"));
        for wrong in ["", "root", "Nacre", "a b", "a\nu root", "-x", "a:b", "0:0", &"x".repeat(33)]
        {
            assert!(wrong.parse::<VmUser>().is_err(), "{wrong:?}");
        }
    }
}
