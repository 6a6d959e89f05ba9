//! Writes agent policies: Kubernetes YAML and image configurations become a policy document.
//!
//! ```text
//! YAML --kubernetes--> Workload --generate (with images, settings)--> PolicyData --document--> Rego text
//! ```
//!
//! It runs on the owner's side, and distrusts what it is given all the same: files are bounded, unknown
//! fields are errors with their lines, and images count by their digests.
//!
//! Never: a field of the YAML is skipped silently, a secret appears in a message, the same input gives other
//! bytes, or a text of the owner is rewritten beyond what was asked for.

#![forbid(unsafe_code)]

mod accounts;
mod capabilities;
pub mod diff;
pub mod document;
mod expand;
pub mod generate;
pub mod kubernetes;
pub mod lint;
mod mounts;
pub mod settings;
mod signals;
pub mod template;
pub mod workload;
pub mod yaml;
