//! Whole documents from whole files: what stands in `golden/NAME.yaml` becomes `golden/NAME.rego`, byte for
//! byte. To write them again after a change that is meant: `NACRE_WRITE_GOLDEN=1 cargo test -p nacre-policy-author`.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use nacre_policy_author::diff::diff;
use nacre_policy_author::document::Document;
use nacre_policy_author::generate::{ImageFacts, Images, Options, generate};
use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::settings::Settings;
use nacre_policy_author::yaml::{Insertion, insert};

/// Images of one registry, each with a digest of its own.
struct Shop;

impl Images for Shop {
    fn image(&mut self, reference: &str) -> Result<ImageFacts, String> {
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, digest.to_owned()),
            None => (reference, format!("sha256:{}", "a".repeat(64))),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) => (name.to_owned(), Some(tag.to_owned())),
            None => (name.to_owned(), None),
        };
        Ok(ImageFacts {
            name,
            tag,
            digest,
            entrypoint: vec!["/bin/entry".into()],
            cmd: vec!["serve".into()],
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into()],
            working_dir: "/srv".into(),
            user: "shop".into(),
            stop_signal: "SIGQUIT".into(),
            passwd: b"root:x:0:0:root:/root:/bin/sh\nshop:x:100:101::/:/bin/sh\n".to_vec(),
            group: b"root:x:0:\nshop:x:101:\nlogs:x:7:shop\n".to_vec(),
        })
    }
}

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

fn made(name: &str) -> Document {
    let file = format!("{name}.yaml");
    let content = std::fs::read(golden(&file)).unwrap();
    let reading = read(&[SourceFile { name: file, content }]).unwrap_or_else(|e| panic!("{e}"));
    let [workload] = reading.workloads.as_slice() else { panic!("{name}: one workload") };
    let settings = Settings { runtimes: vec!["containerd-1.6".into()], ..Settings::default() };
    let made = generate(workload, &mut Shop, &settings, Options::default());
    Document::new(made.unwrap_or_else(|e| panic!("{e}")).data)
}

const NAMES: [&str; 4] = ["pod", "deployment", "statefulset", "cronjob"];

#[test]
fn documents_are_as_they_were() {
    for name in NAMES {
        let text = made(name).render();
        let path = golden(&format!("{name}.rego"));
        if std::env::var_os("NACRE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, expected, "{name}");
        assert_eq!(text, made(name).render(), "{name}: the same input, the same bytes");
        let read = Document::parse(&text).unwrap();
        assert_eq!(read, made(name));
        assert_eq!(diff(&read, &made(name)), []);
        nacre_policy::Policy::parse(&text).unwrap();
    }
}

#[test]
fn a_typical_pod_s_document_is_small() {
    let size = made("pod").render().len();
    assert!(size < 1500, "{size} bytes");
}

#[test]
fn no_secret_is_shown_by_a_comparison() {
    let old = made("deployment");
    let mut new = old.clone();
    let web = new.data.containers.get_mut("web").unwrap();
    for variable in &mut web.env {
        *variable = variable.replace("correct horse", "battery staple");
    }
    for pattern in web.env_pattern.values_mut() {
        *pattern = pattern.replace("horse", "staple");
    }
    let changes: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
    let shown = changes.concat();
    assert!(!shown.contains("horse") && !shown.contains("staple"), "{shown}");
}

/// Whatever the form of the file, what was inserted is read back, and nothing else changes.
#[test]
fn insertion_is_read_back() {
    for name in NAMES {
        let file = format!("{name}.yaml");
        let text = std::fs::read_to_string(golden(&file)).unwrap();
        let read_one = |text: &str| {
            let content = text.as_bytes().to_vec();
            let mut reading = read(&[SourceFile { name: file.clone(), content }]).unwrap();
            reading.workloads.remove(0)
        };
        let workload = read_one(&text);
        let insertion = Insertion {
            workload: &workload,
            annotation: "example.com/x",
            value: "V+/=",
            pinned: &[],
        };
        let inserted = insert(&file, &text, &[insertion]).unwrap();
        let again = read_one(&inserted);
        assert_eq!(again.pod.annotations["example.com/x"], "V+/=");
        let lines = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
        let kept: Vec<String> =
            lines(&inserted).into_iter().filter(|line| lines(&text).contains(line)).collect();
        assert_eq!(kept, lines(&text), "{name}");
    }
}
