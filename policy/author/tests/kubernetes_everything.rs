//! A Deployment in which everything stands that a pod may have.

mod reading;

use std::collections::BTreeMap;

use nacre_policy_author::workload::{
    AppArmor, Container, Downward, EnvValue, PodFact, PodName, ProjectedFile, Propagation, Role,
    Seccomp, Volume, VolumeKind, Workload,
};
use reading::{reading, shown};

const EVERYTHING: &str = include_str!("yaml/everything.yaml");

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
