//! Kubernetes YAML, read as the API server and the kubelet would read it.
//!
//! Everything known is checked, everything unknown is an error with file, line and path: a field that is silently
//! skipped would be a promise that the policy does not keep. Objects of other kinds are skipped with a note.

mod containers;
mod context;
mod decode;
mod environment;
mod error;
mod objects;
mod pod_spec;
mod quantity;
mod security;
mod shapes;
mod store;
mod tree;
mod volumes;
mod workloads;

use std::collections::BTreeMap;
use std::rc::Rc;

pub use error::{Problem, ReadError};

use crate::workload::Reading;
use context::Notes;
use decode::{Cursor, Decode, Placed};
use error::Place;
use objects::{Claim, ConfigMap, Secret, ServiceAccount};
use store::Store;
use tree::Document;

/// A file of the owner.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Its name, for messages.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Bytes of all files of one call.
const TOTAL_LIMIT: usize = 64 << 20;

/// Reads all files together: a pod may refer to a `ConfigMap` of another file.
pub fn read(files: &[SourceFile]) -> Result<Reading, ReadError> {
    let total = files.iter().fold(0_usize, |sum, file| sum.saturating_add(file.content.len()));
    if let Some(last) = files.last()
        && total > TOTAL_LIMIT
    {
        let place = Place { file: Rc::from(last.name.as_str()), path: String::new(), line: 1 };
        return Err(place.error(Problem::Limit {
            what: "size of all files in bytes",
            limit: TOTAL_LIMIT,
            fix: "give fewer at a time",
        }));
    }
    let mut documents: Vec<(Rc<str>, Vec<Document>)> = Vec::new();
    for file in files {
        let name: Rc<str> = Rc::from(file.name.as_str());
        let parsed = tree::parse(&name, &file.content)?;
        documents.push((name, parsed));
    }
    let mut objects = Vec::new();
    for (file, documents) in &documents {
        for document in documents {
            collect(&Cursor::root(file, &document.root), document.index, &mut objects)?;
        }
    }

    let mut notes = Notes::default();
    let mut store = Store::default();
    for object in &objects {
        object.store(&mut store, &mut notes)?;
    }
    let mut workloads = Vec::new();
    let mut seen = BTreeMap::new();
    for object in &objects {
        if !object.is_workload() {
            continue;
        }
        let workload =
            workloads::workload(&object.kind, &object.cursor, object.document, &store, &mut notes)?;
        let key = (workload.kind.clone(), workload.namespace.clone(), workload.object_name.clone());
        let place = object.cursor.place();
        if let Some((file, line)) = seen.insert(key, (place.file.clone(), place.line)) {
            return Err(place.invalid(format!(
                "{} {:?} stands twice, first at {file}:{line}: remove one",
                workload.kind, workload.object_name
            )));
        }
        workloads.push(workload);
    }
    let (config_maps, secrets) = store.into_objects();
    Ok(Reading { workloads, config_maps, secrets, notes: notes.into_list() })
}

/// An object of a file: a document, or an item of a `List`.
struct Object<'a> {
    kind: String,
    api_version: String,
    document: usize,
    cursor: Cursor<'a>,
}

fn collect<'a>(
    cursor: &Cursor<'a>,
    document: usize,
    objects: &mut Vec<Object<'a>>,
) -> Result<(), ReadError> {
    let kind: Placed<String> = cursor.field("kind")?;
    let api_version: Placed<String> = cursor.field("apiVersion")?;
    if kind.value == "List" && api_version.value == "v1" {
        cursor.allow(&["apiVersion", "kind", "items"], &[("metadata", &decode::Shape::Any)])?;
        let Some(items) = cursor.get("items")? else {
            return Ok(());
        };
        return items.items()?.iter().try_for_each(|item| collect(item, document, objects));
    }
    check_kind(&kind, &api_version)?;
    objects.push(Object {
        kind: kind.value,
        api_version: api_version.value,
        document,
        cursor: cursor.clone(),
    });
    Ok(())
}

/// Kinds of Kubernetes' own groups that make no pods.
const OTHER_KINDS: [(&str, &[&str]); 3] = [
    (
        "v1",
        &[
            "Binding",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ResourceQuota",
            "Secret",
            "Service",
            "ServiceAccount",
        ],
    ),
    ("apps/v1", &["ControllerRevision"]),
    ("batch/v1", &[]),
];

/// Versions in which workloads once stood and which Kubernetes no longer serves.
const REMOVED_VERSIONS: [&str; 5] =
    ["extensions/v1beta1", "apps/v1beta1", "apps/v1beta2", "batch/v1beta1", "batch/v2alpha1"];

/// Refuses slips in kind or version of the groups that make pods: the object would be skipped.
fn check_kind(kind: &Placed<String>, api_version: &Placed<String>) -> Result<(), ReadError> {
    let workload = workloads::KINDS.iter().find(|(name, _)| *name == kind.value);
    if REMOVED_VERSIONS.contains(&api_version.value.as_str())
        && let Some((_, current)) = workload
    {
        return Err(api_version.place.invalid(format!(
            "{} is no longer served by Kubernetes: write {current}",
            api_version.value
        )));
    }
    let Some((version, others)) =
        OTHER_KINDS.iter().find(|(version, _)| *version == api_version.value)
    else {
        return Ok(());
    };
    match workload {
        Some((_, right)) if right == version => Ok(()),
        Some((name, right)) => {
            Err(api_version.place.invalid(format!("{version} has no {name}: write {right}")))
        }
        None if others.contains(&kind.value.as_str()) => Ok(()),
        None if kind.value.strip_suffix("List").is_some() => {
            Err(kind.place.invalid("is not read: write kind: List, with apiVersion: v1"))
        }
        None => {
            let known: Vec<_> = workloads::KINDS
                .iter()
                .filter(|(_, group)| group == version)
                .map(|(name, _)| *name)
                .chain(others.iter().copied())
                .collect();
            Err(kind.place.invalid(format!(
                "{version} has no kind {:?}: it has {}",
                kind.value,
                known.join(", ")
            )))
        }
    }
}

impl Object<'_> {
    fn is_workload(&self) -> bool {
        workloads::KINDS.contains(&(&self.kind, &self.api_version))
    }

    /// Keeps what pods may refer to; says what is skipped.
    fn store(&self, store: &mut Store, notes: &mut Notes) -> Result<(), ReadError> {
        let place = self.cursor.place();
        match (self.api_version.as_str(), self.kind.as_str()) {
            ("v1", "ConfigMap") => store.add_config_map(place, ConfigMap::decode(&self.cursor)?),
            ("v1", "Secret") => store.add_secret(place, Secret::decode(&self.cursor)?),
            ("v1", "ServiceAccount") => store.add_account(&ServiceAccount::decode(&self.cursor)?),
            ("v1", "PersistentVolumeClaim") => store.add_claim(&Claim::decode(&self.cursor)?),
            _ if self.is_workload() => Ok(()),
            (version, kind) => {
                notes.add(place, skipped(version, kind));
                Ok(())
            }
        }
    }
}

fn skipped(version: &str, kind: &str) -> String {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let own = matches!(group, "" | "apps" | "batch" | "policy" | "autoscaling")
        || group.ends_with(".k8s.io");
    match kind {
        "LimitRange" => "LimitRange is skipped: if it changes the resources of pods, write them into the pods, or the \
                         agent will refuse them"
            .to_owned(),
        _ if own => format!("{kind} is skipped: it makes no pods"),
        _ => format!(
            "{kind} ({version}) is not known and is skipped: pods that it makes get no policy"
        ),
    }
}
