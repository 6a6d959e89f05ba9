//! Confidential guests where there is no hardware for them: nothing else is launched in their place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;

use nacre_tests::{Image, World, container};

#[tokio::test]
async fn a_host_without_the_hardware_says_so_and_launches_nothing() {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    if Path::new("/dev/kvm").exists() && (has("svm") || has("vmx")) {
        eprintln!("SKIPPED: this host has hardware virtualization, and perhaps more");
        return;
    }
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let plain = world.path("/run/world/shim.toml");
    let plain = std::fs::read_to_string(plain).unwrap();
    for (tee, name) in [("snp", "SEV-SNP"), ("tdx", "TDX")] {
        let configured = plain.replacen("[vm]\n", &format!("[vm]\ntee = \"{tee}\"\n"), 1);
        world.configure_shim(|_| configured).unwrap();
        let error = world.pod("secret").with(container("app", &image)).await.unwrap_err();
        let error = format!("{error:#}");
        let expected = format!("this host cannot launch {name} guests: they need KVM, and ");
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains("`nacre check` tells what a host for them needs"), "{error}");
        assert!(world.virtual_machines().unwrap().is_empty());
        assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
    }
}
