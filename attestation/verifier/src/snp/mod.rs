//! Appraisal of SNP evidence.

mod compare;
mod hierarchy;
mod vek;

use nacre_evidence::Tee;
use nacre_evidence::snp::{CertType, Certificate, Product, Report, ReportFields, SigningKey};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use time::OffsetDateTime;

use crate::appraisal::{Appraisal, Claims, Root, SnpClaims};
use crate::checks::{Check, CheckCode, complete};
use crate::collateral::Collateral;
use crate::verifier::{Expected, binding_of};
pub(crate) use hierarchy::Hierarchies;
use hierarchy::{Path, Revocation};
pub(crate) use vek::{Vek, chip_id_length};

/// The only signature algorithm of reports: ECDSA P-384 with SHA-384.
const ECDSA_P384_SHA384: u32 = 1;
/// Most certificates from a cache that are looked at.
const COLLATERAL_LIMIT: usize = 8;

pub(crate) fn appraise(
    hierarchies: &Hierarchies,
    report: &Report,
    certificates: &[Certificate],
    expected: &Expected<'_>,
    collateral: &Collateral,
) -> Appraisal {
    let fields = report.fields();
    let mut checks = vec![form(fields)];
    let mut root = Root::Unproven;
    let vek = match find_vek(fields, certificates, &collateral.snp_certificates) {
        Ok(vek) => Some(vek),
        Err(found) => {
            checks.push(no_certificate(found));
            None
        }
    };
    if let Some(vek) = &vek {
        checks.push(Check::of(
            CheckCode::SnpCertificate,
            true,
            "the certificate of the report's key",
            format!("a certificate of a {} {}", vek.product, kind_name(vek.kind())),
            "",
        ));
        let path = hierarchies.path(vek);
        let chain = chain(&path);
        let signature = signature(report, vek);
        if let Ok(path) = path {
            checks.push(validity(path, vek, expected.now));
            checks.push(revocation(hierarchies, path, vek, expected.now));
            checks.push(product(fields, vek, path.hierarchy.product));
            if !signature.is_failed() {
                root = path.hierarchy.root.clone();
            }
        }
        checks.push(chain);
        checks.push(signature);
        checks.push(signing_key(fields, vek.kind()));
        checks.push(chip_id(fields, vek));
        checks.push(certificate_tcb(fields, vek));
    }
    let product = fields.product().or(vek.as_ref().map(|vek| vek.product));
    checks.extend(session(fields, expected));
    checks.push(tcb_order(fields));
    let (reference, comparison) = compare::references(fields, product, expected);
    checks.extend(comparison);
    let claims = Claims::Snp(Box::new(SnpClaims::new(fields, product)));
    Appraisal::new(root, reference, complete(Tee::Snp, checks), claims)
}

fn form(fields: &ReportFields) -> Check {
    let found = format!(
        "version {}, signature algorithm {}, policy {:#x}, key info {:#x}",
        fields.version.number(),
        fields.signature_algorithm,
        fields.policy.0,
        fields.key_info.0
    );
    let holds = fields.signature_algorithm == ECDSA_P384_SHA384
        && fields.policy.reserved_one()
        && fields.policy.unknown() == 0
        && fields.key_info.unknown() == 0;
    Check::of(
        CheckCode::SnpReport,
        holds,
        "signature algorithm 1 (ECDSA P-384 with SHA-384); bit 17 of the policy and no unknown bits",
        found,
        "this program does not know what the unknown bits allow: update it, or launch the guest \
         with a policy of known bits",
    )
}

/// The certificate to go by: the first that is for the report's key by kind, TCB and chip, else the
/// first that can be read at all, so that the checks say what is wrong with it.
fn find_vek(
    fields: &ReportFields,
    certificates: &[Certificate],
    cached: &[Vec<u8>],
) -> Result<Vek, String> {
    let given = certificates
        .iter()
        .filter(|certificate| matches!(certificate.cert_type, CertType::Vcek | CertType::Vlek))
        .map(|certificate| &certificate.data);
    let fits = |vek: &Vek| {
        vek.kind() == fields.key_info.signing_key()
            && vek.tcb == fields.reported_tcb
            && (vek.kind() == SigningKey::Vlek || vek.is_of_chip(&fields.chip_id))
    };
    let mut readable = None;
    let mut problem = None;
    for der in given.chain(cached.iter().take(COLLATERAL_LIMIT)) {
        match Vek::parse(der) {
            Ok(vek) if fits(&vek) => return Ok(vek),
            Ok(vek) => readable = readable.or(Some(vek)),
            Err(error) => problem = Some(error),
        }
    }
    readable.ok_or_else(|| {
        problem.map_or_else(
            || "no certificate, neither in the evidence nor in the cache".to_owned(),
            |problem| format!("an unusable certificate: {problem}"),
        )
    })
}

