//! Prometheus' text format, version 0.0.4 (prometheus.io, "Exposition formats").
//!
//! Every value comes from files that shims keep; a registry of live counters would have nothing to count.

use std::fmt::Write as _;

use nacre_protocol::start_report::Failure;
use nacre_run_directory::history::{BOUNDS_US, Histogram, Outcomes};

use super::Metrics;

/// The whole answer.
pub(super) fn text(metrics: &Metrics) -> String {
    let mut text = String::new();
    head(&mut text, "nacre_build_info", "gauge", "The program that tells this; always 1");
    line(&mut text, "nacre_build_info", &[("version", metrics.version)], "1");
    head(&mut text, "nacre_sandboxes", "gauge", "Sandboxes that have a run directory");
    for (condition, count) in &metrics.sandboxes {
        line(&mut text, "nacre_sandboxes", &[("state", condition.name())], &count.to_string());
    }
    let totals = &metrics.totals;
    outcomes(&mut text, "nacre_pod_starts_total", "Pods that started or failed to", totals.pods);
    let help = "Containers that started or failed to, the pods' own left out";
    outcomes(&mut text, "nacre_container_starts_total", help, totals.containers);
    head(&mut text, "nacre_start_failures_total", "counter", "Failures of starts, by code");
    for (code, count) in totals.failures.iter().filter(|(code, _)| is_word(code)) {
        // A newer version's shims may have counted one that this version does not know.
        let phase = code.parse::<Failure>().map_or("unknown", |failure| failure.phase().name());
        let labels = [("code", code.as_str()), ("phase", phase)];
        line(&mut text, "nacre_start_failures_total", &labels, &count.to_string());
    }
    let help = "How long phases of starts took that did not fail";
    head(&mut text, "nacre_start_phase_seconds", "histogram", help);
    for (phase, taken) in totals.phases.iter().filter(|(phase, _)| is_word(phase)) {
        histogram(&mut text, phase, taken);
    }
    let help = "Memory of the processes of all virtual machines";
    head(&mut text, "nacre_machine_resident_bytes", "gauge", help);
    line(&mut text, "nacre_machine_resident_bytes", &[], &metrics.resident_bytes.to_string());
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Whether it can be a code or a phase of any version.
fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Labels are words of Nacre's programs: none has a character to be escaped.
fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn outcomes(text: &mut String, name: &str, help: &str, outcomes: Outcomes) {
    head(text, name, "counter", help);
    line(text, name, &[("result", "started")], &outcomes.started.to_string());
    line(text, name, &[("result", "failed")], &outcomes.failed.to_string());
}

fn histogram(text: &mut String, phase: &str, taken: &Histogram) {
    const NAME: &str = "nacre_start_phase_seconds";
    let mut below = 0;
    let bounds = BOUNDS_US.iter().map(|bound| seconds(*bound)).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(taken.buckets) {
        below += count;
        let labels = [("phase", phase), ("le", bound.as_str())];
        line(text, &format!("{NAME}_bucket"), &labels, &below.to_string());
    }
    line(text, &format!("{NAME}_sum"), &[("phase", phase)], &seconds(taken.sum_us));
    line(text, &format!("{NAME}_count"), &[("phase", phase)], &taken.count().to_string());
}

fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use nacre_protocol::start_report::Phase;
    use nacre_run_directory::history::Totals;
    use nacre_run_directory::report::{Failed, Passed};

    use super::*;
    use crate::sandboxes::Condition;

    #[test]
    fn prometheus_finds_counters_histograms_and_gauges() {
        let mut totals = Totals::default();
        let passed = |took_us| Passed {
            phase: Phase::Boot,
            container: None,
            began_us: 0,
            took_us,
            failure: None,
        };
        for took_us in [5_000, 2_000_000, 90_000_000] {
            totals.add(&passed(took_us));
        }
        let (code, empty) = (Failure::Silent, String::new());
        let failure = Some(Failed { code, message: empty.clone(), next_step: empty });
        totals.add(&Passed { failure, ..passed(1) });
        totals.pods = Outcomes { started: 3, failed: 1 };
        totals.failures.insert("NACRE-9901".to_owned(), 5);
        totals.failures.insert("no\"word".to_owned(), 5);
        let sandboxes = [(Condition::Running, 2)].into();
        let text = text(&Metrics { version: "1.2.3", sandboxes, resident_bytes: 42, totals });
        assert!(!text.contains("no\"word"), "{text}");
        for line in [
            "nacre_build_info{version=\"1.2.3\"} 1",
            "nacre_start_failures_total{code=\"NACRE-9901\",phase=\"unknown\"} 5",
            "# TYPE nacre_sandboxes gauge",
            "nacre_sandboxes{state=\"running\"} 2",
            "nacre_pod_starts_total{result=\"failed\"} 1",
            "nacre_start_failures_total{code=\"NACRE-1301\",phase=\"firmware\"} 1",
            "nacre_start_phase_seconds_bucket{phase=\"boot\",le=\"0.01\"} 1",
            "nacre_start_phase_seconds_bucket{phase=\"boot\",le=\"2.5\"} 2",
            "nacre_start_phase_seconds_bucket{phase=\"boot\",le=\"60\"} 2",
            "nacre_start_phase_seconds_bucket{phase=\"boot\",le=\"120\"} 3",
            "nacre_start_phase_seconds_bucket{phase=\"boot\",le=\"+Inf\"} 3",
            "nacre_start_phase_seconds_sum{phase=\"boot\"} 92.005",
            "nacre_start_phase_seconds_count{phase=\"boot\"} 3",
            "nacre_machine_resident_bytes 42",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let names = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(names, 7, "each metric is described once");
    }
}
