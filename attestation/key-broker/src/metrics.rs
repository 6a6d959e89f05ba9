//! Numbers for Prometheus. They name no resource and no client.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Result {
    Done,
    Refused,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: Result,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttestationLabels {
    result: Result,
    tee: &'static str,
    /// The first check that failed, else empty.
    failure: &'static str,
    emulated: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: u16,
}

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    challenges: Family<Labels, Counter>,
    attestations: Family<AttestationLabels, Counter>,
    resources: Family<Labels, Counter>,
    answers: Family<StatusLabels, Counter>,
    limited: Counter,
    appraisal_seconds: Histogram,
    sessions: Gauge,
    connections: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::default(),
            challenges: Family::default(),
            attestations: Family::default(),
            resources: Family::default(),
            answers: Family::default(),
            limited: Counter::default(),
            appraisal_seconds: Histogram::new([
                0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.064, 0.25, 1.0, 4.0,
            ]),
            sessions: Gauge::default(),
            connections: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Metrics {
        let registry = &mut self.registry;
        registry.register("kbs_challenges", "Requests for a challenge", self.challenges.clone());
        registry.register("kbs_attestations", "Evidence appraised", self.attestations.clone());
        registry.register("kbs_resources", "Requests for a resource", self.resources.clone());
        registry.register("kbs_answers", "HTTP answers by status", self.answers.clone());
        registry.register(
            "kbs_limited",
            "Requests refused because their client asks too often",
            self.limited.clone(),
        );
        registry.register(
            "kbs_appraisal_seconds",
            "Time of one appraisal, with fetching collateral",
            self.appraisal_seconds.clone(),
        );
        registry.register("kbs_sessions", "Sessions at present", self.sessions.clone());
        registry.register("kbs_connections", "Connections at present", self.connections.clone());
        self
    }

    pub(crate) fn challenge(&self, result: Result) {
        self.challenges.get_or_create(&Labels { result }).inc();
    }

    pub(crate) fn attestation(
        &self,
        result: Result,
        tee: &'static str,
        failure: &'static str,
        emulated: bool,
    ) {
        let emulated = if emulated { "true" } else { "false" };
        let labels = AttestationLabels { result, tee, failure, emulated };
        self.attestations.get_or_create(&labels).inc();
    }

    pub(crate) fn resource(&self, result: Result) {
        self.resources.get_or_create(&Labels { result }).inc();
    }

    pub(crate) fn answer(&self, status: u16) {
        self.answers.get_or_create(&StatusLabels { status }).inc();
    }

    pub(crate) fn limit(&self) {
        self.limited.inc();
    }

    pub(crate) fn appraised(&self, seconds: f64) {
        self.appraisal_seconds.observe(seconds);
    }

    pub(crate) fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// All of them in Prometheus' text form.
    pub(crate) fn text(&self, sessions: usize) -> String {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told() {
        let metrics = Metrics::new();
        metrics.challenge(Result::Done);
        metrics.attestation(Result::Refused, "snp", "snp-measurement", true);
        metrics.resource(Result::Failed);
        metrics.answer(404);
        metrics.appraised(0.0011);
        let text = metrics.text(7);
        for expected in [
            "kbs_challenges_total{result=\"Done\"} 1",
            "kbs_attestations_total{result=\"Refused\",tee=\"snp\",failure=\"snp-measurement\",emulated=\"true\"} 1",
            "kbs_answers_total{status=\"404\"} 1",
            "kbs_sessions 7",
            "kbs_appraisal_seconds_bucket{le=\"0.002\"} 1",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
