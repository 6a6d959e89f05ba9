//! How a stream to the node cache begins.

use super::{Violation, word};

/// Size of the first part of a [`Hello`], in bytes; it tells the size of the rest.
pub const HELLO_SIZE: usize = 16;
/// Size of a [`Verdict`] in bytes.
pub const VERDICT_SIZE: usize = 12;

/// Longest name of a containerd namespace (containerd, `identifiers.Validate`).
const NAMESPACE_LIMIT: usize = 76;
/// Longest name of a sandbox.
const SANDBOX_LIMIT: usize = 128;

/// First bytes of a hello and of a verdict.
const MAGIC: [u8; 8] = *b"NACREBLB";
/// Version of the whole protocol.
pub(super) const VERSION: u16 = 1;

/// How somebody on the node opens a stream.
///
/// | offset | size | |
/// |---|---|---|
/// | 0 | 8 | `NACREBLB` |
/// | 8 | 2 | version, 1 |
/// | 10 | 1 | purpose: 1 for a guest, 2 for the statistics |
/// | 11 | 1 | size of the containerd namespace's name in bytes, 1 to 76; 0 for the statistics |
/// | 12 | 1 | size of the sandbox's name in bytes, 1 to 128; 0 for the statistics |
/// | 13 | 3 | zero |
/// | 16 | | the two names |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// What follows comes from a guest.
    Guest {
        /// containerd's namespace that the pod belongs to.
        namespace: String,
        /// Name of the pod's sandbox, for the log.
        sandbox: String,
    },
    /// Asks for the cache's counters, as one JSON text until the end of the stream.
    Statistics,
}

impl Hello {
    /// The bytes to send.
    ///
    /// # Errors
    /// If a name is none.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Violation> {
        let (purpose, namespace, sandbox) = match self {
            Hello::Guest { namespace, sandbox } => (1, namespace.as_str(), sandbox.as_str()),
            Hello::Statistics => (2, "", ""),
        };
        let length =
            |name: &str, what| u8::try_from(name.len()).map_err(|_| Violation::Hello(what));
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(purpose);
        bytes.push(length(namespace, "namespace")?);
        bytes.push(length(sandbox, "sandbox")?);
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(namespace.as_bytes());
        bytes.extend_from_slice(sandbox.as_bytes());
        let mut head = [0; HELLO_SIZE];
        head.copy_from_slice(&bytes[..HELLO_SIZE]);
        Hello::parse(&head, &bytes[HELLO_SIZE..])?;
        Ok(bytes)
    }

    /// Size of what follows the first [`HELLO_SIZE`] bytes, 204 at most.
    ///
    /// # Errors
    /// If they are no greeting of this version.
    pub fn rest(head: &[u8; HELLO_SIZE]) -> Result<usize, Violation> {
        if head[..8] != MAGIC {
            return Err(Violation::Magic);
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != VERSION {
            return Err(Violation::Version(version));
        }
        if head[13..] != [0; 3] {
            return Err(Violation::Reserved);
        }
        let (namespace, sandbox) = (usize::from(head[11]), usize::from(head[12]));
        if namespace > NAMESPACE_LIMIT || sandbox > SANDBOX_LIMIT {
            return Err(Violation::Hello("names' sizes"));
        }
        Ok(namespace + sandbox)
    }

    /// Reads a greeting; `rest` is as long as [`Hello::rest`] says.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(head: &[u8; HELLO_SIZE], rest: &[u8]) -> Result<Hello, Violation> {
        if rest.len() != Hello::rest(head)? {
            return Err(Violation::Hello("names' sizes"));
        }
        let (namespace, sandbox) = rest.split_at(usize::from(head[11]));
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap_or_default().to_owned();
        let (namespace, sandbox) = (text(namespace), text(sandbox));
        match head[10] {
            1 if !is_namespace(&namespace) => Err(Violation::Hello("namespace")),
            1 if !is_word(&sandbox) => Err(Violation::Hello("sandbox")),
            1 => Ok(Hello::Guest { namespace, sandbox }),
            2 if rest.is_empty() => Ok(Hello::Statistics),
            _ => Err(Violation::Hello("purpose")),
        }
    }
}

/// What the cache says to a [`Hello`]: `NACREBLB` and a number (4 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// The stream is open.
    #[error("the node cache is ready")]
    Welcome,
    /// Another version of the protocol, or no greeting.
    #[error("the node cache does not know this greeting: shim and cache are of different versions")]
    Unknown,
    /// Not this namespace.
    #[error(
        "the node cache does not serve this namespace: see namespaces.allow in its configuration"
    )]
    Namespace,
    /// Too many streams are open.
    #[error("the node cache serves as many guests as it may: see max_guests in its configuration")]
    Full,
}

impl Verdict {
    const fn number(self) -> u32 {
        match self {
            Verdict::Welcome => 0,
            Verdict::Unknown => 1,
            Verdict::Namespace => 2,
            Verdict::Full => 3,
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VERDICT_SIZE] {
        let mut bytes = [0; VERDICT_SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..].copy_from_slice(&self.number().to_le_bytes());
        bytes
    }

    /// Reads a verdict.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; VERDICT_SIZE]) -> Result<Verdict, Violation> {
        if bytes[..8] != MAGIC {
            return Err(Violation::Magic);
        }
        let number = word(bytes, 8);
        [Verdict::Welcome, Verdict::Unknown, Verdict::Namespace, Verdict::Full]
            .into_iter()
            .find(|verdict| verdict.number() == number)
            .ok_or(Violation::Refusal(number))
    }
}

/// Whether this is a name of a containerd namespace: words of letters and digits with single `.`, `_` or
/// `-` between them, 76 bytes at most. Safe as a file name.
#[must_use]
pub fn is_namespace(name: &str) -> bool {
    let words = |name: &str| {
        let mut words = name.split(['.', '_', '-']);
        words.all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    };
    name.len() <= NAMESPACE_LIMIT && words(name)
}

fn is_word(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=SANDBOX_LIMIT).contains(&name.len()) && name.bytes().all(fits)
}
