//! The mounts of a container, as the kubelet makes them of `volumeMounts` and volumes.

use std::collections::BTreeMap;

use crate::document::{MountData, MountKind};
use crate::generate::{GenerateError, Generator};
use crate::workload::{Container, EnvValue, ProjectedFile, Volume, VolumeKind, VolumeMount};

/// Mounts by destination.
pub(crate) type Mounts = BTreeMap<String, MountData>;

/// Where service-account tokens are looked for.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The volume that the API server adds for the token: random characters as of its name generator.
const TOKEN_SOURCE: &str = "^kube-api-access-[a-z0-9]{5}$";
/// What it is called in the settings.
const TOKEN_VOLUME: &str = "kube-api-access";
/// Parts of a volume that are known only when the pod runs: plain names, none of them a step upwards.
const ANY_PART: &str =
    r"^([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))*$";

/// What is mounted into `container`.
pub(crate) fn mounts(
    generator: &mut Generator<'_>,
    container: &Container,
) -> Result<Mounts, GenerateError> {
    let mut mounts = Mounts::new();
    for mount in &container.mounts {
        let data = mount_data(generator, container, mount)?;
        mounts.insert(mount.path.clone(), data);
    }
    let automount = generator.workload.pod.automount_token;
    if automount.unwrap_or(generator.settings.kubernetes.automount_token) {
        mounts.entry(TOKEN_PATH.to_owned()).or_insert_with(|| MountData {
            kind: MountKind::Token,
            source: None,
            source_pattern: Some(TOKEN_SOURCE.to_owned()),
            read_only: true,
            volume: None,
            sub_path: None,
            sub_path_pattern: None,
            memory: false,
            updates: generator.settings.volume_updates.permit(TOKEN_VOLUME),
        });
    }
    Ok(mounts)
}

fn mount_data(
    generator: &mut Generator<'_>,
    container: &Container,
    mount: &VolumeMount,
) -> Result<MountData, GenerateError> {
    let what = format!("container {}: mount {}", container.name, mount.path);
    let volume = generator.workload.pod.volumes.iter().find(|volume| volume.name == mount.volume);
    let Some(volume) = volume else {
        let problem = format!("there is no volume {:?}", mount.volume);
        return Err(generator.error(what, mount.line, problem));
    };
    let shape = Shape::of(generator, volume)?;
    if shape.kind == MountKind::HostPath && !mount.read_only {
        let problem = "what is written to a copy of the node's files would be lost: set readOnly: true, or use \
                       an emptyDir";
        return Err(generator.error(what, mount.line, problem));
    }
    let mut data = MountData {
        kind: shape.kind,
        source: None,
        source_pattern: None,
        read_only: mount.read_only || shape.read_only,
        volume: None,
        sub_path: None,
        sub_path_pattern: None,
        memory: false,
        // The kubelet does not change what a subPath shows.
        updates: shape.changes
            && mount.sub_path.is_none()
            && generator.settings.volume_updates.permit(&volume.name),
    };
    if let VolumeKind::EmptyDir { memory, .. } = volume.kind {
        // The guest makes it, so there is nothing that the host would bring by a name.
        data.volume = Some(volume.name.clone());
        data.memory = memory;
        match &mount.sub_path {
            None => {}
            Some(EnvValue::Literal(path)) => data.sub_path = Some(path.clone()),
            Some(EnvValue::Secret(_) | EnvValue::FromPod(_) | EnvValue::Pattern { .. }) => {
                data.sub_path_pattern = Some(ANY_PART.to_owned());
            }
        }
        return Ok(data);
    }
    match (&mount.sub_path, shape.source) {
        // The kubelet binds the entry to a file or directory below the container's name that is called by the
        // mount's number.
        (Some(sub_path), _) => {
            data.source = Some(format!("{}.{}", container.name, mount.index));
            if shape.verified {
                data.volume = Some(volume.name.clone());
                match sub_path {
                    EnvValue::Literal(path) => data.sub_path = Some(path.clone()),
                    EnvValue::Secret(_) | EnvValue::FromPod(_) | EnvValue::Pattern { .. } => {
                        let problem = "subPathExpr depends on what is only known when the pod runs: in a \
                                       volume whose contents are verified give a fixed path";
                        return Err(generator.error(what, mount.line, problem));
                    }
                }
            }
        }
        (None, Source::Name(name)) => data.source = Some(name),
        (None, Source::Pattern(pattern)) => data.source_pattern = Some(pattern),
    }
    Ok(data)
}

/// Last component of the path that the kubelet gives the runtime.
enum Source {
    Name(String),
    Pattern(String),
}

