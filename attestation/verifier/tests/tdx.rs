//! Every check of TDX evidence, with quotes and collateral of a hierarchy of our own in the form of
//! Intel's.

use std::sync::LazyLock;

use nacre_evidence::tdx::Quote;
use nacre_verifier::{
    Appraisal, CheckCode, Claims, Collateral, Evidence, Expected, ExtraTdxRoot, ReferenceSet,
    ReferenceValues, Root, TdxCollateral, Trust, Verdict, Verifier,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CustomExtension, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);
const FMSPC: [u8; 6] = [0x50, 0x80, 0x6f, 0, 0, 0];
const PCK_SERIAL: u8 = 9;

struct Keys {
    root: KeyPair,
    platform_ca: KeyPair,
    pck: KeyPair,
    tcb_signer: KeyPair,
    attestation: KeyPair,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let key = || KeyPair::generate().expect("a key");
    Keys { root: key(), platform_ca: key(), pck: key(), tcb_signer: key(), attestation: key() }
});

fn sign(key: &KeyPair, content: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, &key.serialize_der(), &random).expect("a key");
    key.sign(&random, content).expect("a signature").as_ref().to_vec()
}

/// x and y of a public key.
fn point(key: &KeyPair) -> Vec<u8> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, &key.serialize_der(), &random).expect("a key");
    key.public_key().as_ref()[1..].to_vec()
}

fn params(name: &str, serial: u8, authority: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(vec![serial]));
    params.not_before = datetime!(2020-01-01 00:00 UTC);
    params.not_after = datetime!(2040-01-01 00:00 UTC);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    params
}

fn root_params() -> CertificateParams {
    params("Test Root CA", 1, true)
}

fn platform_ca_params() -> CertificateParams {
    params("Test PCK Platform CA", 2, true)
}

