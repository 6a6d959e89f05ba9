use super::*;
use crate::document::Document;
use crate::settings::VolumeUpdates;
use crate::workload::{
    EnvVar, ExecCommand, LinuxResources, Located, PodFact, ProjectedFile, Resources, SecretText,
    Security, Volume, VolumeDevice, VolumeMount,
};

/// An image by any name.
struct Fake(ImageFacts);

impl Images for Fake {
    fn image(&mut self, reference: &str) -> Result<ImageFacts, String> {
        if reference.contains("absent") {
            return Err("registry r.io has no manifest".into());
        }
        Ok(self.0.clone())
    }
}

fn fake() -> Fake {
    Fake(ImageFacts {
        name: "r.io/web".into(),
        tag: Some("1".into()),
        digest: "sha256:00".into(),
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/bin".into(), "MODE=image".into()],
        working_dir: "/srv".into(),
        user: "app".into(),
        stop_signal: "SIGQUIT".into(),
        passwd: b"root:x:0:0::/:\napp:x:100:101::/:\n".to_vec(),
        group: b"logs:x:5:app\n".to_vec(),
    })
}

pub(crate) fn workload(kind: &str, line: u32) -> Workload {
    Workload {
        kind: kind.into(),
        object_name: "web".into(),
        name: PodName::Exact("web".into()),
        namespace: Some("default".into()),
        source: "dir/web.yaml".into(),
        document: 0,
        line,
        pod: Pod {
            hostname: None,
            subdomain: None,
            shared_pid: false,
            sysctls: BTreeMap::new(),
            service_links: true,
            automount_token: Some(false),
            service_account: None,
            annotations: BTreeMap::new(),
            labels: BTreeMap::new(),
            containers: vec![container("web")],
            volumes: Vec::new(),
            fs_group: None,
            supplemental_groups: Vec::new(),
            strict_groups: false,
            runtime_class: None,
            custom_dns: false,
            lines: [("metadata", 2)].into(),
        },
    }
}

fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        role: Role::App,
        restartable: true,
        image: Located { value: "r.io/web:1".into(), line: 7 },
        command: None,
        args: None,
        working_dir: None,
        env: Vec::new(),
        security: Security { allow_privilege_escalation: true, ..Security::default() },
        mounts: Vec::new(),
        devices: Vec::new(),
        resources: Resources::default(),
        exec: Vec::new(),
        stop_signal: None,
        stdin: false,
        stdin_once: false,
        tty: false,
        termination_message_path: "/dev/termination-log".into(),
        lines: [("container", 6), ("image", 7)].into(),
    }
}

fn settings() -> Settings {
    Settings { runtimes: vec!["containerd-1.6".into()], ..Settings::default() }
}

fn made(workload: &Workload) -> Result<Generated, String> {
    generate(workload, &mut fake(), &settings(), Options::default()).map_err(|e| e.to_string())
}

fn web(change: impl FnOnce(&mut Pod)) -> Result<ContainerData, String> {
    let mut workload = workload("Pod", 1);
    change(&mut workload.pod);
    made(&workload).map(|made| made.data.containers["web"].clone())
}

fn literal(text: &str) -> EnvValue {
    EnvValue::Literal(text.into())
}

#[test]
fn the_smallest_pod_has_this_document() {
    let made = made(&workload("Pod", 1)).unwrap();
    let text = Document::new(made.data.clone()).render();
    assert_eq!(
        text,
        r#"package agent_policy

policy_data := {
  "containers": {
    "web": {
      "args": ["/entry", "serve"],
      "cwd": "/srv",
      "env": ["MODE=image", "PATH=/bin"],
      "guest_api": {"resources": true},
      "image": "r.io/web@sha256:00",
      "lines": {"image": 7},
      "service_env": "all",
      "signals": [3],
      "users": [{"gid": 101, "groups": [5, 101], "uid": 100}]
    }
  },
  "pod": {
    "name": "web",
    "namespace": "default"
  },
  "runtimes": ["containerd-1.6"],
  "source": "web.yaml",
  "version": 1
}
"#
    );
    assert_eq!(Document::parse(&text).unwrap().data, made.data);
    assert_eq!(
        made.pinned,
        [Pinned { written: "r.io/web:1".into(), pinned: "r.io/web:1@sha256:00".into() }]
    );
}

