//! What `nacre exec-vm` and the agent of a development image say to each other on the virtio-serial port
//! [`DEBUG_SHELL_PORT_NAME`](crate::channel::DEBUG_SHELL_PORT_NAME). The shim passes frames on, from and to a
//! socket of the host's, and numbers the sessions.
//!
//! A frame is a kind (one byte), the session (`u32`) and the size of its payload (`u16`, both
//! little-endian), then the payload. There is one session at a time: a host's [`FromHost::Start`] begins it,
//! a guest's [`FromGuest::Exited`] or [`FromGuest::Failed`] ends it. Frames of other sessions mean nothing.
//!
//! A guest has [`INPUT_WINDOW`] bytes of room for what its program has not read yet, and says what it
//! has read ([`FromGuest::Taken`]), so that a program that does not read holds up nothing but its input.

use serde::{Deserialize, Serialize};

/// Size of what precedes a payload, in bytes.
pub const HEADER_SIZE: usize = 7;
/// Largest payload, in bytes.
pub const PAYLOAD_LIMIT: usize = 32 * 1024;
/// Bytes of input that a guest takes before its program has read them.
pub const INPUT_WINDOW: usize = 64 * 1024;
/// Most words of a command.
const WORDS_LIMIT: usize = 1024;
/// Longest name of a kind of terminal, in bytes.
const TERM_LIMIT: usize = 64;

const START: u8 = 1;
const INPUT: u8 = 2;
const RESIZE: u8 = 3;
const HANG_UP: u8 = 4;
const OUTPUT: u8 = 17;
const ERRORS: u8 = 18;
const TAKEN: u8 = 19;
const EXITED: u8 = 20;
const FAILED: u8 = 21;

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A payload that is too long.
    #[error("a payload of {0} bytes, more than {PAYLOAD_LIMIT}")]
    Size(usize),
    /// Not one that this side sends, or with a payload that it does not have.
    #[error("a frame of kind {kind} with {size} bytes")]
    Frame {
        /// The first byte.
        kind: u8,
        /// Bytes of payload.
        size: usize,
    },
    /// What is to be started cannot be read.
    #[error("what is to be started cannot be read: {0}")]
    Start(String),
}

/// What precedes a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    session: u32,
    size: usize,
}

/// Characters of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A terminal that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Its size at first.
    pub size: Size,
    /// What `TERM` is to say.
    pub term: String,
}

