//! The Kubernetes front end, from YAML to the model of a workload.

use std::collections::BTreeMap;

use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::workload::{
    AppArmor, Container, Downward, EnvValue, PodFact, PodName, ProjectedFile, Propagation, Reading,
    Role, Seccomp, Volume, VolumeKind, Workload,
};

const EVERYTHING: &str = include_str!("yaml/everything.yaml");

fn file(text: &str) -> SourceFile {
    SourceFile { name: "web.yaml".to_owned(), content: text.as_bytes().to_vec() }
}

fn reading(text: &str) -> Reading {
    read(&[file(text)]).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn mistake(text: &str) -> String {
    match read(&[file(text)]) {
        Ok(reading) => panic!("accepted, with notes {:?}:\n{text}", reading.notes),
        Err(error) => error.to_string(),
    }
}

/// The line of the only place at which `needle` stands.
fn line_of(needle: &str) -> u32 {
    let found: Vec<_> =
        EVERYTHING.lines().enumerate().filter(|(_, line)| line.contains(needle)).collect();
    assert_eq!(found.len(), 1, "{needle} is not unique");
    u32::try_from(found[0].0 + 1).expect("a short file")
}

fn container<'a>(workload: &'a Workload, name: &str) -> &'a Container {
    let mut all = workload.pod.containers.iter();
    all.find(|container| container.name == name).expect("the container is there")
}

fn volume<'a>(workload: &'a Workload, name: &str) -> &'a Volume {
    let mut all = workload.pod.volumes.iter();
    all.find(|volume| volume.name == name).expect("the volume is there")
}

/// A value in a form that is easy to compare.
fn shown(value: &EnvValue) -> String {
    match value {
        EnvValue::Literal(text) => text.clone(),
        EnvValue::Secret(text) => format!("secret {}", text.reveal()),
        EnvValue::FromPod(fact) => format!("from pod {}", fact.name()),
        EnvValue::Pattern { regex, secret } => {
            format!("pattern {} {secret}", regex.reveal())
        }
    }
}

fn words(values: Option<&Vec<EnvValue>>) -> Vec<String> {
    values.expect("the words are there").iter().map(shown).collect()
}

#[test]
fn a_pod_with_everything() {
    let all = reading(EVERYTHING);
    assert_eq!(all.workloads.len(), 1);
    assert_eq!(all.config_maps.len(), 1);
    assert_eq!(all.secrets[0].data["password"].reveal(), b"hunter2");
    assert_eq!(all.secrets[0].data["API_KEY"].reveal(), b"abc123");
    let web = &all.workloads[0];
    assert_eq!(web.kind, "Deployment");
    assert_eq!(web.object_name, "web");
    assert_eq!(web.name, PodName::Prefix("web-".to_owned()));
    assert_eq!(web.namespace.as_deref(), Some("shop"));
    assert_eq!(web.source, "web.yaml");
    assert_eq!(web.document, 5);
    assert_eq!(web.line, line_of("apiVersion: apps/v1"));

    let pod = &web.pod;
    assert_eq!(pod.hostname, Some(PodName::Exact("web-host".to_owned())));
    assert_eq!(pod.subdomain.as_deref(), Some("web-domain"));
    assert!(pod.shared_pid);
    assert!(!pod.service_links);
    assert_eq!(pod.automount_token, Some(false), "by the service account");
    assert_eq!(pod.service_account.as_deref(), Some("web"));
    assert_eq!(pod.runtime_class.as_deref(), Some("nacre"));
    assert!(pod.custom_dns);
    assert_eq!(pod.labels["app"], "web");
    assert_eq!(pod.labels["tier"], "front");
    assert_eq!(pod.annotations["example.com/team"], "shop");
    let sysctls: Vec<_> = pod.sysctls.iter().collect();
    assert_eq!(
        format!("{sysctls:?}"),
        r#"[("net.core.somaxconn", "1024"), ("net.ipv4.ip_local_port_range", "1024 65000")]"#
    );
    assert_eq!(pod.fs_group, Some(2000));
    assert_eq!(pod.supplemental_groups, [3000, 4000]);
    assert!(pod.strict_groups);
    assert_eq!(pod.lines["hostname"], line_of("hostname: web-host"));
    assert_eq!(pod.lines["sysctls"], line_of("sysctls:"));
    assert_eq!(pod.lines["annotations"], line_of("      annotations:"));

    let roles: Vec<_> = pod
        .containers
        .iter()
        .map(|container| (container.name.as_str(), container.role, container.restartable))
        .collect();
    assert_eq!(
        roles,
        [("prepare", Role::Init, true), ("log", Role::Sidecar, true), ("web", Role::App, true)]
    );
    assert_eq!(
        words(container(web, "prepare").command.as_ref()),
        ["sh", "-c", "echo production $(MODE) $(NOWHERE)"]
    );
    assert_eq!(
        container(web, "log").security.app_armor,
        AppArmor::Localhost("log-profile".to_owned())
    );
}

