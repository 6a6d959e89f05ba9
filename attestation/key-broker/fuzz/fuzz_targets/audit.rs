//! Any bytes as a file of the audit log: it holds together or it does not, never a panic.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use nacre_kbs::audit;

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("memory");
    let path = directory.path().join("audit-000000000001.jsonl");
    fs::write(&path, bytes).expect("memory");
    let file = audit::verify(&path);
    let whole = audit::verify(directory.path());
    match (file, whole) {
        (Ok(file), Ok(whole)) => {
            assert_eq!(file, whole);
            let entries = whole.last.saturating_sub(whole.first) + u64::from(whole.entries > 0);
            assert_eq!(whole.entries, entries);
        }
        (Err(_), Err(_)) => {}
        (file, whole) => panic!("{file:?} {whole:?}"),
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = serde_json::from_str::<audit::Entry>(text);
        let _ = serde_json::from_str::<nacre_kbs::Grant>(text).map(|grant| grant.check());
    }
});
