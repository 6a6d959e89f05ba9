//! What is launched is what the owner computed beforehand, to the byte. The hardware is emulated; what is
//! measured, reported, appraised and refused is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

use nacre_protocol::initdata::Initdata;
use nacre_tests::{Broker, Declaration, Image, PodBuilder, World, container};
use serde_json::Value;

const SECRET: &str = "kbs:///default/web/password";
const CONTENT: &str = "correct horse battery staple";
/// What the container is told when it asks for the secret, whatever the status.
const TOLD: &str =
    "printf 'GET /cdh/resource/default/web/password HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8006";

#[tokio::test]
async fn what_nacre_measure_predicts_is_what_the_guest_reports() {
    const ASK: &str = "wget -q -O- 'http://127.0.0.1:8006/aa/evidence?runtime_data=hello'";
    let world = World::new().await.unwrap();
    world.danger_emulate_tee().unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let written = "/run/world/predicted.json";
    let words = ["measure", "--tee", "emulated-snp", "--config", "/run/world/shim.toml"];
    // The world's registry speaks plain HTTP.
    world
        .nacre(
            &[&words[..], &["--danger-accept", "--vcpus", "1", "--vcpus", "3", "-o", written]]
                .concat(),
        )
        .unwrap();
    let predicted: Value = serde_json::from_slice(&fs::read(world.path(written)).unwrap()).unwrap();

    for (index, vcpus) in [1, 3].into_iter().enumerate() {
        let pod = world.pod("web").annotation("io.nacre.vm.vcpus", &vcpus.to_string());
        let pod = pod.with(container("app", &image).idle()).exec_allowed();
        let pod = pod.settings("guest_api.evidence = true").await.unwrap();
        let app = pod.start("app").await.unwrap();
        let evidence: Value = serde_json::from_str(&app.sh(ASK).await.unwrap()).unwrap();
        let measurement = evidence["attestation_report"]["measurement"].as_array().unwrap();
        let measurement: String =
            measurement.iter().map(|byte| format!("{:02x}", byte.as_u64().unwrap())).collect();
        assert_eq!(predicted["measurements"][index], measurement, "{vcpus} processors");
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
    assert_ne!(predicted["measurements"][0], predicted["measurements"][1]);
}

/// Each change is one byte (mostly one bit) that neither kernel nor agent cares about: the pod starts and
/// runs as ever, and only its measurement tells.
#[tokio::test]
async fn one_flipped_byte_of_what_is_launched_is_refused_by_the_broker() {
    let world = World::new().await.unwrap();
    let broker = world.start_broker_for_guests().await.unwrap();
    broker.set_secret(SECRET, CONTENT).unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let granted = || {
        let pod = declared(&world, &broker, &image).with_policy().unwrap();
        broker.grant("web", pod.annotation_text(), ["default/web/*"]).unwrap();
        pod
    };
    let told = ask(&world, granted()).await;
    assert!(told.ends_with(CONTENT), "{told}");

    for (file, flip) in [
        ("initrd.img", flip_time_of_first_entry as fn(Vec<u8>) -> Vec<u8>),
        ("vmlinux", flip_flags_of_elf_header),
        ("manifest.json", flip_byte_of_command_line),
    ] {
        world.change_image(file, flip).unwrap();
        let told = ask(&world, granted()).await;
        assert!(told.contains("snp-measurement"), "{file}: {told}");
        assert!(broker.explain(&told).unwrap().contains("snp-measurement"), "{file}");
        world.restore_image().unwrap();
    }

    // The initdata is reported, not measured: the guest is genuine, and nothing is granted to it.
    let changed = flip_byte_of_policy(granted().annotation_text());
    let told = ask(&world, declared(&world, &broker, &image).with_initdata(&changed)).await;
    assert!(told.contains("grant") && !told.contains("snp-measurement"), "{told}");

    let told = ask(&world, granted()).await;
    assert!(told.ends_with(CONTENT), "{told}");
    broker.verify_audit().unwrap();
}

fn declared<'w>(world: &'w World, broker: &Broker<'_>, image: &str) -> PodBuilder<'w> {
    let app: Declaration = container("app", image).idle();
    world.pod("web").with(app).exec_allowed().secrets_of(broker)
}

/// Starts a pod, asks in it for the secret, and returns what it is told.
async fn ask(world: &World, pod: PodBuilder<'_>) -> String {
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let told = app.sh(TOLD).await.unwrap();
    eprintln!("{}", told.trim());
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
    told
}

/// The last digit of the modification time of the first entry (cpio, "newc": the sixth field of eight
/// digits behind the magic number).
fn flip_time_of_first_entry(mut initrd: Vec<u8>) -> Vec<u8> {
    const LAST_DIGIT: usize = 6 + 6 * 8 - 1;
    assert_eq!(initrd[..6], *b"070701");
    assert_eq!(initrd[LAST_DIGIT], b'0');
    initrd[LAST_DIGIT] ^= 1;
    initrd
}

/// `e_flags` of an ELF64 header, which x86 does not use.
fn flip_flags_of_elf_header(mut kernel: Vec<u8>) -> Vec<u8> {
    const E_FLAGS: usize = 0x30;
    assert_eq!(kernel[..5], *b"\x7fELF\x02");
    kernel[E_FLAGS] ^= 1;
    kernel
}

/// A guest that panics then restarts after three seconds instead of one: none of these panics.
fn flip_byte_of_command_line(manifest: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8(manifest).unwrap();
    assert_eq!(text.matches("panic=-1 ").count(), 1);
    text.replace("panic=-1 ", "panic=-3 ").into_bytes()
}

/// The same initdata, but the line break that ends its policy is a space.
fn flip_byte_of_policy(annotation: &str) -> String {
    let initdata = Initdata::from_annotation(annotation).unwrap();
    let mut files = initdata.files().clone();
    let policy = files.get_mut("policy.rego").unwrap();
    assert_eq!(policy.pop(), Some('\n'));
    policy.push(' ');
    Initdata::new(initdata.algorithm(), files).unwrap().to_annotation().unwrap()
}