#[test]
fn environment_and_command_line() {
    let all = reading(EVERYTHING);
    let web = container(&all.workloads[0], "web");
    let env: BTreeMap<_, _> =
        web.env.iter().map(|variable| (variable.name.as_str(), shown(&variable.value))).collect();
    let ip = PodFact::Ip.pattern();
    let port = PodFact::ServicePort.pattern();
    let expected = BTreeMap::from([
        ("API_KEY", "secret abc123".to_owned()),
        ("ACCOUNT", "web".to_owned()),
        ("CFG_GREETING", "hello".to_owned()),
        ("CFG_KEY", "secret hunter2".to_owned()),
        ("CFG_MODE", "production".to_owned()),
        ("CFG_nginx.conf", "server { listen 8080; }\n".to_owned()),
        ("CPUS", "2".to_owned()),
        ("DSN", "secret user:hunter2@db".to_owned()),
        ("EMPTY", String::new()),
        ("GREETING", "hello".to_owned()),
        ("HASH", "from pod label".to_owned()),
        ("LOG_CPUS", "from pod number".to_owned()),
        ("MEMORY_MB", "256".to_owned()),
        ("NAME", "web-production".to_owned()),
        ("POD_IP", "from pod ip".to_owned()),
        ("POD_NAME", "from pod pod_name".to_owned()),
        ("POD_NAMESPACE", "shop".to_owned()),
        ("TEAM", "shop".to_owned()),
        ("TIER", "front".to_owned()),
        ("URL", format!(r"pattern ^http://{ip}:{port}/\$\(REDIS_SERVICE_HOST\)$ false")),
        ("password", "secret hunter2".to_owned()),
    ]);
    assert_eq!(env, expected);
    assert_eq!(
        words(web.args.as_ref()),
        [
            format!(r"pattern ^\-\-listen={ip}:8080$ false"),
            "--name=web-production".to_owned(),
            "secret --key=hunter2".to_owned(),
            "from pod ip".to_owned(),
        ]
    );
    let line = |name: &str| web.env.iter().find(|variable| variable.name == name).unwrap().line;
    assert_eq!(line("NAME"), line_of("value: web-$(CFG_MODE)"));
    assert_eq!(line("CFG_MODE"), line_of("prefix: CFG_"));
    assert_eq!(line("POD_IP"), line_of("- name: POD_IP"));
    for field in ["image", "args", "env", "env_from", "cwd", "mounts", "exec", "stdin", "tty"] {
        assert!(web.lines.contains_key(field), "{field}");
    }
    assert_eq!(web.lines["args"] + 1, line_of("- --listen="));
    assert_eq!(web.image.line, line_of("web@sha256"));
    let debug = format!("{all:?}");
    assert!(!debug.contains("hunter2") && !debug.contains("abc123"), "secrets in Debug");
}

#[test]
fn security_resources_and_commands() {
    let all = reading(EVERYTHING);
    let web = container(&all.workloads[0], "web");
    let security = &web.security;
    assert_eq!(security.run_as_user, Some(1001));
    assert_eq!(security.run_as_group, Some(1000));
    assert!(security.non_root && security.readonly_root && !security.unmasked_proc);
    assert!(!security.allow_privilege_escalation);
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
    assert_eq!(security.app_armor, AppArmor::Unset);
    let names = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(&security.capabilities_add), ["CAP_NET_BIND_SERVICE"]);
    assert_eq!(names(&security.capabilities_drop), ["ALL"]);
    assert_eq!(security.se_linux.as_ref().unwrap().level.as_deref(), Some("s0:c1,c2"));
    assert_eq!(web.lines["user"], line_of("runAsUser: 1001"));
    assert_eq!(web.lines["group"], line_of("runAsGroup: 1000"));
    assert_eq!(web.lines["capabilities"], line_of("capabilities:"));

    let resources = &web.resources;
    assert_eq!(resources.cpu_limit, Some(1500));
    assert_eq!(resources.cpu_request, Some(250));
    assert_eq!(resources.memory_limit, Some(256 << 20));
    assert_eq!(resources.memory_request, Some(128 << 20));
    assert_eq!(resources.other_limits["ephemeral-storage"], 1_000_000_000);
    assert_eq!(resources.linux.cpu_shares, 256);
    assert_eq!(resources.linux.cpu_quota, 150_000);
    assert_eq!(resources.linux.cpu_period, 100_000);
    assert_eq!(resources.linux.memory_limit, 256 << 20);
    let idle = container(&all.workloads[0], "log").resources.linux;
    assert_eq!((idle.cpu_shares, idle.cpu_quota, idle.memory_limit), (2, 0, 0));

    let exec: Vec<_> =
        web.exec.iter().map(|exec| (exec.purpose, exec.command.join(" "), exec.line)).collect();
    assert_eq!(
        exec,
        [
            ("startupProbe", "test -e /started".to_owned(), line_of("[test, -e, /started]")),
            // The kubelet does not expand probes.
            ("readinessProbe", "cat $(NAME)".to_owned(), line_of("- cat") - 1),
            ("lifecycle.preStop", "sleep 5".to_owned(), line_of("[sleep, \"5\"]")),
        ]
    );
    assert_eq!(web.stop_signal.as_ref().unwrap().value, "SIGQUIT");
    assert_eq!(web.working_dir.as_deref(), Some("/srv"));
    assert_eq!(web.termination_message_path, "/dev/end");
    assert!(web.stdin && web.tty && !web.stdin_once);
}

