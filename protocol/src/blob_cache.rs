//! What a guest and the node cache of image blobs say to each other on the virtio-serial port
//! [`CACHE_PORT_NAME`](crate::channel::CACHE_PORT_NAME), and the greeting with which the shim opens that
//! stream for a guest.
//!
//! The cache answers `digest -> bytes` and nothing else: no names, no tags, no credentials. The guest
//! believes none of the bytes before it has hashed them, and the cache believes none of a guest's: each
//! side closes the stream for good at the first frame that breaks a rule of this page.
//!
//! # Greeting
//! The shim (or an administrator's tool) writes a [`Hello`], the cache answers with a [`Verdict`] of
//! [`VERDICT_SIZE`] bytes. After [`Verdict::Welcome`] the stream is the guest's: the cache sends nothing
//! before the guest has asked.
//!
//! # Frames
//! All numbers are little-endian. A frame is a header of [`HEADER_SIZE`] bytes and a payload:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 3 | zero |
//! | 4 | 4 | request, never 0 |
//! | 8 | 4 | size of the payload in bytes |
//!
//! | kind | sent by | payload |
//! |---|---|---|
//! | 1 get | guest | size of the blob (8), offset of the first byte wanted (8), credit (4), digest |
//! | 2 put | guest | size of the blob (8), digest |
//! | 3 data | both | 1 to [`PIECE_LIMIT`] bytes of the blob |
//! | 4 end | both | nothing: all was sent |
//! | 5 cancel | both | nothing: no more will be sent, or is wanted |
//! | 6 credit | both | credit (4): so many bytes of data more may be sent |
//! | 7 accept | cache | credit (4): for a put as above, for a get 0 |
//! | 8 miss | cache | nothing: the cache does not have the blob |
//! | 9 refuse | cache | why (4), a [`Refusal`] |
//!
//! A digest is its algorithm (1 byte: 1 for SHA-256, 2 for SHA-512), three bytes of zero, and 32 or 64
//! bytes.
//!
//! # Requests
//! The guest numbers its requests upwards and never uses a number again; [`REQUESTS_LIMIT`] may be open at
//! once, and their frames mix freely. The first answer to a request is accept, miss or refuse. A get then
//! goes on with data from the cache until end or cancel; a put with data from the guest until end or
//! cancel, and the cache may cancel it. Whoever gets data gives credit for it first: nobody sends more than
//! he was given, nobody gives more than [`CREDIT_LIMIT`] at a time, so a slow reader holds up nothing but
//! his own request. Frames of a request that is over are no mistake (they may have crossed its end) and
//! mean nothing.

mod greeting;

use nacre_trust::Digest;

pub use greeting::{HELLO_SIZE, Hello, VERDICT_SIZE, Verdict, is_namespace};

/// Size of a frame's header in bytes.
pub const HEADER_SIZE: usize = 12;
/// Largest payload of a data frame, in bytes.
pub const PIECE_LIMIT: usize = 64 * 1024;
/// Most bytes of data that may be credited and not yet sent, for each request.
pub const CREDIT_LIMIT: u32 = 1024 * 1024;
/// Most requests of one guest that are open at once.
pub const REQUESTS_LIMIT: usize = 16;
/// Largest blob, in bytes.
pub const BLOB_LIMIT: u64 = 1 << 40;

const DIGEST_HEAD: usize = 4;
const SHA256_SIZE: usize = DIGEST_HEAD + 32;
const SHA512_SIZE: usize = DIGEST_HEAD + 64;
const GET_HEAD: usize = 20;
const PUT_HEAD: usize = 8;
const WORD: usize = 4;

/// How what was received breaks the rules. The stream has no meaning after that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A kind of frame that does not exist, or that the other side sends.
    #[error("a frame of kind {0}, which this side does not send")]
    Kind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes that are not zero")]
    Reserved,
    /// A request's number that is not allowed here.
    #[error("a frame of request {0}, a number that cannot be")]
    Request(u32),
    /// A payload of a size that its kind does not have.
    #[error("a payload of {size} bytes in a frame of kind {kind}")]
    Size {
        /// Of the frame.
        kind: u8,
        /// As announced, in bytes.
        size: u32,
    },
    /// A digest by an unknown algorithm, or of another size than its algorithm makes.
    #[error("a digest that is neither SHA-256 nor SHA-512")]
    Digest,
    /// A size or an offset beyond what can be.
    #[error("a blob of {size} bytes, wanted from {offset} on")]
    Blob {
        /// Of the blob, in bytes.
        size: u64,
        /// Of the first byte wanted.
        offset: u64,
    },
    /// More credit than may be given.
    #[error("more credit than may be given")]
    Credit,
    /// More data than was credited.
    #[error("more data than was credited")]
    Overrun,
    /// A refusal for no known reason.
    #[error("a refusal for an unknown reason ({0})")]
    Refusal(u32),
    /// No greeting of this protocol.
    #[error("a greeting that is not one of the node cache")]
    Magic,
    /// Another version.
    #[error("version {0} of the node cache's protocol, not {version}", version = greeting::VERSION)]
    Version(u16),
    /// A greeting's fields.
    #[error("a greeting whose {0} cannot be")]
    Hello(&'static str),
    /// A frame that does not fit what its request has come to.
    #[error("a frame of kind {0} that does not follow from what came before it")]
    Order(u8),
}

