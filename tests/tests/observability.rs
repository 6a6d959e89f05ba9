//! What a node tells of its pods: events, log, `nacre ps`, `inspect`, `logs`, metrics and spans.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nacre_tests::{Collector, Compression, Image, Layer, PATIENCE, World, container};
use serde_json::Value;

fn nacre(world: &World, words: &[&str]) -> String {
    let (text, status) = nacre_with_status(world, words);
    assert_eq!(status, 0, "nacre {words:?}: {text}");
    text
}

/// Commands say by their exit status whether something failed.
fn nacre_with_status(world: &World, words: &[&str]) -> (String, i32) {
    let program = world.products().nacre().display().to_string();
    let script = format!("{program} {} 2>&1; echo \"status $?\"", words.join(" "));
    let text = world.run(&["sh", "-c", &script]).unwrap();
    let (text, status) = text.trim_end().rsplit_once("status ").unwrap();
    (text.to_owned(), status.parse().unwrap())
}

fn json(world: &World, words: &[&str]) -> Value {
    let words = [words, &["--output", "json"]].concat();
    serde_json::from_str(&nacre_with_status(world, &words).0).unwrap()
}

async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn attribute<'v>(attributes: &'v Value, key: &str) -> Option<&'v str> {
    let attributes = attributes.as_array()?;
    let found = attributes.iter().find(|attribute| attribute["key"] == key)?;
    found["value"]["stringValue"].as_str()
}

fn phases(report: &Value) -> BTreeSet<&str> {
    let phases = report["phases"].as_array().unwrap();
    phases.iter().filter_map(|passed| passed["phase"].as_str()).collect()
}