#[test]
fn volumes_and_mounts() {
    let all = reading(EVERYTHING);
    let workload = &all.workloads[0];
    let web = container(workload, "web");
    let mount = |path: &str| web.mounts.iter().find(|mount| mount.path == path).unwrap();
    assert!(mount("/etc/web").read_only && !mount("/etc/web").recursive_read_only);
    assert_eq!(mount("/etc/web").line, line_of("        - name: config"));
    assert!(mount("/etc/secret").recursive_read_only);
    assert_eq!(mount("/work").sub_path, Some(EnvValue::Literal("a/b".to_owned())));
    assert_eq!(mount("/work").index, 4);
    assert_eq!(
        shown(mount("/named").sub_path.as_ref().unwrap()),
        format!(r"pattern ^{}/web\-production$ false", PodFact::PodName.pattern())
    );
    assert_eq!(mount("/host").propagation, Propagation::HostToContainer);
    assert_eq!(web.devices[0].path, "/dev/xvda");
    assert_eq!(web.devices[0].volume, "disk");

    let VolumeKind::ConfigMap { name, files } = &volume(workload, "config").kind else {
        panic!("a ConfigMap")
    };
    assert_eq!(name, "web-config");
    let files = files.as_ref().unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files["conf.d/nginx.conf"].reveal(), b"server { listen 8080; }\n");
    let VolumeKind::Secret { files: Some(files), .. } = &volume(workload, "secret").kind else {
        panic!("a Secret with files")
    };
    assert_eq!(files.keys().collect::<Vec<_>>(), ["API_KEY", "password"]);
    let VolumeKind::Projected { files, complete } = &volume(workload, "all").kind else {
        panic!("a projected volume")
    };
    assert!(complete);
    assert_eq!(files.len(), 6);
    assert!(
        matches!(&files["logo"], ProjectedFile::Config(content) if content.reveal().starts_with(b"\x89PNG"))
    );
    assert!(
        matches!(&files["pw"], ProjectedFile::Secret(content) if content.reveal() == b"hunter2")
    );
    assert_eq!(files["token"], ProjectedFile::Token);
    assert_eq!(files["labels"], ProjectedFile::Downward(Downward::Labels));
    assert_eq!(
        files["uid"],
        ProjectedFile::Downward(Downward::Value(EnvValue::FromPod(PodFact::Uid)))
    );
    assert_eq!(files["ca.pem"], ProjectedFile::TrustBundle);
    let VolumeKind::DownwardApi { files } = &volume(workload, "info").kind else {
        panic!("a downward API volume")
    };
    assert_eq!(files["annotations"], ProjectedFile::Downward(Downward::Annotations));
    assert_eq!(
        files["cpu"],
        ProjectedFile::Downward(Downward::Value(EnvValue::Literal("250".to_owned())))
    );
    for (name, kind) in [
        (
            "work",
            VolumeKind::EmptyDir { memory: true, huge_pages: None, size_limit: Some(64 << 20) },
        ),
        ("plain", VolumeKind::EmptyDir { memory: false, huge_pages: None, size_limit: None }),
        ("host", VolumeKind::HostPath { path: "/data".to_owned(), kind: "Directory".to_owned() }),
        (
            "disk",
            VolumeKind::Claim { name: "scratch".to_owned(), block: Some(true), read_only: false },
        ),
        ("unknown", VolumeKind::ConfigMap { name: "kube-root-ca.crt".to_owned(), files: None }),
        ("own", VolumeKind::Ephemeral { block: false }),
        ("inline", VolumeKind::Csi { driver: "example.com/driver".to_owned(), read_only: true }),
        ("share", VolumeKind::Other { kind: "nfs".to_owned(), read_only: true }),
    ] {
        assert_eq!(volume(workload, name).kind, kind, "{name}");
    }
}

#[test]
fn notes_say_what_is_not_in_the_policy() {
    let notes: Vec<_> = reading(EVERYTHING).notes.iter().map(ToString::to_string).collect();
    let line = |needle| line_of(needle);
    assert_eq!(
        notes,
        [
            "web.yaml:2: Namespace is skipped: it makes no pods".to_owned(),
            format!(
                "web.yaml:{}: spec.template.spec.volumes[7].configMap.name: the ConfigMap \"kube-root-ca.crt\" is not in \
                 the given files: the host may choose what it contains",
                line("kube-root-ca.crt")
            ),
            format!(
                "web.yaml:{}: spec.template.spec.containers[0].envFrom[2].configMapRef.name: the optional ConfigMap \
                 \"not-there\" is not in the given files: its variables are expected to be absent",
                line("not-there")
            ),
        ]
    );
}

/// A pod with one container, into which more fields are put.
fn pod(spec: &str, container: &str) -> String {
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n".to_owned();
    for line in spec.lines() {
        text += &format!("  {line}\n");
    }
    text += "  containers:\n  - name: web\n    image: nginx:1\n";
    for line in container.lines() {
        text += &format!("    {line}\n");
    }
    text
}

const TEMPLATE: &str = "{spec: {containers: [{name: web, image: nginx}]}}";
const JOB_TEMPLATE: &str = "{spec: {restartPolicy: Never, containers: [{name: web, image: nginx, env: \
                            [{name: I, value: $(JOB_COMPLETION_INDEX)}]}]}}";

