//! What is on a node beside programs and containerd's configuration: units, configurations, names on the path.

use std::path::{Path, PathBuf};

use crate::NodeError;
use crate::bundle::Bundle;
use crate::files::Root;
use crate::handlers::HANDLERS;

/// A systemd unit.
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// Whether it is started: the others are the administrator's choice, or belong to a timer.
    pub(crate) enabled: bool,
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
    if !bundle.has_qemu() {
        let qemu = qemu_of_node(root, bundle, qemu)?;
        set("qemu", &format!("{:?}", qemu.display().to_string()));
        set("firmware_dirs", &format!("{:?}", firmware_directories(root, &qemu)));
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
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let found = PLACES.iter().map(PathBuf::from).find(|path| root.at(path).is_file());
    found.ok_or_else(|| NodeError::Bundle {
        directory: bundle.directory().to_owned(),
        problem: format!(
            "it brings no QEMU, and the node has none ({}); install QEMU 9.1 or later (10.1 for TDX), or \
             name one with --qemu",
            PLACES.join(", ")
        ),
    })
}

/// QEMU's own data and `SeaBIOS`, beside the program or where distributions have them.
fn firmware_directories(root: &Root, qemu: &Path) -> Vec<String> {
    let beside = qemu.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).join("share");
    let mut found: Vec<String> = Vec::new();
    for share in [beside.as_path(), Path::new("/usr/share")] {
        for name in ["qemu", "seabios"] {
            let path = share.join(name);
            let shown = path.display().to_string();
            if root.at(&path).is_dir() && !found.contains(&shown) {
                found.push(shown);
            }
        }
    }
    found
}
