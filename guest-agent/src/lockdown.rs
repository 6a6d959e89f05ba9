//! How far the kernel shields itself from its own root user: `kernel_lockdown(7)`.

use std::fs;
use std::io;

/// The switch: the levels, the present one in brackets. It goes up only.
const SWITCH: &str = "/sys/kernel/security/lockdown";

/// A level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lockdown {
    /// Root can do what it likes.
    None,
    /// Root cannot change the kernel: its memory, its ports, its modules without signature.
    Integrity,
    /// Nor read secrets out of it.
    Confidentiality,
}

impl Lockdown {
    /// The present level.
    fn current() -> io::Result<Self> {
        let text = fs::read_to_string(SWITCH)?;
        Self::parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{SWITCH} holds {text:?}"))
        })
    }

    /// Raises the level to the highest, and checks that it is.
    pub(crate) fn raise_to_confidentiality() -> io::Result<()> {
        if Self::current()? < Self::Confidentiality {
            fs::write(SWITCH, "confidentiality")?;
        }
        match Self::current()? {
            Self::Confidentiality => Ok(()),
            level => Err(io::Error::other(format!("the kernel stays at the level {level:?}"))),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let present = text.split_ascii_whitespace().find_map(|word| word.strip_prefix('['))?;
        match present.strip_suffix(']')? {
            "none" => Some(Self::None),
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_in_brackets_counts() {
        let parse = Lockdown::parse;
        assert_eq!(parse("[none] integrity confidentiality\n"), Some(Lockdown::None));
        assert_eq!(parse("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(parse("none integrity [confidentiality]\n"), Some(Lockdown::Confidentiality));
        for other in ["", "none integrity", "[none", "[other]"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
