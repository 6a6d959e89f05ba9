//! Any bytes as a host's certificate table: read or refused, never a panic, and a table that was read is
//! the same after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::snp::{CERTIFICATE_COUNT_LIMIT, CERTIFICATE_LIMIT, CertificateTable};

fuzz_target!(|bytes: &[u8]| {
    let Ok(table) = CertificateTable::parse(bytes) else { return };
    assert!(table.certificates().len() <= CERTIFICATE_COUNT_LIMIT);
    assert!(table.certificates().iter().all(|each| each.data.len() <= CERTIFICATE_LIMIT));
    assert_eq!(CertificateTable::parse(&table.encode()), Ok(table));
});
