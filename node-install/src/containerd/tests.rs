use std::cell::{Cell, RefCell};
use std::fs;

use super::*;
use crate::services::{Services, Start};

/// systemd in a test: containerd runs, and fails to come back as often as told.
#[derive(Default)]
struct Fake {
    failures: Cell<u32>,
    /// What the configuration was at each restart.
    seen: RefCell<Vec<String>>,
    config: PathBuf,
}

impl Services for Fake {
    fn reload(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn disable(&self, _: &str) -> Result<(), NodeError> {
        Ok(())
    }

    fn restart(&self, unit: &str) -> Result<(), NodeError> {
        self.seen.borrow_mut().push(fs::read_to_string(&self.config).unwrap_or_default());
        if self.failures.get() == 0 {
            return Ok(());
        }
        self.failures.set(self.failures.get() - 1);
        Err(NodeError::Program { command: unit.to_owned(), problem: "exit status 1".to_owned() })
    }

    fn make_users(&self, _: &str) -> Result<bool, NodeError> {
        Ok(false)
    }

    fn is_active(&self, _: &str) -> bool {
        true
    }

    fn start(&self) -> Start {
        Start::Now
    }
}

const NODE: &str =
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"\n";
const ALIVE: &str = "/etc/containerd/config.toml";

struct Node {
    root: Root,
    containerd: Containerd,
    _directory: tempfile::TempDir,
}

/// What it does without a file, as far as it matters here.
const DEFAULT: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
                       runtime_type = \"io.containerd.runc.v2\"\n";

/// A program that is this script. Another process writes it: while one of this process has it open for writing, a
/// child of another test may have it too, and nobody can run it.
pub(crate) fn program(root: &Root, script: &str) -> PathBuf {
    let program = root.at("/usr/bin/containerd").expect("a place");
    fs::create_dir_all(program.parent().expect("a parent")).expect("made");
    let text = program.with_extension("text");
    fs::write(&text, script).expect("written");
    let copied = Command::new("install").args([&text, &program]).status().expect("runs");
    assert!(copied.success());
    program
}

/// A node whose containerd says of its configuration what is in the file, unless it has a word that it
/// does not like. (`containerd/real.rs` asks real ones, which add their defaults and what is imported.)
fn node(version: &str, files: &[(&str, &str)]) -> Node {
    let directory = tempfile::tempdir().expect("a directory");
    let root = Root::new(directory.path());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo containerd x/containerd {version}; exit; fi\n\
         if [ \"$1\" = config ]; then echo '{DEFAULT}'; exit; fi\n\
         if grep -q unreadable \"$2\"; then echo bad value >&2; exit 1; fi\ncat \"$2\"\n"
    );
    for (path, text) in files {
        let path = root.at(path).expect("a place");
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
    let program = program(&root, &script);
    let containerd = Containerd::find(&root, Some(&program), None).expect("found");
    Node { root, containerd, _directory: directory }
}

impl Node {
    fn fake(&self, failures: u32) -> Fake {
        Fake {
            failures: Cell::new(failures),
            config: self.root.at(ALIVE).expect("a place"),
            ..Fake::default()
        }
    }

    fn remove(&self, known: &ContainerdReceipt) {
        let found = Ok(self.containerd.clone());
        let (removal, unasked) = plan_removal(found, &self.root, known, false).expect("planned");
        assert_eq!(unasked, None);
        removal.apply(&self.root, &self.fake(0)).expect("applied");
    }

    fn config(&self) -> String {
        fs::read_to_string(self.root.at(ALIVE).expect("a place")).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        let entries =
            fs::read_dir(self.root.at("/etc/containerd").expect("a place")).expect("listed");
        entries
            .map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned())
            .collect()
    }
}

#[test]
fn a_containerd_that_does_not_come_back_gets_what_it_had() {
    let node = node("1.7.24", &[(ALIVE, NODE)]);
    let change =
        node.containerd.plan(&node.root, None, false).expect("planned").expect("something");
    assert_eq!(node.config(), NODE, "planning changes nothing");
    assert_eq!(node.names(), ["config.toml"], "nor does it leave anything");
    let fake = node.fake(1);
    let error = change.apply(&node.root, &fake).expect_err("it failed").to_string();
    assert!(error.contains("the old one is in place again"), "{error}");
    assert!(!error.contains("did not start with that either"), "{error}");
    assert_eq!(node.config(), NODE);
    let seen = fake.seen.borrow();
    assert!(seen.len() == 2 && seen[0].contains("runtimes.nacre]") && seen[1] == NODE);
    let error = change.apply(&node.root, &node.fake(2)).expect_err("it failed").to_string();
    assert!(error.contains("did not start with that either"), "{error}");
    assert_eq!(node.config(), NODE);
}

#[test]
fn what_was_set_is_taken_back_to_the_byte() {
    let node = node("1.7.24", &[(ALIVE, NODE)]);
    let change =
        node.containerd.plan(&node.root, None, false).expect("planned").expect("something");
    change.apply(&node.root, &node.fake(0)).expect("applied");
    assert!(node.config().contains("runtimes.nacre-tdx.options"));
    let known = change.receipt.expect("a receipt");
    let again = node.containerd.plan(&node.root, Some(&known), false).expect("planned");
    assert!(again.is_none(), "{again:?}");
    node.remove(&known);
    assert_eq!(node.config(), NODE);
}

#[test]
fn a_node_without_a_configuration_gets_one_and_loses_it_again() {
    let node = node("1.7.24", &[]);
    let change = node.containerd.plan(&node.root, None, true).expect("planned").expect("something");
    change.apply(&node.root, &node.fake(0)).expect("applied");
    assert!(node.config().starts_with("version = 2\n"), "{}", node.config());
    assert!(node.config().contains("io.containerd.runc.v2"), "pods of others keep running by runc");
    let known = change.receipt.expect("a receipt");
    node.remove(&known);
    assert!(!node.root.at(ALIVE).expect("a place").exists());
}

#[test]
fn configurations_that_cannot_be_added_to_are_left_alone() {
    for (text, why) in [
        ("unreadable = 1\n", "bad value"),
        ("version = 1\n[plugins.cri]\n", "has version 1"),
        ("[plugins.cri]\na = 1\n", "has version 1"),
        ("version = 3\n", "has version 3, which is not known"),
        ("version = 2\ndisabled_plugins = [\"cri\"]\n", "switches CRI off"),
        ("version = 2\nproxy_plugins = 1\n", "something unexpected at proxy_plugins"),
        ("version = 2\n[", "is not TOML"),
        ("version = 2\nimports = 1\n", "has imports that are no list"),
        (
            "version = 2\nimports = [\"/absent/x.toml\"]\n",
            "imports /absent/x.toml, which is not there",
        ),
    ] {
        let node = node("1.7.24", &[(ALIVE, text)]);
        let error = node.containerd.plan(&node.root, None, false).expect_err(text).to_string();
        assert!(error.contains(why), "{text:?}: {error}");
        assert_eq!((node.config().as_str(), node.names()), (text, vec!["config.toml".to_owned()]));
    }
}

#[test]
fn what_was_written_meanwhile_is_not_lost_to_what_was_before_it() {
    let node = node("1.7.24", &[(ALIVE, NODE)]);
    let install = |known: Option<&ContainerdReceipt>| {
        let change = node.containerd.plan(&node.root, known, false).expect("planned");
        let change = change.expect("something");
        change.apply(&node.root, &node.fake(0)).expect("applied");
        change.receipt.expect("a receipt")
    };
    let known = install(None);
    // Whoever keeps the nodes' files writes another one, and Nacre is installed again.
    let newer = format!("# NEW\n{NODE}[metrics]\naddress = \"127.0.0.1:1\"\n");
    fs::write(node.root.at(ALIVE).expect("a place"), &newer).expect("written");
    let known = install(Some(&known));
    assert_eq!(known.before.as_deref(), Some(newer.as_str()));
    node.remove(&known);
    assert_eq!(node.config(), newer);
}

#[test]
fn a_node_without_containerd_or_with_a_broken_configuration_can_be_left() {
    let node = node("1.7.24", &[(ALIVE, NODE)]);
    let change =
        node.containerd.plan(&node.root, None, false).expect("planned").expect("something");
    change.apply(&node.root, &node.fake(0)).expect("applied");
    let known = change.receipt.expect("a receipt");
    let config = node.root.at(ALIVE).expect("a place");
    fs::write(&config, format!("unreadable = 1\n{}", node.config())).expect("written");
    let missing = Containerd::find(&Root::new(Path::new("/absent")), None, None);
    for found in [Ok(node.containerd.clone()), missing] {
        let with = node.config();
        let (removal, unasked) =
            plan_removal(found, &node.root, &known, false).expect("planned all the same");
        let why = unasked.expect("it could not be asked");
        assert!(why.contains("it was not started anew"), "{why}");
        // It runs, and would not come back.
        let fake = node.fake(9);
        assert_eq!(removal.apply(&node.root, &fake).expect("applied"), None);
        assert_eq!(*fake.seen.borrow(), [""; 0]);
        assert!(!node.config().contains("nacre") && node.config().contains("unreadable"));
        fs::write(&config, with).expect("written");
    }
    // It goes with Nacre's lines that containerd does not understand.
    let broken = node.config().replace("unreadable = 1\n", "");
    let broken = broken.replace("/etc/nacre/config.toml", "unreadable");
    fs::write(&config, broken).expect("written");
    let found = Ok(node.containerd.clone());
    let (removal, unasked) = plan_removal(found, &node.root, &known, false).expect("planned");
    let why = unasked.expect("it could not be asked");
    assert!(why.contains("bad value") && why.contains("it understands what it has now"), "{why}");
    let fake = node.fake(0);
    assert!(removal.apply(&node.root, &fake).expect("applied").is_some());
    let restored: toml::Table = node.config().parse().expect("TOML");
    assert_eq!(restored, NODE.parse::<toml::Table>().expect("TOML"));
}

#[test]
fn k3s_gets_it_by_its_template() {
    const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
    const MADE: &str =
        "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n";
    let (made, template) = (format!("{K3S}/config.toml"), format!("{K3S}/config-v3.toml.tmpl"));
    for own in [None, Some("{{ template \"base\" . }}\n[debug]\nlevel = 'info'\n")] {
        let mut files = vec![(made.as_str(), MADE)];
        files.extend(own.map(|own| (template.as_str(), own)));
        let node = node("v2.0.5-k3s1", &files);
        let change =
            node.containerd.plan(&node.root, None, false).expect("planned").expect("something");
        change.apply(&node.root, &node.fake(0)).expect("applied");
        let text =
            fs::read_to_string(node.root.at(&template).expect("a place")).expect("a template");
        assert!(text.starts_with(own.unwrap_or("{{ template \"base\" . }}\n")), "{text}");
        assert!(text.contains("snapshotter = \"native\""), "K3s' own pods keep theirs: {text}");
        let known = change.receipt.expect("a receipt");
        assert!(node.containerd.plan(&node.root, Some(&known), false).expect("planned").is_none());
        // K3s starts, and its file has Nacre's lines from then on.
        let block =
            text.split_once(BEGIN).map(|(_, block)| format!("{BEGIN}{block}")).expect("a block");
        fs::write(node.root.at(&made).expect("a place"), format!("{MADE}\n{block}"))
            .expect("written");
        assert!(node.containerd.plan(&node.root, Some(&known), false).expect("planned").is_none());
        node.remove(&known);
        assert_eq!(
            fs::read_to_string(node.root.at(&template).expect("a place")).ok().as_deref(),
            own
        );
    }
    // What was added to the template since the last time stays as well, whoever installs again.
    let node = node("v2.0.5-k3s1", &[(&made, MADE)]);
    let change =
        node.containerd.plan(&node.root, None, false).expect("planned").expect("something");
    change.apply(&node.root, &node.fake(0)).expect("applied");
    let known = change.receipt.expect("a receipt");
    let path = node.root.at(&template).expect("a place");
    let text = fs::read_to_string(&path).expect("a template");
    fs::write(&path, format!("{}[debug]\nlevel = 'info'\n", text.replace("'native'", "'x'")))
        .expect("written");
    fs::write(node.root.at(&made).expect("a place"), MADE.replace("native", "zfs"))
        .expect("written");
    let change =
        node.containerd.plan(&node.root, Some(&known), false).expect("planned").expect("something");
    change.apply(&node.root, &node.fake(0)).expect("applied");
    node.remove(&change.receipt.expect("a receipt"));
    let text = fs::read_to_string(&path).expect("a template");
    assert!(text.starts_with(BASE) && text.contains("level = 'info'"), "{text}");
    assert!(!text.contains("nacre"), "{text}");
    let old = self::node("v1.7.23-k3s1", &[(&made, "version = 2\n")]);
    let error = old.containerd.plan(&old.root, None, false).expect_err("1.7").to_string();
    assert!(error.contains("take one with containerd 2"), "{error}");
}
