//! The guest's part of the start report, fetched with `GetDiagnosticData`.

/// `log_type` of the `GetDiagnosticData` request that returns the guest's phases as lines of
/// `<container or -> <phase> <microseconds>`, oldest first.
pub const LOG_TYPE: &str = "nacre.start";

/// One finished phase of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The container that it was for; `-` for the pod.
    pub container: String,
    /// `kernel`, `agent`, `pull`, `create` ...
    pub name: String,
    /// How long it took, in microseconds.
    pub micros: u64,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.container, self.name, self.micros)
    }
}

/// Reads the lines of an answer; lines of another form are left out, since a newer guest may add some.
pub fn parse(text: &str) -> Vec<Phase> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let phase = Phase {
                container: words.next()?.to_owned(),
                name: words.next()?.to_owned(),
                micros: words.next()?.parse().ok()?,
            };
            words.next().is_none().then_some(phase)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let phase = Phase { container: "-".into(), name: "kernel".into(), micros: 42 };
        assert_eq!(parse(&format!("{phase}\nnot a phase\na b c\na b 1 more\n")), vec![phase]);
    }
}
