//! Reference values as they are registered: Nacre's documents, and Trustee's names and lists.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nacre_evidence::snp::{Product, Tcb};
use nacre_verifier::{
    Allowed, Hex, ReferenceValues, SnpPolicy, SnpReferences, TcbMinimum, TdxReferences, Values,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Largest registration, in bytes.
pub(crate) const REGISTRATION_LIMIT: usize = 256 * 1024;
/// Identifiers of the documents that Trustee's values make.
pub(crate) const TRUSTEE_SNP: &str = "trustee-snp";
pub(crate) const TRUSTEE_TDX: &str = "trustee-tdx";
/// Most values that Trustee's names have altogether.
const TRUSTEE_LIMIT: usize = 1024;

const MEASUREMENT: &str = "snp_launch_measurement";
const TCB: [&str; 4] = ["snp_bootloader", "snp_tee_svn", "snp_snp_svn", "snp_microcode"];
const TDX: [&str; 3] = ["mr_td", "rtmr_1", "rtmr_2"];
const SMT_ALLOWED: &str = "snp_smt_allowed";
const SINGLE_SOCKET: &str = "snp_single_socket";

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistrationError {
    /// It has neither form.
    #[error(
        "it is neither {{\"reference-values\": {{...}}}} with a document of `nacre measure`, nor Trustee's \
         {{\"version\", \"type\": \"sample\", \"payload\"}}: {0}"
    )]
    Form(String),
    /// Another kind of payload.
    #[error("payloads of type {0:?} are not read; use \"sample\"")]
    Type(String),
    /// A name's values.
    #[error("reference values {name}: {problem}")]
    Value {
        /// The name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Values by Trustee's names, as they were last registered.
pub(crate) type TrusteeValues = BTreeMap<String, Vec<Value>>;

/// What was registered.
#[derive(Debug)]
pub(crate) enum Registration {
    /// A document of Nacre's.
    Document(Box<ReferenceValues>),
    /// Values by Trustee's names.
    Trustee(TrusteeValues),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OwnForm {
    reference_values: Value,
}

#[derive(Deserialize)]
struct TrusteeForm {
    #[serde(rename = "type")]
    kind: String,
    payload: String,
}

/// Reads a registration in one of its forms.
pub(crate) fn parse(body: &[u8]) -> Result<Registration, RegistrationError> {
    let form = |error: &dyn std::fmt::Display| RegistrationError::Form(error.to_string());
    let value: Value = serde_json::from_slice(body).map_err(|error| form(&error))?;
    if value.get("reference-values").is_some() {
        let own: OwnForm = serde_json::from_value(value).map_err(|error| form(&error))?;
        let text = own.reference_values.to_string();
        let document = ReferenceValues::parse(text.as_bytes()).map_err(|error| form(&error))?;
        return Ok(Registration::Document(Box::new(document)));
    }
    // Trustee's RVPS takes the message as an object, or as text within one.
    let inner = value.get("message").and_then(Value::as_str).map(serde_json::from_str);
    let value = inner.transpose().map_err(|error| form(&error))?.unwrap_or(value);
    let trustee: TrusteeForm = serde_json::from_value(value).map_err(|error| form(&error))?;
    if trustee.kind != "sample" {
        return Err(RegistrationError::Type(trustee.kind.chars().take(32).collect()));
    }
    let payload = STANDARD
        .decode(&trustee.payload)
        .or_else(|_| URL_SAFE_NO_PAD.decode(&trustee.payload))
        .map_err(|error| form(&error))?;
    let named: Map<String, Value> =
        serde_json::from_slice(&payload).map_err(|error| form(&error))?;
    let listed = named.into_iter().map(|(name, value)| match value {
        Value::Array(values) => (name, values),
        single => (name, vec![single]),
    });
    let values: TrusteeValues = listed.collect();
    if values.values().map(Vec::len).sum::<usize>() + values.len() > TRUSTEE_LIMIT {
        return Err(form(&format!("more than {TRUSTEE_LIMIT} names and values")));
    }
    check(&values)?;
    Ok(Registration::Trustee(values))
}

fn check(values: &TrusteeValues) -> Result<(), RegistrationError> {
    let wrong =
        |name: &str, problem| Err(RegistrationError::Value { name: name.to_owned(), problem });
    for (name, values) in values {
        let is_digest = name == MEASUREMENT || TDX.contains(&name.as_str());
        if is_digest && !values.iter().all(|value| measurement(value).is_some()) {
            return wrong(name, "a measurement is 48 bytes in hexadecimal or base64");
        }
        if TCB.contains(&name.as_str()) && !values.iter().all(|value| version(value).is_some()) {
            return wrong(name, "a security version is a number from 0 to 255");
        }
        let flag = [SMT_ALLOWED, SINGLE_SOCKET].contains(&name.as_str());
        if flag && !values.iter().all(|value| truth(value).is_some()) {
            return wrong(name, "it is true or false");
        }
    }
    Ok(())
}

/// What is still missing for the documents that Trustee's values begin: without these, Trustee's own
/// default policy accepts nothing.
pub(crate) fn missing(values: &TrusteeValues) -> Vec<&'static str> {
    let snp = [&[MEASUREMENT], TCB.as_slice()].concat();
    let begun = |names: &[&str]| names.iter().any(|name| !is_empty(values, name));
    let names = if begun(&TDX) && !begun(&snp) { Vec::new() } else { snp };
    let tdx = if begun(&TDX) { TDX.as_slice() } else { &[] };
    names.into_iter().chain(tdx.iter().copied()).filter(|name| is_empty(values, name)).collect()
}

fn is_empty(values: &TrusteeValues, name: &str) -> bool {
    values.get(name).is_none_or(Vec::is_empty)
}

/// Names that are kept, listed, and compared with nothing.
pub(crate) fn ignored(values: &TrusteeValues) -> Vec<String> {
    let known = [&[MEASUREMENT, SMT_ALLOWED, SINGLE_SOCKET], TCB.as_slice(), &TDX].concat();
    values.keys().filter(|name| !known.contains(&name.as_str())).cloned().collect()
}

/// The documents that Trustee's values make.
pub(crate) fn documents(values: &TrusteeValues) -> Vec<ReferenceValues> {
    [snp(values), tdx(values)].into_iter().flatten().collect()
}

/// Of security versions, which Trustee lists one by one, the least is the minimum for every product.
fn snp(values: &TrusteeValues) -> Option<ReferenceValues> {
    if [&[MEASUREMENT], TCB.as_slice()].concat().iter().any(|name| is_empty(values, name)) {
        return None;
    }
    let least = |name: &str| values.get(name)?.iter().filter_map(version).min();
    let all = |name: &str| values.get(name).map(|values| values.iter().filter_map(truth));
    let [bootloader, tee, snp, microcode] = TCB.map(least);
    let floor = |product: Product| {
        let fmc = product.has_fmc().then_some(0);
        Some((
            product,
            Tcb { fmc, bootloader: bootloader?, tee: tee?, snp: snp?, microcode: microcode? },
        ))
    };
    let minima = Product::ALL.into_iter().map(floor).collect::<Option<BTreeMap<_, _>>>()?;
    let policy = SnpPolicy {
        smt: all(SMT_ALLOWED).is_none_or(|mut values| values.any(|truth| truth)),
        single_socket: all(SINGLE_SOCKET).is_some_and(|mut values| values.all(|truth| truth)),
        ..SnpPolicy::default()
    };
    Some(ReferenceValues {
        id: TRUSTEE_SNP.to_owned(),
        expires: None,
        note: Some("registered in Trustee's form".to_owned()),
        values: Values::Snp(SnpReferences {
            measurements: values
                .get(MEASUREMENT)?
                .iter()
                .filter_map(measurement)
                .map(Hex)
                .collect(),
            tcb_minimum: TcbMinimum::Products(minima),
            policy,
            id_key_digests: Vec::new(),
            author_key_digests: Vec::new(),
        }),
    })
}

/// As Trustee's default policy: firmware, kernel, command line and initrd, on an up-to-date platform.
fn tdx(values: &TrusteeValues) -> Option<ReferenceValues> {
    if TDX.iter().any(|name| is_empty(values, name)) {
        return None;
    }
    let [mr_td, rtmr_1, rtmr_2] = TDX.map(|name| {
        let listed = values.get(name).into_iter().flatten();
        listed.filter_map(measurement).map(Hex).collect::<Vec<_>>()
    });
    Some(ReferenceValues {
        id: TRUSTEE_TDX.to_owned(),
        expires: None,
        note: Some("registered in Trustee's form".to_owned()),
        values: Values::Tdx(TdxReferences {
            mr_td,
            rtmr: [Allowed::Any, Allowed::These(rtmr_1), Allowed::These(rtmr_2), Allowed::Any],
            tcb_status: vec!["UpToDate".to_owned()],
            advisories: Allowed::Any,
            debug: false,
        }),
    })
}

fn measurement(value: &Value) -> Option<[u8; 48]> {
    let text = value.as_str()?;
    let bytes = hex::decode(text).ok().or_else(|| STANDARD.decode(text).ok());
    bytes?.try_into().ok()
}

/// A number, or one in a string as older forms have it.
fn version(value: &Value) -> Option<u8> {
    let number = value.as_u64().and_then(|number| u8::try_from(number).ok());
    number.or_else(|| value.as_str()?.parse().ok())
}

fn truth(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trustee(values: &Value) -> Result<Registration, RegistrationError> {
        let payload = STANDARD.encode(values.to_string());
        let message = json!({"version": "0.1.0", "type": "sample", "payload": payload});
        parse(message.to_string().as_bytes())
    }

    fn values(value: &Value) -> TrusteeValues {
        match trustee(value).unwrap() {
            Registration::Trustee(values) => values,
            Registration::Document(_) => panic!("Trustee's form"),
        }
    }

    #[test]
    fn trustees_values_make_a_document() {
        let partial =
            values(&json!({"snp_launch_measurement": ["ab".repeat(48)], "launch_digest": 1}));
        assert_eq!(missing(&partial), TCB);
        assert_eq!(documents(&partial), []);
        let whole = values(&json!({
            "snp_launch_measurement": ["ab".repeat(48), STANDARD.encode([1; 48])],
            "snp_bootloader": [4, "3"],
            "snp_tee_svn": 0,
            "snp_snp_svn": [23],
            "snp_microcode": [84, 72],
            "snp_smt_allowed": [false],
            "tdvfkernel": "x",
        }));
        assert_eq!(ignored(&whole), ["tdvfkernel"]);
        let made = documents(&whole).remove(0);
        let Values::Snp(snp) = &made.values else { panic!("SNP") };
        assert_eq!(snp.measurements, [Hex([0xab; 48]), Hex([1; 48])]);
        let TcbMinimum::Products(minima) = &snp.tcb_minimum else { panic!("products") };
        let milan = Tcb { fmc: None, bootloader: 3, tee: 0, snp: 23, microcode: 72 };
        assert_eq!(minima[&Product::Milan], milan);
        assert!(!snp.policy.smt && !snp.policy.debug);
        // What is made can be registered.
        let text = serde_json::to_vec(&made).unwrap();
        assert_eq!(ReferenceValues::parse(&text).unwrap(), made);
    }

    #[test]
    fn trustees_tdx_values_make_a_document() {
        let digest = |byte: &str| json!([byte.repeat(48)]);
        let partial = values(&json!({"mr_td": digest("01"), "rtmr_1": digest("02")}));
        assert_eq!((missing(&partial), documents(&partial)), (vec!["rtmr_2"], vec![]));
        let whole = values(&json!({
            "mr_td": digest("01"), "rtmr_1": digest("02"), "rtmr_2": digest("03"), "xfam": ["e7"],
        }));
        assert_eq!((missing(&whole), ignored(&whole)), (vec![], vec!["xfam".to_owned()]));
        let made = documents(&whole).remove(0);
        let text = serde_json::to_vec(&made).unwrap();
        assert_eq!(ReferenceValues::parse(&text).unwrap(), made);
        let Values::Tdx(tdx) = &made.values else { panic!("TDX") };
        assert_eq!(tdx.rtmr[2], Allowed::These(vec![Hex([3; 48])]));
        assert!(!tdx.debug);
    }

    #[test]
    fn what_is_no_registration_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"reference-values":{}}"#,
            r#"{"reference-values":{},"x":1}"#,
            r#"{"version":"0.1.0","type":"sample","payload":"*"}"#,
            r#"{"version":"0.1.0","type":"sample","payload":"AAAA"}"#,
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(RegistrationError::Form(_))), "{bad}");
        }
        let corim = r#"{"version":"0.1.0","type":"corim","payload":""}"#;
        assert!(matches!(parse(corim.as_bytes()), Err(RegistrationError::Type(_))));
        for bad in [
            json!({"snp_launch_measurement": ["abcd"]}),
            json!({"snp_launch_measurement": 7}),
            json!({"snp_bootloader": [256]}),
            json!({"snp_smt_allowed": "perhaps"}),
        ] {
            assert!(matches!(trustee(&bad), Err(RegistrationError::Value { .. })), "{bad}");
        }
        let many: Vec<u64> = (0..2000).map(|_| 1).collect();
        assert!(matches!(trustee(&json!({"x": many})), Err(RegistrationError::Form(_))));
    }
}
