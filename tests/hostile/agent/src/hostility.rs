//! What the guest does to the shim, by name.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nacre_protocol::agent as api;
use nacre_protocol::channel::STREAM_CHUNK;
use protobuf::MessageField;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;

use crate::frame::{self, Asked, DATA, MOST, REQUEST, RESPONSE, answer, framed, header, refuse};

/// Time between two bytes of a trickle: less than the shim lets output stand still.
const TRICKLE: Duration = Duration::from_secs(4);

/// A way to do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// None: what a shim takes that is not attacked, for comparison.
    Honest,
    /// Nothing answers at all.
    Silent,
    /// Connections are closed as soon as they are made.
    Closing,
    /// Bytes without any form, for ever.
    Garbage,
    /// A frame that says to have 4 GiB, and goes on for ever.
    HugeFrame,
    /// A frame that is longer than it says.
    ShortFrame,
    /// Half of a header, and nothing more.
    HalfHeader,
    /// Answers of 4 MiB that nobody asked for, for ever.
    UnaskedAnswers,
    /// Frames of all kinds, to streams that are in use and such that are not, for ever.
    Requests,
    /// A process that writes without end.
    EndlessOutput,
    /// More output than was asked for.
    OversizedOutput,
    /// Output that never ends and never comes.
    EmptyOutput,
    /// Memory that runs out all the time, in containers that there are and in others.
    MemoryEvents,
    /// Statistics, reports and errors of the largest size, full of what no terminal should see.
    Lies,
    /// Ends of processes that nobody can have.
    OddStatus,
    /// From the moment a container runs nothing is answered any more.
    Mute,
    /// From the moment a container runs answers that nobody asked for come beside the others.
    FloodBeside,
    /// Signals are denied, as by a policy.
    RefusesKill,
    /// Signals are taken, and nothing ends.
    IgnoresKill,
    /// Signals are not answered, everything else is.
    HalfMute,
    /// A process that has ended goes on to give a byte now and then.
    TricklingOutput,
    /// Containers that have ended are not removed.
    KeepsContainers,
    /// The console and QEMU's standard error are written to without end.
    ConsoleFlood,
    /// QEMU itself sends events, and answers that nobody asked for, without end.
    ControlFlood,
}

/// When a behaviour begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// The guest never becomes ready.
    NeverBoots,
    /// It runs a container first.
    Runs,
    /// It runs a pod of two containers, and resists its end.
    Resists,
}

const ALL: [(Behaviour, &str, Guest); 24] = [
    (Behaviour::Honest, "honest", Guest::Runs),
    (Behaviour::Silent, "silent", Guest::NeverBoots),
    (Behaviour::Closing, "closing", Guest::NeverBoots),
    (Behaviour::Garbage, "garbage", Guest::NeverBoots),
    (Behaviour::HugeFrame, "huge-frame", Guest::NeverBoots),
    (Behaviour::ShortFrame, "short-frame", Guest::NeverBoots),
    (Behaviour::HalfHeader, "half-header", Guest::NeverBoots),
    (Behaviour::UnaskedAnswers, "unasked-answers", Guest::NeverBoots),
    (Behaviour::Requests, "requests", Guest::NeverBoots),
    (Behaviour::EndlessOutput, "endless-output", Guest::Runs),
    (Behaviour::OversizedOutput, "oversized-output", Guest::Runs),
    (Behaviour::EmptyOutput, "empty-output", Guest::Runs),
    (Behaviour::MemoryEvents, "memory-events", Guest::Runs),
    (Behaviour::Lies, "lies", Guest::Runs),
    (Behaviour::OddStatus, "odd-status", Guest::Runs),
    (Behaviour::Mute, "mute", Guest::Runs),
    (Behaviour::FloodBeside, "flood-beside", Guest::Runs),
    (Behaviour::RefusesKill, "refuses-kill", Guest::Resists),
    (Behaviour::IgnoresKill, "ignores-kill", Guest::Resists),
    (Behaviour::HalfMute, "half-mute", Guest::Resists),
    (Behaviour::TricklingOutput, "trickling-output", Guest::Resists),
    (Behaviour::KeepsContainers, "keeps-containers", Guest::Resists),
    (Behaviour::ConsoleFlood, "console-flood", Guest::Runs),
    (Behaviour::ControlFlood, "control-flood", Guest::Runs),
];

impl Behaviour {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Behaviour> {
        ALL.into_iter().map(|(behaviour, ..)| behaviour)
    }

