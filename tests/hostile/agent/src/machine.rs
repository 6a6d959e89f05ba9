//! What the shim takes for QEMU: its command line, its control channel, its console.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Behaviour;

/// The first line of QEMU's `--version`.
const VERSION: &str = "QEMU emulator version 10.0.2 (a hostile guest)";

/// The sockets of a machine, as the shim's command line names them.
#[derive(Debug)]
pub struct Machine {
    behaviour: Behaviour,
    agent: UnixListener,
    control: UnixStream,
    console: UnixStream,
}

impl Machine {
    /// Takes what the command line names; `None` if it only asks for the version, which is answered.
    ///
    /// # Errors
    /// If it is none of the shim's, or its kernel parameters name no behaviour (`hostile=NAME`).
    pub fn of_command_line() -> anyhow::Result<Option<Machine>> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        if words.iter().any(|word| word == "--version") {
            println!("{VERSION}");
            return Ok(None);
        }
        let append = words.iter().skip_while(|word| *word != "-append").nth(1);
        let parameters = append.context("no -append")?.split(' ');
        let name = parameters.filter_map(|word| word.strip_prefix("hostile=")).next_back();
        let behaviour = Behaviour::named(name.context("no hostile= among the parameters")?)?;
        Ok(Some(Machine {
            behaviour,
            agent: inherited(&words, "agent")?.into(),
            control: inherited(&words, "qmp")?.into(),
            console: inherited(&words, "console")?.into(),
        }))
    }

    /// Runs until the shim wants it to end.
    ///
    /// # Errors
    /// If a channel fails in a way that no behaviour asks for.
    pub fn run(self) -> anyhow::Result<()> {
        let Machine { behaviour, agent, control, mut console } = self;
        console.write_all(b"a hostile guest boots\n")?;
        if behaviour == Behaviour::ConsoleFlood {
            std::thread::spawn(move || flood(console));
            std::thread::spawn(|| flood(std::io::stderr()));
        }
        rustix::net::listen(&agent, 8)?;
        std::thread::spawn(move || {
            for connection in agent.incoming().flatten() {
                // Which ends when the shim has had enough.
                let _ = behaviour.serve(&connection);
            }
        });
        serve_control(control, behaviour == Behaviour::ControlFlood)
    }
}

/// Words, what terminals obey, and no end of a line.
fn flood(mut sink: impl Write) {
    let words = "\u{1b}[2Jnacre: it is all fine \0\u{7}".repeat(2000);
    while sink.write_all(words.as_bytes()).is_ok() {}
}

/// The socket that a chardev of the command line inherits.
fn inherited(words: &[String], id: &str) -> anyhow::Result<OwnedFd> {
    let prefix = format!("socket,id={id},fd=");
    let rest = words.iter().find_map(|word| word.strip_prefix(&prefix));
    let rest = rest.with_context(|| format!("no chardev {id} with a descriptor"))?;
    let number = rest.split(',').next().unwrap_or_default().parse()?;
    anyhow::ensure!(number > 2, "chardev {id} has the descriptor of a standard stream");
    // SAFETY: the shim has opened the descriptor for this process and told its number, as it does for QEMU. Each
    // chardev has one of its own, and nothing else here takes any.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// QMP as far as the shim uses it, and beside it what QEMU would never say.
fn serve_control(control: UnixStream, floods: bool) -> anyhow::Result<()> {
    let writer = Arc::new(Mutex::new(control.try_clone()?));
    let say = |message: Value| {
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(format!("{message}\n").as_bytes())
    };
    let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" });
    say(json!({ "QMP": { "version": version, "capabilities": [] } }))?;
    for line in BufReader::new(control).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        say(json!({ "return": { "status": "running" }, "id": command["id"] }))?;
        if floods && command["execute"] == "query-status" {
            let writer = writer.clone();
            std::thread::spawn(move || {
                let event =
                    json!({ "event": "RTC_CHANGE", "data": { "reason": "x".repeat(8000) } });
                let answer = json!({ "return": "\u{1b}[2J".repeat(1000), "id": 1_u64 << 40 });
                let lines = format!("{event}\n{answer}\n").repeat(16);
                let write = || {
                    writer
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .write_all(lines.as_bytes())
                };
                while write().is_ok() {}
            });
        }
        if command["execute"] == "quit" {
            break;
        }
    }
    Ok(())
}
