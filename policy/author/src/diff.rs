//! What one policy allows and another does not, in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};

use crate::document::{
    AllowData, Arg, ContainerData, CopyData, Document, GuestApiData, GuestResources, MountData,
    PodData, PolicyData, SeccompData, ServiceEnv,
};
use crate::workload::USUAL_TERMINATION_LOG;

/// Which way a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The second policy allows more.
    Allowed,
    /// The second policy allows less.
    Forbidden,
    /// The second policy wants something else.
    Changed,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which way it goes.
    pub direction: Direction,
    /// `pod`, `container web`, `volume config`, `cluster` or `document`.
    pub scope: String,
    /// What it is.
    pub text: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.direction {
            Direction::Allowed => '+',
            Direction::Forbidden => '-',
            Direction::Changed => '~',
        };
        write!(f, "{sign} {}: {}", self.scope, self.text)
    }
}

/// All differences, from the pod to its containers to the cluster. Values of secrets are not shown; names of
/// files and lines, which explain denials only, do not count.
#[must_use]
pub fn diff(from: &Document, to: &Document) -> Vec<Change> {
    let mut differ = Differ { changes: Vec::new(), scope: "pod".into() };
    differ.pod(&from.data.pod, &to.data.pod);
    let (a, b) = (&from.data.containers, &to.data.containers);
    for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        differ.scope = format!("container {name}");
        match (a.get(name), b.get(name)) {
            (Some(a), Some(b)) => differ.container(a, b),
            (Some(a), None) => {
                differ.add(Direction::Forbidden, format!("it may not run ({})", image(a)));
            }
            (None, Some(b)) => differ.add(Direction::Allowed, format!("it may run ({})", image(b))),
            (None, None) => {}
        }
    }
    let (a, b) = (&from.data.copies, &to.data.copies);
    for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        differ.scope = format!("volume {name}");
        differ.copy(a.get(name), b.get(name));
    }
    differ.scope = "cluster".into();
    differ.allow(&from.data.allow, &to.data.allow);
    differ.set("requests may come from", &from.data.runtimes, &to.data.runtimes);
    if from.data.runtime != to.data.runtime {
        let text = match (&from.data.runtime, &to.data.runtime) {
            (None, _) => "brings a runtime profile of its own instead of one of the guest image",
            (_, None) => "names runtime profiles of the guest image instead of bringing one",
            _ => "its own runtime profile differs",
        };
        differ.add(Direction::Changed, text.into());
    }
    differ.scope = "document".into();
    if from.data.standalone != to.data.standalone {
        let text = if to.data.standalone {
            "brings the rules along instead of using those of the guest image"
        } else {
            "uses the rules of the guest image instead of bringing its own"
        };
        differ.add(Direction::Changed, text.into());
    } else if from.before.trim() != to.before.trim() {
        differ.add(
            Direction::Changed,
            "the rules before policy_data differ: compare the texts".into(),
        );
    }
    if from.after.trim() != to.after.trim() {
        let text = "the owner's own rules behind policy_data differ: compare the texts";
        differ.add(Direction::Changed, text.into());
    }
    if differ.changes.is_empty() && meaning(from) != meaning(to) {
        let text = "something differs that this `nacre` has no words for: compare the texts";
        differ.add(Direction::Changed, text.into());
    }
    differ.changes
}

/// The data without what only explains.
fn meaning(document: &Document) -> PolicyData {
    let mut data = document.data.clone();
    data.source = None;
    data.pod.lines.clear();
    for container in data.containers.values_mut() {
        container.lines.clear();
        // These are sets.
        container.env.sort();
        container.secret_env.clear();
        container.secret_args = false;
        container.exec.sort();
        container.users.sort();
    }
    data
}

struct Differ {
    changes: Vec<Change>,
    scope: String,
}

impl Differ {
    fn add(&mut self, direction: Direction, text: String) {
        self.changes.push(Change { direction, scope: self.scope.clone(), text });
    }

