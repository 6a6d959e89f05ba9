//! Writes agent policies: Kubernetes YAML and image configurations become a policy document.

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
