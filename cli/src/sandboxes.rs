//! The sandboxes that this node knows: those that are there, and the last that are gone.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use nacre_run_directory::history::{HISTORY_ROOT, History};
use nacre_run_directory::report::{Report, State};
use nacre_run_directory::{RUN_ROOT, Record, sandboxes};
use serde::Serialize;

/// Where shims write; they know only the defaults.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// Where the run directories are.
    #[arg(long, value_name = "DIRECTORY", default_value = RUN_ROOT, hide = true)]
    run_root: PathBuf,
    /// Where the history is.
    #[arg(long, value_name = "DIRECTORY", default_value = HISTORY_ROOT, hide = true)]
    history_root: PathBuf,
}

/// How a sandbox is doing, as far as the node can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    Starting,
    Running,
    Failed,
    Ended,
    /// Its shim is gone, and what it made is still there.
    Dead,
}

/// One sandbox.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Known {
    pub(crate) condition: Condition,
    /// Process of its virtual machine, while it is there.
    pub(crate) machine: Option<u32>,
    /// Its run directory, while it is there.
    pub(crate) run_directory: Option<PathBuf>,
    #[serde(flatten)]
    pub(crate) report: Report,
}

impl Condition {
    pub(crate) const ALL: [Condition; 5] = [
        Condition::Starting,
        Condition::Running,
        Condition::Failed,
        Condition::Ended,
        Condition::Dead,
    ];

    fn of(state: State) -> Condition {
        match state {
            State::Starting => Condition::Starting,
            State::Running => Condition::Running,
            State::Failed => Condition::Failed,
            State::Ended => Condition::Ended,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Condition::Starting => "starting",
            Condition::Running => "running",
            Condition::Failed => "failed",
            Condition::Ended => "ended",
            Condition::Dead => "dead",
        }
    }
}

impl Places {
    pub(crate) fn history(&self) -> History {
        History::at(&self.history_root)
    }

    /// The sandboxes that have a run directory, the oldest first.
    pub(crate) fn present(&self) -> anyhow::Result<Vec<Known>> {
        let found =
            sandboxes(&self.run_root).context("cannot look for sandboxes; are you root?")?;
        let known = |sandbox: nacre_run_directory::Sandbox| {
            // A shim that has just begun, or an older one, has written none.
            let mut report = Report::read(&sandbox.path)
                .unwrap_or_else(|_| recorded(&sandbox.id, &sandbox.record));
            let condition = if sandbox.is_alive {
                Condition::of(report.state)
            } else {
                report.lost_its_shim(sandbox.record.shim);
                Condition::Dead
            };
            let machine = sandbox.record.machine.filter(|machine| machine.is_alive());
            let machine = machine.map(|machine| machine.pid);
            Known { condition, machine, run_directory: Some(sandbox.path), report }
        };
        let mut all: Vec<_> = found.into_iter().map(known).collect();
        all.sort_by_key(|known| known.report.began_us);
        Ok(all)
    }

    /// These and the last that are gone, the oldest first.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Known>> {
        let present = self.present()?;
        let history = self.history().reports();
        let gone = history.context("cannot read the history of sandboxes; are you root?")?;
        let is_gone =
            |report: &Report| present.iter().all(|known| known.report.sandbox != report.sandbox);
        let gone = gone.into_iter().filter(is_gone).map(|report| Known {
            condition: Condition::of(report.state),
            machine: None,
            run_directory: None,
            report,
        });
        let mut all: Vec<_> = gone.collect();
        all.extend(present);
        all.sort_by_key(|known| known.report.began_us);
        Ok(all)
    }

    /// The one that a user calls `name`. Of several by the name of a pod the newest, one that is there before one
    /// that is gone; of several by the beginning of an id none.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<Known> {
        let mut called: Vec<_> =
            self.all()?.into_iter().filter(|known| known.report.is_called(name)).collect();
        if called.len() > 1 && !name.contains('/') {
            if let Some(exact) = called.iter().position(|known| known.report.sandbox == name) {
                return Ok(called.swap_remove(exact));
            }
            let ids: Vec<_> = called.iter().map(|known| known.report.sandbox.as_str()).collect();
            bail!("{name} is the beginning of several sandboxes: {}", ids.join(", "));
        }
        called.sort_by_key(|known| (known.run_directory.is_some(), known.report.began_us));
        called.pop().with_context(|| {
            format!(
                "this node knows no sandbox {name}: give NAMESPACE/NAME of a pod or the beginning of a \
                 sandbox's id; `nacre ps --all` lists them"
            )
        })
    }
}