    /// Something that is a grant where it is true.
    fn grant(&mut self, text: &str, from: bool, to: bool) {
        match (from, to) {
            (false, true) => self.add(Direction::Allowed, text.to_owned()),
            (true, false) => self.add(Direction::Forbidden, text.to_owned()),
            _ => {}
        }
    }

    fn value<T: PartialEq>(&mut self, text: &str, from: &T, to: &T, show: impl Fn(&T) -> String) {
        if from != to {
            self.add(Direction::Changed, format!("{text}: {} -> {}", show(from), show(to)));
        }
    }

    /// A set in which each member is a grant.
    fn set<T: Debug + PartialEq>(&mut self, text: &str, from: &[T], to: &[T]) {
        for item in from.iter().filter(|item| !to.contains(item)) {
            self.add(Direction::Forbidden, format!("{text} {item:?}"));
        }
        for item in to.iter().filter(|item| !from.contains(item)) {
            self.add(Direction::Allowed, format!("{text} {item:?}"));
        }
    }

    /// Names with values, each of which is expected exactly.
    fn map<'a, K: Ord + fmt::Display + ?Sized, V: PartialEq>(
        &mut self,
        what: &str,
        from: &BTreeMap<&'a K, V>,
        to: &BTreeMap<&'a K, V>,
        show: impl Fn(&K, &V) -> String,
    ) {
        for name in from.keys().chain(to.keys()).copied().collect::<BTreeSet<_>>() {
            match (from.get(name), to.get(name)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    let text = format!("{what} {name}: {} -> {}", show(name, a), show(name, b));
                    self.add(Direction::Changed, text);
                }
                (Some(a), None) => {
                    self.add(Direction::Forbidden, format!("{what} {name} ({})", show(name, a)));
                }
                (None, Some(b)) => {
                    self.add(Direction::Allowed, format!("{what} {name} ({})", show(name, b)));
                }
                (None, None) => {}
            }
        }
    }

    fn pod(&mut self, from: &PodData, to: &PodData) {
        let name = |pod: &PodData| match (&pod.name, &pod.name_prefix, &pod.name_pattern) {
            (Some(name), ..) => name.clone(),
            (_, Some(prefix), _) => format!("{prefix}..."),
            (_, _, Some(pattern)) => format!("matching {pattern}"),
            _ => "any".to_owned(),
        };
        self.value("name", &name(from), &name(to), Clone::clone);
        let namespace = |pod: &PodData| pod.namespace.clone().unwrap_or_else(|| "any".to_owned());
        self.value("namespace", &namespace(from), &namespace(to), Clone::clone);
        let hostname = |pod: &PodData| match (&pod.hostname, &pod.hostname_pattern) {
            (Some(name), _) => name.clone(),
            (None, Some(pattern)) => format!("matching {pattern}"),
            (None, None) => "the pod's name".to_owned(),
        };
        self.value("host name", &hostname(from), &hostname(to), Clone::clone);
        self.grant("containers see each other's processes", from.shared_pid, to.shared_pid);
        self.map("kernel setting", &by_name(&from.sysctls), &by_name(&to.sysctls), |_, v| {
            (*v).clone()
        });
    }

    fn container(&mut self, from: &ContainerData, to: &ContainerData) {
        self.value("image", &image(from), &image(to), Clone::clone);
        let secret = from.secret_args || to.secret_args;
        self.value("command line", &from.args, &to.args, |args| {
            if secret { format!("<{} words>", args.len()) } else { command_line(args) }
        });
        self.value("working directory", &from.cwd, &to.cwd, Clone::clone);
        let hidden: BTreeSet<&str> =
            from.secret_env.iter().chain(&to.secret_env).map(String::as_str).collect();
        self.map("variable", &variables(from), &variables(to), |name, value| {
            if hidden.contains(name) { "<secret>".to_owned() } else { value.clone() }
        });
        self.grants_of_services(from.service_env, to.service_env);
        self.set("may run as", &users(from), &users(to));
        self.capabilities(from.capabilities.as_deref(), to.capabilities.as_deref());
        self.grant("programs may gain privileges", !from.no_new_privileges, !to.no_new_privileges);
        self.grant("may write to its root file system", !from.readonly_root, !to.readonly_root);
        self.grant("has a terminal", from.terminal, to.terminal);
        self.grant("the host may write to its standard input", from.stdin, to.stdin);
        let unfiltered = |c: &ContainerData| c.seccomp == SeccompData::Unconfined;
        self.grant("runs without a system call filter", unfiltered(from), unfiltered(to));
        self.grant("sees /proc unmasked", from.unmasked, to.unmasked);
        self.map("mount", &by_name(&from.mounts), &by_name(&to.mounts), |_, mount| shown(mount));
        self.set("block device", &from.devices, &to.devices);
        let bytes = |limit: &Option<u64>| limit.map_or("none".into(), |n| format!("{n} bytes"));
        self.value("memory limit", &from.memory_limit, &to.memory_limit, bytes);
        let quota = |c: &ContainerData| (c.cpu_quota, c.cpu_period);
        self.value("CPU limit", &quota(from), &quota(to), |limit| match limit {
            (Some(quota), Some(period)) => format!("{quota} of {period} us"),
            _ => "none".into(),
        });
        let shares = |shares: &Option<u64>| shares.map_or("default".into(), |n| n.to_string());
        self.value("CPU shares", &from.cpu_shares, &to.cpu_shares, shares);
        self.set("may execute", &from.exec, &to.exec);
        self.set("may get signal", &from.signals, &to.signals);
        self.grant("the host may read its output", from.logs, to.logs);
        let file = |container: &ContainerData| {
            container.termination_log.as_deref().unwrap_or(USUAL_TERMINATION_LOG).to_owned()
        };
        self.value("termination message in", &file(from), &file(to), Clone::clone);
        self.guest_api(&from.guest_api, &to.guest_api);
        let order = |c: &ContainerData| match (c.init, c.sidecar) {
            (true, _) => "runs before the others".to_owned(),
            (false, true) => "starts before the others and runs beside them".to_owned(),
            (false, false) => "runs with the others".to_owned(),
        };
        self.value("order", &order(from), &order(to), Clone::clone);
        self.grant("may be started again", from.restartable, to.restartable);
    }

    fn guest_api(&mut self, from: &GuestApiData, to: &GuestApiData) {
        let what = "may get resources of the key broker";
        match (&from.resources, &to.resources) {
            (GuestResources::Named(from), GuestResources::Named(to)) => {
                self.set("may get resources", from, to);
            }
            (from, to) if from == to => {}
            (GuestResources::All(true), to) => {
                let but = match to {
                    GuestResources::Named(names) => format!(" but {names:?}"),
                    GuestResources::All(_) => String::new(),
                };
                self.add(Direction::Forbidden, format!("{what}{but}"));
            }
            (_, GuestResources::All(true)) => self.add(Direction::Allowed, what.to_owned()),
            (GuestResources::Named(names), _) => self.set("may get resources", names, &[]),
            (_, GuestResources::Named(names)) => self.set("may get resources", &[], names),
            _ => {}
        }
        self.grant("may get the pod's attestation token", from.token, to.token);
        self.grant("may get evidence over its own data", from.evidence, to.evidence);
        self.grant("may extend the runtime measurement", from.aael, to.aael);
    }

    fn grants_of_services(&mut self, from: ServiceEnv, to: ServiceEnv) {
        let names = |env| match env {
            ServiceEnv::None => "none",
            ServiceEnv::Kubernetes => "those of the API server",
            ServiceEnv::All => "those of any service",
        };
        let direction = if to > from { Direction::Allowed } else { Direction::Forbidden };
        if from != to {
            let text = format!("variables of services: {} -> {}", names(from), names(to));
            self.add(direction, text);
        }
    }

    fn capabilities(&mut self, from: Option<&[String]>, to: Option<&[String]>) {
        match (from, to) {
            (Some(from), Some(to)) => self.set("capability", from, to),
            (None, None) => {}
            (None, Some(to)) => {
                let text = format!("capabilities: the runtime's default -> {}", list(to));
                self.add(Direction::Changed, text);
            }
            (Some(from), None) => {
                let text = format!("capabilities: {} -> the runtime's default", list(from));
                self.add(Direction::Changed, text);
            }
        }
    }

    fn copy(&mut self, from: Option<&CopyData>, to: Option<&CopyData>) {
        match (from, to) {
            (None, Some(_)) => {
                self.add(Direction::Forbidden, "contents other than those in the policy".into());
            }
            (Some(_), None) => self.add(Direction::Allowed, "contents of the host's choice".into()),
            (Some(from), Some(to)) => {
                let digest = |_: &String, digest: &&String| digest.chars().take(12).collect();
                self.map("content of", &by_name(&from.files), &by_name(&to.files), digest);
                self.grant("files that are not in the policy", from.open, to.open);
            }
            (None, None) => {}
        }
    }

    fn allow(&mut self, from: &AllowData, to: &AllowData) {
        self.grant("any command may be executed", from.exec_any, to.exec_any);
        self.set("may execute in any container", &from.exec, &to.exec);
        self.grant("executed commands may have a terminal", from.terminal, to.terminal);
        self.grant("executed commands may be written to", from.stdin, to.stdin);
        self.grant(
            "limits of running containers may change",
            from.update_container,
            to.update_container,
        );
        self.grant("containers may be paused and resumed", from.pause, to.pause);
        self.grant("the host may set the guest's clock", from.set_time, to.set_time);
        self.grant(
            "the host may read termination messages",
            from.termination_message,
            to.termination_message,
        );
        self.set("the host may connect to the pod's port", &from.port_forward, &to.port_forward);
        self.set("annotation", &from.annotations, &to.annotations);
    }
}

