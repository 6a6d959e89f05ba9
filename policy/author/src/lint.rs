//! Grants of a policy that are worth a second look.

use serde::Serialize;

use crate::document::{ContainerData, Document, GuestResources, MountKind, ServiceEnv};

/// How much a grant costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The host gains influence on the pod.
    Warning,
    /// The host can take over the pod or read what is in it.
    Danger,
}

impl Severity {
    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Danger => "danger",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it costs.
    pub severity: Severity,
    /// Name of the check, stable.
    pub rule: &'static str,
    /// The container, if it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What is granted.
    pub message: String,
    /// What to do.
    pub fix: &'static str,
}

/// All checks: name, severity, what to do.
pub const RULES: [(&str, Severity, &str); 26] = [
    ("allow-all", Severity::Danger, "use `nacre policy generate`; this is for development only"),
    (
        "exec-any",
        Severity::Danger,
        "remove allow.exec_any from the settings; list commands in allow.exec",
    ),
    (
        "exec-shell",
        Severity::Danger,
        "a shell runs anything that is written to it or given as its argument: name the program itself",
    ),
    (
        "stdin",
        Severity::Danger,
        "remove `stdin: true` from the container: the host could type into it",
    ),
    ("exec-stdin", Severity::Danger, "remove allow.stdin from the settings"),
    (
        "image-unpinned",
        Severity::Danger,
        "generate without --danger-unpinned: the registry and the host decide what runs",
    ),
    (
        "terminal",
        Severity::Warning,
        "remove `tty: true` from the container unless a person works there",
    ),
    ("exec-terminal", Severity::Warning, "remove allow.terminal from the settings"),
    ("exec-allowed", Severity::Note, "remove commands from allow.exec that nobody needs"),
    (
        "host-path",
        Severity::Danger,
        "use an emptyDir, a ConfigMap in the same files, or the image: the host chooses what is there",
    ),
    (
        "volume-unverified",
        Severity::Warning,
        "add the ConfigMap or Secret to the files, so that its contents are enforced",
    ),
    (
        "volume-host",
        Severity::Note,
        "encrypt what is confidential on persistent volumes, and verify what is read from them",
    ),
    (
        "service-env",
        Severity::Note,
        "set `enableServiceLinks: false` in the pod, or kubernetes.service_env in the settings",
    ),
    (
        "env-wildcard",
        Severity::Warning,
        "give the variable a fixed value: the host chooses what matches the pattern",
    ),
    (
        "secret-via-host",
        Severity::Warning,
        "the node copies it into the guest: keep what the host must not see out of Kubernetes Secrets",
    ),
    (
        "secret-in-policy",
        Severity::Warning,
        "whoever reads the pod reads its policy: keep what the host must not see out of Kubernetes Secrets",
    ),
    (
        "logs",
        Severity::Note,
        "set `logs = false` in the settings if what the pod writes is confidential",
    ),
    (
        "update-container",
        Severity::Note,
        "remove allow.update_container from the settings unless pods are resized in place",
    ),
    ("pause", Severity::Note, "remove allow.pause from the settings"),
    (
        "set-time",
        Severity::Warning,
        "remove allow.set_time from the settings: certificates would expire when the host likes",
    ),
    (
        "port-forward",
        Severity::Warning,
        "remove ports from allow.port_forward: the host can say anything there that programs of the pod can",
    ),
    ("annotation-any", Severity::Warning, "list the annotations one by one in allow.annotations"),
    (
        "capability",
        Severity::Warning,
        "drop the capability: it gives the container power over the guest's kernel",
    ),
    (
        "guest-token",
        Severity::Note,
        "remove token and evidence from guest_api in the settings, unless the program attests by itself",
    ),
    ("namespace-any", Severity::Note, "set metadata.namespace: the pod may otherwise run in any"),
    ("own-rules", Severity::Note, "rules behind policy_data are not looked at: read them yourself"),
];

/// Capabilities with which a container can leave its confinement within the guest.
const STRONG: [&str; 8] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_MODULE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_BOOT",
    "CAP_DAC_READ_SEARCH",
    "CAP_BPF",
    "CAP_MAC_ADMIN",
];
const SHELLS: [&str; 8] = ["sh", "bash", "ash", "dash", "zsh", "ksh", "busybox", "python3"];

