//! Any bytes as the certificate of a report's key: the appraisal lists all its checks, affirms nothing,
//! and never panics.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacre_evidence::snp::{CertType, Certificate, Report};
use nacre_verifier::{
    CheckCode, Collateral, Evidence, Expected, ReferenceSet, Root, Trust, Verifier,
};
use time::OffsetDateTime;

static VERIFIER: LazyLock<Verifier> =
    LazyLock::new(|| Verifier::new(&Trust::default()).expect("the vendors' roots"));

fuzz_target!(|bytes: &[u8]| {
    let mut report = [0; 0x4a0];
    report[0] = 3;
    report[0x188..0x18a].copy_from_slice(&[0x19, 0x11]);
    let report = Report::parse(&report).expect("well formed");
    let certificate = Certificate { cert_type: CertType::Vcek, data: bytes.to_vec() };
    let evidence = Evidence::Snp { report, certificates: vec![certificate] };
    let references = ReferenceSet::default();
    let expected = Expected {
        report_data: [0; 64],
        init_data: None,
        references: &references,
        now: OffsetDateTime::UNIX_EPOCH,
    };
    let appraisal = VERIFIER.appraise(&evidence, &expected, &Collateral::default());
    assert!(!appraisal.is_affirming() && *appraisal.root() == Root::Unproven);
    let snp = CheckCode::ALL.iter().filter(|code| code.as_str().starts_with("snp-"));
    assert!(appraisal.checks().iter().map(|check| &check.code).eq(snp));
});
