//! Spans of a pod's start for a collector of the node: OTLP over HTTP, in its JSON form (OpenTelemetry
//! Protocol 1.x, `opentelemetry-proto` and its JSON mapping).
//!
//! The collector is another program of the node: it is sent what the node knows anyway, and what it answers
//! is read up to its status. A pod never waits for it: what cannot be sent in time is dropped and said once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nacre_run_directory::report::{Passed, Report, State};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Time to connect, send and be answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// Batches on their way at most; more are dropped.
const MOST_BATCHES: u32 = 8;
/// Most of an answer that is read, in bytes: its status line is what counts.
const MOST_ANSWER: usize = 256;

/// A place for each batch that is on its way. One for the process, which has one pod and at most one collector.
static ON_THEIR_WAY: Semaphore = Semaphore::const_new(MOST_BATCHES as usize);

/// Sends spans to one collector.
#[derive(Debug, Clone)]
pub(crate) struct Exporter {
    collector: SocketAddr,
    host: String,
    has_failed: Arc<AtomicBool>,
}

/// Why spans did not arrive.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it did not answer in time")]
    Late,
    #[error("it answers {0:?} instead of taking them")]
    Refused(String),
}

/// A trace's id: 16 random bytes in hexadecimal.
pub(crate) fn new_trace() -> String {
    let mut bytes = [0; 16];
    // Never all zeros, which OpenTelemetry does not take for an id.
    while bytes == [0; 16] {
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        bytes[0] |= 1;
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Exporter {
    /// To the collector at that address.
    pub(crate) fn to(collector: SocketAddr) -> Exporter {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Exporter { collector, host, has_failed: Arc::default() }
    }

    /// Sends these phases, and the span of the whole start once that is over, in a task of their own. It ends when
    /// they have arrived or are given up. Whether they are on their way.
    pub(crate) fn export(&self, report: &Report, news: &[Passed], is_over: bool) -> bool {
        if news.is_empty() && !is_over {
            return false;
        }
        let Ok(permit) = ON_THEIR_WAY.try_acquire() else {
            tracing::warn!("spans are dropped: the collector {} is too slow", self.collector);
            return false;
        };
        let body = request(report, &self.host, news, is_over).to_string();
        let exporter = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let sent = tokio::time::timeout(PATIENCE, exporter.post(&body)).await;
            if let Err(error) = sent.unwrap_or(Err(ExportError::Late))
                && !exporter.has_failed.swap(true, Ordering::Relaxed)
            {
                tracing::warn!("spans do not reach the collector {}: {error}", exporter.collector);
            }
        });
        true
    }

    async fn post(&self, body: &str) -> Result<(), ExportError> {
        let mut stream = TcpStream::connect(self.collector).await?;
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.collector,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        (&mut stream).take(MOST_ANSWER as u64).read_to_end(&mut answer).await?;
        if is_success(&answer) {
            return Ok(());
        }
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = crate::error::printable(&String::from_utf8_lossy(line), 80);
        Err(ExportError::Refused(line))
    }
}

/// Waits until nothing is on its way any more; only a process that ends has reason to. Batches give up by themselves.
pub(crate) async fn all_sent() {
    let all = ON_THEIR_WAY.acquire_many(MOST_BATCHES);
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

/// Whether an answer of HTTP/1.x has a status of 2xx.
fn is_success(answer: &[u8]) -> bool {
    let Some(rest) = answer.strip_prefix(b"HTTP/1.") else { return false };
    matches!(rest, [b'0' | b'1', b' ', b'2', b'0'..=b'9', b'0'..=b'9', b' ' | b'\r', ..])
}

/// `ExportTraceServiceRequest`.
fn request(report: &Report, host: &str, news: &[Passed], is_over: bool) -> Value {
    let mut spans: Vec<_> = news.iter().map(|passed| span(report, passed)).collect();
    if is_over {
        spans.push(root(report));
    }
    let mut resource = vec![
        ("service.name", "nacre-shim"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &report.sandbox),
        ("host.name", host),
        ("nacre.sandbox.id", &report.sandbox),
        ("nacre.tee", &report.tee),
    ];
    if let Some(pod) = &report.pod {
        resource.push(("k8s.pod.name", &pod.name));
        resource.push(("k8s.namespace.name", &pod.namespace));
        resource.push(("k8s.pod.uid", &pod.uid));
    }
    let known = resource.into_iter().filter(|(_, value)| !value.is_empty());
    let resource: Vec<_> = known.map(|(key, value)| attribute(key, value)).collect();
    let scope = json!({ "name": "nacre.start", "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": scope, "spans": spans }],
    }] })
}

