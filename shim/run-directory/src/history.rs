//! What stays of sandboxes that are gone: their last reports, and counters over all of them.
//!
//! Every shim of the node writes here, one at a time. None waits long for another: that one may be frozen with
//! its pod. It is bounded, and gone with the next boot of the node, as a counter's reader expects.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::directory::path_of;
use crate::report::{Passed, Report};

/// Where it is.
pub const HISTORY_ROOT: &str = "/run/nacre-history";

/// Sandboxes that are kept.
pub const MOST_KEPT: usize = 128;
/// What is kept of a console, in bytes: its end.
pub const MOST_CONSOLE: u64 = 16 * 1024;

/// The counters. Versions of Nacre that understand them in another way give them another name; neither resets the
/// other's. A sandbox's id does not begin with a dot.
const TOTALS: &str = ".totals-1.json";
const LOCK: &str = ".lock";
/// How long the lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);
/// What stands for the console in the name of its file.
const CONSOLE: &str = "console";
const MOST_TOTALS: u64 = 256 * 1024;

/// Upper bounds of a histogram's buckets, in microseconds; there is one more without.
pub const BOUNDS_US: [u64; 13] = [
    10_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
];

/// The reports and counters of a node.
#[derive(Debug, Clone)]
pub struct History {
    root: PathBuf,
}

/// How often something succeeded and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcomes {
    /// Started.
    pub started: u64,
    /// Could not be started.
    pub failed: u64,
}

/// How long something took, over all times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// How often it took at most as long as each of [`BOUNDS_US`] and longer than the bound before; at last how
    /// often it took longer.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// All of it, in microseconds.
    pub sum_us: u64,
}

/// Counters over all sandboxes since the node's boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Pods.
    pub pods: Outcomes,
    /// Containers, the pods' own left out.
    pub containers: Outcomes,
    /// Failures by code. A newer version's shims may have some that this one does not know.
    pub failures: BTreeMap<String, u64>,
    /// Durations by phase, of those that did not fail. The same holds for these.
    pub phases: BTreeMap<String, Histogram>,
}

impl Totals {
    /// Counts a phase that is over.
    pub fn add(&mut self, passed: &Passed) {
        match &passed.failure {
            Some(failed) => *self.failures.entry(failed.code.to_string()).or_default() += 1,
            None => {
                self.phases.entry(passed.phase.to_string()).or_default().add(passed.took_us);
            }
        }
    }
}

impl Histogram {
    fn add(&mut self, took_us: u64) {
        let place = BOUNDS_US.iter().position(|bound| took_us <= *bound).unwrap_or(BOUNDS_US.len());
        self.buckets[place] += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
    }

    /// How often.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl History {
    /// The history in a directory, which need not exist.
    #[must_use]
    pub fn at(root: &Path) -> History {
        History { root: root.to_owned() }
    }

    /// The history of this node.
    #[must_use]
    pub fn of_the_node() -> History {
        History::at(Path::new(HISTORY_ROOT))
    }

    /// Keeps a report and the end of the console. The oldest ones go.
    ///
    /// # Errors
    /// If the system refuses, or another process keeps the lock.
    pub fn keep(&self, report: &Report, console: Option<&[u8]>) -> io::Result<()> {
        let _lock = self.lock()?;
        report.write_file(&self.file(&report.sandbox, "json")?)?;
        if let Some(text) = console {
            fs::write(self.file(&report.sandbox, CONSOLE)?, text)?;
        }
        self.forget_the_oldest()
    }

    /// Changes the counters.
    ///
    /// # Errors
    /// If the system refuses, another process keeps the lock, or what is there are no counters: they are not reset.
    pub fn count(&self, change: impl FnOnce(&mut Totals)) -> io::Result<()> {
        let _lock = self.lock()?;
        let mut totals = self.read_totals()?;
        change(&mut totals);
        let draft = self.root.join(".totals.new");
        fs::write(&draft, serde_json::to_vec(&totals)?)?;
        fs::rename(&draft, self.root.join(TOTALS))
    }

    /// The counters; zeros where there are none.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.read_totals().unwrap_or_default()
    }

    fn read_totals(&self) -> io::Result<Totals> {
        let path = self.root.join(TOTALS);
        let mut text = String::new();
        match File::open(&path) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Totals::default()),
            other => other?.take(MOST_TOTALS).read_to_string(&mut text)?,
        };
        serde_json::from_str(&text).map_err(|error| {
            let path = path.display();
            io::Error::other(format!("{path} has no counters: {error}; remove it to begin anew"))
        })
    }

    /// The reports of sandboxes that are gone, the oldest first.
    ///
    /// # Errors
    /// If the directory cannot be read; one that is absent is empty.
    pub fn reports(&self) -> io::Result<Vec<Report>> {
        let files = self.files("json")?.into_iter();
        let mut reports: Vec<_> = files.filter_map(|path| Report::read_file(&path).ok()).collect();
        reports.sort_by_key(|report| report.began_us);
        Ok(reports)
    }

    /// Where the end of a gone sandbox's console is kept, if it is.
    #[must_use]
    pub fn console(&self, sandbox: &str) -> Option<PathBuf> {
        self.file(sandbox, CONSOLE).ok().filter(|path| path.exists())
    }

    fn file(&self, sandbox: &str, kind: &str) -> io::Result<PathBuf> {
        let path = path_of(&self.root, sandbox).map_err(io::Error::other)?;
        let mut name = path.into_os_string();
        name.push(".");
        name.push(kind);
        Ok(name.into())
    }

    fn files(&self, kind: &str) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let entries = entries.take(16 * MOST_KEPT).filter_map(Result::ok);
        let of_sandboxes = entries.filter(|entry| !entry.file_name().as_bytes().starts_with(b"."));
        let paths = of_sandboxes.map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|found| found == kind)).collect())
    }

    fn forget_the_oldest(&self) -> io::Result<()> {
        let files = self.files("json")?.into_iter();
        let age = |path: &PathBuf| path.symlink_metadata().and_then(|file| file.modified()).ok();
        let mut files: Vec<_> = files.map(|path| (age(&path), path)).collect();
        files.sort();
        let surplus = files.len().saturating_sub(MOST_KEPT);
        for (_, path) in files.into_iter().take(surplus) {
            let _ = fs::remove_file(path.with_extension(CONSOLE));
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<File> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.root)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(self.root.join(LOCK))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(Errno::WOULDBLOCK) => {
                    let cause = "another process keeps its lock; is that frozen?";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, cause));
                }
                other => return other.map(|()| lock).map_err(io::Error::from),
            }
        }
    }
}

