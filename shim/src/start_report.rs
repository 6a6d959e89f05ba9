//! The start report of this shim's pod: each phase once in the log, in the run directory, in the node's
//! counters and, where a collector is configured, as a span. And what failed gets its code here.
//!
//! None of it can fail a pod or hold it up: what cannot be written within a bounded time is said in the log and left
//! out, and a machine is ended before its report is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_configuration::{Config, Tee};
use nacre_protocol::channel::{ANNOTATION_CONTAINER_NAME, ANNOTATION_IMAGE_NAME};
use nacre_protocol::start_report::{Failure, Measured, Phase};
use nacre_run_directory::history::{HISTORY_ROOT, History, end_of_console};
use nacre_run_directory::report::{
    ContainerName, Failed, MOST_CONTAINERS, Passed, Report, State, now_us,
};

use crate::error::TaskError;
use crate::telemetry::{Exporter, new_trace};
use crate::{annotations, error};

/// Phases that wait for being counted and exported at most. Each start is told of when it is over: this is more than
/// all containers of a pod have at once.
const MOST_NEWS: usize = 1024;
/// Most of a container's or image's name that is kept, in bytes.
const MOST_NAME: usize = 300;

/// The report of the pod, shared by all that work for it.
#[derive(Debug, Clone)]
pub(crate) struct StartReport(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    report: Report,
    run_dir: Option<PathBuf>,
    history: History,
    exporter: Option<Exporter>,
    /// Phases that are not counted and exported yet. The report itself keeps only the last ones.
    news: Vec<Passed>,
    pod_is_told: bool,
    /// The end of the console, once the pod has ended and until that is kept.
    console: Option<Vec<u8>>,
    has_ended: bool,
    is_kept: bool,
}

/// One thing that is started: the pod, or a container in it.
#[derive(Debug)]
pub(crate) struct Attempt {
    report: StartReport,
    container: Option<String>,
    now: Mutex<Now>,
}

/// What an attempt is at. Between two measured phases that is the reading of requests.
#[derive(Debug, Clone, Copy)]
struct Now {
    phase: Phase,
    began_us: u64,
}

impl Now {
    fn reading() -> Now {
        Now { phase: Phase::Request, began_us: now_us() }
    }
}

impl StartReport {
    /// Begins with a pod.
    pub(crate) fn begin(
        sandbox: &str,
        containerd_namespace: &str,
        annotations: &HashMap<String, String>,
    ) -> StartReport {
        let report = Report {
            sandbox: sandbox.to_owned(),
            containerd_namespace: containerd_namespace.to_owned(),
            pod: annotations::pod_name(annotations),
            trace: new_trace(),
            began_us: now_us(),
            ..Report::default()
        };
        let inner = Inner {
            report,
            run_dir: None,
            history: History::of_the_node(),
            exporter: None,
            news: Vec::new(),
            pod_is_told: false,
            console: None,
            has_ended: false,
            is_kept: false,
        };
        StartReport(Arc::new(Mutex::new(inner)))
    }

    /// The node's configuration is known.
    pub(crate) fn configured(&self, config: &Config) {
        let mut inner = self.inner();
        inner.exporter = config.telemetry.collector().map(Exporter::to);
        inner.report.tee = match config.vm.tee {
            Tee::None => "none",
            Tee::EmulatedSnp => "emulated-snp",
            Tee::Snp => "snp",
            Tee::Tdx => "tdx",
        }
        .to_owned();
    }

    /// Begins with the pod itself, or with a container of it.
    pub(crate) fn attempt(&self, container: Option<&str>) -> Attempt {
        Attempt {
            report: self.clone(),
            container: container.map(str::to_owned),
            now: Mutex::new(Now::reading()),
        }
    }

    /// A container is to be made.
    pub(crate) fn add_container(&self, id: &str, annotations: &HashMap<String, String>) {
        let mut inner = self.inner();
        let containers = &mut inner.report.containers;
        if containers.len() == MOST_CONTAINERS {
            containers.remove(0);
        }
        let name = |key| {
            annotations.get(key).map(|name| error::printable(name, MOST_NAME)).unwrap_or_default()
        };
        containers.push(ContainerName {
            id: id.to_owned(),
            name: name(ANNOTATION_CONTAINER_NAME),
            image: name(ANNOTATION_IMAGE_NAME),
        });
    }

