//! A hostile host: an intruder between the shim and the agent of every guest.
//!
//! Nothing of the product is changed for it. The shim starts, in place of QEMU, a script that gives the
//! agent's socket another name and becomes QEMU; at the usual name the intruder listens. All that the
//! shim sends passes through: it can be held back, and other requests can be sent before it, on the very
//! same connection, which is what whoever rules the host can do.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use protobuf::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use ttrpc::proto::{Request, Response};

use crate::world::World;

pub use ttrpc::Code;

/// The script in QEMU's place, inside.
const SCRIPT: &str = "/run/world/qemu";
/// The socket where the shim expects the agent, and the name under which QEMU's is then.
const USUAL: &str = "agent.sock";
const MOVED: &str = "vm.sock";
const SERVICE: &str = "grpc.AgentService";
/// The shim counts its streams from 1.
const FIRST_STREAM: u32 = 0x4000_0001;
/// An emulated guest may be slow, but not that slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Somebody between the shims and the guests of a world.
#[derive(Debug)]
pub struct Intruder {
    shared: Arc<Shared>,
    guest: watch::Receiver<Option<Arc<Guest>>>,
    task: tokio::task::JoinHandle<()>,
}

/// A request of the shim that is held back; it goes on when this is dropped or told to.
#[derive(Debug)]
pub struct Held<T> {
    /// What the shim asks for.
    pub request: T,
    _release: oneshot::Sender<()>,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Its code.
    pub code: Code,
    /// Its words.
    pub message: String,
}

#[derive(Debug, Default)]
struct Shared {
    /// All that the shims have sent, by method.
    seen: Mutex<Vec<(String, Vec<u8>)>>,
    hold: Mutex<Option<Hold>>,
}

/// The next request of that method is to be held back.
#[derive(Debug)]
struct Hold {
    method: String,
    caught: mpsc::UnboundedSender<(Vec<u8>, oneshot::Sender<()>)>,
}

/// The connection to a guest.
#[derive(Debug)]
struct Guest {
    to_agent: tokio::sync::Mutex<OwnedWriteHalf>,
    answers: Mutex<HashMap<u32, oneshot::Sender<Vec<u8>>>>,
    next_stream: AtomicU32,
}

/// A ttrpc message: length of the payload, stream, type and flags before the payload itself.
#[derive(Debug)]
struct Frame {
    header: [u8; 10],
    payload: Vec<u8>,
}

impl Intruder {
    /// Steps between the shim and the guests that start from now on.
    pub(crate) fn between(world: &World) -> anyhow::Result<Intruder> {
        ensure!(
            !Path::new("/dev/vhost-vsock").exists(),
            "this host has vhost-vsock: the agent has no socket that could be moved"
        );
        let qemu = world.products().qemu();
        // The shim has bound the socket, and QEMU inherits it: a name can still be changed.
        let script = format!(
            "#!/bin/sh\nfor socket in /run/nacre/*/{USUAL}; do\n  moved=${{socket%/*}}/{MOVED}\n  \
             [ -e \"$socket\" ] && [ ! -e \"$moved\" ] && mv \"$socket\" \"$moved\"\ndone\n\
             exec {} \"$@\"\n",
            qemu.display()
        );
        let path = world.path(SCRIPT);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let (ours, theirs) = (format!("{SCRIPT:?}"), format!("{qemu:?}"));
        world.configure_shim(|text| text.replace(&theirs, &ours))?;

        let shared = Arc::<Shared>::default();
        let (known, guest) = watch::channel(None);
        let sandboxes = world.path("/run/nacre");
        let task = tokio::spawn(lie_in_wait(sandboxes, shared.clone(), known));
        Ok(Intruder { shared, guest, task })
    }

    /// Holds back the next request of that method.
    pub async fn hold<T: Message>(&self, method: &str) -> anyhow::Result<Held<T>> {
        let (caught, mut catch) = mpsc::unbounded_channel();
        *lock(&self.shared.hold) = Some(Hold { method: method.to_owned(), caught });
        let caught = timeout(PATIENCE, catch.recv()).await.ok().flatten();
        let (payload, release) = caught.with_context(|| format!("the shim sent no {method}"))?;
        Ok(Held { request: T::parse_from_bytes(&payload)?, _release: release })
    }

    /// What the shims have sent of that method.
    pub fn seen<T: Message>(&self, method: &str) -> anyhow::Result<Vec<T>> {
        let seen = lock(&self.shared.seen);
        let payloads = seen.iter().filter(|(name, _)| name == method);
        payloads.map(|(_, payload)| Ok(T::parse_from_bytes(payload)?)).collect()
    }

