//! Every check of SNP evidence, with evidence of a hierarchy of our own that fails this check and no
//! other.

mod support;

use nacre_evidence::snp::{Certificate, GuestPolicy, KeyInfo, PlatformInfo, Product, Report, Tcb};
use nacre_verifier::{
    Appraisal, CheckCode, Collateral, Evidence, Expected, ExtraRoot, ReferenceSet, ReferenceValues,
    Root, Trust, TrustError, Verdict, Verifier,
};
use serde_json::{Value, json};
use support::{Key, NOW, Template, brought, crl, fields, integer, sign, tcb};
use time::{Duration, OffsetDateTime};

/// Everything that goes into an appraisal; as made, it is affirmed.
struct World {
    fields: nacre_evidence::snp::ReportFields,
    vek: Template,
    trust: Trust,
    document: Value,
    report_data: [u8; 64],
    init_data: Option<Vec<u8>>,
    now: OffsetDateTime,
    collateral: Collateral,
    /// Changes what the firmware has signed.
    on_the_way: fn(Report) -> Report,
    certificates: fn(&Template) -> Vec<Certificate>,
}

impl World {
    fn new(product: Product) -> World {
        let fields = fields(product);
        let tcb = tcb(product);
        World {
            vek: support::vcek(product, &tcb),
            trust: trust(&support::ark(), &support::ask()),
            document: json!({
                "version": 1,
                "id": "test",
                "tee": "snp",
                "measurements": [hex::encode([0; 48]), hex::encode(fields.measurement)],
                "tcb_minimum": { product.name().to_lowercase(): tcb },
            }),
            report_data: fields.report_data,
            init_data: None,
            now: NOW,
            collateral: Collateral::default(),
            on_the_way: |report| report,
            certificates: |vek| vec![brought(vek)],
            fields,
        }
    }

    fn appraise(&self) -> Appraisal {
        let verifier = Verifier::new(&self.trust).expect("roots");
        let documents = match &self.document {
            Value::Null => Vec::new(),
            Value::Array(list) => list.iter().map(document).collect(),
            one => vec![document(one)],
        };
        let references = ReferenceSet::new(documents);
        let expected = Expected {
            report_data: self.report_data,
            init_data: self.init_data.as_deref(),
            references: &references,
            now: self.now,
        };
        let report = (self.on_the_way)(sign(&self.fields));
        let certificates = (self.certificates)(&self.vek);
        let evidence = Evidence::Snp { report, certificates };
        verifier.appraise(&evidence, &expected, &self.collateral)
    }
}

fn document(json: &Value) -> ReferenceValues {
    ReferenceValues::parse(json.to_string().as_bytes()).expect("a document")
}

fn trust(ark: &Template, ask: &Template) -> Trust {
    let root = ExtraRoot { name: "test".to_owned(), ark_der: ark.der(), ask_der: ask.der() };
    Trust { danger_extra_snp_roots: vec![root], ..Trust::default() }
}

fn failures(appraisal: &Appraisal) -> Vec<CheckCode> {
    let failed = appraisal.checks().iter().filter(|check| check.verdict == Verdict::Failed);
    failed.map(|check| check.code).collect()
}

fn affirmed(world: &World) {
    let appraisal = world.appraise();
    assert_eq!(appraisal.first_failure(), None);
    assert!(appraisal.is_affirming());
    assert_eq!(appraisal.root(), &Root::Extra { name: "test".to_owned() });
}

/// Exactly these checks fail after the change.
#[track_caller]
fn fails_all(codes: &[CheckCode], change: impl FnOnce(&mut World)) -> Appraisal {
    let mut world = World::new(Product::Genoa);
    change(&mut world);
    let appraisal = world.appraise();
    assert_eq!(failures(&appraisal), codes, "{:#?}", appraisal.checks());
    assert!(!appraisal.is_affirming());
    for check in appraisal.checks() {
        assert_eq!(check.fix.is_empty(), check.verdict != Verdict::Failed, "{check:?}");
    }
    appraisal
}

#[track_caller]
fn fails(code: CheckCode, change: impl FnOnce(&mut World)) {
    fails_all(&[code], change);
}

