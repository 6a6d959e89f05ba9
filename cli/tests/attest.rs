//! Runs `nacre attest appraise` on real evidence, where there is some.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Real evidence is not part of this tree: `$NACRE_VECTORS`, else `../shared/vectors` beside it.
fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let path = std::env::var_os("NACRE_VECTORS").map_or(beside, PathBuf::from);
    if !path.is_dir() {
        eprintln!("skipped: no vectors at {}", path.display());
        return None;
    }
    Some(path)
}

fn appraise(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nacre"))
        .args(["attest", "appraise"])
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn real_reports_are_affirming_as_far_as_they_are_compared() {
    let Some(vectors) = vectors() else { return };
    for name in ["virtee-milan", "trustee-genoa-v3-json", "openanolis-turin-v5"] {
        let directory = vectors.join("snp").join(name);
        let report = directory.join("report.bin").display().to_string();
        let vek = directory.join("vek.der").display().to_string();
        let at = ["--at", "2026-11-01T00:00:00Z"];
        let (code, said) = appraise(&[&[report.as_str(), "--certificate", &vek], &at[..]].concat());
        assert_eq!(code, 0, "{name}: {said}");
        assert!(said.contains("from the vendor's root") && said.contains("left out"), "{said}");

        let (code, said) =
            appraise(&[&report, "--certificate", &vek, "--at", "2050-01-01T00:00:00Z"]);
        assert!(code == 1 && said.contains("FAIL  snp-validity"), "{name}: {said}");
        let (code, said) = appraise(&[&report]);
        assert!(code == 1 && said.contains("FAIL  snp-certificate "), "{name}: {said}");
        let wrong = "00".repeat(64);
        let (code, said) = appraise(&[&report, "--certificate", &vek, "--report-data", &wrong]);
        assert!(code == 1 && said.contains("FAIL  snp-report-data"), "{name}: {said}");
        let (_, said) = appraise(&[&report, "--certificate", &vek, "--output", "json"]);
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(json["tee"], "snp");
    }
}

#[test]
fn a_real_quote_is_affirming_with_its_collateral_at_its_time() {
    let Some(vectors) = vectors() else { return };
    let at = |name: &str| vectors.join("tdx/dcap-qvl-v4").join(name).display().to_string();
    let (quote, collateral) = (at("quote.bin"), at("collateral.json"));
    let with = [quote.as_str(), "--tdx-collateral", &collateral];
    let (code, said) = appraise(&[&with[..], &["--at", "2025-06-20T12:00:00Z"]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("evidence of tdx, from the vendor's root"), "{said}");
    let (code, said) = appraise(&[&with[..], &["--at", "2035-01-01T00:00:00Z"]].concat());
    assert!(code == 1 && said.contains("FAIL  tdx-collateral-period"), "{said}");
    let (code, said) = appraise(&[&quote]);
    assert!(code == 1 && said.contains("FAIL  tdx-collateral "), "{said}");
}

#[test]
fn collateral_is_kept_for_the_machine_that_it_is_of() {
    let Some(vectors) = vectors() else { return };
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let add = |arguments: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command.args(["kbs", "collateral", "add", "--cache"]).arg(&cache).args(arguments);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    let at = |name: &str| vectors.join(name);
    let report = at("snp/virtee-milan/report.bin");
    let evidence = Path::new("--evidence");
    assert!(add(&[evidence, &report, &at("snp/virtee-milan/vek.der")]).0);
    assert!(add(&[&at("tdx/dcap-qvl-v4/collateral.json")]).0);
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);
    let (kept, said) = add(&[evidence, &report, &at("snp/trustee-genoa-v3-json/vek.der")]);
    assert!(!kept && said.contains("another chip"), "{said}");
    let (kept, said) = add(&[&at("snp/virtee-milan/vek.der")]);
    assert!(!kept && said.contains("--evidence"), "{said}");
}

#[test]
fn what_is_no_evidence_is_said_so() {
    let (code, said) = appraise(&[concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    assert!(code == 2 && said.contains("Cargo.toml"), "{said}");
    let (code, said) = appraise(&["Cargo.toml", "--report-data", "00"]);
    assert!(code == 2 && said.contains("128 hexadecimal digits"), "{said}");
}