fn recorded(id: &str, record: &Record) -> Report {
    Report {
        sandbox: id.to_owned(),
        containerd_namespace: record.containerd_namespace.clone(),
        pod: record.pod.clone(),
        began_us: record.started.saturating_mul(1_000_000),
        ..Report::default()
    }
}

/// A duration in microseconds, for people.
pub(crate) fn duration(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{} ms", us / 1000),
        1_000_000..60_000_000 => format!("{}.{} s", us / 1_000_000, us / 100_000 % 10),
        60_000_000..3_600_000_000 => format!("{} min", us / 60_000_000),
        3_600_000_000..86_400_000_000 => format!("{} h", us / 3_600_000_000),
        _ => format!("{} d", us / 86_400_000_000),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nacre_run_directory::{PodName, ProcessRef, RunDir};

    use super::*;

    fn report(sandbox: &str, pod: &str, began_us: u64) -> Report {
        let pod = PodName { namespace: "shop".into(), name: pod.into(), uid: String::new() };
        Report { sandbox: sandbox.into(), pod: Some(pod), began_us, ..Default::default() }
    }

    #[tokio::test]
    async fn a_pod_is_found_by_its_name_or_the_beginning_of_an_id() {
        let root = tempfile::tempdir().unwrap();
        let places =
            Places { run_root: root.path().join("run"), history_root: root.path().join("gone") };
        let history = places.history();
        for (sandbox, pod, began_us) in [("ab1", "web", 1), ("ab2", "web", 2), ("cd", "db", 3)] {
            let ended = Report { state: State::Failed, ..report(sandbox, pod, began_us) };
            history.keep(&ended, None).unwrap();
        }
        let live = RunDir::create(&places.run_root, &history, "ab3").await;
        let mut live = live.unwrap();
        let running = Report { state: State::Running, ..report("ab3", "web", 0) };
        running.write(live.path()).unwrap();
        let found = |name: &str| places.find(name).map(|known| known.report.sandbox);
        assert_eq!(found("shop/web").unwrap(), "ab3", "it is there");
        assert_eq!(found("ab2").unwrap(), "ab2");
        assert_eq!(found("c").unwrap(), "cd");
        assert!(found("ab").unwrap_err().to_string().contains("ab1, ab2"));
        for absent in ["", "x", "shop/x", "other/web", "web"] {
            assert!(found(absent).unwrap_err().to_string().contains("nacre ps --all"), "{absent}");
        }
        let mut machine = ProcessRef::of(std::process::id());
        live.update(|record| record.machine = machine).unwrap();
        let running = places.find("ab3").unwrap();
        assert_eq!(running.condition, Condition::Running);
        assert_eq!(running.machine, Some(std::process::id()));
        // Its number, but not its time: somebody else has the number by now.
        let mut later = serde_json::to_value(machine).unwrap();
        later["started"] = 1.into();
        machine = serde_json::from_value(later).unwrap();
        live.update(|record| (record.shim, record.machine) = (machine, machine)).unwrap();
        assert_eq!(places.find("ab3").unwrap().machine, None);
        let path = live.path().to_owned();
        drop(live);
        let dead = places.find("ab3").unwrap();
        assert_eq!(dead.condition, Condition::Dead);
        assert!(dead.report.reason.starts_with("NACRE-1205: "), "{}", dead.report.reason);
        assert!(Path::new(&path).exists());
        assert_eq!(places.present().unwrap().len(), 1);
        assert_eq!(places.all().unwrap().len(), 4);
    }

    #[test]
    fn durations_are_short() {
        let cases =
            [(0, "0 ms"), (999_999, "999 ms"), (1_250_000, "1.2 s"), (7_200_000_000, "2 h")];
        assert!(cases.iter().all(|(us, text)| duration(*us) == *text));
        assert_eq!(duration(u64::MAX), "213503982 d");
    }
}