#[test]
fn evidence_of_each_product_is_affirmed_and_called_emulated() {
    for product in Product::ALL {
        let world = World::new(product);
        affirmed(&world);
        assert!(world.appraise().is_emulated());
        let snp = CheckCode::ALL.iter().filter(|code| code.to_string().starts_with("snp-"));
        let listed = world.appraise();
        assert!(listed.checks().iter().map(|check| &check.code).eq(snp), "each check once");
    }
}

/// Behind a chain that is not verified, these cannot be checked.
const WITHOUT_CHAIN: [CheckCode; 4] =
    [CheckCode::SnpChain, CheckCode::SnpValidity, CheckCode::SnpRevocation, CheckCode::SnpProduct];

#[test]
fn a_root_that_is_not_configured_proves_nothing() {
    let appraisal = fails_all(&WITHOUT_CHAIN, |world| world.trust = Trust::default());
    assert_eq!(appraisal.root(), &Root::Unproven);
    let chain = appraisal.first_failure().unwrap();
    assert!(chain.found.contains("no trusted root vouches for"), "{}", chain.found);
}

#[test]
fn the_chain_is_verified() {
    // Signed by another key under the same name.
    fails_all(&WITHOUT_CHAIN, |world| world.vek.signer = Key::Ark);
    // Another issuer than the one whose key signed.
    fails_all(&WITHOUT_CHAIN, |world| world.vek.issuer = "CN=SEV-Other".to_owned());
    // An authority key identifier that is not the issuer's.
    fails_all(&WITHOUT_CHAIN, |world| {
        world.vek.extensions.push(support::authority_key(b"another"));
    });
    // With the right identifier, it passes.
    let mut world = World::new(Product::Genoa);
    world.vek.extensions.push(support::authority_key(b"ask"));
    affirmed(&world);
}

#[test]
fn roots_are_verified_before_they_are_used() {
    let refused = |ark: &Template, ask: &Template| {
        let problem = Verifier::new(&trust(ark, ask)).map(|_| ()).unwrap_err();
        assert!(matches!(problem, TrustError::Root { .. }), "{problem}");
        problem.to_string()
    };
    let (ark, ask) = (support::ark(), support::ask());
    let mut other = ask.clone();
    other.signer = Key::Ask;
    assert!(refused(&ark, &other).contains("signature is not the issuer's"));
    let mut not_an_authority = ask.clone();
    not_an_authority.set("2.5.29.19", None);
    assert!(refused(&ark, &not_an_authority).contains("may not sign certificates"));
    let mut no_root = ark.clone();
    no_root.set("2.5.29.19", None);
    assert!(refused(&no_root, &ask).contains("may not sign certificates"));
    let mut no_signing = ark.clone();
    // Digital signatures only.
    no_signing.extensions.push(support::extension("2.5.29.15", true, &[3, 2, 7, 0x80]));
    assert!(refused(&no_signing, &ask).contains("may not sign certificates"));
    let mut short = ark.clone();
    short.set("2.5.29.19", None);
    short.extensions.push(support::authority(true, Some(0)));
    assert!(refused(&short, &ask).contains("authorities below it"));
    let mut critical = ark.clone();
    critical.extensions.push(support::extension("1.2.3.4", true, &[5, 0]));
    assert!(refused(&critical, &ask).contains("critical extension 1.2.3.4"));
    let mut twice = ark.clone();
    twice.extensions.push(support::authority(true, None));
    assert!(refused(&twice, &ask).contains("is there twice"));
    assert!(refused(&ask, &ask).contains("issued by"));
}