/// Findings in a document, the worst first.
#[must_use]
pub fn lint(document: &Document) -> Vec<Finding> {
    let mut linter = Linter { findings: Vec::new(), container: None };
    linter.cluster(document);
    for (name, container) in &document.data.containers {
        linter.container = Some(name.clone());
        linter.check(document, container);
    }
    linter.container = None;
    let text = format!("{}\n{}", document.before, document.after);
    // A document that brings the library along has the library's defaults, too: they are all false.
    linter.plain_rules(&text);
    sorted(linter.findings)
}

/// Findings in a document of plain Rego.
#[must_use]
pub fn lint_plain(text: &str) -> Vec<Finding> {
    let mut linter = Linter { findings: Vec::new(), container: None };
    linter.plain_rules(text);
    sorted(linter.findings)
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    findings.dedup();
    findings
}

struct Linter {
    findings: Vec<Finding>,
    container: Option<String>,
}

impl Linter {
    fn find(&mut self, rule: &str, message: impl Into<String>) {
        let (rule, severity, fix) =
            *RULES.iter().find(|(name, ..)| *name == rule).expect("every check is in the table");
        let (container, message) = (self.container.clone(), message.into());
        self.findings.push(Finding { severity, rule, container, message, fix });
    }

    fn cluster(&mut self, document: &Document) {
        let allow = &document.data.allow;
        let always = [
            (allow.exec_any, "exec-any", "any command may be executed in any container"),
            (allow.terminal, "exec-terminal", "executed commands may have a terminal"),
            (allow.stdin, "exec-stdin", "the host may write to executed commands"),
            (
                allow.update_container,
                "update-container",
                "the host may change limits of containers",
            ),
            (allow.pause, "pause", "the host may freeze containers"),
            (allow.set_time, "set-time", "the host may set the guest's clock"),
        ];
        for (_, rule, message) in always.into_iter().filter(|(granted, ..)| *granted) {
            self.find(rule, message);
        }
        for command in &allow.exec {
            if is_shell(command) {
                self.find(
                    "exec-shell",
                    format!("a shell may be executed in any container: {command:?}"),
                );
            } else {
                self.find("exec-allowed", format!("may be executed in any container: {command:?}"));
            }
        }
        for port in &allow.port_forward {
            self.find(
                "port-forward",
                format!("the host may connect to the pod's localhost:{port}"),
            );
        }
        for annotation in allow.annotations.iter().filter(|annotation| annotation.contains('*')) {
            self.find("annotation-any", format!("annotations {annotation} may have any value"));
        }
        if document.data.pod.namespace.is_none() {
            self.find("namespace-any", "the pod may run in any namespace");
        }
        if !document.after.trim().is_empty() {
            self.find("own-rules", "the document has rules of its own behind policy_data");
        }
    }

