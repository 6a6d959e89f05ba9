//! The kernel's common interface to TEEs, configfs-tsm
//! (`Documentation/ABI/testing/configfs-tsm-report`): a directory for each question, with the question
//! in one file and the answer in others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{MountFlags, mount};

use crate::system::System;
use crate::{AttestError, failed};

/// Largest report or quote that the kernel gives, in bytes (`TSM_REPORT_OUTBLOB_MAX`).
const REPORT_LIMIT: u64 = 32 * 1024;
/// Largest certificate table, in bytes.
const TABLE_LIMIT: u64 = 64 * 1024;
/// Largest attribute of words and numbers, in bytes.
const WORD_LIMIT: u64 = 64;
/// How often a question is asked anew when somebody else has changed it.
const ATTEMPTS: u32 = 3;

/// Numbers the questions, so that each has its own directory.
static QUESTIONS: AtomicU64 = AtomicU64::new(0);

/// The interface, mounted.
#[derive(Debug, Clone)]
pub(crate) struct Tsm {
    reports: PathBuf,
    provider: &'static str,
}

/// What the kernel answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The report or quote.
    pub(crate) report: Vec<u8>,
    /// Certificates that the host gave along; empty where it gave none.
    pub(crate) certificates: Vec<u8>,
}

impl Tsm {
    /// Mounts configfs if nobody has. `provider` is the driver whose answers are expected.
    pub(crate) fn open(system: &System, provider: &'static str) -> Result<Tsm, AttestError> {
        let configfs = system.sys.join("kernel/config");
        let reports = configfs.join("tsm/report");
        if !reports.is_dir() {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("configfs", &configfs, "configfs", flags, None)
                .map_err(|errno| failed("mount configfs on", &configfs)(errno.into()))?;
        }
        if !reports.is_dir() {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(failed("find the kernel's TSM reports in", &reports)(missing));
        }
        Ok(Tsm { reports, provider })
    }