#[test]
fn a_certificate_is_needed_and_must_be_a_report_keys() {
    const NONE: [CheckCode; 9] = [
        CheckCode::SnpCertificate,
        CheckCode::SnpChain,
        CheckCode::SnpValidity,
        CheckCode::SnpRevocation,
        CheckCode::SnpSigningKey,
        CheckCode::SnpProduct,
        CheckCode::SnpChipId,
        CheckCode::SnpCertificateTcb,
        CheckCode::SnpSignature,
    ];
    let found = |change: &dyn Fn(&mut World)| {
        let appraisal = fails_all(&NONE, change);
        appraisal.first_failure().unwrap().found.clone()
    };
    assert!(found(&|world| world.certificates = |_| Vec::new()).contains("no certificate"));
    let unusable = found(&|world| {
        world.certificates = |vek| {
            let mut certificate = brought(vek);
            certificate.data.truncate(300);
            vec![certificate]
        };
    });
    assert!(unusable.contains("not DER"), "{unusable}");
    for (oid, value, words) in [
        ("1.3.6.1.4.1.3704.1.2", None, "productName1 is missing"),
        ("1.3.6.1.4.1.3704.1.2", Some(vec![0x16, 3, b'E', b'P', b'Y']), "product \"EPY\""),
        ("1.3.6.1.4.1.3704.1.3.1", None, "blSPL is missing"),
        ("1.3.6.1.4.1.3704.1.3.8", Some(vec![2, 2, 1, 0]), "ucodeSPL is not encoded"),
        ("1.3.6.1.4.1.3704.1.3.4", Some(integer(1)), "reserved parts"),
        ("1.3.6.1.4.1.3704.1.3.9", Some(integer(1)), "have none of the extension fmcSPL"),
        ("1.3.6.1.4.1.3704.1.4", Some(vec![1; 8]), "hwID is not encoded"),
    ] {
        let found = found(&|world| world.vek.set(oid, value.clone()));
        assert!(found.contains(words), "{found}");
    }
    let authority = found(&|world| world.vek.extensions.push(support::authority(true, None)));
    assert!(authority.contains("an authority's"), "{authority}");
    let key = found(&|world| world.vek.key = support::ask().key);
    assert!(key.contains("not of P-384"), "{key}");
}

#[test]
fn the_certificate_may_come_from_a_cache() {
    let mut world = World::new(Product::Genoa);
    // The host brings one for firmware that is gone, the cache has the right one.
    let mut old = tcb(Product::Genoa);
    old.snp -= 1;
    world.collateral.snp_certificates =
        vec![b"garbage".to_vec(), world.vek.der(), support::vcek(Product::Genoa, &old).der()];
    world.certificates = |_| {
        let mut old = tcb(Product::Genoa);
        old.snp -= 1;
        vec![brought(&support::vcek(Product::Genoa, &old))]
    };
    affirmed(&world);
    world.certificates = |_| Vec::new();
    affirmed(&world);
}

#[test]
fn certificates_count_only_while_they_are_valid() {
    let year = Duration::days(365);
    fails(CheckCode::SnpValidity, |world| world.vek.to = NOW - Duration::seconds(1));
    fails(CheckCode::SnpValidity, |world| world.vek.from = NOW + Duration::seconds(1));
    fails(CheckCode::SnpValidity, |world| world.now = NOW + year * 5);
    for which in 0..2 {
        fails(CheckCode::SnpValidity, |world| {
            let (mut ark, mut ask) = (support::ark(), support::ask());
            [&mut ark, &mut ask][which].to = NOW - year;
            world.trust = trust(&ark, &ask);
        });
    }
}

#[test]
fn revoked_certificates_are_refused() {
    let (yesterday, tomorrow) = (NOW - Duration::days(1), NOW + Duration::days(1));
    let list = |signer, serials: &[u8]| crl(signer, serials, yesterday, tomorrow);
    fails(CheckCode::SnpRevocation, |world| world.trust.snp_crls = vec![list(Key::Ark, &[9, 2])]);
    fails(CheckCode::SnpRevocation, |world| world.trust.snp_crls = vec![list(Key::Ark, &[1])]);
    fails(CheckCode::SnpRevocation, |world| {
        world.trust.snp_crls = vec![list(Key::Ark, &[]), list(Key::Ask, &[3])];
    });
    // An old list still revokes; a list that is not current does not clear.
    fails(CheckCode::SnpRevocation, |world| {
        let old = crl(Key::Ark, &[2], yesterday - Duration::days(9), yesterday);
        world.trust.snp_crls = vec![old, list(Key::Ark, &[])];
    });
    for (from, to) in [(tomorrow, tomorrow + Duration::days(9)), (yesterday, yesterday)] {
        fails(CheckCode::SnpRevocation, |world| {
            world.trust.snp_crls = vec![crl(Key::Ark, &[], from, to)];
        });
    }
    fails(CheckCode::SnpRevocation, |world| world.trust.snp_crl_required = true);

    let mut world = World::new(Product::Genoa);
    world.trust.snp_crl_required = true;
    // Other serial numbers, and the ASK's number on the list of an issuer that did not issue it.
    world.trust.snp_crls = vec![list(Key::Ark, &[3, 4]), list(Key::Ask, &[2])];
    affirmed(&world);
}

