//! What a guest gets at its start beside kernel and initrd: the pod's initdata, on a disk, and where
//! the administrator says so a policy by request.
//!
//! The shim only carries both. It reads initdata so that a mistake in it is told before a machine
//! boots; what it says is decided in the guest.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nacre_hypervisor::{Disk, DiskImage};
use nacre_protocol::initdata::{self, Initdata};
use nacre_protocol::start_report::Failure;

use crate::error::{Code, Coded};
use nacre_configuration::PodSection;

/// Name of the disk's file in the run directory.
const DISK: &str = "initdata.disk";
/// A policy beyond this size is a mistake.
const MOST_POLICY: u64 = 2 * 1024 * 1024;

/// Why a guest cannot be given its initdata or policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitdataError {
    #[error("annotation {annotation}: {0}", annotation = initdata::ANNOTATION)]
    Annotation(initdata::InitdataError),
    #[error("pod.default_initdata {path}: {cause}")]
    Default { path: PathBuf, cause: initdata::InitdataError },
    #[error("cannot read {key} {path}: {cause}")]
    Read { key: &'static str, path: PathBuf, cause: io::Error },
    #[error("cannot write {path}: {cause}")]
    Write { path: PathBuf, cause: io::Error },
}

impl Coded for InitdataError {
    fn code(&self) -> Code {
        match self {
            InitdataError::Annotation(_) => Code::INVALID_ARGUMENT,
            InitdataError::Default { .. } | InitdataError::Read { .. } => Code::FAILED_PRECONDITION,
            InitdataError::Write { .. } => Code::UNAVAILABLE,
        }
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Initdata)
    }
}

/// The initdata of the pod's annotation; without one, that of the configured file.
pub(crate) fn of_pod(
    annotations: &HashMap<String, String>,
    pod: &PodSection,
) -> Result<Option<Initdata>, InitdataError> {
    if let Some(text) = annotations.get(initdata::ANNOTATION) {
        return Initdata::from_annotation(text).map(Some).map_err(InitdataError::Annotation);
    }
    let path = &pod.default_initdata;
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = read("pod.default_initdata", path, initdata::TEXT_LIMIT as u64)?;
    Initdata::parse(&text)
        .map(Some)
        .map_err(|cause| InitdataError::Default { path: path.clone(), cause })
}

/// The policy that the guest is sent once it runs: the configured one, unless initdata brings one.
pub(crate) fn late_policy(
    initdata: Option<&Initdata>,
    pod: &PodSection,
) -> Result<Option<String>, InitdataError> {
    let path = &pod.danger_set_policy;
    if path.as_os_str().is_empty() || initdata.is_some_and(|initdata| initdata.policy().is_some()) {
        return Ok(None);
    }
    read("pod.danger_set_policy", path, MOST_POLICY).map(Some)
}

/// Writes the disk that carries `initdata` into the run directory.
pub(crate) fn disk(initdata: &Initdata, run_dir: &Path) -> Result<Disk, InitdataError> {
    let image = run_dir.join(DISK);
    let failed = |cause| InitdataError::Write { path: image.clone(), cause };
    let bytes = initdata.to_disk().map_err(|error| failed(io::Error::other(error)))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&image)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(failed)?;
    Ok(Disk { serial: initdata::DISK_SERIAL.to_owned(), image: DiskImage::ReadOnly(image) })
}

fn read(key: &'static str, path: &Path, most: u64) -> Result<String, InitdataError> {
    crate::files::read_text(path, most).map_err(|cause| InitdataError::Read {
        key,
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn made(files: &[(&str, &str)]) -> Initdata {
        let files: BTreeMap<_, _> =
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Initdata::new(initdata::Algorithm::Sha256, files).unwrap()
    }

    #[test]
    fn the_annotation_comes_before_the_configured_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("default.toml");
        std::fs::write(&file, made(&[("from", "file")]).text()).unwrap();
        let configured = PodSection { default_initdata: file.clone(), ..PodSection::default() };
        let from = |annotations: &HashMap<_, _>, pod: &PodSection| {
            of_pod(annotations, pod).unwrap().map(|initdata| initdata.files()["from"].clone())
        };

        let annotation = made(&[("from", "annotation")]).to_annotation().unwrap();
        let annotated = HashMap::from([(initdata::ANNOTATION.to_owned(), annotation)]);
        let none = HashMap::new();
        assert_eq!(from(&annotated, &configured).as_deref(), Some("annotation"));
        assert_eq!(from(&none, &configured).as_deref(), Some("file"));
        assert_eq!(from(&none, &PodSection::default()), None);

        let broken = HashMap::from([(initdata::ANNOTATION.to_owned(), "AAAA".to_owned())]);
        let error = of_pod(&broken, &configured).unwrap_err().to_string();
        assert!(error.contains("cc_init_data: initdata: the compressed document"), "{error}");
        std::fs::write(&file, "version = 1").unwrap();
        let error = of_pod(&none, &configured).unwrap_err().to_string();
        assert!(error.contains("default.toml: initdata: line 1"), "{error}");
    }

    #[test]
    fn a_policy_is_sent_only_where_initdata_brings_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.rego");
        std::fs::write(&file, "package agent_policy\n").unwrap();
        let configured = PodSection { danger_set_policy: file, ..PodSection::default() };
        let sent = |initdata: Option<Initdata>| {
            late_policy(initdata.as_ref(), &configured).unwrap().is_some()
        };
        assert!(sent(None));
        assert!(sent(Some(made(&[("aa.toml", "")]))));
        assert!(!sent(Some(made(&[(initdata::POLICY, "")]))));
        assert_eq!(late_policy(None, &PodSection::default()).unwrap(), None);
    }

    #[test]
    fn the_disk_is_the_callers_alone_and_never_overwrites() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let initdata = made(&[(initdata::POLICY, "package agent_policy\n")]);
        let made = disk(&initdata, dir.path()).unwrap();
        assert_eq!(made.serial, "nacre-initdata");
        let DiskImage::ReadOnly(image) = made.image else { panic!("the guest could write it") };
        let mode = std::fs::metadata(&image).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let file = std::fs::File::open(&image).unwrap();
        assert_eq!(Initdata::from_disk(file).unwrap(), initdata);
        assert!(disk(&initdata, dir.path()).is_err());
    }
}
