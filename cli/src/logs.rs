//! `nacre logs`.
//!
//! What a guest wrote is hostile: it is shown without control characters, and read within the bounds in which it
//! was written.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use nacre_run_directory::Remains;
use nacre_run_directory::history::MOST_CONSOLE;

use crate::Verdict;
use crate::input::print;
use crate::sandboxes::Places;

/// Largest file that is read, in bytes; a log's two files have less together.
const MOST_BYTES: u64 = 1024 * 1024;
/// How often a log that is followed is looked at.
const EVERY: Duration = Duration::from_millis(250);
/// Longest line that is shown in one piece, in bytes.
const MOST_LINE: usize = 16 * 1024;

/// Show what a pod's guest wrote on its console, or what QEMU said.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre logs shop/web                  the console: kernel and agent
  nacre logs shop/web --agent          the lines of the agent alone
  nacre logs shop/web --follow         until the pod is gone
  nacre logs 4f1c --vmm                what QEMU said

A confidential guest writes only what its agent marks as visible to the host. Logs of containers are
`kubectl logs`. Of a pod that is gone the end of the console is kept for a while.")]
pub(crate) struct Arguments {
    /// `NAMESPACE/NAME` of a pod, or the beginning of a sandbox's id
    pod: String,
    /// All that came on the console; the default
    #[arg(long)]
    console: bool,
    /// Only the lines of the agent
    #[arg(long, conflicts_with = "console")]
    agent: bool,
    /// What QEMU said
    #[arg(long, conflicts_with_all = ["console", "agent"])]
    vmm: bool,
    /// Go on until the pod is gone
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let Arguments { pod, agent, vmm, follow, places, .. } = arguments;
    let known = places.find(pod)?;
    let name = if *vmm { "qemu.log" } else { "console.log" };
    let mut lines = Lines { only_agent: *agent, rest: Vec::new() };
    let Some(directory) = known.run_directory else {
        let kept = places.history().console(&known.report.sandbox).filter(|_| !vmm);
        let Some(path) = kept else {
            bail!("{} is gone, and nothing of that log is kept", known.report.name());
        };
        let text = Log::open(&path)?.rest(&path)?;
        if text.len() as u64 == MOST_CONSOLE {
            eprintln!("nacre: only the last {MOST_CONSOLE} bytes are kept");
        }
        print(&(lines.add(&text) + &lines.end()))?;
        return Ok(Verdict::Good);
    };
    let path = directory.join(name);
    let older = directory.join(format!("{name}.1"));
    if older.exists() {
        print(&lines.add(&Log::open(&older)?.rest(&older)?))?;
    }
    let mut log = Log::open(&path)?;
    print(&lines.add(&log.more(&path)?))?;
    // Of a pod whose shim is dead nobody writes any more.
    let lives =
        || directory.exists() && Remains::if_dead(&directory).is_ok_and(|dead| dead.is_none());
    while *follow && lives() {
        std::thread::sleep(EVERY);
        print(&lines.add(&log.more(&path)?))?;
    }
    if *follow {
        print(&lines.add(&log.more(&path)?))?;
    }
    print(&lines.end())?;
    Ok(Verdict::Good)
}

/// A log that is read as it is written. It is held open: its end can be read when the pod has gone with its directory.
struct Log(File);

impl Log {
    fn open(path: &Path) -> anyhow::Result<Log> {
        File::open(path).map(Log).with_context(|| format!("cannot read {}", path.display()))
    }

    /// What was written since; also in a file that has taken the place of the other.
    fn more(&mut self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let mut text = self.rest(path)?;
        let number = |file: Metadata| (file.dev(), file.ino());
        let own = self.0.metadata().map(number)?;
        // It is missing for a moment while it is exchanged.
        if path.metadata().is_ok_and(|there| number(there) != own)
            && let Ok(next) = File::open(path)
        {
            self.0 = next;
            text.extend(self.rest(path)?);
        }
        Ok(text)
    }

    fn rest(&mut self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let mut text = Vec::new();
        let read = (&mut self.0).take(MOST_BYTES).read_to_end(&mut text);
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text)
    }
}

/// Turns bytes into lines for people.
struct Lines {
    only_agent: bool,
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete.
    fn add(&mut self, bytes: &[u8]) -> String {
        self.rest.extend(bytes);
        let mut text = String::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.show(&line, &mut text);
        }
        if self.rest.len() > MOST_LINE {
            text.push_str(&self.end());
        }
        text
    }

    /// What is left without an end.
    fn end(&mut self) -> String {
        let (line, mut text) = (std::mem::take(&mut self.rest), String::new());
        if !line.is_empty() {
            self.show(&line, &mut text);
        }
        text
    }

    fn show(&self, line: &[u8], text: &mut String) {
        let line = printable(line);
        if !self.only_agent || is_agents(&line) {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// Without control characters, and without those that reverse the direction of writing.
fn printable(line: &[u8]) -> String {
    let is_harmless = |c: &char| {
        !(c.is_control()
            || ('\u{202a}'..='\u{202e}').contains(c)
            || ('\u{2066}'..='\u{2069}').contains(c))
    };
    let text = String::from_utf8_lossy(line).replace('\t', "    ");
    text.chars().filter(is_harmless).collect()
}

/// Whether the agent wrote it: `0.812s  INFO nacre_agent: ...`, or its last words.
fn is_agents(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let (Some(first), Some(second)) = (words.next(), words.next()) else { return false };
    let is_time = first.strip_suffix('s').is_some_and(|time| time.parse::<f64>().is_ok());
    first == "nacre-agent:"
        || is_time && ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &[u8] =
        b"[    0.100000] Linux\r\n   0.812s  INFO nacre_agent: serving \x1b[31mred\r\n\
        nacre-agent: NACRE-1601: no TEE\n   x  INFO no\nhalf";

    #[test]
    fn lines_are_clean_and_the_agents_are_told_apart() {
        let mut all = Lines { only_agent: false, rest: Vec::new() };
        let text = all.add(CONSOLE);
        let serving = "   0.812s  INFO nacre_agent: serving [31mred";
        let last = "nacre-agent: NACRE-1601: no TEE";
        assert_eq!(text, format!("[    0.100000] Linux\n{serving}\n{last}\n   x  INFO no\n"));
        assert_eq!(all.end(), "half\n");
        let mut agents = Lines { only_agent: true, rest: Vec::new() };
        // In pieces, as it comes.
        let text: String = CONSOLE.chunks(7).map(|bytes| agents.add(bytes)).collect();
        assert_eq!(text, format!("{serving}\n{last}\n"));
        assert_eq!(agents.end(), "");
        assert_eq!(all.add("a\u{202e}b\0\n".as_bytes()), "ab\n");
        assert!(all.add(&vec![b'x'; MOST_LINE + 1]).len() > MOST_LINE, "no line without end");
        assert!(all.rest.is_empty());
    }

    #[test]
    fn a_log_is_followed_across_its_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, "one\n").unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.more(&path).unwrap(), b"one\n");
        assert_eq!(log.more(&path).unwrap(), b"");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(log.more(&path).unwrap(), b"two\n");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        std::fs::rename(&path, directory.path().join("console.log.1")).unwrap();
        assert_eq!(log.more(&path).unwrap(), b"three\n");
        assert_eq!(log.more(&path).unwrap(), b"", "it is missing for a moment");
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(log.more(&path).unwrap(), b"four\n");
        std::fs::write(&path, "four\nfive\n").unwrap();
        std::fs::remove_dir_all(directory.path()).unwrap();
        assert_eq!(log.more(&path).unwrap(), b"five\n", "its last words");
    }
}
