//! Signed messages (RFC 9580, section 10.3).

use std::io::Read;

use flate2::read::{DeflateDecoder, ZlibDecoder};

use super::packet::{self, Packet, Reader, packets};
use super::signature::{BINARY, Signature};

/// Largest message, packed and unpacked, in bytes.
const MESSAGE_LIMIT: usize = 512 * 1024;

/// A message with one signature; not verified.
#[derive(Debug)]
pub(crate) struct SignedMessage {
    pub(super) content: Vec<u8>,
    pub(super) signature: Signature,
}

impl SignedMessage {
    pub(crate) fn parse(message: &[u8]) -> Result<Self, String> {
        if message.len() > MESSAGE_LIMIT {
            return Err(format!("an OpenPGP message has at most {MESSAGE_LIMIT} bytes"));
        }
        let outer = packets(message)?;
        match outer.as_slice() {
            [one] if one.tag == packet::COMPRESSED => {
                let inner = decompressed(&one.body)?;
                Self::of_packets(&packets(&inner)?)
            }
            several => Self::of_packets(several),
        }
    }

    /// With what was signed, once somebody vouched for it.
    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    fn of_packets(packets: &[Packet<'_>]) -> Result<Self, String> {
        let tags: Vec<u8> = packets.iter().map(|packet| packet.tag).collect();
        let (([packet::ONE_PASS, packet::LITERAL, packet::SIGNATURE], [_, literal, signature])
        | ([packet::SIGNATURE, packet::LITERAL], [signature, literal])) =
            (tags.as_slice(), packets)
        else {
            return Err("not an OpenPGP message with one signature".into());
        };
        let signature = Signature::parse(&signature.body)?;
        if signature.kind != BINARY {
            return Err("the OpenPGP signature is not one over data".into());
        }
        let content = content(&literal.body).ok_or("the OpenPGP message is malformed")?;
        Ok(Self { content: content.to_vec(), signature })
    }
}

/// What is in a literal packet, after format, file name and date.
fn content(literal: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(literal);
    reader.byte()?;
    let length = reader.number(1)?;
    reader.take(length)?;
    reader.take(4)?;
    Some(reader.rest())
}

fn decompressed(packet: &[u8]) -> Result<Vec<u8>, String> {
    let (algorithm, data) = packet.split_first().ok_or("the OpenPGP message is empty")?;
    let mut content = Vec::new();
    let limit = MESSAGE_LIMIT as u64 + 1;
    let read = match algorithm {
        0 => data.take(limit).read_to_end(&mut content),
        1 => DeflateDecoder::new(data).take(limit).read_to_end(&mut content),
        2 => ZlibDecoder::new(data).take(limit).read_to_end(&mut content),
        _ => return Err("the OpenPGP message is compressed in a way that is not supported".into()),
    };
    read.map_err(|_| "the OpenPGP message cannot be decompressed")?;
    if content.len() > MESSAGE_LIMIT {
        return Err(format!("an OpenPGP message has at most {MESSAGE_LIMIT} bytes"));
    }
    Ok(content)
}
