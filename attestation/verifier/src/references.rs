//! Reference values: what an owner expects of guests, one document for each kind of guest.
//!
//! A document is JSON. Evidence must fit one of them as a whole: the measurement of one and the policy
//! of another is no match. What a document leaves out is checked by the strictest reading, except
//! where a field says otherwise; a list or minimum that is not to be compared is `"any"`, in writing.

mod document;

use std::collections::BTreeMap;
use std::fmt;

use nacre_evidence::Tee;
use nacre_evidence::snp::{Product, Tcb};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;

use crate::checks::{Check, CheckCode};
use crate::verifier::Expected;
use document::Document;

/// Largest document, in bytes.
pub const DOCUMENT_LIMIT: usize = 64 * 1024;
/// Most values in a list.
pub const LIST_LIMIT: usize = 256;
/// Longest id, in bytes.
pub const ID_LIMIT: usize = 128;
/// Longest note, in bytes.
pub const NOTE_LIMIT: usize = 4096;

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Larger than [`DOCUMENT_LIMIT`].
    #[error("reference values: more than {DOCUMENT_LIMIT} bytes")]
    TooLarge,
    /// No JSON, or not of the documented shape.
    #[error("reference values: {0}")]
    Document(String),
}

/// `N` bytes, in JSON as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hex<N>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| de::Error::custom(format!("not {} hexadecimal digits", 2 * N)))?;
        Ok(Hex(bytes))
    }
}

/// What an owner expects of one kind of guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct ReferenceValues {
    /// Names the document: letters, digits, `.`, `_` and `-`.
    pub id: String,
    /// From then on the document does not count.
    pub expires: Option<OffsetDateTime>,
    /// For people.
    pub note: Option<String>,
    /// What is compared.
    pub values: Values,
}

/// What is compared, by TEE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// With SNP reports.
    Snp(SnpReferences),
    /// With TDX quotes.
    Tdx(TdxReferences),
}

/// What is compared with SNP reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpReferences {
    /// Launch digests; one must match.
    pub measurements: Vec<Hex<48>>,
    /// Least security versions.
    pub tcb_minimum: TcbMinimum,
    /// What the guest policy may and must say.
    pub policy: SnpPolicy,
    /// SHA-384 of keys that may have signed the ID block; empty: not compared.
    pub id_key_digests: Vec<Hex<48>>,
    /// SHA-384 of keys that may have certified the ID key; empty: not compared.
    pub author_key_digests: Vec<Hex<48>>,
}

/// Least security versions. Numbers of different products are not comparable, so each product that is
/// accepted has its own; one that is not listed is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcbMinimum {
    /// Not compared, `"any"` in JSON: old firmware with known holes is accepted.
    Any,
    /// By product, such as `{"milan": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}}`; Turin
    /// has `fmc` too.
    Products(BTreeMap<Product, Tcb>),
}

impl Serialize for TcbMinimum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TcbMinimum::Any => serializer.serialize_str("any"),
            TcbMinimum::Products(products) => products.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TcbMinimum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TcbMinimum, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Floor {
            fmc: Option<u8>,
            bootloader: u8,
            tee: u8,
            snp: u8,
            microcode: u8,
        }

        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected \"any\" or minima by product (milan, genoa, turin), \
            each with bootloader, tee, snp, microcode, and on turin fmc"
        )]
        enum Form {
            Word(String),
            Products(BTreeMap<Product, Floor>),
        }

        match Form::deserialize(deserializer)? {
            Form::Word(word) if word == "any" => Ok(TcbMinimum::Any),
            Form::Word(word) => {
                Err(de::Error::invalid_value(de::Unexpected::Str(&word), &"\"any\""))
            }
            Form::Products(products) => {
                let mut minima = BTreeMap::new();
                for (product, Floor { fmc, bootloader, tee, snp, microcode }) in products {
                    if fmc.is_some() != product.has_fmc() {
                        let problem = "fmc belongs to turin, and to turin only";
                        return Err(de::Error::custom(problem));
                    }
                    minima.insert(product, Tcb { fmc, bootloader, tee, snp, microcode });
                }
                Ok(TcbMinimum::Products(minima))
            }
        }
    }
}

/// What a guest policy may and must say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnpPolicy {
    /// The host may debug the guest. Never for anything that matters.
    pub debug: bool,
    /// Hyper-threads may be on; true where left out.
    pub smt: bool,
    /// A migration agent may be associated.
    pub migration_agent: bool,
    /// The guest must be bound to one socket.
    pub single_socket: bool,
    /// CXL devices or memory may be populated.
    pub cxl: bool,
    /// Ciphertext hiding must be required by the policy and on.
    pub ciphertext_hiding: bool,
    /// The platform must have checked that no memory addresses are aliases.
    pub alias_check: bool,
    /// The policy's own least ABI version, major and minor, must be at least this.
    pub minimum_abi: (u8, u8),
}

