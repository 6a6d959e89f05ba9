//! The same with real containerds, which add their defaults and what is imported. They are asked for words only: none
//! is started.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::services::Unmanaged;

const CONFIG: &str = "/etc/containerd/config.toml";
/// Debian's package of 1.7.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"#;

struct Node {
    root: Root,
    containerd: Containerd,
    known: Option<ContainerdReceipt>,
    _directory: tempfile::TempDir,
}

/// A node with this release, if the machine has its program: else it says so.
fn node(release: Release, config: Option<&str>) -> Option<Node> {
    let prefix = std::env::var_os("NACRE_PREFIX").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/nacre"),
        PathBuf::from,
    );
    let program = match release {
        Release::V1_6 => PathBuf::from("/usr/bin/containerd"),
        Release::V1_7 => prefix.join("containerd-1.7/usr/bin/containerd"),
        Release::V2 => prefix.join("containerd-2.1/usr/bin/containerd"),
    };
    let directory = tempfile::tempdir().expect("a directory");
    let root = Root::new(directory.path());
    let found = Containerd::find(&root, Some(&program), None);
    let Some(containerd) = found.ok().filter(|found| found.release == release) else {
        println!("SKIPPED: {} is no containerd of {release:?}", program.display());
        return None;
    };
    let node = Node { root, containerd, known: None, _directory: directory };
    fs::create_dir_all(node.path("/etc/containerd")).expect("made");
    if let Some(text) = config {
        node.write(text);
    }
    Some(node)
}

impl Node {
    fn path(&self, path: &str) -> PathBuf {
        self.root.at(path).expect("a place")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(CONFIG), text).expect("written");
    }

    fn config(&self) -> Option<String> {
        fs::read_to_string(self.path(CONFIG)).ok()
    }

    fn add(&self, text: &str) {
        self.write(&(self.config().expect("a file") + text));
    }

    fn install(&mut self) -> Result<bool, NodeError> {
        let change = self.containerd.plan(&self.root, self.known.as_ref(), false)?;
        let Some(change) = change else { return Ok(false) };
        change.apply(&self.root, &Unmanaged { at_boot: true })?;
        self.known = change.receipt;
        Ok(true)
    }

    fn uninstall(&mut self) {
        let known = self.known.take().expect("installed");
        let found = Ok(self.containerd.clone());
        let (change, unasked) = plan_removal(found, &self.root, &known, false).expect("planned");
        assert_eq!(unasked, None);
        change.apply(&self.root, &Unmanaged { at_boot: true }).expect("applied");
    }

    /// The node gets another release of containerd, if the machine has it.
    fn upgrade(&mut self, release: Release) -> bool {
        let Some(other) = node(release, None) else { return false };
        self.containerd = other.containerd;
        true
    }

    /// The snapshotter of pods without Nacre.
    fn snapshotter(&self) -> Option<String> {
        let path = match self.containerd.release {
            Release::V2 => vec!["plugins", crate::handlers::CRI_IMAGES, "snapshotter"],
            _ => vec!["plugins", CRI, "containerd", "snapshotter"],
        };
        Some(self.dump().get(&path)?.as_str()?.to_owned())
    }

    /// What containerd says of the files as they are.
    fn dump(&self) -> Dump {
        match self.config() {
            Some(_) => Dump::of(&self.containerd.program, &self.path(CONFIG)).expect("readable"),
            None => Dump::without_file(&self.containerd.program).expect("it says so"),
        }
    }

    fn runtime(&self, name: &str, key: &str) -> Option<String> {
        let plugin = crate::dump::plugin(self.containerd.release);
        let path = ["plugins", plugin, "containerd", "runtimes", name, key];
        Some(self.dump().get(&path)?.as_str()?.to_owned())
    }

    fn snapshotters(&self) -> Vec<String> {
        let dump = self.dump();
        let list = dump.get(&["plugins", crate::handlers::TRANSFER, "unpack_config"]);
        let list = list.and_then(toml::Value::as_array).expect("a list");
        list.iter().map(|entry| entry["snapshotter"].as_str().expect("a name").to_owned()).collect()
    }
}

#[test]
fn pods_keep_runc_whatever_the_file_says_of_it() {
    let own_runc = format!(
        "{DEBIAN}[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n\
         runtime_type = 'io.containerd.runc.v2'\noptions.SystemdCgroup = true\n"
    );
    for (release, configs) in [
        (Release::V1_6, vec![None]),
        (Release::V1_7, vec![None, Some(DEBIAN), Some(own_runc.as_str())]),
        (Release::V2, vec![None, Some(DEBIAN)]),
    ] {
        for config in configs {
            let Some(mut node) = node(release, config) else { break };
            let before = node.dump();
            assert!(node.install().expect("installed"));
            assert_eq!(
                node.runtime("runc", "runtime_type").as_deref(),
                Some("io.containerd.runc.v2")
            );
            assert_eq!(
                node.runtime("nacre", "runtime_type").as_deref(),
                Some("io.containerd.nacre.v2")
            );
            node.dump().check_added(&before, &before, release).expect("as the real files are");
            node.uninstall();
            assert_eq!(node.config().as_deref(), config);
            assert_eq!(fs::read_dir(node.path("/etc/containerd")).expect("listed").count(), {
                usize::from(config.is_some()) + usize::from(release == Release::V2)
            });
        }
    }
}

