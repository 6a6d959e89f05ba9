//! Any text as a reference, manifest, index or configuration: read or refused, never a panic.
#![no_main]
#![allow(dead_code, unexpected_cfgs)]

use libfuzzer_sys::fuzz_target;
use nacre_trust::{Algorithm, Untrusted};

#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/manifest.rs"]
mod manifest;
#[path = "../../src/platform.rs"]
mod platform;
#[path = "../../src/reference.rs"]
mod reference;

use error::PullError;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(reference) = text.parse::<reference::Reference>()
    {
        let again: reference::Reference = reference.to_string().parse().expect("normalised");
        assert_eq!(reference.to_string(), again.to_string());
    }
    let content = Untrusted::new(bytes.to_vec());
    let digest = content.digest(Algorithm::Sha256);
    let document = content.verify_digest(&digest).expect("its own digest");
    if let Ok(manifest::Manifest::Index(entries)) = manifest::Manifest::parse(&document, None, None)
    {
        let _ = manifest::for_this_guest(&entries);
    }
    let _ = manifest::read_config(&document, 1);
});