impl Default for SnpPolicy {
    fn default() -> Self {
        SnpPolicy {
            debug: false,
            smt: true,
            migration_agent: false,
            single_socket: false,
            cxl: false,
            ciphertext_hiding: false,
            alias_check: false,
            minimum_abi: (0, 0),
        }
    }
}

/// What is compared with TDX quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxReferences {
    /// Digests of the TD's initial contents (firmware); one must match.
    pub mr_td: Vec<Hex<48>>,
    /// Values of RTMR0 to RTMR3: firmware's configuration (it depends on the TD's memory), kernel,
    /// command line and initrd, and what the guest extends at run time.
    pub rtmr: [Allowed<Hex<48>>; 4],
    /// TCB statuses that are accepted, as Intel names them; `UpToDate` alone where left out.
    pub tcb_status: Vec<String>,
    /// Intel's advisories that are accepted, such as `INTEL-SA-00837`; none where left out.
    pub advisories: Allowed<String>,
    /// The host may debug the TD. Never for anything that matters.
    pub debug: bool,
}

/// Values of which one must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed<T> {
    /// Not compared, `"any"` in JSON.
    Any,
    /// These.
    These(Vec<T>),
}

impl<T: PartialEq> Allowed<T> {
    /// Whether `value` is accepted.
    #[must_use]
    pub fn accepts(&self, value: &T) -> bool {
        match self {
            Allowed::Any => true,
            Allowed::These(values) => values.contains(value),
        }
    }

    fn len(&self) -> usize {
        match self {
            Allowed::Any => 0,
            Allowed::These(values) => values.len(),
        }
    }
}

impl<T: Serialize> Serialize for Allowed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Allowed::Any => serializer.serialize_str("any"),
            Allowed::These(values) => values.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Allowed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Allowed<T>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"any\" or a list of values")]
        enum Form<T> {
            Word(String),
            These(Vec<T>),
        }

        match Form::deserialize(deserializer)? {
            Form::Word(word) if word == "any" => Ok(Allowed::Any),
            Form::Word(word) => {
                Err(de::Error::invalid_value(de::Unexpected::Str(&word), &"\"any\""))
            }
            Form::These(values) => Ok(Allowed::These(values)),
        }
    }
}

fn invalid(problem: impl Into<String>) -> ReferenceError {
    ReferenceError::Document(problem.into())
}

impl ReferenceValues {
    /// Reads a document.
    ///
    /// # Errors
    /// If it is too large, no JSON, has unknown members, or a value breaks its rules.
    pub fn parse(json: &[u8]) -> Result<ReferenceValues, ReferenceError> {
        if json.len() > DOCUMENT_LIMIT {
            return Err(ReferenceError::TooLarge);
        }
        serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))
    }

    /// The TEE whose evidence it is compared with.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        match self.values {
            Values::Snp(_) => Tee::Snp,
            Values::Tdx(_) => Tee::Tdx,
        }
    }

    /// Whether it counts no more.
    #[must_use]
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Compares with every document that counts. Where none fits as a whole, the checks are those of the
/// one that comes closest: the right `measurement` first, then the fewest failures.
pub(crate) fn best_match(
    tee: Tee,
    code: CheckCode,
    measurement: CheckCode,
    expected: &Expected<'_>,
    compare: impl Fn(&Values) -> Option<Vec<Check>>,
) -> (Option<String>, Vec<Check>) {
    let words = format!("reference values for {tee}");
    let mut expired = 0;
    let mut best: Option<(usize, &str, Vec<Check>)> = None;
    for document in expected.references.documents() {
        let Some(checks) = compare(&document.values) else { continue };
        if document.is_expired(expected.now) {
            expired += 1;
            continue;
        }
        let weight = |check: &Check| if check.code == measurement { 100 } else { 1 };
        let distance = checks.iter().filter(|check| check.is_failed()).map(weight).sum();
        if best.as_ref().is_none_or(|(least, ..)| distance < *least) {
            best = Some((distance, &document.id, checks));
        }
    }
    match best {
        Some((_, id, mut checks)) => {
            checks.push(Check::of(code, true, words, format!("compared with {id}"), ""));
            (Some(id.to_owned()), checks)
        }
        None => {
            let found = match expired {
                0 => "none are registered".to_owned(),
                expired => format!("{expired}, all expired"),
            };
            let fix = "register what `nacre measure` prints for the guest image (nacre kbs \
                reference-value add)";
            (None, vec![Check::of(code, false, words, found, fix)])
        }
    }
}

/// All documents that evidence may fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceSet(Vec<ReferenceValues>);

impl ReferenceSet {
    /// A set of documents, in the order in which they are tried.
    #[must_use]
    pub const fn new(documents: Vec<ReferenceValues>) -> ReferenceSet {
        ReferenceSet(documents)
    }

    /// The documents.
    #[must_use]
    pub fn documents(&self) -> &[ReferenceValues] {
        &self.0
    }
}
