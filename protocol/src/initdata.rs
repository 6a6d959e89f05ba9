//! Initdata: what a pod's owner hands to the guest at its start, above all the policy.
//!
//! It is one TOML document (version, digest algorithm, named files) in the form that Confidential
//! Containers defined. It travels as base64 of gzip in an annotation of the pod, and from the host
//! into the guest on a small read-only disk. The host carries it and may change it on the way: what
//! vouches for it is [`Initdata::digest`], where the guest's hardware reports it. Every decoding here
//! is bounded before anything is known about the bytes.

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use sha2::Digest as _;

pub use file::{FileError, read_file};

/// Annotation of a pod that carries its initdata: base64 of gzip of the TOML document.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Serial number of the virtual disk that carries it into the guest.
pub const DISK_SERIAL: &str = "nacre-initdata";
/// Name of the policy among the document's files.
pub const POLICY: &str = "policy.rego";

/// Longest annotation text, in bytes.
pub const ANNOTATION_LIMIT: usize = 1024 * 1024;
/// Largest compressed document, in bytes: what an annotation of [`ANNOTATION_LIMIT`] can hold.
pub const PACKED_LIMIT: usize = ANNOTATION_LIMIT / 4 * 3;
/// Largest document, in bytes.
pub const TEXT_LIMIT: usize = 4 * 1024 * 1024;
/// Most files in a document.
pub const FILE_LIMIT: usize = 64;
/// Longest name of a file, in bytes.
pub const NAME_LIMIT: usize = 128;

const VERSION: &str = "0.1.0";
const DISK_MAGIC: &[u8; 8] = b"initdata";
const DISK_HEADER: usize = DISK_MAGIC.len() + size_of::<u64>();
const SECTOR: usize = 512;

/// Why bytes are no initdata, or something cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitdataError {
    /// More bytes than this program handles.
    #[error(
        "initdata: {what} of more than {limit} bytes; make the policy or the other files smaller"
    )]
    TooLarge {
        /// Which form of it.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// The annotation is no base64.
    #[error(
        "initdata: the annotation is not base64 ({0}); it is base64 of gzip of a TOML document"
    )]
    Base64(String),
    /// What is compressed is no gzip, or is damaged.
    #[error("initdata: the compressed document is not gzip or is damaged ({0})")]
    Gzip(String),
    /// Bytes follow the compressed document.
    #[error("initdata: {0} bytes follow the compressed document; compress it as one gzip member")]
    Trailing(usize),
    /// The document is no UTF-8 text.
    #[error("initdata: the document is not UTF-8 text")]
    Text,
    /// The document breaks TOML's rules or has other keys than initdata.
    #[error("initdata: line {line}: {problem}")]
    Document {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A version that this program does not know.
    #[error("initdata: version {0:?} is not known; this program reads version \"0.1.0\"")]
    Version(String),
    /// An algorithm that this program does not know.
    #[error("initdata: algorithm {0:?} is not known; use \"sha256\", \"sha384\" or \"sha512\"")]
    Algorithm(String),
    /// Too many files.
    #[error("initdata: {0} files under [data], more than {FILE_LIMIT}")]
    Files(usize),
    /// A file's name is empty, too long or holds control characters.
    #[error(
        "initdata: a name under [data] is empty, longer than {NAME_LIMIT} bytes or has control characters"
    )]
    Name,
    /// The disk does not begin as an initdata disk does.
    #[error("initdata: the disk does not begin with \"initdata\"")]
    Magic,
    /// The disk ends before the document does, or cannot be read.
    #[error("initdata: the disk cannot be read: {0}")]
    Disk(String),
}

/// Hash function of a document's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: 32 bytes, as AMD SEV-SNP's host data.
    Sha256,
    /// SHA-384: 48 bytes, as Intel TDX's mrconfigid.
    Sha384,
    /// SHA-512: 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The name in the document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn of_name(name: &str) -> Option<Algorithm> {
        [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// Digest of a document's text by the algorithm it names; shown as `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// By SHA-256.
    Sha256([u8; 32]),
    /// By SHA-384.
    Sha384([u8; 48]),
    /// By SHA-512.
    Sha512([u8; 64]),
}