static ROOT: LazyLock<Certificate> =
    LazyLock::new(|| root_params().self_signed(&KEYS.root).expect("a certificate"));

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(length @ ..0x80) => bytes.push(length),
        Ok(length) => bytes.extend_from_slice(&[0x81, length]),
        Err(_) => {
            bytes.push(0x82);
            bytes.extend_from_slice(&u16::try_from(content.len()).expect("short").to_be_bytes());
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

/// 1.2.840.113741.1.13.1 and what is beneath it.
fn sgx_oid(rest: &[u8]) -> Vec<u8> {
    let mut oid = vec![0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 1, 13, 1];
    oid.extend_from_slice(rest);
    tlv(6, &oid)
}

fn sgx_extension() -> Vec<u8> {
    let entry = |rest: &[u8], value: Vec<u8>| tlv(0x30, &[sgx_oid(rest), value].concat());
    let tcb = [entry(&[2, 17], tlv(2, &[11])), entry(&[2, 18], tlv(4, &[3; 16]))].concat();
    let parts = [
        entry(&[1], tlv(4, &[7; 16])),
        entry(&[2], tlv(0x30, &tcb)),
        entry(&[3], tlv(4, &[0, 0])),
        entry(&[4], tlv(4, &FMSPC)),
        entry(&[5], tlv(10, &[1])),
    ];
    tlv(0x30, &parts.concat())
}

/// Everything that goes into an appraisal; as made, it is affirmed.
struct World {
    roots: Vec<ExtraTdxRoot>,
    pck_expires: OffsetDateTime,
    tcb_info: Value,
    qe_identity: Value,
    root_crl: (Vec<u8>, OffsetDateTime),
    pck_crl: (Vec<u8>, OffsetDateTime),
    /// Changes the collateral after it was signed.
    spoil: fn(&mut Value),
    body: Vec<u8>,
    qe_report: Vec<u8>,
    /// Changes the quote after it was signed.
    on_the_way: fn(&mut Vec<u8>),
    event_log: Option<Vec<u8>>,
    document: Value,
    report_data: [u8; 64],
    init_data: Option<Vec<u8>>,
    no_collateral: bool,
}

const MR_TD: usize = 136;
const MR_CONFIG_ID: usize = 184;
const RTMR: usize = 328;
const REPORT_DATA: usize = 520;
const ATTRIBUTES: usize = 120;

impl World {
    fn new() -> World {
        let mut body = vec![0; 584];
        body[..3].copy_from_slice(&[5, 1, 2]);
        body[ATTRIBUTES + 3] = 0x10; // SEPT_VE_DISABLE
        body[MR_TD..MR_TD + 48].fill(0x3e);
        for index in 0..4 {
            let at = RTMR + 48 * index;
            body[at..at + 48].fill(u8::try_from(index + 1).expect("small"));
        }
        body[REPORT_DATA..].fill(0xda);
        let mut qe_report = vec![0; 384];
        qe_report[48] = 0x11;
        qe_report[128..160].fill(0x51);
        qe_report[256] = 2; // ISVPRODID
        qe_report[258] = 8; // ISVSVN
        let components = json!(vec![json!({ "svn": 2 }); 16]);
        let register = |byte: u8| json!([hex::encode([byte; 48])]);
        let (issued, next) = ("2026-11-20T00:00:00Z", "2026-12-20T00:00:00Z");
        World {
            roots: vec![ExtraTdxRoot { name: "test".to_owned(), root_der: ROOT.der().to_vec() }],
            pck_expires: datetime!(2030-01-01 00:00 UTC),
            tcb_info: json!({
                "id": "TDX", "version": 3, "issueDate": issued, "nextUpdate": next,
                "fmspc": hex::encode_upper(FMSPC), "pceId": "0000", "tcbType": 0,
                "tcbEvaluationDataNumber": 20,
                "tdxModule": {
                    "mrsigner": "00".repeat(48), "attributes": "00".repeat(8),
                    "attributesMask": "FF".repeat(8),
                },
                "tdxModuleIdentities": [{
                    "id": "TDX_01", "mrsigner": "00".repeat(48), "attributes": "00".repeat(8),
                    "attributesMask": "FF".repeat(8),
                    "tcbLevels": [{
                        "tcb": { "isvsvn": 4 }, "tcbDate": "2026-01-01T00:00:00Z",
                        "tcbStatus": "UpToDate",
                    }],
                }],
                "tcbLevels": [{
                    "tcb": {
                        "sgxtcbcomponents": components, "pcesvn": 11,
                        "tdxtcbcomponents": json!(vec![json!({ "svn": 0 }); 16]),
                    },
                    "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate",
                }],
            }),
            qe_identity: json!({
                "id": "TD_QE", "version": 2, "issueDate": issued, "nextUpdate": next,
                "tcbEvaluationDataNumber": 20, "miscselect": "00000000",
                "miscselectMask": "FFFFFFFF", "attributes": format!("11{}", "00".repeat(15)),
                "attributesMask": format!("FBFFFFFFFFFFFFFF{}", "00".repeat(8)),
                "mrsigner": "51".repeat(32), "isvprodid": 2,
                "tcbLevels": [{
                    "tcb": { "isvsvn": 8 }, "tcbDate": "2026-01-01T00:00:00Z",
                    "tcbStatus": "UpToDate",
                }],
            }),
            root_crl: (Vec::new(), NOW + Duration::days(30)),
            pck_crl: (Vec::new(), NOW + Duration::days(30)),
            spoil: |_| (),
            body,
            qe_report,
            on_the_way: |_| (),
            event_log: None,
            document: json!({
                "version": 1, "id": "test", "tee": "tdx", "mr_td": register(0x3e),
                "rtmr0": register(1), "rtmr1": register(2), "rtmr2": register(3), "rtmr3": "any",
            }),
            report_data: [0xda; 64],
            init_data: None,
            no_collateral: false,
        }
    }

    fn quote(&self) -> Vec<u8> {
        let root = Issuer::new(root_params(), &KEYS.root);
        let platform_ca = platform_ca_params().signed_by(&KEYS.platform_ca, &root).expect("signed");
        let mut pck = params("Test PCK Certificate", PCK_SERIAL, false);
        pck.not_after = self.pck_expires;
        let oid = [1, 2, 840, 113_741, 1, 13, 1];
        pck.custom_extensions = vec![CustomExtension::from_oid_content(&oid, sgx_extension())];
        let issuer = Issuer::new(platform_ca_params(), &KEYS.platform_ca);
        let pck = pck.signed_by(&KEYS.pck, &issuer).expect("signed");
        let chain = [pck.pem(), platform_ca.pem(), ROOT.pem()].concat();

        let mut quote = vec![4, 0, 2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0];
        // Intel's quoting enclaves.
        quote.extend(hex::decode("939a7233f79c4ca9940a0db3957f0607").expect("digits"));
        quote.extend_from_slice(&[0; 20]);
        quote.extend_from_slice(&self.body);
        let signature = sign(&KEYS.attestation, &quote);
        let key = point(&KEYS.attestation);
        let authentication = [0x0a; 32];
        let mut qe_report = self.qe_report.clone();
        let bound = Sha256::new().chain_update(&key).chain_update(authentication).finalize();
        qe_report[320..352].copy_from_slice(&bound);
        let mut inner = qe_report.clone();
        inner.extend(sign(&KEYS.pck, &qe_report));
        inner.extend_from_slice(&32_u16.to_le_bytes());
        inner.extend_from_slice(&authentication);
        inner.extend_from_slice(&5_u16.to_le_bytes());
        inner.extend_from_slice(&length(chain.as_bytes()));
        inner.extend_from_slice(chain.as_bytes());
        let mut data = [signature, key].concat();
        data.extend_from_slice(&6_u16.to_le_bytes());
        data.extend_from_slice(&length(&inner));
        data.extend_from_slice(&inner);
        quote.extend_from_slice(&length(&data));
        quote.extend_from_slice(&data);
        (self.on_the_way)(&mut quote);
        quote
    }

    fn collateral(&self) -> Value {
        let root = Issuer::new(root_params(), &KEYS.root);
        let signer = params("Test TCB Signing", 3, false).signed_by(&KEYS.tcb_signer, &root);
        let chain = [signer.expect("signed").pem(), ROOT.pem()].concat();
        let platform_ca = Issuer::new(platform_ca_params(), &KEYS.platform_ca);
        let (tcb_info, qe_identity) = (self.tcb_info.to_string(), self.qe_identity.to_string());
        let signature = |text: &str| hex::encode(sign(&KEYS.tcb_signer, text.as_bytes()));
        json!({
            "pck_crl_issuer_chain": "",
            "root_ca_crl": hex::encode(crl(&root, &self.root_crl)),
            "pck_crl": hex::encode(crl(&platform_ca, &self.pck_crl)),
            "tcb_info_issuer_chain": chain,
            "tcb_info_signature": signature(&tcb_info),
            "tcb_info": tcb_info,
            "qe_identity_issuer_chain": chain,
            "qe_identity_signature": signature(&qe_identity),
            "qe_identity": qe_identity,
        })
    }

    fn appraise(&self) -> Appraisal {
        let mut collateral = self.collateral();
        (self.spoil)(&mut collateral);
        let tdx = TdxCollateral::parse(collateral.to_string().as_bytes()).expect("collateral");
        let tdx = (!self.no_collateral).then_some(tdx);
        let trust = Trust { danger_extra_tdx_roots: self.roots.clone(), ..Trust::default() };
        let documents = match &self.document {
            Value::Null => Vec::new(),
            one => vec![ReferenceValues::parse(one.to_string().as_bytes()).expect("a document")],
        };
        let references = ReferenceSet::new(documents);
        let expected = Expected {
            report_data: self.report_data,
            init_data: self.init_data.as_deref(),
            references: &references,
            now: NOW,
        };
        let evidence = Evidence::Tdx {
            quote: Quote::parse(&self.quote()).expect("a quote"),
            event_log: self.event_log.clone(),
        };
        let collateral = Collateral { tdx, ..Collateral::default() };
        Verifier::new(&trust).expect("roots").appraise(&evidence, &expected, &collateral)
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_le_bytes()
}

fn crl(issuer: &Issuer<'_, &KeyPair>, (serials, next): &(Vec<u8>, OffsetDateTime)) -> Vec<u8> {
    let revoked = |serial: &u8| RevokedCertParams {
        serial_number: SerialNumber::from(vec![*serial]),
        revocation_time: NOW - Duration::days(2),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: NOW - Duration::days(60),
        next_update: *next,
        crl_number: SerialNumber::from(vec![1]),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).expect("signed").der().to_vec()
}

fn failures(appraisal: &Appraisal) -> Vec<CheckCode> {
    let failed = appraisal.checks().iter().filter(|check| check.verdict == Verdict::Failed);
    failed.map(|check| check.code).collect()
}

/// This check fails after the change, and is the one that is told.
#[track_caller]
fn fails(code: CheckCode, change: impl FnOnce(&mut World)) -> Appraisal {
    let mut world = World::new();
    change(&mut world);
    let appraisal = world.appraise();
    let first = appraisal.first_failure().map(|check| check.code);
    assert_eq!(first, Some(code), "{:#?}", appraisal.checks());
    assert!(!appraisal.is_affirming());
    appraisal
}

/// This check and no other fails after the change.
#[track_caller]
fn fails_alone(code: CheckCode, change: impl FnOnce(&mut World)) {
    let appraisal = fails(code, change);
    assert_eq!(failures(&appraisal), [code], "{:#?}", appraisal.checks());
}

#[track_caller]
fn affirmed(world: &World) -> Appraisal {
    let appraisal = world.appraise();
    assert_eq!(appraisal.first_failure(), None);
    assert!(appraisal.is_affirming() && appraisal.is_emulated());
    appraisal
}

#[test]
fn a_quote_of_a_configured_root_is_affirmed_and_said_to_be() {
    let appraisal = affirmed(&World::new());
    assert_eq!(appraisal.root(), &Root::Extra { name: "test".to_owned() });
    let Claims::Tdx(claims) = appraisal.claims() else { panic!("not TDX") };
    let platform = claims.platform.as_ref().unwrap();
    assert_eq!(platform.fmspc.0, FMSPC);
    assert_eq!(platform.tcb_evaluation, 20);
    assert_eq!(platform.collateral_expires, datetime!(2026-12-20 00:00 UTC));
    let listed = appraisal.checks().iter().map(|check| &check.code);
    let tdx = CheckCode::ALL.iter().filter(|code| code.as_str().starts_with("tdx-"));
    assert!(listed.eq(tdx), "each check once");
}

#[test]
fn nothing_of_another_root_is_accepted() {
    let appraisal = fails(CheckCode::TdxCollateralSignature, |world| world.roots = Vec::new());
    assert_eq!(appraisal.root(), &Root::Unproven, "the lists are not signed by Intel's root");
    let appraisal = fails(CheckCode::TdxCollateralSignature, |world| {
        let other = root_params().self_signed(&KEYS.pck).expect("signed").der().to_vec();
        world.roots = vec![ExtraTdxRoot { name: "other".to_owned(), root_der: other }];
    });
    assert_eq!(appraisal.root(), &Root::Unproven);
}

#[test]
fn collateral_must_be_there_and_current() {
    fails(CheckCode::TdxCollateral, |world| world.no_collateral = true);
    let past = "2026-11-22T11:59:59Z";
    fails(CheckCode::TdxCollateralPeriod, |world| world.tcb_info["nextUpdate"] = json!(past));
    fails(CheckCode::TdxCollateralPeriod, |world| world.qe_identity["nextUpdate"] = json!(past));
    let future = "2026-11-22T12:00:01Z";
    fails(CheckCode::TdxCollateralPeriod, |world| world.tcb_info["issueDate"] = json!(future));
    let yesterday = NOW - Duration::days(1);
    fails(CheckCode::TdxCollateralPeriod, |world| world.root_crl.1 = yesterday);
    fails(CheckCode::TdxCollateralPeriod, |world| world.pck_crl.1 = yesterday);
}

#[test]
fn collateral_must_be_for_the_platform_and_signed() {
    fails(CheckCode::TdxPlatform, |world| world.tcb_info["fmspc"] = json!("50806F000001"));
    fails_alone(CheckCode::TdxPlatform, |world| world.tcb_info["pceId"] = json!("0001"));
    fails(CheckCode::TdxCollateralSignature, |world| {
        world.spoil = |collateral| {
            let text = collateral["tcb_info"].as_str().expect("text").replace("20,", "21,");
            collateral["tcb_info"] = json!(text);
        };
    });
    fails(CheckCode::TdxCollateralSignature, |world| {
        world.spoil = |collateral| {
            let text = collateral["qe_identity"].as_str().expect("text").replace("20,", "21,");
            collateral["qe_identity"] = json!(text);
        };
    });
}

#[test]
fn certificates_must_be_valid_and_not_revoked() {
    fails(CheckCode::TdxChain, |world| world.pck_expires = NOW - Duration::days(1));
    fails(CheckCode::TdxRevocation, |world| world.pck_crl.0 = vec![PCK_SERIAL]);
    // The platform's authority, and the signer of the collateral.
    fails(CheckCode::TdxRevocation, |world| world.root_crl.0 = vec![2]);
    fails(CheckCode::TdxRevocation, |world| world.root_crl.0 = vec![3]);
}

#[test]
fn the_quoting_enclave_must_be_intels() {
    fails(CheckCode::TdxQuotingEnclave, |world| world.qe_report[128] ^= 1);
    fails(CheckCode::TdxQuotingEnclave, |world| world.qe_report[256] = 1);
    fails(CheckCode::TdxQuotingEnclave, |world| world.qe_report[258] = 7);
    // Changed after it was signed, and bound to another key.
    let inner = 48 + 584 + 4 + 128 + 6;
    assert_eq!(World::new().quote()[inner + 48], 0x11);
    fails(CheckCode::TdxQuotingEnclave, |world| {
        world.on_the_way = |quote| quote[48 + 584 + 4 + 128 + 6 + 64] ^= 1;
    });
    fails(CheckCode::TdxQuotingEnclave, |world| {
        world.on_the_way = |quote| quote[48 + 584 + 4 + 64] ^= 1;
    });
}

#[test]
fn a_changed_quote_is_refused() {
    let appraisal = fails(CheckCode::TdxSignature, |world| {
        world.on_the_way = |quote| quote[48 + 232] ^= 1; // MROWNER, which nothing else looks at
    });
    assert_eq!(appraisal.root(), &Root::Unproven);
    fails(CheckCode::TdxSignature, |world| world.on_the_way = |quote| quote[30] ^= 1);
    // Of another maker than Intel.
    fails(CheckCode::TdxQuotingEnclave, |world| world.on_the_way = |quote| quote[12] ^= 1);
}

#[test]
fn the_tdx_module_must_be_intels() {
    fails(CheckCode::TdxModule, |world| world.body[1] = 7); // a version that nobody knows
    fails(CheckCode::TdxModule, |world| world.body[64] = 1); // another signer
    fails(CheckCode::TdxModule, |world| world.body[112] = 1); // attributes
}

#[test]
fn attributes_must_not_undo_the_protection() {
    fails_alone(CheckCode::TdxDebug, |world| world.body[ATTRIBUTES] = 1);
    fails_alone(CheckCode::TdxAttributes, |world| world.body[ATTRIBUTES] = 0x10);
    fails(CheckCode::TdxAttributes, |world| world.body[ATTRIBUTES + 3] = 0);
    fails(CheckCode::TdxAttributes, |world| world.body[ATTRIBUTES + 3] |= 0x20);
    let mut world = World::new();
    world.body[ATTRIBUTES] = 1;
    world.document["debug"] = json!(true);
    affirmed(&world);
}

#[test]
fn the_platform_must_be_patched_as_expected() {
    fails_alone(CheckCode::TdxTcbStatus, |world| {
        world.tcb_info["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate");
    });
    fails_alone(CheckCode::TdxAdvisories, |world| {
        world.tcb_info["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00837"]);
    });
    let mut world = World::new();
    world.tcb_info["tcbLevels"][0]["tcbStatus"] = json!("SWHardeningNeeded");
    world.tcb_info["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00837"]);
    world.document["tcb_status"] = json!(["UpToDate", "SWHardeningNeeded"]);
    world.document["advisories"] = json!(["INTEL-SA-00837"]);
    affirmed(&world);
    // Revoked keys are never accepted, and no document can name the status.
    world.tcb_info["tcbLevels"][0]["tcbStatus"] = json!("Revoked");
    assert!(!world.appraise().is_affirming());
    let mut document = world.document.clone();
    document["tcb_status"] = json!(["Revoked"]);
    assert!(ReferenceValues::parse(document.to_string().as_bytes()).is_err());
}

