//! Everything that dead shims left on this host.

use std::path::Path;

use crate::directory::{dead_drafts, sandboxes};
use serde::Serialize;

use crate::{PodName, RecordError, Remains, Removal};

/// What one dead shim left.
#[derive(Debug)]
pub struct Leftover {
    /// The sandbox's id; nothing for a run directory that was never finished.
    pub id: Option<String>,
    /// The pod, where a kubelet made it.
    pub pod: Option<PodName>,
    /// What is there.
    pub remains: Remains,
}

/// What dead shims left, sandboxes that live left out. While the result is held, nobody else cleans up
/// the same things.
pub fn leftovers(root: &Path) -> Result<Vec<Leftover>, RecordError> {
    let mut found = Vec::new();
    for sandbox in sandboxes(root)?.into_iter().filter(|sandbox| !sandbox.is_alive) {
        if let Some(remains) = Remains::if_dead(&sandbox.path)? {
            found.push(Leftover { id: Some(sandbox.id), pod: sandbox.record.pod, remains });
        }
    }
    for draft in dead_drafts(root)? {
        if let Some(remains) = Remains::if_dead(&draft)? {
            found.push(Leftover { id: None, pod: None, remains });
        }
    }
    Ok(found)
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

/// Removes what dead shims left.
pub async fn sweep(root: &Path) -> Result<Vec<Swept>, RecordError> {
    let mut swept = Vec::new();
    for Leftover { id, pod, remains } in leftovers(root)? {
        swept.push(Swept { id, pod, removal: remains.remove().await });
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::{ALONE, ProcessRef, RunDir, Thing};

    #[tokio::test]
    async fn only_what_is_dead_is_left_over() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let _living = RunDir::create(root.path(), "living").await.unwrap();
        let made = |name: &str| {
            fs::create_dir(root.path().join(name)).unwrap();
            root.path().join(name)
        };
        let unrecorded = made("unrecorded");
        let draft = made(".begun.4194305");
        made(&format!(".begun.{}", std::process::id()));
        let found = leftovers(root.path()).unwrap();
        let ids: Vec<_> = found.iter().map(|leftover| leftover.id.as_deref()).collect();
        assert_eq!(ids, [Some("unrecorded"), None]);
        assert!(leftovers(root.path()).unwrap().is_empty(), "somebody is cleaning up already");
        drop(found);
        for swept in sweep(root.path()).await.unwrap() {
            assert_eq!(swept.removal.failed, Vec::<String>::new());
        }
        assert!(!unrecorded.exists() && !draft.exists());
        assert!(leftovers(root.path()).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_only_looked_at_stays() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        let found = leftovers(root.path()).unwrap();
        assert_eq!(found[0].remains.things(), [Thing::Directory { path: root.path().join("a") }]);
        drop(found);
        assert_eq!(leftovers(root.path()).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn after_a_reboot_nobody_is_killed_for_having_the_number_of_a_dead_machine() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), "before").await.unwrap();
        let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
        dir.update(|record| record.machine = ProcessRef::of(bystander.id())).unwrap();
        let record = dir.path().join("record.json");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = fs::read_to_string(&record).unwrap();
        fs::write(&record, text.replace(boot.trim(), "an earlier boot")).unwrap();
        drop(dir);
        let swept = sweep(root.path()).await.unwrap();
        let directory = root.path().join("before");
        assert_eq!(swept[0].removal.removed, [Thing::Directory { path: directory }]);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