impl Digest {
    /// The bytes, as many as the algorithm gives.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha384(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The hash function.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha384(_) => Algorithm::Sha384,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// What AMD SEV-SNP's `HOST_DATA` (32 bytes) holds for a guest of this document: the digest, cut
    /// off or filled with zeros at its end (Confidential Containers' initdata specification).
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        self.fitted()
    }

    /// What Intel TDX's `MRCONFIGID` (48 bytes) holds for a guest of this document: the digest, cut off
    /// or filled with zeros at its end.
    #[must_use]
    pub fn mr_config_id(&self) -> [u8; 48] {
        self.fitted()
    }

    fn fitted<const N: usize>(&self) -> [u8; N] {
        let mut field = [0; N];
        for (to, from) in field.iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        field
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A document that was read or made. Its text stays as it was: the digest is of these very bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Initdata {
    text: String,
    algorithm: Algorithm,
    files: BTreeMap<String, String>,
}

impl Initdata {
    /// Makes a document of `files`. Equal files give equal text.
    ///
    /// # Errors
    /// If names or sizes exceed the limits.
    pub fn new(
        algorithm: Algorithm,
        files: BTreeMap<String, String>,
    ) -> Result<Initdata, InitdataError> {
        check(&files)?;
        let text = render(algorithm, &files);
        within("a document", text.len(), TEXT_LIMIT)?;
        Ok(Initdata { text, algorithm, files })
    }

    /// Reads a TOML document.
    ///
    /// # Errors
    /// If it is too large, no TOML, or has other keys than `version`, `algorithm` and `data`.
    pub fn parse(text: &str) -> Result<Initdata, InitdataError> {
        within("a document", text.len(), TEXT_LIMIT)?;
        let document: Document = toml::from_str(text).map_err(|error| {
            let (line, problem) = file::place(text, &error);
            InitdataError::Document { line, problem }
        })?;
        if document.version != VERSION {
            return Err(InitdataError::Version(short(&document.version)));
        }
        let algorithm = Algorithm::of_name(&document.algorithm)
            .ok_or_else(|| InitdataError::Algorithm(short(&document.algorithm)))?;
        check(&document.data)?;
        Ok(Initdata { text: text.to_owned(), algorithm, files: document.data })
    }

    /// The document itself.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The algorithm that the document names.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The named files.
    #[must_use]
    pub const fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    /// The policy, where the document brings one.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.files.get(POLICY).map(String::as_str)
    }

    /// Digest of the document's text by its own algorithm.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self.algorithm {
            Algorithm::Sha256 => Digest::Sha256(sha2::Sha256::digest(&self.text).into()),
            Algorithm::Sha384 => Digest::Sha384(sha2::Sha384::digest(&self.text).into()),
            Algorithm::Sha512 => Digest::Sha512(sha2::Sha512::digest(&self.text).into()),
        }
    }

    /// The annotation's text: base64 of gzip, without line breaks. Equal documents give equal text.
    ///
    /// # Errors
    /// If it does not fit the annotation.
    pub fn to_annotation(&self) -> Result<String, InitdataError> {
        Ok(STANDARD.encode(self.pack()?))
    }

    /// Reads an annotation's text; line breaks in it are ignored, as `base64` programs write some.
    ///
    /// # Errors
    /// If anything in it is not as it should be.
    pub fn from_annotation(text: &str) -> Result<Initdata, InitdataError> {
        within("an annotation", text.len(), ANNOTATION_LIMIT)?;
        let text: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect();
        let packed =
            STANDARD.decode(text).map_err(|error| InitdataError::Base64(error.to_string()))?;
        Initdata::unpack(&packed)
    }

    /// The disk's bytes: `initdata`, the length of the gzip bytes as a little-endian `u64`, the gzip
    /// bytes, zeros up to a multiple of 512.
    ///
    /// # Errors
    /// If the compressed document is too large.
    pub fn to_disk(&self) -> Result<Vec<u8>, InitdataError> {
        let packed = self.pack()?;
        let mut disk = DISK_MAGIC.to_vec();
        disk.extend_from_slice(&(packed.len() as u64).to_le_bytes());
        disk.extend_from_slice(&packed);
        disk.resize(disk.len().next_multiple_of(SECTOR), 0);
        Ok(disk)
    }

    /// Reads a disk from its beginning, and no more of it than the document needs.
    ///
    /// # Errors
    /// If anything on it is not as it should be, or it cannot be read.
    pub fn from_disk(mut disk: impl Read) -> Result<Initdata, InitdataError> {
        let failed = |error: io::Error| InitdataError::Disk(error.to_string());
        let mut header = [0; DISK_HEADER];
        disk.read_exact(&mut header).map_err(failed)?;
        let (magic, length) = header.split_at(DISK_MAGIC.len());
        if magic != DISK_MAGIC {
            return Err(InitdataError::Magic);
        }
        let length = u64::from_le_bytes(length.try_into().map_err(|_| InitdataError::Magic)?);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        within("a compressed document", length, PACKED_LIMIT)?;
        let mut packed = vec![0; length];
        disk.read_exact(&mut packed).map_err(failed)?;
        Initdata::unpack(&packed)
    }

    fn pack(&self) -> Result<Vec<u8>, InitdataError> {
        let failed = |error: io::Error| InitdataError::Gzip(error.to_string());
        // No name and no time in the header: equal documents, equal bytes.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        io::Write::write_all(&mut encoder, self.text.as_bytes()).map_err(failed)?;
        let packed = encoder.finish().map_err(failed)?;
        within("a compressed document", packed.len(), PACKED_LIMIT)?;
        Ok(packed)
    }

    fn unpack(packed: &[u8]) -> Result<Initdata, InitdataError> {
        within("a compressed document", packed.len(), PACKED_LIMIT)?;
        let mut decoder = GzDecoder::new(packed);
        let mut text = Vec::new();
        (&mut decoder)
            .take(TEXT_LIMIT as u64 + 1)
            .read_to_end(&mut text)
            .map_err(|error| InitdataError::Gzip(error.to_string()))?;
        within("a document", text.len(), TEXT_LIMIT)?;
        let rest = decoder.into_inner();
        if !rest.is_empty() {
            return Err(InitdataError::Trailing(rest.len()));
        }
        let text = String::from_utf8(text).map_err(|_| InitdataError::Text)?;
        Initdata::parse(&text)
    }
}

