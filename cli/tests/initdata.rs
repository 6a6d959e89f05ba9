//! Runs `nacre initdata` as its users do.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use nacre_protocol::initdata::{ANNOTATION, Initdata};

fn nacre(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
    let Output { status, stdout, stderr } =
        command.arg("initdata").args(arguments).current_dir(directory).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_document_is_made_shown_and_verified_in_each_of_its_forms() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |arguments: &[&str]| nacre(directory.path(), arguments);
    std::fs::write(at("policy.rego"), "package agent_policy\n").unwrap();
    std::fs::write(at("ca.pem"), "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n")
        .unwrap();
    let made = run(&[
        "create",
        "--policy",
        "policy.rego",
        "--kbs-url",
        "https://kbs.example:8080/",
        "--kbs-cert",
        "ca.pem",
        "--secret-file",
        "/run/confidential-containers/key=kbs:///default/web/key",
        "--algorithm",
        "sha384",
        "-o",
        "web.toml",
    ]);
    assert_eq!(made, (0, String::new(), String::new()));
    let document = Initdata::parse(&std::fs::read_to_string(at("web.toml")).unwrap()).unwrap();
    let files = document.files();
    assert_eq!(document.policy(), Some("package agent_policy\n"));
    let agent: toml::Table = files["aa.toml"].parse().unwrap();
    assert_eq!(agent["token_configs"]["kbs"]["url"].as_str(), Some("https://kbs.example:8080"));
    let hub: toml::Table = files["cdh.toml"].parse().unwrap();
    assert!(hub["kbc"]["kbs_cert"].as_str().unwrap().contains("MII="));
    assert_eq!(hub["credentials"][0]["path"].as_str(), Some("/run/confidential-containers/key"));
    assert_eq!(hub["credentials"][0]["resource_uri"].as_str(), Some("kbs:///default/web/key"));

    // The same digest from the annotation, and from the YAML of a pod with it.
    let (_, digest, _) = run(&["digest", "web.toml"]);
    assert_eq!(digest.trim(), document.digest().to_string());
    let (_, annotation, _) = run(&["create", "--from", "web.toml", "--output", "annotation"]);
    std::fs::write(at("annotation.txt"), &annotation).unwrap();
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    {ANNOTATION}: {annotation}\
         spec:\n  containers:\n  - name: a\n    image: a\n"
    );
    std::fs::write(at("pod.yaml"), pod).unwrap();
    for form in ["web.toml", "annotation.txt", "pod.yaml"] {
        assert_eq!(run(&["digest", form]).1, digest, "{form}");
        let (code, said, _) = run(&["verify", form, "--digest", digest.trim()]);
        assert_eq!(code, 0, "{said}");
    }
    let (_, shown, _) = run(&["show", "pod.yaml"]);
    assert!(shown.contains(digest.trim()) && shown.contains("policy.rego, 21 bytes"), "{shown}");
    let (_, shown, _) = run(&["show", "pod.yaml", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["mrconfigid"], hex::encode(document.digest().as_bytes()));
    assert_eq!(shown["host_data"], hex::encode(&document.digest().as_bytes()[..32]));
    assert_eq!(run(&["show", "web.toml", "--file", "policy.rego"]).1, "package agent_policy\n");
}