fn by_name<V>(map: &BTreeMap<String, V>) -> BTreeMap<&String, &V> {
    map.iter().collect()
}

fn image(container: &ContainerData) -> String {
    match (&container.image, &container.image_tag) {
        (Some(image), _) => image.clone(),
        (None, Some(tag)) => format!("{tag}, whatever the registry says it is"),
        (None, None) => "no image".to_owned(),
    }
}

fn command_line(args: &[Arg]) -> String {
    let words = args.iter().map(|arg| match arg {
        Arg::Text(text) => text.clone(),
        Arg::Pattern(pattern) => pattern.pattern.clone(),
    });
    format!("{:?}", words.collect::<Vec<_>>())
}

/// All variables: literal values quoted, others described.
fn variables(container: &ContainerData) -> BTreeMap<&str, String> {
    let known = container.env.iter().map(|variable| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        (name, format!("{value:?}"))
    });
    let facts = container
        .env_from_pod
        .iter()
        .map(|(name, fact)| (name.as_str(), format!("the pod's {fact}")));
    let patterns = container
        .env_pattern
        .iter()
        .map(|(name, regex)| (name.as_str(), format!("matching {regex}")));
    known.chain(facts).chain(patterns).collect()
}

fn users(container: &ContainerData) -> Vec<String> {
    let user = |user: &crate::document::UserData| {
        format!("{}:{} with groups {:?}", user.uid, user.gid, user.groups)
    };
    container.users.iter().map(user).collect()
}

