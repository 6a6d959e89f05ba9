//! Real evidence from public repositories, where it is present: parsed, written again byte for byte,
//! and compared with what the `sev` crate reads from the same bytes.

use std::path::PathBuf;

use nacre_evidence::snp::{CertType, Product, Report, ReportVersion, SigningKey};
use nacre_evidence::tdx::{EventLog, Quote, QuoteVersion};
use nacre_evidence::{Evidence, Tee};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;

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

const SNP: [(&str, ReportVersion, Option<Product>); 3] = [
    ("snp/virtee-milan", ReportVersion::V2, None),
    ("snp/trustee-genoa-v3-json", ReportVersion::V3, Some(Product::Genoa)),
    ("snp/openanolis-turin-v5", ReportVersion::V5, Some(Product::Turin)),
];

#[test]
fn snp_reports_are_read_as_the_peer_reads_them() {
    for (name, version, product) in SNP {
        let Some(bytes) = vector(&format!("{name}/report.bin")) else { return };
        let report = Report::parse(&bytes).unwrap();
        let peer = AttestationReport::from_bytes(&bytes).unwrap();
        assert_eq!(report.to_bytes().as_slice(), bytes, "{name}");
        let fields = report.fields();
        assert_eq!((fields.version, fields.product()), (version, product), "{name}");
        assert_eq!(fields.version.number(), peer.version);
        assert_eq!(fields.guest_svn, peer.guest_svn);
        assert_eq!(fields.policy.0, u64::from(peer.policy));
        assert_eq!(fields.family_id, peer.family_id);
        assert_eq!(fields.image_id, peer.image_id);
        assert_eq!(fields.vmpl, peer.vmpl);
        assert_eq!(fields.signature_algorithm, peer.sig_algo);
        assert_eq!(fields.platform_info.0, u64::from(peer.plat_info));
        assert_eq!(fields.key_info.0, u32::from(peer.key_info));
        assert_eq!(fields.key_info.signing_key(), SigningKey::Vcek);
        assert_eq!(fields.report_data, peer.report_data);
        assert_eq!(fields.measurement, peer.measurement);
        assert_eq!(fields.host_data, peer.host_data);
        assert_eq!(fields.id_key_digest, peer.id_key_digest);
        assert_eq!(fields.author_key_digest, peer.author_key_digest);
        assert_eq!(fields.report_id, peer.report_id);
        assert_eq!(fields.report_id_ma, peer.report_id_ma);
        assert_eq!(fields.chip_id, peer.chip_id);
        assert_eq!(fields.cpuid.map(|cpuid| cpuid.family), peer.cpuid_fam_id);
        assert_eq!(fields.cpuid.map(|cpuid| cpuid.model), peer.cpuid_mod_id);
        assert_eq!(fields.cpuid.map(|cpuid| cpuid.stepping), peer.cpuid_step);
        assert_eq!(fields.mitigations.map(|vectors| vectors.launch), peer.launch_mit_vector);
        assert_eq!(fields.mitigations.map(|vectors| vectors.current), peer.current_mit_vector);
        for (tcb, theirs) in [
            (fields.current_tcb, peer.current_tcb),
            (fields.reported_tcb, peer.reported_tcb),
            (fields.committed_tcb, peer.committed_tcb),
            (fields.launch_tcb, peer.launch_tcb),
        ] {
            assert_eq!(
                (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode),
                (theirs.fmc, theirs.bootloader, theirs.tee, theirs.snp, theirs.microcode)
            );
        }
        assert_eq!(fields.current_version.to_string(), peer.current.to_string());
        assert_eq!(fields.committed_version.to_string(), peer.committed.to_string());
        assert_eq!(&report.signature().r, peer.signature.r());
        assert_eq!(&report.signature().s, peer.signature.s());
        assert_eq!(fields.signed_bytes().unwrap(), &bytes[..0x2a0]);
        assert_eq!(fields.attach_signature(report.signature()).unwrap(), report);
    }
}

#[test]
fn the_protocols_form_of_snp_evidence_is_the_peers() {
    for (name, ..) in SNP {
        let Some(json) = vector(&format!("{name}/evidence_trustee.json")) else { return };
        let evidence = Evidence::read(&json).unwrap();
        let Evidence::Snp { report, certificates } = &evidence else { panic!("{name}: not SNP") };
        assert_eq!(evidence.tee(), Tee::Snp);
        assert_eq!(Some(report.to_bytes().to_vec()), vector(&format!("{name}/report.bin")));
        let [vek] = certificates.as_slice() else { panic!("{name}: not one certificate") };
        assert_eq!(vek.cert_type, CertType::Vcek);
        assert_eq!(Some(&vek.data), vector(&format!("{name}/vek.der")).as_ref());
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(evidence.to_wire(), value, "{name}");
        assert_eq!(Evidence::from_wire("snp", &value).unwrap(), evidence);
        assert_eq!(
            Evidence::read(&report.to_bytes()).unwrap().report_data(),
            evidence.report_data()
        );
    }
    // Written by an older library, without the members of later versions.
    let Some(json) = vector("snp/trustee-genoa-v3-json/evidence.json") else { return };
    let report = vector("snp/trustee-genoa-v3-json/report.bin").unwrap();
    let Evidence::Snp { report: parsed, .. } = Evidence::read(&json).unwrap() else { panic!() };
    assert_eq!(parsed.to_bytes().as_slice(), report);
}

#[test]
fn tdx_quotes_are_read() {
    for (name, version, td_1_5) in [
        ("tdx/dcap-qvl-v4", QuoteVersion::V4, false),
        ("tdx/go-tdx-cos113", QuoteVersion::V4, false),
        ("tdx/trustee-v5", QuoteVersion::V5, true),
    ] {
        let Some(bytes) = vector(&format!("{name}/quote.bin")) else { return };
        let quote = Quote::parse(&bytes).unwrap();
        assert!(bytes.starts_with(quote.as_bytes()), "{name}");
        assert!(bytes[quote.as_bytes().len()..].iter().all(|byte| *byte == 0), "{name}");
        assert_eq!(quote.header().version, version, "{name}");
        assert_eq!(quote.header().attestation_key_type, 2, "{name}");
        assert_eq!(quote.body().td_1_5.is_some(), td_1_5, "{name}");
        assert!(!quote.body().td_attributes.debug(), "{name}");
        let certification = &quote.signature_data().certification_data;
        assert_eq!(certification.kind, 5, "{name}");
        assert!(certification.data.starts_with(b"-----BEGIN CERTIFICATE-----"), "{name}");
        let evidence = Evidence::read(&bytes).unwrap();
        let value = evidence.to_wire();
        assert_eq!(Evidence::from_wire("tdx", &value).unwrap(), evidence);
        assert_eq!(Evidence::read(value.to_string().as_bytes()).unwrap(), evidence);
    }
}

#[test]
fn a_real_event_log_replays_to_the_quotes_registers() {
    let Some(log) = vector("tdx/go-tdx-cos113/ccel_data.dat") else { return };
    let quote = Quote::parse(&vector("tdx/go-tdx-cos113/quote.bin").unwrap()).unwrap();
    let log = EventLog::parse(&log).unwrap();
    assert_eq!(log.events().len(), 43, "without the one that describes the log");
    assert_eq!(log.replay(), quote.body().rtmr);
}
