//! Any bytes as an event log: read or refused, never a panic; replay touches only known registers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::tdx::{EVENT_COUNT_LIMIT, EventLog};

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = EventLog::parse(bytes) else { return };
    assert!(log.events().len() <= EVENT_COUNT_LIMIT);
    let registers = log.replay();
    for (index, register) in registers.iter().enumerate() {
        let extended = log.events().iter().any(|event| event.register as usize == index + 1);
        assert!(extended || *register == [0; 48]);
    }
});