#[test]
fn revocation_lists_must_be_signed_by_a_root() {
    let refused = |crl: Vec<u8>| {
        let mut trust = trust(&support::ark(), &support::ask());
        trust.snp_crls = vec![crl];
        let problem = Verifier::new(&trust).map(|_| ()).unwrap_err();
        assert!(matches!(problem, TrustError::Crl { index: 0, .. }), "{problem}");
    };
    let good = crl(Key::Ark, &[2], NOW, NOW);
    refused(good[..good.len() - 1].to_vec());
    let mut changed = good.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    refused(changed);
    let trust = Trust { snp_crls: vec![good], ..Trust::default() };
    assert!(Verifier::new(&trust).is_err(), "nobody trusts its issuer");
}

#[test]
fn the_report_must_name_the_key_that_signed() {
    // VLEK, none, reserved; VCEK with a masked chip key.
    for info in [0b100, 0b11100, 0b1000, 0b10] {
        fails(CheckCode::SnpSigningKey, |world| world.fields.key_info = KeyInfo(info));
    }
    fails(CheckCode::SnpSigningKey, |world| world.vek.set("1.3.6.1.4.1.3704.1.4", None));
    // A loaded key has no chip, and the report may hide its own.
    let mut world = World::new(Product::Genoa);
    world.vek.set("1.3.6.1.4.1.3704.1.4", None);
    world.fields.key_info = KeyInfo(0b100);
    world.fields.chip_id = [0; 64];
    affirmed(&world);
}

#[test]
fn product_chip_and_tcb_must_be_the_certificates() {
    fails(CheckCode::SnpProduct, |world| {
        let milan = support::vcek(Product::Milan, &tcb(Product::Milan));
        world.vek = milan;
    });
    fails(CheckCode::SnpChipId, |world| world.fields.chip_id[63] ^= 1);
    fails(CheckCode::SnpChipId, |world| world.fields.chip_id = [0; 64]);
    let change: [fn(&mut Tcb); 4] = [
        |tcb| tcb.bootloader += 1,
        |tcb| tcb.tee += 1,
        |tcb| tcb.snp += 1,
        |tcb| tcb.microcode += 1,
    ];
    for change in change {
        fails(CheckCode::SnpCertificateTcb, |world| {
            change(&mut world.fields.reported_tcb);
            change(&mut world.fields.current_tcb);
        });
    }
}

#[test]
fn turins_chip_id_has_eight_bytes_and_its_tcb_an_fmc() {
    let mut world = World::new(Product::Turin);
    world.fields.chip_id[8] = 1;
    assert_eq!(failures(&world.appraise()), [CheckCode::SnpChipId]);
    let mut world = World::new(Product::Turin);
    world.fields.chip_id[7] ^= 1;
    assert_eq!(failures(&world.appraise()), [CheckCode::SnpChipId]);
    let mut world = World::new(Product::Turin);
    world.vek.set("1.3.6.1.4.1.3704.1.3.9", Some(integer(2)));
    assert_eq!(failures(&world.appraise()), [CheckCode::SnpCertificateTcb]);
    // Wrapped into an octet string, as DER asks.
    let mut world = World::new(Product::Turin);
    let mut wrapped = vec![4, 8];
    wrapped.extend_from_slice(&support::CHIP[..8]);
    world.vek.set("1.3.6.1.4.1.3704.1.4", Some(wrapped));
    affirmed(&world);
}

