//! `nacre inspect`.

use std::fmt::Write as _;

use clap::Args;
use nacre_protocol::start_report::Phase;
use nacre_run_directory::report::{Passed, Report};

use crate::Verdict;
use crate::output::Output;
use crate::sandboxes::{Known, Places, duration};

/// Show how a pod started, phase by phase, and what went wrong.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre inspect shop/web               by the pod's name
  nacre inspect 4f1c                   by the beginning of the sandbox's id
  nacre inspect shop/web --output json | jq '.phases[] | select(.failure)'

Pods that failed or ended are known for a while, too: `nacre ps --all`. What the codes mean is in
docs/observability.md.

Exit status: 0 the pod started; 1 something failed; 2 there is no such pod.")]
pub(crate) struct Arguments {
    /// `NAMESPACE/NAME` of a pod, or the beginning of a sandbox's id
    pod: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let known = arguments.places.find(&arguments.pod)?;
    arguments.output.show(&known, text)?;
    let has_failed = known.report.phases.iter().any(|passed| passed.failure.is_some());
    Ok(if has_failed { Verdict::Bad } else { Verdict::Good })
}

fn text(known: &Known) -> String {
    let report = &known.report;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<10} {value}");
        }
    };
    line("pod", &report.name());
    line("sandbox", &report.sandbox);
    line("state", known.condition.name());
    line("reason", &report.reason);
    line("tee", &report.tee);
    line("machine", &known.machine.map(|pid| format!("process {pid}")).unwrap_or_default());
    line("trace", &report.trace);
    let of_pod = report.phases.iter().filter(|passed| passed.container.is_none());
    phases(&mut text, "the pod", report, &of_pod.collect::<Vec<_>>());
    for container in &report.containers {
        let id: String = container.id.chars().take(12).collect();
        let title = match container.name.as_str() {
            "" => format!("container {id}"),
            name => format!("container {name} ({id}), image {}", container.image),
        };
        let own = |passed: &&Passed| passed.container.as_deref() == Some(&container.id);
        phases(&mut text, &title, report, &report.phases.iter().filter(own).collect::<Vec<_>>());
    }
    if report.left_out > 0 {
        let _ = writeln!(text, "\n{} earlier phases of containers are not kept", report.left_out);
    }
    text
}

fn phases(text: &mut String, title: &str, report: &Report, phases: &[&Passed]) {
    if phases.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    let mut phases = phases.to_vec();
    phases.sort_by_key(|passed| (passed.began_us, depth(passed.phase)));
    for passed in phases {
        let at = passed.began_us.saturating_sub(report.began_us);
        let indent = "  ".repeat(depth(passed.phase));
        let code = match &passed.failure {
            None => passed.phase.code(),
            Some(failed) => failed.code.to_string(),
        };
        let phase = format!("{indent}{}", passed.phase);
        let (at, took) = (format!("+{}", duration(at)), duration(passed.took_us));
        let _ = writeln!(text, "  {code}  {phase:<18} {at:>10} {took:>10}");
        if let Some(failed) = &passed.failure {
            let about = failed.code.about();
            let _ = writeln!(text, "      failed: {about}\n      cause:  {}", failed.message);
            let _ = writeln!(text, "      next:   {}", failed.next_step);
        }
    }
}

fn depth(phase: Phase) -> usize {
    std::iter::successors(phase.within(), |phase| phase.within()).count()
}

#[cfg(test)]
mod tests {
    use nacre_protocol::start_report::Failure;
    use nacre_run_directory::report::{ContainerName, Failed};

    use super::*;
    use crate::sandboxes::Condition;

    #[test]
    fn what_failed_is_told_with_the_next_step() {
        let passed = |phase, container: Option<&str>, began_us, took_us| {
            let container = container.map(str::to_owned);
            Passed { phase, container, began_us, took_us, failure: None }
        };
        let mut report = Report { sandbox: "abc".into(), began_us: 0, ..Default::default() };
        report.containers.push(ContainerName {
            id: "c".into(),
            name: "app".into(),
            image: "i:1".into(),
        });
        report.add(passed(Phase::Boot, None, 1000, 2_500_000));
        report.add(passed(Phase::Kernel, None, 1000, 900_000));
        let code = Failure::NoImage;
        let failed = Failed { code, message: "m".into(), next_step: code.next_step().into() };
        let pull = passed(Phase::Pull, Some("c"), 3_000_000, 40_000);
        report.add(Passed { failure: Some(failed), ..pull });
        let known =
            Known { condition: Condition::Failed, machine: None, run_directory: None, report };
        let expected = "\
pod        abc
sandbox    abc
state      failed

the pod
  NACRE-2400  boot                    +1 ms      2.5 s
  NACRE-1400    kernel                +1 ms     900 ms

container app (c), image i:1
  NACRE-2103    pull                 +3.0 s      40 ms
      failed: the registry has no such image
      cause:  m
      next:   correct the image's name, tag or digest in the pod
";
        assert_eq!(text(&known), expected);
    }
}
