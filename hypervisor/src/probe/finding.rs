//! What the probe tells.

use std::fmt;

use serde::Serialize;

/// What is to vouch for the guests of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// Nothing.
    None,
    /// An emulated AMD secure processor: for development.
    EmulatedSnp,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Tee {
    /// All of them.
    pub const ALL: [Tee; 4] = [Tee::None, Tee::EmulatedSnp, Tee::Snp, Tee::Tdx];

    /// As `vm.tee` of the configuration has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tee::None => "none",
            Tee::EmulatedSnp => "emulated-snp",
            Tee::Snp => "snp",
            Tee::Tdx => "tdx",
        }
    }

    /// Whether the processor protects the guest.
    #[must_use]
    pub fn is_hardware(self) -> bool {
        matches!(self, Tee::Snp | Tee::Tdx)
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What a finding means for the question that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Pass,
    /// The question does not depend on it.
    NotApplicable,
    /// Pods run, and something is slower, unsafe for production or soon to fail.
    Warn,
    /// This process may not see it.
    Unknown,
    /// Pods do not run.
    Fail,
}

impl Status {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Pass => "pass",
            Status::NotApplicable => "not-applicable",
            Status::Warn => "warn",
            Status::Unknown => "unknown",
            Status::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, which stays the same from release to release, such as `snp.firmware`.
    pub id: &'static str,
    /// What it means.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing is.
    pub advice: String,
}

/// Longest text of a finding, in characters. Much of it quotes files and programs.
const LONGEST: usize = 400;

impl Finding {
    pub(crate) fn new(
        id: &'static str,
        status: Status,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Finding {
        let advice = if status <= Status::NotApplicable { "" } else { advice.as_ref() };
        Finding { id, status, found: printable(found.as_ref()), advice: printable(advice) }
    }

    pub(crate) fn pass(id: &'static str, found: impl AsRef<str>) -> Finding {
        Finding::new(id, Status::Pass, found, "")
    }

    pub(crate) fn skip(id: &'static str, found: impl AsRef<str>) -> Finding {
        Finding::new(id, Status::NotApplicable, found, "")
    }

    pub(crate) fn warn(
        id: &'static str,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Finding {
        Finding::new(id, Status::Warn, found, advice)
    }

    pub(crate) fn fail(
        id: &'static str,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Finding {
        Finding::new(id, Status::Fail, found, advice)
    }

    /// What only root may see.
    pub(crate) fn unseen(id: &'static str, what: impl AsRef<str>) -> Finding {
        let what = what.as_ref();
        let found = format!("{what} may not be opened by this user");
        Finding::new(id, Status::Unknown, found, format!("run as root to see {what}"))
    }
}

/// One line of text without control characters. What files and programs say may have anything in it.
pub(crate) fn printable(text: &str) -> String {
    let visible = |c: char| if c.is_control() || is_bidirectional(c) { ' ' } else { c };
    let mut line: String = text.chars().map(visible).take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// Characters that make a terminal show others in another order.
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a node can do what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Pods run.
    Ready,
    /// Something fails.
    NotReady,
    /// Nothing fails that this process may see, and it may not see all.
    Unknown,
}

/// All findings on one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The question: could the node run pods with this?
    pub tee: Tee,
    /// In the order in which people read them; the ids and their order are the same for every question.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The answer.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.findings.iter().map(|finding| finding.status).max() {
            Some(Status::Fail) => Verdict::NotReady,
            Some(Status::Unknown) => Verdict::Unknown,
            _ => Verdict::Ready,
        }
    }

    /// The findings of a status.
    pub fn of(&self, status: Status) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.status == status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status]) -> Report {
        let findings = statuses.iter().map(|&status| Finding::new("x", status, "f", "a")).collect();
        Report { tee: Tee::None, findings }
    }

    #[test]
    fn the_worst_finding_decides() {
        use Status::{Fail, NotApplicable, Pass, Unknown, Warn};
        assert_eq!(report(&[Pass, Warn, NotApplicable]).verdict(), Verdict::Ready);
        assert_eq!(report(&[Pass, Unknown, Warn]).verdict(), Verdict::Unknown);
        assert_eq!(report(&[Unknown, Fail, Pass]).verdict(), Verdict::NotReady);
    }

    #[test]
    fn what_was_found_is_one_line_and_cannot_steer_a_terminal() {
        let finding = Finding::warn("x", "a\u{1b}[2J\nb\u{202e}c", "d\te");
        assert_eq!((finding.found.as_str(), finding.advice.as_str()), ("a [2J b c", "d e"));
        let long = Finding::pass("x", "ü".repeat(100_000));
        assert_eq!(long.found.chars().count(), LONGEST + 1);
        assert!(Finding::pass("x", "y").advice.is_empty());
    }
}
