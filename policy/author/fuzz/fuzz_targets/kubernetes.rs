//! Any bytes as the owner's YAML: read or refused with a place in the file, never a panic, and the same each time.
#![no_main]
#![allow(dead_code)]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;

// The modules themselves: the crate would bring the policy engine along.
#[path = "../../src/expand.rs"]
mod expand;
#[path = "../../src/kubernetes/mod.rs"]
mod kubernetes;
#[path = "../../src/workload.rs"]
mod workload;

use kubernetes::SourceFile;

fuzz_target!(|bytes: &[u8]| {
    let files = [SourceFile { name: "f".to_owned(), content: bytes.to_vec() }];
    let last_line = 1 + bytes.iter().filter(|&&byte| matches!(byte, b'\n' | b'\r')).count();
    match (kubernetes::read(&files), kubernetes::read(&files)) {
        (Ok(reading), Ok(again)) => {
            assert_eq!(reading.workloads, again.workloads);
            for workload in &reading.workloads {
                let pod = &workload.pod;
                let volumes: BTreeSet<_> = pod.volumes.iter().map(|volume| &volume.name).collect();
                let names: BTreeSet<_> =
                    pod.containers.iter().map(|container| &container.name).collect();
                assert_eq!(names.len(), pod.containers.len());
                for container in &pod.containers {
                    assert!(container.mounts.iter().all(|mount| volumes.contains(&mount.volume)));
                    assert!(
                        container
                            .lines
                            .values()
                            .all(|line| (1..=last_line).contains(&(*line as usize)))
                    );
                }
            }
        }
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            assert!((1..=last_line + 1).contains(&(error.line as usize)), "{error}");
        }
        _ => panic!("read once, refused once"),
    }
});
