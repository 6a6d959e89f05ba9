//! The start report: the phases of a pod's start, what each is called, and what can go wrong in it.
//!
//! Host and guest use the same table of [phases](Phase) and [failures](Failure). Codes are stable: a number
//! is never given another meaning. The guest's durations are fetched with `GetDiagnosticData`; its failures
//! travel in front of its errors ([`Failure::mark`]). Both are the guest's word, and only what a guest can
//! know is taken from it ([`Phase::is_the_guests`]).

mod failure;
mod phase;

pub use failure::Failure;
pub use phase::Phase;

/// `log_type` of the `GetDiagnosticData` request that returns the guest's phases as lines of
/// `<container or -> <phase> <microseconds>`, oldest first.
pub const LOG_TYPE: &str = "nacre.start";

/// Target of those lines of the agent's log that a host may read, whatever the guest is. Filters compare the
/// beginnings of targets: the hyphen makes sure that no module's path begins so.
pub const HOST_VISIBLE: &str = "host-visible";

/// Phases that are read from one answer at most: a guest keeps no more.
pub const MOST_PHASES: usize = 256;

/// One finished phase of a start, as the guest measured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The container that it was for; `-` for the pod.
    pub container: String,
    /// Which one.
    pub phase: Phase,
    /// How long it took, in microseconds.
    pub micros: u64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.container, self.phase, self.micros)
    }
}

/// Reads the lines of an answer; lines of another form are left out, since a newer guest may add some.
pub fn parse(text: &str) -> Vec<Measured> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let measured = Measured {
            container: words.next()?.to_owned(),
            phase: words.next()?.parse().ok()?,
            micros: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(measured)
    };
    text.lines().filter_map(line).take(MOST_PHASES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let measured = Measured { container: "-".into(), phase: Phase::Kernel, micros: 42 };
        let others = "not a phase\na kernel c\na kernel 1 more\na other 1\na kernel -1\n\n";
        assert_eq!(parse(&format!("{measured}\n{others}")), [measured]);
        assert_eq!(parse(&"- kernel 1\n".repeat(1000)).len(), MOST_PHASES);
    }
}
