//! SNP evidence as the key-broker protocol carries it: an object of the report's fields, byte arrays as
//! lists of numbers, and a list of certificates. It is the serde form of the types of the `sev` crate.
//!
//! What comes in is laid out as a report and parsed again, so that it holds nothing that a report of
//! its version could not. Members that are not known are passed over: what they would say is not in the
//! signed bytes.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::certificates::{
    CERTIFICATE_COUNT_LIMIT, CERTIFICATE_LIMIT, CertType, Certificate, Guid,
};
use super::report::{Report, ReportFields, ReportVersion, Signature};
use super::values::{Cpuid, FirmwareVersion, GuestPolicy, KeyInfo, Mitigations, PlatformInfo, Tcb};
use crate::EvidenceError;

const WHAT: &str = "SNP evidence";

/// Reads the protocol's form.
///
/// # Errors
/// If it has another shape, exceeds the limits, or holds what no report can.
pub fn from_value(value: &Value) -> Result<(Report, Vec<Certificate>), EvidenceError> {
    let wire =
        WireEvidence::deserialize(value).map_err(|error| EvidenceError::malformed(WHAT, error))?;
    let certificates = wire
        .cert_chain
        .map(|list| list.0.into_iter().map(Certificate::from).collect())
        .unwrap_or_default();
    Ok((wire.attestation_report.into_report()?, certificates))
}

/// Writes the protocol's form; without certificates `cert_chain` is null.
#[must_use]
pub fn to_value(report: &Report, certificates: &[Certificate]) -> Value {
    let cert_chain = (!certificates.is_empty())
        .then(|| Bounded(certificates.iter().map(WireCertificate::from).collect()));
    let wire = WireEvidence { attestation_report: WireReport::from(report), cert_chain };
    serde_json::to_value(wire).expect("strings, numbers and lists")
}

#[derive(Serialize, Deserialize)]
struct WireEvidence {
    attestation_report: WireReport,
    #[serde(default)]
    cert_chain: Option<Bounded<WireCertificate, CERTIFICATE_COUNT_LIMIT>>,
}

#[derive(Serialize, Deserialize)]
struct WireReport {
    version: u32,
    guest_svn: u32,
    policy: GuestPolicy,
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: Tcb,
    plat_info: PlatformInfo,
    key_info: KeyInfo,
    report_data: Bytes<64>,
    measurement: Bytes<48>,
    host_data: Bytes<32>,
    id_key_digest: Bytes<48>,
    author_key_digest: Bytes<48>,
    report_id: Bytes<32>,
    report_id_ma: Bytes<32>,
    reported_tcb: Tcb,
    #[serde(default)]
    cpuid_fam_id: Option<u8>,
    #[serde(default)]
    cpuid_mod_id: Option<u8>,
    #[serde(default)]
    cpuid_step: Option<u8>,
    chip_id: Bytes<64>,
    committed_tcb: Tcb,
    current: FirmwareVersion,
    committed: FirmwareVersion,
    launch_tcb: Tcb,
    #[serde(default)]
    launch_mit_vector: Option<u64>,
    #[serde(default)]
    current_mit_vector: Option<u64>,
    signature: WireSignature,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    r: Bytes<72>,
    s: Bytes<72>,
}

impl WireReport {
    fn into_report(self) -> Result<Report, EvidenceError> {
        let cpuid = match (self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step) {
            (Some(family), Some(model), Some(stepping)) => Some(Cpuid { family, model, stepping }),
            (None, None, None) => None,
            _ => return Err(EvidenceError::Inconsistent),
        };
        let mitigations = match (self.launch_mit_vector, self.current_mit_vector) {
            (Some(launch), Some(current)) => Some(Mitigations { launch, current }),
            (None, None) => None,
            _ => return Err(EvidenceError::Inconsistent),
        };
        let fields = ReportFields {
            version: ReportVersion::of_number(self.version)?,
            guest_svn: self.guest_svn,
            policy: self.policy,
            family_id: self.family_id.0,
            image_id: self.image_id.0,
            vmpl: self.vmpl,
            signature_algorithm: self.sig_algo,
            current_tcb: self.current_tcb,
            platform_info: self.plat_info,
            key_info: self.key_info,
            report_data: self.report_data.0,
            measurement: self.measurement.0,
            host_data: self.host_data.0,
            id_key_digest: self.id_key_digest.0,
            author_key_digest: self.author_key_digest.0,
            report_id: self.report_id.0,
            report_id_ma: self.report_id_ma.0,
            reported_tcb: self.reported_tcb,
            cpuid,
            chip_id: self.chip_id.0,
            committed_tcb: self.committed_tcb,
            current_version: self.current,
            committed_version: self.committed,
            launch_tcb: self.launch_tcb,
            mitigations,
        };
        fields.attach_signature(&Signature { r: self.signature.r.0, s: self.signature.s.0 })
    }
}

