//! See the library of the same name.

fn main() -> anyhow::Result<()> {
    match nacre_hostile_agent::Machine::of_command_line()? {
        Some(machine) => machine.run(),
        None => Ok(()),
    }
}
