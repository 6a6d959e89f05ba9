//! Any YAML that is read: the annotation can be inserted and is then read back, or a place says why not; nothing else
//! about the workloads changes.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

// The modules themselves: the crate would bring the policy engine along.
#[path = "../../src/expand.rs"]
mod expand;
#[path = "../../src/kubernetes/mod.rs"]
mod kubernetes;
#[path = "../../src/workload.rs"]
mod workload;
#[path = "../../src/yaml.rs"]
mod yaml;

use kubernetes::SourceFile;
use yaml::{Insertion, insert};

const ANNOTATION: &str = "io.example/initdata";

fuzz_target!(|bytes: &[u8]| {
    let read = |content: &[u8]| {
        kubernetes::read(&[SourceFile { name: "f".to_owned(), content: content.to_vec() }])
    };
    let (Ok(text), Ok(reading)) = (std::str::from_utf8(bytes), read(bytes)) else { return };
    let insertions: Vec<_> = reading
        .workloads
        .iter()
        .map(|workload| Insertion { workload, annotation: ANNOTATION, value: "V+/=", pinned: &[] })
        .collect();
    let Ok(inserted) = insert("f", text, &insertions) else { return };
    let again = read(inserted.as_bytes()).expect("what was inserted does not break the file");
    assert_eq!(reading.workloads.len(), again.workloads.len());
    for (before, after) in reading.workloads.iter().zip(&again.workloads) {
        assert_eq!(
            after.pod.annotations.get(ANNOTATION).map(String::as_str),
            Some("V+/="),
            "{inserted}"
        );
        assert_eq!(before.object_name, after.object_name);
        assert_eq!(before.pod.containers.len(), after.pod.containers.len());
        let mut annotations = before.pod.annotations.clone();
        annotations.insert(ANNOTATION.to_owned(), "V+/=".to_owned());
        assert_eq!(annotations, after.pod.annotations);
    }
});
