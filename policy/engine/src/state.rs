//! What happened to the pod so far, as rules may ask for it.
//!
//! The agent's own requests move this state, each when it was carried out; a request that was denied
//! or failed leaves no trace. Its shape and size are fixed: nothing of a request gets in but
//! identifiers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use nacre_protocol::channel::{ANNOTATION_CONTAINER_TYPE, CONTAINER_TYPE_CONTAINER};
use regorus::Value;

/// More containers than a pod has. The agent allows fewer.
const MOST_CONTAINERS: usize = 1024;

/// Annotation with the Kubernetes name of a container.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// Annotation with the pod's namespace.
const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// Annotation with the pod's name.
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";

/// Phase of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Created,
    Running,
    Exited,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

#[derive(Debug, Clone)]
struct Container {
    name: String,
    namespace: String,
    pod_name: String,
    pod: bool,
    phase: Phase,
}

/// The pod as the agent has made it. See the crate's documentation for what rules get.
#[derive(Debug, Clone)]
pub(crate) struct State {
    sandbox: Option<String>,
    namespace: String,
    pod_name: String,
    sealed: bool,
    containers: BTreeMap<String, Container>,
    /// Names of containers that have ended at least once.
    ended: BTreeSet<String>,
    value: Value,
}

/// A change that waits for its request to succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    CreateSandbox,
    CreateContainer(String),
    StartContainer(String),
    RemoveContainer(String),
}

impl Default for State {
    fn default() -> Self {
        let mut state = Self {
            sandbox: None,
            namespace: String::new(),
            pod_name: String::new(),
            sealed: false,
            containers: BTreeMap::new(),
            ended: BTreeSet::new(),
            value: Value::Null,
        };
        state.refresh();
        state
    }
}

impl State {
    /// `input.nacre.state`.
    pub(crate) fn value(&self) -> Value {
        self.value.clone()
    }

    /// Reserves what an allowed request is about to make. `None` if there is no room.
    pub(crate) fn begin(&mut self, request: &str, input: &Value) -> Option<Change> {
        let id = || text(&input["container_id"]);
        let change = match request {
            "CreateSandboxRequest" => {
                self.sandbox.get_or_insert_with(|| text(&input["sandbox_id"]));
                Change::CreateSandbox
            }
            "CreateContainerRequest" => {
                if self.containers.len() >= MOST_CONTAINERS {
                    return None;
                }
                let annotations = &input["OCI"]["Annotations"];
                let container = Container {
                    name: text(&annotations[CONTAINER_NAME]),
                    namespace: text(&annotations[NAMESPACE]),
                    pod_name: text(&annotations[POD_NAME]),
                    pod: text(&annotations[ANNOTATION_CONTAINER_TYPE]) != CONTAINER_TYPE_CONTAINER,
                    phase: Phase::Creating,
                };
                // A container that exists stays as it is: the agent will refuse the second.
                match self.containers.entry(id()) {
                    Entry::Occupied(_) => Change::None,
                    Entry::Vacant(place) => {
                        place.insert(container);
                        Change::CreateContainer(id())
                    }
                }
            }
            "StartContainerRequest" => Change::StartContainer(id()),
            "RemoveContainerRequest" => Change::RemoveContainer(id()),
            _ => return Some(Change::None),
        };
        self.refresh();
        Some(change)
    }

    /// Ends what [`State::begin`] began.
    pub(crate) fn end(&mut self, change: &Change, succeeded: bool) {
        match (change, succeeded) {
            (Change::None, _)
            | (Change::CreateSandbox, true)
            | (Change::StartContainer(_) | Change::RemoveContainer(_), false) => return,
            (Change::CreateSandbox, false) => self.sandbox = None,
            (Change::CreateContainer(id), true) => {
                self.advance(id, Phase::Created);
                self.settle(id);
            }
            (Change::StartContainer(id), true) => self.advance(id, Phase::Running),
            (Change::CreateContainer(id), false) | (Change::RemoveContainer(id), true) => {
                self.containers.remove(id);
            }
        }
        self.refresh();
    }

    /// The container's first process has ended.
    pub(crate) fn exited(&mut self, id: &str) {
        let known = self.containers.get(id).is_some_and(|c| c.phase != Phase::Exited);
        if known {
            self.advance(id, Phase::Exited);
            if let Some(container) = self.containers.get(id)
                && self.ended.len() < MOST_CONTAINERS
            {
                self.ended.insert(container.name.clone());
            }
            self.refresh();
        }
    }

    /// Kubernetes' name of a container, if it has one.
    pub(crate) fn name_of(&self, id: &str) -> Option<&str> {
        let name = self.containers.get(id).map(|container| container.name.as_str());
        name.filter(|name| !name.is_empty())
    }

    /// Phases only move on: a start that is answered after the container ended does not revive it.
    fn advance(&mut self, id: &str, phase: Phase) {
        if let Some(container) = self.containers.get_mut(id)
            && (container.phase as u8) < (phase as u8)
        {
            container.phase = phase;
        }
    }

