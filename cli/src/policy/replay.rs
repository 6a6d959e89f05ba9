//! Recorded requests, judged again.

use std::path::Path;

use anyhow::{Context, bail};
use nacre_policy::{Event, Happening, Judge, Line, Outcome, Policy};
use serde::Serialize;
use serde_json::Value;

use crate::input::read_text;

/// Most lines of one recording.
const MOST_LINES: usize = 1_000_000;

/// A request that was judged again.
#[derive(Debug, Serialize)]
pub(super) struct Judged {
    /// Line in the recording, from 1.
    pub(super) line: usize,
    /// Name of the request.
    pub(super) request: String,
    /// Container that it is about, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container_id: Option<String>,
    /// Whether the agent allowed it then. Unknown of requests that were written by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allowed_then: Option<bool>,
    /// Whether this policy allows it.
    pub(super) allowed: bool,
    /// The denial, as the agent words it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) denial: Option<String>,
}

impl Judged {
    /// Whether the verdict is the recorded one.
    pub(super) fn is_as_recorded(&self) -> bool {
        self.allowed_then.is_none_or(|then| then == self.allowed)
    }
}

/// Judges a pod's recording from its beginning.
pub(super) fn replay(policy: &Policy, path: &Path) -> anyhow::Result<Vec<Judged>> {
    let text = read_text(path)?;
    let mut judge = Judge::new(policy.clone());
    let mut judged = Vec::new();
    let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let mut at = Counter { text: &text, done: 0, line: 1 };
    while let Some(value) = values.next() {
        let value = value.with_context(|| format!("{}: not JSON", path.display()))?;
        if judged.len() == MOST_LINES {
            bail!("{} has more than {MOST_LINES} requests", path.display());
        }
        at.begin();
        let place = || format!("{}:{}", path.display(), at.line);
        let by_hand = value.get("request").is_some() && value.get("outcome").is_none();
        match read_line(value, by_hand).with_context(place)? {
            Line::Event { event: Happening::Exited, container_id } => {
                judge.observe(&Event::Exited { container_id });
            }
            Line::Request { request, input, outcome, .. } => {
                let result = judge.judge_json(&request, &input);
                let allowed = result.is_ok();
                let denial = match result {
                    // What was denied then cannot have failed; it would be carried out now.
                    Ok(ticket) => {
                        judge.settle(ticket, outcome != Outcome::Failed);
                        None
                    }
                    Err(denial) => Some(denial.to_string()),
                };
                judged.push(Judged {
                    line: at.line,
                    request,
                    container_id: input
                        .get("container_id")
                        .and_then(Value::as_str)
                        .filter(|id| !id.is_empty())
                        .map(ToOwned::to_owned),
                    allowed_then: (!by_hand).then_some(outcome != Outcome::Denied),
                    allowed,
                    denial,
                });
            }
        }
        at.end(values.byte_offset());
    }
    Ok(judged)
}

/// A line of a recording; one that was written by hand may leave out how it ended.
fn read_line(mut value: Value, by_hand: bool) -> anyhow::Result<Line> {
    if by_hand && let Some(fields) = value.as_object_mut() {
        fields.insert("outcome".into(), "ok".into());
    }
    serde_json::from_value(value).context(
        "expected {\"request\":..., \"input\":..., \"outcome\":...} or {\"event\":..., \
         \"container_id\":...}",
    )
}

/// Counts lines as values are read.
struct Counter<'a> {
    text: &'a str,
    done: usize,
    line: usize,
}

impl Counter<'_> {
    /// The next value begins behind white space.
    fn begin(&mut self) {
        let rest = &self.text[self.done..];
        self.skip(rest.len() - rest.trim_start().len());
    }

    fn end(&mut self, offset: usize) {
        self.skip(offset.saturating_sub(self.done));
    }

    fn skip(&mut self, bytes: usize) {
        let skipped = &self.text.as_bytes()[self.done..self.done + bytes];
        self.line += skipped.iter().filter(|b| **b == b'\n').count();
        self.done += bytes;
    }
}
