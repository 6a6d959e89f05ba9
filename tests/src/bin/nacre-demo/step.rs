//! How the demo talks.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// One step: shown while it runs if a person watches, and with its time when it is done.
pub(crate) struct Step {
    started: Instant,
    watched: bool,
}

impl Step {
    pub(crate) fn begin(what: &str) -> Step {
        let watched = std::io::stdout().is_terminal();
        if watched {
            print!("  … {what}");
            let _ = std::io::stdout().flush();
        }
        Step { started: Instant::now(), watched }
    }

    pub(crate) fn done(self, what: &str) {
        let clear = if self.watched { "\r\x1b[K" } else { "" };
        println!("{clear}  ✓ {what} ({:.1} s)", self.started.elapsed().as_secs_f64());
    }
}

/// A line beneath the last step.
pub(crate) fn note(text: &str) {
    println!("      {text}");
}
