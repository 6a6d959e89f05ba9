//! How a command writes its result: for people, or as JSON for programs.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::input::print;

/// The option `--output`, the same for every command that tells something.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// How to write the result
    #[arg(long = "output", value_name = "FORM", value_enum, default_value_t = Form::Text)]
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One JSON document
    Json,
}

impl Output {
    /// Whether a program will read it.
    pub(crate) fn is_json(self) -> bool {
        self.form == Form::Json
    }

    /// Prints a result in the form that was asked for.
    pub(crate) fn show<T: Serialize>(
        self,
        result: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.is_json() { print_json(result) } else { print(&text(result)) }
    }
}

/// Prints one JSON document, indented.
pub(crate) fn print_json<T: Serialize + ?Sized>(result: &T) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(result)?))
}

/// Whether to colour what goes to standard output: only for people at a terminal who did not ask for none
/// (no-color.org).
pub(crate) fn colours() -> bool {
    let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && unset("NO_COLOR") && !dumb
}
