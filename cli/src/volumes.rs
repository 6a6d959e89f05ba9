//! The owner's declaration of a pod's volumes, `volumes.toml` of the initdata, from options and the pod's YAML.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use clap::Args;
use nacre_policy_author::document::{MountKind, PolicyData};
use nacre_policy_author::workload::{VolumeKind, Workload};
use nacre_protocol::kbs::ResourceUri;
use nacre_volume_format::declared::{DeclaredVolumes, FILE};
use serde::Serialize;

/// What is on the disks behind a pod's claims.
#[derive(Args)]
pub(crate) struct VolumeOptions {
    /// A claim that is encrypted, as `NAME=kbs:///repository/type/name`: the claim's name, and the resource of the key
    /// broker with its key. Written to volumes.toml, with where the YAML's containers see it. May be given several
    /// times.
    #[arg(long, value_name = "NAME=URI")]
    volume: Vec<String>,
    /// A claim that the host may read and change. DANGEROUS: it can put anything there. May be given several times.
    #[arg(long, value_name = "NAME")]
    danger_plaintext_volume: Vec<String>,
    /// Make an empty volume of a blank disk. For the first pod: as long as this is declared, the host can exchange the
    /// volume for an empty one. May be given several times.
    #[arg(long, value_name = "NAME")]
    format_volume: Vec<String>,
    /// Refuse containers that could write to this volume. May be given several times.
    #[arg(long, value_name = "NAME")]
    read_only_volume: Vec<String>,
}

#[derive(Serialize)]
struct File {
    volume: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    mounts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    danger_plaintext: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    read_only: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A place where a container sees a claim.
struct Seen<'a> {
    claim: &'a str,
    container: &'a str,
    path: &'a str,
    is_writable: bool,
    /// Whether only a part of the volume is shown there.
    is_part: bool,
    line: u32,
}

impl VolumeOptions {
    /// Whether there are any.
    pub(crate) fn are_given(&self) -> bool {
        let VolumeOptions { volume, danger_plaintext_volume, format_volume, read_only_volume } =
            self;
        [volume, danger_plaintext_volume, format_volume, read_only_volume]
            .iter()
            .any(|names| !names.is_empty())
    }

    /// Puts what they say into the files of an initdata document, in place of a volumes.toml that is there; then
    /// checks what is there against the pod's YAML.
    pub(crate) fn add(
        &self,
        files: &mut BTreeMap<String, String>,
        workload: &Workload,
    ) -> anyhow::Result<()> {
        if self.are_given() {
            let text = self.declare(workload)?;
            if files.insert(FILE.to_owned(), text.clone()).is_some_and(|old| old != text) {
                eprintln!("note: the {FILE} that was there is replaced by what --volume says");
            }
        }
        let declared = match files.get(FILE) {
            Some(text) => check(text, workload)?,
            None => DeclaredVolumes::default(),
        };
        for Seen { claim, container, path, line, .. } in &seen(workload) {
            if declared.at(container, path).is_none() {
                eprintln!(
                    "note: {}:{line}: {container}: the claim {claim} at {path} is not in {FILE}: the host can choose its \
                     contents; guests refuse it if it is a disk",
                    workload.source
                );
            }
        }
        Ok(())
    }

    fn declare(&self, workload: &Workload) -> anyhow::Result<String> {
        let seen = seen(workload);
        let mut kinds: Vec<(&str, Option<String>)> = Vec::new();
        for text in &self.volume {
            let (name, uri) = text.split_once('=').with_context(|| {
                format!("--volume {text}: give NAME=kbs:///repository/type/name")
            })?;
            let uri: ResourceUri = uri.parse().with_context(|| format!("--volume {text}"))?;
            kinds.push((name, Some(uri.to_string())));
        }
        kinds.extend(self.danger_plaintext_volume.iter().map(|name| (name.as_str(), None)));
        let mut names = BTreeSet::new();
        for (name, _) in &kinds {
            ensure!(
                names.insert(*name),
                "the volume {name} is given twice: it is encrypted or it is not"
            );
        }
        for (option, name) in (self.format_volume.iter().map(|name| ("--format-volume", name)))
            .chain(self.read_only_volume.iter().map(|name| ("--read-only-volume", name)))
        {
            ensure!(
                names.contains(name.as_str()),
                "{option} {name}: say what it is by --volume {name}=kbs:///... or --danger-plaintext-volume {name}"
            );
        }
        let entries = kinds.into_iter().map(|(name, key)| {
            let places: Vec<&Seen<'_>> = seen.iter().filter(|seen| seen.claim == name).collect();
            ensure!(
                !places.is_empty(),
                "{}:{}: no container of {}/{} sees a claim {name}; the claims that they see: {}",
                workload.source,
                workload.line,
                workload.kind,
                workload.object_name,
                listed(&seen)
            );
            let read_only = self.read_only_volume.iter().any(|other| other == name);
            for place in &places {
                let at = || format!("{}:{}: {}", workload.source, place.line, place.container);
                ensure!(
                    !place.is_part,
                    "{}: the claim {name} is shown in part (subPath), which guests refuse",
                    at()
                );
                ensure!(
                    !(read_only && place.is_writable),
                    "{}: the volume {name} is read-only, and this container could write to it: set readOnly",
                    at()
                );
            }
            let mounts: BTreeSet<String> =
                places.iter().map(|place| format!("{}:{}", place.container, place.path)).collect();
            Ok(Entry {
                name: name.to_owned(),
                mounts: mounts.into_iter().collect(),
                danger_plaintext: key.is_none(),
                key,
                format: self.format_volume.iter().any(|other| other == name).then_some("blank"),
                read_only,
            })
        });
        let volume = entries.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(toml::to_string(&File { volume })?)
    }
}

