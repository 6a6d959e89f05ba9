//! The JSON form of reference values, and its rules.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    Allowed, Hex, ID_LIMIT, LIST_LIMIT, NOTE_LIMIT, ReferenceError, ReferenceValues, SnpPolicy,
    SnpReferences, TcbMinimum, TdxReferences, Values, invalid,
};

const VERSION: u32 = 1;
/// Intel's names, without `Revoked`, which is never accepted.
const TCB_STATUSES: [&str; 8] = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
];

/// A document as JSON has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "tee", rename_all = "lowercase")]
pub(super) enum Document {
    Snp(SnpDocument),
    Tdx(TdxDocument),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnpDocument {
    version: u32,
    id: String,
    measurements: Vec<Hex<48>>,
    tcb_minimum: TcbMinimum,
    #[serde(default)]
    policy: SnpPolicy,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    id_key_digests: Vec<Hex<48>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    author_key_digests: Vec<Hex<48>>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    expires: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TdxDocument {
    version: u32,
    id: String,
    mr_td: Vec<Hex<48>>,
    rtmr0: Allowed<Hex<48>>,
    rtmr1: Allowed<Hex<48>>,
    rtmr2: Allowed<Hex<48>>,
    rtmr3: Allowed<Hex<48>>,
    #[serde(default = "up_to_date")]
    tcb_status: Vec<String>,
    #[serde(default = "none")]
    advisories: Allowed<String>,
    #[serde(default)]
    debug: bool,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    expires: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

fn up_to_date() -> Vec<String> {
    vec!["UpToDate".to_owned()]
}

const fn none() -> Allowed<String> {
    Allowed::These(Vec::new())
}

impl TryFrom<Document> for ReferenceValues {
    type Error = ReferenceError;

    fn try_from(document: Document) -> Result<ReferenceValues, ReferenceError> {
        match document {
            Document::Snp(document) => document.try_into(),
            Document::Tdx(document) => document.try_into(),
        }
    }
}

impl TryFrom<SnpDocument> for ReferenceValues {
    type Error = ReferenceError;

    fn try_from(document: SnpDocument) -> Result<ReferenceValues, ReferenceError> {
        header(document.version, &document.id, document.note.as_deref())?;
        list("measurements", document.measurements.len())?;
        list("id_key_digests", document.id_key_digests.len())?;
        list("author_key_digests", document.author_key_digests.len())?;
        if document.measurements.is_empty() {
            return Err(invalid("measurements is empty"));
        }
        Ok(ReferenceValues {
            id: document.id,
            expires: document.expires,
            note: document.note,
            values: Values::Snp(SnpReferences {
                measurements: document.measurements,
                tcb_minimum: document.tcb_minimum,
                policy: document.policy,
                id_key_digests: document.id_key_digests,
                author_key_digests: document.author_key_digests,
            }),
        })
    }
}

impl TryFrom<TdxDocument> for ReferenceValues {
    type Error = ReferenceError;

    fn try_from(document: TdxDocument) -> Result<ReferenceValues, ReferenceError> {
        header(document.version, &document.id, document.note.as_deref())?;
        list("mr_td", document.mr_td.len())?;
        list("tcb_status", document.tcb_status.len())?;
        list("advisories", document.advisories.len())?;
        let rtmr = [document.rtmr0, document.rtmr1, document.rtmr2, document.rtmr3];
        for (name, allowed) in ["rtmr0", "rtmr1", "rtmr2", "rtmr3"].into_iter().zip(&rtmr) {
            list(name, allowed.len())?;
        }
        if document.mr_td.is_empty() {
            return Err(invalid("mr_td is empty"));
        }
        for status in &document.tcb_status {
            if !TCB_STATUSES.contains(&status.as_str()) {
                let known = TCB_STATUSES.join(", ");
                return Err(invalid(format!("tcb_status {status:?} is not one of {known}")));
            }
        }
        Ok(ReferenceValues {
            id: document.id,
            expires: document.expires,
            note: document.note,
            values: Values::Tdx(TdxReferences {
                mr_td: document.mr_td,
                rtmr,
                tcb_status: document.tcb_status,
                advisories: document.advisories,
                debug: document.debug,
            }),
        })
    }
}

impl From<ReferenceValues> for Document {
    fn from(reference: ReferenceValues) -> Document {
        let ReferenceValues { id, expires, note, values } = reference;
        match values {
            Values::Snp(values) => Document::Snp(SnpDocument {
                version: VERSION,
                id,
                measurements: values.measurements,
                tcb_minimum: values.tcb_minimum,
                policy: values.policy,
                id_key_digests: values.id_key_digests,
                author_key_digests: values.author_key_digests,
                expires,
                note,
            }),
            Values::Tdx(TdxReferences { mr_td, rtmr, tcb_status, advisories, debug }) => {
                let [rtmr0, rtmr1, rtmr2, rtmr3] = rtmr;
                Document::Tdx(TdxDocument {
                    version: VERSION,
                    id,
                    mr_td,
                    rtmr0,
                    rtmr1,
                    rtmr2,
                    rtmr3,
                    tcb_status,
                    advisories,
                    debug,
                    expires,
                    note,
                })
            }
        }
    }
}

fn header(version: u32, id: &str, note: Option<&str>) -> Result<(), ReferenceError> {
    if version != VERSION {
        return Err(invalid(format!("version {version} is not known; this program reads 1")));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if id.is_empty() || id.len() > ID_LIMIT || !id.bytes().all(allowed) {
        return Err(invalid("id must be 1 to 128 letters, digits, '.', '_' or '-'"));
    }
    if note.is_some_and(|note| note.len() > NOTE_LIMIT) {
        return Err(invalid(format!("note of more than {NOTE_LIMIT} bytes")));
    }
    Ok(())
}

fn list(name: &str, length: usize) -> Result<(), ReferenceError> {
    if length > LIST_LIMIT {
        return Err(invalid(format!("{name} has more than {LIST_LIMIT} values")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::super::DOCUMENT_LIMIT;
    use super::*;

    fn snp() -> Value {
        json!({
            "version": 1, "id": "guest-0.1.0-1vcpu", "tee": "snp",
            "measurements": ["AB".repeat(48)],
            "tcb_minimum": {
                "milan": { "bootloader": 3, "tee": 0, "snp": 8, "microcode": 115 },
                "turin": { "fmc": 1, "bootloader": 3, "tee": 2, "snp": 5, "microcode": 97 },
            },
            "policy": { "smt": false, "minimum_abi": [0, 31] },
            "expires": "2027-01-01T00:00:00Z",
            "note": "the release",
        })
    }

    fn tdx() -> Value {
        json!({
            "version": 1, "id": "td", "tee": "tdx", "mr_td": ["cd".repeat(48)],
            "rtmr0": "any", "rtmr1": [], "rtmr2": ["ef".repeat(48)], "rtmr3": "any",
        })
    }

    fn parse(value: &Value) -> Result<ReferenceValues, ReferenceError> {
        ReferenceValues::parse(value.to_string().as_bytes())
    }

    #[test]
    fn documents_round_trip() {
        for value in [snp(), tdx()] {
            let document = parse(&value).unwrap();
            let written = serde_json::to_value(&document).unwrap();
            assert_eq!(parse(&written).unwrap(), document);
            assert_eq!(written["tee"], document.tee().name());
        }
        let document = parse(&snp()).unwrap();
        let Values::Snp(values) = &document.values else { panic!("not SNP") };
        assert_eq!(values.measurements, [Hex([0xab; 48])]);
        assert!(!values.policy.smt && !values.policy.debug);
        let Values::Tdx(values) = parse(&tdx()).unwrap().values else { panic!("not TDX") };
        assert_eq!(values.tcb_status, ["UpToDate"]);
        assert_eq!(values.advisories, Allowed::These(Vec::new()));
    }

    #[test]
    fn documents_expire_at_their_moment() {
        let document = parse(&snp()).unwrap();
        assert!(!document.is_expired(datetime!(2026-12-31 23:59:59 UTC)));
        assert!(document.is_expired(datetime!(2027-01-01 00:00 UTC)));
        assert!(!parse(&tdx()).unwrap().is_expired(datetime!(2999-01-01 00:00 UTC)));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let refused = |base: Value, member: &str, with: Value| {
            let mut value = base;
            value[member] = with.clone();
            assert!(parse(&value).is_err(), "{member}: {with}");
        };
        let digests = |count: usize| json!(vec!["00".repeat(48); count]);
        refused(snp(), "version", json!(2));
        refused(snp(), "tee", json!("sev"));
        refused(snp(), "tee", json!("tdx"));
        for id in ["", "a/b", "a b", &"x".repeat(ID_LIMIT + 1)] {
            refused(snp(), "id", json!(id));
        }
        refused(snp(), "measurements", json!([]));
        refused(snp(), "measurements", json!(["00"]));
        refused(snp(), "measurements", digests(LIST_LIMIT + 1));
        refused(snp(), "id_key_digests", digests(LIST_LIMIT + 1));
        refused(snp(), "tcb_minimum", Value::Null);
        refused(snp(), "tcb_minimum", json!("none"));
        refused(snp(), "tcb_minimum", json!({ "rome": {} }));
        let floor = json!({ "bootloader": 3, "tee": 0, "snp": 8, "microcode": 115 });
        refused(snp(), "tcb_minimum", json!({ "turin": floor }));
        let mut with_fmc = floor.clone();
        with_fmc["fmc"] = json!(1);
        refused(snp(), "tcb_minimum", json!({ "genoa": with_fmc }));
        refused(snp(), "tcb_minimum", json!({ "genoa": { "snp": 8 } }));
        refused(snp(), "policy", json!({ "debugging": false }));
        refused(snp(), "surprise", json!(1));
        refused(snp(), "expires", json!("tomorrow"));
        refused(snp(), "note", json!("x".repeat(NOTE_LIMIT + 1)));
        refused(tdx(), "mr_td", json!([]));
        refused(tdx(), "rtmr1", Value::Null);
        refused(tdx(), "rtmr1", json!("some"));
        refused(tdx(), "rtmr1", digests(LIST_LIMIT + 1));
        refused(tdx(), "tcb_status", json!(["Revoked"]));
        refused(tdx(), "measurements", digests(1));
        let large = vec![b' '; DOCUMENT_LIMIT + 1];
        assert_eq!(ReferenceValues::parse(&large), Err(ReferenceError::TooLarge));
    }
}