fn no_certificate(found: String) -> Check {
    Check::of(
        CheckCode::SnpCertificate,
        false,
        "the certificate of the report's key",
        found,
        "have the host pass its certificates to guests, or fill the verifier's cache from AMD's key \
         service or a mirror of it",
    )
}

fn chain(path: &Result<Path<'_>, String>) -> Check {
    let (holds, found) = match path {
        Ok(path) => (true, path.hierarchy.ark.subject().to_string()),
        Err(problem) => (false, problem.clone()),
    };
    Check::of(
        CheckCode::SnpChain,
        holds,
        "signed by a trusted root's signing key",
        found,
        "this is no evidence of AMD hardware; an emulated processor is accepted only where its root \
         is configured under danger_extra_snp_roots",
    )
}

fn validity(path: Path<'_>, vek: &Vek, now: OffsetDateTime) -> Check {
    let outside = path
        .certificates(vek)
        .into_iter()
        .find(|(_, certificate)| !certificate.period().contains(now));
    let found = match outside {
        Some((name, certificate)) => format!("{name} is valid {}", certificate.period()),
        None => format!(
            "{} to {}",
            vek.certificate.period().from.date(),
            vek.certificate.period().to.date()
        ),
    };
    Check::of(
        CheckCode::SnpValidity,
        outside.is_none(),
        format!("all certificates of the chain valid on {}", now.date()),
        found,
        "fetch a current certificate from AMD's key service (VLEK: from the cloud provider); check \
         this machine's clock",
    )
}

fn revocation(hierarchies: &Hierarchies, path: Path<'_>, vek: &Vek, now: OffsetDateTime) -> Check {
    const CODE: CheckCode = CheckCode::SnpRevocation;
    const FETCH: &str = "fetch the revocation list from AMD's key service \
        (/vcek/v1/<product>/crl) and configure it";
    let expected = "no certificate of the chain on a current revocation list";
    match hierarchies.revocation(path, vek, now) {
        Revocation::NotRevoked => Check::of(CODE, true, expected, "none", ""),
        Revocation::Revoked(name) => Check::of(
            CODE,
            false,
            expected,
            format!("the {name} is revoked"),
            "do not trust this hardware; ask its operator",
        ),
        Revocation::Stale(period) => {
            Check::of(CODE, false, expected, format!("a list for {period}"), FETCH)
        }
        Revocation::Missing => Check::of(CODE, false, expected, "no list for this root", FETCH),
        Revocation::NoList => Check::not_applicable(CODE, "no list for this root is configured"),
    }
}

/// By the chain, the certificate and, where the report has it, the processor itself.
fn product(fields: &ReportFields, vek: &Vek, root: Option<Product>) -> Check {
    let name = |product: Option<Product>| product.map_or("none named", Product::name);
    let processor = fields.product();
    let holds = [root, processor].into_iter().flatten().all(|each| each == vek.product);
    Check::of(
        CheckCode::SnpProduct,
        holds,
        format!("all {}", vek.product),
        format!("processor {}, root {}", name(processor), name(root)),
        "the certificate is of another product than the processor: clear it from the cache or table",
    )
}

fn signing_key(fields: &ReportFields, kind: SigningKey) -> Check {
    let named = fields.key_info.signing_key();
    let masked = fields.key_info.chip_key_masked();
    let found = match (masked, named) {
        (true, _) => "a masked chip key: the report is not signed".to_owned(),
        (false, named) => kind_name(named).to_owned(),
    };
    Check::of(
        CheckCode::SnpSigningKey,
        !masked && named == kind,
        format!("{}, as the certificate", kind_name(kind)),
        found,
        "have the host turn MASK_CHIP_KEY off, and pass the certificate of the key it signs with",
    )
}