/// Has the policy allow nothing but a disk in the places of `volumes.toml`, if there is one among `files`: no files that
/// the host copies there.
///
/// # Errors
/// If the file is not as it must be.
pub(crate) fn allow_disks_only(
    data: &mut PolicyData,
    files: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let Some(text) = files.get(FILE) else { return Ok(()) };
    let declared = DeclaredVolumes::parse(text)?;
    for (name, container) in &mut data.containers {
        for (path, mount) in &mut container.mounts {
            if mount.kind == MountKind::Claim && declared.at(name, path).is_some() {
                mount.source = None;
                mount.source_pattern = None;
            }
        }
    }
    Ok(())
}

/// Checks a volumes.toml against the pod: guests would refuse at the pod's start what is wrong here.
fn check(text: &str, workload: &Workload) -> anyhow::Result<DeclaredVolumes> {
    let declared = DeclaredVolumes::parse(text)?;
    let seen = seen(workload);
    for volume in declared.volumes() {
        for (container, path) in volume.places() {
            let is_there = seen.iter().any(|seen| {
                seen.path == path && container.is_none_or(|container| container == seen.container)
            });
            if !is_there {
                bail!(
                    "{}:{}: {FILE} declares the volume {} at {path} of {}, and there is no claim there",
                    workload.source,
                    workload.line,
                    volume.name,
                    container.map_or_else(
                        || "any container".to_owned(),
                        |name| format!("container {name}")
                    ),
                );
            }
        }
    }
    Ok(declared)
}

/// Where the containers see claims.
fn seen(workload: &Workload) -> Vec<Seen<'_>> {
    let claim = |volume: &str| {
        let found = workload.pod.volumes.iter().find(|other| other.name == volume)?;
        match &found.kind {
            VolumeKind::Claim { name, read_only, .. } => Some((name.as_str(), *read_only)),
            VolumeKind::Ephemeral { .. } => Some((found.name.as_str(), false)),
            _ => None,
        }
    };
    let mut all = Vec::new();
    for container in &workload.pod.containers {
        for mount in &container.mounts {
            let Some((name, read_only)) = claim(&mount.volume) else { continue };
            all.push(Seen {
                claim: name,
                container: &container.name,
                path: &mount.path,
                is_writable: !(mount.read_only || read_only),
                is_part: mount.sub_path.is_some(),
                line: mount.line,
            });
        }
        for device in &container.devices {
            let Some((name, read_only)) = claim(&device.volume) else { continue };
            all.push(Seen {
                claim: name,
                container: &container.name,
                path: &device.path,
                is_writable: !read_only,
                is_part: false,
                line: device.line,
            });
        }
    }
    all
}

