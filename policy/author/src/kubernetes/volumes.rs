//! Volumes of a pod, with the content of those files that stand in the owner's YAML.

use std::collections::BTreeMap;

use super::context::{Notes, PodContext};
use super::decode::Placed;
use super::environment::Kind;
use super::error::{Place, ReadError};
use super::pod_spec::{self, DownwardFile, EmptyDir, KeyToPath, Projection, VolumeSource};
use super::quantity::Quantity;
use super::store::is_block;
use crate::workload::{Content, Downward, ProjectedFile, Volume, VolumeKind};

pub(super) fn volume(
    volume: &Placed<pod_spec::Volume>,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<Volume, ReadError> {
    let pod_spec::Volume { name, source } = &volume.value;
    Ok(Volume {
        name: name.value.clone(),
        kind: kind(source, pod, notes)?,
        line: volume.place.line,
    })
}

fn kind(
    source: &VolumeSource,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<VolumeKind, ReadError> {
    Ok(match source {
        VolumeSource::EmptyDir(source) => empty_dir(source)?,
        VolumeSource::HostPath(source) => {
            let path = &source.path;
            if path.value.split('/').any(|part| part == "..") {
                return Err(path.place.invalid("must not contain '..'"));
            }
            VolumeKind::HostPath {
                path: path.value.clone(),
                kind: source.kind.clone().unwrap_or_default(),
            }
        }
        VolumeSource::ConfigMap(source) => {
            let config_map = &source.value;
            let selection = Selection {
                kind: Kind::ConfigMap,
                name: config_map.name.as_ref(),
                items: config_map.items.as_deref(),
                optional: config_map.optional.unwrap_or(false),
                place: &source.place,
            };
            let (name, files) = selection.files(pod, notes)?;
            VolumeKind::ConfigMap { name, files }
        }
        VolumeSource::Secret(source) => {
            let secret = &source.value;
            let selection = Selection {
                kind: Kind::Secret,
                name: secret.name.as_ref(),
                items: secret.items.as_deref(),
                optional: secret.optional.unwrap_or(false),
                place: &source.place,
            };
            let (name, files) = selection.files(pod, notes)?;
            VolumeKind::Secret { name, files }
        }
        VolumeSource::Projected(source) => {
            let mut files = BTreeMap::new();
            let mut complete = true;
            for projection in &source.value.sources {
                complete &= project(projection, &mut files, pod, notes)?;
            }
            VolumeKind::Projected { files, complete }
        }
        VolumeSource::Downward(source) => {
            let mut files = BTreeMap::new();
            downward(&source.items, &mut files, pod, notes)?;
            VolumeKind::DownwardApi { files }
        }
        VolumeSource::Claim(source) => VolumeKind::Claim {
            name: source.claim_name.value.clone(),
            block: pod.store.claim_is_block(pod.namespace(), &source.claim_name.value),
            read_only: source.read_only.unwrap_or(false),
        },
        VolumeSource::Ephemeral(source) => {
            let Some(template) = &source.value.template else {
                return Err(source.place.invalid("needs volumeClaimTemplate"));
            };
            VolumeKind::Ephemeral { block: is_block(template.value.spec.volume_mode.as_ref())? }
        }
        VolumeSource::Csi(source) => VolumeKind::Csi {
            driver: source.driver.value.clone(),
            read_only: source.read_only.unwrap_or(false),
        },
        VolumeSource::Image(source) => {
            VolumeKind::Image { reference: source.reference.value.clone() }
        }
        VolumeSource::Node { kind, read_only } => {
            VolumeKind::Other { kind: (*kind).to_owned(), read_only: *read_only }
        }
    })
}

fn empty_dir(source: &EmptyDir) -> Result<VolumeKind, ReadError> {
    let (memory, huge_pages) = match source.medium.as_ref().map(|medium| (&*medium.value, medium)) {
        None | Some(("", _)) => (false, None),
        Some(("Memory", _)) => (true, None),
        Some((pages, _)) if pages == "HugePages" || pages.starts_with("HugePages-") => {
            (false, Some(pages.to_owned()))
        }
        Some((_, medium)) => {
            return Err(medium.place.invalid("must be empty, Memory, HugePages or HugePages-SIZE"));
        }
    };
    let size_limit = match &source.size_limit {
        None => None,
        Some(limit) => Some(
            Quantity::parse(&limit.value.0)
                .map_err(|problem| limit.place.invalid(format!("{:?} {problem}", limit.value.0)))?
                .units(),
        ),
    };
    Ok(VolumeKind::EmptyDir { memory, huge_pages, size_limit })
}

/// The keys of a `ConfigMap` or Secret that become files.
struct Selection<'a> {
    kind: Kind,
    name: Option<&'a Placed<String>>,
    items: Option<&'a [Placed<KeyToPath>]>,
    optional: bool,
    place: &'a Place,
}

impl Selection<'_> {
    /// The object's name, and the files unless the object is not among the owner's.
    fn files(
        &self,
        pod: &PodContext<'_>,
        notes: &mut Notes,
    ) -> Result<(String, Option<BTreeMap<String, Content>>), ReadError> {
        let kind = self.kind;
        let Some(name) = self.name else {
            return Err(self.place.invalid(format!("needs the name of a {kind}")));
        };
        for item in self.items.unwrap_or_default() {
            check_path(&item.value.path)?;
        }
        let Some(stored) = kind.get(pod, &name.value) else {
            notes.add(
                &name.place,
                format!(
                    "the {kind} {:?} is not in the given files: the host may choose what it contains",
                    name.value
                ),
            );
            return Ok((name.value.clone(), None));
        };
        let data = &stored.object.data;
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            return Ok((name.value.clone(), Some(data.clone())));
        };
        let mut files = BTreeMap::new();
        for item in items {
            let KeyToPath { key, path } = &item.value;
            match data.get(&key.value) {
                Some(content) => {
                    files.insert(path.value.clone(), content.clone());
                }
                None if self.optional => {}
                None => {
                    return Err(key.place.invalid(format!(
                        "{kind} {:?} ({}:{}) has no key {:?}: add it there, or correct the key",
                        name.value, stored.object.file, stored.object.line, key.value
                    )));
                }
            }
        }
        Ok((name.value.clone(), Some(files)))
    }
}

