//! The start report: one line of the log for each phase of a start, which benchmarks read.

use std::time::{Duration, Instant};

use nacre_protocol::start_report::Phase;

/// Writes one line. `container` is `-` for the pod.
pub(crate) fn line(sandbox: &str, container: &str, phase: &str, took: Duration) {
    let ms = took.as_secs_f64() * 1000.0;
    tracing::info!(
        "start report: sandbox={sandbox} container={container} phase={phase} ms={ms:.1}"
    );
}

/// Measures one phase.
pub(crate) async fn timed<T>(
    sandbox: &str,
    container: &str,
    phase: &str,
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    let result = work.await;
    line(sandbox, container, phase, began.elapsed());
    result
}

/// Phases that only the guest can measure; of others the host's own measurement counts.
const OF_THE_GUEST: [&str; 3] = ["kernel", "agent", "pull"];

/// Passes on the guest's lines for the pod (`-`) or one container. They are the guest's words:
/// whatever is not one of the known phases is dropped.
pub(crate) fn from_guest(sandbox: &str, container: &str, phases: &[Phase]) {
    for phase in phases.iter().filter(|phase| phase.container == container) {
        if OF_THE_GUEST.contains(&phase.name.as_str()) {
            line(sandbox, container, &phase.name, Duration::from_micros(phase.micros));
        }
    }
}
