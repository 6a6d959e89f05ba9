//! Real evidence from public repositories, where it is present.

use std::path::PathBuf;

use nacre_evidence::snp::Product;
use nacre_verifier::{
    Allowed, Appraisal, Check, CheckCode, Claims, Collateral, CollateralStore, Evidence, Expected,
    Hex, ReferenceSet, ReferenceValues, Root, SnpPolicy, SnpReferences, TcbMinimum, TdxCollateral,
    TdxReferences, Trust, Values, Verdict, Verifier,
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

/// A document that the evidence fits.
fn references(evidence: &Evidence) -> ReferenceSet {
    let values = match evidence {
        Evidence::Snp { report, .. } => {
            let fields = report.fields();
            let floors = Product::ALL.into_iter().map(|product| (product, fields.reported_tcb));
            Values::Snp(SnpReferences {
                measurements: vec![Hex(fields.measurement)],
                tcb_minimum: TcbMinimum::Products(floors.collect()),
                policy: SnpPolicy::default(),
                id_key_digests: Vec::new(),
                author_key_digests: Vec::new(),
            })
        }
        Evidence::Tdx { quote, .. } => Values::Tdx(TdxReferences {
            mr_td: vec![Hex(quote.body().mr_td)],
            rtmr: quote.body().rtmr.map(|register| Allowed::These(vec![Hex(register)])),
            tcb_status: vec!["UpToDate".to_owned()],
            advisories: Allowed::These(Vec::new()),
            debug: false,
        }),
    };
    let id = "vector".to_owned();
    ReferenceSet::new(vec![ReferenceValues { id, expires: None, note: None, values }])
}

fn appraise(evidence: &Evidence, collateral: &Collateral, now: OffsetDateTime) -> Appraisal {
    let config_id = match evidence {
        Evidence::Snp { .. } => None,
        Evidence::Tdx { quote, .. } => Some(quote.body().mr_config_id),
    };
    let init_data = config_id.as_ref().filter(|id| **id != [0; 48]).map(<[u8; 48]>::as_slice);
    let verifier = Verifier::new(&Trust::default()).expect("the vendors' roots");
    let references = references(evidence);
    let expected =
        Expected { report_data: *evidence.report_data(), init_data, references: &references, now };
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

fn failures(appraisal: &Appraisal) -> Vec<CheckCode> {
    let failed = appraisal.checks().iter().filter(|check| check.verdict == Verdict::Failed);
    failed.map(|check: &Check| check.code).collect()
}

fn tdx(name: &str, log: Option<&str>) -> Option<Evidence> {
    let quote = vector(&format!("tdx/{name}/quote.bin"))?;
    let mut evidence = Evidence::read(&quote).expect("a quote");
    if let (Evidence::Tdx { event_log, .. }, Some(log)) = (&mut evidence, log) {
        *event_log = vector(&format!("tdx/{name}/{log}"));
    }
    Some(evidence)
}

fn tdx_collateral() -> Collateral {
    let json = vector("tdx/dcap-qvl-v4/collateral.json").expect("beside the quote");
    let tdx = TdxCollateral::parse(&json).expect("collateral");
    Collateral { tdx: Some(tdx), ..Collateral::default() }
}

/// A day on which the vector's collateral was current.
const JUNE: OffsetDateTime = datetime!(2025-06-20 12:00 UTC);

#[test]
fn a_real_tdx_quote_is_affirmed() {
    let Some(evidence) = tdx("dcap-qvl-v4", None) else { return };
    let appraisal = appraise(&evidence, &tdx_collateral(), JUNE);
    assert_eq!(appraisal.first_failure(), None);
    assert!(appraisal.is_affirming());
    assert_eq!(appraisal.root(), &Root::Vendor);
    let Claims::Tdx(claims) = appraisal.claims() else { panic!("not TDX") };
    let platform = claims.platform.as_ref().unwrap();
    assert_eq!(platform.tcb_status, "UpToDate");
    assert_eq!(platform.fmspc.to_string(), "b0c06f000000");
    assert_eq!(platform.tcb_date, datetime!(2024-03-13 00:00 UTC));
}

#[test]
fn collateral_counts_only_while_it_is_current() {
    let Some(evidence) = tdx("dcap-qvl-v4", None) else { return };
    for now in [datetime!(2025-07-25 00:00 UTC), datetime!(2025-06-01 00:00 UTC), NOW] {
        let appraisal = appraise(&evidence, &tdx_collateral(), now);
        assert!(!appraisal.is_affirming(), "{now}");
        assert_eq!(appraisal.root(), &Root::Unproven, "{now}");
        assert_eq!(failures(&appraisal)[0], CheckCode::TdxCollateralPeriod, "{now}");
    }
}

#[test]
fn a_quote_needs_its_own_platforms_collateral() {
    let Some(evidence) = tdx("trustee-v5", None) else { return };
    let appraisal = appraise(&evidence, &tdx_collateral(), JUNE);
    assert_eq!(failures(&appraisal)[0], CheckCode::TdxPlatform);
    let none = appraise(&evidence, &Collateral::default(), JUNE);
    assert_eq!(failures(&none)[0], CheckCode::TdxCollateral);
    assert!(!none.is_affirming());
}

#[test]
fn a_real_event_log_passes_and_a_changed_one_does_not() {
    let Some(mut evidence) = tdx("go-tdx-cos113", Some("ccel_data.dat")) else { return };
    let verdict = |evidence: &Evidence| {
        let appraisal = appraise(evidence, &Collateral::default(), JUNE);
        let mut checks = appraisal.checks().iter();
        checks.find(|check| check.code == CheckCode::TdxEventLog).unwrap().verdict
    };
    assert_eq!(verdict(&evidence), Verdict::Passed);
    let Evidence::Tdx { event_log: Some(log), .. } = &mut evidence else { panic!("with a log") };
    // The last of the digests: the end of the events, less one event's data of any length.
    let middle = log.iter().rposition(|byte| *byte != 0xff).unwrap() / 2;
    log[middle - 64..middle].fill(0xa5);
    assert_eq!(verdict(&evidence), Verdict::Failed);
}

#[test]
fn a_real_certificate_is_kept_and_found_again() {
    for name in SNP {
        let Some(json) = vector(&format!("{name}/evidence_trustee.json")) else { return };
        let mut evidence = Evidence::read(&json).unwrap();
        let Evidence::Snp { certificates, .. } = &mut evidence else { panic!("not SNP") };
        let certificate = certificates.remove(0).data;
        let directory = tempfile::tempdir().unwrap();
        let store = CollateralStore::open(directory.path()).unwrap();
        let missing = store.missing(&evidence);
        let kept = missing.iter().filter(|key| store.put(key, &certificate).is_ok()).count();
        assert_eq!(kept, 1, "{name}");
        assert!(store.missing(&evidence).is_empty(), "{name}");
        let appraisal = appraise(&evidence, &store.collateral(&evidence), NOW);
        assert!(appraisal.is_affirming(), "{name}");
    }
    let Some(evidence) = tdx("dcap-qvl-v4", None) else { return };
    let directory = tempfile::tempdir().unwrap();
    let store = CollateralStore::open(directory.path()).unwrap();
    store.put_tdx(&vector("tdx/dcap-qvl-v4/collateral.json").unwrap()).unwrap();
    assert!(appraise(&evidence, &store.collateral(&evidence), JUNE).is_affirming());
}