#[test]
fn another_document_is_another_and_mistakes_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |arguments: &[&str]| nacre(directory.path(), arguments);
    let fails = |arguments: &[&str], word: &str| {
        let (code, _, error) = run(arguments);
        assert!(code == 2 && error.contains(word), "{arguments:?}: {code} {error}");
    };
    std::fs::write(at("policy.rego"), "package agent_policy\n").unwrap();
    assert_eq!(run(&["create", "--policy", "policy.rego", "-o", "a.toml"]).0, 0);
    let zero = "00".repeat(32);
    let (code, said, _) = run(&["verify", "a.toml", "--host-data", &zero]);
    assert!(code == 1 && said.contains(&zero), "{said}");
    let (code, _, _) = run(&["verify", "a.toml", "--mrconfigid", &"00".repeat(48)]);
    assert_eq!(code, 1);

    let (code, _, note) = run(&["create", "--kbs-url", "http://kbs", "-o", "b.toml"]);
    assert!(code == 0 && note.contains("plain HTTP") && note.contains("policy.rego"), "{note}");
    fails(&["create"], "--policy");
    fails(&["create", "--kbs-url", "kbs.example"], "https://");
    fails(&["create", "--kbs-url", "https://a/b"], "https://");
    fails(&["create", "--kbs-url", "https://a", "--kbs-cert", "policy.rego"], "PEM");
    fails(&["create", "--kbs-url", "https://a", "--secret-file", "/key=kbs:///a/b/c"], "beneath");
    fails(
        &[
            "create",
            "--kbs-url",
            "https://a",
            "--secret-file",
            "/run/confidential-containers/a=file:///x",
        ],
        "secret-file",
    );
    fails(&["create", "--policy", "a.toml"], "a.toml");
    fails(&["create", "--from", "a.toml", "--file", "policy.rego=a.toml"], "already");
    fails(&["show", "policy.rego"], "neither initdata");
    fails(&["show", "a.toml", "--file", "aa.toml"], "there are policy.rego");
    fails(&["verify", "a.toml", "--digest", "abc"], "algorithm:hex");
    std::fs::write(at("noise"), [7_u8; 100]).unwrap();
    fails(&["verify", "a.toml", "--evidence", "noise"], "noise");
}

#[test]
fn what_is_said_about_images_is_checked_as_the_guest_will() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |arguments: &[&str]| nacre(directory.path(), arguments);
    let policy = r#"{"default": [{"type": "reject"}]}"#;
    std::fs::write(at("policy.json"), policy).unwrap();
    std::fs::write(at("more.toml"), "[mirrors]\n\"docker.io\" = [\"mirror.example\"]\n").unwrap();
    let mut words =
        vec!["create", "--image-policy", "policy.json", "--image-settings", "more.toml"];
    words.extend(["--registry-credentials", "kbs:///default/registry/login", "-o", "a.toml"]);
    let (code, _, said) = run(&words);
    assert!(code == 2 && said.contains("--kbs-url"), "{said}");
    let broker = ["--kbs-url", "https://kbs.example"];
    let (code, _, said) = run(&[&words[..], &broker].concat());
    assert_eq!(code, 0, "{said}");
    let document = Initdata::parse(&std::fs::read_to_string(at("a.toml")).unwrap()).unwrap();
    assert_eq!(document.files()["image-policy.json"], policy);
    let settings: toml::Table = document.files()["image.toml"].parse().unwrap();
    assert_eq!(settings["credentials"].as_str(), Some("kbs:///default/registry/login"));
    assert_eq!(settings["mirrors"]["docker.io"][0].as_str(), Some("mirror.example"));

    // More is added to what is there.
    let key = ["--from", "a.toml", "--layer-key", "kbs:///default/image/key", "-o", "b.toml"];
    assert_eq!(run(&[&["create"], &key[..]].concat()).0, 0);
    let document = Initdata::parse(&std::fs::read_to_string(at("b.toml")).unwrap()).unwrap();
    let settings: toml::Table = document.files()["image.toml"].parse().unwrap();
    assert_eq!(settings["layer_keys"][0].as_str(), Some("kbs:///default/image/key"));
    assert_eq!(settings["credentials"].as_str(), Some("kbs:///default/registry/login"));

    std::fs::write(at("policy.json"), r#"{"default": []}"#).unwrap();
    let (code, _, said) = run(&["create", "--image-policy", "policy.json"]);
    assert!(code == 2 && said.contains("image policy"), "{said}");
    std::fs::write(at("more.toml"), "mirror = 1").unwrap();
    let (code, _, said) = run(&["create", "--image-settings", "more.toml"]);
    assert!(code == 2 && said.contains("unknown field"), "{said}");
}