#[test]
fn what_is_added_to_the_file_afterwards_stays_and_works() {
    for release in [Release::V1_6, Release::V1_7] {
        let Some(mut node) = node(release, None) else { continue };
        node.install().expect("installed");
        node.add("[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/certs.d'\n");
        let text = node.config().expect("a file");
        node.write(&text.replace("SystemdCgroup = false", "SystemdCgroup = true"));
        node.uninstall();
        assert_eq!(node.runtime("runc", "runtime_type").as_deref(), Some("io.containerd.runc.v2"));
        let text = node.config().expect("a file");
        assert!(text.contains("SystemdCgroup = true") && text.contains("/etc/certs.d"), "{text}");
        assert!(text.contains("version = 2") && !text.contains("nacre"), "{text}");
    }
}

#[test]
fn a_list_of_imports_that_was_changed_names_no_file_that_is_gone() {
    for (written, left) in [
        ("imports = [\"conf.d/nacre.toml\", \"conf.d/other.toml\"]", Some("conf.d/other.toml")),
        ("imports = [\n  'conf.d/nacre.toml', # a remark\n]", None),
        (
            "imports = [\n  'conf.d/other.toml',\n  './conf.d/nacre.toml',\n]",
            Some("conf.d/other.toml"),
        ),
        ("imports = [\"/etc/containerd/conf.d/nacre.toml\"]", None),
    ] {
        let Some(mut node) = node(Release::V2, Some("version = 3\n")) else { return };
        node.install().expect("installed");
        let text = node.config().expect("a file");
        assert!(text.contains("imports = [\"conf.d/nacre.toml\"]"), "{text}");
        fs::write(node.path("/etc/containerd/conf.d/other.toml"), "version = 3\n")
            .expect("written");
        node.write(&text.replace("imports = [\"conf.d/nacre.toml\"]", written));
        node.uninstall();
        let config = node.config().expect("a file");
        assert!(!config.contains("nacre.toml"), "{config}");
        assert_eq!(left.is_some_and(|left| config.contains(left)), left.is_some(), "{config}");
        assert_eq!(config.contains("imports"), left.is_some(), "{config}");
        assert!(!node.path("/etc/containerd/conf.d/nacre.toml").exists());
        // It reads all of it, rather than nothing at all.
        node.add("[debug]\nlevel = 'trace'\n");
        let level = node.dump().get(&["debug", "level"]).cloned();
        assert_eq!(level, Some("trace".into()), "{config}");
    }
}

#[test]
fn imports_of_other_directories_are_not_nacres() {
    for imports in ["/run/other/conf.d/*.toml", "/etc/containerd/conf.d/*.toml", "conf.d/*.toml"] {
        let text = format!("version = 3\nimports = ['{imports}']\n");
        let Some(mut node) = node(Release::V2, Some(&text)) else { return };
        fs::create_dir_all(node.path("/etc/containerd/conf.d")).expect("made");
        fs::write(
            node.path("/etc/containerd/conf.d/a.toml"),
            "version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.03\n",
        )
        .expect("written");
        node.install().expect("installed");
        assert!(node.runtime("nacre", "runtime_type").is_some(), "{imports}");
        assert!(!node.install().expect("again"), "twice is once");
        node.uninstall();
        assert_eq!(node.config().as_deref(), Some(text.as_str()));
    }
}

#[test]
fn what_was_added_between_two_installations_stays() {
    for release in [Release::V1_7, Release::V2] {
        let text = format!("version = {}\n", if release == Release::V2 { 3 } else { 2 });
        let Some(mut node) = node(release, Some(&text)) else { continue };
        node.install().expect("installed");
        let added = "[metrics]\naddress = '127.0.0.1:1338'\n";
        node.add(added);
        if let Some(drop_in) = node.known.as_ref().and_then(|known| known.drop_in.clone()) {
            let drop_in = node.root.at(drop_in).expect("a place");
            fs::write(&drop_in, fs::read_to_string(&drop_in).expect("it") + "# touched\n")
                .expect("it");
        } else {
            let text = node.config().expect("a file");
            node.write(&text.replace("ConfigPath = \"/etc/nacre/snp.toml\"", "ConfigPath = \"x\""));
        }
        assert!(node.install().expect("again"));
        node.uninstall();
        let read: toml::Table = node.config().expect("a file").parse().expect("TOML");
        assert_eq!(read, format!("{text}{added}").parse::<toml::Table>().expect("TOML"));
    }
}

