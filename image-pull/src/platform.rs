//! What images for amd64 may ask of the processor: the levels of the x86-64 psABI, which image indexes
//! name as variants `v1` to `v4`.

use std::arch::is_x86_feature_detected as has;
use std::fmt;

use crate::PullError;

/// A level of x86-64 (psABI 1.0, 3.1.1 "Processor Architecture").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    V1,
    V2,
    V3,
    V4,
}

impl Level {
    /// Of a variant as indexes and configurations write it; none says level 1.
    pub(crate) fn of_variant(variant: &str) -> Option<Self> {
        Some(match variant {
            "" | "v1" => Self::V1,
            "v2" => Self::V2,
            "v3" => Self::V3,
            "v4" => Self::V4,
            _ => return None,
        })
    }

    /// The highest that this processor is known to have.
    pub(crate) fn of_this_processor() -> Self {
        let v2 = has!("cmpxchg16b")
            && has!("popcnt")
            && has!("sse3")
            && has!("sse4.1")
            && has!("sse4.2")
            && has!("ssse3");
        let v3 = has!("avx")
            && has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("f16c")
            && has!("fma")
            && has!("lzcnt")
            && has!("movbe");
        let v4 = has!("avx512f")
            && has!("avx512bw")
            && has!("avx512cd")
            && has!("avx512dq")
            && has!("avx512vl");
        match (v2, v3, v4) {
            (false, ..) => Self::V1,
            (true, false, _) => Self::V2,
            (true, true, false) => Self::V3,
            (true, true, true) => Self::V4,
        }
    }

    /// Refuses what would end in illegal instructions.
    pub(crate) fn check(self, processor: Self) -> Result<(), PullError> {
        if self <= processor {
            return Ok(());
        }
        Err(PullError::Document {
            document: "image",
            field: "platform",
            problem: format!(
                "is linux/amd64/{self}, and this processor is known to run {processor}: use an image \
                 for linux/amd64 without variant, or another machine"
            ),
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V4 => "v4",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_refused_from_below() {
        let levels = [Level::V1, Level::V2, Level::V3, Level::V4];
        for (i, level) in levels.into_iter().enumerate() {
            assert_eq!(Level::of_variant(&level.to_string()), Some(level));
            for (j, processor) in levels.into_iter().enumerate() {
                assert_eq!(level.check(processor).is_ok(), i <= j);
            }
        }
        assert_eq!(Level::of_variant("V2"), None);
        let error = Level::V4.check(Level::of_this_processor().min(Level::V3)).unwrap_err();
        assert!(error.to_string().contains("linux/amd64/v4"), "{error}");
    }
}
