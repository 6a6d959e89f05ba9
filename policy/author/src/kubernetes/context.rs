//! What is known of a pod while its containers are read, and the notes for its owner.

use std::collections::{BTreeMap, BTreeSet};

use super::decode::Placed;
use super::error::{Place, ReadError};
use super::pod_spec::{FieldSelector, ResourceFieldSelector};
use super::quantity::Quantity;
use super::store::Store;
use crate::expand::Text;
use crate::workload::{Note, PodFact, PodName};

/// The remarks of one run, in the order in which they came up.
#[derive(Default)]
pub(super) struct Notes {
    all: Vec<Note>,
    seen: BTreeSet<Note>,
}

impl Notes {
    pub(super) fn add(&mut self, place: &Place, text: impl Into<String>) {
        let text = text.into();
        let text = if place.path.is_empty() { text } else { format!("{}: {text}", place.path) };
        let note = Note { file: place.file.to_string(), line: place.line, text };
        if self.seen.insert(note.clone()) {
            self.all.push(note);
        }
    }

    pub(super) fn into_list(self) -> Vec<Note> {
        self.all
    }
}

/// Quantities of a container, before the kubelet's defaults.
#[derive(Default)]
pub(super) struct Quantities {
    pub(super) limits: BTreeMap<String, Quantity>,
    pub(super) requests: BTreeMap<String, Quantity>,
}

/// A pod's facts that its containers refer to.
pub(super) struct PodContext<'a> {
    pub(super) store: &'a Store,
    pub(super) name: PodName,
    pub(super) namespace: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) node_name: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// Labels and annotations that the controller or the API server adds, with values of their own.
    pub(super) added_keys: &'static [&'static str],
    /// A job of indexed completion: every container has `JOB_COMPLETION_INDEX`.
    pub(super) indexed: bool,
    pub(super) service_links: bool,
    pub(super) resources: BTreeMap<String, Quantities>,
}

/// Labels that any pod may get when it is bound to a node.
const BOUND_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

impl PodContext<'_> {
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The value of a `fieldRef`.
    pub(super) fn field(
        &self,
        selector: &FieldSelector,
        notes: &mut Notes,
    ) -> Result<Text, ReadError> {
        let Placed { value: path, place } = &selector.field_path;
        let fact = |fact| Ok(Text::fact(fact));
        let known_or =
            |known: Option<&String>, fact| Ok(known.map_or_else(|| Text::fact(fact), Text::known));
        match path.as_str() {
            "metadata.name" => match &self.name {
                PodName::Exact(name) => Ok(Text::known(name)),
                PodName::Prefix(_) | PodName::Pattern(_) => fact(PodFact::PodName),
            },
            "metadata.namespace" => known_or(self.namespace.as_ref(), PodFact::Namespace),
            "metadata.uid" => fact(PodFact::Uid),
            "spec.nodeName" => known_or(self.node_name.as_ref(), PodFact::NodeName),
            // Without a name, the API server fills in "default".
            "spec.serviceAccountName" => {
                Ok(Text::known(self.service_account.as_deref().unwrap_or("default")))
            }
            "status.podIP" => fact(PodFact::Ip),
            "status.podIPs" => fact(PodFact::Ips),
            "status.hostIP" => fact(PodFact::HostIp),
            "status.hostIPs" => fact(PodFact::HostIps),
            _ => {
                if let Some(key) = subscript(path, "metadata.labels") {
                    Ok(self.metadata_value(key, &self.labels, "label", place, notes))
                } else if let Some(key) = subscript(path, "metadata.annotations") {
                    Ok(self.metadata_value(key, &self.annotations, "annotation", place, notes))
                } else {
                    Err(place.invalid(format!(
                        "{path:?} is no field that can be referred to here: use metadata.name, metadata.namespace, \
                         metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, \
                         spec.serviceAccountName, status.podIP, status.podIPs, status.hostIP or status.hostIPs"
                    )))
                }
            }
        }
    }

    fn metadata_value(
        &self,
        key: &str,
        values: &BTreeMap<String, String>,
        what: &str,
        place: &Place,
        notes: &mut Notes,
    ) -> Text {
        if self.added_keys.contains(&key) || BOUND_LABELS.contains(&key) {
            return Text::fact(PodFact::Label);
        }
        match values.get(key) {
            Some(value) => Text::known(value),
            None => {
                notes.add(
                    place,
                    format!("the pod has no {what} {key:?} in this file: the value is expected to be empty"),
                );
                Text::default()
            }
        }
    }

    /// The value of a `resourceFieldRef` in the container `own`, or in the one that it names.
    pub(super) fn resource(
        &self,
        selector: &ResourceFieldSelector,
        own: Option<&str>,
    ) -> Result<Text, ReadError> {
        let place = &selector.resource.place;
        let (name, place_of_name) = match (&selector.container_name, own) {
            (Some(name), _) => (name.value.as_str(), &name.place),
            (None, Some(own)) => (own, place),
            (None, None) => {
                return Err(place
                    .invalid("needs containerName: in a volume no container is meant by itself"));
            }
        };
        let Some(quantities) = self.resources.get(name) else {
            return Err(place_of_name
                .invalid(format!("the pod has no container {name:?}: correct containerName")));
        };
        let wanted = selector.resource.value.as_str();
        let quantity = match wanted.split_once('.') {
            Some(("limits", resource)) => match quantities.limits.get(resource) {
                Some(quantity) => Some((resource, *quantity)),
                // What the node has.
                None => return Ok(Text::fact(PodFact::Number)),
            },
            Some(("requests", resource)) => quantities
                .requests
                .get(resource)
                .or_else(|| quantities.limits.get(resource))
                .map(|quantity| (resource, *quantity)),
            _ => {
                return Err(place.invalid(format!(
                    "{wanted:?} is no resource: use limits.cpu, limits.memory, requests.cpu, requests.memory, \
                     limits.ephemeral-storage or requests.ephemeral-storage"
                )));
            }
        };
        let divisor = match &selector.divisor {
            Some(divisor) => Quantity::parse(&divisor.value.0).map_err(|problem| {
                divisor.place.invalid(format!("{:?} {problem}", divisor.value.0))
            })?,
            None => Quantity::ZERO,
        };
        let Some((resource, quantity)) = quantity else {
            return Ok(Text::known("0"));
        };
        let (value, divisor) = if resource == "cpu" {
            let divisor = match divisor.thousandths() {
                0 => 1000,
                divisor => divisor,
            };
            (quantity.thousandths(), divisor)
        } else {
            (quantity.units(), divisor.units().max(1))
        };
        Ok(Text::known(value.div_ceil(divisor).to_string()))
    }
}

/// `KEY` of `FIELD['KEY']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    let key = path.strip_prefix(field)?.strip_prefix('[')?.strip_suffix(']')?;
    let quoted = |quote: char| key.strip_prefix(quote)?.strip_suffix(quote);
    quoted('\'').or_else(|| quoted('"')).filter(|key| !key.is_empty())
}