fn root(report: &Report) -> Value {
    let failed = report.state == State::Failed;
    json!({
        "traceId": report.trace,
        "spanId": span_id(report, "start"),
        "name": "pod start",
        "kind": 1,
        "startTimeUnixNano": nanoseconds(report.began_us),
        "endTimeUnixNano": nanoseconds(report.began_us.saturating_add(report.start_us())),
        "status": status(failed.then_some(&report.reason)),
    })
}

fn span(report: &Report, passed: &Passed) -> Value {
    let container = passed.container.as_deref();
    let around = passed.phase.within().filter(|phase| report.last(*phase, container).is_some());
    let parent = match around {
        Some(phase) => span_id(report, &name_of(phase.name(), container)),
        None => span_id(report, "start"),
    };
    let code = match &passed.failure {
        Some(failed) => failed.code.to_string(),
        None => passed.phase.code(),
    };
    let mut attributes = vec![attribute("nacre.code", &code)];
    if let Some(id) = container {
        attributes.push(attribute("container.id", id));
        let named = report.containers.iter().find(|container| container.id == id);
        if let Some(named) = named.filter(|named| !named.name.is_empty()) {
            attributes.push(attribute("k8s.container.name", &named.name));
            let (name, tag) = name_and_tag(&named.image);
            attributes.push(attribute("container.image.name", name));
            if let Some(tag) = tag {
                let tags = json!({ "values": [{ "stringValue": tag }] });
                let tags =
                    json!({ "key": "container.image.tags", "value": { "arrayValue": tags } });
                attributes.push(tags);
            }
        }
    }
    if let Some(failed) = &passed.failure {
        attributes.push(attribute("nacre.next_step", &failed.next_step));
    }
    json!({
        "traceId": report.trace,
        "spanId": span_id(report, &name_of(passed.phase.name(), container)),
        "parentSpanId": parent,
        "name": passed.phase.name(),
        "kind": 1,
        "startTimeUnixNano": nanoseconds(passed.began_us),
        "endTimeUnixNano": nanoseconds(passed.began_us.saturating_add(passed.took_us)),
        "attributes": attributes,
        "status": status(passed.failure.as_ref().map(|failed| &failed.message)),
    })
}

/// Error, or unset: that something went well is for the application to say, not for what measures it.
fn status(failed: Option<&String>) -> Value {
    failed.map_or(json!({}), |message| json!({ "code": 2, "message": message }))
}

