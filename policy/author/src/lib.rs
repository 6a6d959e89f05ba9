//! Writes agent policies: Kubernetes YAML and image configurations become a policy document.

#![forbid(unsafe_code)]

mod expand;
pub mod kubernetes;
pub mod workload;
