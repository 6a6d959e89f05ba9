//! The configuration files of a world.

use std::fs;

use anyhow::Context as _;
use toml::{Table, Value};

use crate::products::{ContainerdVersion, Products};
use crate::registry;
use crate::world::{Runtime, SHIM_CONFIG, SOCKET, World};

/// The network that pods join, inside.
const POD_NETWORK: &str = "/run/world/cni/10-world.conflist";

/// Writes the files that the daemons of a world read.
pub(crate) fn write(world: &World) -> anyhow::Result<()> {
    let hosts = format!("/run/world/certs.d/{}/hosts.toml", registry::ADDRESS);
    let registry = registry::ADDRESS;
    let plain = format!(
        "server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n"
    );
    let storage = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: :5000\n",
        registry::STORAGE
    );
    for (path, text) in [
        (hosts.as_str(), plain),
        ("/run/world/registry.yml", storage),
        (POD_NETWORK, pod_network()),
        (SHIM_CONFIG, shim_config(world.products())),
        ("/run/world/containerd.toml", containerd_config(world)?),
    ] {
        let path = world.path(path);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

fn shim_config(products: &Products) -> String {
    format!(
        "[vm]\nqemu = {:?}\nfirmware_dirs = {:?}\nimage = {:?}\n\
             accelerator = \"auto\"\nboot_timeout_seconds = 120\n\n\
             [registry]\ndanger_plain_http = [{:?}]\n",
        products.qemu(),
        products.firmware_dirs(),
        products.image(),
        registry::ADDRESS,
    )
}

/// The configuration that is shipped for this release, and over it what only a world needs.
fn containerd_config(world: &World) -> anyhow::Result<String> {
    let shipped = match world.containerd {
        ContainerdVersion::V1_6 => include_str!("../../deploy/containerd/1.6.toml"),
        ContainerdVersion::V1_7 => include_str!("../../deploy/containerd/1.7.toml"),
        ContainerdVersion::V2_1 => include_str!("../../deploy/containerd/2.1.toml"),
    };
    let shim = world.products().shim().display().to_string();
    let shipped = shipped
        .replace("/run/nacre/snapshotter.sock", "/run/world/snapshotter.sock")
        .replace("/etc/nacre/config.toml", SHIM_CONFIG)
        .replace("io.containerd.nacre.v2", &shim);
    let pause = format!("{}/pause:1", registry::ADDRESS);
    let handler = world.runtime_handler();
    // A node that names no runtime has runc by default, and must keep it when it is installed.
    let runc = match world.runtime {
        Runtime::Nacre => "containerd.runtimes.runc.runtime_type = \"io.containerd.runc.v2\"",
        Runtime::Runc => "",
    };
    let own = match world.containerd {
        ContainerdVersion::V1_6 | ContainerdVersion::V1_7 => format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
containerd.default_runtime_name = "{handler}"
{runc}
cni.bin_dir = "/usr/lib/cni"
cni.conf_dir = "/run/world/cni"
registry.config_path = "/run/world/certs.d"
"#
        ),
        ContainerdVersion::V2_1 => format!(
            r#"
[plugins."io.containerd.cri.v1.images"]
pinned_images.sandbox = "{pause}"
registry.config_path = "/run/world/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
containerd.default_runtime_name = "{handler}"
{runc}
cni.bin_dir = "/usr/lib/cni"
cni.conf_dir = "/run/world/cni"
"#
        ),
    };
    let mut config: Table = shipped.parse().context("the shipped configuration")?;
    if world.runtime == Runtime::Runc {
        // As a node has it before `nacre install`.
        config.retain(|key, _| key == "version");
    }
    merge(&mut config, own.parse()?);
    let files = format!(
        "root = \"/run/world/containerd\"\nstate = \"/run/containerd\"\n[grpc]\naddress = {SOCKET:?}\n"
    );
    merge(&mut config, files.parse()?);
    Ok(toml::to_string(&config)?)
}

/// Adds what `over` has; of single values those of `over` count.
fn merge(config: &mut Table, over: Table) {
    for (key, value) in over {
        match (config.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (_, value) => drop(config.insert(key, value)),
        }
    }
}

/// A bridge with IPv4 and IPv6, addresses from files in the world.
pub(crate) fn pod_network() -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "world",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/world/cni-addresses",
                "ranges": [
                    [{ "subnet": "10.88.0.0/16", "gateway": "10.88.0.1" }],
                    [{ "subnet": "fd00:88::/64", "gateway": "fd00:88::1" }],
                ],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
    .to_string()
}
