//! Verdicts: each behaviour of the table gets exactly one, and the page in `docs/` is made of the same table.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::table::{BEHAVIOURS, Behaviour};
use crate::products::ContainerdVersion;
use crate::world::PATIENCE;

/// Longest that one behaviour may take to be seen: a wait, and what there is to do besides.
const LONGEST: Duration = PATIENCE.saturating_mul(2);

/// What came of one behaviour.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Pass(Duration),
    Fail(String),
}

/// All verdicts about one release of containerd.
#[derive(Debug)]
pub(super) struct Report {
    release: ContainerdVersion,
    verdicts: Mutex<Vec<(&'static str, Verdict)>>,
    /// Only behaviours whose name has this in it are looked at, for whoever works on one.
    only: Option<String>,
}

impl Report {
    pub(super) fn new(release: ContainerdVersion) -> Report {
        let only = std::env::var("NACRE_CONFORMANCE").ok();
        Report { release, verdicts: Mutex::default(), only }
    }

    fn wanted(&self, behaviour: &Behaviour) -> bool {
        let named = self.only.as_ref().is_none_or(|part| behaviour.name.contains(part.as_str()));
        named && behaviour.skip(self.release).is_none()
    }

    /// Looks at a behaviour, unless the table says that it is skipped.
    pub(super) async fn check(
        &self,
        name: &'static str,
        seen: impl Future<Output = anyhow::Result<()>>,
    ) {
        let Some(behaviour) = BEHAVIOURS.iter().find(|behaviour| behaviour.name == name) else {
            self.record(name, Verdict::Fail("is not in the table".to_owned()));
            return;
        };
        if !self.wanted(behaviour) {
            return;
        }
        let started = Instant::now();
        let verdict = match tokio::time::timeout(LONGEST, seen).await {
            Ok(Ok(())) => Verdict::Pass(started.elapsed()),
            Ok(Err(error)) => Verdict::Fail(format!("{error:#}")),
            Err(_) => Verdict::Fail(format!("takes longer than {} s", LONGEST.as_secs())),
        };
        self.record(name, verdict);
    }

    fn record(&self, name: &'static str, verdict: Verdict) {
        match &verdict {
            Verdict::Pass(time) => eprintln!("PASS {name} ({:.1} s)", time.as_secs_f64()),
            Verdict::Fail(why) => eprintln!("FAIL {name}: {why}"),
        }
        self.verdicts.lock().expect("no holder panics").push((name, verdict));
    }

    /// Says what was not seen and why; an error if anything failed, or was forgotten.
    pub(super) fn finish(&self, ended: Result<(), anyhow::Error>) -> anyhow::Result<()> {
        let verdicts = self.verdicts.lock().expect("no holder panics");
        let mut wrong = Vec::new();
        for behaviour in BEHAVIOURS {
            let found: Vec<_> =
                verdicts.iter().filter(|(name, _)| *name == behaviour.name).collect();
            if let Some(reason) = behaviour.skip(self.release) {
                eprintln!("SKIP {}: {reason}", behaviour.name);
                continue;
            }
            match found.as_slice() {
                [] if !self.wanted(behaviour) => {}
                [] => wrong.push(format!("{}: was not reached", behaviour.name)),
                [(_, Verdict::Pass(_))] => {}
                [(name, Verdict::Fail(why))] => {
                    let Behaviour { area, promise, .. } = behaviour;
                    wrong.push(format!("{area}: {name}: {promise}: {why}"));
                }
                _ => wrong.push(format!("{}: has more than one verdict", behaviour.name)),
            }
        }
        let passed = verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Pass(_)));
        let skipped = BEHAVIOURS.iter().filter(|it| it.skip(self.release).is_some()).count();
        let (passed, failed) = (passed.count(), wrong.len());
        let release = self.release.name();
        eprintln!("containerd {release}: {passed} pass, {skipped} skip, {failed} fail");
        if let Err(error) = ended {
            bail!("{error:#}; not as they must be: {wrong:#?}");
        }
        ensure!(wrong.is_empty(), "not as they must be: {wrong:#?}");
        Ok(())
    }
}
