//! What a pod may ask for by annotations: little, and within the administrator's bounds.

use std::collections::HashMap;

use nacre_protocol::channel::{
    ANNOTATION_CONTAINER_TYPE, ANNOTATION_IMAGE_NAME, ANNOTATION_SANDBOX_ID,
    CONTAINER_TYPE_CONTAINER, CONTAINER_TYPE_SANDBOX,
};

use crate::error::{Code, Coded};
use nacre_configuration::{Config, LEAST_SCRATCH_DISK_MIB};

/// What a pod asks of this program; nothing of it concerns the guest.
pub(crate) const PREFIX: &str = "io.nacre.";
const VCPUS: &str = "io.nacre.vm.vcpus";
const MEMORY_MIB: &str = "io.nacre.vm.memory_mib";
const SCRATCH_DISK_MIB: &str = "io.nacre.vm.scratch_disk_mib";

/// Why an annotation cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnnotationError {
    #[error(
        "annotation {0} is unknown: {VCPUS}, {MEMORY_MIB} and {SCRATCH_DISK_MIB} are the ones a pod may set"
    )]
    Unknown(String),
    #[error(
        "annotation {key} is {value:?}: give a number from {least} to {most}; the upper bound is \
         {bound} in the configuration"
    )]
    Value { key: &'static str, value: String, least: u32, most: u32, bound: &'static str },
    #[error(
        "annotation {SCRATCH_DISK_MIB} is {0:?}, but storage.max_scratch_disk_mib is 0 in the \
         configuration: pods get no scratch disk on this node"
    )]
    NoScratchDisks(String),
    #[error("annotation {ANNOTATION_CONTAINER_TYPE} is {0:?}: it must be sandbox or container")]
    Kind(String),
    #[error(
        "annotation {ANNOTATION_SANDBOX_ID} is missing: a container of a pod must name its sandbox"
    )]
    NoSandbox,
    #[error(
        "annotation {ANNOTATION_IMAGE_NAME} is missing: the guest pulls the image by itself and must \
         know its reference; with ctr give --annotation {ANNOTATION_IMAGE_NAME}=REGISTRY/NAME:TAG"
    )]
    NoImage,
    #[error(
        "annotation {ANNOTATION_IMAGE_NAME} is {0:?}, an image id of this host's store: the guest \
         needs a reference it can pull, REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST"
    )]
    LocalImage(String),
    #[error("annotation {ANNOTATION_IMAGE_NAME} is not printable ASCII of at most 1024 characters")]
    BadImage,
}

impl Coded for AnnotationError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}

/// What a container is to its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The pod's own (pause) container: it brings the virtual machine.
    Sandbox,
    /// A container that joins the pod of that id.
    Member {
        /// Id of the pod's sandbox container.
        sandbox: String,
    },
    /// A container by itself, as `ctr` makes it: machine and container in one.
    Single,
}

impl Kind {
    /// Reads the annotations that containerd's CRI plugin sets.
    pub(crate) fn of(annotations: &HashMap<String, String>) -> Result<Kind, AnnotationError> {
        match annotations.get(ANNOTATION_CONTAINER_TYPE).map(String::as_str) {
            None => Ok(Kind::Single),
            Some(CONTAINER_TYPE_SANDBOX) => Ok(Kind::Sandbox),
            Some(CONTAINER_TYPE_CONTAINER) => match annotations.get(ANNOTATION_SANDBOX_ID) {
                Some(sandbox) if !sandbox.is_empty() => {
                    Ok(Kind::Member { sandbox: sandbox.clone() })
                }
                _ => Err(AnnotationError::NoSandbox),
            },
            Some(other) => Err(AnnotationError::Kind(other.to_owned())),
        }
    }
}

/// The image that the guest is to pull.
pub(crate) fn image(annotations: &HashMap<String, String>) -> Result<&str, AnnotationError> {
    let image = annotations.get(ANNOTATION_IMAGE_NAME).ok_or(AnnotationError::NoImage)?;
    if image.is_empty() {
        return Err(AnnotationError::NoImage);
    }
    if image.len() > 1024 || !image.chars().all(|c| c.is_ascii_graphic()) {
        return Err(AnnotationError::BadImage);
    }
    if image.starts_with("sha256:") {
        return Err(AnnotationError::LocalImage(image.clone()));
    }
    Ok(image)
}

/// Size of the pod's virtual machine; without a scratch disk that has 0 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmSize {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) scratch_disk_mib: u32,
}

impl VmSize {
    /// The configured size, or what the pod's annotations ask for.
    pub(crate) fn of(
        annotations: &HashMap<String, String>,
        config: &Config,
    ) -> Result<VmSize, AnnotationError> {
        let (vm, storage) = (&config.vm, &config.storage);
        let scratch_disk_mib = storage.scratch_disk_mib;
        let mut size = VmSize { vcpus: vm.vcpus, memory_mib: vm.memory_mib, scratch_disk_mib };
        let mut ours: Vec<_> =
            annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
        ours.sort();
        for (key, value) in ours {
            match key.as_str() {
                VCPUS => size.vcpus = number(VCPUS, value, 1, vm.max_vcpus, "vm.max_vcpus")?,
                MEMORY_MIB => {
                    size.memory_mib =
                        number(MEMORY_MIB, value, 128, vm.max_memory_mib, "vm.max_memory_mib")?;
                }
                SCRATCH_DISK_MIB => {
                    size.scratch_disk_mib = scratch_disk(value, storage.max_scratch_disk_mib)?;
                }
                other => return Err(AnnotationError::Unknown(other.to_owned())),
            }
        }
        Ok(size)
    }
}

