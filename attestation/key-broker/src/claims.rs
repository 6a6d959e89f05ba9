//! Claims of an attestation token: an Entity Attestation Result with the names that Trustee's verifiers
//! use, so that resource policies written for it work here. They are written of evidence that an
//! affirming appraisal speaks of, and of nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_evidence::snp::{GuestPolicy, KeyInfo, PlatformInfo, ReportFields, SigningKey, Tcb};
use nacre_evidence::{Evidence, tdx};
use nacre_protocol::initdata::Initdata;
use nacre_protocol::kbs::Jwk;
use nacre_verifier::TdxPlatform;
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

/// The name of the profile whose claims these are.
pub(crate) const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";
/// Largest file of an initdata document that becomes claims, in bytes; larger ones, and the policy,
/// are vouched for by the digest alone.
const FILE_LIMIT: usize = 8 * 1024;
/// Largest claims from an initdata document altogether, in bytes.
const FILES_LIMIT: usize = 32 * 1024;

/// What an appraisal adds to what the evidence says.
pub(crate) struct Verdict<'a> {
    /// The root's name, where it is none of a vendor's.
    pub(crate) extra_root: Option<&'a str>,
    /// What Intel's collateral says about a TDX platform.
    pub(crate) platform: Option<&'a TdxPlatform>,
}

/// The submodule `cpu0` of a token.
pub(crate) fn submodule(
    evidence: &Evidence,
    verdict: &Verdict<'_>,
    nonce: &str,
    tee_pubkey: &Jwk,
    initdata: Option<&Initdata>,
) -> Value {
    let mut annotated = Map::new();
    let (tee, init_data) = match evidence {
        Evidence::Snp { report, .. } => (snp(report.fields()), report.fields().host_data.to_vec()),
        Evidence::Tdx { quote, .. } => {
            (tdx(quote, verdict.platform), quote.body().mr_config_id.to_vec())
        }
    };
    annotated.insert(evidence.tee().name().to_owned(), tee);
    annotated.insert("report_data".to_owned(), hex::encode(evidence.report_data()).into());
    annotated.insert(
        "runtime_data_claims".to_owned(),
        json!({"nonce": nonce, "tee-pubkey": tee_pubkey}),
    );
    annotated.insert("init_data".to_owned(), hex::encode(init_data).into());
    annotated.insert("init_data_claims".to_owned(), initdata.map_or(Value::Null, initdata_claims));
    json!({
        "ear.status": "affirming",
        // AR4SI: 2 is affirming; 3 of executables: what was approved was loaded, and only that.
        "ear.trustworthiness-vector": {"configuration": 2, "executables": 3, "hardware": 2},
        "ear.appraisal-policy-id": "nacre",
        "ear.veraison.annotated-evidence": annotated,
        "nacre.emulated": verdict.extra_root.is_some(),
        "nacre.root": verdict.extra_root.unwrap_or("vendor"),
    })
}

/// Names and digest of the document; small TOML files of it as claims.
fn initdata_claims(initdata: &Initdata) -> Value {
    let mut claims = Map::new();
    let mut room = FILES_LIMIT;
    for (name, content) in initdata.files() {
        let toml = name.ends_with(".toml") && content.len() <= FILE_LIMIT.min(room);
        let parsed = toml.then(|| toml::from_str::<toml::Table>(content).ok()).flatten();
        if let Some(value) = parsed.and_then(|table| serde_json::to_value(table).ok()) {
            room -= content.len();
            claims.insert(name.clone(), value);
        }
    }
    Value::Object(claims)
}

/// Both of Trustee's forms: the older flat one, in strings, and the newer one beneath `evidence`.
fn snp(report: &ReportFields) -> Value {
    let policy = report.policy;
    let (abi_major, abi_minor) = policy.minimum_abi();
    let platform = report.platform_info;
    let tcb = report.reported_tcb;
    json!({
        "measurement": STANDARD.encode(report.measurement),
        "policy_abi_major": abi_major.to_string(),
        "policy_abi_minor": abi_minor.to_string(),
        "policy_smt_allowed": policy.smt_allowed().to_string(),
        "policy_migrate_ma": policy.migration_agent_allowed().to_string(),
        "policy_debug_allowed": policy.debug_allowed().to_string(),
        "policy_single_socket": policy.single_socket().to_string(),
        "platform_smt_enabled": platform.smt_enabled().to_string(),
        "platform_tsme_enabled": platform.tsme_enabled().to_string(),
        "reported_tcb_bootloader": tcb.bootloader.to_string(),
        "reported_tcb_microcode": tcb.microcode.to_string(),
        "reported_tcb_snp": tcb.snp.to_string(),
        "reported_tcb_tee": tcb.tee.to_string(),
        "generation": report.product().map(|product| product.to_string().to_lowercase()),
        "evidence": snp_evidence(report),
    })
}

