//! Why bytes are no evidence.

/// Why bytes are no evidence, or fields cannot become such bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Fewer or more bytes than this structure has.
    #[error("{what} has {expected} bytes, not {found}")]
    Length {
        /// Which structure.
        what: &'static str,
        /// Its size, in bytes.
        expected: usize,
        /// What came, in bytes.
        found: usize,
    },
    /// Larger than this program handles.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// Which structure or list.
        what: &'static str,
        /// In bytes, or entries of a list.
        limit: usize,
    },
    /// The bytes end within a structure.
    #[error("{what} is cut short at byte {offset}")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Where more bytes were needed.
        offset: usize,
    },
    /// Bytes that the specification reserves are not zero: a field this program does not know, or damage.
    #[error("{what}: reserved bytes at {offset:#x} are not zero; a newer format?")]
    Reserved {
        /// Which structure.
        what: &'static str,
        /// Of the first byte of the reserved field.
        offset: usize,
    },
    /// A version of a structure that this program does not know.
    #[error("{what} version {version} is not known; this program reads {known}")]
    Version {
        /// Which structure.
        what: &'static str,
        /// As found.
        version: u32,
        /// Those that are known.
        known: &'static str,
    },
    /// The processor is none whose TCB layout is known.
    #[error(
        "SNP report: CPUID family {family:#x} model {model:#x} is no Milan, Genoa or Turin; \
         its TCB versions cannot be read"
    )]
    Processor {
        /// Extended and base family, added.
        family: u8,
        /// Extended and base model, combined.
        model: u8,
    },
    /// A report of version 2 with a masked chip id: nothing tells its TCB layout.
    #[error(
        "SNP report: version 2 with a masked chip id does not tell its processor's product; \
         turn MASK_CHIP_ID off on the host or update its firmware"
    )]
    MaskedVersion2,
    /// Fields that no report of this version and processor can have.
    #[error("SNP report: the fields do not fit its version and processor")]
    Inconsistent,
    /// A structure that breaks its format.
    #[error("{what}: {problem}")]
    Malformed {
        /// Which structure.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The evidence is for a TEE that this program does not know.
    #[error("evidence of TEE {0:?} is not known; this program reads \"snp\" and \"tdx\"")]
    Tee(String),
}

impl EvidenceError {
    pub(crate) fn malformed(what: &'static str, problem: impl std::fmt::Display) -> EvidenceError {
        EvidenceError::Malformed { what, problem: problem.to_string().chars().take(200).collect() }
    }
}
