//! The host's file for a container's last words (`terminationMessagePath`), which the kubelet reads when the
//! container has ended.
//!
//! The file is opened before the container exists, by the name that containerd gave, and only its
//! contents come from the guest: which file is written to is decided when the guest has said nothing yet.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path};
use std::sync::Arc;

use nacre_protocol::termination::MOST_BYTES;

use crate::spec::HostMount;

/// Where Kubernetes has it unless the pod says otherwise.
const USUAL_PATH: &str = "/dev/termination-log";

/// An open file of the host.
#[derive(Debug, Clone)]
pub(crate) struct LastWords {
    file: Arc<File>,
    /// Where the container has it.
    pub(crate) path: String,
}

impl LastWords {
    /// Opens the file if a container has one among its mounts. One that cannot be written is no reason to
    /// have no container: the log has more.
    pub(crate) fn find(mounts: &[HostMount]) -> Option<LastWords> {
        let mount = mounts.iter().find(|mount| is_its_mount(mount))?;
        match open(&mount.source) {
            Ok(file) => {
                let path = mount.destination.to_str()?.to_owned();
                Some(LastWords { file: Arc::new(file), path })
            }
            Err(error) => {
                let path = mount.source.display();
                tracing::warn!("termination messages will not be written to {path}: {error}");
                None
            }
        }
    }

    /// Replaces the content of the file.
    pub(crate) fn write(&self, words: &str) -> io::Result<()> {
        let words = &words.as_bytes()[..words.len().min(MOST_BYTES)];
        self.file.set_len(0)?;
        self.file.write_all_at(words, 0)
    }
}

/// The kubelet's file is `.../pods/<uid>/containers/<container>/<8 hexadecimal digits>`, whatever the
/// container calls it.
fn is_its_mount(mount: &HostMount) -> bool {
    if mount.read_only {
        return false;
    }
    let parts: Vec<_> = mount.source.components().rev().take(5).collect();
    let kubelets = match parts.as_slice() {
        [Component::Normal(file), _, containers, _, pods] => {
            let is_number = |text: &str| {
                text.len() == 8 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
            };
            *pods == Component::Normal("pods".as_ref())
                && *containers == Component::Normal("containers".as_ref())
                && file.to_str().is_some_and(is_number)
        }
        _ => false,
    };
    kubelets || mount.destination == Path::new(USUAL_PATH)
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn mount(source: &Path, destination: &str) -> HostMount {
        let source = source.to_owned();
        HostMount { position: 0, source, destination: destination.into(), read_only: false }
    }

    #[test]
    fn the_kubelets_file_is_found_whatever_it_is_called_inside() {
        let kubelets = Path::new("/var/lib/kubelet/pods/uid/containers/app/0123abcd");
        for (source, destination, expected) in [
            (kubelets, "/dev/termination-log", true),
            (kubelets, "/tmp/end", true),
            (Path::new("/tmp/words"), "/dev/termination-log", true),
            (Path::new("/tmp/words"), "/tmp/end", false),
            (Path::new("/var/lib/kubelet/pods/uid/etc-hosts"), "/etc/hosts", false),
            (Path::new("/var/lib/kubelet/pods/uid/containers/app/hosts"), "/x", false),
            (Path::new("/var/lib/kubelet/pods/uid/volumes/app/0123abcd"), "/x", false),
        ] {
            let mount = mount(source, destination);
            assert_eq!(is_its_mount(&mount), expected, "{mount:?}");
            assert!(!is_its_mount(&HostMount { read_only: true, ..mount }));
        }
    }

    #[test]
    fn words_replace_what_was_there_in_the_file_that_was_opened() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("words");
        fs::write(&path, "x".repeat(100)).unwrap();
        let words = LastWords::find(&[mount(&path, USUAL_PATH)]).unwrap();
        assert_eq!(words.path, USUAL_PATH);
        // Whoever exchanges the name afterwards does not choose what is written to.
        let elsewhere = place.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        fs::hard_link(&path, place.path().join("kept")).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        words.write("disk on fire").unwrap();
        assert_eq!(fs::read_to_string(place.path().join("kept")).unwrap(), "disk on fire");
        words.write(&"y".repeat(100_000)).unwrap();
        assert_eq!(fs::metadata(place.path().join("kept")).unwrap().len(), MOST_BYTES as u64);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
        assert!(LastWords::find(&[mount(&path, USUAL_PATH)]).is_none(), "a symbolic link");
    }
}