    fn check(&mut self, document: &Document, container: &ContainerData) {
        if let Some(tag) = &container.image_tag {
            self.find("image-unpinned", format!("the image {tag} is not pinned by a digest"));
        }
        if container.stdin {
            self.find("stdin", "the host may write to its standard input");
        }
        if container.terminal {
            self.find("terminal", "it has a terminal, which the host may resize and read");
        }
        for command in container.exec.iter().filter(|command| is_open_shell(command)) {
            self.find(
                "exec-shell",
                format!("a shell without a script may be executed: {command:?}"),
            );
        }
        if container.service_env == ServiceEnv::All {
            self.find(
                "service-env",
                "the host may add variables of any service: NAME_SERVICE_HOST, NAME_PORT, ...",
            );
        }
        for (name, pattern) in &container.env_pattern {
            if is_wide(pattern) {
                self.find(
                    "env-wildcard",
                    format!("the variable {name} may be whatever matches {pattern}"),
                );
            }
        }
        // A sealed secret is meant to be read by anybody.
        let sealed = |name: &String| {
            let mut values = container.env.iter().filter_map(|variable| variable.split_once('='));
            values.any(|(known, value)| known == name && value.starts_with("sealed."))
        };
        let plain: Vec<&str> =
            container.secret_env.iter().filter(|name| !sealed(name)).map(String::as_str).collect();
        if !plain.is_empty() {
            let names = plain.join(", ");
            self.find(
                "secret-in-policy",
                format!("the policy holds values of Secrets: variables {names}"),
            );
        }
        if container.secret_args {
            self.find("secret-in-policy", "the policy holds values of Secrets: the command line");
        }
        let api = &container.guest_api;
        if (api.token || api.evidence) && api.resources != GuestResources::All(true) {
            let message =
                "it can get every resource of the pod by the token or evidence that it may have";
            self.find("guest-token", message);
        }
        if container.logs {
            self.find("logs", "the host may read what it writes to stdout and stderr");
        }
        let strong = container.capabilities.iter().flatten();
        for name in strong.filter(|name| STRONG.contains(&name.as_str())) {
            self.find("capability", format!("it has {name}"));
        }
        for (path, mount) in &container.mounts {
            if mount.kind == MountKind::Secret {
                self.find("secret-via-host", format!("the host sees the Secret at {path}"));
            }
            let volume = mount.volume.as_ref().or(mount.source.as_ref());
            let verified = volume.is_some_and(|volume| document.data.copies.contains_key(volume));
            match mount.kind {
                MountKind::HostPath => {
                    self.find("host-path", format!("{path} shows a path of the node"));
                }
                MountKind::Claim => {
                    self.find("volume-host", format!("{path} is a volume that the host keeps"));
                }
                MountKind::Config | MountKind::Secret | MountKind::Projected if !verified => {
                    self.find(
                        "volume-unverified",
                        format!("the host chooses the contents of {path}"),
                    );
                }
                _ => {}
            }
        }
    }

    /// Rules that are true whatever the request is.
    fn plain_rules(&mut self, text: &str) {
        let granted = |name: &&&str| {
            let begins = [format!("default {name} := true"), format!("{name} := true")];
            text.lines().map(str::trim).any(|line| begins.iter().any(|begin| line == begin))
        };
        let granted: Vec<&str> = nacre_policy::REQUESTS.iter().filter(granted).copied().collect();
        for name in granted {
            match name {
                "CreateContainerRequest" => self.find("allow-all", "any container may be created"),
                "SetPolicyRequest" => self.find("allow-all", "the host may replace the policy"),
                "CopyFileRequest" => {
                    self.find("allow-all", "any file may be copied into the guest");
                }
                "ExecProcessRequest" => {
                    self.find("exec-any", "any command may be executed in any container");
                }
                "WriteStreamRequest" => {
                    self.find("exec-stdin", "the host may write to any process");
                }
                "ReadStreamRequest" => {
                    self.find("logs", "the host may read the output of any process");
                }
                "SetGuestDateTimeRequest" => {
                    self.find("set-time", "the host may set the guest's clock");
                }
                "UpdateContainerRequest" => {
                    self.find("update-container", "the host may change limits of containers");
                }
                "PauseContainerRequest" => self.find("pause", "the host may freeze containers"),
                _ => {}
            }
        }
    }
}

/// Matches text that carries meaning: anything, or the value of a label.
fn is_wide(pattern: &str) -> bool {
    let label = crate::workload::PodFact::Label.pattern();
    pattern.contains(".*") || pattern.contains(".+") || pattern.contains(label)
}

fn program(command: &[String]) -> Option<&str> {
    command.first().and_then(|program| program.rsplit('/').next())
}

fn is_shell(command: &[String]) -> bool {
    program(command).is_some_and(|program| SHELLS.contains(&program))
}