#[test]
fn every_kind_names_its_pods() {
    let prefix = |text: &str| PodName::Prefix(text.to_owned());
    let pattern = |text: &str| PodName::Pattern(text.to_owned());
    for (version, kind, metadata, spec, name, hostname) in [
        (
            "v1",
            "Pod",
            "name: a.b",
            "containers: [{name: web, image: nginx}]".to_owned(),
            PodName::Exact("a.b".to_owned()),
            None,
        ),
        (
            "v1",
            "Pod",
            "generateName: a-",
            "containers: [{name: web, image: nginx}]".to_owned(),
            prefix("a-"),
            None,
        ),
        ("apps/v1", "Deployment", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        ("apps/v1", "ReplicaSet", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        (
            "v1",
            "ReplicationController",
            "name: a",
            format!("{{template: {TEMPLATE}, selector: {{a: b}}}}"),
            prefix("a-"),
            None,
        ),
        ("apps/v1", "DaemonSet", "name: a", format!("template: {TEMPLATE}"), prefix("a-"), None),
        (
            "apps/v1",
            "StatefulSet",
            "name: a.b",
            format!("{{serviceName: s, template: {TEMPLATE}}}"),
            pattern(r"^a\.b-[0-9]+$"),
            None,
        ),
        ("batch/v1", "Job", "name: a", format!("template: {JOB_TEMPLATE}"), prefix("a-"), None),
        (
            "batch/v1",
            "Job",
            "generateName: a-",
            format!("template: {JOB_TEMPLATE}"),
            prefix("a-"),
            None,
        ),
        (
            "batch/v1",
            "Job",
            "name: a",
            format!("{{completionMode: Indexed, template: {JOB_TEMPLATE}}}"),
            prefix("a-"),
            Some(pattern("^a-[0-9]+$")),
        ),
        (
            "batch/v1",
            "CronJob",
            "name: a",
            format!(
                "{{schedule: '* * * * *', jobTemplate: {{spec: {{template: {JOB_TEMPLATE}}}}}}}"
            ),
            prefix("a-"),
            None,
        ),
        (
            "batch/v1",
            "CronJob",
            "name: a",
            format!(
                "{{schedule: '* * * * *', jobTemplate: {{spec: {{completionMode: Indexed, template: {JOB_TEMPLATE}}}}}}}"
            ),
            prefix("a-"),
            Some(pattern("^a-[0-9]+-[0-9]+$")),
        ),
    ] {
        let spec = if spec.starts_with('{') { spec } else { format!("{{{spec}}}") };
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n"
        );
        let all = reading(&text);
        let workload = &all.workloads[0];
        assert_eq!(workload.kind, kind);
        assert_eq!(workload.name, name, "{text}");
        assert_eq!(workload.pod.hostname, hostname, "{text}");
        assert_eq!(workload.pod.containers[0].restartable, version != "batch/v1");
        if kind == "Job" || kind == "CronJob" {
            let indexed = hostname.is_some();
            let index = &workload.pod.containers[0].env;
            assert_eq!(index.len(), if indexed { 2 } else { 1 });
            assert_eq!(index[0].name, "I");
        }
    }
    let long = "x".repeat(60);
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {long}}}\nspec: {{template: {TEMPLATE}}}"
    );
    assert_eq!(reading(&text).workloads[0].name, prefix(&"x".repeat(58)));
    let long = "x".repeat(70);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}}}\nspec: {{containers: [{{name: web, image: nginx}}]}}"
    );
    assert_eq!(reading(&text).workloads[0].pod.hostname, Some(PodName::Exact("x".repeat(63))));
}

#[test]
fn lists_and_several_files_are_one_input() {
    let list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n\
                - apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: {containers: [{name: c, image: i, envFrom: [{configMapRef: {name: m}}]}]}\n\
                - apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: c, image: i}]}}\n";
    let config = SourceFile {
        name: "config.yaml".to_owned(),
        content: b"{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"m\"}, \"data\": {\"A\": \"1\"}}".to_vec(),
    };
    let all = read(&[file(list), config]).unwrap();
    assert_eq!(all.workloads.len(), 2);
    assert_eq!(all.workloads[0].line, 5);
    assert_eq!(all.workloads[0].pod.containers[0].env[0].name, "A");
    assert_eq!(all.workloads[1].line, 12);
    let list = list.replace(", envFrom: [{configMapRef: {name: m}}]", "");
    let error = mistake(&list.replace("{name: c, image: i}]}}\n", "{name: c, imagee: i}]}}\n"));
    assert_eq!(
        error,
        "web.yaml:12: items[1].items[0].spec.containers[0].imagee: unknown field; did you mean image?"
    );
}

#[test]
fn claim_templates_are_volumes() {
    let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db}\nspec:\n  serviceName: db\n  template:\n    spec:\n      \
                containers:\n      - name: db\n        image: db\n        volumeMounts: [{name: data, mountPath: /data}]\n        \
                volumeDevices: [{name: raw, devicePath: /dev/raw}]\n  volumeClaimTemplates:\n  - metadata: {name: data}\n    spec: \
                {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n  - metadata: {name: raw}\n    spec: {volumeMode: Block}\n";
    let all = reading(text);
    let workload = &all.workloads[0];
    assert_eq!(workload.pod.subdomain.as_deref(), Some("db"));
    assert_eq!(
        volume(workload, "data").kind,
        VolumeKind::Claim { name: "data".to_owned(), block: Some(false), read_only: false }
    );
    assert!(matches!(volume(workload, "raw").kind, VolumeKind::Claim { block: Some(true), .. }));
}

