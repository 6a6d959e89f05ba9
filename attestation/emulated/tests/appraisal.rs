//! What a relying party makes of emulated processors' reports.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use nacre_emulated::{Launch, Processor, Root, RsaBits, measure};
use nacre_evidence::Evidence;
use nacre_evidence::snp::{CertificateTable, Report};
use nacre_verifier::{
    Appraisal, CheckCode, Collateral, Expected, ExtraRoot, ReferenceSet, ReferenceValues, Trust,
    Verifier,
};

static ROOT: LazyLock<Root> =
    LazyLock::new(|| Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap());

const DIGEST: [u8; 32] = [7; 32];

fn launch() -> Launch {
    Launch::new(&[1; 4096], b"kernel", b"initrd", "quiet", 1).unwrap()
}

fn evidence(launch: &Launch) -> Evidence {
    let processor = Processor::launch(&ROOT, launch, DIGEST).unwrap();
    Evidence::Snp {
        report: Report::parse(&processor.report([9; 64], 0).unwrap()).unwrap(),
        certificates: CertificateTable::parse(processor.certificates())
            .unwrap()
            .into_certificates(),
    }
}

/// Trusts the development root.
fn believer() -> Trust {
    let root = ExtraRoot {
        name: "laptop".into(),
        ark_der: ROOT.ark().to_vec(),
        ask_der: ROOT.ask().to_vec(),
    };
    Trust { danger_extra_snp_roots: vec![root], ..Default::default() }
}

fn appraise(trust: &Trust, evidence: &Evidence, at: SystemTime) -> Appraisal {
    let measurement: String = measure(&launch()).iter().map(|byte| format!("{byte:02x}")).collect();
    let document = format!(
        r#"{{"version":1,"id":"guest","tee":"snp","measurements":["{measurement}"],
            "tcb_minimum":{{"genoa":{{"bootloader":10,"tee":0,"snp":23,"microcode":84}}}},
            "policy":{{"alias_check":true}}}}"#
    );
    let references = ReferenceValues::parse(document.as_bytes()).unwrap();
    let references = ReferenceSet::new(vec![references]);
    let expected = Expected {
        report_data: [9; 64],
        init_data: Some(&DIGEST),
        references: &references,
        now: at.into(),
    };
    Verifier::new(trust).unwrap().appraise(evidence, &expected, &Collateral::default())
}

#[test]
fn who_trusts_the_root_affirms_the_launch_and_is_told_of_the_emulation() {
    let appraisal = appraise(&believer(), &evidence(&launch()), SystemTime::now());
    assert!(appraisal.is_affirming(), "{:?}", appraisal.first_failure());
    assert!(appraisal.is_emulated());
}

#[test]
fn who_trusts_amd_alone_refuses_it() {
    let appraisal = appraise(&Trust::default(), &evidence(&launch()), SystemTime::now());
    assert!(!appraisal.is_affirming() && !appraisal.is_emulated());
}

#[test]
fn another_launch_a_debug_launch_and_an_expired_root_are_refused() {
    let failure = |evidence: &Evidence, at| {
        let appraisal = appraise(&believer(), evidence, at);
        assert!(!appraisal.is_affirming());
        let failed = appraisal.checks().iter().filter(|check| check.is_failed());
        failed.map(|check| check.code).collect::<Vec<_>>()
    };
    let now = SystemTime::now();
    let other = Launch::new(&[1; 4096], b"kernel", b"initrd.", "quiet", 1).unwrap();
    assert_eq!(failure(&evidence(&other), now), [CheckCode::SnpMeasurement]);
    assert_eq!(failure(&evidence(&launch().danger_debug()), now), [CheckCode::SnpDebug]);
    let year = Duration::from_secs(366 * 24 * 60 * 60);
    for at in [now - year, now + 8 * year] {
        assert!(!failure(&evidence(&launch()), at).is_empty());
    }
}
