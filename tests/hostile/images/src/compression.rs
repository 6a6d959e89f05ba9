//! Compressed streams: honest ones, and those that are made of a few bytes by hand.

use std::io::Write;

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::content::Content;

/// A gzip file of one member.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(bytes, Compression::fast())
}

/// The same, as small as it gets.
#[must_use]
pub fn gzip_best(bytes: &[u8]) -> Vec<u8> {
    gzip_at(bytes, Compression::best())
}

fn gzip_at(bytes: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// A zstd file of one frame.
#[must_use]
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory takes all")
}

/// A gzip file of one member whose content is `head` and then that many MiB of zeros. Its checksum is
/// wrong: nobody should get that far.
#[must_use]
pub fn gzip_zeros(head: &[u8], mebibytes: u64) -> Content {
    let mut start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    start.extend(deflate_block(head));
    let piece = deflate_block(&vec![0; 1 << 20]);
    // A last block that is empty, then checksum and length.
    Content::repeated(&start, &piece, mebibytes, b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0")
}

/// Deflate blocks that end at a byte and refer to nothing before them, so they can be repeated.
fn deflate_block(bytes: &[u8]) -> Vec<u8> {
    let mut deflate = Compress::new(Compression::best(), false);
    let mut packed = Vec::with_capacity(bytes.len() + 4096);
    let status = deflate.compress_vec(bytes, &mut packed, FlushCompress::Full);
    assert!(matches!(status, Ok(Status::Ok)) && deflate.total_in() == bytes.len() as u64);
    packed
}

/// Largest content of a zstd block, in bytes (RFC 8878, 3.1.1.2.3).
pub const ZSTD_BLOCK: usize = 128 << 10;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// Begins a frame that needs a window of `1 << window_log` bytes and does not tell its size.
#[must_use]
pub fn zstd_frame(window_log: u8) -> Vec<u8> {
    [&ZSTD_MAGIC[..], &[0, (window_log - 10) << 3]].concat()
}

/// Begins a frame without a window of its own: all of its `size` bytes are the window.
#[must_use]
pub fn zstd_single_segment(size: u64) -> Vec<u8> {
    [&ZSTD_MAGIC[..], &[0b1110_0000], &size.to_le_bytes()].concat()
}

/// A block as it is.
#[must_use]
pub fn zstd_raw_block(bytes: &[u8], last: bool) -> Vec<u8> {
    assert!(bytes.len() <= ZSTD_BLOCK);
    [&zstd_block_header(0, bytes.len(), last)[..], bytes].concat()
}

/// A block that is one byte, that many times.
#[must_use]
pub fn zstd_run(byte: u8, times: usize, last: bool) -> Vec<u8> {
    [&zstd_block_header(1, times, last)[..], &[byte]].concat()
}

fn zstd_block_header(kind: usize, size: usize, last: bool) -> [u8; 3] {
    let [a, b, c, ..] = (size << 3 | kind << 1 | usize::from(last)).to_le_bytes();
    [a, b, c]
}

/// A frame that decoders skip (RFC 8878, 3.1.2).
#[must_use]
pub fn zstd_skippable(content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).expect("short").to_le_bytes();
    [&0x184d_2a50_u32.to_le_bytes()[..], &size, content].concat()
}

/// A frame whose content is `head` and then that many MiB of zeros, in four bytes for 128 KiB.
#[must_use]
pub fn zstd_zeros(head: &[u8], mebibytes: u64, window_log: u8) -> Content {
    let start = [zstd_frame(window_log), zstd_raw_block(head, false)].concat();
    let end = zstd_raw_block(&[], true);
    Content::repeated(&start, &zstd_run(0, ZSTD_BLOCK, false), mebibytes * 8, &end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn bytes(content: &Content) -> Vec<u8> {
        let mut bytes = Vec::new();
        content.write(&mut bytes, 0, u64::MAX).expect("memory takes all");
        bytes
    }

    #[test]
    fn streams_made_by_hand_are_what_decoders_expect() {
        let mut head = [0; 3];
        let packed = bytes(&gzip_zeros(b"abc", 3));
        let mut gzip = flate2::read::DeflateDecoder::new(&packed[10..]);
        gzip.read_exact(&mut head).expect("a stream");
        let mut rest = Vec::new();
        gzip.read_to_end(&mut rest).expect("a stream");
        assert_eq!((&head, rest.len()), (b"abc", 3 << 20));
        assert!(rest.iter().all(|byte| *byte == 0));

        let frames = [bytes(&zstd_zeros(b"abc", 2, 20)), zstd_skippable(b"?"), zstd(b"end")];
        let content = zstd::decode_all(&frames.concat()[..]).expect("frames");
        assert_eq!(content.len(), (2 << 20) + 6);
        assert!(content.starts_with(b"abc\0") && content.ends_with(b"\0end"));
        let whole = [zstd_single_segment(2), zstd_run(7, 2, true)].concat();
        assert_eq!(zstd::decode_all(&whole[..]).expect("a frame"), [7, 7]);
    }
}
