//! Any bytes as firmware: refused, or the same size with variables erased, and nothing to erase the second time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_guest_image::firmware::without_variables;

fuzz_target!(|bytes: &[u8]| {
    let Ok(emptied) = without_variables(bytes) else { return };
    assert_eq!(emptied.len(), bytes.len());
    assert!(emptied.iter().zip(bytes).all(|(new, old)| new == old || *new == 0xff));
    assert_eq!(without_variables(&emptied).as_ref(), Ok(&emptied));
});
