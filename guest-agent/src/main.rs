//! `nacre-agent`: process 1 of a Nacre guest. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nacre_agent::main()
}