#[test]
fn what_a_confidential_pod_must_not_have_is_refused() {
    for (spec, container, message) in [
        (
            "hostNetwork: true",
            "",
            "web.yaml:5: spec.hostNetwork: hostNetwork: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostPID: true",
            "",
            "web.yaml:5: spec.hostPID: hostPID: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostIPC: true",
            "",
            "web.yaml:5: spec.hostIPC: hostIPC: true is refused: a confidential pod runs in a virtual machine of its own and shares nothing of the host; remove the field",
        ),
        (
            "hostUsers: false",
            "",
            "web.yaml:5: spec.hostUsers: hostUsers: false is refused: the guest runs no user namespaces; its virtual machine already keeps the pod's users from the host's; remove the field",
        ),
        (
            "os: {name: windows}",
            "",
            "web.yaml:5: spec.os.name: os.name: windows is refused: the guest runs Linux; write linux",
        ),
        (
            "ephemeralContainers:\n- {name: debug, image: busybox}",
            "",
            "web.yaml:5: spec.ephemeralContainers: ephemeralContainers is refused: a container that is added while the pod runs is not in its measured policy; remove the field",
        ),
        (
            "securityContext:\n  windowsOptions: {}",
            "",
            "web.yaml:6: spec.securityContext.windowsOptions: windowsOptions is refused: the guest runs Linux; remove the field",
        ),
        (
            "setHostnameAsFQDN: true",
            "",
            "web.yaml:5: spec.setHostnameAsFQDN: setHostnameAsFQDN: true is refused: the full name contains the cluster's domain, which the policy cannot know; remove the field",
        ),
        (
            "volumes:\n- name: code\n  gitRepo: {repository: x}",
            "",
            "web.yaml:7: spec.volumes[0].gitRepo: a gitRepo volume is refused: Kubernetes has removed it; clone the repository in an init container",
        ),
        (
            "",
            "securityContext:\n  privileged: true",
            "web.yaml:9: spec.containers[0].securityContext.privileged: privileged: true is refused: it gives the container every device and capability of the guest; grant single ones with securityContext.capabilities.add",
        ),
        (
            "",
            "securityContext:\n  windowsOptions: {hostProcess: true}",
            "web.yaml:9: spec.containers[0].securityContext.windowsOptions: windowsOptions is refused: the guest runs Linux; remove the field",
        ),
        (
            "",
            "securityContext:\n  seccompProfile: {type: Localhost, localhostProfile: a.json}",
            "web.yaml:9: spec.containers[0].securityContext.seccompProfile.type: a seccomp profile of the type Localhost is refused: it is a file of the host, which the guest does not trust; write RuntimeDefault or Unconfined",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts:\n- {name: v, mountPath: /v, mountPropagation: Bidirectional}",
            "web.yaml:10: spec.containers[0].volumeMounts[0].mountPropagation: mountPropagation: Bidirectional is refused: it needs a privileged container and gives mounts to the host; write None or HostToContainer",
        ),
        (
            "",
            "env:\n- name: A\n  valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}",
            "web.yaml:10: spec.containers[0].env[0].valueFrom.fileKeyRef: fileKeyRef is refused: its value comes from a file that is written while the pod runs, so no policy can know it; let the program read the file",
        ),
    ] {
        assert_eq!(mistake(&pod(spec, container)), message);
    }
    // Said explicitly, the harmless values are fine.
    reading(&pod(
        "hostNetwork: false\nhostPID: false\nhostIPC: false\nhostUsers: true\nos: {name: linux}\nephemeralContainers: []",
        "securityContext: {privileged: false, seccompProfile: {type: Unconfined}}",
    ));
}

