//! A log whose writer is hostile: bounded in memory, on disk and in bytes per second.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Size in bytes at which the file is moved to `NAME.1`, replacing the one before: half of what a log
/// may take on disk.
const FILE_LIMIT: u64 = 128 * 1024;
/// What may be written to disk in one second, in bytes. The rest is counted and dropped.
const BYTES_PER_SECOND: u64 = 512 * 1024;
/// What stays in memory, in bytes.
const TAIL_LIMIT: usize = 4 * 1024;
/// What [`Tail::text`] returns at most, in bytes.
const TEXT_LIMIT: usize = 2 * 1024;
/// How much of a line is looked at and quoted, in bytes.
const LINE_LIMIT: usize = 256;

/// The writing end: owned by the one thread that reads the hostile source.
pub(crate) struct BoundedLog {
    path: PathBuf,
    /// `None` after the disk failed; memory goes on.
    file: Option<File>,
    file_size: u64,
    second: Instant,
    written_this_second: u64,
    dropped: u64,
    line: Vec<u8>,
    tail: Arc<Tail>,
}

/// The reading end: the last bytes, and the lines worth quoting.
#[derive(Default)]
pub(crate) struct Tail(Mutex<TailState>);

#[derive(Default)]
struct TailState {
    bytes: VecDeque<u8>,
    last_line: String,
    panic: Option<Panic>,
}

/// A Linux kernel's panic on its console.
#[derive(Clone)]
pub(crate) struct Panic {
    /// What the kernel said.
    pub(crate) reason: String,
    /// The line before, which is the first program's last one where its end was the reason. May be empty.
    pub(crate) before: String,
}

impl BoundedLog {
    /// Creates the file, readable by its owner only; what an earlier VM left there is replaced.
    pub(crate) fn create(path: &Path) -> io::Result<BoundedLog> {
        Ok(BoundedLog {
            path: path.to_owned(),
            file: Some(create_private(path)?),
            file_size: 0,
            second: Instant::now(),
            written_this_second: 0,
            dropped: 0,
            line: Vec::new(),
            tail: Arc::default(),
        })
    }

    pub(crate) fn tail(&self) -> Arc<Tail> {
        Arc::clone(&self.tail)
    }

    /// Takes bytes from the source. A disk that fails costs the file, never the source.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        self.scan_lines(bytes);
        if let Err(error) = self.write_to_disk(bytes) {
            tracing::warn!(path = %self.path.display(), %error, "log file given up");
            self.file = None;
        }
    }

    fn scan_lines(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.tail.line(&self.line);
                self.line.clear();
            } else if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            }
        }
    }

    fn write_to_disk(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.written_this_second = 0;
        }
        if self.written_this_second + length > BYTES_PER_SECOND {
            self.dropped += length;
            return Ok(());
        }
        if self.dropped > 0 {
            let note = format!("\n[{} bytes dropped here: they came too fast]\n", self.dropped);
            self.dropped = 0;
            self.write_rotating(note.as_bytes())?;
        }
        self.written_this_second += length;
        self.write_rotating(bytes)
    }

    fn write_rotating(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.file_size + bytes.len() as u64 > FILE_LIMIT {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            *file = create_private(&self.path)?;
            self.file_size = 0;
        }
        self.file_size += bytes.len() as u64;
        file.write_all(bytes)
    }
}

impl Tail {
    /// The last bytes as text for people: no control characters but line feed and tab.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        let surplus = state.bytes.len().saturating_sub(TEXT_LIMIT);
        let bytes: Vec<u8> = state.bytes.iter().skip(surplus).copied().collect();
        printable(&bytes)
    }

    /// The last complete line that was not empty.
    pub(crate) fn last_line(&self) -> Option<String> {
        let line = self.state().last_line.clone();
        (!line.is_empty()).then_some(line)
    }

    /// What a Linux kernel said when it panicked, if it did.
    pub(crate) fn kernel_panic(&self) -> Option<Panic> {
        self.state().panic.clone()
    }

    fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        let newest = &bytes[bytes.len().saturating_sub(TAIL_LIMIT)..];
        state.bytes.extend(newest);
        let surplus = state.bytes.len().saturating_sub(TAIL_LIMIT);
        state.bytes.drain(..surplus);
    }

    fn line(&self, line: &[u8]) {
        const PANIC: &str = "Kernel panic - not syncing: ";
        let line = printable(line);
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        let mut state = self.state();
        if state.panic.is_none() {
            let before = state.last_line.clone();
            state.panic = line
                .split_once(PANIC)
                .map(|(_, reason)| Panic { reason: reason.to_owned(), before });
        }
        line.clone_into(&mut state.last_line);
    }

    fn state(&self) -> MutexGuard<'_, TailState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Text for a terminal or a log of the host: without escape sequences, without control characters
/// (but line feed and tab) and without characters that reverse the direction of writing.
fn printable(bytes: &[u8]) -> String {
    const ESCAPE: char = '\u{1b}';
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ESCAPE => {
                // ECMA-48: "ESC [" parameters, then one byte from @ to ~. Other sequences have one.
                if characters.next() == Some('[') {
                    characters.by_ref().find(|end| ('@'..='~').contains(end));
                }
            }
            '\n' | '\t' => out.push(character),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ if character.is_control() => {}
            _ => out.push(character),
        }
    }
    out
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT_ENDED: &str = "Attempted to kill init!";

    #[test]
    fn a_flood_is_bounded_on_disk_and_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = BoundedLog::create(&path).unwrap();
        for _ in 0..1024 {
            log.append(&[b'x'; 16 * 1024]);
        }
        let size = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("console.log") <= FILE_LIMIT);
        assert!(size("console.log.1") <= FILE_LIMIT);
        assert_eq!(log.tail().text().len(), TEXT_LIMIT);
        assert!(log.dropped > 0, "16 MiB in an instant is more than a second's share");
    }

    #[test]
    fn text_for_people_has_no_terminal_control() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = BoundedLog::create(&dir.path().join("log")).unwrap();
        log.append(b"\x1b[31mred\x1b[0m\x07 \xff\x1b]plain\r\nnext\ttab \xe2\x80\xaereversed");
        assert_eq!(log.tail().text(), "red \u{fffd}plain\nnext\ttab reversed");
    }

    #[test]
    fn a_kernel_panic_is_remembered_after_its_line_has_left_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = BoundedLog::create(&dir.path().join("log")).unwrap();
        log.append(b"ERROR why\n\r\n[    1.0] Kernel panic - not syncing: Attempted");
        log.append(b" to kill init!\r\n");
        log.append(&vec![b'y'; 3 * TAIL_LIMIT]);
        let panic = log.tail().kernel_panic().unwrap();
        assert_eq!((panic.reason.as_str(), panic.before.as_str()), (INIT_ENDED, "ERROR why"));
        assert!(!log.tail().text().contains("panic"));
    }

    #[test]
    fn a_full_disk_costs_the_file_only() {
        let mut log = BoundedLog::create(Path::new("/dev/full")).unwrap();
        log.append(b"one\n");
        log.append(b"two\n");
        assert_eq!(log.tail().last_line().as_deref(), Some("two"));
    }
}