/// The end of the console that is in a run directory, if there is one.
#[must_use]
pub fn end_of_console(run_dir: &Path) -> Option<Vec<u8>> {
    end_of(&run_dir.join("console.log")).ok()
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let surplus = file.metadata()?.len().saturating_sub(MOST_CONSOLE);
    file.seek(SeekFrom::Start(surplus))?;
    let mut text = Vec::new();
    file.take(MOST_CONSOLE).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use nacre_protocol::start_report::{Failure, Phase};

    use super::*;
    use crate::report::Failed;

    fn passed(phase: Phase, took_us: u64) -> Passed {
        Passed { phase, container: None, began_us: 0, took_us, failure: None }
    }

    #[test]
    fn reports_and_consoles_are_kept_and_the_oldest_go() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(&root.path().join("history"));
        assert_eq!(history.reports().unwrap(), []);
        let run_dir = root.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        fs::write(run_dir.join("console.log"), vec![b'x'; 100_000]).unwrap();
        history.count(|totals| totals.pods.failed += 1).unwrap();
        for number in 0..MOST_KEPT as u64 + 3 {
            let sandbox = format!("s{number}");
            let report = Report { sandbox, began_us: number, ..Default::default() };
            history.keep(&report, end_of_console(&run_dir).as_deref()).unwrap();
        }
        assert_eq!(history.reports().unwrap().len(), MOST_KEPT);
        assert_eq!(history.files(CONSOLE).unwrap().len(), MOST_KEPT);
        let newest = history.console(&format!("s{}", MOST_KEPT + 2)).unwrap();
        assert_eq!(fs::metadata(newest).unwrap().len(), MOST_CONSOLE);
        assert_eq!(history.console("../x"), None);
        assert_eq!(history.totals().pods.failed, 1);
        let outside = Report { sandbox: "../x".into(), ..Default::default() };
        assert!(history.keep(&outside, None).is_err());
    }

    #[test]
    fn counters_of_shims_at_once_add_up() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        history.count(|totals| totals.pods.started += 1).unwrap();
                    }
                });
            }
        });
        assert_eq!(history.totals().pods, Outcomes { started: 80, failed: 0 });
    }

    #[test]
    fn what_is_not_understood_is_neither_lost_nor_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        let path = root.path().join(TOTALS);
        let newer = r#"{"failures":{"NACRE-9901":7},"phases":{"later":{"sum_us":3}}}"#;
        fs::write(&path, newer).unwrap();
        history.count(|totals| totals.pods.started += 1).unwrap();
        let totals = history.totals();
        assert_eq!((totals.failures["NACRE-9901"], totals.phases["later"].sum_us), (7, 3));
        fs::write(&path, "not json").unwrap();
        let error = history.count(|totals| totals.pods.started += 1).unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not json");
        assert_eq!(history.totals(), Totals::default());
    }

    #[test]
    fn nobody_waits_long_for_one_that_is_frozen_with_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        let _frozen = history.lock().unwrap();
        let error = history.count(|_| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(history.totals(), Totals::default(), "readers take no lock");
    }

    #[test]
    fn any_id_of_a_sandbox_is_no_other_file() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        history.count(|totals| totals.pods.started += 1).unwrap();
        for id in ["totals", "totals-1", "lock", "a.json", "a.console"] {
            history.keep(&Report { sandbox: id.into(), ..Default::default() }, Some(b"x")).unwrap();
        }
        assert_eq!(history.reports().unwrap().len(), 5);
        assert_eq!(history.totals().pods.started, 1);
    }

    #[test]
    fn phases_are_counted_by_duration_and_failures_by_code() {
        let mut totals = Totals::default();
        for took_us in [0, 10_000, 10_001, 60_000_001, u64::MAX] {
            totals.add(&passed(Phase::Vmm, took_us));
        }
        let failure =
            Failed { code: Failure::Registry, message: String::new(), next_step: String::new() };
        totals.add(&Passed { failure: Some(failure), ..passed(Phase::Pull, 1) });
        let vmm = &totals.phases["vmm"];
        let long = (vmm.buckets[11], vmm.buckets[13]);
        assert_eq!((vmm.buckets[0], vmm.buckets[1], long), (2, 1, (1, 1)));
        assert_eq!((vmm.count(), vmm.sum_us), (5, u64::MAX));
        assert_eq!(totals.failures, [("NACRE-2102".to_owned(), 1)].into());
        let text = serde_json::to_string(&totals).unwrap();
        assert!(text.contains("\"NACRE-2102\":1") && text.contains("\"vmm\":{"), "{text}");
        assert_eq!(serde_json::from_str::<Totals>(&text).unwrap(), totals);
    }
}
