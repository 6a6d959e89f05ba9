use std::cell::RefCell;

use super::*;
use crate::containerd::tests::program;
use crate::receipt::RECEIPT;
use crate::uninstall::uninstall;

const CONFIG: &str = "/etc/containerd/config.toml";
const CACHE_WANTED: &str = "/etc/systemd/system/multi-user.target.wants/nacre-cache.service";
/// containerd says of its configuration what is in the file.
const CONTAINERD: &str = "#!/bin/sh\n\
    if [ \"$1\" = --version ]; then echo containerd x/containerd 1.7.24; exit; fi\n\
    if [ \"$1\" = config ]; then exit; fi\ncat \"$2\"\n";

/// systemd in a test: what it was told to start, and what runs.
struct Fake {
    start: Start,
    active: &'static [&'static str],
    /// Why there is nobody to make users.
    makes_no_users: Option<&'static str>,
    started: RefCell<Vec<String>>,
}

fn fake(start: Start) -> Fake {
    Fake { start, active: &[], makes_no_users: None, started: RefCell::default() }
}

impl Services for Fake {
    fn reload(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn disable(&self, _: &str) -> Result<(), NodeError> {
        Ok(())
    }

    fn restart(&self, unit: &str) -> Result<(), NodeError> {
        self.started.borrow_mut().push(unit.to_owned());
        Ok(())
    }

    fn make_users(&self, file: &str) -> Result<bool, NodeError> {
        let failed = |problem: &str| NodeError::Program {
            command: format!("systemd-sysusers {file}"),
            problem: problem.to_owned(),
        };
        self.makes_no_users.map_or(Ok(false), |problem| Err(failed(problem)))
    }

    fn is_active(&self, unit: &str) -> bool {
        self.start == Start::Now && self.active.contains(&unit)
    }

    fn start(&self) -> Start {
        self.start
    }
}

/// What the bundle has.
const FILES: [&str; 2] = ["bin/nacre", "share/nacre/manifest.json"];

struct Node {
    root: Root,
    directory: tempfile::TempDir,
}

fn node() -> Node {
    let directory = tempfile::tempdir().expect("a directory");
    let node = Node { root: Root::new(directory.path()), directory };
    program(&node.root, CONTAINERD);
    node.write(CONFIG, "version = 2\n");
    node
}

impl Node {
    fn path(&self, path: &str) -> PathBuf {
        self.root.name(path).expect("a place")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// A bundle that needs the node's QEMU.
    fn bundle(&self, release: &str) -> Bundle {
        let directory = self.directory.path().join("bundle");
        for file in FILES {
            self.write(&format!("/bundle/{file}"), release);
        }
        Bundle::of_files(&directory, release, &FILES).expect("a bundle")
    }

    fn choices(&self) -> Choices {
        Choices { qemu: Some("/usr/bin/qemu-of-mine".into()), ..Choices::default() }
    }

    fn install(&self, choices: &Choices, services: &Fake) -> Result<Installed, NodeError> {
        install(&self.root, &self.bundle("0.1.0"), choices, services)
    }

    fn uninstall(&self, dry_run: bool) -> Vec<String> {
        let choices = Choices { dry_run, ..Choices::default() };
        let done = uninstall(&self.root, &choices, false, &fake(Start::Now)).expect("uninstalled");
        words(&done.steps)
    }
}

fn words(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{} {}", step.what, step.to)).collect()
}

const ALL: [&str; 4] =
    ["nacre-snapshotter.service", "nacre-cache.service", "nacre-gc.timer", "nacre-labels.timer"];

#[test]
fn what_was_not_started_is_started_by_the_next_installation() {
    let node = node();
    let by_hand = fake(Start::ByHand);
    let done = node.install(&node.choices(), &by_hand).expect("installed");
    assert!(words(&done.steps).contains(&"enable nacre-cache.service".to_owned()));
    assert!(!done.steps.iter().any(|step| step.what == "restart"), "{:?}", done.steps);
    assert!(node.path(CACHE_WANTED).is_symlink());
    let again = node.install(&node.choices(), &by_hand).expect("installed");
    assert_eq!(again.steps, [], "twice is once");
    let now = Fake { active: &["containerd.service"], ..fake(Start::Now) };
    let done = node.install(&node.choices(), &now).expect("installed");
    let expected: Vec<&str> = ALL.into_iter().chain(["containerd.service"]).collect();
    assert_eq!(*now.started.borrow(), expected);
    assert_eq!(done.steps.len(), expected.len());
    assert_eq!(node.install(&node.choices(), &now).expect("installed").steps, []);
}

#[test]
fn an_image_of_a_node_starts_all_when_it_boots() {
    let node = node();
    node.install(&node.choices(), &fake(Start::AtBoot)).expect("installed");
    for unit in UNITS.iter().filter(|unit| unit.enabled) {
        let (path, target) = unit.wanted().expect("wanted");
        assert_eq!(
            fs::read_link(node.root.name(path).expect("a place")).expect("a link"),
            Path::new(&target)
        );
    }
    let now = Fake { active: &["containerd.service"], ..fake(Start::Now) };
    assert_eq!(node.install(&node.choices(), &now).expect("installed").steps, []);
}

#[test]
fn a_new_version_reaches_what_the_administrator_switched_on_and_not_what_is_off() {
    let node = node();
    node.install(&node.choices(), &fake(Start::Now)).expect("installed");
    fs::remove_file(node.path(CACHE_WANTED)).expect("switched off");
    let now = Fake { active: &["nacre-metrics.service"], ..fake(Start::Now) };
    let done =
        install(&node.root, &node.bundle("0.2.0"), &node.choices(), &now).expect("installed");
    let started = [
        "nacre-snapshotter.service",
        "nacre-gc.timer",
        "nacre-labels.timer",
        "nacre-metrics.service",
    ];
    assert_eq!(*now.started.borrow(), started);
    assert!(!words(&done.steps).contains(&"enable nacre-cache.service".to_owned()));
    assert!(!node.path(CACHE_WANTED).exists());
}

#[test]
fn what_is_in_the_way_is_told_before_anything_is_there() {
    for path in ["/opt/nacre/bin", "/opt/nacre/current", "/usr/local/bin/nacre"] {
        let node = node();
        node.write(&format!("{path}/x"), "mine");
        let error = node.install(&node.choices(), &fake(Start::Now)).expect_err(path).to_string();
        assert!(error.contains(path) && error.contains("move it away"), "{error}");
        assert!(!node.path("/etc/nacre").exists());
        assert!(!node.path(RECEIPT).exists());
        let there = fs::read_dir(node.path("/opt/nacre")).into_iter().flatten().count();
        assert_eq!(there, usize::from(path.starts_with("/opt")), "no version was copied");
    }
}

#[test]
fn links_of_others_are_left() {
    let node = node();
    let link = node.path("/usr/local/bin/nacre");
    fs::create_dir_all(link.parent().expect("a parent")).expect("made");
    std::os::unix::fs::symlink("/home/admin/nacre", &link).expect("linked");
    for _ in 0..2 {
        let done = node.install(&node.choices(), &fake(Start::Now)).expect("installed");
        assert_eq!(done.left, [PathBuf::from("/usr/local/bin/nacre")]);
    }
    node.uninstall(false);
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("/home/admin/nacre"));
    assert!(!node.path("/usr/local/bin/containerd-shim-nacre-v2").is_symlink());
    assert!(!node.path(CACHE_WANTED).is_symlink());
}

#[test]
fn what_was_named_once_is_kept() {
    const MINE: &str = "/etc/mine/config.toml";
    let node = node();
    node.write(MINE, "version = 2\n");
    let choices = Choices { config: Some(MINE.into()), ..node.choices() };
    node.install(&choices, &fake(Start::Now)).expect("installed");
    let shim = fs::read_to_string(node.path("/etc/nacre/config.toml")).expect("a file");
    let done = node.install(&Choices::default(), &fake(Start::Now)).expect("again");
    assert_eq!(done.steps, []);
    assert_eq!(fs::read_to_string(node.path("/etc/nacre/config.toml")).expect("a file"), shim);
    assert!(shim.contains("qemu = \"/usr/bin/qemu-of-mine\""));
    let other = Choices { config: Some(CONFIG.into()), ..Choices::default() };
    let error = node.install(&other, &fake(Start::Now)).expect_err("another").to_string();
    assert!(error.contains(MINE) && error.contains(CONFIG), "{error}");
    assert_eq!(fs::read_to_string(node.path(CONFIG)).expect("a file"), "version = 2\n");
    node.uninstall(false);
    assert_eq!(fs::read_to_string(node.path(MINE)).expect("a file"), "version = 2\n");
}

#[test]
fn a_configuration_names_no_user_that_could_not_be_made() {
    const SHIM: &str = "/etc/nacre/config.toml";
    let node = node();
    node.install(&node.choices(), &fake(Start::ByHand)).expect("installed");
    let before = fs::read_to_string(node.path(SHIM)).expect("a file");
    let choices = Choices { vm_user: Some("pods_1".parse().expect("a name")), ..node.choices() };
    let nobody = Fake { makes_no_users: Some("No such file"), ..fake(Start::ByHand) };
    let error = node.install(&choices, &nobody).expect_err("nobody makes it").to_string();
    assert!(error.contains("useradd --system --user-group pods_1"), "{error}");
    assert!(error.contains("No such file"), "{error}");
    assert_eq!(fs::read_to_string(node.path(SHIM)).expect("a file"), before);
    // The administrator makes it.
    node.write("/etc/passwd", "pods_1:x:9:9::/:\n");
    node.install(&choices, &nobody).expect("installed");
    let after = fs::read_to_string(node.path(SHIM)).expect("a file");
    assert!(after.contains("user = \"pods_1\""), "{after}");
    // Without starting anything, too, it is made on a node and left to an image's first boot.
    let absent = node.path("/absent.conf").display().to_string();
    let made = |at_boot| crate::services::Unmanaged { at_boot }.make_users(&absent);
    made(false).expect_err("somebody looks for the file");
    assert!(!made(true).expect("left"));
}

#[test]
fn nothing_leads_to_a_node_that_nacre_was_taken_off() {
    const LABEL: &str = "/etc/kubernetes/node-feature-discovery/features.d/nacre";
    let node = node();
    let done = node.install(&node.choices(), &fake(Start::Now)).expect("installed");
    node.write(LABEL, "nacre.io/tee-snp=true\n");
    let told = node.uninstall(true);
    let version = node.path("/opt/nacre").join(done.version).display().to_string();
    assert!(told.contains(&format!("remove {version}")), "{told:?}");
    assert!(node.path(LABEL).exists());
    fs::remove_file(node.path("/usr/bin/containerd")).expect("taken off the node");
    assert_eq!(node.uninstall(false), told, "what was told is what is done");
    assert!(!node.path(LABEL).exists() && !Path::new(&version).exists());
    assert_eq!(fs::read_to_string(node.path(CONFIG)).expect("a file"), "version = 2\n");
    assert_eq!(node.uninstall(false), [""; 0]);
}
