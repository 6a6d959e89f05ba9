//! `nacre install` and `nacre uninstall` on a node with each containerd: pods before, with and after it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;

use nacre_tests::{CONTAINERD_CONFIG, ContainerdVersion, Image, Runtime, World, container};
use serde_json::Value;

const SNAPSHOTTER: &str = "/run/nacre/snapshotter.sock";

struct Node {
    world: World,
    containerd: String,
    qemu: String,
    danger: bool,
}

impl Node {
    fn install(&self, bundle: &Path, more: &[&str]) -> (i32, Value, String) {
        let bundle = bundle.display().to_string();
        let mut words = vec!["install", "--from", &bundle, "--qemu", &self.qemu];
        if self.danger {
            words.push("--danger-all-pods");
        }
        self.run(&words, more)
    }

    fn run(&self, words: &[&str], more: &[&str]) -> (i32, Value, String) {
        let place = ["--containerd", &self.containerd, "--containerd-config", CONTAINERD_CONFIG];
        let rest = ["--no-start", "--output", "json"];
        let words = [words, &place, &rest, more].concat();
        let (code, out, said) = self.world.ask_nacre(&words).unwrap();
        (code, serde_json::from_str(&out).unwrap_or_default(), said)
    }

    /// What the administrator named once is known.
    fn install_again(&self, bundle: &Path) -> (i32, Value, String) {
        let bundle = bundle.display().to_string();
        let words = ["install", "--from", &bundle, "--no-start", "--output", "json"];
        let (code, out, said) = self.world.ask_nacre(&words).unwrap();
        (code, serde_json::from_str(&out).unwrap_or_default(), said)
    }

    fn config(&self) -> String {
        fs::read_to_string(self.world.path(CONTAINERD_CONFIG)).unwrap()
    }

    fn versions(&self) -> Vec<String> {
        let names = self.world.run(&["sh", "-c", "ls /opt/nacre 2>/dev/null || true"]).unwrap();
        let names = names.split_whitespace().filter(|name| name.contains('-'));
        names.map(str::to_owned).collect()
    }

    async fn plain_pod_runs(&mut self, name: &str, image: &str) {
        self.world.run_pods_by(Runtime::Runc);
        let app = container("app", image).script("exit 3");
        let pod = self.world.pod(name).with(app).await.unwrap();
        assert_eq!(pod.start("app").await.unwrap().wait_exit().await.unwrap().code, 3);
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
        self.world.run_pods_by(Runtime::Nacre);
    }
}

fn steps(done: &Value) -> Vec<String> {
    let step = |step: &Value| {
        format!("{} {}", step["what"].as_str().unwrap(), step["to"].as_str().unwrap())
    };
    done["steps"].as_array().unwrap().iter().map(step).collect()
}