    /// The first container says what the pod is called; the first that is not the pod's own ends the
    /// time in which the host may set up the pod.
    fn settle(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        self.sealed |= !container.pod;
        if self.namespace.is_empty() && self.pod_name.is_empty() {
            self.namespace.clone_from(&container.namespace);
            self.pod_name.clone_from(&container.pod_name);
        }
    }

    fn refresh(&mut self) {
        let sealed = self.sealed || self.containers.values().any(|container| !container.pod);
        let containers = self.containers.iter().map(|(id, container)| {
            let entry = object([
                ("name", container.name.as_str().into()),
                ("pod", container.pod.into()),
                ("phase", container.phase.name().into()),
            ]);
            (Value::from(id.as_str()), entry)
        });
        let live = self.containers.values().filter(|c| !c.pod && c.phase != Phase::Exited);
        let live = live.map(|c| (Value::from(c.name.as_str()), Value::from(c.phase.name())));
        let ended = self.ended.iter().map(|name| (Value::from(name.as_str()), Value::from(true)));
        self.value = object([
            ("sandbox", self.sandbox.as_deref().map_or(Value::Null, Value::from)),
            ("namespace", self.namespace.as_str().into()),
            ("pod_name", self.pod_name.as_str().into()),
            ("sealed", sealed.into()),
            ("containers", containers.collect::<BTreeMap<_, _>>().into()),
            ("live", live.collect::<BTreeMap<_, _>>().into()),
            ("ended", ended.collect::<BTreeMap<_, _>>().into()),
        ]);
    }
}

/// An object with the given keys.
pub(crate) fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.into_iter().map(|(key, value)| (Value::from(key), value));
    entries.collect::<BTreeMap<_, _>>().into()
}

/// A string; empty for anything else.
pub(crate) fn text(value: &Value) -> String {
    value.as_string().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(id: &str, name: &str, kind: &str) -> Value {
        let json = serde_json::json!({
            "container_id": id,
            "OCI": { "Annotations": {
                CONTAINER_NAME: name, ANNOTATION_CONTAINER_TYPE: kind, NAMESPACE: "ns", POD_NAME: "pod",
            }},
        });
        json.into()
    }

    fn phase(state: &State, id: &str) -> String {
        text(&state.value()["containers"][id]["phase"])
    }

    #[test]
    fn a_container_lives_through_its_phases() {
        let mut state = State::default();
        let sandbox: Value = serde_json::json!({ "sandbox_id": "s" }).into();
        let change = state.begin("CreateSandboxRequest", &sandbox).unwrap();
        state.end(&change, true);
        assert_eq!(text(&state.value()["sandbox"]), "s");
        let change =
            state.begin("CreateContainerRequest", &create("a", "app", "container")).unwrap();
        assert_eq!(phase(&state, "a"), "creating");
        state.end(&change, true);
        assert_eq!(phase(&state, "a"), "created");
        assert_eq!(state.value()["sealed"], true.into());
        let id: Value = serde_json::json!({ "container_id": "a" }).into();
        let start = state.begin("StartContainerRequest", &id).unwrap();
        state.exited("a");
        state.end(&start, true);
        assert_eq!(phase(&state, "a"), "exited", "it does not run again");
        assert_eq!(state.name_of("a"), Some("app"));
        let change = state.begin("RemoveContainerRequest", &id).unwrap();
        state.end(&change, true);
        assert_eq!(phase(&state, "a"), "");
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let mut state = State::default();
        let before = state.value();
        let sandbox: Value = serde_json::json!({ "sandbox_id": "s" }).into();
        let change = state.begin("CreateSandboxRequest", &sandbox).unwrap();
        state.end(&change, false);
        assert_eq!(state.value(), before);
        let request = create("a", "app", "container");
        let change = state.begin("CreateContainerRequest", &request).unwrap();
        assert_eq!(state.value()["sealed"], true.into(), "already while it is made");
        state.end(&change, false);
        assert_eq!(state.value(), before);
    }

    #[test]
    fn a_second_container_of_an_id_does_not_touch_the_first() {
        let mut state = State::default();
        let first =
            state.begin("CreateContainerRequest", &create("a", "app", "container")).unwrap();
        state.end(&first, true);
        let second =
            state.begin("CreateContainerRequest", &create("a", "other", "container")).unwrap();
        state.end(&second, false);
        assert_eq!((phase(&state, "a").as_str(), state.name_of("a")), ("created", Some("app")));
    }

    #[test]
    fn there_is_a_bound() {
        let mut state = State::default();
        for number in 0..MOST_CONTAINERS {
            let request = create(&number.to_string(), "app", "container");
            assert!(state.begin("CreateContainerRequest", &request).is_some());
        }
        assert!(
            state.begin("CreateContainerRequest", &create("more", "app", "container")).is_none()
        );
    }
}
