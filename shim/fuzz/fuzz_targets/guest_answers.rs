//! Any bytes as the agent's statistics and as its words about pulls: read or refused, never a panic; what is passed on
//! has bounded lists and names, and nothing in it steers a terminal. (Start reports are protocol's target.)
#![no_main]

use libfuzzer_sys::fuzz_target;

const MOST_ENTRIES: usize = 128;
const MOST_NAME: usize = 64 + "...".len();
const MOST_WORDS: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    if let Some((entries, name)) = nacre_shim::fuzzing::statistics(bytes) {
        assert!(entries <= MOST_ENTRIES && name <= MOST_NAME, "{entries} entries, {name} bytes");
    }
    let text = String::from_utf8_lossy(bytes);
    for pull in nacre_shim::fuzzing::pulls(&text) {
        assert!(pull.len() <= MOST_WORDS && !pull.contains(char::is_control), "{pull:?}");
    }
    let words = nacre_shim::fuzzing::words(&text, MOST_WORDS);
    assert!(words.len() <= MOST_WORDS + "...".len() && !words.contains(char::is_control));
});
