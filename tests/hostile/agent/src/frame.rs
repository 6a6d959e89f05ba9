//! ttrpc's frames, written and read by hand: the crate would not let a broken one out.

use std::io::{self, Read, Write};

use protobuf::Message;
use ttrpc::proto::{Request, Response};

/// What a message is: byte 8 of its header.
pub const REQUEST: u8 = 1;
/// An answer.
pub const RESPONSE: u8 = 2;
/// A part of a stream.
pub const DATA: u8 = 3;

/// The largest body that ttrpc takes, in bytes.
pub const MOST: usize = 4 << 20;

/// A request that was read.
#[derive(Debug)]
pub struct Asked {
    /// Which stream the answer goes to.
    pub stream: u32,
    /// The method, such as `ReadStdout`.
    pub method: String,
    /// The message of that method.
    pub payload: Vec<u8>,
}

/// The ten bytes before a body: length, stream, kind, flags.
#[must_use]
pub fn header(length: u32, stream: u32, kind: u8) -> [u8; 10] {
    let mut header = [0; 10];
    header[..4].copy_from_slice(&length.to_be_bytes());
    header[4..8].copy_from_slice(&stream.to_be_bytes());
    header[8] = kind;
    header
}

/// Reads the next request.
///
/// # Errors
/// At the end of the channel, and if it carries something else.
pub fn read(channel: &mut impl Read) -> io::Result<Asked> {
    let mut header = [0; 10];
    channel.read_exact(&mut header)?;
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap_or_default());
    let length = number(0) as usize;
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    channel.read_exact(&mut body)?;
    let request = Request::parse_from_bytes(&body)?;
    Ok(Asked { stream: number(4), method: request.method, payload: request.payload })
}

/// A whole frame with that body.
#[must_use]
pub fn framed(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = header(length, stream, kind).to_vec();
    frame.extend_from_slice(body);
    frame
}

/// Answers with a message.
///
/// # Errors
/// If the channel is closed.
pub fn answer(channel: &mut impl Write, stream: u32, message: &impl Message) -> io::Result<()> {
    let response = Response { payload: message.write_to_bytes()?, ..Default::default() };
    channel.write_all(&framed(stream, RESPONSE, &response.write_to_bytes()?))
}

/// Answers with an error.
///
/// # Errors
/// If the channel is closed.
pub fn refuse(
    channel: &mut impl Write,
    stream: u32,
    code: ttrpc::Code,
    words: String,
) -> io::Result<()> {
    let status = Some(ttrpc::get_status(code, words)).into();
    let response = Response { status, ..Default::default() };
    channel.write_all(&framed(stream, RESPONSE, &response.write_to_bytes()?))
}
