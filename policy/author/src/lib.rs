//! Writes agent policies: Kubernetes YAML and image configurations become a policy document.

#![forbid(unsafe_code)]

pub mod document;
pub mod settings;
pub mod workload;
