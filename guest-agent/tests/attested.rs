//! Guests with an emulated secure processor, in real VMs: bound to the initdata that they were launched
//! with, or not started.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;

use std::sync::LazyLock;
use std::time::SystemTime;

use guest::{Guest, Launch, command_line, container, context, measured_files, message};
use nacre_emulated::{Launch as Measured, Processor, Root, RsaBits};
use nacre_policy::REQUESTS;
use nacre_protocol::agent::DestroySandboxRequest;
use nacre_protocol::initdata::{Algorithm, Initdata, POLICY};

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
    let rules = REQUESTS.iter().map(|request| format!("default {request} := true\n"));
    let policy = format!("package agent_policy\n\n{}", rules.collect::<String>());
    Initdata::new(algorithm, [(POLICY.into(), policy)].into()).unwrap()
}

fn processor(host_data: [u8; 32]) -> Processor {
    let [firmware, kernel, initrd] = measured_files();
    let line = command_line(PARAMETERS);
    let launch = Measured::of_files(&firmware, &kernel, &initrd, &line, 1).unwrap();
    Processor::launch(&ROOT, &launch, host_data).unwrap()
}

/// One after the other: two emulated processors are busy with one boot.
#[tokio::test]
async fn stories() {
    if !ready() {
        return;
    }
    a_guest_with_the_initdata_that_it_was_launched_with_obeys_its_policy().await;
    other_initdata_ends_the_boot().await;
    withheld_initdata_ends_the_boot().await;
    a_guest_without_the_tee_that_it_was_launched_for_does_not_start().await;
}

async fn a_guest_with_the_initdata_that_it_was_launched_with_obeys_its_policy() {
    // Longer than SNP's field, so cut off.
    let initdata = initdata(Algorithm::Sha384);
    let guest = Guest::boot(Launch {
        kernel_parameters: PARAMETERS,
        initdata: Some(&initdata.to_disk().unwrap()),
        processor: Some(processor(initdata.digest().host_data())),
    })
    .await;
    let console = guest.console();
    assert!(console.contains("this guest can be attested"), "{console}");
    guest.create_sandbox().await;
    guest.run(&container("pod", "pause", &["/pause"])).await;
    // The processor's port is one more that no container may open.
    let exec = guest.exec("pod", "x", guest::process(&["/nope"])).await;
    assert!(message(exec).contains("no such file or directory"));
    guest.agent.destroy_sandbox(context(60), &DestroySandboxRequest::new()).await.unwrap();
    guest.ended().await;
}

async fn other_initdata_ends_the_boot() {
    let (own, other) = (initdata(Algorithm::Sha256), initdata(Algorithm::Sha512));
    let console = Guest::refuses(Launch {
        kernel_parameters: PARAMETERS,
        initdata: Some(&other.to_disk().unwrap()),
        processor: Some(processor(own.digest().host_data())),
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
