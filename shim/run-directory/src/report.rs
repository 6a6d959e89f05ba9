//! The start report of a sandbox: what `nacre ps` and `nacre inspect` show of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nacre_protocol::start_report::{Failure, Phase};
use serde::{Deserialize, Serialize};

use crate::{PodName, ProcessRef};

/// The report in a run directory.
pub const REPORT: &str = "report.json";

/// Phases that a report keeps at most, the last ones; a pod may restart containers all day.
pub const MOST_PHASES: usize = 256;
/// Containers that a report keeps at most.
pub const MOST_CONTAINERS: usize = 64;

/// Largest file, in bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// How a sandbox is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being made.
    #[default]
    Starting,
    /// Its machine runs.
    Running,
    /// It could not be made.
    Failed,
    /// It was there, and is gone.
    Ended,
}

/// What is known of a sandbox's start. Fields that an older shim did not write are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Its id.
    pub sandbox: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// The pod, where a kubelet made it.
    pub pod: Option<PodName>,
    /// `vm.tee` of the node's configuration; empty before that was read.
    pub tee: String,
    /// Id of its trace, 32 hexadecimal digits.
    pub trace: String,
    /// When its start began, in microseconds since 1970.
    pub began_us: u64,
    /// How it is doing.
    pub state: State,
    /// Why its machine ended or its start failed; empty while it runs.
    pub reason: String,
    /// Its containers, the oldest first.
    pub containers: Vec<ContainerName>,
    /// Phases of its start and the last ones of its containers, the oldest first.
    pub phases: Vec<Passed>,
    /// Phases of containers that are not kept, since there were too many.
    pub left_out: u64,
}

/// A container of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerName {
    /// containerd's id.
    pub id: String,
    /// Its name in the pod; empty for the pod's own.
    pub name: String,
    /// Its image.
    pub image: String,
}

/// A phase that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Which one.
    pub phase: Phase,
    /// The container that it was for; none for the pod.
    pub container: Option<String>,
    /// When it began, in microseconds since 1970. For the guest's phases, whose clock counts for nothing here,
    /// it is laid where the phase around it begins.
    pub began_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Why it failed, if it did.
    pub failure: Option<Failed>,
}

/// Why a phase failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Its stable code.
    pub code: Failure,
    /// What containerd was told, whole.
    pub message: String,
    /// What to do next.
    pub next_step: String,
}

impl Report {
    /// The report in a run directory.
    ///
    /// # Errors
    /// If there is none, or none that can be read.
    pub fn read(run_dir: &Path) -> io::Result<Report> {
        Report::read_file(&run_dir.join(REPORT))
    }

    pub(crate) fn read_file(path: &Path) -> io::Result<Report> {
        let mut text = String::new();
        File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Replaces the report in a run directory as a whole.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        self.write_file(&run_dir.join(REPORT))
    }

    pub(crate) fn write_file(&self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension("new");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(&draft, path)
    }

    /// Adds a phase. Where there are too many the oldest of a container goes: who looks at a pod whose container
    /// fails all day wants to see the last failure. The pod's own are few.
    pub fn add(&mut self, passed: Passed) {
        if self.phases.len() == MOST_PHASES {
            let oldest = self.phases.iter().position(|passed| passed.container.is_some());
            self.phases.remove(oldest.unwrap_or_default());
            self.left_out += 1;
        }
        self.phases.push(passed);
    }

    /// Its shim is dead, and could not say so. Returns the failure of a start that it had begun.
    pub fn lost_its_shim(&mut self, shim: Option<ProcessRef>) -> Option<Passed> {
        let was = std::mem::replace(&mut self.state, State::Ended);
        if matches!(was, State::Failed | State::Ended) {
            self.state = was;
            return None;
        }
        let code = Failure::ShimGone;
        let process = shim.map(|shim| format!(" (process {})", shim.pid)).unwrap_or_default();
        self.reason = format!("{code}: {}{process}", code.about());
        if was == State::Running {
            return None;
        }
        self.state = State::Failed;
        let failed = Passed {
            phase: code.phase(),
            container: None,
            began_us: self.began_us.saturating_add(self.start_us()),
            took_us: 0,
            failure: Some(Failed {
                code,
                message: self.reason.clone(),
                next_step: code.next_step().to_owned(),
            }),
        };
        self.add(failed.clone());
        Some(failed)
    }

