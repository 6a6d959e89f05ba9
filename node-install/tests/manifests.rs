//! What is in `deploy/` is what Kubernetes understands: each object is read into the type that the API's own
//! description gives (k8s-openapi), and must come back from it whole. A field with a wrong name, in a wrong place or
//! of a wrong type does not. What only the API server checks (names that exist, values that make sense
//! together) is not seen here.
//!
//! The chart's templates use few constructs of Helm; those are carried out here, and any other is an error.
//! Where there is a `helm`, it renders and lints the chart as well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy")
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

fn comes_back_whole<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    if back == *object {
        return Ok(());
    }
    Err(format!("not all of it is known:\n{object:#}\nbecame\n{back:#}"))
}

fn check(object: &Value) -> Result<(), String> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => comes_back_whole::<Namespace>(object),
        ("v1", "Pod") => comes_back_whole::<Pod>(object),
        ("v1", "Secret") => comes_back_whole::<Secret>(object),
        ("apps/v1", "DaemonSet") => comes_back_whole::<DaemonSet>(object),
        ("node.k8s.io/v1", "RuntimeClass") => comes_back_whole::<RuntimeClass>(object),
        (version, kind) => Err(format!("{version} {kind} is not among what is shipped")),
    }
}

fn kinds(text: &str) -> Vec<String> {
    let objects = documents(text);
    for object in &objects {
        check(object).unwrap();
    }
    objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn manifests_are_what_kubernetes_understands() {
    assert_eq!(kinds(&read("kubernetes/runtimeclass.yaml")), ["RuntimeClass"; 3]);
    assert_eq!(kinds(&read("kubernetes/runtimeclass-dev.yaml")), ["RuntimeClass"]);
    assert_eq!(kinds(&read("kubernetes/daemonset.yaml")), ["Namespace", "DaemonSet"]);
    assert_eq!(kinds(&read("examples/pod.yaml")), ["Pod"]);
    assert_eq!(kinds(&read("examples/secret.yaml")), ["Secret"]);
}

#[test]
fn the_class_for_trying_out_costs_what_its_handler_does() {
    let dev = documents(&read("kubernetes/runtimeclass-dev.yaml")).remove(0);
    let of_handler = documents(&read("kubernetes/runtimeclass.yaml")).remove(0);
    assert_eq!(
        (&dev["handler"], &dev["overhead"]),
        (&of_handler["handler"], &of_handler["overhead"])
    );
}

#[test]
fn mistakes_are_seen() {
    let daemonset = documents(&read("kubernetes/daemonset.yaml")).remove(1);
    let spec = "/spec/template/spec";
    for (place, name, value) in [
        (spec, "hostPid", Value::Bool(true)),
        (spec, "hostPID", Value::from("true")),
        ("/spec", "nodeSelector", serde_json::json!({})),
        ("/spec/template/spec/containers/0", "readynessProbe", serde_json::json!({})),
        ("/spec/template/spec/containers/0/securityContext", "privileged", Value::from(1)),
    ] {
        let mut wrong = daemonset.clone();
        let object = wrong.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
        object.insert(name.to_owned(), value);
        check(&wrong).expect_err(name);
    }
}

#[test]
fn every_manifest_is_checked() {
    let mut found = Vec::new();
    for directory in ["kubernetes", "examples"] {
        for entry in fs::read_dir(deploy().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.push(format!("{directory}/{name}"));
        }
    }
    found.sort();
    let checked = [
        "examples/pod.yaml",
        "examples/secret.yaml",
        "kubernetes/daemonset.yaml",
        "kubernetes/runtimeclass-dev.yaml",
        "kubernetes/runtimeclass.yaml",
    ];
    assert_eq!(found, checked);
}

/// Carries out what the chart's templates use: values, `quote`, `toJson`, and `if` around lines.
fn render(template: &str, values: &Value) -> Result<String, String> {
    let release =
        serde_json::json!({ "Name": "nacre", "Namespace": "nacre-system", "Service": "Helm" });
    let look = |path: &str| -> Result<Value, String> {
        let unknown = || format!("{path} is not known here");
        let (root, rest) = match path.strip_prefix(".Values.") {
            Some(rest) => (values, rest),
            None => (&release, path.strip_prefix(".Release.").ok_or_else(unknown)?),
        };
        root.pointer(&format!("/{}", rest.replace('.', "/"))).cloned().ok_or_else(unknown)
    };
    let mut text = String::new();
    let mut hidden: Vec<bool> = Vec::new();
    for line in template.lines() {
        let whole = line.trim().strip_prefix("{{- ").and_then(|rest| rest.strip_suffix(" }}"));
        if let Some(action) = whole {
            match action.split_once(' ') {
                Some(("if", path)) => hidden.push(match look(path)? {
                    Value::Bool(value) => !value,
                    Value::Array(value) => value.is_empty(),
                    _ => return Err(format!("{path} is not asked for here")),
                }),
                None if action == "end" => drop(hidden.pop().ok_or("an end too many")?),
                _ => return Err(format!("{action:?} is not carried out here")),
            }
            continue;
        }
        if hidden.contains(&true) {
            continue;
        }
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("{{ ") {
            let (action, after) = after.split_once(" }}").ok_or("an action without an end")?;
            let (path, function) = action.split_once(" | ").unwrap_or((action, "quote"));
            let value = look(path)?;
            let shown = match (function, &value) {
                ("toJson", value) => value.to_string(),
                ("quote", Value::String(text)) => format!("{text:?}"),
                _ => return Err(format!("{action:?} is not carried out here")),
            };
            text.push_str(before);
            text.push_str(&shown);
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
    }
    if hidden.is_empty() { Ok(text) } else { Err("an if without an end".to_owned()) }
}

#[test]
fn the_chart_gives_what_the_manifests_have() {
    let values: Value = documents(&read("helm/nacre/values.yaml")).remove(0);
    let classes = render(&read("helm/nacre/templates/runtimeclass.yaml"), &values).unwrap();
    kinds(&classes);
    assert_eq!(
        documents(&classes),
        documents(&read("kubernetes/runtimeclass.yaml")),
        "overhead in values.yaml"
    );
    let text = render(&read("helm/nacre/templates/daemonset.yaml"), &values).unwrap();
    assert_eq!(kinds(&text), ["DaemonSet"]);
    let made = documents(&text).remove(0);
    let shipped = documents(&read("kubernetes/daemonset.yaml")).remove(1);
    let pod = "/spec/template/spec";
    assert_eq!(made.pointer(pod), shipped.pointer(pod));
    let mut tainted = values.clone();
    tainted["podTolerations"] =
        serde_json::json!([{ "key": "confidential", "operator": "Exists" }]);
    tainted["imagePullSecrets"] = serde_json::json!([{ "name": "registry" }]);
    tainted["nodeSelector"] = serde_json::json!({ "pool": "confidential" });
    let classes = render(&read("helm/nacre/templates/runtimeclass.yaml"), &tainted).unwrap();
    kinds(&classes);
    for class in documents(&classes) {
        assert_eq!(class["scheduling"]["tolerations"], tainted["podTolerations"]);
    }
    let text = render(&read("helm/nacre/templates/daemonset.yaml"), &tainted).unwrap();
    kinds(&text);
    let made = &documents(&text)[0]["spec"]["template"]["spec"];
    assert_eq!(made["imagePullSecrets"], tainted["imagePullSecrets"]);
    assert_eq!(made["nodeSelector"], tainted["nodeSelector"]);
    let mut off = values;
    off["install"] = Value::Bool(false);
    let nothing = render(&read("helm/nacre/templates/daemonset.yaml"), &off).unwrap();
    assert_eq!(documents(&nothing), Vec::<Value>::new());
    let chart = documents(&read("helm/nacre/Chart.yaml")).remove(0);
    assert_eq!(chart["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(chart["appVersion"].as_str(), Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn helm_agrees() {
    let chart = deploy().join("helm/nacre");
    let Ok(output) = Command::new("helm").arg("template").arg("nacre").arg(&chart).output() else {
        println!("SKIPPED: there is no helm; the chart was carried out by this test only");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(kinds(&text).len(), 4);
    let lint = Command::new("helm").arg("lint").arg("--strict").arg(&chart).output().unwrap();
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
}

#[test]
fn the_image_holds_what_its_entry_point_needs() {
    let containerfile = read("image/Containerfile");
    let lines = containerfile.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines[0], "FROM docker.io/library/debian:13-slim");
    assert_eq!(
        lines[1..],
        ["COPY . /nacre", "ENTRYPOINT [\"/bin/sh\", \"/nacre/share/doc/install-node.sh\"]"]
    );
    let script = deploy().join("image/install-node.sh");
    let checked = Command::new("sh").arg("-n").arg(&script).status().unwrap();
    assert!(checked.success());
    let wrong = Command::new("sh").arg(&script).arg("something").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// The entry point with directories of a test instead of a container's and its node's, and with a node whose
/// `nacre install` ends as told. What it said, and its exit status: none if it stays.
fn entry_point(directory: &Path, words: &[&str], status: i32) -> (String, Option<i32>) {
    let place = |name: &str| directory.join(name).display().to_string();
    for name in ["nacre/bin", "host", "path"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    fs::write(directory.join("nacre/bin/nacre"), "the bundle").unwrap();
    let script = read("image/install-node.sh")
        .replace("/host/", &format!("{}/", place("host")))
        .replace("/nacre/. ", &format!("{}/. ", place("nacre")))
        .replace("/tmp/done", &place("done"))
        .replace("sleep 3600 &", "echo stays; exit 99")
        .replace(
            "nsenter --target",
            &format!("echo nsenter; (exit {status}) ; return {status}; : --target"),
        );
    let output = Command::new("sh").args(["-c", &script, "sh"]).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, output.status.code().filter(|code| *code != 99))
}

#[test]
fn the_entry_point_leaves_no_parcel_and_stays_when_it_is_done() {
    for (words, status, said, code) in [
        (&["install", "--danger-all-pods"][..], 0, "nsenter\nstays\n", None),
        (&[], 0, "nsenter\nstays\n", None),
        (&["install"], 2, "nsenter\n", Some(2)),
        // Nothing is installed any more: started anew, the container has nothing to do.
        (&["uninstall"], 0, "stays\n", None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            entry_point(directory.path(), words, status),
            (said.to_owned(), code),
            "{words:?}"
        );
        assert!(!directory.path().join("host/opt/nacre/.parcel").exists(), "{words:?}");
        assert_eq!(directory.path().join("done").exists(), code.is_none(), "{words:?}");
    }
    for (status, said, code) in [(0, "nsenter\nstays\n", None), (2, "nsenter\n", Some(2))] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("host/opt/nacre/current/bin/nacre")).unwrap();
        let done = entry_point(directory.path(), &["uninstall"], status);
        assert_eq!(done, (said.to_owned(), code));
    }
}
