//! Why a launch cannot be measured.

/// Why a launch cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// No image that could be mapped below 4 GiB.
    #[error(
        "a firmware of {0} bytes cannot be measured: it has whole pages of 4096 bytes, 16 MiB at most"
    )]
    FirmwareSize(usize),
    /// The firmware lacks something that this launch needs.
    #[error("the firmware has no {what}: {remedy}")]
    Missing {
        /// What is not there.
        what: &'static str,
        /// Which firmware to give.
        remedy: &'static str,
    },
    /// A structure that breaks its format, or that a launcher would refuse.
    #[error("{what}: {problem}")]
    Malformed {
        /// Which structure.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No processors, or too many.
    #[error("a launch with {0} processors cannot be measured; give 1 to 512")]
    Vcpus(u32),
}

impl MeasureError {
    pub(crate) fn malformed(what: &'static str, problem: impl Into<String>) -> MeasureError {
        MeasureError::Malformed { what, problem: problem.into() }
    }
}