#[test]
fn mistakes_in_a_pod_have_their_place() {
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b, 1x: c}\nbinaryData: {raw: AP8=}\n---\n\
                  apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {raw: AP8=}\n---\n";
    for (spec, container, message) in [
        (
            "restartPolicy: Sometimes",
            "",
            "web.yaml:16: spec.restartPolicy: must be Always, OnFailure or Never",
        ),
        ("hostname: a_b", "", "web.yaml:16: spec.hostname: is no hostname"),
        (
            "securityContext: {runAsUser: -1}",
            "",
            "web.yaml:16: spec.securityContext.runAsUser: must be between 0 and 2147483647",
        ),
        (
            "securityContext: {runAsUser: '1000'}",
            "",
            "web.yaml:16: spec.securityContext.runAsUser: must be a whole number, but is text: remove the quotes",
        ),
        (
            "securityContext: {runAsNonRoot: true}",
            "securityContext: {runAsUser: 0}",
            "web.yaml:20: spec.containers[0].securityContext.runAsUser: is 0 where runAsNonRoot is true: choose another user, or remove runAsNonRoot",
        ),
        (
            "securityContext: {sysctls: [{name: a.b, value: '1'}, {name: a/b, value: '2'}]}",
            "",
            "web.yaml:16: spec.securityContext.sysctls[1].name: stands twice: remove one",
        ),
        (
            "securityContext: {supplementalGroupsPolicy: Loose}",
            "",
            "web.yaml:16: spec.securityContext.supplementalGroupsPolicy: must be Merge or Strict",
        ),
        (
            "initContainers: [{name: web, image: i}]",
            "",
            "web.yaml:18: spec.containers[0].name: the pod has two containers \"web\": rename one",
        ),
        (
            "initContainers: [{name: Web, image: i}]",
            "",
            "web.yaml:16: spec.initContainers[0].name: \"Web\" is no name for a container: use up to 63 of a-z, 0-9 and '-', the latter not at the ends",
        ),
        (
            "initContainers: [{name: a}]",
            "",
            "web.yaml:16: spec.initContainers[0].image: is missing",
        ),
        (
            "volumes: [{name: v}, {name: v}]",
            "",
            "web.yaml:16: spec.volumes[1].name: the pod has two volumes \"v\": rename one",
        ),
        (
            "volumes: [{name: v, emptyDir: {}, hostPath: {path: /}}]",
            "",
            "web.yaml:16: spec.volumes[0].hostPath: is a second source of this volume: a volume has one, remove the other",
        ),
        (
            "volumes: [{name: v, emptyDir: {medium: Tape}}]",
            "",
            "web.yaml:16: spec.volumes[0].emptyDir.medium: must be empty, Memory, HugePages or HugePages-SIZE",
        ),
        (
            "volumes: [{name: v, hostPath: {path: /a/../b}}]",
            "",
            "web.yaml:16: spec.volumes[0].hostPath.path: must not contain '..'",
        ),
        (
            "volumes: [{name: v, configMap: {name: m, items: [{key: z, path: z}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].configMap.items[0].key: ConfigMap \"m\" (web.yaml:1) has no key \"z\": add it there, or correct the key",
        ),
        (
            "volumes: [{name: v, configMap: {name: m, items: [{key: a, path: ../a}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].configMap.items[0].path: must be a relative path without '..': name a file within the volume",
        ),
        (
            "volumes: [{name: v, projected: {sources: [{}]}}]",
            "",
            "web.yaml:16: spec.volumes[0].projected.sources[0]: needs exactly one of configMap, secret, downwardAPI, serviceAccountToken, clusterTrustBundle and podCertificate",
        ),
        (
            "volumes: [{name: v, secret: {name: s}}]",
            "",
            "web.yaml:16: spec.volumes[0].secret.name: unknown field: remove it, or correct its name",
        ),
        (
            "",
            "image2: x",
            "web.yaml:19: spec.containers[0].image2: unknown field; did you mean image?",
        ),
        ("", "command: sh", "web.yaml:19: spec.containers[0].command: must be a list, but is text"),
        (
            "",
            "args: [--port, 80]",
            "web.yaml:19: spec.containers[0].args[1]: must be text, but is a number: write it in quotes",
        ),
        (
            "",
            "env:\n- {name: A, value: yes}",
            "web.yaml:20: spec.containers[0].env[0].value: must be text, but is a boolean: write it in quotes",
        ),
        (
            "",
            "env:\n- {name: A=B, value: c}",
            "web.yaml:20: spec.containers[0].env[0].name: is no name of an environment variable: it is empty or contains '='",
        ),
        (
            "",
            "env:\n- {name: A, value: b, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom: stands beside value: remove one of them",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom: needs exactly one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {configMapKeyRef: {name: m, key: z}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: ConfigMap \"m\" (web.yaml:1) has no key \"z\": add it there, or correct the key",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {configMapKeyRef: {name: m, key: raw}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.configMapKeyRef.key: \"raw\" stands in the ConfigMap's binaryData, which cannot become a variable: move it to data",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {secretKeyRef: {name: s, key: raw}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.secretKeyRef.key: \"raw\" of Secret \"s\" is not UTF-8 text without NUL and cannot become a variable: mount it as a file",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {secretKeyRef: {name: t, key: k}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.secretKeyRef.name: the Secret \"t\" is not in the given files: give its YAML too, so that its values can be in the policy",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {resourceFieldRef: {resource: limits}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: \"limits\" is no resource: use limits.cpu, limits.memory, requests.cpu, requests.memory, limits.ephemeral-storage or requests.ephemeral-storage",
        ),
        (
            "",
            "env:\n- {name: A, valueFrom: {resourceFieldRef: {containerName: b, resource: limits.cpu}}}",
            "web.yaml:20: spec.containers[0].env[0].valueFrom.resourceFieldRef.containerName: the pod has no container \"b\": correct containerName",
        ),
        (
            "",
            "envFrom:\n- {configMapRef: {name: m}}",
            "web.yaml:20: spec.containers[0].envFrom[0]: \"1x\" of ConfigMap \"m\" is no environment variable in every Kubernetes version: rename the key, or set a variable from it by valueFrom",
        ),
        (
            "",
            "envFrom:\n- {}",
            "web.yaml:20: spec.containers[0].envFrom[0]: needs either configMapRef or secretRef",
        ),
        (
            "",
            "resources: {limits: {cpu: lots}}",
            "web.yaml:19: spec.containers[0].resources.limits.cpu: \"lots\" is no quantity: write a number such as 2, 0.5, 100m, 128Mi or 1e3",
        ),
        (
            "",
            "resources: {limits: {memory: 1Gi}, requests: {memory: 2Gi}}",
            "web.yaml:19: spec.containers[0].resources.requests.memory: is more than the limit: lower it, or raise the limit",
        ),
        (
            "",
            "volumeMounts: [{name: v, mountPath: /v}]",
            "web.yaml:19: spec.containers[0].volumeMounts[0].name: the pod has no volume \"v\": add it to spec.volumes, or correct the name",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v}]",
            "web.yaml:20: spec.containers[0].volumeMounts[1].mountPath: \"/v\" is mounted twice in this container: remove one of the mounts",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v, subPath: ../v}]",
            "web.yaml:20: spec.containers[0].volumeMounts[0]: subPath must be a relative path without '..'",
        ),
        (
            "volumes: [{name: v}]",
            "volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(NO)}]",
            "web.yaml:20: spec.containers[0].volumeMounts[0].subPathExpr: refers to the variable \"NO\", which the container does not define: add it to env",
        ),
        (
            "volumes: [{name: v}]",
            "volumeDevices: [{name: v, devicePath: /dev/v}]",
            "web.yaml:20: spec.containers[0].volumeDevices[0].name: the volume \"v\" is no block device: use a claim of volumeMode: Block, or name it in volumeMounts",
        ),
        (
            "",
            "livenessProbe: {exec: {command: []}}",
            "web.yaml:19: spec.containers[0].livenessProbe.exec.command: names no program: write the command as a list",
        ),
        (
            "",
            "livenessProbe: {httpGet: {prt: 80}}",
            "web.yaml:19: spec.containers[0].livenessProbe.httpGet.prt: unknown field; did you mean port?",
        ),
        (
            "",
            "lifecycle: {stopSignal: KILL}",
            "web.yaml:19: spec.containers[0].lifecycle.stopSignal: is no signal: write its name, such as SIGTERM",
        ),
        (
            "",
            "securityContext: {capabilities: {add: [CAP_CHOWN]}}",
            "web.yaml:19: spec.containers[0].securityContext.capabilities.add[0]: \"CAP_CHOWN\" must stand without its prefix in Kubernetes: write CHOWN",
        ),
        (
            "",
            "securityContext: {capabilities: {add: [FLY]}}",
            "web.yaml:19: spec.containers[0].securityContext.capabilities.add[0]: \"FLY\" is no Linux capability: write a name such as NET_BIND_SERVICE, or ALL",
        ),
        (
            "",
            "securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [SYS_ADMIN]}}",
            "web.yaml:19: spec.containers[0].securityContext.allowPrivilegeEscalation: is false beside the added capability SYS_ADMIN, which Kubernetes refuses: remove one of them",
        ),
        (
            "",
            "securityContext: {procMount: Some}",
            "web.yaml:19: spec.containers[0].securityContext.procMount: must be Default or Unmasked",
        ),
        (
            "affinity: {nodeAffinity: {requiredDuringScheduling: {}}}",
            "",
            "web.yaml:16: spec.affinity.nodeAffinity.requiredDuringScheduling: unknown field: remove it, or correct its name",
        ),
    ] {
        // The configuration has 11 lines, the pod's head 4.
        let text = format!("{config}{}", pod(spec, container));
        assert_eq!(mistake(&text), message, "{text}");
    }
}

