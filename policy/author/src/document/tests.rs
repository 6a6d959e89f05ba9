use super::*;

fn data() -> PolicyData {
    serde_json::from_value(serde_json::json!({
        "version": 1, "source": "web.yaml", "runtimes": ["containerd-1.6"],
        "pod": {"name": "web", "sysctls": {"net.core.somaxconn": "1024"}},
        "containers": {
            "web": {
                "image": "docker.io/library/web@sha256:00", "cwd": "/", "env": ["B=2", "A=\"1\"\n\u{7f}ö"],
                "args": ["/web", {"pattern": "^a$"}], "users": [{"uid": 0, "gid": 0, "groups": [0]}],
                "mounts": {"/etc/app": {"kind": "config", "source": "app", "read_only": true}},
            },
            "side": {"image_tag": "r/side:1", "args": ["/s"], "cwd": "/", "users": [], "logs": false,
                     "restartable": false, "capabilities": []},
        },
        "copies": {"app": {"files": {"key": "ab"}}},
        "allow": {"exec": [["sh"]]},
    }))
    .unwrap()
}

#[test]
fn a_document_has_this_form() {
    let text = Document::new(data()).render();
    let expected = r#"package agent_policy

policy_data := {
  "allow": {
    "exec": [["sh"]]
  },
  "containers": {
    "side": {
      "args": ["/s"],
      "capabilities": [],
      "cwd": "/",
      "image_tag": "r/side:1",
      "logs": false,
      "restartable": false,
      "service_env": "kubernetes",
      "users": []
    },
"#;
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains(
        "\n      \"users\": [{\"gid\": 0, \"groups\": [0], \"uid\": 0}]\n    }\n  },\n  \"copies\""
    ));
    assert!(text.contains(
        "\"mounts\": {\n        \"/etc/app\": {\"kind\": \"config\", \"read_only\": true, \"source\": \"app\"}\n      },"
    ), "{text}");
    assert!(text.ends_with("\n  \"version\": 1\n}\n"), "{text}");
}

#[test]
fn what_is_rendered_is_read_back() {
    for standalone in [false, true] {
        let mut document = Document::new(PolicyData { standalone, ..data() });
        document.after = "\ndefault PauseContainerRequest := true\n".into();
        let text = document.render();
        let read = Document::parse(&text).unwrap();
        assert_eq!(read, document);
        assert_eq!(read.render(), text);
    }
}

#[test]
fn the_engine_reads_it_too() {
    nacre_policy::Policy::parse(&Document::new(data()).render()).unwrap();
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(
        at in 0_usize..800, length in 0_usize..40, text in "[ -~\n]{0,20}", junk in "\\PC{0,60}"
    ) {
        let good = Document::new(data()).render();
        let end = (at + length).min(good.len());
        let changed = [good.get(..at).unwrap_or(&good), &text, good.get(end..).unwrap_or("")];
        for text in [changed.concat(), format!("policy_data := {junk}")] {
            if let Ok(document) = Document::parse(&text) {
                let again = Document::parse(&document.render()).unwrap();
                proptest::prop_assert_eq!(again, document);
            }
        }
    }
}

#[test]
fn what_is_no_document_is_named() {
    let good = Document::new(data()).render();
    let huge = " ".repeat(LARGEST + 1);
    for (text, says) in [
        (String::new(), "no line that begins with"),
        ("package agent_policy\n\ndefault X := true\n".into(), "no line that begins with"),
        (huge, "more than"),
        (format!("{good}policy_data := {{}}\n"), "a second time"),
        (good.replace("\"version\": 1", "\"version\": 7"), "version is 7"),
        (
            good.replace("\"logs\": false", "\"log\": false"),
            "line 13: policy_data: unknown field `log`",
        ),
        (good.replace("\"args\": [\"/s\"]", "\"args\": 1"), "line 9: policy_data: "),
        (good[..good.len() - 20].to_owned(), "policy_data: EOF"),
    ] {
        let error = Document::parse(&text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(matches!(Document::parse("policy_data := "), Err(DocumentError::NoData)));
}
