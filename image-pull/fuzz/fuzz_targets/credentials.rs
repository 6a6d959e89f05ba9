//! Any bytes as docker's config.json, as `WWW-Authenticate` and as a token service's answer: read or refused,
//! never a panic.
#![no_main]
#![allow(dead_code, unexpected_cfgs)]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/registry/challenge.rs"]
mod challenge;
#[path = "../../src/credentials.rs"]
mod credentials;
#[path = "../../src/error.rs"]
mod error;

use error::PullError;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(credentials) = credentials::Credentials::parse_docker_config(bytes) {
        let _ = credentials.find("registry.example:5000", "a/b/c");
        let mut merged = credentials.clone();
        merged.merge(credentials);
    }
    if let Ok(header) = std::str::from_utf8(bytes) {
        for challenge in challenge::parse(header) {
            if let challenge::Challenge::Bearer(service) = challenge {
                let _ = service.get_url("a/b");
            }
        }
    }
    let _ = challenge::read_token(bytes);
});