#[test]
fn mistakes_in_objects_have_their_place() {
    let pod = pod("", "");
    for (text, message) in [
        ("a: b", "web.yaml:1: kind: is missing"),
        ("kind: Pod", "web.yaml:1: apiVersion: is missing"),
        ("- a", "web.yaml:1: must be a mapping, but is a list"),
        (
            "apiVersion: apps/v1\nkind: Deploymnt",
            "web.yaml:2: kind: apps/v1 has no kind \"Deploymnt\": it has Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision",
        ),
        (
            "apiVersion: v1\nkind: Deployment",
            "web.yaml:1: apiVersion: v1 has no Deployment: write apps/v1",
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: Deployment",
            "web.yaml:1: apiVersion: extensions/v1beta1 is no longer served by Kubernetes: write apps/v1",
        ),
        (
            "apiVersion: v1\nkind: PodList\nitems: []",
            "web.yaml:2: kind: is not read: write kind: List, with apiVersion: v1",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {containers: []}",
            "web.yaml:3: metadata: has neither name nor generateName: add one",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A}\nspec: {containers: []}",
            "web.yaml:3: metadata.name: \"A\" is no name: use up to 253 of a-z, 0-9, '-' and '.', the latter two not at the ends",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}",
            "web.yaml:4: spec.containers: needs at least one container",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}",
            "web.yaml:4: spec.containers: is missing",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}",
            "web.yaml:5: a stands twice, first at web.yaml:1: remove one",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  k: '%'",
            "web.yaml:5: data.k: is not base64: encode the value, or (in a Secret) move it to stringData",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndatta: {}",
            "web.yaml:4: datta: unknown field; did you mean data?",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  k: 3",
            "web.yaml:5: data.k: must be text, but is a number: write it in quotes",
        ),
        (
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers: [{name: a, image: i}]",
            "web.yaml:6: spec.template.spec: a job's pods need restartPolicy: Never or OnFailure",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a\n",
            "web.yaml:3: not valid YAML: unclosed bracket '{'",
        ),
    ] {
        assert_eq!(mistake(text), message, "{text}");
    }
    assert_eq!(
        mistake(&format!("{pod}---\n{pod}")),
        "web.yaml:9: Pod \"web\" stands twice, first at web.yaml:1: remove one"
    );
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {anything: 1}\n---\n\
                apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n---\n\
                apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\n---\n\
                apiVersion: v1\nkind: LimitRange\n";
    let notes: Vec<_> = reading(text).notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "web.yaml:1: Service is skipped: it makes no pods",
            "web.yaml:6: Role is skipped: it makes no pods",
            "web.yaml:9: Job (batch.volcano.sh/v1alpha1) is not known and is skipped: pods that it makes get no policy",
            "web.yaml:12: LimitRange is skipped: if it changes the resources of pods, write them into the pods, or the \
             agent will refuse them",
        ]
    );
}

#[test]
fn objects_are_found_in_their_namespace() {
    let config = |namespace: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, namespace: {namespace}}}\ndata: {{A: '{value}'}}\n---\n"
        )
    };
    let pod = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{containers: [{{name: c, image: i, \
                 env: [{{name: A, valueFrom: {{configMapKeyRef: {{name: m, key: A}}}}}}]}}]}}\n"
        )
    };
    let both = config("one", "1") + &config("two", "2");
    let value = |text: &str| shown(&reading(text).workloads[0].pod.containers[0].env[0].value);
    assert_eq!(value(&(both.clone() + &pod("two"))), "2");
    assert!(mistake(&(both.clone() + &pod("three"))).contains("is not in the given files"));
    assert!(mistake(&(both + &pod(""))).contains("is not in the given files"));
    assert_eq!(value(&(config("", "0") + &pod("three"))), "0");
}

#[test]
fn variables_that_explode_are_an_error() {
    let mut env = "env:\n- {name: A0, value: xxxxxxxxxx}\n".to_owned();
    for level in 1..9 {
        let value = format!("$(A{})", level - 1).repeat(10);
        env += &format!("- {{name: A{level}, value: \"{value}\"}}\n");
    }
    assert_eq!(
        mistake(&pod("", &env)),
        "web.yaml:14: spec.containers[0].env[5].value: is longer than 131072 bytes after $(VAR) expansion, which no \
         program can be given: shorten it"
    );
}