impl fmt::Debug for Initdata {
    /// Without contents: the files may hold what no log should.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initdata")
            .field("digest", &self.digest())
            .field("files", &self.files.keys())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    algorithm: String,
    data: BTreeMap<String, String>,
}

fn check(files: &BTreeMap<String, String>) -> Result<(), InitdataError> {
    if files.len() > FILE_LIMIT {
        return Err(InitdataError::Files(files.len()));
    }
    let sound = |name: &String| {
        !name.is_empty() && name.len() <= NAME_LIMIT && !name.chars().any(char::is_control)
    };
    if files.keys().all(sound) { Ok(()) } else { Err(InitdataError::Name) }
}

fn within(what: &'static str, length: usize, limit: usize) -> Result<(), InitdataError> {
    if length > limit { Err(InitdataError::TooLarge { what, limit }) } else { Ok(()) }
}

fn short(word: &str) -> String {
    word.chars().take(32).collect()
}

fn render(algorithm: Algorithm, files: &BTreeMap<String, String>) -> String {
    let mut text =
        format!("version = \"{VERSION}\"\nalgorithm = \"{}\"\n\n[data]\n", algorithm.name());
    for (name, content) in files {
        text.push_str(&format!("{} = {}\n", basic(name), value(content)));
    }
    text
}

/// As it is between `'''` where TOML allows that, for people to read; else with escapes.
fn value(content: &str) -> String {
    let plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if content.contains("'''") || content.ends_with('\'') || !content.chars().all(plain) {
        basic(content)
    } else {
        // TOML drops the first line break.
        format!("'''\n{content}'''")
    }
}

