//! What containerd's annotations say of a container. Those by which a pod chooses its machine are read in
//! [`crate::sizing`].

use std::collections::HashMap;

use nacre_protocol::channel::{
    ANNOTATION_CONTAINER_TYPE, ANNOTATION_IMAGE_NAME, ANNOTATION_SANDBOX_ID,
    CONTAINER_TYPE_CONTAINER, CONTAINER_TYPE_SANDBOX,
};
use nacre_protocol::start_report::Failure;
use nacre_run_directory::PodName;

use crate::error::{Code, Coded};

/// Why an annotation cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnnotationError {
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

    fn failure(&self) -> Option<Failure> {
        Some(match self {
            AnnotationError::Kind(_) | AnnotationError::NoSandbox => Failure::Request,
            AnnotationError::NoImage
            | AnnotationError::LocalImage(_)
            | AnnotationError::BadImage => Failure::Image,
        })
    }
}

/// The pod's name in its cluster, as the kubelet told containerd.
pub(crate) fn pod_name(annotations: &HashMap<String, String>) -> Option<PodName> {
    let of = |what| annotations.get(&format!("io.kubernetes.cri.sandbox-{what}")).cloned();
    Some(PodName {
        namespace: of("namespace")?,
        name: of("name")?,
        uid: of("uid").unwrap_or_default(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
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