#[test]
fn commands_are_merged_as_kubernetes_does() {
    let words = |words: &[&str]| Some(words.iter().map(|word| literal(word)).collect());
    for (command, args, expected) in [
        (None, None, &["/entry", "serve"][..]),
        (None, words(&["x"]), &["/entry", "x"]),
        (words(&["/c"]), None, &["/c"]),
        (words(&["/c"]), words(&["x"]), &["/c", "x"]),
        (words(&[]), words(&[]), &["/entry", "serve"]),
    ] {
        let data = web(|pod| {
            (pod.containers[0].command, pod.containers[0].args) = (command, args);
        });
        let expected: Vec<_> = expected.iter().map(|word| Arg::Text((*word).into())).collect();
        assert_eq!(data.unwrap().args, expected);
    }
    let data = web(|pod| {
        pod.containers[0].args = Some(vec![
            EnvValue::FromPod(PodFact::Ip),
            EnvValue::Secret(SecretText::new("hidden".into())),
        ]);
    })
    .unwrap();
    assert!(data.secret_args);
    assert_eq!(
        serde_json::to_value(&data.args).unwrap(),
        serde_json::json!(["/entry", {"pattern": "^(?:[0-9a-fA-F:.]{2,45})$"}, "hidden"])
    );
}

#[test]
fn the_pod_s_environment_lies_over_the_image_s() {
    let data = web(|pod| {
        let values = [
            ("A", literal("1")),
            ("L", EnvValue::FromPod(PodFact::Label)),
            ("MODE", EnvValue::FromPod(PodFact::PodName)),
            ("P", EnvValue::Secret(SecretText::new("hidden".into()))),
            ("PATH", literal("/mine")),
            (
                "R",
                EnvValue::Pattern {
                    regex: SecretText::new("^http://[0-9.]+$".into()),
                    secret: true,
                },
            ),
        ];
        let variable =
            |(name, value): (&str, EnvValue)| EnvVar { name: name.into(), value, line: 9 };
        pod.containers[0].env = values.map(variable).to_vec();
    })
    .unwrap();
    assert_eq!(data.env, ["A=1", "P=hidden", "PATH=/mine"]);
    assert_eq!(data.env_from_pod, [("MODE".into(), "pod_name".into())].into());
    let patterns = [("L", "^(?:[-A-Za-z0-9_.]{0,63})$"), ("R", "^http://[0-9.]+$")];
    assert_eq!(data.env_pattern, patterns.map(|(k, v)| (k.into(), v.into())).into());
    assert_eq!(data.secret_env, ["P", "R"]);
}

