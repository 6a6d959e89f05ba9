//! Guests with an emulated secure processor, in real VMs: bound to the initdata that they were launched
//! with, or not started; and what a relying party makes of their evidence.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use std::sync::LazyLock;
use std::time::SystemTime;

use guest::{
    Guest, HOST_FROM_GUEST, Launch, allow_all, command_line, container, context, measured_files,
};
use nacre_emulated::{Launch as Measured, Processor, Root, RsaBits, measure};
use nacre_evidence::Evidence;
use nacre_protocol::agent::DestroySandboxRequest;
use nacre_protocol::initdata::{Algorithm, Initdata, POLICY};
use nacre_verifier::{
    Appraisal, CheckCode, Collateral, Expected, ExtraRoot, ReferenceSet, ReferenceValues, Trust,
    Verifier,
};

const PARAMETERS: &str = "nacre.tee=emulated-snp";

static ROOT: LazyLock<Root> =
    LazyLock::new(|| Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap());

/// Whether there is a guest image to boot.
fn ready() -> bool {
    let missing = guest::missing();
    if let Some(missing) = &missing {
        eprintln!("skipped: {} is absent; run `cargo xtask image`", missing.display());
    }
    missing.is_none()
}

/// A document whose policy allows everything.
fn initdata(algorithm: Algorithm) -> Initdata {
    Initdata::new(algorithm, [(POLICY.into(), allow_all())].into()).unwrap()
}

fn measured(kernel_parameters: &str) -> Measured {
    let [firmware, kernel, initrd] = measured_files();
    let line = command_line(kernel_parameters);
    Measured::of_files(&firmware, &kernel, &initrd, &line, 1).unwrap()
}

fn processor(host_data: [u8; 32]) -> Processor {
    Processor::launch(&ROOT, &measured(PARAMETERS), host_data).unwrap()
}

/// One after the other: two emulated processors are busy with one boot.
#[tokio::test]
async fn stories() {
    if !ready() {
        return;
    }
    a_guest_with_the_initdata_that_it_was_launched_with_can_be_attested().await;
    other_initdata_ends_the_boot().await;
    withheld_initdata_ends_the_boot().await;
    a_guest_without_the_tee_that_it_was_launched_for_does_not_start().await;
}

async fn a_guest_with_the_initdata_that_it_was_launched_with_can_be_attested() {
    let registry = format!("{HOST_FROM_GUEST}:{}", registry::serve().await);
    let parameters = format!("{PARAMETERS} nacre.danger_plain_http={registry}");
    // Longer than SNP's field, so cut off.
    let initdata = initdata(Algorithm::Sha384);
    let launched = measured(&parameters);
    let guest = Guest::boot(Launch {
        kernel_parameters: &parameters,
        initdata: Some(&initdata.to_disk().unwrap()),
        processor: Some(
            Processor::launch(&ROOT, &launched, initdata.digest().host_data()).unwrap(),
        ),
        ..Default::default()
    })
    .await;
    let console = guest.console();
    assert!(console.contains("this guest can be attested"), "{console}");
    // Allowed by the policy of the initdata.
    guest.create_sandbox().await;
    guest.run(&container("pod", "pause", &["/pause"])).await;
    let image = format!("{registry}/busybox:latest");
    guest.run(&container("app", &image, &["sleep", "1000"])).await;
    let ask =
        "printf 'GET /aa/evidence?runtime_data=hello HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8006";
    let (_, answer, _) = guest.shell("app", ask).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.contains(" 200 "), "{head}");
    let wire = serde_json::from_str(body).unwrap();
    let evidence = Evidence::from_wire("snp", &wire).unwrap();

    let appraisal = appraise(&evidence, &launched, &initdata);
    assert!(appraisal.is_affirming() && appraisal.is_emulated(), "{:?}", appraisal.checks());
    let other = measured(&format!("{parameters} nacre.log=debug"));
    let failure = |appraisal: Appraisal| appraisal.first_failure().unwrap().code;
    assert_eq!(failure(appraise(&evidence, &other, &initdata)), CheckCode::SnpMeasurement);
    let another = self::initdata(Algorithm::Sha256);
    assert_eq!(failure(appraise(&evidence, &launched, &another)), CheckCode::SnpHostData);

    guest.agent.destroy_sandbox(context(60), &DestroySandboxRequest::new()).await.unwrap();
    guest.ended().await;
}

/// As somebody does who expects that launch and initdata, and trusts the root.
fn appraise(evidence: &Evidence, launch: &Measured, initdata: &Initdata) -> Appraisal {
    let root = ExtraRoot {
        name: "tests".into(),
        ark_der: ROOT.ark().to_vec(),
        ask_der: ROOT.ask().to_vec(),
    };
    let trust = Trust { danger_extra_snp_roots: vec![root], ..Default::default() };
    let measurement: String = measure(launch).iter().map(|byte| format!("{byte:02x}")).collect();
    let document = format!(
        r#"{{"version":1,"id":"guest","tee":"snp","measurements":["{measurement}"],"tcb_minimum":"any"}}"#
    );
    let reference = ReferenceValues::parse(document.as_bytes()).unwrap();
    let mut report_data = [0; 64];
    report_data[..5].copy_from_slice(b"hello");
    let digest = initdata.digest();
    let expected = Expected {
        report_data,
        init_data: Some(digest.as_bytes()),
        references: &ReferenceSet::new(vec![reference]),
        now: SystemTime::now().into(),
    };
    Verifier::new(&trust).unwrap().appraise(evidence, &expected, &Collateral::default())
}

async fn other_initdata_ends_the_boot() {
    let (own, other) = (initdata(Algorithm::Sha256), initdata(Algorithm::Sha512));
    let console = Guest::refuses(Launch {
        kernel_parameters: PARAMETERS,
        initdata: Some(&other.to_disk().unwrap()),
        processor: Some(processor(own.digest().host_data())),
        ..Default::default()
    })
    .await;
    let reported = own.digest().to_string();
    let reported = reported.strip_prefix("sha256:").unwrap();
    for words in [
        "initdata that this guest was not launched with",
        &format!("its digest {}", other.digest()),
        &format!("an emulated AMD secure processor reports {reported}"),
    ] {
        assert!(console.contains(words), "no {words:?} in {console}");
    }
}

async fn withheld_initdata_ends_the_boot() {
    let own = initdata(Algorithm::Sha256);
    let console = Guest::refuses(Launch {
        kernel_parameters: PARAMETERS,
        initdata: None,
        processor: Some(processor(own.digest().host_data())),
        ..Default::default()
    })
    .await;
    assert!(console.contains("the host gave no initdata, but an emulated AMD"), "{console}");
}

async fn a_guest_without_the_tee_that_it_was_launched_for_does_not_start() {
    for (parameter, words) in [
        (PARAMETERS, "the VM has no virtio-serial port org.nacre.processor.0"),
        ("nacre.tee=snp", "nacre.tee=snp, but this guest runs in no TEE"),
        ("nacre.tee=sgx", "nacre.tee=sgx is not known"),
    ] {
        let launch = Launch { kernel_parameters: parameter, ..Default::default() };
        let console = Guest::refuses(launch).await;
        assert!(console.contains(words), "no {words:?} in {console}");
    }
}
