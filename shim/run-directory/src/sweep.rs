//! Everything that dead shims left on this host.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::directory::{abandoned_drafts, sandboxes};
use crate::history::History;
use crate::{PodName, RecordError, Remains, Removal, Thing};

/// What one dead shim left.
#[derive(Debug)]
pub struct Leftover {
    /// The sandbox's id; nothing for a run directory that was never finished.
    pub id: Option<String>,
    /// The pod, where a kubelet made it.
    pub pod: Option<PodName>,
    /// What is there.
    pub things: Vec<Thing>,
}

/// What was removed of one dead sandbox.
#[derive(Debug, Serialize)]
pub struct Swept {
    /// The sandbox's id; nothing for a run directory that was never finished.
    pub id: Option<String>,
    /// The pod, where a kubelet made it.
    pub pod: Option<PodName>,
    /// What became of its remains.
    #[serde(flatten)]
    pub removal: Removal,
}

/// What dead shims left. Sandboxes that live are left out, and those that somebody cleans up already.
pub fn leftovers(root: &Path) -> Result<Vec<Leftover>, RecordError> {
    let mut found = Vec::new();
    for Dead { id, pod, path } in dead(root)? {
        if let Some(remains) = Remains::if_dead(&path)? {
            found.push(Leftover { id, pod, things: remains.things() });
        }
    }
    Ok(found)
}

/// Removes what dead shims left; their reports go to the history. One after the other: whoever wants to clean up
/// one of them waits for that one alone.
pub async fn sweep(root: &Path, history: &History) -> Result<Vec<Swept>, RecordError> {
    let mut swept = Vec::new();
    for Dead { id, pod, path } in dead(root)? {
        if let Some(remains) = Remains::if_dead(&path)? {
            swept.push(Swept { id, pod, removal: remains.remove(history).await });
        }
    }
    Ok(swept)
}

struct Dead {
    id: Option<String>,
    pod: Option<PodName>,
    path: PathBuf,
}

fn dead(root: &Path) -> Result<Vec<Dead>, RecordError> {
    let sandboxes = sandboxes(root)?.into_iter().filter(|sandbox| !sandbox.is_alive);
    let sandboxes = sandboxes.map(|sandbox| Dead {
        id: Some(sandbox.id),
        pod: sandbox.record.pod,
        path: sandbox.path,
    });
    let drafts = abandoned_drafts(root)?.into_iter();
    Ok(sandboxes.chain(drafts.map(|path| Dead { id: None, pod: None, path })).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::report::{Report, State};
    use crate::{ALONE, ProcessRef, RunDir};

    fn history(root: &tempfile::TempDir) -> History {
        History::at(&root.path().join(".history"))
    }

    #[tokio::test]
    async fn only_what_is_dead_is_left_over() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let _living = RunDir::create(root.path(), &history(&root), "living").await.unwrap();
        let made = |name: &str| {
            fs::create_dir(root.path().join(name)).unwrap();
            root.path().join(name)
        };
        let unrecorded = made("unrecorded");
        // The number of the process that made it says nothing: it may be somebody else's by now.
        let draft = made(&format!(".begun.{}", std::process::id()));
        let aged = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        fs::File::open(&draft).unwrap().set_modified(aged).unwrap();
        let young = made(".begun.4194305");
        let ids = || {
            let found = leftovers(root.path()).unwrap();
            found.into_iter().map(|leftover| leftover.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(), [Some("unrecorded".to_owned()), None]);
        let held = Remains::if_dead(&unrecorded).unwrap();
        assert_eq!(ids(), [None], "somebody is cleaning up already");
        drop(held);
        for swept in sweep(root.path(), &history(&root)).await.unwrap() {
            assert_eq!(swept.removal.failed, Vec::<String>::new());
        }
        assert!(!unrecorded.exists() && !draft.exists());
        assert!(young.exists(), "its shim may be about to take the lock");
        assert_eq!(ids(), []);
    }

    #[tokio::test]
    async fn what_is_only_looked_at_stays() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        let found = leftovers(root.path()).unwrap();
        assert_eq!(found[0].things, [Thing::Directory { path: root.path().join("a") }]);
        assert_eq!(leftovers(root.path()).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn after_a_reboot_no_number_and_no_namespace_is_taken_for_the_dead_machines() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), &history(&root), "before").await.unwrap();
        let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
        dir.update(|record| {
            record.machine = ProcessRef::of(bystander.id());
            record.namespace = Some(format!("/proc/{}/ns/net", bystander.id()).into());
            record.interfaces = vec!["eth0".into()];
        })
        .unwrap();
        let record = dir.path().join("record.json");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = fs::read_to_string(&record).unwrap();
        fs::write(&record, text.replace(boot.trim(), "an earlier boot")).unwrap();
        drop(dir);
        let swept = sweep(root.path(), &history(&root)).await.unwrap();
        let directory = root.path().join("before");
        assert_eq!(swept[0].removal.removed, [Thing::Directory { path: directory }]);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn the_report_of_a_killed_shim_goes_to_the_history_and_says_so() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let history = history(&root);
        for (id, state) in [("began", State::Starting), ("ran", State::Running)] {
            let mut dir = RunDir::create(root.path(), &history, id).await.unwrap();
            let report = Report { sandbox: id.into(), state, ..Default::default() };
            report.write(dir.path()).unwrap();
            fs::write(dir.path().join("console.log"), "last words").unwrap();
            // Above the highest number that the kernel gives.
            let dead = serde_json::from_str(r#"{"pid":4194305,"started":1}"#).unwrap();
            dir.update(|record| record.shim = Some(dead)).unwrap();
        }
        sweep(root.path(), &history).await.unwrap();
        let mut kept = history.reports().unwrap();
        kept.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        let states: Vec<_> = kept.iter().map(|report| report.state).collect();
        assert_eq!(states, [State::Failed, State::Ended]);
        for report in &kept {
            assert!(report.reason.starts_with("NACRE-1205: "), "{}", report.reason);
            assert!(report.reason.contains("process 4194305"), "{}", report.reason);
            let console = history.console(&report.sandbox).unwrap();
            assert_eq!(fs::read_to_string(console).unwrap(), "last words");
        }
        assert!(kept[0].phases[0].failure.is_some() && kept[1].phases.is_empty());
        let totals = history.totals();
        assert_eq!(totals.pods.failed, 1);
        assert_eq!(totals.failures, [("NACRE-1205".to_owned(), 1)].into());
    }
}