    /// As `hostile=NAME` on the kernel's command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(behaviour, ..)| *behaviour == self).map_or("", |(_, name, _)| name)
    }

    /// Whether a container runs first.
    #[must_use]
    pub fn guest(self) -> Guest {
        let found = ALL.iter().find(|(behaviour, ..)| *behaviour == self);
        found.map_or(Guest::Runs, |(.., guest)| *guest)
    }

    pub(crate) fn named(name: &str) -> anyhow::Result<Behaviour> {
        let found = ALL.iter().find(|(_, known, _)| *known == name);
        found
            .map(|(behaviour, ..)| *behaviour)
            .ok_or_else(|| anyhow::anyhow!("no behaviour {name}"))
    }

    /// Serves one connection of the shim's until it ends.
    pub(crate) fn serve(self, connection: &UnixStream) -> io::Result<()> {
        let mut out = connection;
        let junk = vec![0xa5; 64 * 1024];
        match self {
            Behaviour::Closing => return Ok(()),
            Behaviour::Garbage => loop {
                out.write_all(&junk)?;
            },
            Behaviour::HugeFrame => {
                let asked = frame::read(&mut out)?;
                out.write_all(&header(u32::MAX, asked.stream, RESPONSE))?;
                loop {
                    out.write_all(&junk)?;
                }
            }
            Behaviour::ShortFrame => {
                let asked = frame::read(&mut out)?;
                let mut frame = framed(asked.stream, RESPONSE, &junk);
                frame[..4].copy_from_slice(&7_u32.to_be_bytes());
                out.write_all(&frame)?;
                return forever();
            }
            Behaviour::HalfHeader => {
                out.write_all(&header(10, 1, RESPONSE)[..5])?;
                return forever();
            }
            Behaviour::UnaskedAnswers => return flood(connection),
            Behaviour::Requests => loop {
                for stream in 0..32 {
                    for kind in [REQUEST, DATA, 0, 7, 255] {
                        out.write_all(&framed(stream, kind, &junk[..4096]))?;
                    }
                }
            },
            Behaviour::Silent => {
                while frame::read(&mut out).is_ok() {}
                return Ok(());
            }
            _ => {}
        }
        self.serve_running(connection)
    }

    fn serve_running(self, connection: &UnixStream) -> io::Result<()> {
        let mut incoming = connection.try_clone()?;
        let channel =
            Channel { out: Arc::new(Mutex::new(connection.try_clone()?)), waiting: Arc::default() };
        let mut runs = false;
        loop {
            let asked = frame::read(&mut incoming)?;
            if runs && self == Behaviour::Mute {
                continue;
            }
            runs |= asked.method == "StartContainer";
            if asked.method == "StartContainer" && self == Behaviour::FloodBeside {
                let channel = channel.clone();
                thread::spawn(move || {
                    let unasked = unasked();
                    while channel.write(&unasked).is_ok() {}
                });
            }
            if self.lie(&channel, &asked)? {
                continue;
            }
            channel.honest(&asked)?;
        }
    }

    /// Answers what this behaviour lies about; false for the rest.
    fn lie(self, channel: &Channel, asked: &Asked) -> io::Result<bool> {
        let output =
            |length| api::ReadStreamResponse { data: vec![b'x'; length], ..Default::default() };
        match (self, asked.method.as_str()) {
            (Behaviour::EndlessOutput, "ReadStdout" | "ReadStderr") => {
                channel.answer(asked, &output(STREAM_CHUNK))?;
            }
            (Behaviour::OversizedOutput, "ReadStdout" | "ReadStderr") => {
                channel.answer(asked, &output(3 << 20))?;
            }
            (Behaviour::EmptyOutput, "ReadStdout" | "ReadStderr") => {
                channel.answer(asked, &output(0))?;
            }
            (Behaviour::TricklingOutput, "ReadStdout" | "ReadStderr") => {
                let (channel, stream) = (channel.clone(), asked.stream);
                thread::spawn(move || {
                    thread::sleep(TRICKLE);
                    let mut out = channel.out.lock().unwrap_or_else(PoisonError::into_inner);
                    answer(&mut *out, stream, &output(1))
                });
            }
            (Behaviour::RefusesKill, "SignalProcess") => {
                let mut out = channel.out.lock().unwrap_or_else(PoisonError::into_inner);
                let words = "policy denies SignalProcess".to_owned();
                refuse(&mut *out, asked.stream, Code::PERMISSION_DENIED, words)?;
            }
            (Behaviour::IgnoresKill, "SignalProcess") => channel.answer(asked, &Empty::new())?,
            (Behaviour::HalfMute, "SignalProcess") => {}
            (Behaviour::KeepsContainers, "RemoveContainer") => {
                let mut out = channel.out.lock().unwrap_or_else(PoisonError::into_inner);
                refuse(&mut *out, asked.stream, Code::INTERNAL, "it stays".to_owned())?;
            }
            (Behaviour::MemoryEvents, "GetOOMEvent") => {
                let names = ["", "../../../etc", "no-such-container", "\u{1b}[2J"];
                let real = channel.containers().into_iter().next().unwrap_or_default();
                let turn = asked.stream as usize / 2;
                let container_id = match names.get(turn % (names.len() + 1)) {
                    Some(name) => (*name).to_owned(),
                    None => real,
                };
                channel.answer(asked, &api::OOMEvent { container_id, ..Default::default() })?;
            }
            (Behaviour::OddStatus, "WaitProcess") => {
                // Not before the shim has started everything that follows the process.
                thread::sleep(Duration::from_millis(200));
                let status = [i32::MAX, i32::MIN, -1, 256][asked.stream as usize / 2 % 4];
                channel
                    .answer(asked, &api::WaitProcessResponse { status, ..Default::default() })?;
            }
            (Behaviour::Lies, "StatsContainer") => channel.answer(asked, &statistics())?,
            (Behaviour::Lies, "GetDiagnosticData") => {
                let line =
                    "../../../../tmp/nacre \u{1b}]0;owned\u{7} 18446744073709551615\n- pull 1\n";
                let data = line.repeat((MOST - 4096) / line.len());
                let answer = api::GetDiagnosticDataResponse { data, ..Default::default() };
                channel.answer(asked, &answer)?;
            }
            (Behaviour::Lies, "SignalProcess" | "ExecProcess" | "TtyWinResize") => {
                let words = "\u{1b}[31m../../etc/shadow\n\0".repeat(150_000);
                let mut out = channel.out.lock().unwrap_or_else(PoisonError::into_inner);
                refuse(&mut *out, asked.stream, Code::INTERNAL, words)?;
            }
            (Behaviour::Lies, "WriteStdin") => {
                let answer = api::WriteStreamResponse { len: u32::MAX, ..Default::default() };
                channel.answer(asked, &answer)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The way to the shim, for several threads.
#[derive(Clone)]
struct Channel {
    out: Arc<Mutex<UnixStream>>,
    /// Who waits for the end of a container's process: streams by container.
    waiting: Arc<Mutex<HashMap<String, Vec<u32>>>>,
}

impl Channel {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }

    fn answer(&self, asked: &Asked, message: &impl protobuf::Message) -> io::Result<()> {
        answer(&mut *self.out.lock().unwrap_or_else(PoisonError::into_inner), asked.stream, message)
    }

    fn containers(&self) -> Vec<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// As far as a shim needs an agent.
    fn honest(&self, asked: &Asked) -> io::Result<()> {
        match asked.method.as_str() {
            "GetOOMEvent" => Ok(()),
            "WaitProcess" => {
                let wait: api::WaitProcessRequest =
                    protobuf::Message::parse_from_bytes(&asked.payload)?;
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.entry(wait.container_id).or_default().push(asked.stream);
                Ok(())
            }
            "SignalProcess" => {
                let signal: api::SignalProcessRequest =
                    protobuf::Message::parse_from_bytes(&asked.payload)?;
                self.answer(asked, &Empty::new())?;
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                for stream in waiting.remove(&signal.container_id).unwrap_or_default() {
                    let ended = api::WaitProcessResponse { status: 137, ..Default::default() };
                    answer(
                        &mut *self.out.lock().unwrap_or_else(PoisonError::into_inner),
                        stream,
                        &ended,
                    )?;
                }
                Ok(())
            }
            "ReadStdout" | "ReadStderr" => {
                let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
                refuse(&mut *out, asked.stream, Code::OUT_OF_RANGE, "no more".into())
            }
            _ => self.answer(asked, &Empty::new()),
        }
    }
}

fn forever() -> io::Result<()> {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// An answer of the largest size to a stream that is not in use.
fn unasked() -> Vec<u8> {
    framed(0x7fff_fffe, RESPONSE, &vec![0; MOST])
}

fn flood(mut out: &UnixStream) -> io::Result<()> {
    let unasked = unasked();
    loop {
        out.write_all(&unasked)?;
    }
}

/// As many entries as fit, each with the largest numbers.
fn statistics() -> api::StatsContainerResponse {
    let entry = |number: u64| api::BlkioStatsEntry {
        major: number,
        minor: u64::MAX - number,
        op: if number.is_multiple_of(2) { "Read" } else { "Write" }.to_owned(),
        value: u64::MAX,
        ..Default::default()
    };
    let devices: Vec<_> = (0..40_000).map(entry).collect();
    // Sums of the largest numbers.
    let again = devices.iter().take(100).cloned();
    let mut cgroup = api::CgroupStats {
        blkio_stats: MessageField::some(api::BlkioStats {
            io_service_bytes_recursive: devices.iter().cloned().chain(again).collect(),
            io_serviced_recursive: devices.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for number in 0..10_000 {
        let stats = api::HugetlbStats { usage: u64::MAX, ..Default::default() };
        cgroup.hugetlb_stats.insert(format!("{number}MB"), stats);
    }
    let network = |number: u32| api::NetworkStats {
        name: format!("../{number}"),
        rx_bytes: u64::MAX,
        ..Default::default()
    };
    api::StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup),
        network_stats: (0..10_000).map(network).collect(),
        ..Default::default()
    }
}