#[test]
fn a_changed_report_is_refused() {
    fails(CheckCode::SnpSignature, |world| {
        world.on_the_way = |report| {
            let mut bytes = report.to_bytes();
            bytes[0x140] ^= 1; // the report's id, which nothing else looks at
            Report::parse(&bytes).expect("well formed")
        };
    });
    // The numbers must fit the curve: no bytes beyond 48, no zeros.
    for offset in [0x2a0 + 48, 0x2a0 + 72 + 71] {
        let world = World::new(Product::Genoa);
        let mut bytes = sign(&world.fields).to_bytes();
        bytes[offset] = 1;
        let evidence = Evidence::Snp {
            report: Report::parse(&bytes).expect("well formed"),
            certificates: vec![brought(&world.vek)],
        };
        let references = ReferenceSet::new(vec![document(&world.document)]);
        let expected = Expected {
            report_data: world.report_data,
            init_data: None,
            references: &references,
            now: NOW,
        };
        let verifier = Verifier::new(&world.trust).expect("roots");
        let appraisal = verifier.appraise(&evidence, &expected, &Collateral::default());
        assert_eq!(failures(&appraisal), [CheckCode::SnpSignature]);
        assert_eq!(appraisal.root(), &Root::Unproven);
    }
    fails(CheckCode::SnpSignature, |world| {
        world.on_the_way = |report| {
            let mut bytes = report.to_bytes();
            bytes[0x2a0..].fill(0);
            Report::parse(&bytes).expect("well formed")
        };
    });
}

#[test]
fn the_report_must_be_of_a_known_form() {
    fails(CheckCode::SnpReport, |world| world.fields.signature_algorithm = 2);
    fails(CheckCode::SnpReport, |world| world.fields.policy.0 |= 1 << 26);
    fails(CheckCode::SnpReport, |world| world.fields.policy.0 &= !(1 << 17));
    fails(CheckCode::SnpReport, |world| world.fields.key_info = KeyInfo(1 << 5));
}

#[test]
fn the_report_must_be_of_this_session_and_initdata() {
    fails(CheckCode::SnpVmpl, |world| world.fields.vmpl = 1);
    fails(CheckCode::SnpReportData, |world| world.report_data[63] ^= 1);
    fails(CheckCode::SnpHostData, |world| world.init_data = Some(vec![1; 32]));
    // A guest that leaves out the initdata it was launched with.
    fails(CheckCode::SnpHostData, |world| world.fields.host_data = [1; 32]);
    fails(CheckCode::SnpHostData, |world| world.init_data = Some(Vec::new()));
    for length in [32, 48, 64] {
        let mut world = World::new(Product::Genoa);
        let digest: Vec<u8> = (1..=length).collect();
        world.fields.host_data.copy_from_slice(&digest[..32]);
        world.init_data = Some(digest);
        affirmed(&world);
    }
}

#[test]
fn no_tcb_may_be_newer_than_the_current_one() {
    fails(CheckCode::SnpTcbOrder, |world| world.fields.committed_tcb.microcode += 1);
    fails(CheckCode::SnpTcbOrder, |world| world.fields.launch_tcb.snp += 1);
    fails(CheckCode::SnpTcbOrder, |world| world.fields.current_tcb.bootloader -= 1);
    fails(CheckCode::SnpTcbOrder, |world| world.fields.current_version.build -= 1);
}

/// What the checks of reference values are, when there are none to compare with.
const WITHOUT_REFERENCES: [CheckCode; 12] = [
    CheckCode::SnpReferences,
    CheckCode::SnpMeasurement,
    CheckCode::SnpTcbMinimum,
    CheckCode::SnpMigrationAgent,
    CheckCode::SnpSmt,
    CheckCode::SnpSingleSocket,
    CheckCode::SnpCxl,
    CheckCode::SnpCiphertextHiding,
    CheckCode::SnpAliasCheck,
    CheckCode::SnpAbi,
    CheckCode::SnpIdKey,
    CheckCode::SnpAuthorKey,
];

#[test]
fn without_reference_values_nothing_is_affirmed() {
    let found = |document: Value| {
        let appraisal = fails_all(&WITHOUT_REFERENCES, |world| world.document = document);
        assert_eq!(appraisal.reference(), None);
        appraisal.first_failure().unwrap().found.clone()
    };
    assert_eq!(found(Value::Null), "none are registered");
    let mut expired = World::new(Product::Genoa).document;
    expired["expires"] = json!("2026-11-22T12:00:00Z");
    assert_eq!(found(expired), "1, all expired");
    let any = json!("any");
    let tdx = json!({
        "version": 1, "id": "td", "tee": "tdx", "mr_td": [hex::encode([0; 48])],
        "rtmr0": any, "rtmr1": any, "rtmr2": any, "rtmr3": any,
    });
    assert_eq!(found(tdx), "none are registered");
}

