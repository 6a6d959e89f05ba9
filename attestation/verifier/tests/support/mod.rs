//! An SNP hierarchy of our own, in the form of AMD's, and reports that its key signs.

use std::str::FromStr as _;
use std::sync::LazyLock;

use der::asn1::{BitString, GeneralizedTime, Ia5StringRef, OctetString, UtcTime};
use der::oid::ObjectIdentifier;
use der::{Any, Decode as _, Encode as _};
use nacre_evidence::snp::{
    CertType, Certificate, Cpuid, FirmwareVersion, GuestPolicy, KeyInfo, PlatformInfo, Product,
    Report, ReportFields, ReportVersion, Signature, Tcb,
};
use p384::ecdsa::SigningKey;
use p384::ecdsa::signature::Signer as _;
use rand_core::OsRng;
use rsa::RsaPrivateKey;
use rsa::pss::SigningKey as PssKey;
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _};
use sha2::Sha384;
use time::OffsetDateTime;
use time::macros::datetime;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, EncodePublicKey as _, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

pub(crate) const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);
pub(crate) const CHIP: [u8; 64] = [0xc1; 64];

/// RSASSA-PSS with SHA-384 throughout and a salt of 48 bytes (RFC 4055, 3.1).
const PSS_PARAMETERS: &str = "3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108\
    300d06096086480165030402020500a203020130";

static ARK: LazyLock<RsaPrivateKey> = LazyLock::new(rsa_key);
static ASK: LazyLock<RsaPrivateKey> = LazyLock::new(rsa_key);
static VEK: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::random(&mut OsRng));

fn rsa_key() -> RsaPrivateKey {
    RsaPrivateKey::new(&mut OsRng, 2048).expect("a key")
}

/// Whose key signs or is certified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Ark,
    Ask,
    Vek,
}

impl Key {
    fn public(self) -> SubjectPublicKeyInfoOwned {
        let der = match self {
            Key::Ark => ARK.to_public_key().to_public_key_der(),
            Key::Ask => ASK.to_public_key().to_public_key_der(),
            Key::Vek => VEK.verifying_key().to_public_key_der(),
        };
        SubjectPublicKeyInfoOwned::from_der(der.expect("a key").as_bytes()).expect("a key")
    }

    fn sign(self, content: &[u8]) -> BitString {
        let key = match self {
            Key::Ark => &*ARK,
            Key::Ask => &*ASK,
            Key::Vek => panic!("signs no certificates"),
        };
        let signer = PssKey::<Sha384>::new(key.clone());
        BitString::from_bytes(&signer.sign_with_rng(&mut OsRng, content).to_bytes()).expect("bits")
    }
}

/// A certificate to be made.
#[derive(Clone)]
pub(crate) struct Template {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) serial: u8,
    pub(crate) from: OffsetDateTime,
    pub(crate) to: OffsetDateTime,
    pub(crate) key: SubjectPublicKeyInfoOwned,
    pub(crate) signer: Key,
    pub(crate) extensions: Vec<Extension>,
}

impl Template {
    pub(crate) fn der(&self) -> Vec<u8> {
        let algorithm = pss();
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial]).expect("short"),
            signature: algorithm.clone(),
            issuer: name(&self.issuer),
            validity: Validity { not_before: moment(self.from), not_after: moment(self.to) },
            subject: name(&self.subject),
            subject_public_key_info: self.key.clone(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions.clone()),
        };
        let signature = self.signer.sign(&tbs_certificate.to_der().expect("DER"));
        let certificate =
            x509_cert::Certificate { tbs_certificate, signature_algorithm: algorithm, signature };
        certificate.to_der().expect("DER")
    }

    /// Replaces an extension, or takes it away.
    pub(crate) fn set(&mut self, oid: &str, value: Option<Vec<u8>>) {
        let extn_id = ObjectIdentifier::new(oid).expect("an OID");
        self.extensions.retain(|extension| extension.extn_id != extn_id);
        self.extensions.extend(value.map(|value| extension(oid, false, &value)));
    }
}

/// The root certificate.
pub(crate) fn ark() -> Template {
    Template {
        subject: "CN=ARK-Test".to_owned(),
        issuer: "CN=ARK-Test".to_owned(),
        serial: 1,
        from: datetime!(2020-01-01 00:00 UTC),
        to: datetime!(2045-01-01 00:00 UTC),
        key: Key::Ark.public(),
        signer: Key::Ark,
        extensions: vec![authority(true, None), subject_key(b"ark")],
    }
}

/// The certificate of the key that signs report keys.
pub(crate) fn ask() -> Template {
    Template {
        subject: "CN=SEV-Test".to_owned(),
        serial: 2,
        key: Key::Ask.public(),
        extensions: vec![authority(true, Some(0)), subject_key(b"ask"), authority_key(b"ark")],
        ..ark()
    }
}

/// A chip key's certificate for `product`.
pub(crate) fn vcek(product: Product, tcb: &Tcb) -> Template {
    let mut template = Template {
        subject: "CN=SEV-VCEK".to_owned(),
        issuer: "CN=SEV-Test".to_owned(),
        serial: 3,
        to: datetime!(2030-01-01 00:00 UTC),
        key: Key::Vek.public(),
        signer: Key::Ask,
        extensions: Vec::new(),
        ..ark()
    };
    let name = Ia5StringRef::new(product.name()).expect("ASCII").to_der().expect("DER");
    template.set("1.3.6.1.4.1.3704.1.2", Some(name));
    let Tcb { fmc, bootloader, tee, snp, microcode } = *tcb;
    for (part, number) in [("1", bootloader), ("2", tee), ("3", snp), ("4", 0), ("8", microcode)] {
        template.set(&format!("1.3.6.1.4.1.3704.1.3.{part}"), Some(integer(number)));
    }
    template.set("1.3.6.1.4.1.3704.1.3.9", fmc.map(integer));
    let length = if product == Product::Turin { 8 } else { 64 };
    template.set("1.3.6.1.4.1.3704.1.4", Some(CHIP[..length].to_vec()));
    template
}

