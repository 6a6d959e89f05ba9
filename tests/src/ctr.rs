//! containerd's own command line client, and a terminal to run it in.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::world::{PATIENCE, SHIM_CONFIG, SOCKET, World};

/// `ctr` in a world, in a containerd namespace.
#[derive(Debug)]
pub struct Ctr<'w> {
    world: &'w World,
    program: PathBuf,
    namespace: &'static str,
}

/// What a program printed, and its exit code.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub code: i32,
}

impl Output {
    /// Standard output as text, without surrounding space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

impl<'w> Ctr<'w> {
    pub(crate) fn new(world: &'w World, program: PathBuf) -> Ctr<'w> {
        Ctr { world, program, namespace: "default" }
    }

    /// In CRI's namespace, where pods are.
    #[must_use]
    pub fn in_pods(mut self) -> Ctr<'w> {
        self.namespace = "k8s.io";
        self
    }

    fn command(&self) -> Command {
        let mut command = self.world.namespaces.command("timeout");
        // In the foreground: a background process could not use its terminal.
        command.args(["--foreground", "180"]).arg(&self.program);
        command.args(["--address", SOCKET, "--namespace", self.namespace]).current_dir("/");
        command
    }

    /// Runs `ctr` with these arguments.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.run_with_input(words, Vec::new())
    }

    /// Runs `ctr`, which reads `input` while its output is read.
    pub fn run_with_input(&self, words: &[&str], input: Vec<u8>) -> anyhow::Result<Output> {
        let mut child = self
            .command()
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to run ctr")?;
        let mut stdin = child.stdin.take().context("stdin was asked for")?;
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        // A program that ends before it has read all is its own affair.
        let _ = writer.join();
        Ok(Output {
            stdout: output.stdout,
            stderr: output.stderr,
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// Runs `ctr`; returns its output, an error if it fails.
    pub fn check(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.run(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.code == 0, "ctr {} failed: {}", words.join(" "), said.trim());
        Ok(output.text())
    }

    /// Pulls an image without its layers.
    pub fn pull(&self, image: &str) -> anyhow::Result<()> {
        let words = ["image", "pull", "--plain-http", "--snapshotter", "nacre", image];
        self.check(&words).map(drop)
    }

    /// The arguments of `ctr run` for Nacre, for an image that was pulled, up to the image.
    pub fn run_words(&self, network: &str, image: &str) -> Vec<String> {
        let shim = self.world.products().shim().display().to_string();
        let name = format!("io.kubernetes.cri.image-name={image}");
        let network = format!("network:{network}");
        let words = ["run", "--rm", "--snapshotter", "nacre", "--runtime", &shim];
        let more =
            ["--runtime-config-path", SHIM_CONFIG, "--annotation", &name, "--with-ns", &network];
        words.iter().chain(&more).map(|w| (*w).to_owned()).collect()
    }

    /// Runs `ctr` in a terminal.
    pub fn in_terminal(&self, words: &[&str]) -> anyhow::Result<Terminal> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?.into_string()?;
        tcsetwinsize(&ours, size(24, 80))?;
        // The terminal has to control the session, or a new size would reach nobody.
        let theirs = || File::options().read(true).write(true).open(&path);
        let command = self.command();
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .args(words)
            .stdin(theirs()?)
            .stdout(theirs()?)
            .stderr(theirs()?)
            .spawn()
            .context("failed to run setsid (package util-linux)")?;
        Terminal::new(ours, child)
    }
}

/// A program in a terminal of 24 rows and 80 columns.
#[derive(Debug)]
pub struct Terminal {
    ours: OwnedFd,
    child: Child,
    shown: Receiver<Vec<u8>>,
    unread: String,
}

impl Terminal {
    fn new(ours: OwnedFd, child: Child) -> anyhow::Result<Terminal> {
        let (sender, shown) = channel();
        let mut reader = File::from(ours.try_clone()?);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO says that the program has closed its side.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Terminal { ours, child, shown, unread: String::new() })
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        Ok(tcsetwinsize(self.ours.as_fd(), size(rows, columns))?)
    }

    /// Types a line.
    pub fn type_line(&self, line: &str) -> anyhow::Result<()> {
        let mut writer = File::from(self.ours.try_clone()?);
        Ok(writer.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Types a line again and again until the terminal shows `text`.
    pub fn type_until(&mut self, line: &str, text: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            self.type_line(line)?;
            match self.wait_for(text, Duration::from_millis(500)) {
                Err(_) if started.elapsed() < PATIENCE => {}
                result => return result,
            }
        }
    }

    /// Waits until the terminal shows `text`; what came before it is not looked at again.
    fn wait_for(&mut self, text: &str, longest: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(found) = self.unread.find(text) {
                self.unread.drain(..found + text.len());
                return Ok(());
            }
            if started.elapsed() > longest {
                bail!("the terminal does not show {text:?} but {:?}", self.unread);
            }
            if let Ok(bytes) = self.shown.recv_timeout(Duration::from_millis(100)) {
                self.unread.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// Waits for the program's end.
    pub fn wait_exit(mut self) -> anyhow::Result<i32> {
        Ok(self.child.wait()?.code().unwrap_or(-1))
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