#[test]
fn the_quote_must_be_of_this_session_and_initdata() {
    fails_alone(CheckCode::TdxReportData, |world| world.report_data[0] ^= 1);
    fails_alone(CheckCode::TdxConfigId, |world| world.init_data = Some(vec![1; 48]));
    fails_alone(CheckCode::TdxConfigId, |world| world.body[MR_CONFIG_ID] = 1);
    for size in [32, 48, 64] {
        let mut world = World::new();
        world.body[MR_CONFIG_ID..MR_CONFIG_ID + size.min(48)].fill(6);
        world.init_data = Some(vec![6; size]);
        affirmed(&world);
    }
}

#[test]
fn the_guest_must_fit_the_reference_values() {
    let appraisal = fails(CheckCode::TdxReferences, |world| world.document = Value::Null);
    assert!(failures(&appraisal).contains(&CheckCode::TdxMrTd));
    fails_alone(CheckCode::TdxMrTd, |world| world.body[MR_TD] ^= 1);
    for (index, code) in
        [CheckCode::TdxRtmr0, CheckCode::TdxRtmr1, CheckCode::TdxRtmr2].into_iter().enumerate()
    {
        fails_alone(code, |world| world.body[RTMR + 48 * index] ^= 1);
    }
    let mut world = World::new();
    world.body[RTMR + 48 * 3] ^= 1;
    affirmed(&world);
    // What is accepted unseen is shown, for whoever wants to register it.
    let appraisal = world.appraise();
    let shown = appraisal.checks().iter().find(|check| check.code == CheckCode::TdxRtmr3).unwrap();
    let register = hex::encode(&world.body[RTMR + 48 * 3..RTMR + 48 * 4]);
    assert!(shown.found.starts_with(&register), "{}", shown.found);
    world.document["rtmr3"] = json!([hex::encode([4; 48])]);
    assert_eq!(failures(&world.appraise()), [CheckCode::TdxRtmr3]);
}

#[test]
fn an_event_log_must_explain_the_registers() {
    fails_alone(CheckCode::TdxEventLog, |world| world.event_log = Some(vec![1; 100]));
    // A log without events explains registers of zeros only.
    let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
    log.extend_from_slice(&[0; 20]);
    log.extend_from_slice(&33_u32.to_le_bytes());
    log.extend_from_slice(b"Spec ID Event03\0");
    log.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 12, 0, 48, 0, 0]);
    fails_alone(CheckCode::TdxEventLog, |world| world.event_log = Some(log.clone()));
    let mut world = World::new();
    world.body[RTMR..RTMR + 4 * 48].fill(0);
    for digest in [[1; 48], [2; 48]] {
        log.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 12, 0]);
        log.extend_from_slice(&digest);
        log.extend_from_slice(&[0; 4]);
        let register = Sha384::new().chain_update(&world.body[RTMR..RTMR + 48]);
        let register = register.chain_update(digest).finalize();
        world.body[RTMR..RTMR + 48].copy_from_slice(&register);
    }
    for register in ["rtmr0", "rtmr1", "rtmr2"] {
        world.document[register] = json!("any");
    }
    world.event_log = Some(log);
    affirmed(&world);
}