#[test]
fn the_guest_must_fit_the_reference_values() {
    fails(CheckCode::SnpMeasurement, |world| world.fields.measurement[0] ^= 1);
    for part in ["bootloader", "tee", "snp", "microcode"] {
        fails(CheckCode::SnpTcbMinimum, |world| {
            let number = &mut world.document["tcb_minimum"]["genoa"][part];
            *number = json!(number.as_u64().unwrap() + 1);
        });
    }
    // Launched before the update.
    fails(CheckCode::SnpTcbMinimum, |world| world.fields.launch_tcb.snp -= 1);
    fails(CheckCode::SnpTcbMinimum, |world| world.document["tcb_minimum"] = json!({}));
    let policy = |bit: u32| move |world: &mut World| world.fields.policy.0 |= 1 << bit;
    fails(CheckCode::SnpMigrationAgent, policy(18));
    fails(CheckCode::SnpDebug, policy(19));
    fails(CheckCode::SnpCxl, policy(21));
    let asks = |member: &'static str, value: Value| {
        move |world: &mut World| world.document["policy"] = json!({ member: value })
    };
    fails(CheckCode::SnpSmt, asks("smt", json!(false)));
    fails(CheckCode::SnpSingleSocket, asks("single_socket", json!(true)));
    fails(CheckCode::SnpCiphertextHiding, asks("ciphertext_hiding", json!(true)));
    fails(CheckCode::SnpAliasCheck, asks("alias_check", json!(true)));
    fails(CheckCode::SnpAbi, asks("minimum_abi", json!([0, 32])));
    fails(CheckCode::SnpAbi, asks("minimum_abi", json!([1, 0])));
    let keys = json!([hex::encode([5; 48])]);
    fails(CheckCode::SnpIdKey, |world| world.document["id_key_digests"] = keys.clone());
    fails(CheckCode::SnpAuthorKey, |world| world.document["author_key_digests"] = keys.clone());
}

#[test]
fn reference_values_can_accept_and_ask_for_more() {
    let mut world = World::new(Product::Genoa);
    world.document["tcb_minimum"] = json!("any");
    world.document["id_key_digests"] = json!([hex::encode([5; 48])]);
    world.document["author_key_digests"] = json!([hex::encode([6; 48])]);
    world.document["policy"] = json!({
        "debug": true, "smt": true, "migration_agent": true, "single_socket": true, "cxl": true,
        "ciphertext_hiding": true, "alias_check": true, "minimum_abi": [0, 31],
    });
    world.fields.policy = GuestPolicy(0x3_001f | 0b1_0011_1100 << 16);
    world.fields.platform_info = PlatformInfo(0b11_0000);
    world.fields.id_key_digest = [5; 48];
    world.fields.author_key_digest = [6; 48];
    affirmed(&world);
    // The policy's own bit is not enough while the platform has it off.
    world.fields.platform_info = PlatformInfo(0b10_0000);
    assert_eq!(failures(&world.appraise()), [CheckCode::SnpCiphertextHiding]);
}

#[test]
fn evidence_must_fit_one_document_as_a_whole() {
    let mut world = World::new(Product::Genoa);
    let mut debug = world.document.clone();
    debug["id"] = json!("debug-of-another-guest");
    debug["measurements"] = json!([hex::encode([0x11; 48])]);
    debug["policy"] = json!({ "debug": true });
    let good = world.document.clone();
    world.document = json!([debug, good]);
    affirmed(&world);
    assert_eq!(world.appraise().reference(), Some("test"));
    world.fields.policy.0 |= 1 << 19;
    let appraisal = world.appraise();
    assert_eq!(failures(&appraisal), [CheckCode::SnpDebug], "told against the closest document");
    assert_eq!(appraisal.reference(), Some("test"));
}

#[test]
fn an_appraisal_prints_as_json() {
    let appraisal = World::new(Product::Genoa).appraise();
    let json = serde_json::to_value(&appraisal).unwrap();
    assert_eq!(json["tee"], "snp");
    assert_eq!(json["affirming"], true);
    assert_eq!(json["root"], json!({ "kind": "extra", "name": "test" }));
    assert_eq!(json["claims"]["snp"]["product"], "genoa");
    assert_eq!(json["claims"]["snp"]["measurement"], hex::encode([0x3e; 48]));
    assert_eq!(json["checks"][0]["code"], "snp-report");
    assert_eq!(json["checks"][0]["verdict"], "passed");
}