    /// Asks for a report over `report_data`. Blocks.
    pub(crate) fn ask(&self, report_data: &[u8; 64]) -> Result<Answer, AttestError> {
        let number = QUESTIONS.fetch_add(1, Ordering::Relaxed);
        let path = self.reports.join(format!("nacre-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(failed("make", &path))?;
        let entry = Entry { path };
        for _ in 1..ATTEMPTS {
            match entry.ask(report_data, self.provider) {
                Err(AttestError::Raced(_)) => {}
                other => return other,
            }
        }
        entry.ask(report_data, self.provider)
    }
}

/// One question's directory; removed with this value.
struct Entry {
    path: PathBuf,
}

impl Entry {
    /// Each write counts `generation` up by one: if it has moved by one in the end, the answer is to this
    /// question.
    fn ask(&self, report_data: &[u8; 64], provider: &'static str) -> Result<Answer, AttestError> {
        let before = self.generation()?;
        let question = self.path.join("inblob");
        OpenOptions::new()
            .write(true)
            .open(&question)
            .and_then(|mut file| file.write_all(report_data))
            .map_err(failed("write", &question))?;
        let report = self.read("outblob", REPORT_LIMIT)?;
        // SNP only, and only where the host gives certificates.
        let certificates = match self.read("auxblob", TABLE_LIMIT) {
            Err(AttestError::File { source, .. }) if is_absent(&source) => Vec::new(),
            other => other?,
        };
        let found = self.word("provider")?;
        if found != provider {
            let path = self.path.join("provider");
            return Err(AttestError::Provider { path, found, expected: provider });
        }
        if self.generation()? != before.wrapping_add(1) {
            return Err(AttestError::Raced(self.path.clone()));
        }
        Ok(Answer { report, certificates })
    }

    fn generation(&self) -> Result<u64, AttestError> {
        self.word("generation")?.parse().map_err(|_| {
            let problem = io::Error::other("it is no number");
            failed("read", &self.path.join("generation"))(problem)
        })
    }

    fn word(&self, name: &str) -> Result<String, AttestError> {
        let bytes = self.read(name, WORD_LIMIT)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, AttestError> {
        let path = self.path.join(name);
        read_bounded(&path, limit).map_err(failed("read", &path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!("{} is left over: {error}", self.path.display());
        }
    }
}

/// The file is not there, or says that it has nothing.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound)
        || error.raw_os_error() == Some(rustix::io::Errno::NODATA.raw_os_error())
}

pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// An entry whose files are pipes: as in configfs, a read gets what the kernel (here a thread) makes
    /// of the write before it.
    struct Fake {
        root: tempfile::TempDir,
        entry: Entry,
    }

    impl Fake {
        fn new(files: &[&str]) -> Fake {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("entry");
            fs::create_dir(&path).unwrap();
            for name in files {
                let pipe = path.join(name);
                mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
            }
            Fake { root, entry: Entry { path } }
        }

        fn say(path: &Path, name: &str, bytes: &[u8]) {
            let mut pipe = OpenOptions::new().write(true).open(path.join(name)).unwrap();
            // A reader that has had enough leaves.
            drop(pipe.write_all(bytes));
        }

        /// Asks, while a thread answers with the question and `parts` behind it.
        fn ask(
            &self,
            generations: [&'static str; 2],
            parts: &[(&'static str, Vec<u8>)],
        ) -> Result<Answer, AttestError> {
            let (path, parts) = (self.entry.path.clone(), parts.to_vec());
            let kernel = thread::spawn(move || {
                Fake::say(&path, "generation", generations[0].as_bytes());
                let mut question = Vec::new();
                File::open(path.join("inblob")).unwrap().read_to_end(&mut question).unwrap();
                for (name, bytes) in parts {
                    let echo = if name == "outblob" { &question[..] } else { &[] };
                    Fake::say(&path, name, &[echo, &bytes].concat());
                }
                Fake::say(&path, "generation", generations[1].as_bytes());
            });
            let answer = self.entry.ask(&[5; 64], "sev_guest");
            if answer.is_ok() {
                kernel.join().unwrap();
            }
            answer
        }
    }

    const FILES: [&str; 5] = ["generation", "inblob", "outblob", "auxblob", "provider"];

    fn parts(provider: &str) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("outblob", b"report".to_vec()),
            ("auxblob", b"table".to_vec()),
            ("provider", format!("{provider}\n").into_bytes()),
        ]
    }

    #[test]
    fn a_question_is_answered() {
        let answer = Fake::new(&FILES).ask(["4\n", "5\n"], &parts("sev_guest")).unwrap();
        assert_eq!(answer.report, [&[5; 64][..], b"report"].concat());
        assert_eq!(answer.certificates, b"table");
    }

    #[test]
    fn certificates_may_be_missing() {
        let files = FILES.map(|name| if name == "auxblob" { "other" } else { name });
        let mut parts = parts("sev_guest");
        parts.remove(1);
        let answer = Fake::new(&files).ask(["0", "1"], &parts).unwrap();
        assert_eq!(answer.certificates, b"");
    }

    #[test]
    fn an_answer_to_somebody_elses_question_is_noticed() {
        let error = Fake::new(&FILES).ask(["4", "6"], &parts("sev_guest")).unwrap_err();
        assert!(matches!(error, AttestError::Raced(_)), "{error}");
    }

    #[test]
    fn another_driver_and_endless_answers_are_refused() {
        let error = Fake::new(&FILES).ask(["0", "1"], &parts("tdx_guest")).unwrap_err();
        assert!(error.to_string().contains("\"tdx_guest\", not \"sev_guest\""), "{error}");
        let endless = [("outblob", vec![0; 40_000])];
        let error = Fake::new(&FILES).ask(["0", "1"], &endless).unwrap_err();
        assert!(error.to_string().contains("more than 32768 bytes"), "{error}");
        let error = Fake::new(&FILES).ask(["x", "1"], &[]).unwrap_err();
        assert!(error.to_string().contains("it is no number"), "{error}");
    }

    #[test]
    fn a_questions_directory_is_removed() {
        let Fake { root, entry } = Fake::new(&[]);
        drop(entry);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        // Without the kernel's files in it there is no answer, and nothing is left either.
        let tsm = Tsm { reports: root.path().to_owned(), provider: "sev_guest" };
        let error = tsm.ask(&[0; 64]).unwrap_err().to_string();
        assert!(error.contains("/generation"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_kernel_without_the_interface_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = Tsm::open(&System::beneath(root.path()), "sev_guest").unwrap_err().to_string();
        assert!(error.contains("configfs on"), "{error}");
    }
}