fn basic(content: &str) -> String {
    let mut quoted = String::from("\"");
    for c in content.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const SMALL: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\
                         \"policy.rego\" = '''\npackage agent_policy\n'''\n";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn files(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect()
    }

    fn refusal(text: &str) -> String {
        Initdata::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_made_is_read_back_in_every_form() {
        for content in [
            "",
            "\n",
            "a\nb",
            "it's",
            "ends'",
            "'''",
            "\"\"\"",
            "\\",
            "a\r\nb\u{7f}\u{1}\u{85}",
            "ö\t",
        ] {
            let entries = files(&[(POLICY, content), ("aa.toml", "x"), ("a \"b\"", content)]);
            let made = Initdata::new(Algorithm::Sha256, entries.clone()).unwrap();
            let read = Initdata::parse(made.text()).unwrap();
            assert_eq!(read.files(), &entries, "{}", made.text());
            assert_eq!(read, made);
            assert_eq!(Initdata::from_annotation(&made.to_annotation().unwrap()), Ok(made.clone()));
            assert_eq!(Initdata::from_disk(&made.to_disk().unwrap()[..]), Ok(made));
        }
    }

    #[test]
    fn a_document_is_rendered_for_people() {
        let made =
            Initdata::new(Algorithm::Sha384, files(&[(POLICY, "package agent_policy\n")])).unwrap();
        assert_eq!(made.text(), SMALL);
        assert_eq!(made.policy(), Some("package agent_policy\n"));
    }

    #[test]
    fn the_digest_is_of_the_text_by_its_own_algorithm() {
        // sha384sum of the text
        let parsed = Initdata::parse(SMALL).unwrap();
        assert_eq!(parsed.digest().as_bytes().len(), 48);
        assert_eq!(parsed.digest().as_bytes(), sha2::Sha384::digest(SMALL).as_slice());
        // Another text of the same meaning is another document.
        let spaced = Initdata::parse(&SMALL.replace(" = ", "=")).unwrap();
        assert_eq!(spaced.files(), parsed.files());
        assert_ne!(spaced.digest(), parsed.digest());
        let empty = "version='0.1.0'\nalgorithm='sha256'\ndata={}";
        assert_eq!(
            Initdata::parse(empty).unwrap().digest().to_string(),
            format!("sha256:{}", hex::encode(sha2::Sha256::digest(empty)))
        );
    }

    #[test]
    fn a_digest_is_cut_off_or_filled_up_to_the_hardwares_field() {
        let short = Digest::Sha256([7; 32]);
        assert_eq!(short.host_data(), [7; 32]);
        assert_eq!(short.mr_config_id()[..32], [7; 32]);
        assert_eq!(short.mr_config_id()[32..], [0; 16]);
        let mut bytes = [1; 64];
        bytes[32..48].fill(2);
        bytes[48..].fill(3);
        let long = Digest::Sha512(bytes);
        assert_eq!(long.host_data(), [1; 32]);
        assert_eq!(long.mr_config_id()[..], bytes[..48]);
    }

    #[test]
    fn the_disk_has_the_known_layout() {
        let disk = Initdata::parse(SMALL).unwrap().to_disk().unwrap();
        assert_eq!(disk.len() % 512, 0);
        assert_eq!(&disk[..8], b"initdata");
        let length = u64::from_le_bytes(disk[8..16].try_into().unwrap());
        let length = usize::try_from(length).unwrap();
        assert_eq!(&disk[16..18], &[0x1f, 0x8b], "gzip");
        assert!(disk[16 + length..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_annotation_may_have_been_wrapped() {
        let annotation = Initdata::parse(SMALL).unwrap().to_annotation().unwrap();
        let (one, two) = annotation.split_at(40);
        assert!(Initdata::from_annotation(&format!("{one}\r\n{two}\n")).is_ok());
        let error = Initdata::from_annotation(&format!("{one} {two}")).unwrap_err();
        assert!(matches!(error, InitdataError::Base64(_)), "{error}");
    }

    #[test]
    fn documents_of_another_form_are_refused() {
        for (text, expected) in [
            ("", "missing field `version`"),
            ("version = \"0.1.0\"\nalgorithm = \"sha256\"", "missing field `data`"),
            ("version = \"0.2.0\"\nalgorithm = \"sha256\"\ndata = {}", "\"0.2.0\" is not known"),
            ("version = \"0.1.0\"\nalgorithm = \"md5\"\ndata = {}", "algorithm \"md5\""),
            ("version = 1\nalgorithm = \"sha256\"\ndata = {}", "line 1: invalid type"),
            (&SMALL.replace("[data]", "other = 1\n[data]"), "line 4: unknown field `other`"),
            (&format!("{SMALL}x = 1\n"), "line 8: invalid type"),
            (&format!("{SMALL}\"policy.rego\" = ''\n"), "line 8: duplicate key"),
            (&format!("{SMALL}\"\" = ''\n"), "a name under [data]"),
            (&format!("{SMALL}\"a\\nb\" = ''\n"), "a name under [data]"),
            (&format!("{SMALL}{} = ''\n", "n".repeat(129)), "a name under [data]"),
            (&format!("{SMALL}secret"), "line 8"),
        ] {
            let error = refusal(text);
            assert!(error.contains(expected), "{error:?} for {text:?}");
            assert!(!error.contains("secret"), "{error}");
        }
        let many: String = (0..65).map(|n| format!("f{n} = ''\n")).collect();
        assert!(
            refusal(&format!("version='0.1.0'\nalgorithm='sha256'\n[data]\n{many}"))
                .contains("65 files")
        );
    }

    /// A thread of a small stack ends the process if the parser recurses without bound.
    #[test]
    fn deep_nesting_neither_overflows_nor_passes() {
        let deep = TEXT_LIMIT / 2 - 64;
        for text in [
            format!("a = {}", "[".repeat(deep)),
            format!("a = {}", "{a=".repeat(deep / 2)),
            format!("{}a = 1", "a.".repeat(deep)),
            format!("[{}a]", "a.".repeat(deep)),
            format!("a = {{ {}a = 1 }}", "a.".repeat(deep)),
        ] {
            let thread = std::thread::Builder::new().stack_size(512 * 1024);
            let refused = thread.spawn(move || Initdata::parse(&text).is_err()).unwrap();
            assert!(refused.join().unwrap());
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = gzip(&vec![b' '; TEXT_LIMIT + 1]);
        assert!(bomb.len() < 64 * 1024);
        let expected = InitdataError::TooLarge { what: "a document", limit: TEXT_LIMIT };
        assert_eq!(Initdata::from_annotation(&STANDARD.encode(&bomb)), Err(expected.clone()));
        let mut disk = DISK_MAGIC.to_vec();
        disk.extend_from_slice(&(bomb.len() as u64).to_le_bytes());
        disk.extend_from_slice(&bomb);
        assert_eq!(Initdata::from_disk(&disk[..]), Err(expected));
        let long = "A".repeat(ANNOTATION_LIMIT + 1);
        assert!(matches!(Initdata::from_annotation(&long), Err(InitdataError::TooLarge { .. })));
        let large = Initdata::new(Algorithm::Sha256, files(&[("a", &"x".repeat(TEXT_LIMIT))]));
        assert!(matches!(large, Err(InitdataError::TooLarge { .. })));
    }

    #[test]
    fn damaged_packages_are_refused() {
        let whole = gzip(SMALL.as_bytes());
        let refused = |packed: &[u8]| Initdata::unpack(packed).unwrap_err();
        assert!(Initdata::unpack(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(matches!(refused(&whole[..length]), InitdataError::Gzip(_)), "{length}");
        }
        let mut damaged = whole.clone();
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        assert!(matches!(refused(&damaged), InitdataError::Gzip(_)));
        assert_eq!(
            refused(&[whole.clone(), whole.clone()].concat()),
            InitdataError::Trailing(whole.len())
        );
        assert_eq!(refused(&[whole, vec![0]].concat()), InitdataError::Trailing(1));
        assert_eq!(refused(&gzip(b"\xff\xfe")), InitdataError::Text);
    }

    #[test]
    fn hostile_disks_are_refused() {
        let good = Initdata::parse(SMALL).unwrap().to_disk().unwrap();
        let refused = |disk: &[u8]| Initdata::from_disk(disk).unwrap_err();
        assert!(matches!(refused(b""), InitdataError::Disk(_)));
        assert!(matches!(refused(&good[..15]), InitdataError::Disk(_)));
        assert!(matches!(refused(&good[..40]), InitdataError::Disk(_)));
        assert_eq!(refused(&[0; 512]), InitdataError::Magic);
        let mut long = good;
        for length in [u64::MAX, PACKED_LIMIT as u64 + 1] {
            long[8..16].copy_from_slice(&length.to_le_bytes());
            let expected =
                InitdataError::TooLarge { what: "a compressed document", limit: PACKED_LIMIT };
            assert_eq!(refused(&long), expected);
        }
    }

    #[test]
    fn contents_stay_out_of_debug_output() {
        let made = Initdata::new(Algorithm::Sha256, files(&[("cdh.toml", "hidden")])).unwrap();
        let shown = format!("{made:?}");
        assert!(shown.contains("cdh.toml") && !shown.contains("hidden"), "{shown}");
    }
}