#[test]
fn what_is_changed_after_the_second_installation_leaves_nothing_of_nacre_behind() {
    for release in [Release::V1_6, Release::V1_7] {
        let Some(mut node) = node(release, Some("version = 2\n")) else { continue };
        node.install().expect("installed");
        let text = node.config().expect("a file");
        node.write(&text.replace("ConfigPath = \"/etc/nacre/snp.toml\"", "ConfigPath = \"x\""));
        assert!(node.install().expect("again"));
        assert!(!node.install().expect("again"), "twice is once");
        let added = "[metrics]\naddress = '127.0.0.1:1338'\n";
        node.add(added);
        node.uninstall();
        let read: toml::Table = node.config().expect("a file").parse().expect("TOML");
        let expected = format!("version = 2\n{added}");
        assert_eq!(read, expected.parse::<toml::Table>().expect("TOML"));
    }
}

#[test]
fn another_release_of_containerd_gets_its_own_lines_and_no_older_ones_stay() {
    let added = "[metrics]\naddress = '127.0.0.1:1338'\n";
    for (from, to) in
        [(Release::V1_6, Release::V1_7), (Release::V1_6, Release::V2), (Release::V1_7, Release::V2)]
    {
        for (is_installed_again, later) in [(true, ""), (true, added), (false, ""), (false, added)]
        {
            let config = if later.is_empty() { None } else { Some(DEBIAN) };
            let case = format!("{from:?} {to:?} {is_installed_again} {later:?}");
            let Some(mut node) = node(from, config) else { break };
            node.install().expect("installed");
            if !node.upgrade(to) {
                break;
            }
            if is_installed_again {
                assert!(node.install().expect(&case), "{case}");
                assert_eq!(node.snapshotter().as_deref(), Some("overlayfs"), "{case}");
                assert_eq!(node.runtime("nacre", "snapshotter").as_deref(), Some("nacre"));
                assert_eq!(
                    node.runtime("runc", "runtime_type").as_deref(),
                    Some("io.containerd.runc.v2")
                );
                if to == Release::V2 {
                    assert_eq!(node.snapshotters(), ["nacre", "overlayfs"]);
                    assert!(!node.config().expect("a file").contains("runtimes.nacre"), "{case}");
                }
                assert!(!node.install().expect("again"), "twice is once: {case}");
            }
            if !later.is_empty() {
                node.add(later);
            }
            node.uninstall();
            assert_eq!(node.snapshotter().as_deref(), Some("overlayfs"), "{case}");
            if later.is_empty() {
                assert_eq!(node.config().as_deref(), config, "{case}");
            } else {
                let left = node.config().expect("a file");
                assert!(left.contains("[metrics]") && !left.contains("nacre"), "{case}: {left}");
            }
        }
    }
}

#[test]
fn another_snapshotter_of_the_node_is_seen_at_the_next_installation() {
    let Some(mut node) = node(Release::V2, Some("version = 3\n")) else { return };
    node.install().expect("installed");
    assert_eq!(node.snapshotters(), ["nacre", "overlayfs"]);
    node.add("[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n");
    assert!(node.install().expect("again"));
    assert_eq!(node.snapshotters(), ["nacre", "native"]);
}

#[test]
fn what_the_file_keeps_secret_is_in_no_other_file() {
    for release in Release::ALL {
        let Some(mut node) = node(release, Some(DEBIAN)) else { continue };
        let config = node.path(CONFIG);
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("set");
        // Nobody can write here, but for what is replaced in the end.
        let directory = node.path("/etc/containerd");
        let names = || fs::read_dir(&directory).expect("listed").count();
        let before = names();
        node.containerd.plan(&node.root, None, false).expect("asked").expect("something");
        assert_eq!(names(), before);
        node.install().expect("installed");
        let mode = fs::metadata(&config).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_configuration_by_a_link_of_an_image_is_the_images() {
    let Some(mut node) = node(Release::V1_7, None) else { return };
    fs::create_dir_all(node.path("/usr/share/containerd")).expect("made");
    fs::write(node.path("/usr/share/containerd/config.toml"), DEBIAN).expect("written");
    let link = node.root.name(CONFIG).expect("a place");
    std::os::unix::fs::symlink("/usr/share/containerd/config.toml", &link).expect("linked");
    node.install().expect("installed");
    let text = fs::read_to_string(node.path("/usr/share/containerd/config.toml")).expect("a file");
    assert!(text.contains("nacre") && link.is_symlink());
    assert!(!Path::new("/usr/share/containerd/config.toml").exists(), "nor is it on this machine");
    node.uninstall();
    assert_eq!(node.config().as_deref(), Some(DEBIAN));
}
