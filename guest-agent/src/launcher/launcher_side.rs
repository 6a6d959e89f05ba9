//! The launcher: the agent's program run again, with one thread, for one process of one container.

use std::error::Error;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};
use tracing_subscriber::fmt::MakeWriter;

use super::executor::Program;
use super::{Confinement, Kind, LONGEST_MESSAGE, Order, Report, START, STATES};

/// Lowest number of the control socket: above the standard streams, which become the container's.
const CONTROL_FD: i32 = 3;

/// Obeys one order from the socket on standard input.
pub(crate) fn run() -> ExitCode {
    match rustix::io::fcntl_dupfd_cloexec(io::stdin(), CONTROL_FD) {
        Ok(control) => {
            let control = Arc::new(control);
            match obey(&control) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tell(&control, &Report::Failed(error));
                    ExitCode::FAILURE
                }
            }
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn obey(control: &Arc<OwnedFd>) -> Result<(), String> {
    let (order, descriptors) = receive(control)?;
    take_streams(&descriptors, order.owner).map_err(|e| format!("failed to set streams: {e}"))?;
    drop(descriptors);
    log_to(control);
    match &order.kind {
        Kind::Init { bundle } => {
            let mut container = build(control, &order, bundle).map_err(|e| chain(&e))?;
            let pid = container.pid().ok_or("the runtime library made no process")?;
            tell(control, &Report::Born(pid.as_raw()));
            if started(control) { container.start().map_err(|e| chain(&e)) } else { Ok(()) }
        }
        Kind::Exec { process, confinement } => {
            let text = std::fs::read_to_string(confinement)
                .map_err(|e| format!("failed to read {confinement}: {e}"))?;
            let confinement = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let pid =
                build_further(control, &order, process, confinement).map_err(|e| chain(&e))?;
            tell(control, &Report::Born(pid));
            Ok(())
        }
    }
}

fn build(
    control: &Arc<OwnedFd>,
    order: &Order,
    bundle: &str,
) -> Result<Container, LibcontainerError> {
    builder(control, order, None)?.as_init(bundle).with_systemd(false).with_detach(true).build()
}

fn build_further(
    control: &Arc<OwnedFd>,
    order: &Order,
    process: &str,
    confinement: Confinement,
) -> Result<i32, LibcontainerError> {
    let pid = builder(control, order, Some(confinement))?
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process))
        .build()?;
    Ok(pid.as_raw())
}

fn builder(
    control: &Arc<OwnedFd>,
    order: &Order,
    confinement: Option<Confinement>,
) -> Result<ContainerBuilder, LibcontainerError> {
    let program = Program { control: Arc::clone(control), confinement };
    ContainerBuilder::new(order.container.clone(), SyscallType::default())
        .with_executor(program)
        .with_root_path(Path::new(STATES))?
        .with_console_socket(order.console_socket.as_deref())
        .validate_id()
}

/// The order and, unless the process gets a terminal, its three streams.
fn receive(control: &OwnedFd) -> Result<(Order, Vec<OwnedFd>), String> {
    let mut bytes = vec![0; LONGEST_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        control,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|e| format!("failed to receive the order: {e}"))?;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let order = serde_json::from_slice(&bytes[..message.bytes])
        .map_err(|e| format!("failed to read the order: {e}"))?;
    Ok((order, descriptors))
}

/// Makes the container's streams the launcher's, from which its processes inherit them.
fn take_streams(streams: &[OwnedFd], owner: u32) -> io::Result<()> {
    let [stdin, stdout, stderr] = streams else {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        return Ok(rustix::stdio::dup2_stderr(&null)?);
    };
    for stream in streams {
        let stat = rustix::fs::fstat(stream)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(owner)), None::<Gid>)?;
        }
    }
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Waits for the agent's word; false if the agent gave the container up.
fn started(control: &OwnedFd) -> bool {
    let mut word = [0; START.len()];
    let mut read = 0;
    while read < word.len() {
        match rustix::io::read(control, &mut word[read..]) {
            Ok(0) => return false,
            Ok(count) => read += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    word == START
}

/// Sends one report. A failure cannot be reported anywhere: the agent sees the socket's end.
pub(super) fn tell(control: &OwnedFd, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(&report.bounded()) {
        line.push(b'\n');
        let _ = rustix::net::send(control, &line, SendFlags::NOSIGNAL);
    }
}

impl Report {
    /// JSON may need up to twelve bytes for a character.
    fn bounded(&self) -> Self {
        let cut = |text: &String| text.chars().take(LONGEST_MESSAGE / 32).collect();
        match self {
            Self::Born(pid) => Self::Born(*pid),
            Self::Failed(text) => Self::Failed(cut(text)),
            Self::Log(text) => Self::Log(cut(text)),
        }
    }
}

/// An error with its causes, outermost first. Some of the library's repeat their cause's words.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// Errors that the library logs go to the agent; the standard streams are the container's.
fn log_to(control: &Arc<OwnedFd>) {
    let writer = ReportWriter { control: Arc::clone(control) };
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .with_level(false)
        .with_target(false)
        .without_time()
        .with_writer(writer)
        .finish();
    // Fails only if a subscriber is set, which nothing else in this process does.
    let _ = tracing::subscriber::set_global_default(log);
}

#[derive(Debug)]
struct ReportWriter {
    control: Arc<OwnedFd>,
}

impl<'a> MakeWriter<'a> for ReportWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { control: &self.control }
    }
}

struct Line<'a> {
    control: &'a OwnedFd,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).trim().to_owned();
        tell(self.control, &Report::Log(text));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
