//! How containerd calls this program: `start`, `delete`, and the server that `start` leaves behind.
//!
//! The `run` of the `containerd-shim` crate announces version 3 of the task API, which containerd
//! before 2.0 does not know. Versions 2 and 3 differ in the service's name alone, so this server
//! answers to both names and announces nothing: a bare address is what 1.6, 1.7 and 2.x all take.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim::logger::FifoLogger;
use containerd_shim::publisher::RemotePublisher;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use rustix::fs::Mode;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::annotations::Kind;
use crate::events::{Events, timestamp};
use crate::pod::Pod;
use crate::process::{Exit, KILLED};
use crate::sandbox::Origin;
use crate::service::Service;
use crate::{spec, telemetry};
use nacre_run_directory::history::History;
use nacre_run_directory::{RUN_ROOT, RecordError, Remains};

/// Name of the runtime in containerd's configuration.
const RUNTIME: &str = "io.containerd.nacre.v2";

/// The names of the task service, old and new.
const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// File in a bundle from which a restarted containerd learns the shim's address.
const ADDRESS_FILE: &str = "address";

/// Time for the last answer and the last events to leave before the server ends.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why the program cannot do what containerd called it for.
#[derive(Debug, thiserror::Error)]
enum BootstrapError {
    #[error("command line: {0}")]
    Flags(#[from] containerd_shim::Error),
    #[error("the action {0:?} is unknown: containerd calls this program with start or delete")]
    Action(String),
    #[error("{0} is empty: this program is started by containerd, not by hand")]
    Missing(&'static str),
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    #[error(transparent)]
    Annotation(#[from] crate::annotations::AnnotationError),
    #[error("the shim of sandbox {sandbox} does not answer at {address}: {cause}")]
    NoSandbox { sandbox: String, address: String, cause: io::Error },
    #[error("cannot {what}: {cause}")]
    Io { what: String, cause: io::Error },
    #[error("the server did not start: {0}")]
    Server(String),
    #[error("cannot serve the task API: {0}")]
    Ttrpc(#[from] ttrpc::Error),
    #[error("cannot encode the answer: {0}")]
    Encode(#[from] protobuf::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> BootstrapError {
    let what = what.into();
    move |cause| BootstrapError::Io { what, cause }
}

/// Does what the command line says. Errors go to standard error, where containerd reads them.
pub(crate) fn run() -> ExitCode {
    match act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act() -> Result<(), BootstrapError> {
    // What is made here, sockets above all, is root's alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&words)?;
    if flags.version {
        println!("{}: {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        let info = RuntimeInfo { name: RUNTIME.to_owned(), ..Default::default() };
        return answer(&info.write_to_bytes()?);
    }
    for (name, value) in [("-id", &flags.id), ("-namespace", &flags.namespace)] {
        if value.is_empty() {
            return Err(BootstrapError::Missing(name));
        }
    }
    match flags.action.as_str() {
        "start" => start(&flags),
        "delete" => delete(&flags),
        "" => serve(&flags),
        other => Err(BootstrapError::Action(other.to_owned())),
    }
}

fn answer(bytes: &[u8]) -> Result<(), BootstrapError> {
    let mut stdout = io::stdout();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(failed("answer containerd"))
}

/// Answers with the address of the server for this container, starting one unless the container
/// joins a pod. containerd has made the bundle the working directory.
fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let source = spec::read(Path::new("."))?;
    let kind = Kind::of(&spec::annotations(&source))?;
    let group = match &kind {
        Kind::Member { sandbox } => sandbox,
        Kind::Sandbox | Kind::Single => &flags.id,
    };
    let address = containerd_shim::socket_address(&flags.address, &flags.namespace, group);
    let path = socket_path(&address);
    if let Kind::Member { sandbox } = &kind {
        UnixStream::connect(path).map_err(|cause| BootstrapError::NoSandbox {
            sandbox: sandbox.clone(),
            address: address.clone(),
            cause,
        })?;
    } else if let Some(listener) = listen(path)? {
        let launched = launch(flags, &address, listener);
        if launched.is_err() {
            let _ = std::fs::remove_file(path);
        }
        launched?;
    }
    std::fs::write(ADDRESS_FILE, &address).map_err(failed("write the address file"))?;
    answer(address.as_bytes())
}

fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// Binds the socket; nothing if a living server has it already.
fn listen(path: &Path) -> Result<Option<UnixListener>, BootstrapError> {
    let what = || format!("listen at {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed(what()))?;
    }
    let bind = || -> io::Result<UnixListener> {
        let listener = UnixListener::bind(path)?;
        // Nobody could connect in between: the umask has left only its owner's bits.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    match bind() {
        Ok(listener) => Ok(Some(listener)),
        Err(taken) if taken.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            std::fs::remove_file(path).map_err(failed(what()))?;
            bind().map(Some).map_err(failed(what()))
        }
        Err(other) => Err(failed(what())(other)),
    }
}

/// Starts the server, which gets the socket as its standard input. It says nothing and closes its
/// standard output once it serves; what it does say is why it cannot.
fn launch(flags: &Flags, address: &str, listener: UnixListener) -> Result<(), BootstrapError> {
    let program = std::env::current_exe().map_err(failed("find this program"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id])
        .args(["-address", &flags.address, "-socket", address])
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A signal to containerd's group (Ctrl-C) is not for the pods.
        .process_group(0);
    if flags.debug {
        command.arg("-debug");
    }
    let mut server = command.spawn().map_err(failed("start the server"))?;
    let mut said = String::new();
    if let Some(output) = server.stdout.take() {
        output.take(4096).read_to_string(&mut said).map_err(failed("hear from the server"))?;
    }
    if said.is_empty() {
        return Ok(());
    }
    let _ = server.wait();
    Err(BootstrapError::Server(said.trim().to_owned()))
}

/// The server: everything until the pod is gone.
fn serve(flags: &Flags) -> Result<(), BootstrapError> {
    let served = serve_until_the_end(flags);
    if let Err(error) = &served {
        // Nobody reads standard error; `start` listens here until the server runs.
        println!("{error}");
    }
    served
}

fn serve_until_the_end(flags: &Flags) -> Result<(), BootstrapError> {
    if flags.socket.is_empty() {
        return Err(BootstrapError::Missing("-socket"));
    }
    let events_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    if events_address.is_empty() {
        return Err(BootstrapError::Missing("the environment variable TTRPC_ADDRESS"));
    }
    let nothing = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("open /dev/null"))?;
    let listener = io::stdin().as_fd().try_clone_to_owned().map_err(failed("take the socket"))?;
    rustix::stdio::dup2_stdin(&nothing).map_err(|e| failed("leave standard input")(e.into()))?;
    start_log(flags.debug);
    // Neither this process nor what it starts can become more than it is; a filter of system calls needs it.
    rustix::thread::set_no_new_privs(true)
        .map_err(|e| failed("give up new privileges")(e.into()))?;

    // One thread serves all: this program waits, it does not compute.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let ended = runtime.block_on(async {
        let publisher = RemotePublisher::new(&events_address).await?;
        let events = Events::new(publisher, &flags.namespace);
        let origin = Origin {
            namespace: flags.namespace.clone(),
            socket: socket_path(&flags.socket).to_owned(),
        };
        let service = Service { pod: Arc::new(Pod::new(events, origin)) };
        let listener =
            Listener::try_from(UnixListener::from(listener)).map_err(failed("use the socket"))?;
        let mut server = Server::new().add_listener(listener);
        for name in [TASK_V2, TASK_V3] {
            let mut named = create_task(Arc::new(service.clone()));
            if let Some(methods) = named.remove(TASK_V3) {
                named.insert(name.to_owned(), methods);
            }
            server = server.register_service(named);
        }
        server.start().await?;
        rustix::stdio::dup2_stdout(&nothing)
            .map_err(|e| failed("leave standard output")(e.into()))?;
        tracing::info!("shim {} of {} serves at {}", std::process::id(), flags.id, flags.socket);
        until_the_end(&service.pod).await?;
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    });
    let _ = std::fs::remove_file(socket_path(&flags.socket));
    runtime.block_on(telemetry::all_sent());
    runtime.shutdown_background();
    ended
}

/// Until containerd says so, or somebody asks the process to end: then the pod goes first.
async fn until_the_end(pod: &Pod) -> Result<(), BootstrapError> {
    let handler = |kind| signal(kind).map_err(failed("handle signals"));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    tokio::select! {
        () = pod.exit.wait() => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("asked to end: the pod is stopped");
    pod.shutdown(true).await;
    Ok(())
}

/// containerd reads the fifo `log` of the bundle. With both ends open here, its restart is no broken
/// pipe, and when it does not read, lines are lost rather than the shim blocked.
fn start_log(debug: bool) {
    let log = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("log");
    let Ok(log) = log else { return };
    if log::set_boxed_logger(Box::new(FifoLogger::with_file(log))).is_ok() {
        log::set_max_level(if debug { log::LevelFilter::Debug } else { log::LevelFilter::Info });
    }
}

/// Removes what a dead shim left of a sandbox. Returns the number of the machine's process, if there was
/// a record of one.
async fn bury(id: &str) -> Result<Option<u32>, RecordError> {
    let remains = match Remains::after_death(Path::new(RUN_ROOT), id).await {
        Ok(Some(remains)) => remains,
        Ok(None) => return Ok(None),
        // Somebody else does it.
        Err(error @ RecordError::Busy { .. }) => {
            tracing::warn!("dead sandbox {id}: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let machine = remains.machine();
    for reason in remains.remove(&History::of_the_node()).await.failed {
        tracing::warn!("dead sandbox {id}: {reason}; `nacre gc` tries again");
    }
    Ok(machine)
}

/// Cleans up after a shim that has died. containerd calls it for each container; only the one that
/// carries the sandbox has anything on the host.
fn delete(flags: &Flags) -> Result<(), BootstrapError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let machine = runtime.block_on(bury(&flags.id))?;
    let address = containerd_shim::socket_address(&flags.address, &flags.namespace, &flags.id);
    let path = socket_path(&address);
    if UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let exit = Exit::now(KILLED);
    let response = DeleteResponse {
        pid: machine.unwrap_or_default(),
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit)),
        ..Default::default()
    };
    answer(&response.write_to_bytes()?)
}
