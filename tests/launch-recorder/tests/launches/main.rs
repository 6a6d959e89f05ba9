//! Whole launches of confidential guests by the real QEMU, started by Nacre's own backend, up to the guest's
//! first instruction.
#![allow(clippy::unwrap_used)]

mod configured;
mod lab;
mod snp;
mod tdx;
