//! `nacre runtimeclass`.

#![allow(clippy::unwrap_used)]

use std::process::Command;

fn runtimeclass(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
    let output = command.arg("runtimeclass").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_shipped_file_is_what_the_constants_give() {
    let shipped = include_str!("../../deploy/kubernetes/runtimeclass.yaml");
    let (code, made, _) = runtimeclass(&[]);
    assert_eq!(code, Some(0));
    assert_eq!(
        made, shipped,
        "make it anew: nacre runtimeclass -o deploy/kubernetes/runtimeclass.yaml"
    );
    for part in [
        "handler: nacre\n",
        "handler: nacre-snp\n",
        "nacre.io/tee-tdx: \"true\"\n",
        "kubectl label node NODE nacre.io/tee-none=true\n",
    ] {
        assert!(shipped.contains(part), "{part}");
    }
}

#[test]
fn what_pods_may_not_have_is_not_covered() {
    let (code, made, error) = runtimeclass(&["--largest-limit-mib", "16384"]);
    assert_eq!((code, made.as_str()), (Some(2), ""));
    assert!(
        error.contains("--largest-limit-mib 16384") && error.contains("vm.max_memory_mib"),
        "{error}"
    );
}
