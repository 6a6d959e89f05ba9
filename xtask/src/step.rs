//! Steps as they are shown: a name, lines beneath it, and the time at the end.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A step that is going on.
pub(crate) struct Step {
    name: &'static str,
    start: Instant,
}

impl Step {
    /// Announces it.
    pub(crate) fn new(name: &'static str) -> Self {
        println!("==> {name}");
        Self { name, start: Instant::now() }
    }

    /// Says something on the way.
    pub(crate) fn say(&self, line: impl fmt::Display) {
        println!("    {:>6}  {line}", Seconds(self.start.elapsed()));
    }

    /// Says that it is over.
    pub(crate) fn done(self) {
        println!("    {:>6}  {} done", Seconds(self.start.elapsed()), self.name);
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} s", self.0.as_secs_f64()))
    }
}

/// Runs a command whose output the user sees; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("failed to start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); its output is above");
    }
    Ok(())
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