/// What a volume looks like when it is mounted.
struct Shape {
    kind: MountKind,
    source: Source,
    read_only: bool,
    /// Its contents stand in the document.
    verified: bool,
    /// The kubelet brings new files when their source changes, and not all of them are fixed by the document.
    changes: bool,
}

impl Shape {
    fn of(generator: &mut Generator<'_>, volume: &Volume) -> Result<Self, GenerateError> {
        let named = |kind, read_only, verified| Self {
            kind,
            source: Source::Name(volume.name.clone()),
            read_only,
            verified,
            changes: false,
        };
        let claim = |generator: &Generator<'_>, read_only| Self {
            kind: MountKind::Claim,
            source: Source::Pattern(generator.settings.kubernetes.claim_source.clone()),
            read_only,
            verified: false,
            changes: false,
        };
        let what = format!("volume {}", volume.name);
        Ok(match &volume.kind {
            VolumeKind::EmptyDir { huge_pages: Some(medium), .. } => {
                let problem = format!("medium {medium} is not available in a guest: use memory");
                return Err(generator.error(what, volume.line, problem));
            }
            VolumeKind::EmptyDir { .. } => named(MountKind::EmptyDir, false, false),
            VolumeKind::HostPath { path, .. } => {
                check_host_path(generator, volume, path)?;
                let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                if name.is_empty() {
                    let problem = "the node's root cannot be copied into a guest: name a directory";
                    return Err(generator.error(what, volume.line, problem));
                }
                let source = Source::Name(copied_name(name));
                Self {
                    kind: MountKind::HostPath,
                    source,
                    read_only: false,
                    verified: false,
                    changes: false,
                }
            }
            VolumeKind::ConfigMap { name, files } => {
                if files.is_none() {
                    unverified(generator, volume, "ConfigMap", name);
                }
                let changes = files.is_none();
                Self { changes, ..named(MountKind::Config, true, !changes) }
            }
            VolumeKind::Secret { name, files } => {
                if files.is_none() {
                    unverified(generator, volume, "Secret", name);
                }
                let changes = files.is_none();
                Self { changes, ..named(MountKind::Secret, true, !changes) }
            }
            VolumeKind::Projected { files, complete } => {
                let is_token = |file: &ProjectedFile| matches!(file, ProjectedFile::Token);
                let kind = if files.values().any(is_token) {
                    MountKind::Token
                } else {
                    MountKind::Projected
                };
                let owned = |file: &ProjectedFile| {
                    matches!(file, ProjectedFile::Config(_) | ProjectedFile::Secret(_))
                };
                let verified = files.values().any(owned) || *complete && files.is_empty();
                let fixed = *complete && files.values().all(owned);
                Self { changes: !fixed, ..named(kind, true, verified) }
            }
            VolumeKind::DownwardApi { .. } => {
                Self { changes: true, ..named(MountKind::Downward, true, false) }
            }
            VolumeKind::Claim { read_only, .. } => claim(generator, *read_only),
            VolumeKind::Ephemeral { .. } => claim(generator, false),
            VolumeKind::Csi { read_only, .. } => Self {
                kind: MountKind::Claim,
                source: Source::Pattern("^mount$".to_owned()),
                read_only: *read_only,
                verified: false,
                changes: false,
            },
            VolumeKind::Image { .. } => {
                let problem = "image volumes are unpacked by the host, which the guest does not trust: \
                               copy the files into the container's image";
                return Err(generator.error(what, volume.line, problem));
            }
            VolumeKind::Other { read_only, .. } => named(MountKind::Claim, *read_only, false),
        })
    }
}

/// The name that a copy of this file or directory has in the guest.
fn copied_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    name.chars().map(plain).take(64).collect()
}

fn unverified(generator: &mut Generator<'_>, volume: &Volume, kind: &str, name: &str) {
    generator.note(
        volume.line,
        format!(
            "volume {}: the {kind} {name} is not in the files: the host can choose its contents; add it to \
             have them enforced",
            volume.name
        ),
    );
}

fn check_host_path(
    generator: &mut Generator<'_>,
    volume: &Volume,
    path: &str,
) -> Result<(), GenerateError> {
    let what = format!("volume {}", volume.name);
    if path.split('/').any(|component| component == "..") {
        return Err(generator.error(what, volume.line, "hostPath must not contain \"..\""));
    }
    let beneath = |allowed: &String| {
        let allowed = allowed.trim_end_matches('/');
        path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if generator.settings.host_paths.iter().any(beneath) {
        return Ok(());
    }
    Err(generator.error(
        what,
        volume.line,
        format!(
            "hostPath {path} shows the pod what the host chooses: use another volume, or permit it in \
             the settings: host_paths = [{path:?}]"
        ),
    ))
}