fn number(metrics: &str, line: &str) -> u64 {
    let found = metrics.lines().find_map(|found| found.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn a_pod_that_starts_and_one_that_does_not_are_told_of_everywhere() {
    let world = World::new().await.unwrap();
    let collector = world.collector().unwrap();
    let endpoint = collector.endpoint();
    world
        .configure_shim(|text| format!("{text}\n[telemetry]\notlp_endpoint = {endpoint:?}\n"))
        .unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let other = Layer::new(Compression::Gzip).file("x", 0o644, b"x");
    let other = Image::busybox("gone").layer(other);
    let gone = world.push(&other).unwrap();
    world.pull(&gone).await.unwrap();
    let pod = world.pod("web").with(container("app", &image).idle()).with(container("gone", &gone));
    let pod = pod.await.unwrap();
    pod.start("app").await.unwrap();
    world.registry().lose(&world.registry().layers(&other).unwrap()[1]).unwrap();
    let id = pod.id().to_owned();

    every_phase_is_reported(&world, &id).await;
    a_failure_has_its_code_and_the_next_step(&world, &pod, &id).await;
    the_console_is_shown(&world, &id);
    prometheus_reads_the_same(&world).await;
    spans_make_one_trace(&collector, &id).await;

    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    what_is_gone_is_remembered(&world, &id).await;
    a_pod_that_never_was_is_told_of(&world).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

async fn every_phase_is_reported(world: &World, id: &str) {
    let short = &id[..8];
    let wanted = ["network", "vmm", "firmware", "kernel", "agent", "attestation", "policy", "boot"];
    let wanted = wanted.into_iter().chain(["sandbox", "guest-network", "pull", "create", "start"]);
    let wanted: BTreeSet<_> = wanted.collect();
    let report = until("the guest's part of the report", || {
        let report = json(world, &["inspect", short]);
        phases(&report).is_superset(&wanted).then_some(report)
    })
    .await;
    assert_eq!(report["condition"], "running");
    assert_eq!(report["tee"], "none");
    let passed = report["phases"].as_array().unwrap();
    let took = |phase: &str| {
        let found = passed.iter().find(|one| one["phase"] == phase && one["container"].is_null());
        found.unwrap()["took_us"].as_u64().unwrap()
    };
    assert!(took("boot") >= took("kernel") + took("agent"), "they lie within it");
    assert_eq!(took("boot"), took("firmware") + took("kernel") + took("agent"));
    let listed = nacre(world, &["ps"]);
    let line = listed.lines().find(|line| line.contains(&id[..12])).unwrap();
    assert!(line.contains("/web ") && line.contains("running"), "{listed}");
    let name = line.split_whitespace().next().unwrap();
    assert!(nacre(world, &["inspect", name]).contains(id), "it is found by the pod's name");
    let log = world.containerd_log().unwrap();
    assert!(log.contains("phase=vmm ms=") && log.contains("code=NACRE-1200"), "in the log as well");
}

async fn a_failure_has_its_code_and_the_next_step(
    world: &World,
    pod: &nacre_tests::Pod<'_>,
    id: &str,
) {
    let error = format!("{:#}", pod.start("gone").await.unwrap_err());
    eprintln!("{error}");
    assert!(error.contains("nacre: NACRE-2103: create container"), "{error}");
    assert!(error.contains("; next: correct the image's name"), "{error}");
    let whole = error.find("nacre: NACRE").map(|start| error.len() - start).unwrap();
    assert!(whole < 1024, "{whole} bytes do not fit an event");
    let (text, status) = nacre_with_status(world, &["inspect", id]);
    assert_eq!(status, 1, "something failed");
    eprintln!("{text}");
    for words in ["NACRE-2103", "failed: the registry has no such image", "next:   correct"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert!(world.containerd_log().unwrap().contains("code=NACRE-2103 failed:"));
}

fn the_console_is_shown(world: &World, id: &str) {
    let all = nacre(world, &["logs", id]);
    assert!(all.contains("serving"), "{all}");
    assert!(!all.chars().any(|c| c.is_control() && c != '\n'), "{all:?}");
    let agent = nacre(world, &["logs", id, "--agent"]);
    eprintln!("{agent}");
    let is_of_a_log =
        |line: &str| ["INFO", "WARN", "ERROR"].iter().any(|level| line.contains(level));
    assert!(agent.contains("serving") && agent.lines().all(is_of_a_log), "{agent}");
    nacre(world, &["logs", id, "--vmm"]);
    let (text, status) = nacre_with_status(world, &["logs", "no/such"]);
    assert_eq!(status, 2);
    assert!(text.contains("`nacre ps --all` lists them"), "{text}");
}

async fn prometheus_reads_the_same(world: &World) {
    let program = world.products().nacre().display().to_string();
    let serve = format!("exec {program} metrics serve --listen 127.0.0.1:9419 >/dev/null 2>&1 &");
    world.run(&["sh", "-c", &serve]).unwrap();
    let fetch = ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9419/metrics"];
    let metrics = until("an answer with the failure", || {
        let metrics = world.run(&fetch).ok()?;
        metrics.contains("NACRE-2103").then_some(metrics)
    })
    .await;
    assert_eq!(number(&metrics, "nacre_sandboxes{state=\"running\"}"), 1, "{metrics}");
    assert_eq!(number(&metrics, "nacre_pod_starts_total{result=\"started\"}"), 1);
    assert_eq!(number(&metrics, "nacre_container_starts_total{result=\"failed\"}"), 1);
    let failure = "nacre_start_failures_total{code=\"NACRE-2103\",phase=\"pull\"}";
    assert_eq!(number(&metrics, failure), 1);
    assert_eq!(number(&metrics, "nacre_start_phase_seconds_count{phase=\"boot\"}"), 1);
    assert!(number(&metrics, "nacre_machine_resident_bytes") > 32 << 20);
    let show = json(world, &["metrics", "show"]);
    assert_eq!(show["totals"]["failures"]["NACRE-2103"], 1);
    // The daemon is one of the world's: it goes with it.
}

async fn spans_make_one_trace(collector: &Collector, id: &str) {
    let spans = until("the span of the failed pull", || {
        let spans = collector.spans();
        let has = |name: &str| spans.iter().any(|span| span["name"] == name);
        (has("pod start") && has("start") && spans.iter().any(|span| span["status"]["code"] == 2))
            .then_some(spans)
    })
    .await;
    let traces: BTreeSet<_> = spans.iter().map(|span| span["traceId"].to_string()).collect();
    assert_eq!(traces.len(), 1, "one trace: {traces:?}");
    let by_id: BTreeMap<_, _> =
        spans.iter().map(|span| (span["spanId"].to_string(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "each span has an id of its own");
    let root = spans.iter().find(|span| span["name"] == "pod start").unwrap();
    for span in &spans {
        assert_eq!(attribute(&span["resource"], "nacre.sandbox.id"), Some(id));
        assert_eq!(attribute(&span["resource"], "k8s.pod.name"), Some("web"));
        let parent = span["parentSpanId"].to_string();
        assert!(span["name"] == "pod start" || by_id.contains_key(&parent), "{span} has no parent");
        let time = |key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
        assert!(time("endTimeUnixNano") >= time("startTimeUnixNano"));
    }
    let kernel = spans.iter().find(|span| span["name"] == "kernel").unwrap();
    let boot = by_id[&kernel["parentSpanId"].to_string()];
    assert_eq!((&boot["name"], &boot["parentSpanId"]), (&"boot".into(), &root["spanId"]));
    let failed = spans.iter().find(|span| span["status"]["code"] == 2).unwrap();
    assert_eq!(attribute(&failed["attributes"], "nacre.code"), Some("NACRE-2103"));
    assert_eq!(attribute(&failed["attributes"], "k8s.container.name"), Some("gone"));
}

async fn what_is_gone_is_remembered(world: &World, id: &str) {
    assert!(!nacre(world, &["ps"]).contains(&id[..12]));
    let all = nacre(world, &["ps", "--all"]);
    assert!(all.lines().any(|line| line.contains(&id[..12]) && line.contains("ended")), "{all}");
    assert!(nacre(world, &["logs", id, "--agent"]).contains("serving"));
}

async fn a_pod_that_never_was_is_told_of(world: &World) {
    world.configure_shim(|text| text.replace("/image", "/not-there")).unwrap();
    let error = format!("{:#}", world.pod("never").await.unwrap_err());
    eprintln!("{error}");
    assert!(error.contains("nacre: NACRE-1005: start sandbox"), "{error}");
    let known = until("its report", || {
        let all = json(world, &["ps", "--all"]);
        let all = all["sandboxes"].as_array().unwrap().clone();
        all.into_iter().find(|known| known["pod"]["name"] == "never")
    })
    .await;
    assert_eq!(known["condition"], "failed");
    assert!(known["reason"].as_str().unwrap().starts_with("NACRE-1005: "), "{known}");
    let metrics = nacre(world, &["metrics", "show"]);
    assert_eq!(number(&metrics, "nacre_pod_starts_total{result=\"failed\"}"), 1, "{metrics}");
}