/// 0 for none.
fn scratch_disk(value: &str, most: u32) -> Result<u32, AnnotationError> {
    if value == "0" {
        return Ok(0);
    }
    if most == 0 {
        return Err(AnnotationError::NoScratchDisks(value.chars().take(32).collect()));
    }
    let bound = "storage.max_scratch_disk_mib";
    number(SCRATCH_DISK_MIB, value, LEAST_SCRATCH_DISK_MIB, most, bound)
}

fn number(
    key: &'static str,
    value: &str,
    least: u32,
    most: u32,
    bound: &'static str,
) -> Result<u32, AnnotationError> {
    let digits_only = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u32>() {
        Ok(number) if digits_only && (least..=most).contains(&number) => Ok(number),
        _ => Err(AnnotationError::Value {
            key,
            value: value.chars().take(32).collect(),
            least,
            most,
            bound,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_pod_may_choose_its_size_within_bounds() {
        let mut config = Config::default();
        let asked = annotations(&[
            (VCPUS, "4"),
            (MEMORY_MIB, "1024"),
            (SCRATCH_DISK_MIB, "2048"),
            ("other.io/x", "y"),
        ]);
        let size = VmSize { vcpus: 4, memory_mib: 1024, scratch_disk_mib: 2048 };
        assert_eq!(VmSize::of(&asked, &config), Ok(size));
        config.storage.scratch_disk_mib = 100;
        let (vcpus, memory_mib) = (config.vm.vcpus, config.vm.memory_mib);
        let size = |scratch_disk_mib| VmSize { vcpus, memory_mib, scratch_disk_mib };
        assert_eq!(VmSize::of(&annotations(&[]), &config), Ok(size(100)));
        let none = annotations(&[(SCRATCH_DISK_MIB, "0")]);
        assert_eq!(VmSize::of(&none, &config), Ok(size(0)));
        config.storage.max_scratch_disk_mib = 0;
        let error = VmSize::of(&asked, &config).unwrap_err().to_string();
        assert!(error.contains("\"2048\", but storage.max_scratch_disk_mib is 0"), "{error}");
    }

    #[test]
    fn nothing_else_may_be_set() {
        let config = Config::default();
        for (key, value) in [
            (VCPUS, "0"),
            (VCPUS, "17"),
            (VCPUS, "+1"),
            (VCPUS, " 1"),
            (VCPUS, "1.5"),
            (VCPUS, "99999999999999999999"),
            (MEMORY_MIB, "127"),
            (MEMORY_MIB, "16385"),
            (MEMORY_MIB, ""),
            (SCRATCH_DISK_MIB, "63"),
            (SCRATCH_DISK_MIB, "16385"),
            (SCRATCH_DISK_MIB, "-1"),
            ("io.nacre.vm.kernel", "/tmp/k"),
            ("io.nacre.vm.qemu", "/bin/sh"),
            ("io.nacre.", ""),
        ] {
            let error = VmSize::of(&annotations(&[(key, value)]), &config).unwrap_err();
            assert!(error.to_string().contains(key), "{key}={value}: {error}");
        }
    }

    #[test]
    fn kinds_come_from_the_cri_annotations() {
        let kind = |pairs: &[(&str, &str)]| Kind::of(&annotations(pairs));
        assert_eq!(kind(&[]), Ok(Kind::Single));
        assert_eq!(kind(&[(ANNOTATION_CONTAINER_TYPE, "sandbox")]), Ok(Kind::Sandbox));
        let member = [(ANNOTATION_CONTAINER_TYPE, "container"), (ANNOTATION_SANDBOX_ID, "s")];
        assert_eq!(kind(&member), Ok(Kind::Member { sandbox: "s".into() }));
        assert_eq!(kind(&member[..1]), Err(AnnotationError::NoSandbox));
        assert!(kind(&[(ANNOTATION_CONTAINER_TYPE, "pod")]).is_err());
    }

    #[test]
    fn an_image_must_be_something_the_guest_can_pull() {
        let of =
            |value: &str| image(&annotations(&[(ANNOTATION_IMAGE_NAME, value)])).map(str::to_owned);
        assert_eq!(of("10.88.0.1:5000/a:b"), Ok("10.88.0.1:5000/a:b".to_owned()));
        assert_eq!(of(""), Err(AnnotationError::NoImage));
        assert_eq!(of("a b"), Err(AnnotationError::BadImage));
        assert!(matches!(of("sha256:00"), Err(AnnotationError::LocalImage(_))));
        let missing = image(&annotations(&[])).unwrap_err().to_string();
        assert!(
            missing.contains("ctr give --annotation io.kubernetes.cri.image-name="),
            "{missing}"
        );
    }
}