    /// Sends a request of the intruder's own to the last guest that started.
    pub async fn ask(
        &self,
        method: &str,
        request: &impl Message,
    ) -> anyhow::Result<Result<Vec<u8>, Refusal>> {
        let guest = self.guest.borrow().clone().context("no guest runs")?;
        let stream = guest.next_stream.fetch_add(2, Ordering::Relaxed);
        let request = Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes()?,
            ..Default::default()
        };
        let (sender, answer) = oneshot::channel();
        lock(&guest.answers).insert(stream, sender);
        Frame::request(stream, request.write_to_bytes()?)?.send(&guest.to_agent).await?;
        let answer = timeout(PATIENCE, answer).await;
        let answer = answer.with_context(|| format!("no answer to {method}"))??;
        let Response { status, payload, .. } = Response::parse_from_bytes(&answer)?;
        Ok(match status.into_option() {
            Some(status) if status.code() != Code::OK => {
                Err(Refusal { code: status.code(), message: status.message })
            }
            _ => Ok(payload),
        })
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> Held<T> {
    /// Lets it go on, unchanged.
    pub fn pass(self) {}
}

/// Waits for guests, and takes the shim's place for each.
async fn lie_in_wait(
    sandboxes: PathBuf,
    shared: Arc<Shared>,
    known: watch::Sender<Option<Arc<Guest>>>,
) {
    let mut met = HashSet::new();
    loop {
        for directory in subdirectories(&sandboxes) {
            if directory.join(MOVED).exists() && met.insert(directory.clone()) {
                let listener = UnixListener::bind(directory.join(USUAL)).expect("the name is free");
                let (shared, known) = (shared.clone(), known.clone());
                tokio::spawn(async move {
                    // The shim tries again until the agent has answered it once.
                    while let Ok((shim, _)) = listener.accept().await {
                        if let Ok(vm) = UnixStream::connect(directory.join(MOVED)).await {
                            stand_between(shim, vm, shared.clone(), &known);
                        }
                    }
                });
            }
        }
        sleep(Duration::from_millis(2)).await;
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn stand_between(
    shim: UnixStream,
    vm: UnixStream,
    shared: Arc<Shared>,
    known: &watch::Sender<Option<Arc<Guest>>>,
) {
    let (from_shim, to_shim) = shim.into_split();
    let (from_agent, to_agent) = vm.into_split();
    let guest = Arc::new(Guest {
        to_agent: tokio::sync::Mutex::new(to_agent),
        answers: Mutex::default(),
        next_stream: AtomicU32::new(FIRST_STREAM),
    });
    known.send_replace(Some(guest.clone()));
    let up = pass_requests(from_shim, guest.clone(), shared);
    let down = pass_answers(from_agent, to_shim, guest);
    // Whichever side closes, the other is to notice.
    tokio::spawn(async move {
        tokio::select! {
            _ = up => {}
            _ = down => {}
        }
    });
}

async fn pass_requests(
    mut from_shim: OwnedReadHalf,
    guest: Arc<Guest>,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    loop {
        let frame = Frame::read(&mut from_shim).await?;
        let Request { method, payload, .. } = Request::parse_from_bytes(&frame.payload)?;
        let hold = {
            let mut hold = lock(&shared.hold);
            if hold.as_ref().is_some_and(|hold| hold.method == method) { hold.take() } else { None }
        };
        if let Some(hold) = hold {
            let (release, released) = oneshot::channel();
            if hold.caught.send((payload.clone(), release)).is_ok() {
                // An error says that it was dropped: that, too, lets it go.
                let _ = released.await;
            }
        }
        lock(&shared.seen).push((method, payload));
        frame.send(&guest.to_agent).await?;
    }
}

async fn pass_answers(
    mut from_agent: OwnedReadHalf,
    mut to_shim: OwnedWriteHalf,
    guest: Arc<Guest>,
) -> anyhow::Result<()> {
    loop {
        let frame = Frame::read(&mut from_agent).await?;
        let ours = lock(&guest.answers).remove(&frame.stream());
        match ours {
            Some(waiting) => drop(waiting.send(frame.payload)),
            None => {
                to_shim.write_all(&frame.header).await?;
                to_shim.write_all(&frame.payload).await?;
            }
        }
    }
}

impl Frame {
    fn request(stream: u32, payload: Vec<u8>) -> anyhow::Result<Frame> {
        const REQUEST: u8 = 1;
        let mut header = [0; 10];
        header[..4].copy_from_slice(&u32::try_from(payload.len())?.to_be_bytes());
        header[4..8].copy_from_slice(&stream.to_be_bytes());
        header[8] = REQUEST;
        Ok(Frame { header, payload })
    }

    async fn read(from: &mut OwnedReadHalf) -> anyhow::Result<Frame> {
        let mut header = [0; 10];
        from.read_exact(&mut header).await?;
        let [a, b, c, d, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        from.read_exact(&mut payload).await?;
        Ok(Frame { header, payload })
    }

    async fn send(&self, to: &tokio::sync::Mutex<OwnedWriteHalf>) -> anyhow::Result<()> {
        let mut to = to.lock().await;
        to.write_all(&self.header).await?;
        Ok(to.write_all(&self.payload).await?)
    }

    fn stream(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = self.header;
        u32::from_be_bytes([a, b, c, d])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
