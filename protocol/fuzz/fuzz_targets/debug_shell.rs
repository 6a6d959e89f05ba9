//! Any bytes as a stream of frames of the development shell, from either side: read or refused, never a
//! panic, and what was read is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::debug_shell::{FromGuest, FromHost, HEADER_SIZE, Header, PAYLOAD_LIMIT};

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER_SIZE>() {
        let Ok(header) = Header::parse(head) else { return };
        assert!(header.size() <= PAYLOAD_LIMIT);
        let Some((payload, next)) = rest.split_at_checked(header.size()) else { return };
        let frame = &stream[..HEADER_SIZE + header.size()];
        match FromHost::parse(&header, payload) {
            // JSON has many forms of one thing.
            Ok(start @ FromHost::Start(_)) => {
                if let Ok(written) = start.to_bytes(header.session()) {
                    let (head, payload) = written.split_first_chunk().expect("a header");
                    let header = Header::parse(head).expect("was written");
                    assert_eq!(FromHost::parse(&header, payload), Ok(start));
                }
            }
            Ok(read) => assert_eq!(read.to_bytes(header.session()).expect("was read"), frame),
            Err(_) => {}
        }
        if let Ok(read) = FromGuest::parse(&header, payload) {
            assert_eq!(read.to_bytes(header.session()).expect("was read"), frame);
        }
        stream = next;
    }
});
