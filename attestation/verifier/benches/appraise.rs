//! What an appraisal costs: SNP evidence with its certificate, and with the certificate from the store
//! on disk; a TDX quote with its collateral. Roots are verified before, once for a verifier, and what
//! that costs too. The evidence is real and not part of the project: `NACRE_VECTORS` says where it is.
//!
//! `cargo bench -p nacre-verifier`

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on panics")]

use std::path::PathBuf;

use divan::Bencher;
use nacre_verifier::{
    Collateral, CollateralKey, CollateralStore, Evidence, Expected, Hex, ReferenceSet,
    ReferenceValues, SnpPolicy, SnpReferences, TcbMinimum, TdxCollateral, Trust, Values, Verifier,
};
use time::OffsetDateTime;
use time::macros::datetime;

fn main() {
    if root().is_dir() {
        divan::main();
    } else {
        println!("skipped: no vectors at {}", root().display());
    }
}

fn root() -> PathBuf {
    std::env::var_os("NACRE_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors")),
        PathBuf::from,
    )
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap()
}

fn verifier() -> Verifier {
    Verifier::new(&Trust::default()).unwrap()
}

const SNP: [&str; 3] = ["virtee-milan", "trustee-genoa-v3-json", "openanolis-turin-v5"];
const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

fn snp(name: &str) -> (Evidence, ReferenceSet) {
    let evidence = Evidence::read(&read(&format!("snp/{name}/evidence_trustee.json"))).unwrap();
    let Evidence::Snp { report, .. } = &evidence else { unreachable!() };
    let values = Values::Snp(SnpReferences {
        measurements: vec![Hex(report.fields().measurement)],
        tcb_minimum: TcbMinimum::Any,
        policy: SnpPolicy::default(),
        id_key_digests: Vec::new(),
        author_key_digests: Vec::new(),
    });
    let id = "bench".to_owned();
    (evidence, ReferenceSet::new(vec![ReferenceValues { id, expires: None, note: None, values }]))
}

#[divan::bench]
fn new_verifier() -> Verifier {
    verifier()
}

#[divan::bench(args = SNP)]
fn snp_with_certificate(bencher: Bencher, name: &str) {
    let (evidence, references) = snp(name);
    let (verifier, collateral) = (verifier(), Collateral::default());
    let report_data = *evidence.report_data();
    let expected = Expected { report_data, init_data: None, references: &references, now: NOW };
    bencher.bench_local(|| {
        let appraisal = verifier.appraise(&evidence, &expected, &collateral);
        assert!(appraisal.is_affirming());
        appraisal
    });
}

#[divan::bench(args = SNP)]
fn snp_with_certificate_from_the_store(bencher: Bencher, name: &str) {
    let (mut evidence, references) = snp(name);
    let Evidence::Snp { certificates, .. } = &mut evidence else { unreachable!() };
    let certificate = certificates.remove(0).data;
    let directory = tempfile::tempdir().unwrap();
    let store = CollateralStore::open(directory.path()).unwrap();
    let keys = CollateralKey::needed(&evidence);
    assert!(keys.iter().any(|key| store.put(key, &certificate).is_ok()));
    let verifier = verifier();
    let report_data = *evidence.report_data();
    let expected = Expected { report_data, init_data: None, references: &references, now: NOW };
    bencher.bench_local(|| {
        let appraisal = verifier.appraise(&evidence, &expected, &store.collateral(&evidence));
        assert!(appraisal.is_affirming());
        appraisal
    });
}

#[divan::bench]
fn tdx_with_collateral(bencher: Bencher) {
    let evidence = Evidence::read(&read("tdx/dcap-qvl-v4/quote.bin")).unwrap();
    let tdx = TdxCollateral::parse(&read("tdx/dcap-qvl-v4/collateral.json")).unwrap();
    let collateral = Collateral { tdx: Some(tdx), ..Collateral::default() };
    let (verifier, references) = (verifier(), ReferenceSet::default());
    let report_data = *evidence.report_data();
    let now = datetime!(2025-06-20 12:00 UTC);
    let expected = Expected { report_data, init_data: None, references: &references, now };
    bencher.bench_local(|| {
        let appraisal = verifier.appraise(&evidence, &expected, &collateral);
        assert!(*appraisal.root() == nacre_verifier::Root::Vendor);
        appraisal
    });
}
