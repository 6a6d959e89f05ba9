//! Packets (RFC 9580, section 4).

use std::borrow::Cow;

/// Packets of one sequence.
const PACKETS_LIMIT: usize = 4096;

pub(super) const SIGNATURE: u8 = 2;
pub(super) const ONE_PASS: u8 = 4;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const COMPRESSED: u8 = 8;
pub(super) const LITERAL: u8 = 11;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;

/// A packet: its type, and its body without lengths.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    pub(super) tag: u8,
    pub(super) body: Cow<'a, [u8]>,
}

/// All packets of a sequence. Bodies never exceed the input in sum.
pub(super) fn packets(input: &[u8]) -> Result<Vec<Packet<'_>>, String> {
    let mut reader = Reader(input);
    let mut packets = Vec::new();
    while !reader.0.is_empty() {
        if packets.len() >= PACKETS_LIMIT {
            return Err(format!("more than {PACKETS_LIMIT} OpenPGP packets"));
        }
        packets.push(reader.packet().ok_or("an OpenPGP packet is malformed")?);
    }
    Ok(packets)
}

/// Reads big-endian numbers and counted bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A number of at most four bytes.
    pub(super) fn number(&mut self, length: usize) -> Option<usize> {
        let bytes = self.take(length)?;
        Some(bytes.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte)))
    }

    /// A multiprecision integer (section 3.2), without its count of bits.
    pub(super) fn mpi(&mut self) -> Option<&'a [u8]> {
        let bits = self.number(2)?;
        self.take(bits.div_ceil(8))
    }

    fn packet(&mut self) -> Option<Packet<'a>> {
        let header = self.byte()?;
        match header >> 6 {
            0b11 => Some(Packet { tag: header & 0x3f, body: self.new_format()? }),
            0b10 => {
                let body = match header & 3 {
                    0 => self.sized(1)?,
                    1 => self.sized(2)?,
                    2 => self.sized(4)?,
                    // Until the end: GnuPG writes compressed packets so.
                    _ => self.rest(),
                };
                Some(Packet { tag: (header >> 2) & 0xf, body: Cow::Borrowed(body) })
            }
            _ => None,
        }
    }

    fn sized(&mut self, length: usize) -> Option<&'a [u8]> {
        let length = self.number(length)?;
        self.take(length)
    }

    /// Section 4.2.1: a length, or pieces of which each has its own.
    fn new_format(&mut self) -> Option<Cow<'a, [u8]>> {
        let mut pieces: Option<Vec<u8>> = None;
        loop {
            let first = self.byte()?;
            let (length, last) = match first {
                224..=254 => (1 << (first & 0x1f), false),
                _ => (self.length(first)?, true),
            };
            let piece = self.take(length)?;
            match (&mut pieces, last) {
                (None, true) => return Some(Cow::Borrowed(piece)),
                (None, false) => pieces = Some(piece.to_vec()),
                (Some(body), _) => body.extend_from_slice(piece),
            }
            if last {
                return pieces.map(Cow::Owned);
            }
        }
    }

    /// A length of one, two or five bytes, also of subpackets.
    pub(super) fn length(&mut self, first: u8) -> Option<usize> {
        match first {
            0..192 => Some(usize::from(first)),
            192..255 => Some(((usize::from(first) - 192) << 8) + usize::from(self.byte()?) + 192),
            255 => self.number(4),
        }
    }
}