/// The parts of an image's reference, without its digest. A colon before a slash is of a registry's port.
fn name_and_tag(image: &str) -> (&str, Option<&str>) {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

fn name_of(phase: &str, container: Option<&str>) -> String {
    format!("{phase} {}", container.unwrap_or("-"))
}

/// A span's id within its trace, 8 bytes in hexadecimal: FNV-1a of its name, so that a span that is sent later
/// finds the one around it. The trace's id is random; this needs to be no more than unique within it.
fn span_id(report: &Report, name: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in report.sandbox.bytes().chain([0]).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{:016x}", hash.max(1))
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// 64-bit numbers are strings in the JSON form of protobuf.
fn nanoseconds(microseconds: u64) -> String {
    (u128::from(microseconds) * 1000).to_string()
}

#[cfg(test)]
mod tests {
    use nacre_protocol::start_report::{Failure, Phase};
    use nacre_run_directory::report::{ContainerName, Failed};

    use super::*;

    fn passed(phase: Phase, container: Option<&str>) -> Passed {
        let container = container.map(str::to_owned);
        Passed { phase, container, began_us: 1_000_000, took_us: 500, failure: None }
    }

    #[test]
    fn spans_lie_within_each_other_across_batches() {
        let mut report = Report { sandbox: "s".into(), trace: new_trace(), ..Default::default() };
        report.containers.push(ContainerName {
            id: "c".into(),
            name: "app".into(),
            image: "i".into(),
        });
        report.add(passed(Phase::Create, Some("c")));
        let first = request(&report, "node", &report.phases, false);
        let pull = Failed { code: Failure::Registry, message: "m".into(), next_step: "n".into() };
        let pull = Passed { failure: Some(pull), ..passed(Phase::Pull, Some("c")) };
        report.add(pull.clone());
        let second = request(&report, "node", &[pull], true);
        let span = |batch: &Value, n: usize| {
            batch["resourceSpans"][0]["scopeSpans"][0]["spans"][n].clone()
        };
        let (create, pull, root) = (span(&first, 0), span(&second, 0), span(&second, 1));
        assert_eq!(create["parentSpanId"], root["spanId"]);
        assert_eq!(pull["parentSpanId"], create["spanId"]);
        assert_eq!(root.get("parentSpanId"), None);
        assert!([&create, &pull, &root].iter().all(|span| span["traceId"] == report.trace));
        assert_eq!(create["startTimeUnixNano"], "1000000000");
        assert_eq!(create["endTimeUnixNano"], "1000500000");
        assert_eq!(pull["status"], json!({ "code": 2, "message": "m" }));
        assert_eq!(pull["attributes"][0]["value"]["stringValue"], "NACRE-2102");
        assert_eq!(create["status"], json!({}), "unset");
        let resource = first["resourceSpans"][0]["resource"]["attributes"].as_array().unwrap();
        assert!(resource.contains(&attribute("host.name", "node")));
        assert!(resource.iter().all(|attribute| attribute["value"]["stringValue"] != ""));
    }

    #[test]
    fn an_image_is_told_by_name_and_tag() {
        for (image, expected) in [
            ("host:5000/a/b:1.2", ("host:5000/a/b", Some("1.2"))),
            ("host:5000/a/b", ("host:5000/a/b", None)),
            ("a:1@sha256:00", ("a", Some("1"))),
            ("host:5000/a@sha256:00", ("host:5000/a", None)),
            ("", ("", None)),
        ] {
            assert_eq!(name_and_tag(image), expected);
        }
    }

    #[test]
    fn ids_are_as_long_as_opentelemetry_wants_them() {
        let report = Report { sandbox: "s".into(), ..Default::default() };
        assert_eq!((new_trace().len(), span_id(&report, "x").len()), (32, 16));
        assert_ne!(new_trace(), new_trace());
    }

    #[test]
    fn only_a_status_of_success_counts() {
        for good in ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 202 \r\n", "HTTP/1.1 204\r\n"] {
            assert!(is_success(good.as_bytes()), "{good}");
        }
        for bad in ["", "HTTP/1.1 404 x\r\n", "HTTP/2 200 x", "200", "HTTP/1.1 2000 \r\n", "\0\0"] {
            assert!(!is_success(bad.as_bytes()), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_collector_that_stalls_or_is_absent_costs_nobody_anything() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let exporter = Exporter::to(listener.local_addr().unwrap());
        let report = Report::default();
        let sent = (0..20).filter(|_| exporter.export(&report, &[], true)).count();
        assert_eq!(sent, MOST_BATCHES as usize, "the others are dropped");
        drop(listener);
        all_sent().await;
        assert!(exporter.has_failed.load(Ordering::Relaxed));
    }
}