#[test]
fn volumes_become_mounts_and_contents() {
    let files: BTreeMap<String, Content> = [("k".into(), Content::new(b"content".to_vec()))].into();
    let volume = |name: &str, kind| Volume { name: name.into(), kind, line: 30 };
    let mount = |index, volume: &str, sub_path: Option<&str>| VolumeMount {
        path: format!("/m{index}"),
        volume: volume.into(),
        read_only: false,
        recursive_read_only: false,
        sub_path: sub_path.map(literal),
        index,
        propagation: crate::workload::Propagation::None,
        line: 20,
    };
    let mut workload = workload("Pod", 1);
    workload.pod.automount_token = None;
    workload.pod.volumes = vec![
        volume("c", VolumeKind::ConfigMap { name: "cm".into(), files: Some(files.clone()) }),
        volume("s", VolumeKind::Secret { name: "sec".into(), files: None }),
        volume("e", VolumeKind::EmptyDir { memory: true, huge_pages: None, size_limit: None }),
        volume("d", VolumeKind::Claim { name: "data".into(), block: None, read_only: true }),
        volume("unused", VolumeKind::ConfigMap { name: "x".into(), files: Some(files) }),
        volume("h", VolumeKind::HostPath { path: "/var/log/app".into(), kind: String::new() }),
    ];
    workload.pod.containers[0].mounts = vec![
        mount(0, "c", None),
        mount(1, "c", Some("k")),
        mount(2, "s", None),
        mount(3, "e", None),
        mount(4, "d", None),
    ];
    let device = VolumeDevice { path: "/dev/xvda".into(), volume: "b".into(), line: 1 };
    workload.pod.containers[0].devices = vec![device];
    let done = made(&workload).unwrap();
    let text = Document::new(done.data).render();
    let expected = r#"
      "mounts": {
        "/m0": {"kind": "config", "read_only": true, "source": "c"},
        "/m1": {"kind": "config", "read_only": true, "source": "web.1", "sub_path": "k", "volume": "c"},
        "/m2": {"kind": "secret", "read_only": true, "source": "s", "updates": true},
        "/m3": {"kind": "empty_dir", "memory": true, "volume": "e"},
        "/m4": {"kind": "claim", "read_only": true, "source_pattern": "^(mount|pvc-[0-9a-f-]{36})$"},
        "/var/run/secrets/kubernetes.io/serviceaccount": {"kind": "token", "read_only": true, "source_pattern": "^kube-api-access-[a-z0-9]{5}$", "updates": true}
      },
"#;
    assert!(text.contains(expected), "{text}");
    // echo -n content | sha256sum
    let sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    let copies =
        format!("\"copies\": {{\n    \"c\": {{\"files\": {{\"k\": \"{sha256}\"}}}}\n  }},");
    assert!(text.contains(&copies), "{text}");
    assert!(text.contains("\"devices\": [\"/dev/xvda\"]"), "{text}");
    let notes: Vec<_> = done.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("dir/web.yaml:1: block device /dev/xvda"), "{notes:?}");
    assert!(notes[1].contains("the Secret sec is not in the files"), "{notes:?}");

    workload.pod.containers[0].mounts =
        vec![VolumeMount { read_only: true, ..mount(0, "h", None) }];
    let refused = made(&workload).unwrap_err();
    assert_eq!(
        refused,
        "dir/web.yaml:30: volume h: hostPath /var/log/app shows the pod what the host chooses: use another \
         volume, or permit it in the settings: host_paths = [\"/var/log/app\"]"
    );
    for (allowed, fine) in
        [("/var/log", true), ("/var/log/app/", true), ("/var/lo", false), ("/", true)]
    {
        let settings = Settings { host_paths: vec![allowed.into()], ..settings() };
        let done = generate(&workload, &mut fake(), &settings, Options::default());
        assert_eq!(done.is_ok(), fine, "{allowed}");
    }
    let settings = Settings { host_paths: vec!["/var/log".into()], ..settings() };
    workload.pod.containers[0].mounts = vec![mount(0, "h", None)];
    let refused = generate(&workload, &mut fake(), &settings, Options::default()).unwrap_err();
    assert!(refused.to_string().contains("set readOnly: true"), "{refused}");
}