pub(crate) fn integer(number: u8) -> Vec<u8> {
    number.to_der().expect("DER")
}

/// A revocation list by `signer`.
pub(crate) fn crl(
    signer: Key,
    serials: &[u8],
    from: OffsetDateTime,
    to: OffsetDateTime,
) -> Vec<u8> {
    let issuer = if signer == Key::Ark { ark() } else { ask() };
    let entry = |serial: &u8| RevokedCert {
        serial_number: SerialNumber::new(&[*serial]).expect("short"),
        revocation_date: moment(from),
        crl_entry_extensions: None,
    };
    let tbs_cert_list = TbsCertList {
        version: Version::V2,
        signature: pss(),
        issuer: name(&issuer.subject),
        this_update: moment(from),
        next_update: Some(moment(to)),
        revoked_certificates: (!serials.is_empty()).then(|| serials.iter().map(entry).collect()),
        crl_extensions: None,
    };
    let signature = signer.sign(&tbs_cert_list.to_der().expect("DER"));
    let list = CertificateList { tbs_cert_list, signature_algorithm: pss(), signature };
    list.to_der().expect("DER")
}

fn pss() -> AlgorithmIdentifierOwned {
    let parameters = hex::decode(PSS_PARAMETERS).expect("digits");
    AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"),
        parameters: Some(Any::from_der(&parameters).expect("DER")),
    }
}

fn name(text: &str) -> Name {
    Name::from_str(text).expect("a name")
}

fn moment(at: OffsetDateTime) -> Time {
    let since = std::time::Duration::from_secs(at.unix_timestamp().try_into().expect("after 1970"));
    match UtcTime::from_unix_duration(since) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(since).expect("a time")),
    }
}

pub(crate) fn extension(oid: &str, critical: bool, value: &[u8]) -> Extension {
    Extension {
        extn_id: ObjectIdentifier::new(oid).expect("an OID"),
        critical,
        extn_value: OctetString::new(value).expect("bytes"),
    }
}

pub(crate) fn authority(ca: bool, path_len_constraint: Option<u8>) -> Extension {
    let constraints = BasicConstraints { ca, path_len_constraint };
    extension("2.5.29.19", true, &constraints.to_der().expect("DER"))
}

fn subject_key(id: &[u8]) -> Extension {
    let id = SubjectKeyIdentifier(OctetString::new(id).expect("bytes"));
    extension("2.5.29.14", false, &id.to_der().expect("DER"))
}

pub(crate) fn authority_key(id: &[u8]) -> Extension {
    let id = AuthorityKeyIdentifier {
        key_identifier: Some(OctetString::new(id).expect("bytes")),
        ..AuthorityKeyIdentifier::default()
    };
    extension("2.5.29.35", false, &id.to_der().expect("DER"))
}

pub(crate) const fn tcb(product: Product) -> Tcb {
    let fmc = if product.has_fmc() { Some(1) } else { None };
    Tcb { fmc, bootloader: 4, tee: 1, snp: 20, microcode: 200 }
}

/// What a report says that passes every check.
pub(crate) fn fields(product: Product) -> ReportFields {
    let (family, model) = match product {
        Product::Milan => (0x19, 0x01),
        Product::Genoa => (0x19, 0x11),
        Product::Turin => (0x1a, 0x02),
    };
    let mut chip_id = CHIP;
    if product == Product::Turin {
        chip_id[8..].fill(0);
    }
    let version = FirmwareVersion { major: 1, minor: 55, build: 40 };
    ReportFields {
        version: ReportVersion::V3,
        guest_svn: 0,
        policy: GuestPolicy(0x3_001f),
        family_id: [0; 16],
        image_id: [0; 16],
        vmpl: 0,
        signature_algorithm: 1,
        current_tcb: tcb(product),
        platform_info: PlatformInfo(0),
        key_info: KeyInfo(0),
        report_data: [0xda; 64],
        measurement: [0x3e; 48],
        host_data: [0; 32],
        id_key_digest: [0; 48],
        author_key_digest: [0; 48],
        report_id: [7; 32],
        report_id_ma: [0xff; 32],
        reported_tcb: tcb(product),
        cpuid: Some(Cpuid { family, model, stepping: 1 }),
        chip_id,
        committed_tcb: tcb(product),
        current_version: version,
        committed_version: version,
        launch_tcb: tcb(product),
        mitigations: None,
    }
}

/// Signs as the firmware does.
pub(crate) fn sign(fields: &ReportFields) -> Report {
    let signature: p384::ecdsa::Signature = VEK.sign(&fields.signed_bytes().expect("a report"));
    let number = |bytes: &[u8]| {
        let mut number = [0; 72];
        for (to, from) in number.iter_mut().zip(bytes.iter().rev()) {
            *to = *from;
        }
        number
    };
    let (r, s) = signature.split_bytes();
    fields.attach_signature(&Signature { r: number(&r), s: number(&s) }).expect("a report")
}

/// As a host passes it along.
pub(crate) fn brought(template: &Template) -> Certificate {
    Certificate { cert_type: CertType::Vcek, data: template.der() }
}