fn shown(mount: &MountData) -> String {
    let source = match (&mount.volume, &mount.sub_path) {
        (Some(volume), Some(path)) => format!("{volume}/{path}"),
        (Some(volume), None) if mount.source.is_none() => {
            let part = mount.sub_path_pattern.as_ref();
            part.map_or_else(|| volume.clone(), |part| format!("{volume}/{part}"))
        }
        _ => {
            let source = mount.source.clone().or_else(|| mount.source_pattern.clone());
            source.unwrap_or_else(|| "disk".to_owned())
        }
    };
    let access = if mount.read_only { "read-only" } else { "writable" };
    let memory = if mount.memory { ", in memory" } else { "" };
    let updates = if mount.updates { ", its files may change" } else { "" };
    format!("{:?} {source:?}, {access}{memory}{updates}", mount.kind)
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({
            "version": 1, "runtimes": ["containerd-1.6"], "source": "a.yaml",
            "pod": {"name": "web", "namespace": "n", "lines": {"metadata": 1}},
            "containers": {"web": {
                "image": "r/web@sha256:0", "args": ["/web", "--token=x"], "cwd": "/",
                "env": ["A=1", "P=secret-value"], "secret_env": ["P"],
                "users": [{"uid": 1, "gid": 1, "groups": [1]}],
                "mounts": {"/c": {"kind": "config", "source": "c", "read_only": true}},
                "capabilities": ["CAP_CHOWN"], "no_new_privileges": true,
            }},
            "copies": {"c": {"files": {"k": "0123456789abcdef"}}},
        })
    }

    fn changed(pointer: &str, value: Value) -> Document {
        let mut data = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        if data.pointer(parent).is_none() {
            data["allow"] = json!({});
        }
        let parent = data.pointer_mut(parent).unwrap();
        if value.is_null() {
            parent.as_object_mut().unwrap().remove(key);
        } else {
            parent[key] = value;
        }
        Document::new(serde_json::from_value(data).unwrap())
    }

    fn words(from: &Document, to: &Document) -> Vec<String> {
        diff(from, to).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_difference_is_told_in_both_directions() {
        let same = changed("/source", json!("b.yaml"));
        for (pointer, value, there, back) in [
            ("/pod/lines", json!({}), "", ""),
            ("/pod/name", json!("w2"), "~ pod: name: web -> w2", "~ pod: name: w2 -> web"),
            (
                "/pod/namespace",
                Value::Null,
                "~ pod: namespace: n -> any",
                "~ pod: namespace: any -> n",
            ),
            (
                "/pod/sysctls",
                json!({"a.b": "1"}),
                "+ pod: kernel setting a.b (1)",
                "- pod: kernel setting a.b (1)",
            ),
            (
                "/containers/web",
                Value::Null,
                "- container web: it may not run (r/web@sha256:0)",
                "+ container web: it may run (r/web@sha256:0)",
            ),
            (
                "/containers/web/image",
                json!("r/web@sha256:1"),
                "~ container web: image: r/web@sha256:0 -> r/web@sha256:1",
                "~ container web: image: r/web@sha256:1 -> r/web@sha256:0",
            ),
            (
                "/containers/web/env",
                json!(["A=2", "P=secret-value"]),
                "~ container web: variable A: \"1\" -> \"2\"",
                "~ container web: variable A: \"2\" -> \"1\"",
            ),
            (
                "/containers/web/env",
                json!(["A=1", "P=other-secret"]),
                "~ container web: variable P: <secret> -> <secret>",
                "~ container web: variable P: <secret> -> <secret>",
            ),
            (
                "/containers/web/args",
                json!(["/web"]),
                "~ container web: command line: [\"/web\", \"--token=x\"] -> [\"/web\"]",
                "~ container web: command line: [\"/web\"] -> [\"/web\", \"--token=x\"]",
            ),
            (
                "/containers/web/users",
                json!([{"uid": 1, "gid": 1, "groups": [1]}, {"uid": 0, "gid": 0, "groups": [0]}]),
                "+ container web: may run as \"0:0 with groups [0]\"",
                "- container web: may run as \"0:0 with groups [0]\"",
            ),
            (
                "/containers/web/no_new_privileges",
                json!(false),
                "+ container web: programs may gain privileges",
                "- container web: programs may gain privileges",
            ),
            (
                "/containers/web/capabilities",
                json!(["CAP_CHOWN", "CAP_KILL"]),
                "+ container web: capability \"CAP_KILL\"",
                "- container web: capability \"CAP_KILL\"",
            ),
            (
                "/containers/web/guest_api",
                json!({"resources": true}),
                "+ container web: may get resources of the key broker",
                "- container web: may get resources of the key broker",
            ),
            (
                "/containers/web/guest_api",
                json!({"resources": ["a/*"]}),
                "+ container web: may get resources \"a/*\"",
                "- container web: may get resources \"a/*\"",
            ),
            (
                "/containers/web/guest_api",
                json!({"token": true}),
                "+ container web: may get the pod's attestation token",
                "- container web: may get the pod's attestation token",
            ),
            (
                "/containers/web/service_env",
                json!("all"),
                "+ container web: variables of services: those of the API server -> those of any service",
                "- container web: variables of services: those of any service -> those of the API server",
            ),
            (
                "/containers/web/mounts",
                json!({"/c": {"kind": "config", "source": "c"}}),
                "~ container web: mount /c: Config \"c\", read-only -> Config \"c\", writable",
                "~ container web: mount /c: Config \"c\", writable -> Config \"c\", read-only",
            ),
            (
                "/containers/web/exec",
                json!([["sh"]]),
                "+ container web: may execute [\"sh\"]",
                "- container web: may execute [\"sh\"]",
            ),
            (
                "/containers/web/sidecar",
                json!(true),
                "~ container web: order: runs with the others -> starts before the others and runs beside them",
                "~ container web: order: starts before the others and runs beside them -> runs with the others",
            ),
            (
                "/copies/c/secret",
                json!(true),
                "~ document: something differs that this `nacre` has no words for: compare the texts",
                "~ document: something differs that this `nacre` has no words for: compare the texts",
            ),
            (
                "/containers/web/logs",
                json!(false),
                "- container web: the host may read its output",
                "+ container web: the host may read its output",
            ),
            (
                "/copies/c",
                Value::Null,
                "+ volume c: contents of the host's choice",
                "- volume c: contents other than those in the policy",
            ),
            (
                "/copies/c/files",
                json!({"k": "ff"}),
                "~ volume c: content of k: 0123456789ab -> ff",
                "~ volume c: content of k: ff -> 0123456789ab",
            ),
            (
                "/allow/termination_message",
                json!(false),
                "- cluster: the host may read termination messages",
                "+ cluster: the host may read termination messages",
            ),
            (
                "/containers/web/termination_log",
                json!("/end"),
                "~ container web: termination message in: /dev/termination-log -> /end",
                "~ container web: termination message in: /end -> /dev/termination-log",
            ),
            (
                "/allow/exec_any",
                json!(true),
                "+ cluster: any command may be executed",
                "- cluster: any command may be executed",
            ),
            (
                "/allow/port_forward",
                json!([8080]),
                "+ cluster: the host may connect to the pod's port 8080",
                "- cluster: the host may connect to the pod's port 8080",
            ),
            (
                "/standalone",
                json!(true),
                "~ document: brings the rules along instead of using those of the guest image",
                "~ document: uses the rules of the guest image instead of bringing its own",
            ),
        ] {
            let other = changed(pointer, value);
            let expect = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
            assert_eq!(words(&same, &other), expect(there), "{pointer}");
            assert_eq!(words(&other, &same), expect(back), "{pointer}");
        }
    }

    #[test]
    fn rules_of_the_owner_count() {
        let plain = changed("/source", json!("b.yaml"));
        let mut own = plain.clone();
        own.after = "\ndefault PauseContainerRequest := true\n".into();
        assert_eq!(
            words(&plain, &own),
            ["~ document: the owner's own rules behind policy_data differ: compare the texts"]
        );
    }
}