impl From<&Report> for WireReport {
    fn from(report: &Report) -> WireReport {
        let fields = report.fields();
        WireReport {
            version: fields.version.number(),
            guest_svn: fields.guest_svn,
            policy: fields.policy,
            family_id: Bytes(fields.family_id),
            image_id: Bytes(fields.image_id),
            vmpl: fields.vmpl,
            sig_algo: fields.signature_algorithm,
            current_tcb: fields.current_tcb,
            plat_info: fields.platform_info,
            key_info: fields.key_info,
            report_data: Bytes(fields.report_data),
            measurement: Bytes(fields.measurement),
            host_data: Bytes(fields.host_data),
            id_key_digest: Bytes(fields.id_key_digest),
            author_key_digest: Bytes(fields.author_key_digest),
            report_id: Bytes(fields.report_id),
            report_id_ma: Bytes(fields.report_id_ma),
            reported_tcb: fields.reported_tcb,
            cpuid_fam_id: fields.cpuid.map(|cpuid| cpuid.family),
            cpuid_mod_id: fields.cpuid.map(|cpuid| cpuid.model),
            cpuid_step: fields.cpuid.map(|cpuid| cpuid.stepping),
            chip_id: Bytes(fields.chip_id),
            committed_tcb: fields.committed_tcb,
            current: fields.current_version,
            committed: fields.committed_version,
            launch_tcb: fields.launch_tcb,
            launch_mit_vector: fields.mitigations.map(|vectors| vectors.launch),
            current_mit_vector: fields.mitigations.map(|vectors| vectors.current),
            signature: WireSignature {
                r: Bytes(report.signature().r),
                s: Bytes(report.signature().s),
            },
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireCertificate {
    cert_type: WireCertType,
    data: Bounded<u8, CERTIFICATE_LIMIT>,
}

/// The names of the `sev` crate.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum WireCertType {
    Ark,
    Ask,
    Vcek,
    Vlek,
    Crl,
    Other(WireGuid),
}

impl From<WireCertificate> for Certificate {
    fn from(wire: WireCertificate) -> Certificate {
        let cert_type = match wire.cert_type {
            WireCertType::Ark => CertType::Ark,
            WireCertType::Ask => CertType::Ask,
            WireCertType::Vcek => CertType::Vcek,
            WireCertType::Vlek => CertType::Vlek,
            WireCertType::Crl => CertType::Crl,
            WireCertType::Other(WireGuid(guid)) => CertType::of_guid(guid),
        };
        Certificate { cert_type, data: wire.data.0 }
    }
}

impl From<&Certificate> for WireCertificate {
    fn from(certificate: &Certificate) -> WireCertificate {
        let cert_type = match certificate.cert_type {
            CertType::Ark => WireCertType::Ark,
            CertType::Ask => WireCertType::Ask,
            CertType::Vcek => WireCertType::Vcek,
            CertType::Vlek => WireCertType::Vlek,
            CertType::Crl => WireCertType::Crl,
            CertType::Other(guid) => WireCertType::Other(WireGuid(guid)),
        };
        WireCertificate { cert_type, data: Bounded(certificate.data.clone()) }
    }
}

#[derive(Clone, Copy)]
struct WireGuid(Guid);

impl Serialize for WireGuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WireGuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WireGuid, D::Error> {
        let text = String::deserialize(deserializer)?;
        Guid::parse(&text).map(WireGuid).ok_or_else(|| D::Error::custom("not a GUID"))
    }
}

/// Exactly `N` bytes, as a list of numbers.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes<N>, D::Error> {
        let list = Bounded::<u8, N>::deserialize(deserializer)?.0;
        let length = list.len();
        let bytes = list.try_into();
        bytes.map(Bytes).map_err(|_| D::Error::invalid_length(length, &Entries(N)))
    }
}

