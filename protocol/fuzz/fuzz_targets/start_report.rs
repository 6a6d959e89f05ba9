//! Any bytes as a guest's start report, as an error with a code and as a console: bounded, only phases and
//! failures that are a guest's own, and what was read is written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::start_report::{Failure, MOST_PHASES, parse};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let measured = parse(&text);
    assert!(measured.len() <= MOST_PHASES);
    for one in &measured {
        assert_eq!(parse(&one.to_string()), [one.clone()]);
    }
    if let Some((failure, words)) = Failure::marked(&text) {
        assert!(failure.phase().is_the_guests());
        assert_eq!(failure.mark(words), text);
    }
    if let Some(failure) = Failure::on_console(&text) {
        assert!(failure.phase().is_the_guests());
    }
});