/// Why the cache does not do what a guest asks for. Another request may fare better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many requests are open.
    #[error("the cache is busy")]
    Busy,
    /// It has the blob, or somebody is about to bring it.
    #[error("the cache has the blob, or is getting it from another guest")]
    Present,
    /// The blob is larger than the cache keeps.
    #[error("the blob is too large for the cache")]
    TooLarge,
    /// This guest has brought as much as one guest may.
    #[error("this guest may put no more into the cache")]
    Spent,
    /// The cache's own trouble.
    #[error("the cache has failed; its log says why")]
    Failed,
}

impl Refusal {
    const fn number(self) -> u32 {
        match self {
            Refusal::Busy => 1,
            Refusal::Present => 2,
            Refusal::TooLarge => 3,
            Refusal::Spent => 4,
            Refusal::Failed => 5,
        }
    }

    fn parse(number: u32) -> Result<Refusal, Violation> {
        use Refusal::{Busy, Failed, Present, Spent, TooLarge};
        [Busy, Present, TooLarge, Spent, Failed]
            .into_iter()
            .find(|refusal| refusal.number() == number)
            .ok_or(Violation::Refusal(number))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get = 1,
    Put = 2,
    Data = 3,
    End = 4,
    Cancel = 5,
    Credit = 6,
    Accept = 7,
    Miss = 8,
    Refuse = 9,
}

impl Kind {
    fn parse(number: u8) -> Result<Kind, Violation> {
        use Kind::{Accept, Cancel, Credit, Data, End, Get, Miss, Put, Refuse};
        [Get, Put, Data, End, Cancel, Credit, Accept, Miss, Refuse]
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .ok_or(Violation::Kind(number))
    }

    const fn may_carry(self, size: usize) -> bool {
        match self {
            Kind::Get => size == GET_HEAD + SHA256_SIZE || size == GET_HEAD + SHA512_SIZE,
            Kind::Put => size == PUT_HEAD + SHA256_SIZE || size == PUT_HEAD + SHA512_SIZE,
            Kind::Data => size >= 1 && size <= PIECE_LIMIT,
            Kind::End | Kind::Cancel | Kind::Miss => size == 0,
            Kind::Credit | Kind::Accept | Kind::Refuse => size == WORD,
        }
    }
}

/// A frame's header whose size is one that its kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    request: u32,
    size: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// If there is no such frame.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Header, Violation> {
        let kind = Kind::parse(bytes[0])?;
        if bytes[1..4] != [0; 3] {
            return Err(Violation::Reserved);
        }
        let (request, announced) = (word(bytes, 4), word(bytes, 8));
        if request == 0 {
            return Err(Violation::Request(request));
        }
        let size = usize::try_from(announced).unwrap_or(usize::MAX);
        if !kind.may_carry(size) {
            return Err(Violation::Size { kind: kind as u8, size: announced });
        }
        Ok(Header { kind, request, size })
    }

    /// The header of a data frame with `size` bytes, 1 to [`PIECE_LIMIT`], which are to follow.
    ///
    /// # Errors
    /// If there is no such frame.
    pub fn of_data(request: u32, size: usize) -> Result<[u8; HEADER_SIZE], Violation> {
        let announced = u32::try_from(size).unwrap_or(u32::MAX);
        if !Kind::Data.may_carry(size) {
            return Err(Violation::Size { kind: Kind::Data as u8, size: announced });
        }
        Ok(header(Kind::Data, request, announced))
    }

    /// Number of the request.
    #[must_use]
    pub fn request(&self) -> u32 {
        self.request
    }

    /// Size of the payload in bytes, [`PIECE_LIMIT`] at most.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The mistake of a frame that came when its request was not ready for it.
    #[must_use]
    pub fn out_of_order(&self) -> Violation {
        Violation::Order(self.kind as u8)
    }
}

/// A blob as a guest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob {
    /// What its bytes hash to.
    pub digest: Digest,
    /// Their number, 1 to [`BLOB_LIMIT`].
    pub size: u64,
}