#[test]
fn numbers_are_read_as_kubernetes_reads_them() {
    let all = reading(&pod(
        "securityContext: {runAsUser: 0o1750}",
        "resources: {limits: {memory: 1e3, cpu: \"0.1\"}, requests: {memory: 100m}}",
    ));
    let container = &all.workloads[0].pod.containers[0];
    assert_eq!(container.security.run_as_user, Some(1000));
    assert_eq!(container.resources.memory_limit, Some(1000));
    assert_eq!(container.resources.cpu_limit, Some(100));
    assert_eq!(container.resources.cpu_request, Some(100));
    assert_eq!(
        all.notes[0].text,
        "spec.containers[0].resources.requests.memory: \"100m\" is a fraction of a byte; if mega is meant, write M or Mi"
    );
}

#[test]
fn data_may_be_null_or_loosely_encoded() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  empty:\n  loose: YWK=\n  lines: |\n    YW\n    Jj\n";
    let all = reading(text);
    let data = |key: &str| all.secrets[0].data[key].reveal();
    assert_eq!((data("empty"), data("loose"), data("lines")), (&b""[..], &b"ab"[..], &b"abc"[..]));
}

#[test]
fn messages_do_not_grow_with_their_file() {
    let text = format!("apiVersion: v1\nkind: Pod\n{}: 1\n", "k".repeat(1000));
    let keys = "k".repeat(100);
    assert_eq!(
        mistake(&text),
        format!("web.yaml:3: [\"{keys}...\"]: unknown field: remove it, or correct its name")
    );
    let files: Vec<_> = (0..17).map(|_| file(&" ".repeat(4 << 20))).collect();
    let error = read(&files).map(drop).unwrap_err().to_string();
    assert_eq!(
        error,
        "web.yaml:1: size of all files in bytes exceeds the limit of 67108864: give fewer at a time"
    );
}

#[test]
fn empty_names_are_absent_ones() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, generateName: '', namespace: ''}\nspec:\n  \
                hostname: ''\n  subdomain: ''\n  serviceAccountName: ''\n  nodeName: ''\n  containers:\n  - {name: web, image: i, \
                command: [], workingDir: '', env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, \
                {name: B, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]}\n";
    let all = reading(text);
    let workload = &all.workloads[0];
    assert_eq!(workload.namespace, None);
    assert_eq!((&workload.pod.hostname, &workload.pod.subdomain), (&None, &None));
    let container = &workload.pod.containers[0];
    assert_eq!((&container.command, &container.working_dir), (&None, &None));
    let values: Vec<_> = container.env.iter().map(|variable| shown(&variable.value)).collect();
    assert_eq!(values, ["from pod node_name", "default"]);
}

#[test]
fn containers_know_whether_they_run_again() {
    let restartable = |policy: &str, own: &str| {
        let text = pod(
            &format!("restartPolicy: {policy}\ninitContainers: [{{name: init, image: i}}]"),
            own,
        );
        let all = reading(&text);
        let containers = &all.workloads[0].pod.containers;
        (containers[0].restartable, containers[1].restartable)
    };
    let rule = |action: &str| {
        format!(
            "restartPolicyRules: [{{action: {action}, exitCodes: {{operator: In, values: [88]}}}}]"
        )
    };
    assert_eq!(restartable("Always", ""), (true, true));
    assert_eq!(restartable("OnFailure", ""), (true, true));
    assert_eq!(restartable("Never", ""), (false, false));
    assert_eq!(restartable("Never", "restartPolicy: OnFailure"), (false, true));
    assert_eq!(restartable("Always", "restartPolicy: Never"), (true, false));
    assert_eq!(restartable("Never", &rule("Restart")), (false, true));
    assert_eq!(restartable("Never", &rule("RestartAllContainers")), (true, true));
}

#[test]
fn a_controller_decides_on_the_hostname() {
    let text = format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec: {{template: {}}}\n",
        TEMPLATE.replace("{spec: {", "{spec: {hostname: other, ")
    );
    assert_eq!(reading(&text).workloads[0].pod.hostname, None);
}

#[test]
fn a_later_variable_counts_and_sees_the_earlier() {
    let all = reading(&pod(
        "",
        "env:\n- {name: A, value: '1'}\n- {name: A, value: $(A)2}\n- {name: B, value: $(C)}\n- {name: C, value: $(A)}\n\
         - {name: A, valueFrom: {configMapKeyRef: {name: absent, key: key, optional: true}}}",
    ));
    let env: Vec<_> = all.workloads[0].pod.containers[0]
        .env
        .iter()
        .map(|variable| (variable.name.as_str(), shown(&variable.value), variable.line))
        .collect();
    assert_eq!(
        env,
        [("A", "12".to_owned(), 10), ("B", "$(C)".to_owned(), 11), ("C", "12".to_owned(), 12)]
    );
}

#[test]
fn pod_limits_hold_for_containers_without_their_own() {
    let all = reading(&pod(
        "resources: {limits: {cpu: '2', memory: 1Gi, pids: '100'}}",
        "resources: {requests: {cpu: 100m}}",
    ));
    let resources = &all.workloads[0].pod.containers[0].resources;
    assert_eq!((resources.cpu_limit, resources.memory_limit), (None, None));
    assert_eq!((resources.linux.cpu_shares, resources.linux.cpu_quota), (102, 200_000));
    assert_eq!(resources.linux.memory_limit, 1 << 30);
}
