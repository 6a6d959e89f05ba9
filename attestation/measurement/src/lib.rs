//! What a genuine guest measures, computed before any is started: SNP's launch digest, TDX's MRTD, and
//! those of TDX's run-time registers that follow from the files that are booted.
//!
//! It reads firmware images and kernels as the hypervisor and the firmware do, and distrusts them all
//! the same: every offset is checked, every loop has a documented limit, and what a launcher would
//! refuse or read otherwise is an error, never a digest. It reads no file and asks no hardware; it is
//! given bytes. It never guesses: a register whose value depends on what is not known here is
//! [`tdx::Prediction::Unpredictable`], with the reason.

#![forbid(unsafe_code)]

mod error;
mod footer;
pub mod pe;
pub mod snp;
pub mod tdx;

pub use error::MeasureError;

/// Largest firmware image, in bytes.
pub const FIRMWARE_LIMIT: usize = 16 * 1024 * 1024;

const PAGE_SIZE: usize = 4096;
