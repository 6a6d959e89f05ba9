//! The configuration files of a world.

use std::fs;

use anyhow::Context as _;

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
        ("/run/world/containerd.toml", containerd_config(world)),
    ] {
        let path = world.path(path);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

fn shim_config(products: &Products) -> String {
    format!(
        "[vm]\nqemu = {:?}\nfirmware_dirs = {:?}\nkernel = {:?}\ninitrd = {:?}\n\
             accelerator = \"auto\"\nboot_timeout_seconds = 120\n\n\
             [registry]\ndanger_plain_http = [{:?}]\n",
        products.qemu(),
        products.firmware_dirs(),
        products.kernel(),
        products.initrd(),
        registry::ADDRESS,
    )
}

fn containerd_config(world: &World) -> String {
    let snapshotter = snapshotter(world.runtime);
    let handler = world.runtime_handler();
    let shim = world.products().shim();
    let pause = format!("{}/pause:1", registry::ADDRESS);
    let (version, own) = match world.containerd {
        ContainerdVersion::V1_6 | ContainerdVersion::V1_7 => (
            2,
            format!(
                r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "{handler}"
    disable_snapshot_annotations = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nacre]
      runtime_type = {shim:?}
      pod_annotations = ["io.katacontainers.*", "io.nacre.*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nacre.options]
        ConfigPath = "{SHIM_CONFIG}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/world/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/run/world/certs.d"
"#
            ),
        ),
        ContainerdVersion::V2_1 => (
            3,
            format!(
                r#"
[plugins.'io.containerd.cri.v1.images']
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "/run/world/certs.d"
  [plugins.'io.containerd.cri.v1.images'.runtime_platforms.nacre]
    platform = "linux/amd64"
    snapshotter = "nacre"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux/amd64"
  snapshotter = "nacre"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "{handler}"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre]
      runtime_type = {shim:?}
      snapshotter = "nacre"
      pod_annotations = ["io.katacontainers.*", "io.nacre.*"]
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre.options]
        ConfigPath = "{SHIM_CONFIG}"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/world/cni"
"#
            ),
        ),
    };
    // containerd 2 leaves out a snapshotter that does not say what it is for.
    let platform = if version == 3 { "  platform = \"linux/amd64\"\n" } else { "" };
    format!(
        r#"version = {version}
root = "/run/world/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[proxy_plugins.nacre]
  type = "snapshot"
  address = "/run/world/snapshotter.sock"
{platform}{own}"#
    )
}

fn snapshotter(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Nacre => "nacre",
        Runtime::Runc => "overlayfs",
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