/// Adds the files of one projected source; says whether these are all.
fn project(
    projection: &Placed<Projection>,
    files: &mut BTreeMap<String, ProjectedFile>,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<bool, ReadError> {
    let source = &projection.value;
    let given = [
        source.config_map.is_some(),
        source.secret.is_some(),
        source.downward.is_some(),
        source.token.is_some(),
        source.trust_bundle.is_some(),
        source.certificate.is_some(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(projection.place.invalid(
            "needs exactly one of configMap, secret, downwardAPI, serviceAccountToken, clusterTrustBundle and \
             podCertificate",
        ));
    }
    for (kind, source) in [(Kind::ConfigMap, &source.config_map), (Kind::Secret, &source.secret)] {
        let Some(source) = source else { continue };
        let selection = Selection {
            kind,
            name: source.value.name.as_ref(),
            items: source.value.items.as_deref(),
            optional: source.value.optional.unwrap_or(false),
            place: &source.place,
        };
        let (_, Some(contents)) = selection.files(pod, notes)? else {
            return Ok(false);
        };
        files.extend(contents.into_iter().map(|(path, content)| {
            let file = match kind {
                Kind::ConfigMap => ProjectedFile::Config(content),
                Kind::Secret => ProjectedFile::Secret(content),
            };
            (path, file)
        }));
    }
    if let Some(source) = &source.downward {
        downward(&source.value.items, files, pod, notes)?;
    }
    let mut single = |path: &Placed<String>, file| {
        check_path(path)?;
        files.insert(path.value.clone(), file);
        Ok::<_, ReadError>(())
    };
    if let Some(token) = &source.token {
        single(&token.value.path, ProjectedFile::Token)?;
    }
    if let Some(bundle) = &source.trust_bundle {
        single(&bundle.value.path, ProjectedFile::TrustBundle)?;
    }
    if let Some(certificate) = &source.certificate {
        let certificate = &certificate.value;
        let paths = [&certificate.bundle_path, &certificate.key_path, &certificate.chain_path];
        for path in paths.into_iter().flatten() {
            single(path, ProjectedFile::Certificate)?;
        }
    }
    Ok(true)
}

fn downward(
    items: &[Placed<DownwardFile>],
    files: &mut BTreeMap<String, ProjectedFile>,
    pod: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<(), ReadError> {
    for item in items {
        let file = &item.value;
        check_path(&file.path)?;
        let content = match (&file.field, &file.resource_field) {
            (Some(field), None) => match field.value.field_path.value.as_str() {
                "metadata.labels" => Downward::Labels,
                "metadata.annotations" => Downward::Annotations,
                _ => Downward::Value(pod.field(&field.value, notes)?.into_value()),
            },
            (None, Some(resource)) => {
                Downward::Value(pod.resource(&resource.value, None)?.into_value())
            }
            _ => {
                return Err(item
                    .place
                    .invalid("needs exactly one of fieldRef and resourceFieldRef"));
            }
        };
        files.insert(file.path.value.clone(), ProjectedFile::Downward(content));
    }
    Ok(())
}

/// A file of a volume stays within it.
fn check_path(path: &Placed<String>) -> Result<(), ReadError> {
    let text = path.value.as_str();
    if text.is_empty()
        || text.starts_with('/')
        || text.starts_with("..")
        || text.split('/').any(|part| part == "..")
    {
        return Err(path
            .place
            .invalid("must be a relative path without '..': name a file within the volume"));
    }
    Ok(())
}