/// What a session runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Program and arguments; empty: a shell.
    pub command: Vec<String>,
    /// The terminal; without it input, output and errors are three streams.
    pub terminal: Option<Terminal>,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// A session begins.
    Start(Start),
    /// Bytes for the program to read; none: the input has ended.
    Input(&'a [u8]),
    /// The terminal has another size now.
    Resize(Size),
    /// Nobody listens any more.
    HangUp,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// What the program has written; with a terminal, all of it.
    Output(&'a [u8]),
    /// What it has written as errors.
    Errors(&'a [u8]),
    /// Bytes of input that it has read since.
    Taken(u32),
    /// It has ended: its exit code, or 128 and the signal's number.
    Exited(u8),
    /// There is no session, and why.
    Failed(&'a str),
}

impl Header {
    /// Reads a header; what it says of the payload is bounded.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Header, Violation> {
        let [kind, s0, s1, s2, s3, n0, n1] = *bytes;
        let size = usize::from(u16::from_le_bytes([n0, n1]));
        if size > PAYLOAD_LIMIT {
            return Err(Violation::Size(size));
        }
        Ok(Header { kind, session: u32::from_le_bytes([s0, s1, s2, s3]), size })
    }

    /// Which session the frame belongs to.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Bytes of payload.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    fn write(kind: u8, session: u32, payload: &[u8]) -> Result<Vec<u8>, Violation> {
        let too_long = || Violation::Size(payload.len());
        let size = u16::try_from(payload.len()).map_err(|_| too_long())?;
        if payload.len() > PAYLOAD_LIMIT {
            return Err(too_long());
        }
        let head = [&[kind][..], &session.to_le_bytes(), &size.to_le_bytes()];
        Ok([&head.concat(), payload].concat())
    }

    fn out_of_place(&self) -> Violation {
        Violation::Frame { kind: self.kind, size: self.size }
    }
}

impl Start {
    fn parse(payload: &[u8]) -> Result<Start, Violation> {
        let start: Start =
            serde_json::from_slice(payload).map_err(|error| Violation::Start(error.to_string()))?;
        start.check().map_err(|problem| Violation::Start(problem.to_owned()))?;
        Ok(start)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.command.len() > WORDS_LIMIT {
            return Err("the command has too many words");
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err("a word of the command holds a zero byte");
        }
        if self.command.first().is_some_and(String::is_empty) {
            return Err("the program's name is empty");
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-+._".contains(c);
        let term = self.terminal.as_ref().map(|terminal| terminal.term.as_str());
        match term {
            Some(term) if term.len() > TERM_LIMIT || !term.chars().all(is_plain) => {
                Err("the terminal's kind is not a plain name")
            }
            _ => Ok(()),
        }
    }
}

impl<'a> FromHost<'a> {
    /// Reads a frame; `payload` has the header's size.
    pub fn parse(header: &Header, payload: &'a [u8]) -> Result<FromHost<'a>, Violation> {
        match (header.kind, payload) {
            (START, payload) => Ok(FromHost::Start(Start::parse(payload)?)),
            (INPUT, payload) => Ok(FromHost::Input(payload)),
            (RESIZE, &[r0, r1, c0, c1]) => Ok(FromHost::Resize(Size {
                rows: u16::from_le_bytes([r0, r1]),
                columns: u16::from_le_bytes([c0, c1]),
            })),
            (HANG_UP, []) => Ok(FromHost::HangUp),
            _ => Err(header.out_of_place()),
        }
    }

    /// The frame's bytes.
    pub fn to_bytes(&self, session: u32) -> Result<Vec<u8>, Violation> {
        match self {
            FromHost::Start(start) => {
                start.check().map_err(|problem| Violation::Start(problem.to_owned()))?;
                let json = serde_json::to_vec(start)
                    .map_err(|error| Violation::Start(error.to_string()))?;
                Header::write(START, session, &json)
            }
            FromHost::Input(bytes) => Header::write(INPUT, session, bytes),
            FromHost::Resize(Size { rows, columns }) => {
                let payload = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
                Header::write(RESIZE, session, &payload)
            }
            FromHost::HangUp => Header::write(HANG_UP, session, &[]),
        }
    }
}

impl<'a> FromGuest<'a> {
    /// Reads a frame; `payload` has the header's size.
    pub fn parse(header: &Header, payload: &'a [u8]) -> Result<FromGuest<'a>, Violation> {
        match (header.kind, payload) {
            (OUTPUT, payload) => Ok(FromGuest::Output(payload)),
            (ERRORS, payload) => Ok(FromGuest::Errors(payload)),
            (TAKEN, &[a, b, c, d]) => Ok(FromGuest::Taken(u32::from_le_bytes([a, b, c, d]))),
            (EXITED, &[code]) => Ok(FromGuest::Exited(code)),
            (FAILED, payload) => match std::str::from_utf8(payload) {
                Ok(reason) => Ok(FromGuest::Failed(reason)),
                Err(_) => Err(header.out_of_place()),
            },
            _ => Err(header.out_of_place()),
        }
    }

    /// Whether the session is over with it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, FromGuest::Exited(_) | FromGuest::Failed(_))
    }

    /// The frame's bytes.
    pub fn to_bytes(&self, session: u32) -> Result<Vec<u8>, Violation> {
        match self {
            FromGuest::Output(bytes) => Header::write(OUTPUT, session, bytes),
            FromGuest::Errors(bytes) => Header::write(ERRORS, session, bytes),
            FromGuest::Taken(count) => Header::write(TAKEN, session, &count.to_le_bytes()),
            FromGuest::Exited(code) => Header::write(EXITED, session, &[*code]),
            FromGuest::Failed(reason) => Header::write(FAILED, session, reason.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> Result<(Header, &[u8]), Violation> {
        let (head, payload) = bytes.split_first_chunk().unwrap();
        Ok((Header::parse(head)?, payload))
    }

    fn start() -> Start {
        let size = Size { rows: 24, columns: 80 };
        let terminal = Some(Terminal { size, term: "xterm-256color".into() });
        Start { command: vec!["ps".into(), "-ef".into()], terminal }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let size = Size { rows: 1, columns: u16::MAX };
        let whole = vec![7; PAYLOAD_LIMIT];
        for frame in [
            FromHost::Start(start()),
            FromHost::Start(Start { command: Vec::new(), terminal: None }),
            FromHost::Input(b"x"),
            FromHost::Input(&whole),
            FromHost::Input(b""),
            FromHost::Resize(size),
            FromHost::HangUp,
        ] {
            let bytes = frame.to_bytes(9).unwrap();
            let (header, payload) = header(&bytes).unwrap();
            assert_eq!((header.session(), header.size()), (9, payload.len()));
            assert_eq!(FromHost::parse(&header, payload).unwrap(), frame);
            assert!(FromGuest::parse(&header, payload).is_err());
        }
        for frame in [
            FromGuest::Output(b"out"),
            FromGuest::Errors(b""),
            FromGuest::Taken(u32::MAX),
            FromGuest::Exited(137),
            FromGuest::Failed("why"),
        ] {
            let bytes = frame.to_bytes(u32::MAX).unwrap();
            let (header, payload) = header(&bytes).unwrap();
            assert_eq!(header.session(), u32::MAX);
            assert_eq!(FromGuest::parse(&header, payload).unwrap(), frame);
            assert!(FromHost::parse(&header, payload).is_err());
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let too_long = Header::parse(&[INPUT, 0, 0, 0, 0, 1, 0x80]);
        assert_eq!(too_long, Err(Violation::Size(PAYLOAD_LIMIT + 1)));
        assert!(FromHost::Input(&[0; PAYLOAD_LIMIT + 1]).to_bytes(0).is_err());
        assert!(FromHost::Input(&[0; 1 << 16]).to_bytes(0).is_err());
        for (kind, payload) in [
            (0, &b""[..]),
            (RESIZE, b"123"),
            (HANG_UP, b"x"),
            (EXITED, b""),
            (TAKEN, b"1"),
            (255, b""),
        ] {
            let header = Header { kind, session: 0, size: payload.len() };
            let expected = Violation::Frame { kind, size: payload.len() };
            assert_eq!(FromHost::parse(&header, payload), Err(expected.clone()));
            assert_eq!(FromGuest::parse(&header, payload), Err(expected));
        }
        let failed = Header { kind: FAILED, session: 0, size: 1 };
        assert!(FromGuest::parse(&failed, b"\xff").is_err());
    }

    #[test]
    fn a_command_that_cannot_be_one_is_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let refused = |start: Start| {
            let json = serde_json::to_vec(&start).unwrap();
            let header = Header { kind: START, session: 0, size: json.len() };
            assert!(FromHost::Start(start).to_bytes(0).is_err());
            FromHost::parse(&header, &json).unwrap_err().to_string()
        };
        let plain = |command| Start { command, terminal: None };
        assert!(refused(plain(words(&["a", "b\0c"]))).contains("zero byte"));
        assert!(refused(plain(words(&["", "b"]))).contains("name is empty"));
        assert!(refused(plain(vec!["x".into(); 1025])).contains("too many words"));
        for term in ["x\ny", "../x", &"x".repeat(65)] {
            let mut start = start();
            start.terminal.as_mut().unwrap().term = term.to_owned();
            assert!(refused(start).contains("plain name"), "{term}");
        }
        for json in ["", "{}", "[]", r#"{"command":[],"terminal":null,"user":"root"}"#, "\u{0}"] {
            let header = Header { kind: START, session: 0, size: json.len() };
            assert!(FromHost::parse(&header, json.as_bytes()).is_err(), "{json}");
        }
    }
}