    /// Takes over the guest's measurements of the pod (none) or of one container. They are the guest's word:
    /// what is not one of its own phases is dropped, and none took longer than the phase around it.
    pub(crate) fn add_guests(&self, container: Option<&str>, measured: &[Measured]) {
        let mut inner = self.inner();
        let named = container.unwrap_or("-");
        let around = if container.is_none() { Phase::Boot } else { Phase::Create };
        let Some(around) = inner.report.last(around, container).cloned() else { return };
        let micros = |phase| {
            let of_it = |one: &&Measured| one.container == named && one.phase == phase;
            let last = measured.iter().rev().find(of_it)?;
            Some(last.micros.min(around.took_us))
        };
        let (kernel, agent) = (micros(Phase::Kernel), micros(Phase::Agent));
        let inside = kernel.unwrap_or_default().saturating_add(agent.unwrap_or_default());
        let firmware = around.took_us.saturating_sub(inside);
        let kernel_at = around.began_us.saturating_add(firmware);
        let agent_at = kernel_at.saturating_add(kernel.unwrap_or_default());
        let found = match container {
            None => vec![
                (Phase::Firmware, kernel.map(|_| firmware), around.began_us),
                (Phase::Kernel, kernel, kernel_at),
                (Phase::Agent, agent, agent_at),
                (Phase::Attestation, micros(Phase::Attestation), agent_at),
                (Phase::Policy, micros(Phase::Policy), agent_at),
            ],
            Some(_) => vec![
                (Phase::Pull, micros(Phase::Pull), around.began_us),
                (Phase::Unseal, micros(Phase::Unseal), around.began_us),
            ],
        };
        for (phase, took_us, began_us) in found {
            if let Some(took_us) = took_us {
                inner.add(phase, container, began_us, took_us, None);
            }
        }
    }

    /// The pod runs.
    pub(crate) fn runs(&self) {
        let mut inner = self.inner();
        inner.report.state = State::Running;
        inner.write();
    }

    /// The pod has ended, or is about to be; its run directory is still there. [`StartReport::keep`] is to follow when
    /// its machine is gone. Only the first call does anything.
    pub(crate) fn ended(&self, reason: &str) {
        let mut inner = self.inner();
        if std::mem::replace(&mut inner.has_ended, true) {
            return;
        }
        inner.report.state = match inner.report.state {
            // Taken down before it was made: nobody saw it run.
            State::Starting | State::Failed => State::Failed,
            State::Running | State::Ended => State::Ended,
        };
        if inner.report.reason.is_empty() {
            inner.report.reason = reason.to_owned();
        }
        inner.write();
        inner.console = inner.run_dir.take().and_then(|run_dir| end_of_console(&run_dir));
    }

    /// Puts the report of a pod that has ended where those are that are gone. Only the first call does anything.
    pub(crate) async fn keep(&self) {
        if std::mem::replace(&mut self.inner().is_kept, true) {
            return;
        }
        self.tell().await;
        let (history, report, console) = {
            let mut inner = self.inner();
            (inner.history.clone(), inner.report.clone(), inner.console.take())
        };
        let kept = tokio::task::spawn_blocking(move || history.keep(&report, console.as_deref()));
        if let Ok(Err(error)) = kept.await {
            tracing::warn!("the start report is not kept in {HISTORY_ROOT}: {error}");
        }
    }

    /// Writes the report, and counts and exports what is new.
    pub(crate) async fn tell(&self) {
        let (history, news, pod) = {
            let mut inner = self.inner();
            inner.write();
            let news = std::mem::take(&mut inner.news);
            let pod = match inner.report.state {
                State::Starting => None,
                State::Running | State::Failed | State::Ended if inner.pod_is_told => None,
                State::Running | State::Ended => Some(true),
                State::Failed => Some(false),
            };
            inner.pod_is_told |= pod.is_some();
            if let Some(exporter) = &inner.exporter {
                exporter.export(&inner.report, &news, pod.is_some());
            }
            (inner.history.clone(), news, pod)
        };
        if news.is_empty() && pod.is_none() {
            return;
        }
        let counted = tokio::task::spawn_blocking(move || {
            history.count(|totals| {
                for passed in &news {
                    totals.add(passed);
                    if passed.container.is_some() {
                        match passed.failure {
                            Some(_) => totals.containers.failed += 1,
                            None if passed.phase == Phase::Start => totals.containers.started += 1,
                            None => {}
                        }
                    }
                }
                match pod {
                    Some(true) => totals.pods.started += 1,
                    Some(false) => totals.pods.failed += 1,
                    None => {}
                }
            })
        });
        if let Ok(Err(error)) = counted.await {
            tracing::warn!("the node's counters in {HISTORY_ROOT} stay as they are: {error}");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(
        &mut self,
        phase: Phase,
        container: Option<&str>,
        began_us: u64,
        took_us: u64,
        failure: Option<Failed>,
    ) {
        let code = failure.as_ref().map_or_else(|| phase.code(), |failed| failed.code.to_string());
        #[allow(clippy::cast_precision_loss, reason = "a duration for people")]
        let ms = took_us as f64 / 1000.0;
        let (sandbox, container_shown) = (&self.report.sandbox, container.unwrap_or("-"));
        let line = format!(
            "start report: sandbox={sandbox} container={container_shown} phase={phase} ms={ms:.1} code={code}"
        );
        match &failure {
            Some(failed) => {
                tracing::error!("{line} failed: {}; next: {}", failed.message, failed.next_step);
            }
            None => tracing::info!("{line}"),
        }
        let container = container.map(str::to_owned);
        let passed = Passed { phase, container, began_us, took_us, failure };
        if self.news.len() < MOST_NEWS {
            self.news.push(passed.clone());
        }
        self.report.add(passed);
    }

    fn write(&self) {
        if let Some(run_dir) = &self.run_dir
            && let Err(error) = self.report.write(run_dir)
        {
            tracing::warn!("the start report in {} is not written: {error}", run_dir.display());
        }
    }
}

impl Attempt {
    /// Measures one phase. If it fails, [`Attempt::failed`] is to be told.
    pub(crate) async fn timed<T, E>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began_us = now_us();
        let began = Instant::now();
        *self.now() = Now { phase, began_us };
        let result = work.await;
        if result.is_ok() {
            self.passed(phase, began_us, began.elapsed());
            *self.now() = Now::reading();
        }
        result
    }

    /// The same for work beside another phase, whose failure is told as that of the other.
    pub(crate) async fn timed_beside<T, E>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began_us = now_us();
        let began = Instant::now();
        let result = work.await;
        if result.is_ok() {
            self.passed(phase, began_us, began.elapsed());
        }
        result
    }