async fn a_node_is_installed(version: ContainerdVersion) {
    let world = World::builder().runtime(Runtime::Runc).containerd(version).start().await.unwrap();
    let danger = version == ContainerdVersion::V1_6;
    let containerd = world.products().containerd(version).join("containerd").display().to_string();
    let qemu = world.products().qemu().display().to_string();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.may_be_installed_on().unwrap();
    let (first, second) = (world.bundle("one").unwrap(), world.bundle("two").unwrap());
    let mut node = Node { world, containerd, qemu, danger };
    let before = node.config();
    node.plain_pod_runs("before", &image).await;

    // Nothing happens before it is wanted.
    let (code, done, said) = node.install(&first, &["--dry-run"]);
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(
        steps(&done).iter().any(|step| step == &format!("write {CONTAINERD_CONFIG}")),
        "{done}"
    );
    assert_eq!((node.config(), node.versions()), (before.clone(), Vec::new()));
    if danger {
        node.danger = false;
        let (code, _, said) = node.install(&first, &[]);
        assert!(code == 2 && said.contains("one snapshotter for all of CRI"), "{said}");
        node.danger = true;
    }

    let (code, done, said) = node.install(&first, &[]);
    assert_eq!(code, 0, "{said}");
    let one = done["version"].as_str().unwrap().to_owned();
    assert_eq!(node.versions(), std::slice::from_ref(&one));
    let told = steps(&done);
    assert!(told.contains(&"enable nacre-snapshotter.service".to_owned()), "{told:?}");
    assert!(!told.iter().any(|step| step.starts_with("restart")), "{told:?}");
    let wanted = "/etc/systemd/system/multi-user.target.wants/nacre-snapshotter.service";
    node.world.run(&["test", "-f", wanted]).unwrap();
    let (code, done, said) = node.install(&first, &[]);
    assert_eq!((code, steps(&done)), (0, Vec::new()), "twice is once: {said}");
    let units = "command -v systemd-analyze >/dev/null || { echo SKIPPED: no systemd-analyze; exit 0; }; \
                 systemd-analyze verify --man=no /etc/systemd/system/nacre-* 2>&1 | grep nacre- || true";
    let found = node.world.run(&["sh", "-c", units]).unwrap();
    assert!(found.is_empty() || found.starts_with("SKIPPED"), "{found}");
    print!("{found}");

    node.world.configure_node().unwrap();
    node.world.start_unit("nacre-snapshotter.service", SNAPSHOTTER).await.unwrap();
    node.world.restart_containerd().await.unwrap();
    if !danger {
        node.plain_pod_runs("beside", &image).await;
    }
    node.world.run_pods_by(Runtime::Nacre);
    let pod = node.world.pod("pod").with(container("app", &image).idle()).exec_allowed();
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(app.sh("uname -r").await.unwrap(), host.trim());

    // Another version comes beside it; the pod keeps its own, and the administrator's file stays as it is.
    let (code, done, said) = node.install_again(&second);
    assert_eq!(code, 0, "{said}");
    let two = done["version"].as_str().unwrap().to_owned();
    assert_ne!(one, two);
    assert_eq!(done["kept"][0]["version"], one.as_str(), "{done}");
    assert_eq!(done["left"][0], "/etc/nacre/config.toml", "{done}");
    assert_eq!(node.versions().len(), 2);
    assert_eq!(app.sh("echo still here").await.unwrap(), "still here");
    let (code, _, said) = node.run(&["uninstall"], &[]);
    assert!(code == 2 && said.contains("drain the node first"), "{said}");

    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    node.world.stop_snapshotter().unwrap();
    // The shim ends on its own, after it has answered.
    let started = std::time::Instant::now();
    while !node.world.shims().unwrap().is_empty() {
        assert!(started.elapsed() < nacre_tests::PATIENCE, "the shim is still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (code, out, said) = node.world.ask_nacre(&["gc", "--output", "json"]).unwrap();
    let out: Value = serde_json::from_str(&out).unwrap();
    let removed = serde_json::json!([{ "what": "remove", "to": format!("/opt/nacre/{one}") }]);
    assert_eq!((code, &out["versions"]), (0, &removed), "{said}");
    assert_eq!(node.versions(), std::slice::from_ref(&two));
    let (code, done, said) = node.install(&second, &[]);
    assert_eq!((code, steps(&done)), (0, Vec::new()), "{said}");

    // Somebody adds a line of their own: it stays, and all of Nacre's goes.
    let own = format!("{}\n[debug]\nlevel = \"debug\"\n", node.config());
    let is_changed = version != ContainerdVersion::V1_7;
    if is_changed {
        fs::write(node.world.path(CONTAINERD_CONFIG), own).unwrap();
    }
    let (_, told, _) = node.run(&["uninstall"], &["--dry-run"]);
    let (code, done, said) = node.run(&["uninstall"], &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(steps(&done), steps(&told), "what was told is what is done");
    assert!(steps(&done).contains(&format!("remove /opt/nacre/{two}")), "{done}");
    assert_eq!(done["left"], serde_json::json!(["/etc/nacre/config.toml"]), "{done}");
    let config: toml::Table = node.config().parse().unwrap();
    let mut expected: toml::Table = before.parse().unwrap();
    if is_changed {
        expected.extend("debug.level = \"debug\"".parse::<toml::Table>().unwrap());
    } else {
        assert_eq!(node.config(), before);
    }
    assert_eq!(config, expected);
    let rest = "find /opt/nacre /usr/local/bin /etc/systemd/system /run/world/conf.d -name '*nacre*' -mindepth 1 \
                2>/dev/null || true";
    assert_eq!(node.world.run(&["sh", "-c", rest]).unwrap(), "");
    node.world.restart_containerd().await.unwrap();
    node.plain_pod_runs("after", &image).await;
}

#[tokio::test]
async fn a_node_with_containerd_1_6_is_installed_and_is_as_before_afterwards() {
    a_node_is_installed(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn a_node_with_containerd_1_7_is_installed_and_is_as_before_afterwards() {
    a_node_is_installed(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn a_node_with_containerd_2_1_is_installed_and_is_as_before_afterwards() {
    a_node_is_installed(ContainerdVersion::V2_1).await;
}
