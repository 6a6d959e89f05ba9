//! Any bytes as a greeting, a verdict and a stream of frames of the node cache, from either side: read or
//! refused, never a panic, and what was read is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::blob_cache::{
    Allowance, FromCache, FromGuest, HEADER_SIZE, HELLO_SIZE, Header, Hello, PIECE_LIMIT, Verdict,
};

fuzz_target!(|bytes: &[u8]| {
    if let Some((head, rest)) = bytes.split_first_chunk::<HELLO_SIZE>()
        && let Ok(length) = Hello::rest(head)
        && let Some(rest) = rest.get(..length)
        && let Ok(hello) = Hello::parse(head, rest)
    {
        assert_eq!(hello.to_bytes().expect("was read"), bytes[..HELLO_SIZE + length]);
    }
    if let Some((head, _)) = bytes.split_first_chunk()
        && let Ok(verdict) = Verdict::parse(head)
    {
        assert_eq!(verdict.to_bytes(), *head);
    }
    let mut stream = bytes;
    let mut allowance = Allowance::default();
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER_SIZE>() {
        let Ok(header) = Header::parse(head) else { return };
        assert!(header.size() <= PIECE_LIMIT && header.request() != 0);
        let Some((payload, next)) = rest.split_at_checked(header.size()) else { return };
        let frame = &stream[..HEADER_SIZE + header.size()];
        let mut written = Vec::new();
        if let Ok(read) = FromGuest::parse(&header, payload) {
            read.write(header.request(), &mut written).expect("was read");
            assert_eq!(written, frame);
        }
        written.clear();
        if let Ok(read) = FromCache::parse(&header, payload) {
            read.write(header.request(), &mut written).expect("was read");
            assert_eq!(written, frame);
            match read {
                FromCache::Credit(credit) => _ = allowance.give(credit),
                FromCache::Data(piece) => _ = allowance.spend(piece.len()),
                _ => {}
            }
        }
        stream = next;
    }
});