    fn passed(&self, phase: Phase, began_us: u64, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.report.inner().add(phase, self.container.as_deref(), began_us, took_us, None);
    }

    /// There is a run directory, in which the report is kept from now on.
    pub(crate) fn kept_in(&self, run_dir: &Path) {
        let mut inner = self.report.inner();
        inner.run_dir = Some(run_dir.to_owned());
        inner.write();
    }

    /// Gives an error its code, if it has none, and reports it; one that is reported already stays as it is.
    pub(crate) fn failed(&self, mut error: TaskError) -> TaskError {
        if error.is_reported {
            return error;
        }
        let now = *self.now();
        let code = error.failure.unwrap_or_else(|| Failure::of(now.phase));
        error.failure = Some(code);
        error.is_reported = true;
        let failed =
            Failed { code, message: error.whole(), next_step: code.next_step().to_owned() };
        let took_us = now_us().saturating_sub(now.began_us);
        let mut inner = self.report.inner();
        if self.container.is_none() || inner.report.state == State::Starting {
            inner.report.state = State::Failed;
            inner.report.reason = format!("{code}: {}", failed.message);
        }
        let container = self.container.as_deref();
        inner.add(code.phase(), container, now.began_us, took_us, Some(failed));
        drop(inner);
        let report = self.report.clone();
        tokio::spawn(async move { report.tell().await });
        error
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(history: &History) -> StartReport {
        let report = StartReport::begin("s", "k8s.io", &HashMap::new());
        report.inner().history = history.clone();
        report
    }

    fn refused() -> TaskError {
        TaskError::new(error::Code::UNAVAILABLE, "create container c", "no such image")
    }

    #[tokio::test]
    async fn of_a_container_that_fails_all_day_each_failure_is_counted_and_the_last_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        let report = report(&history);
        report.runs();
        for _ in 0..500 {
            // It tells it in a task of its own as well.
            let _ = report.attempt(Some("c")).failed(refused());
            report.tell().await;
        }
        report.ended("it was stopped");
        report.keep().await;
        let totals = history.totals();
        assert_eq!((totals.containers.failed, totals.failures["NACRE-1001"]), (500, 500));
        assert_eq!((totals.pods.started, totals.pods.failed), (1, 0));
        let kept = history.reports().unwrap().remove(0);
        assert_eq!((kept.state, kept.reason.as_str()), (State::Ended, "it was stopped"));
        assert_eq!(kept.phases.len() as u64 + kept.left_out, 500);
    }

    #[tokio::test]
    async fn what_is_taken_down_before_it_ran_has_not_started() {
        let root = tempfile::tempdir().unwrap();
        let history = History::at(root.path());
        let run_dir = tempfile::tempdir().unwrap();
        std::fs::write(run_dir.path().join("console.log"), "last words").unwrap();
        let report = report(&history);
        report.attempt(None).kept_in(run_dir.path());
        report.ended("it was stopped");
        // The run directory goes before the report is kept.
        drop(run_dir);
        report.ended("and again");
        report.keep().await;
        report.keep().await;
        let (totals, kept) = (history.totals(), history.reports().unwrap().remove(0));
        assert_eq!((totals.pods.started, totals.pods.failed), (0, 1));
        assert_eq!((kept.state, kept.reason.as_str()), (State::Failed, "it was stopped"));
        let console = history.console("s").unwrap();
        assert_eq!(std::fs::read_to_string(console).unwrap(), "last words");
    }
}
