//! Runs `nacre policy` as its users do.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

const POD: &str = "# the pod\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web # its name\n  namespace: default\nspec:\n  \
                   automountServiceAccountToken: false\n  enableServiceLinks: false\n  containers:\n  - name: web\n    image: \
                   REGISTRY/web:1 # pinned below\n    args: [\"--listen\", \":80\"]\n    env:\n    - name: MODE\n      value: \
                   fast\n    - name: IP\n      valueFrom: {fieldRef: {fieldPath: status.podIP}}\n    volumeMounts:\n    - name: \
                   c\n      mountPath: /etc/web\n    readinessProbe:\n      exec:\n        command: [\"cat\", \"/ready\"]\n  \
                   volumes:\n  - name: c\n    configMap:\n      name: web\n";
const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: web\n  namespace: default\ndata:\n  web.conf: content\n";

fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A registry of one image, and a directory with a pod that runs it.
struct World {
    directory: tempfile::TempDir,
    registry: String,
    digest: String,
    /// Digest of the image's lower layer, which says nothing about accounts.
    bottom: String,
    /// Paths of the requests that the registry got.
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        Self::with_bottom(true)
    }

    /// The registry may have lost the lower layer.
    fn with_bottom(has_bottom: bool) -> Self {
        let bottom = layer(&[("usr/share/web/index.html", "hello")]);
        let top = layer(&[
            ("etc/passwd", "root:x:0:0::/:\nweb:x:100:101::/:\n"),
            ("etc/group", "web:x:101:\nlogs:x:7:web\n"),
        ]);
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Entrypoint":["/web"],"Cmd":["x"],"User":"web",
                "Env":["PATH=/bin"],"WorkingDir":"/srv"}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
            sha256(&bottom),
            sha256(&top)
        )
        .into_bytes();
        let kind = "application/vnd.oci.image";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}.manifest.v1+json",
                "config":{{"mediaType":"{kind}.config.v1+json","digest":"{}","size":{}}},
                "layers":[{{"mediaType":"{kind}.layer.v1.tar","digest":"{}","size":{}}},
                          {{"mediaType":"{kind}.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
            sha256(&config),
            config.len(),
            sha256(&bottom),
            bottom.len(),
            sha256(&top),
            top.len()
        )
        .into_bytes();
        let digest = sha256(&manifest);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = listener.local_addr().unwrap().to_string();
        let bottom_digest = sha256(&bottom);
        let mut blobs = vec![manifest, config, top];
        blobs.extend(has_bottom.then_some(bottom));
        let blobs = Arc::new(blobs);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        // The thread ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, log) = (blobs.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &blobs, &log));
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let world = Self { directory, registry, digest, bottom: bottom_digest, asked };
        world.write("web.yaml", &POD.replace("REGISTRY", &world.registry));
        world.write("config.yaml", CONFIG);
        world.write(
            "cluster.toml",
            &format!("registry.danger_plain_http = [{:?}]\n", world.registry),
        );
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// How often the registry was asked for any blob, and for the lower layer, since the last time.
    fn asked(&self) -> (usize, usize) {
        let paths = std::mem::take(&mut *self.asked.lock().unwrap());
        let count = |part: &str| paths.iter().filter(|path| path.contains(part)).count();
        (count("/blobs/"), count(&self.bottom))
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nacre"))
            .arg("policy")
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may have ended.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        Ran::from(&child.wait_with_output().unwrap())
    }

    /// The policy of the pod, also kept in `web.rego`.
    fn policy(&self) -> String {
        let ran = self.run(&["generate", "--settings", "cluster.toml", "web.yaml", "config.yaml"]);
        ran.expect(0);
        self.write("web.rego", &ran.out);
        ran.out
    }
}

fn answer(mut stream: TcpStream, blobs: &[Vec<u8>], log: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
        // Whoever begins a TLS handshake waits for no answer.
        if head[0] != b'G' {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    log.lock().unwrap().push(path.to_owned());
    let blob = if path.contains("/manifests/1") {
        blobs.first()
    } else {
        blobs.iter().find(|blob| path.ends_with(&sha256(blob)))
    };
    let (status, body) = blob.map_or(("404 Not Found", &[][..]), |blob| ("200 OK", blob));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl From<&Output> for Ran {
    fn from(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            status: output.status.code().unwrap(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

impl Ran {
    fn expect(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    fn says(&self, text: &str) -> &Self {
        let all = format!("{}{}", self.out, self.err);
        assert!(all.contains(text), "no {text:?} in {all}");
        self
    }
}

#[test]
fn the_policy_of_a_pod_is_written_small_and_stable() {
    let world = World::new();
    let policy = world.policy();
    for expected in [
        "package agent_policy\n\npolicy_data := {\n",
        &format!("\"image\": \"{}/web@{}\",\n", world.registry, world.digest),
        "\"args\": [\"/web\", \"--listen\", \":80\"],\n",
        "\"cwd\": \"/srv\",\n",
        "\"env\": [\"MODE=fast\", \"PATH=/bin\"],\n",
        "\"env_from_pod\": {\"IP\": \"ip\"},\n",
        "\"exec\": [[\"cat\", \"/ready\"]],\n",
        "\"/etc/web\": {\"kind\": \"config\", \"read_only\": true, \"source\": \"c\"}\n",
        "\"users\": [{\"gid\": 101, \"groups\": [7, 101], \"uid\": 100}]\n",
        "{\"web.conf\": \"ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73\"}",
        "\"name\": \"web\",\n    \"namespace\": \"default\"\n",
        "\"source\": \"web.yaml\",\n",
    ] {
        assert!(policy.contains(expected), "no {expected:?} in {policy}");
    }
    assert!(policy.len() < 2048, "{} bytes", policy.len());
    assert_eq!(policy, world.policy());
    let file =
        ["generate", "--settings", "cluster.toml", "-o", "out.rego", "web.yaml", "config.yaml"];
    assert_eq!(world.run(&file).expect(0).out, "");
    assert_eq!(std::fs::read_to_string(world.path("out.rego")).unwrap(), policy);
}

#[test]
fn yaml_comes_back_with_annotations_and_digest_and_nothing_else_changed() {
    let world = World::new();
    world.policy();
    let generate = ["generate", "--settings", "cluster.toml", "--output"];
    let yaml = world.run(&[&generate[..], &["yaml", "web.yaml", "config.yaml"]].concat());
    let annotation = ["annotation", "--image-sizes", "web.yaml", "config.yaml"];
    let annotation = world.run(&[&generate[..], &annotation].concat());
    let value = annotation.expect(0).out.trim();
    let before = std::fs::read_to_string(world.path("web.yaml")).unwrap();
    let expected = before
        .replace(
            "metadata:\n  name: web #",
            &format!(
                "metadata:\n  annotations:\n    io.nacre.vm.images_mib: \"1\"\n    \
                 io.katacontainers.config.hypervisor.cc_init_data: \"{value}\"\n  name: web #"
            ),
        )
        .replace("/web:1 #", &format!("/web:1@{} #", world.digest));
    assert_eq!(yaml.expect(0).out, format!("{expected}---\n{CONFIG}"));
    annotation.says("note: web.yaml:2: Pod/web: its images take 1 MiB: annotation io.nacre.vm.images_mib: \"1\"");
    // What was written gives the same policy again: the digest is kept, the annotation replaced.
    let again = world.run_with(&[&generate[..], &["policy", "-"]].concat(), &yaml.out);
    world.run_with(&["diff", "web.rego", "-"], &again.expect(0).out).expect(0);
    // The initdata document holds the policy, and every command takes it.
    let initdata = world.run(&[&generate[..], &["initdata", "web.yaml", "config.yaml"]].concat());
    world.write("initdata.toml", &initdata.expect(0).out);
    world.run(&["diff", "initdata.toml", "web.rego"]).expect(0);
    // With the broker in it, it is what `nacre initdata create` would have begun.
    let broker = [
        "--kbs-url",
        "https://kbs.example:8080",
        "--secret-file",
        "/run/confidential-containers/cdh/password=kbs:///default/web/password",
    ];
    let with_broker =
        [&generate[..], &["initdata", "web.yaml", "config.yaml"], &broker[..]].concat();
    let said = world.run(&with_broker).expect(0).out.clone();
    assert!(said.contains("[data]") && said.contains("https://kbs.example:8080"), "{said}");
    assert!(said.contains("resource_uri = \"kbs:///default/web/password\""), "{said}");
    let lacking = [&generate[..], &["initdata", "web.yaml", "config.yaml"], &broker[2..]].concat();
    assert!(world.run(&lacking).expect(2).err.contains("--kbs-url"));
}

#[test]
fn layers_are_fetched_for_their_sizes_where_these_are_wanted() {
    let world = World::new();
    let generate = |arguments: &[&str], file| {
        let always = ["generate", "--settings", "cluster.toml", "config.yaml", file];
        world.run(&[&always[..], arguments].concat())
    };
    let said = POD
        .replace("REGISTRY", &world.registry)
        .replace("  namespace", "  annotations:\n    io.nacre.vm.images_mib: \"0\"\n  namespace");
    world.write("said.yaml", &said);
    // The configuration and the upper layer, which has the accounts.
    let few = (2, 0);
    for (arguments, file, asked, annotation, note) in [
        (&[][..], "web.yaml", few, None, ""),
        (&["--output", "annotation"], "web.yaml", few, None, ""),
        (&["--output", "yaml"], "web.yaml", (3, 1), Some("\"1\""), ""),
        (&["--output", "yaml", "--no-image-sizes"], "web.yaml", few, None, ""),
        (&["--output", "yaml"], "said.yaml", few, Some("\"0\""), ""),
        (&["--image-sizes"], "web.yaml", (3, 1), None, "its images take 1 MiB: annotation"),
        (
            &["--output", "yaml", "--image-sizes"],
            "said.yaml",
            (3, 1),
            Some("\"0\""),
            "its images take 1 MiB, but io.nacre.vm.images_mib is \"0\"",
        ),
    ] {
        let ran = generate(arguments, file);
        assert_eq!(world.asked(), asked, "{arguments:?} {file}");
        let found = ran.expect(0).out.split_once("io.nacre.vm.images_mib: ");
        let found = found.and_then(|(_, rest)| rest.lines().next());
        assert_eq!(found, annotation, "{arguments:?} {file}");
        assert_eq!(ran.err.contains("its images"), !note.is_empty(), "{}", ran.err);
        ran.says(note);
    }
    generate(&["--image-sizes", "--no-image-sizes"], "web.yaml").expect(2).says("cannot be used");
}

#[test]
fn a_policy_does_not_depend_on_layers_that_are_only_counted() {
    let world = World::with_bottom(false);
    let policy = world.policy();
    let generate = ["generate", "--settings", "cluster.toml", "--output", "yaml"];
    let ran = world.run(&[&generate[..], &["web.yaml", "config.yaml"]].concat());
    ran.expect(0).says("note: web.yaml:2: Pod/web: what its images take is not known (image ");
    assert!(ran.err.contains(&world.bottom) && ran.err.contains("io.nacre.vm.images_mib"));
    assert!(ran.out.contains("cc_init_data: ") && !ran.out.contains("images_mib"), "{}", ran.out);
    let again = world.run_with(&["generate", "--settings", "cluster.toml", "-"], &ran.out);
    again.expect(0);
    world.write("other.rego", &again.out);
    world.write("web.rego", &policy);
    world.run(&["diff", "web.rego", "other.rego"]).expect(0);
}

#[test]
fn several_workloads_need_a_choice() {
    let world = World::new();
    let second =
        POD.replace("REGISTRY", &world.registry).replace("name: web # its", "name: web2 # its");
    let both = format!("{}---\n{second}---\n{CONFIG}", POD.replace("REGISTRY", &world.registry));
    world.write("both.yaml", &both);
    let generate = ["generate", "--settings", "cluster.toml", "both.yaml"];
    world.run(&generate).expect(2).says("there are 2 workloads (Pod/web, Pod/web2)");
    let one = world.run(&[&generate[..], &["--workload", "Pod/web2"]].concat());
    one.expect(0).says("\"name\": \"web2\"");
    world
        .run(&[&generate[..], &["--workload", "Pod/x"]].concat())
        .expect(2)
        .says("no workload \"Pod/x\"");
    world.asked();
    let yaml = world.run(&[&generate[..], &["--output", "yaml"]].concat());
    assert_eq!(world.asked(), (3, 1), "the configuration and two layers, for both");
    for annotation in ["cc_init_data", "io.nacre.vm.images_mib: \"1\""] {
        assert_eq!(yaml.expect(0).out.matches(annotation).count(), 2, "{annotation}");
    }
}

#[test]
fn what_stands_in_the_way_has_a_place() {
    let world = World::new();
    let generate = |yaml: &str| {
        world.write("bad.yaml", yaml);
        world.run(&["generate", "--settings", "cluster.toml", "bad.yaml", "config.yaml"])
    };
    let pod = POD.replace("REGISTRY", &world.registry);
    generate(&pod.replace("/web:1 ", "/web:2 "))
        .expect(2)
        .says("bad.yaml:12: container web: image");
    generate(&pod.replace("volumeMounts", "volumeMount"))
        .expect(2)
        .says("bad.yaml:")
        .says("volumeMount");
    generate(CONFIG).expect(2);
    world.run(&["generate", "absent.yaml"]).expect(2).says("failed to read absent.yaml");
    world.write("bad.toml", "logs = 1\n");
    world.run(&["generate", "--settings", "bad.toml", "web.yaml"]).expect(2).says("bad.toml:1: ");
    // Without its settings, the registry is asked over https.
    world
        .run(&["generate", "web.yaml", "config.yaml"])
        .expect(2)
        .says("web.yaml:12: container web: image");
    world.run(&["generate"]).expect(2).says("FILE");
    let settings = world.run(&["generate", "--print-settings"]);
    world.write("default.toml", &settings.expect(0).out);
    let all = [
        "generate",
        "--settings",
        "default.toml",
        "--settings",
        "cluster.toml",
        "web.yaml",
        "config.yaml",
    ];
    assert_eq!(world.run(&all).expect(0).out, world.policy());
}

#[test]
fn differences_are_told_in_words() {
    let world = World::new();
    let policy = world.policy();
    world.write(
        "other.rego",
        &policy.replace("MODE=fast", "MODE=slow").replace("[\"cat\"", "[\"tac\""),
    );
    let ran = world.run(&["diff", "web.rego", "other.rego"]);
    assert_eq!(
        ran.expect(1).out,
        "~ container web: variable MODE: \"fast\" -> \"slow\"\n\
         - container web: may execute [\"cat\", \"/ready\"]\n\
         + container web: may execute [\"tac\", \"/ready\"]\n"
    );
    assert_eq!(world.run_with(&["diff", "web.rego", "-"], &policy).expect(0).out, "");
    world
        .run_with(&["diff", "web.rego", "-"], "package x")
        .expect(2)
        .says("-: the document has no line");
}

#[test]
fn dangerous_grants_are_found() {
    let world = World::new();
    world.policy();
    let notes = world.run(&["lint", "web.rego"]);
    notes.expect(0).says("web.rego: note [logs] container web: ");
    world.run(&["lint", "--fail-on", "note", "web.rego"]).expect(1);
    world.write("cluster2.toml", "[allow]\nexec_any = true\n");
    let danger = [
        "generate",
        "--settings",
        "cluster.toml",
        "--settings",
        "cluster2.toml",
        "--danger-unpinned",
    ];
    let ran = world.run(&[&danger[..], &["web.yaml", "config.yaml"]].concat());
    ran.expect(0)
        .says("danger: web.yaml:")
        .says("is not pinned")
        .says("any command may be executed");
    let found = world.run_with(&["lint", "--output", "json", "-"], &ran.out);
    let found: Vec<serde_json::Value> = serde_json::from_str(&found.expect(1).out).unwrap();
    let rules: Vec<_> = found.iter().map(|finding| finding["rule"].as_str().unwrap()).collect();
    assert_eq!(rules, ["exec-any", "image-unpinned", "logs"]);
    assert_eq!(found[1]["container"], "web");
    world.run_with(&["lint", "--fail-on", "never", "-"], &ran.out).expect(0);
    world.run_with(&["lint", "-"], "nonsense").expect(2);
    world.run(&["lint", "--list-rules"]).expect(0).says("image-unpinned");
    let all = world.run(&["allow-all"]);
    all.expect(0).says("DANGER");
    world.run_with(&["lint", "-"], &all.out).expect(1).says("allow-all");
    let nothing = world.run(&["deny-all"]);
    world.run_with(&["lint", "-"], &nothing.expect(0).out).expect(0);
}

/// The beginning of a pod's life, then a command that the policy knows and one that it does not.
fn recording() -> String {
    let lines = [
        r#"{"request":"GuestDetailsRequest","input":{"mem_block_size":true,"mem_hotplug_probe":false},"outcome":"ok"}"#,
        r#"{"request":"StartContainerRequest","input":{"container_id":"c1"},"outcome":"denied","error":"x"}"#,
        r#"{"event":"exited","container_id":"c1"}"#,
        "",
        r#"{"request":"SetPolicyRequest","input":{"policy":""},"outcome":"ok"}"#,
    ];
    lines.join("\n") + "\n"
}

#[test]
fn recordings_are_judged_again() {
    let world = World::new();
    world.policy();
    world.write("pod.jsonl", &recording());
    let table = world.run(&["test", "web.rego", "--requests", "pod.jsonl"]);
    table.expect(1).says("pod.jsonl:5: SetPolicyRequest: policy denies SetPolicy");
    assert_eq!(table.out.lines().next().unwrap().split_whitespace().next(), Some("REQUEST"));
    assert!(
        table.out.contains("StartContainerRequest         0         1             0\n"),
        "{}",
        table.out
    );
    let json = world.run(&["test", "web.rego", "--requests", "pod.jsonl", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.expect(1).out).unwrap();
    assert_eq!((json["requests"].as_u64(), json["not_as_recorded"].as_u64()), (Some(3), Some(1)));
    assert_eq!(json["recordings"][0]["requests"][1]["container_id"], "c1");
    let junit = world.run(&["test", "web.rego", "--requests", "pod.jsonl", "--output", "junit"]);
    junit.expect(1).says("<testsuite name=\"pod.jsonl\" tests=\"3\" failures=\"1\">");
    let two: String = recording().split_inclusive('\n').take(2).collect();
    world.write("two.jsonl", &two);
    world.run(&["test", "web.rego", "--requests", "two.jsonl"]).expect(0);
    world.write("broken.jsonl", &recording().replace("\"event\"", "\"evnt\""));
    world.run(&["test", "web.rego", "--requests", "broken.jsonl"]).expect(2).says("broken.jsonl:3");
    world.write("empty.jsonl", "");
    world
        .run(&["test", "web.rego", "--requests", "empty.jsonl"])
        .expect(2)
        .says("holds no request");
}

#[test]
fn a_standalone_policy_judges_alike() {
    let world = World::new();
    world.policy();
    let generate =
        ["generate", "--settings", "cluster.toml", "--standalone", "web.yaml", "config.yaml"];
    let standalone = world.run(&generate);
    world.write("standalone.rego", &standalone.expect(0).out);
    standalone.says("default CreateContainerRequest := false").says("\"standalone\": true");
    world.write("pod.jsonl", &recording());
    let judge = |policy| world.run(&["test", policy, "--requests", "pod.jsonl"]).out;
    assert_eq!(judge("standalone.rego"), judge("web.rego"));
    world.run(&["lint", "standalone.rego"]).expect(0);
    world.run(&["diff", "web.rego", "standalone.rego"]).expect(1).says("brings the rules along");
    world.run(&["diff", "standalone.rego", "standalone.rego"]).expect(0);
}

#[test]
fn denials_are_explained_as_the_agent_does() {
    let world = World::new();
    let policy = world.policy();
    let request = r#"{
        "request": "ExecProcessRequest",
        "input": {"container_id": "c1", "exec_id": "e", "process": {"Args": ["sh"]}}
    }"#;
    let ran = world.run_with(&["explain", "web.rego", "--request", "-"], request);
    let mut judge = nacre_policy::Judge::new(nacre_policy::Policy::parse(&policy).unwrap());
    let value: serde_json::Value = serde_json::from_str(request).unwrap();
    let denial = judge.judge_json("ExecProcessRequest", &value["input"]).unwrap_err();
    assert_eq!(ran.expect(1).out, format!("{denial}\n"));
    world.write("pod.jsonl", &recording());
    let ran = world.run(&["explain", "web.rego", "--request", "pod.jsonl"]);
    ran.expect(1)
        .says("pod.jsonl:2: policy denies StartContainer")
        .says("pod.jsonl:5: policy denies SetPolicy");
    let fine = r#"{"request":"GuestDetailsRequest","input":{}}"#;
    world
        .run_with(&["explain", "web.rego", "--request", "-"], fine)
        .expect(0)
        .says("the policy allows it");
    world.run_with(&["explain", "web.rego", "--request", "-"], "{").expect(2);
}

#[test]
fn help_teaches() {
    let world = World::new();
    for command in ["generate", "test", "explain", "diff", "lint"] {
        world.run(&[command, "--help"]).expect(0).says("Examples:").says("Exit status:");
    }
}
