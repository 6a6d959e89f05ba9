//! Any first block of a disk: blank, foreign or a header that says nothing until it is authentic. Nothing of the
//! fuzzer's is authentic under a key that it does not have; what it wants written reads back, and any change of it
//! is seen.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_volume_format::header::{Beginning, Content, Header, Keys, LENGTH, State, Whose};
use nacre_volume_format::superblock;

const SECRET: [u8; 32] = [0x5a; 32];
const WHOSE: Whose<'_> = Whose { volume: "fuzz", pod: None };
/// Bytes of a header that its code is about, and the code.
const AUTHENTICATED: usize = 96;

fuzz_target!(|bytes: &[u8]| {
    let _ = superblock::check(bytes);
    if let Beginning::Volume(salt) = Beginning::of(bytes) {
        let keys = Keys::derive(&SECRET, &salt, WHOSE);
        assert!(Header::open(bytes, &keys).is_err(), "nobody here has the key");
    }
    let Some((salt, rest)) = bytes.split_first_chunk() else { return };
    let [first, second, at, by, ..] = *rest else { return };
    let content = if first & 1 == 0 { Content::FileSystem } else { Content::Raw };
    let state = if second & 1 == 0 { State::Making } else { State::Ready { bytes: u64::from(at) } };
    let keys = Keys::derive(&SECRET, salt, WHOSE);
    let mut block = Header { content, state, salt: *salt }.render(&keys);
    assert_eq!(block.len(), LENGTH);
    assert_eq!(Beginning::of(&block), Beginning::Volume(*salt));
    let read = Header::open(&block, &keys).expect("it was written with these keys");
    assert_eq!(read, Header { content, state, salt: *salt });
    block[usize::from(at) % AUTHENTICATED] ^= by;
    assert_eq!(Header::open(&block, &keys).is_err(), by != 0);
});