/// A list of at most `MAX` entries; reading stops at the first beyond.
struct Bounded<T, const MAX: usize>(Vec<T>);

impl<T: Serialize, const MAX: usize> Serialize for Bounded<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for entry in &self.0 {
            list.serialize_element(entry)?;
        }
        list.end()
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bounded<T, MAX>, D::Error> {
        struct Reading<T, const MAX: usize>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Reading<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    entries.push(entry);
                }
                Ok(Bounded(entries))
            }
        }

        deserializer.deserialize_seq(Reading(std::marker::PhantomData))
    }
}

struct Entries(usize);

impl serde::de::Expected for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::snp::Product;

    fn report() -> Report {
        let mut bytes = [0; super::super::REPORT_SIZE];
        bytes[0] = 3;
        bytes[0x188..0x18a].copy_from_slice(&[0x19, 0x11]);
        bytes[0x2a0] = 200;
        Report::parse(&bytes).unwrap()
    }

    fn certificates() -> Vec<Certificate> {
        let other = CertType::Other(Guid([0x5a; 16]));
        [CertType::Ark, CertType::Ask, CertType::Vcek, CertType::Vlek, CertType::Crl, other]
            .into_iter()
            .map(|cert_type| Certificate { cert_type, data: vec![1, 2, 255] })
            .collect()
    }

    #[test]
    fn the_form_round_trips() {
        let value = to_value(&report(), &certificates());
        assert_eq!(value["cert_chain"][2]["cert_type"], "VCEK");
        let other = "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a";
        assert_eq!(value["cert_chain"][5]["cert_type"], json!({ "OTHER": other }));
        assert_eq!(from_value(&value).unwrap(), (report(), certificates()));
        let alone = to_value(&report(), &[]);
        assert_eq!(alone["cert_chain"], Value::Null);
        assert_eq!(from_value(&alone).unwrap(), (report(), Vec::new()));
        assert_eq!(report().fields().product(), Some(Product::Genoa));
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_newer_may_be_left_out() {
        let mut value = to_value(&report(), &[]);
        let members = value["attestation_report"].as_object_mut().unwrap();
        members.remove("launch_mit_vector");
        members.remove("current_mit_vector");
        members.insert("added_one_day".to_owned(), json!([1]));
        value.as_object_mut().unwrap().remove("cert_chain");
        assert_eq!(from_value(&value).unwrap(), (report(), Vec::new()));
    }

    #[test]
    fn hostile_forms_are_refused() {
        let refused = |pointer: &str, with: Value| {
            let mut value = to_value(&report(), &certificates());
            *value.pointer_mut(pointer).unwrap() = with.clone();
            assert!(from_value(&value).is_err(), "{pointer}: {with}");
        };
        refused("/attestation_report", Value::Null);
        refused("/attestation_report/version", json!(4));
        refused("/attestation_report/version", json!(-3));
        refused("/attestation_report/version", json!(2));
        refused("/attestation_report/version", json!(5));
        refused("/attestation_report/policy", json!(1.5));
        refused("/attestation_report/measurement", json!([0; 47].as_slice()));
        refused("/attestation_report/measurement", json!(vec![0; 49]));
        refused("/attestation_report/measurement/0", json!(256));
        refused("/attestation_report/chip_id", json!("00"));
        refused("/attestation_report/current_tcb/fmc", json!(1));
        refused("/attestation_report/cpuid_fam_id", Value::Null);
        refused("/attestation_report/cpuid_mod_id", json!(0x30));
        refused("/attestation_report/launch_mit_vector", json!(1));
        refused("/attestation_report/signature/r", json!([]));
        refused("/cert_chain", json!({}));
        refused("/cert_chain/0/cert_type", json!("PDH"));
        refused("/cert_chain/0/cert_type", json!({ "OTHER": "no guid" }));
        refused("/cert_chain/0/data", json!(vec![0; CERTIFICATE_LIMIT + 1]));
        let certificate = json!({ "cert_type": "ARK", "data": [] });
        refused("/cert_chain", json!(vec![certificate; CERTIFICATE_COUNT_LIMIT + 1]));
    }
}
