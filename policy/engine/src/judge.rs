//! One pod's policy and what happened to the pod: judges requests in their order.

use json_patch::Patch;
use nacre_protocol::channel::{ANNOTATION_CONTAINER_TYPE, CONTAINER_TYPE_SANDBOX};
use regorus::Value;

use crate::denial::{self, Denial, Problem, Source};
use crate::policy::Policy;
use crate::state::{CONTAINER_NAME, Change, State, object, text};

/// Largest data that a document may keep for itself between requests, in bytes of JSON.
const LARGEST_DATA: usize = 1 << 20;
/// Most containers that a denial is compared with to find the closest.
const MOST_CANDIDATES: usize = 64;

/// Something that happened by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first process of a container has ended.
    Exited {
        /// The container.
        container_id: String,
    },
}

/// An allowed request that is being carried out. Give it back with [`Judge::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a request's effect on the policy's state depends on whether it succeeded"]
pub struct Ticket(u64);

/// Judges the requests of one pod.
#[derive(Debug)]
pub struct Judge {
    policy: Policy,
    state: State,
    next: u64,
    /// Allowed requests that may still fail, with their effects.
    open: Vec<Open>,
    /// The document's own data without the effects of `open`.
    settled: Option<Value>,
}

#[derive(Debug)]
struct Open {
    ticket: u64,
    change: Change,
    /// Patches of the document's own data: of this request, in order. `None`: it has failed.
    ops: Option<Value>,
    done: bool,
}

/// What a rule decided.
enum Verdict {
    Allowed(Option<Value>),
    Denied,
}

impl Judge {
    /// A judge of a pod to which nothing has happened yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::default(), next: 0, open: Vec::new(), settled: None }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Judges a request that was recorded as JSON.
    ///
    /// # Errors
    /// [`Denial`]; the state is as before.
    pub fn judge_json(
        &mut self,
        request: &str,
        input: &serde_json::Value,
    ) -> Result<Ticket, Denial> {
        self.judge(request, &Value::from(input.clone()))
    }

    /// Judges a request by its input, see [`AgentRequest::input`](crate::AgentRequest::input). Nothing but
    /// `true`, or an object with `allowed: true`, allows.
    ///
    /// # Errors
    /// [`Denial`]; the state is as before.
    pub fn judge(&mut self, request: &str, input: &Value) -> Result<Ticket, Denial> {
        let with_state = self.with_state(input, None);
        let verdict = match self.policy.evaluate(request, with_state) {
            Ok(value) => verdict(value),
            Err(error) => {
                let why = format!("the rule {request} failed: {error}");
                return Err(Denial::because(request, self.container_of(input), why));
            }
        };
        let Verdict::Allowed(ops) = verdict else { return Err(self.explain(request, input)) };
        let ops = ops.filter(|ops| ops.as_array().is_ok_and(|ops| !ops.is_empty()));
        if let Some(ops) = &ops {
            let current = self.policy.base_data();
            patched(&current, ops)
                .and_then(|data| self.policy.set_base_data(data))
                .map_err(|why| Denial::because(request, self.container_of(input), why))?;
            self.settled.get_or_insert(current);
        }
        let Some(change) = self.state.begin(request, input) else {
            self.restore(request)?;
            let why = "the pod has as many containers as a policy can keep track of";
            return Err(Denial::because(request, None, why));
        };
        let ticket = self.next;
        self.next += 1;
        if change != Change::None || ops.is_some() {
            self.open.push(Open { ticket, change, ops, done: false });
        }
        Ok(Ticket(ticket))
    }

    /// Ends a request: what it would have changed holds if it succeeded, and is undone if not.
    pub fn settle(&mut self, ticket: Ticket, succeeded: bool) {
        let Ticket(number) = ticket;
        let Some(open) = self.open.iter_mut().find(|open| open.ticket == number) else { return };
        let had_ops = open.ops.is_some();
        self.state.end(&open.change, succeeded);
        open.done = true;
        if !succeeded {
            open.ops = None;
            if had_ops {
                // What cannot be replayed without this request was built on it: it is gone, too.
                let _ = self.restore("");
            }
        }
        self.drop_done();
    }