/// A shell that reads what to do from its input.
fn is_open_shell(command: &[String]) -> bool {
    is_shell(command) && command.iter().skip(1).all(|arg| arg.starts_with('-') && arg != "-c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::PolicyData;

    fn found(change: &str) -> Vec<String> {
        let base = serde_json::json!({
            "version": 1, "pod": {"name": "web", "namespace": "n"},
            "containers": {"web": {
                "image": "r/web@sha256:0", "args": ["/web"], "cwd": "/", "logs": false,
                "users": [{"uid": 1, "gid": 1, "groups": [1]}],
            }},
            "copies": {"config": {"files": {}}},
        });
        let mut data = base;
        if !change.is_empty() {
            let (path, value) = change.split_once(' ').unwrap();
            let value: serde_json::Value = serde_json::from_str(value).unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            if data.pointer(parent).is_none() {
                data["allow"] = serde_json::json!({});
            }
            let parent = data.pointer_mut(parent).unwrap();
            if value.is_null() {
                drop(parent.as_object_mut().unwrap().remove(key));
            } else {
                parent[key] = value;
            }
        }
        let data: PolicyData = serde_json::from_value(data).unwrap();
        lint(&Document::new(data)).iter().map(|finding| finding.rule.to_owned()).collect()
    }

    #[test]
    fn each_grant_is_found_and_nothing_else() {
        assert_eq!(found(""), [""; 0]);
        for (change, rule) in [
            ("/allow/exec_any true", "exec-any"),
            ("/allow/exec [[\"/bin/sh\",\"-c\",\"ls\"]]", "exec-shell"),
            ("/allow/exec [[\"ls\"]]", "exec-allowed"),
            ("/allow/terminal true", "exec-terminal"),
            ("/allow/stdin true", "exec-stdin"),
            ("/allow/update_container true", "update-container"),
            ("/allow/pause true", "pause"),
            ("/allow/set_time true", "set-time"),
            ("/allow/port_forward [80]", "port-forward"),
            ("/allow/annotations [\"a\",\"b/*\"]", "annotation-any"),
            ("/pod/namespace null", "namespace-any"),
            ("/containers/web/image_tag \"r/web:1\"", "image-unpinned"),
            ("/containers/web/stdin true", "stdin"),
            ("/containers/web/terminal true", "terminal"),
            ("/containers/web/exec [[\"sh\"],[\"sh\",\"-c\",\"x\"],[\"sh\",\"x\"]]", "exec-shell"),
            ("/containers/web/service_env \"all\"", "service-env"),
            ("/containers/web/env_pattern {\"A\":\"^x.*$\",\"B\":\"^[0-9]$\"}", "env-wildcard"),
            ("/containers/web/secret_env [\"A\"]", "secret-in-policy"),
            ("/containers/web/secret_args true", "secret-in-policy"),
            ("/containers/web/guest_api {\"token\":true}", "guest-token"),
            ("/containers/web/logs true", "logs"),
            ("/containers/web/capabilities [\"CAP_CHOWN\",\"CAP_SYS_ADMIN\"]", "capability"),
            (
                "/containers/web/mounts {\"/h\":{\"kind\":\"host_path\",\"source\":\"x\"}}",
                "host-path",
            ),
            (
                "/containers/web/mounts {\"/h\":{\"kind\":\"claim\",\"source\":\"x\"}}",
                "volume-host",
            ),
            (
                "/containers/web/mounts {\"/h\":{\"kind\":\"projected\",\"source\":\"x\"}}",
                "volume-unverified",
            ),
            (
                "/containers/web/mounts {\"/h\":{\"kind\":\"secret\",\"source\":\"config\"}}",
                "secret-via-host",
            ),
        ] {
            assert_eq!(found(change), [rule], "{change}");
        }
        let sealed = serde_json::json!({
            "image": "r/web@sha256:0", "args": ["/web"], "cwd": "/", "logs": false, "secret_env": ["A"],
            "env": ["A=sealed.x.y.z"], "users": [], "guest_api": {"resources": true, "token": true},
        });
        assert_eq!(found(&format!("/containers/web {sealed}")), [""; 0]);
        assert_eq!(
            found("/containers/web/mounts {\"/h\":{\"kind\":\"config\",\"source\":\"config\"}}"),
            [""; 0]
        );
    }

    #[test]
    fn plain_rego_that_allows_everything_is_found() {
        let findings = lint_plain(&crate::template::danger_allow_all());
        assert_eq!(findings[0].severity, Severity::Danger);
        assert!(findings.iter().any(|finding| finding.rule == "allow-all"));
        assert!(findings.iter().any(|finding| finding.rule == "exec-any"));
        assert_eq!(lint_plain(&crate::template::deny_all()), []);
    }

    #[test]
    fn own_rules_are_mentioned() {
        let data = serde_json::json!({"version": 1, "pod": {"name": "w", "namespace": "n"}, "containers": {}});
        let mut document = Document::new(serde_json::from_value(data).unwrap());
        document.after = "\ndefault SetPolicyRequest := true\n".into();
        let rules: Vec<_> = lint(&document).iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, ["allow-all", "own-rules"]);
    }
}