fn listed(seen: &[Seen<'_>]) -> String {
    let names: BTreeSet<&str> = seen.iter().map(|seen| seen.claim).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use nacre_policy_author::kubernetes::{SourceFile, read};

    use super::*;

    const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: db}
spec:
  containers:
  - name: app
    image: registry.example/app:1
    volumeMounts:
    - {name: store, mountPath: /data}
  - name: backup
    image: registry.example/backup:1
    volumeMounts:
    - {name: store, mountPath: /data, readOnly: true}
  volumes:
  - name: store
    persistentVolumeClaim: {claimName: data}
";

    fn options() -> VolumeOptions {
        VolumeOptions {
            volume: vec!["data=kbs:///default/volumes/data".into()],
            danger_plaintext_volume: vec![],
            format_volume: vec!["data".into()],
            read_only_volume: vec![],
        }
    }

    fn add(options: &VolumeOptions, pod: &str, there: &str) -> anyhow::Result<String> {
        let file = SourceFile { name: "db.yaml".into(), content: pod.as_bytes().to_vec() };
        let reading = read(&[file]).unwrap();
        let mut files = BTreeMap::new();
        if !there.is_empty() {
            files.insert(FILE.to_owned(), there.to_owned());
        }
        options.add(&mut files, &reading.workloads[0])?;
        Ok(files.remove(FILE).unwrap_or_default())
    }

    #[test]
    fn the_declaration_has_every_place_where_the_claim_is_seen() {
        let text = add(&options(), POD, "").unwrap();
        let declared = DeclaredVolumes::parse(&text).unwrap();
        for container in ["app", "backup"] {
            assert_eq!(declared.at(container, "/data").unwrap().name, "data", "{text}");
        }
        assert!(text.contains("format = \"blank\"") && !text.contains("plaintext"), "{text}");
        let plain = VolumeOptions {
            volume: vec![],
            danger_plaintext_volume: vec!["data".into()],
            ..options()
        };
        assert!(add(&plain, POD, "").unwrap().contains("danger_plaintext = true"));
        // Without options nothing is declared, and what is there stays.
        let none = VolumeOptions { volume: vec![], format_volume: vec![], ..options() };
        assert_eq!(add(&none, POD, "").unwrap(), "");
        assert_eq!(add(&none, POD, &text).unwrap(), text);
    }

    #[test]
    fn the_policy_allows_a_disk_and_nothing_else_where_one_is_declared() {
        let claim = r#"{"kind": "claim", "source_pattern": "^(mount|pvc-[0-9a-f-]{36})$"}"#;
        let text = format!(
            r#"{{"version": 1, "containers": {{"app": {{"image": "x", "args": [], "cwd": "/", "users": [], "mounts": {{"/data": {claim}, "/other": {claim}}}}}}}}}"#
        );
        let mut data: PolicyData = serde_json::from_str(&text).unwrap();
        let before = data.clone();
        allow_disks_only(&mut data, &BTreeMap::new()).unwrap();
        assert_eq!(data, before);
        let declared = add(&options(), POD, "").unwrap();
        let files = BTreeMap::from([(FILE.to_owned(), declared)]);
        allow_disks_only(&mut data, &files).unwrap();
        let mounts = &data.containers["app"].mounts;
        assert_eq!(mounts["/data"].source_pattern, None);
        assert_eq!(mounts["/other"], before.containers["app"].mounts["/other"]);
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        let with = |change: fn(&mut VolumeOptions)| {
            let mut options = options();
            change(&mut options);
            options
        };
        for (options, pod, expected) in [
            (
                with(|o| {
                    o.volume = vec!["store=kbs:///default/volumes/data".into()];
                    o.format_volume.clear();
                }),
                POD.to_owned(),
                "db.yaml:1: no container of Pod/db sees a claim store; the claims that they see: data",
            ),
            (with(|o| o.volume = vec!["data".into()]), POD.to_owned(), "--volume data: give NAME="),
            (
                with(|o| o.volume = vec!["data=file:///x".into()]),
                POD.to_owned(),
                "--volume data=file",
            ),
            (
                with(|o| o.danger_plaintext_volume = vec!["data".into()]),
                POD.to_owned(),
                "the volume data is given twice",
            ),
            (
                with(|o| o.read_only_volume = vec!["other".into()]),
                POD.to_owned(),
                "--read-only-volume other: say what it is",
            ),
            (
                with(|o| {
                    o.format_volume.clear();
                    o.read_only_volume = vec!["data".into()];
                }),
                POD.to_owned(),
                "db.yaml:9: app: the volume data is read-only",
            ),
            (
                options(),
                POD.replace("mountPath: /data}", "mountPath: /data, subPath: x}"),
                "db.yaml:9: app: the claim data is shown in part",
            ),
        ] {
            let error = format!("{:#}", add(&options, &pod, "").unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let none = VolumeOptions { volume: vec![], format_volume: vec![], ..options() };
        let elsewhere =
            "[[volume]]\nname = \"data\"\nmounts = [\"app:/other\"]\ndanger_plaintext = true\n";
        let error = add(&none, POD, elsewhere).unwrap_err().to_string();
        assert!(
            error.contains("db.yaml:1: volumes.toml declares the volume data at /other"),
            "{error}"
        );
        let error = add(&none, POD, "[[volume]]\nname = 3\n").unwrap_err().to_string();
        assert!(error.contains("volumes.toml"), "{error}");
    }
}
