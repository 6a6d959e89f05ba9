//! Real evidence from public repositories, where it is present.

use std::path::PathBuf;

use nacre_verifier::{
    Appraisal, Claims, Collateral, Evidence, Expected, Hex, ReferenceSet, ReferenceValues, Root,
    SnpPolicy, SnpReferences, TcbMinimum, Trust, Values, Verdict, Verifier,
};
use time::OffsetDateTime;
use time::macros::datetime;

/// A file of the vectors; none, and a line that says so, where they are not there.
fn vector(path: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("NACRE_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors")),
        PathBuf::from,
    );
    if !root.is_dir() {
        eprintln!("skipped: no vectors at {}", root.display());
        return None;
    }
    Some(std::fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}")))
}

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

fn snp(evidence: &Evidence) -> &nacre_evidence::snp::ReportFields {
    match evidence {
        Evidence::Snp { report, .. } => report.fields(),
        Evidence::Tdx { .. } => panic!("not SNP"),
    }
}

fn references(evidence: &Evidence) -> ReferenceSet {
    let fields = snp(evidence);
    let products =
        nacre_evidence::snp::Product::ALL.into_iter().map(|product| (product, fields.reported_tcb));
    let document = ReferenceValues {
        id: "vector".to_owned(),
        expires: None,
        note: None,
        values: Values::Snp(SnpReferences {
            measurements: vec![Hex(fields.measurement)],
            tcb_minimum: TcbMinimum::Products(products.collect()),
            policy: SnpPolicy::default(),
            id_key_digests: Vec::new(),
            author_key_digests: Vec::new(),
        }),
    };
    ReferenceSet::new(vec![document])
}

fn appraise(evidence: &Evidence, collateral: &Collateral, now: OffsetDateTime) -> Appraisal {
    let verifier = Verifier::new(&Trust::default()).expect("the vendors' roots");
    let references = references(evidence);
    let expected = Expected {
        report_data: *evidence.report_data(),
        init_data: None,
        references: &references,
        now,
    };
    verifier.appraise(evidence, &expected, collateral)
}

const SNP: [&str; 3] = ["snp/virtee-milan", "snp/trustee-genoa-v3-json", "snp/openanolis-turin-v5"];

#[test]
fn real_snp_evidence_is_affirmed() {
    for name in SNP {
        let Some(json) = vector(&format!("{name}/evidence_trustee.json")) else { return };
        let evidence = Evidence::read(&json).unwrap();
        let appraisal = appraise(&evidence, &Collateral::default(), NOW);
        assert_eq!(appraisal.first_failure(), None, "{name}");
        assert!(appraisal.is_affirming(), "{name}");
        assert_eq!(appraisal.root(), &Root::Vendor, "{name}");
        assert_eq!(appraisal.reference(), Some("vector"), "{name}");
        let Claims::Snp(claims) = appraisal.claims() else { panic!("not SNP") };
        assert!(claims.product.is_some(), "{name}");
        let passed =
            appraisal.checks().iter().filter(|check| check.verdict == Verdict::Passed).count();
        assert_eq!(passed, 21, "{name}: {:#?}", appraisal.checks());
    }
}
