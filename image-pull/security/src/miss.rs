//! Why one signature does not meet one requirement.

use crate::printable::printable;

/// How far a signature came. The farthest is what the user is told: with ten signatures, nine of them
/// other people's, the tenth's wrong name is the news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It could not be fetched or read.
    Form,
    /// Nobody who is trusted made it.
    Signer,
    /// Certificate, log entry or time do not hold.
    Proof,
    /// It is for another image.
    Digest,
    /// It is for this image under another name.
    Name,
}

/// A signature that does not meet a requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    pub(crate) stage: Stage,
    /// Printable.
    pub(crate) why: String,
}

impl Miss {
    pub(crate) fn new(stage: Stage, why: &str) -> Self {
        Self { stage, why: printable(why, 160) }
    }
}