fn snp_evidence(report: &ReportFields) -> Value {
    let version = |version: &nacre_evidence::snp::FirmwareVersion| json!({"major": version.major, "minor": version.minor, "build": version.build});
    json!({
        "version": report.version.number(),
        "guest_svn": report.guest_svn,
        "policy": snp_policy(report.policy),
        "plat_info": snp_platform(report.platform_info),
        "key_info": snp_key(report.key_info),
        "family_id": hex::encode(report.family_id),
        "image_id": hex::encode(report.image_id),
        "vmpl": report.vmpl,
        "sig_algo": report.signature_algorithm,
        "measurement": hex::encode(report.measurement),
        "report_data": hex::encode(report.report_data),
        "host_data": hex::encode(report.host_data),
        "id_key_digest": hex::encode(report.id_key_digest),
        "author_key_digest": hex::encode(report.author_key_digest),
        "report_id": hex::encode(report.report_id),
        "report_id_ma": hex::encode(report.report_id_ma),
        "chip_id": hex::encode(report.chip_id),
        "cpu_id_fam_id": report.cpuid.map(|cpuid| cpuid.family),
        "cpu_id_mod_id": report.cpuid.map(|cpuid| cpuid.model),
        "cpu_id_step": report.cpuid.map(|cpuid| cpuid.stepping),
        "current_tcb": snp_tcb(&report.current_tcb),
        "reported_tcb": snp_tcb(&report.reported_tcb),
        "committed_tcb": snp_tcb(&report.committed_tcb),
        "launch_tcb": snp_tcb(&report.launch_tcb),
        "current": version(&report.current_version),
        "committed": version(&report.committed_version),
        "launch_mit_vector": report.mitigations.map(|vector| vector.launch),
        "current_mit_vector": report.mitigations.map(|vector| vector.current),
    })
}

fn snp_policy(policy: GuestPolicy) -> Value {
    let (abi_major, abi_minor) = policy.minimum_abi();
    json!({
        "abi_major": abi_major,
        "abi_minor": abi_minor,
        "smt_allowed": policy.smt_allowed(),
        "migrate_ma_allowed": policy.migration_agent_allowed(),
        "debug_allowed": policy.debug_allowed(),
        "single_socket_required": policy.single_socket(),
        "cxl_allowed": policy.cxl_allowed(),
        "mem_aes_256_xts": policy.aes_256_xts_required(),
        "rapl_dis": policy.rapl_disabled(),
        "ciphertext_hiding": policy.ciphertext_hiding_required(),
        "page_swap_disabled": policy.page_swap_disabled(),
    })
}

fn snp_platform(platform: PlatformInfo) -> Value {
    json!({
        "smt_enabled": platform.smt_enabled(),
        "tsme_enabled": platform.tsme_enabled(),
        "ecc_enabled": platform.ecc_enabled(),
        "rapl_disabled": platform.rapl_disabled(),
        "ciphertext_hiding_enabled": platform.ciphertext_hiding(),
        "alias_check_complete": platform.alias_check_complete(),
        "tio_enabled": platform.tio_enabled(),
    })
}

fn snp_key(key: KeyInfo) -> Value {
    let signing_key = match key.signing_key() {
        SigningKey::Vcek => 0,
        SigningKey::Vlek => 1,
        _ => 7,
    };
    json!({
        "author_key_en": key.author_key_enabled(),
        "mask_chip_key": key.chip_key_masked(),
        "signing_key": signing_key,
    })
}

fn snp_tcb(tcb: &Tcb) -> Value {
    json!({
        "fmc": tcb.fmc,
        "bootloader": tcb.bootloader,
        "tee": tcb.tee,
        "snp": tcb.snp,
        "microcode": tcb.microcode,
    })
}

/// Numbers are little-endian bytes in hexadecimal, as in the quote.
fn tdx(quote: &tdx::Quote, platform: Option<&TdxPlatform>) -> Value {
    let (header, body) = (quote.header(), quote.body());
    let attributes = body.td_attributes;
    let flag = |bit: u32| attributes.0 >> bit & 1 == 1;
    let mut fields = json!({
        "tcb_svn": hex::encode(body.tee_tcb_svn),
        "mr_seam": hex::encode(body.mr_seam),
        "mrsigner_seam": hex::encode(body.mr_signer_seam),
        "seam_attributes": hex::encode(body.seam_attributes.to_le_bytes()),
        "td_attributes": hex::encode(attributes.0.to_le_bytes()),
        "xfam": hex::encode(body.xfam.to_le_bytes()),
        "mr_td": hex::encode(body.mr_td),
        "mr_config_id": hex::encode(body.mr_config_id),
        "mr_owner": hex::encode(body.mr_owner),
        "mr_owner_config": hex::encode(body.mr_owner_config),
        "rtmr_0": hex::encode(body.rtmr[0]),
        "rtmr_1": hex::encode(body.rtmr[1]),
        "rtmr_2": hex::encode(body.rtmr[2]),
        "rtmr_3": hex::encode(body.rtmr[3]),
        "report_data": hex::encode(body.report_data),
    });
    if let Some((svn, service)) = &body.td_1_5 {
        fields["tee_tcb_svn2"] = hex::encode(svn).into();
        fields["mr_servicetd"] = hex::encode(service).into();
    }
    json!({
        "quote": {
            "header": {
                "version": match header.version {
                    tdx::QuoteVersion::V4 => "0400",
                    tdx::QuoteVersion::V5 => "0500",
                },
                "att_key_type": hex::encode(header.attestation_key_type.to_le_bytes()),
                "tee_type": "81000000",
                "reserved": "00000000",
                "vendor_id": hex::encode(header.qe_vendor_id),
                "user_data": hex::encode(header.user_data),
            },
            "body": fields,
        },
        "td_attributes": {
            "debug": flag(0),
            "septve_disable": flag(28),
            "protection_keys": flag(30),
            "key_locker": flag(31),
            "perfmon": flag(63),
        },
        "tcb_status": platform.map(|platform| &platform.tcb_status),
        "tcb_date": platform.and_then(|platform| platform.tcb_date.format(&Rfc3339).ok()),
        "tcb_eval_num": platform.map(|platform| platform.tcb_evaluation),
        "advisory_ids": platform.map(|platform| &platform.advisories),
        "is_smt_enabled": platform.and_then(|platform| platform.smt_enabled),
        "earliest_expiration_date":
            platform.and_then(|platform| platform.collateral_expires.format(&Rfc3339).ok()),
        // With expired collateral nothing is affirming.
        "collateral_expiration_status": "0",
    })
}
