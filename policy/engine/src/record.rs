//! Recorded requests: one JSON object a line, to be replayed by `nacre policy test`.

use regorus::Value;
use serde::{Deserialize, Serialize};

use crate::denial::Denial;
use crate::judge::Event;

/// One line of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Line {
    /// A request and how it ended.
    Request {
        /// Name of its message, such as `CreateContainerRequest`.
        request: String,
        /// What the policy saw.
        input: serde_json::Value,
        /// `ok`, `failed` or `denied`.
        outcome: Outcome,
        /// Why it failed or was denied.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Something that happened by itself.
    Event {
        /// `exited`.
        event: Happening,
        /// Where.
        container_id: String,
    },
}

/// How a recorded request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was allowed and carried out.
    Ok,
    /// It was allowed, but did not succeed.
    Failed,
    /// The policy did not allow it.
    Denied,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// A container's first process has ended.
    Exited,
}

/// A request that is being recorded.
#[derive(Debug)]
pub(crate) struct Record(Line);

impl Record {
    pub(crate) fn new(request: &str, input: &Value) -> Self {
        let mut input = serde_json::to_value(input).unwrap_or_default();
        // What goes through a stream is the workload's.
        if let Some(data) = input.get_mut("data") {
            *data = serde_json::Value::Array(Vec::new());
        }
        let request = request.to_owned();
        Self(Line::Request { request, input, outcome: Outcome::Ok, error: None })
    }

    pub(crate) fn event(event: &Event) -> Self {
        let Event::Exited { container_id } = event;
        Self(Line::Event { event: Happening::Exited, container_id: container_id.clone() })
    }

    pub(crate) fn ended(self, result: Result<(), String>) -> Self {
        match result {
            Ok(()) => self,
            Err(why) => self.with(Outcome::Failed, why),
        }
    }

    pub(crate) fn denied(self, denial: &Denial) -> Self {
        self.with(Outcome::Denied, denial.to_string())
    }

    fn with(mut self, ended: Outcome, why: String) -> Self {
        if let Line::Request { outcome, error, .. } = &mut self.0 {
            *outcome = ended;
            *error = Some(why);
        }
        self
    }

    pub(crate) fn line(&self) -> String {
        let mut line = serde_json::to_string(&self.0).unwrap_or_default();
        line.push('\n');
        line
    }
}
