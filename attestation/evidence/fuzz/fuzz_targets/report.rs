//! Any bytes as an SNP report: read or refused, never a panic, and what was read gives the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::Evidence;
use nacre_evidence::snp::Report;

fuzz_target!(|bytes: &[u8]| {
    let _ = Evidence::read(bytes);
    let Ok(report) = Report::parse(bytes) else { return };
    assert_eq!(report.to_bytes().as_slice(), bytes);
    assert_eq!(report.fields().signed_bytes().expect("as parsed"), report.signed_bytes());
    let again = report.fields().attach_signature(report.signature()).expect("as parsed");
    assert_eq!(again, report);
    let evidence = Evidence::Snp { report, certificates: Vec::new() };
    assert_eq!(Evidence::from_wire("snp", &evidence.to_wire()), Ok(evidence));
});