#[test]
fn empty_directories_and_volumes_that_change() {
    let mount = |index: usize, volume: &str, sub_path| VolumeMount {
        path: format!("/m{index}"),
        volume: volume.into(),
        read_only: false,
        recursive_read_only: false,
        sub_path,
        index,
        propagation: crate::workload::Propagation::None,
        line: 20,
    };
    let volume = |name: &str, kind| Volume { name: name.into(), kind, line: 30 };
    let empty = VolumeKind::EmptyDir { memory: false, huge_pages: None, size_limit: None };
    let known: BTreeMap<String, Content> = [("k".into(), Content::new(b"x".to_vec()))].into();
    let projected = |token| {
        let mut files = BTreeMap::from([("k".into(), ProjectedFile::Config(known["k"].clone()))]);
        files.extend(Some(("token".to_owned(), ProjectedFile::Token)).filter(|_| token));
        VolumeKind::Projected { files, complete: true }
    };
    let mut workload = workload("Pod", 1);
    workload.pod.automount_token = Some(true);
    workload.pod.volumes = vec![
        volume("e", empty),
        volume("c", VolumeKind::ConfigMap { name: "cm".into(), files: None }),
        volume("f", VolumeKind::ConfigMap { name: "cm".into(), files: Some(known.clone()) }),
        volume("p", projected(false)),
        volume("t", projected(true)),
        volume("d", VolumeKind::DownwardApi { files: BTreeMap::new() }),
    ];
    let by_name = EnvValue::FromPod(PodFact::Ip);
    workload.pod.containers[0].mounts = vec![
        mount(0, "e", Some(literal("a/b"))),
        mount(1, "e", Some(by_name)),
        mount(2, "c", None),
        mount(3, "c", Some(literal("k"))),
        mount(4, "f", None),
        mount(5, "p", None),
        mount(6, "t", None),
        mount(7, "d", None),
    ];
    let mounts = |updates| {
        let settings = Settings { volume_updates: updates, ..settings() };
        let made = generate(&workload, &mut fake(), &settings, Options::default()).unwrap();
        made.data.containers["web"].mounts.clone()
    };
    let all = mounts(VolumeUpdates::All(true));
    let part = (all["/m0"].volume.as_deref(), all["/m0"].sub_path.as_deref());
    assert_eq!(part, (Some("e"), Some("a/b")));
    assert!(!all["/m0"].memory && all["/m0"].source.is_none());
    let pattern = all["/m1"].sub_path_pattern.clone().unwrap();
    let pattern = regex_of(&pattern);
    for (path, fine) in [
        ("10.0.0.1", true),
        ("a/b", true),
        ("..2026/x", true),
        (".hidden/.x", true),
        ("", false),
        (".", false),
        ("..", false),
        ("a/../b", false),
        ("a/..", false),
        ("a/.", false),
        ("/a", false),
        ("a//b", false),
        ("a/", false),
    ] {
        assert_eq!(pattern(path), fine, "{path:?}");
    }
    let changing = |mounts: &BTreeMap<String, crate::document::MountData>| {
        let changing = mounts.iter().filter(|(_, mount)| mount.updates);
        changing.map(|(path, _)| path.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(changing(&all), ["m2", "m6", "m7", "serviceaccount"]);
    let named = VolumeUpdates::Named(vec!["c".into(), "f".into(), "kube-api-access".into()]);
    assert_eq!(changing(&mounts(named)), ["m2", "serviceaccount"]);
    assert!(changing(&mounts(VolumeUpdates::All(false))).is_empty());
}

/// Whether the rules match such a pattern: by the engine that they run in.
fn regex_of(pattern: &str) -> impl Fn(&str) -> bool {
    let quoted = serde_json::to_string(pattern).unwrap();
    move |path| {
        let path = serde_json::to_string(path).unwrap();
        let query = format!("regex.match({quoted}, {path})");
        let result = regorus::Engine::new().eval_query(query, false).unwrap();
        result.result[0].expressions[0].value == regorus::Value::Bool(true)
    }
}

#[test]
fn security_settings_and_limits_are_carried_over() {
    let data = web(|pod| {
        (pod.fs_group, pod.supplemental_groups) = (Some(7), vec![8]);
        let container = &mut pod.containers[0];
        container.security = Security {
            run_as_user: Some(1000),
            readonly_root: true,
            capabilities_drop: ["ALL".into()].into(),
            capabilities_add: ["CAP_KILL".into()].into(),
            seccomp: Seccomp::RuntimeDefault,
            ..Security::default()
        };
        container.resources = Resources {
            cpu_request: Some(500),
            linux: LinuxResources {
                cpu_shares: 512,
                cpu_quota: 50_000,
                cpu_period: 100_000,
                memory_limit: 1 << 20,
            },
            ..Resources::default()
        };
        let exec = |word: &str| ExecCommand {
            command: vec![word.into()],
            purpose: "livenessProbe",
            line: 3,
        };
        container.exec = vec![exec("b"), exec("a"), exec("b")];
        (container.stdin, container.role, container.restartable) = (true, Role::Init, false);
    })
    .unwrap();
    let expected = serde_json::json!({
        "args": ["/entry", "serve"], "cwd": "/srv", "env": ["MODE=image", "PATH=/bin"],
        "image": "r.io/web@sha256:00", "lines": {"image": 7}, "service_env": "all",
        "signals": [3], "users": [{"uid": 1000, "gid": 0, "groups": [0, 7, 8]}],
        "readonly_root": true, "no_new_privileges": true, "capabilities": ["CAP_KILL"],
        "seccomp": "runtime", "memory_limit": 1 << 20, "cpu_quota": 50_000, "cpu_period": 100_000,
        "cpu_shares": 512, "exec": [["a"], ["b"]], "stdin": true, "init": true, "restartable": false,
        "guest_api": {"resources": true},
    });
    assert_eq!(serde_json::to_value(data).unwrap(), expected);
}

#[test]
fn another_file_for_last_words_stands_in_the_document() {
    let file = |path: &str| {
        let path = path.to_owned();
        web(|pod| pod.containers[0].termination_message_path = path).unwrap().termination_log
    };
    assert_eq!(file("/dev/termination-log"), None);
    assert_eq!(file("/tmp/end"), Some("/tmp/end".to_owned()));
}

#[test]
fn names_of_pods_and_hosts() {
    let mut workload = workload("StatefulSet", 1);
    workload.name = PodName::Pattern("^web-[0-9]+$".into());
    workload.pod.hostname = Some(PodName::Prefix("a.b-".into()));
    let data = made(&workload).unwrap().data;
    assert_eq!(data.pod.name_pattern.as_deref(), Some("^web-[0-9]+$"));
    assert_eq!(data.pod.hostname_pattern.as_deref(), Some("^a\\.b\\-[-a-z0-9]{1,63}$"));
    workload.name = PodName::Prefix("web-".into());
    assert_eq!(made(&workload).unwrap().data.pod.name_prefix.as_deref(), Some("web-"));
}

#[test]
fn what_cannot_run_is_refused_with_its_line() {
    let error = web(|pod| pod.containers[0].image.value = "r.io/absent".into()).unwrap_err();
    assert_eq!(error, "dir/web.yaml:7: container web: registry r.io has no manifest");
    let error = web(|pod| {
        pod.containers[0].security.non_root = true;
        pod.containers[0].lines.insert("user", 12);
    });
    assert!(error.unwrap_err().starts_with("dir/web.yaml:12: container web: runAsNonRoot is set"));
    let error = web(|pod| pod.containers[0].working_dir = Some("rel".into())).unwrap_err();
    assert!(error.contains("container web: the working directory \"rel\" is not absolute"));
}

#[test]
fn unpinned_images_keep_their_tag() {
    let options = Options { danger_unpinned: true, ..Options::default() };
    let mut workload = workload("Pod", 1);
    let made = generate(&workload, &mut fake(), &settings(), options).unwrap();
    let web = &made.data.containers["web"];
    assert_eq!((&web.image, web.image_tag.as_deref()), (&None, Some("r.io/web:1")));
    assert_eq!(made.pinned, []);
    workload.pod.containers[0].image.value = "r.io/web@sha256:00".into();
    let made = generate(&workload, &mut fake(), &settings(), options).unwrap();
    let web = &made.data.containers["web"];
    assert_eq!((web.image.as_deref(), &web.image_tag), (Some("r.io/web@sha256:00"), &None));
}

#[test]
fn a_standalone_document_brings_rules_and_profile() {
    let options = Options { standalone: true, ..Options::default() };
    let made = generate(&workload("Pod", 1), &mut fake(), &settings(), options).unwrap();
    assert!(made.data.standalone && made.data.runtime.is_some() && made.data.runtimes.is_empty());
    nacre_policy::Policy::parse(&Document::new(made.data).render()).unwrap();
}
