//! nacre-agent
mod boot;
mod error;
mod modules;
mod network;
mod start_report;
mod transport;
fn main() {}