    /// Takes note of what happened by itself.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Exited { container_id } => self.state.exited(container_id),
        }
    }

    /// Data as if only the requests that have not failed had been made.
    fn restore(&mut self, request: &str) -> Result<(), Denial> {
        let Some(settled) = self.settled.clone() else { return Ok(()) };
        let data = self
            .open
            .iter()
            .filter_map(|open| open.ops.as_ref())
            .fold(settled, |data, ops| patched(&data, ops).unwrap_or(data));
        self.policy.set_base_data(data).map_err(|why| Denial::because(request, None, why))
    }

    /// Requests that ended need not be replayed once none before them is open.
    fn drop_done(&mut self) {
        while self.open.first().is_some_and(|open| open.done) {
            let open = self.open.remove(0);
            if let (Some(settled), Some(ops)) = (&self.settled, &open.ops) {
                self.settled = Some(patched(settled, ops).unwrap_or_else(|_| settled.clone()));
            }
        }
        if self.open.iter().all(|open| open.ops.is_none()) {
            self.settled = None;
        }
    }

    /// The input with what the rules may know beside it: `input.nacre.state`, that the agent asks
    /// [`ImageUserRequest`](crate::ImageUserRequest) and, while a denial is being explained, the name of the
    /// container that this one is compared with.
    fn with_state(&self, input: &Value, assume: Option<&str>) -> Value {
        let mut input = input.clone();
        let (state, asks) = (("state", self.state.value()), ("image_user", true.into()));
        let facts = match assume {
            None => object([state, asks]),
            Some(name) => object([state, asks, ("assume", name.into())]),
        };
        if let Ok(fields) = input.as_object_mut() {
            fields.insert("nacre".into(), facts);
        }
        input
    }

    fn container_of(&self, input: &Value) -> Option<String> {
        let id = text(&input["container_id"]);
        let annotated = text(&input["OCI"]["Annotations"][CONTAINER_NAME]);
        if !annotated.is_empty() {
            return Some(annotated);
        }
        if id.is_empty() {
            return None;
        }
        Some(self.state.name_of(&id).map_or(id.clone(), str::to_owned))
    }

    /// Finds the reasons. A policy gives them in rules named as the request's, with `_problems`.
    fn explain(&mut self, request: &str, input: &Value) -> Denial {
        let container = self.container_of(input);
        let problems = self.problems(request, input, None, container.as_deref());
        let known = container.as_deref().is_some_and(|name| self.has_container(name));
        let of_pod =
            text(&input["OCI"]["Annotations"][ANNOTATION_CONTAINER_TYPE]) == CONTAINER_TYPE_SANDBOX;
        if request == "CreateContainerRequest"
            && !known
            && !of_pod
            && !text(&input["container_id"]).is_empty()
            && let Some(closest) = self.closest(input)
        {
            let (name, mut closer) = closest;
            let mut all = problems;
            closer.retain(|problem| !all.contains(problem));
            let hint = format!("container {name:?} of the policy is the closest");
            match closer.first_mut() {
                Some(first) if first.fix.is_empty() => first.fix = hint,
                Some(first) => first.fix = format!("{hint}; {}", first.fix),
                None => closer.push(Problem {
                    fix: format!("{hint}: only the name is another"),
                    ..Problem::default()
                }),
            }
            all.extend(closer);
            return Denial { request: request.into(), container, problems: all };
        }
        if problems.is_empty() {
            let why = "no rule of the policy allows it";
            return Denial::because(request, container, why);
        }
        Denial { request: request.into(), container, problems }
    }

    fn has_container(&self, name: &str) -> bool {
        self.policy.data()["containers"]
            .as_object()
            .is_ok_and(|all| all.get(&name.into()).is_some())
    }

    fn problems(
        &mut self,
        request: &str,
        input: &Value,
        assume: Option<&str>,
        container: Option<&str>,
    ) -> Vec<Problem> {
        let rule = format!("{request}_problems");
        let input = self.with_state(input, assume);
        let found = self.policy.evaluate(&rule, input).ok().flatten().unwrap_or(Value::Null);
        denial::read(&found, &Source { data: self.policy.data(), container })
    }

    /// The container of the policy with the fewest differences.
    fn closest(&mut self, input: &Value) -> Option<(String, Vec<Problem>)> {
        let containers = self.policy.data()["containers"].as_object().ok()?;
        let names = containers.iter().take(MOST_CANDIDATES).map(|(name, _)| text(name));
        let names: Vec<String> = names.collect();
        let each = names.into_iter().map(|name| {
            let problems = self.problems("CreateContainerRequest", input, Some(&name), Some(&name));
            (name, problems)
        });
        each.min_by_key(|(_, problems)| problems.len())
    }
}

fn verdict(value: Option<Value>) -> Verdict {
    match value {
        Some(Value::Bool(true)) => Verdict::Allowed(None),
        Some(object @ Value::Object(_)) if object["allowed"] == Value::Bool(true) => {
            Verdict::Allowed(Some(object["ops"].clone()))
        }
        _ => Verdict::Denied,
    }
}

/// Applies a JSON patch (RFC 6902) to a document's own data. What is under `/nacre` is not its own.
fn patched(data: &Value, ops: &Value) -> Result<Value, String> {
    let failed = |e: &dyn std::fmt::Display| format!("the policy's ops cannot be applied: {e}");
    let ops = serde_json::to_value(ops).map_err(|e| failed(&e))?;
    let patch: Patch = serde_json::from_value(ops).map_err(|e| failed(&e))?;
    let outside = |path: &str| path != "/nacre" && !path.starts_with("/nacre/") && !path.is_empty();
    if !patch.iter().all(|operation| outside(operation.path().as_str())) {
        return Err(failed(&"they reach beyond the policy's own data"));
    }
    let Value::Object(fields) = data else { return Err(failed(&"there is no data")) };
    let ours = fields.get(&"nacre".into()).cloned();
    let mut own = data.clone();
    if let Ok(fields) = own.as_object_mut() {
        fields.remove(&"nacre".into());
    }
    let mut document = serde_json::to_value(&own).map_err(|e| failed(&e))?;
    json_patch::patch(&mut document, &patch).map_err(|e| failed(&e))?;
    if document.to_string().len() > LARGEST_DATA {
        return Err(failed(&format!(
            "the policy's data would be larger than {LARGEST_DATA} bytes"
        )));
    }
    let mut changed = Value::from(document);
    match (changed.as_object_mut(), ours) {
        (Err(_), _) => return Err(failed(&"the data is no longer an object")),
        (Ok(fields), Some(ours)) => {
            fields.insert("nacre".into(), ours);
        }
        (Ok(_), None) => {}
    }
    Ok(changed)
}