/// What a guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// Asks for a blob.
    Get {
        /// Which.
        blob: Blob,
        /// The first byte wanted, less than the blob's size.
        offset: u64,
        /// Bytes that the guest is ready to take.
        credit: u32,
    },
    /// Offers a blob.
    Put {
        /// Which.
        blob: Blob,
    },
    /// The next bytes of a put.
    Data(&'a [u8]),
    /// The last bytes of a put were sent.
    End,
    /// A get is no longer wanted, or a put will not be completed.
    Cancel,
    /// So many bytes more of a get may be sent.
    Credit(u32),
}

/// What the cache sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromCache<'a> {
    /// It does what was asked for; of a put, so many bytes may be sent.
    Accept(u32),
    /// It does not have the blob.
    Miss,
    /// It does not do what was asked for.
    Refuse(Refusal),
    /// The next bytes of a get.
    Data(&'a [u8]),
    /// The last bytes of a get were sent.
    End,
    /// No more of a get will come, or no more of a put is wanted.
    Cancel,
    /// So many bytes more of a put may be sent.
    Credit(u32),
}

impl<'a> FromGuest<'a> {
    /// Reads a frame; `payload` is as long as its header says.
    ///
    /// # Errors
    /// If it is none that a guest sends.
    pub fn parse(header: &Header, payload: &'a [u8]) -> Result<FromGuest<'a>, Violation> {
        let announced = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if payload.len() != header.size {
            return Err(Violation::Size { kind: header.kind as u8, size: announced });
        }
        match header.kind {
            Kind::Get => {
                let (head, name) = payload.split_at(GET_HEAD);
                let (size, offset) = (double_word(head, 0), double_word(head, 8));
                if size > BLOB_LIMIT || offset >= size {
                    return Err(Violation::Blob { size, offset });
                }
                let blob = Blob { digest: parse_digest(name)?, size };
                Ok(FromGuest::Get { blob, offset, credit: parse_credit(word(head, 16))? })
            }
            Kind::Put => {
                let (head, name) = payload.split_at(PUT_HEAD);
                let size = double_word(head, 0);
                if size > BLOB_LIMIT || size == 0 {
                    return Err(Violation::Blob { size, offset: 0 });
                }
                Ok(FromGuest::Put { blob: Blob { digest: parse_digest(name)?, size } })
            }
            Kind::Data => Ok(FromGuest::Data(payload)),
            Kind::End => Ok(FromGuest::End),
            Kind::Cancel => Ok(FromGuest::Cancel),
            Kind::Credit => Ok(FromGuest::Credit(parse_credit(word(payload, 0))?)),
            Kind::Accept | Kind::Miss | Kind::Refuse => Err(Violation::Kind(header.kind as u8)),
        }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// If the values in it are beyond their limits; nothing is appended then.
    pub fn write(&self, request: u32, into: &mut Vec<u8>) -> Result<(), Violation> {
        let at = into.len();
        let kind = match self {
            FromGuest::Get { .. } => Kind::Get,
            FromGuest::Put { .. } => Kind::Put,
            FromGuest::Data(_) => Kind::Data,
            FromGuest::End => Kind::End,
            FromGuest::Cancel => Kind::Cancel,
            FromGuest::Credit(_) => Kind::Credit,
        };
        begin(kind, request, into);
        match self {
            FromGuest::Get { blob, offset, credit } => {
                into.extend_from_slice(&blob.size.to_le_bytes());
                into.extend_from_slice(&offset.to_le_bytes());
                into.extend_from_slice(&credit.to_le_bytes());
                write_digest(&blob.digest, into);
            }
            FromGuest::Put { blob } => {
                into.extend_from_slice(&blob.size.to_le_bytes());
                write_digest(&blob.digest, into);
            }
            FromGuest::Data(piece) => into.extend_from_slice(piece),
            FromGuest::End | FromGuest::Cancel => {}
            FromGuest::Credit(credit) => into.extend_from_slice(&credit.to_le_bytes()),
        }
        finish(at, into, |header, payload| FromGuest::parse(header, payload).map(|_| ()))
    }
}

impl<'a> FromCache<'a> {
    /// Reads a frame; `payload` is as long as its header says.
    ///
    /// # Errors
    /// If it is none that the cache sends.
    pub fn parse(header: &Header, payload: &'a [u8]) -> Result<FromCache<'a>, Violation> {
        let announced = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if payload.len() != header.size {
            return Err(Violation::Size { kind: header.kind as u8, size: announced });
        }
        match header.kind {
            Kind::Accept => match word(payload, 0) {
                0 => Ok(FromCache::Accept(0)),
                credit => Ok(FromCache::Accept(parse_credit(credit)?)),
            },
            Kind::Miss => Ok(FromCache::Miss),
            Kind::Refuse => Ok(FromCache::Refuse(Refusal::parse(word(payload, 0))?)),
            Kind::Data => Ok(FromCache::Data(payload)),
            Kind::End => Ok(FromCache::End),
            Kind::Cancel => Ok(FromCache::Cancel),
            Kind::Credit => Ok(FromCache::Credit(parse_credit(word(payload, 0))?)),
            Kind::Get | Kind::Put => Err(Violation::Kind(header.kind as u8)),
        }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// If the values in it are beyond their limits; nothing is appended then.
    pub fn write(&self, request: u32, into: &mut Vec<u8>) -> Result<(), Violation> {
        let at = into.len();
        let kind = match self {
            FromCache::Accept(_) => Kind::Accept,
            FromCache::Miss => Kind::Miss,
            FromCache::Refuse(_) => Kind::Refuse,
            FromCache::Data(_) => Kind::Data,
            FromCache::End => Kind::End,
            FromCache::Cancel => Kind::Cancel,
            FromCache::Credit(_) => Kind::Credit,
        };
        begin(kind, request, into);
        match self {
            FromCache::Accept(credit) | FromCache::Credit(credit) => {
                into.extend_from_slice(&credit.to_le_bytes());
            }
            FromCache::Refuse(why) => into.extend_from_slice(&why.number().to_le_bytes()),
            FromCache::Data(piece) => into.extend_from_slice(piece),
            FromCache::Miss | FromCache::End | FromCache::Cancel => {}
        }
        finish(at, into, |header, payload| FromCache::parse(header, payload).map(|_| ()))
    }
}

/// Bytes of data that one side may still send for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance(u32);

impl Allowance {
    /// What is left.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.0
    }

    /// More may be sent.
    ///
    /// # Errors
    /// If that would be beyond [`CREDIT_LIMIT`].
    pub fn give(&mut self, credit: u32) -> Result<(), Violation> {
        let sum = self.0.checked_add(credit).filter(|sum| *sum <= CREDIT_LIMIT);
        self.0 = sum.ok_or(Violation::Credit)?;
        Ok(())
    }

    /// So many bytes were sent.
    ///
    /// # Errors
    /// If they are more than is left.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Violation> {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = left.ok_or(Violation::Overrun)?;
        Ok(())
    }
}

fn header(kind: Kind, request: u32, size: u32) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    bytes[0] = kind as u8;
    bytes[4..8].copy_from_slice(&request.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Appends a header whose size is not known yet.
fn begin(kind: Kind, request: u32, into: &mut Vec<u8>) {
    into.extend_from_slice(&header(kind, request, 0));
}

/// Sets the size of the frame that begins at `at`, and takes it back if the other side would refuse it.
fn finish(
    at: usize,
    into: &mut Vec<u8>,
    check: impl Fn(&Header, &[u8]) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let frame = &mut into[at..];
    let size = u32::try_from(frame.len() - HEADER_SIZE).unwrap_or(u32::MAX);
    frame[8..HEADER_SIZE].copy_from_slice(&size.to_le_bytes());
    let mut head = [0; HEADER_SIZE];
    head.copy_from_slice(&frame[..HEADER_SIZE]);
    let checked = Header::parse(&head).and_then(|header| check(&header, &frame[HEADER_SIZE..]));
    if checked.is_err() {
        into.truncate(at);
    }
    checked
}

fn write_digest(digest: &Digest, into: &mut Vec<u8>) {
    let (algorithm, bytes): (u8, &[u8]) = match digest {
        Digest::Sha256(bytes) => (1, bytes),
        Digest::Sha512(bytes) => (2, bytes),
    };
    into.extend_from_slice(&[algorithm, 0, 0, 0]);
    into.extend_from_slice(bytes);
}

fn parse_digest(bytes: &[u8]) -> Result<Digest, Violation> {
    let (head, value) = bytes.split_at(DIGEST_HEAD);
    if head[1..] != [0; 3] {
        return Err(Violation::Reserved);
    }
    let digest = match head[0] {
        1 => value.try_into().map(Digest::Sha256),
        2 => value.try_into().map(Digest::Sha512),
        _ => return Err(Violation::Digest),
    };
    digest.map_err(|_| Violation::Digest)
}

/// Credit that can be given: some, and not more than the limit.
fn parse_credit(credit: u32) -> Result<u32, Violation> {
    if (1..=CREDIT_LIMIT).contains(&credit) { Ok(credit) } else { Err(Violation::Credit) }
}

/// The `u32` at `offset`, which lies within `bytes`.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

/// The `u64` at `offset`, which lies within `bytes`.
fn double_word(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
