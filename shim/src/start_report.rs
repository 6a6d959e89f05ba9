//! The start report: one line of the log for each phase of a start, which benchmarks read.

use std::time::{Duration, Instant};

use nacre_protocol::start_report::{Measured, Phase};

/// Writes one line. `container` is `-` for the pod.
pub(crate) fn line(sandbox: &str, container: &str, phase: Phase, took: Duration) {
    let ms = took.as_secs_f64() * 1000.0;
    tracing::info!(
        "start report: sandbox={sandbox} container={container} phase={phase} ms={ms:.1}"
    );
}

/// Measures one phase.
pub(crate) async fn timed<T>(
    sandbox: &str,
    container: &str,
    phase: Phase,
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    let result = work.await;
    line(sandbox, container, phase, began.elapsed());
    result
}

/// Passes on the guest's lines for the pod (`-`) or one container. They are the guest's words:
/// whatever is not one of its own phases is dropped.
pub(crate) fn from_guest(sandbox: &str, container: &str, phases: &[Measured]) {
    for measured in phases.iter().filter(|measured| measured.container == container) {
        // Of other phases the host's own measurement counts.
        if measured.phase.is_the_guests() {
            line(sandbox, container, measured.phase, Duration::from_micros(measured.micros));
        }
    }
}