    /// The last phase of that kind, of that container or the pod.
    #[must_use]
    pub fn last(&self, phase: Phase, container: Option<&str>) -> Option<&Passed> {
        let is_meant =
            |passed: &&Passed| passed.phase == phase && passed.container.as_deref() == container;
        self.phases.iter().rev().find(is_meant)
    }

    /// Time from the beginning to the end of the last phase that was the pod's own, in microseconds.
    #[must_use]
    pub fn start_us(&self) -> u64 {
        let pods = self.phases.iter().filter(|passed| passed.container.is_none());
        let end = pods.map(|passed| passed.began_us.saturating_add(passed.took_us)).max();
        end.unwrap_or_default().saturating_sub(self.began_us)
    }

    /// `namespace/name` of the pod; the sandbox's id where no kubelet made it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => self.sandbox.clone(),
        }
    }

    /// Whether a user's `name` means it: an id or the beginning of one, or `namespace/name` of the pod.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        match (name.split_once('/'), &self.pod) {
            (Some((namespace, name)), Some(pod)) => pod.namespace == namespace && pod.name == name,
            (Some(_), None) => false,
            (None, _) => !name.is_empty() && self.sandbox.starts_with(name),
        }
    }
}

/// Microseconds since 1970, by the node's clock.
#[must_use]
pub fn now_us() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(phase: Phase, container: Option<&str>, began_us: u64, took_us: u64) -> Passed {
        Passed { phase, container: container.map(str::to_owned), began_us, took_us, failure: None }
    }

    #[test]
    fn a_report_is_read_back_and_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let pod = PodName { namespace: "shop".into(), name: "web".into(), uid: "1".into() };
        let mut report =
            Report { sandbox: "abc".into(), pod: Some(pod), began_us: 100, ..Default::default() };
        report.add(passed(Phase::Boot, None, 0, 5));
        for began_us in 1..1000 {
            report.add(passed(Phase::Pull, Some("c"), began_us, 5));
        }
        assert_eq!(
            (report.phases.len(), report.left_out),
            (MOST_PHASES, 1000 - MOST_PHASES as u64)
        );
        assert_eq!(report.last(Phase::Pull, Some("c")).unwrap().began_us, 999, "the last ones");
        assert_eq!(report.phases[0].phase, Phase::Boot, "and the pod's own");
        let message = "x".repeat(2000);
        let failed = Failed { code: Failure::Registry, message, next_step: "look".into() };
        report.phases[0].failure = Some(failed);
        report.write(directory.path()).unwrap();
        assert_eq!(Report::read(directory.path()).unwrap(), report);
        fs::write(directory.path().join(REPORT), "{}").unwrap();
        assert_eq!(Report::read(directory.path()).unwrap(), Report::default());
        fs::write(directory.path().join(REPORT), "{\"phases\": 1}").unwrap();
        assert!(Report::read(directory.path()).is_err());
    }

    #[test]
    fn a_start_takes_what_the_pods_own_phases_take() {
        let mut report = Report { began_us: 100, ..Default::default() };
        assert_eq!(report.start_us(), 0);
        report.add(passed(Phase::Vmm, None, 150, 50));
        report.add(passed(Phase::Boot, None, 200, 300));
        report.add(passed(Phase::Kernel, None, 200, 100));
        report.add(passed(Phase::Create, Some("c"), 900, 100));
        assert_eq!(report.start_us(), 400);
        assert_eq!(report.last(Phase::Create, Some("c")).unwrap().began_us, 900);
        assert_eq!(report.last(Phase::Create, None), None);
    }

    #[test]
    fn pods_are_called_by_name_or_by_the_beginning_of_their_id() {
        let pod = PodName { namespace: "shop".into(), name: "web".into(), uid: "1".into() };
        let report = Report { sandbox: "abc".into(), pod: Some(pod), ..Default::default() };
        assert!(["shop/web", "a", "abc"].iter().all(|name| report.is_called(name)));
        assert!(
            ["shop/we", "/web", "b", "abcd", "", "web"].iter().all(|name| !report.is_called(name))
        );
    }
}
