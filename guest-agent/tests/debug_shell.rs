//! The shell that a development image's guest gives, and that no other guest gives: in VMs.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::time::Duration;

use guest::{Guest, Launch, context, image};
use nacre_image_manifest::{DEVELOPMENT_MARK, DEVELOPMENT_SHELL};
use nacre_protocol::channel::DEBUG_SHELL_PORT_NAME;
use nacre_protocol::debug_shell::{
    FromGuest, FromHost, HEADER_SIZE, Header, Size, Start, Terminal,
};
use nacre_protocol::health::CheckRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Software emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn skipped() -> bool {
    let missing = guest::missing();
    if let Some(missing) = &missing {
        eprintln!("SKIPPED: {} is absent; run `cargo xtask image`", missing.display());
    }
    missing.is_some()
}

/// A guest with that initrd and the host's end of a port for a shell.
async fn boot(initrd: &Path) -> (Guest, Port) {
    let (ours, theirs) = Blocking::pair().unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let chardev = format!("socket,id=shell,fd={}", theirs.as_raw_fd());
    let device = format!("virtserialport,chardev=shell,name={DEBUG_SHELL_PORT_NAME}");
    let initrd = initrd.display().to_string();
    // The last initrd on QEMU's command line counts.
    let qemu = ["-initrd", &initrd, "-chardev", &chardev, "-device", &device];
    let guest = Guest::boot(Launch { qemu: &qemu, ..Default::default() }).await;
    ours.set_nonblocking(true).unwrap();
    (guest, Port(UnixStream::from_std(ours).unwrap()))
}

struct Port(UnixStream);

/// What a program printed as output and as errors, and its exit code.
type Ended = (String, String, u8);

impl Port {
    async fn say(&mut self, session: u32, frame: FromHost<'_>) {
        self.0.write_all(&frame.to_bytes(session).unwrap()).await.unwrap();
    }

    async fn start(&mut self, session: u32, command: &str, terminal: Option<Terminal>) {
        let command = ["sh", "-c", command].map(String::from).to_vec();
        self.say(session, FromHost::Start(Start { command, terminal })).await;
    }

    /// All of a session until its end.
    async fn end(&mut self, session: u32) -> Ended {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let read = async {
            loop {
                let mut head = [0; HEADER_SIZE];
                self.0.read_exact(&mut head).await.unwrap();
                let header = Header::parse(&head).unwrap();
                let mut payload = vec![0; header.size()];
                self.0.read_exact(&mut payload).await.unwrap();
                if header.session() != session {
                    continue;
                }
                match FromGuest::parse(&header, &payload).unwrap() {
                    FromGuest::Output(bytes) => output.extend_from_slice(bytes),
                    FromGuest::Errors(bytes) => errors.extend_from_slice(bytes),
                    FromGuest::Taken(_) => {}
                    FromGuest::Exited(code) => return code,
                    FromGuest::Failed(reason) => panic!("{reason}"),
                }
            }
        };
        let code = timeout(PATIENCE, read).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output), text(&errors), code)
    }
}

#[tokio::test]
async fn a_development_image_gives_a_shell() {
    if skipped() {
        return;
    }
    let (guest, mut port) = boot(&image().development_initrd()).await;
    assert!(guest.console().contains("its host can have a shell"), "{}", guest.console());

    port.start(1, "echo pid 1 is $(cat /proc/1/comm); echo bad >&2; cat; exit 3", None).await;
    port.say(1, FromHost::Input(b"in\n")).await;
    port.say(1, FromHost::Input(b"")).await;
    assert_eq!(port.end(1).await, ("pid 1 is init\nin\n".into(), "bad\n".into(), 3));

    let size = Size { rows: 33, columns: 77 };
    let terminal = Some(Terminal { size, term: "vt100".into() });
    port.start(2, "tty; echo $TERM; stty size", terminal.clone()).await;
    let (output, errors, code) = port.end(2).await;
    assert!(output.starts_with("/dev/pts/"), "{output}");
    assert!(output.ends_with("vt100\r\n33 77\r\n"), "{output}");
    assert_eq!((errors.as_str(), code), ("", 0));

    port.start(3, "read line; stty size", terminal).await;
    port.say(3, FromHost::Resize(Size { rows: 12, columns: 34 })).await;
    port.say(3, FromHost::Input(b"\n")).await;
    // The terminal echoes the line's end.
    assert_eq!(port.end(3).await, ("\r\n12 34\r\n".into(), String::new(), 0));

    // Who goes away takes the program along; one that a signal ends says so.
    port.start(4, "sleep 1000", None).await;
    port.say(4, FromHost::HangUp).await;
    let gone = "while pidof sleep >/dev/null; do usleep 10000; done; kill -9 $$";
    port.start(5, gone, None).await;
    assert_eq!(port.end(5).await, (String::new(), String::new(), 137));
}

#[tokio::test]
async fn no_other_image_gives_one() {
    if skipped() {
        return;
    }
    let image = image();
    for file in &image.manifest().files {
        let path = file.path.trim_start_matches('/');
        assert!(path != DEVELOPMENT_MARK && path != DEVELOPMENT_SHELL, "{path}");
    }
    let initrd = &image.manifest().initrd;
    assert_ne!(initrd.file.sha256, initrd.development.sha256, "it measures differently");

    let (guest, mut port) = boot(&image.initrd()).await;
    port.start(1, "echo here", None).await;
    // The guest serves all else meanwhile.
    for _ in 0..20 {
        guest.health.check(context(60), &CheckRequest::new()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut byte = [0; 1];
    let read = timeout(Duration::from_millis(100), port.0.read(&mut byte)).await;
    assert!(read.is_err(), "the guest answers: {read:?}");
    assert!(!guest.console().contains("shell"), "{}", guest.console());
}