fn chip_id(fields: &ReportFields, vek: &Vek) -> Check {
    const CODE: CheckCode = CheckCode::SnpChipId;
    let Some(id) = &vek.hardware_id else {
        return Check::not_applicable(CODE, "a VLEK is not bound to a chip");
    };
    let found = if fields.chip_id == [0; 64] {
        "a masked chip id (zeros)".to_owned()
    } else {
        hex::encode(fields.chip_id)
    };
    Check::of(
        CODE,
        vek.is_of_chip(&fields.chip_id),
        hex::encode(id),
        found,
        "the certificate is another chip's: clear it from the cache or table; if the id is masked, \
         have the host turn MASK_CHIP_ID off",
    )
}

fn certificate_tcb(fields: &ReportFields, vek: &Vek) -> Check {
    Check::of(
        CheckCode::SnpCertificateTcb,
        fields.reported_tcb == vek.tcb,
        vek.tcb.to_string(),
        fields.reported_tcb.to_string(),
        "the certificate is for another firmware level: fetch the one for the reported TCB, as after \
         each update of the host's firmware",
    )
}

fn signature(report: &Report, vek: &Vek) -> Check {
    let verified = raw_signature(report).is_some_and(|signature| {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &vek.key)
            .verify(report.signed_bytes(), &signature)
            .is_ok()
    });
    Check::of(
        CheckCode::SnpSignature,
        verified,
        "a signature by the certificate's key",
        if verified { "one" } else { "none, or another key's, or of other bytes" },
        "the report was changed on its way, or the certificate is not this key's: fetch it anew",
    )
}

/// The firmware's numbers are little-endian in 72 bytes; P-384 uses 48.
fn raw_signature(report: &Report) -> Option<[u8; 96]> {
    let mut raw = [0; 96];
    let signature = report.signature();
    for (number, out) in [&signature.r, &signature.s].into_iter().zip(raw.chunks_exact_mut(48)) {
        let (low, high) = number.split_at(48);
        if high.iter().any(|byte| *byte != 0) {
            return None;
        }
        for (to, from) in out.iter_mut().zip(low.iter().rev()) {
            *to = *from;
        }
    }
    Some(raw)
}

/// What binds the report to this session and this guest's initdata.
fn session(fields: &ReportFields, expected: &Expected<'_>) -> [Check; 3] {
    let host_data = binding_of::<32>(expected.init_data);
    [
        Check::of(
            CheckCode::SnpVmpl,
            fields.vmpl == 0,
            "0",
            fields.vmpl.to_string(),
            "ask for the report at VMPL 0",
        ),
        Check::of(
            CheckCode::SnpReportData,
            fields.report_data == expected.report_data,
            hex::encode(expected.report_data),
            hex::encode(fields.report_data),
            "the evidence is of another session, nonce or key: attest anew",
        ),
        Check::of(
            CheckCode::SnpHostData,
            host_data == Some(fields.host_data),
            host_data.map_or("an initdata digest of 32, 48 or 64 bytes".to_owned(), hex::encode),
            hex::encode(fields.host_data),
            "launch the guest with the initdata that it presents: HOST_DATA is its digest, cut or \
             filled with zeros to 32 bytes, or zero without initdata",
        ),
    ]
}

fn tcb_order(fields: &ReportFields) -> Check {
    let current = &fields.current_tcb;
    let newer = [
        ("committed", &fields.committed_tcb),
        ("reported", &fields.reported_tcb),
        ("launch", &fields.launch_tcb),
    ]
    .into_iter()
    .find(|(_, tcb)| !current.at_least(tcb));
    let firmware = fields.current_version >= fields.committed_version;
    let found = match newer {
        Some((name, tcb)) => format!("{name}: {tcb}"),
        None if firmware => "none newer".to_owned(),
        None => format!("firmware {} below {}", fields.current_version, fields.committed_version),
    };
    Check::of(
        CheckCode::SnpTcbOrder,
        newer.is_none() && firmware,
        format!("none newer than the current one: {current}"),
        found,
        "the host's firmware was rolled back: update it and restart the guest",
    )
}

const fn kind_name(key: SigningKey) -> &'static str {
    match key {
        SigningKey::Vcek => "VCEK",
        SigningKey::Vlek => "VLEK",
        SigningKey::None => "no key",
        SigningKey::Reserved => "a key of unknown kind",
    }
}
