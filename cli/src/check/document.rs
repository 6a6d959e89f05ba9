//! `--json`: the document, as docs/node-check.md describes it.

use std::path::Path;

use nacre_hypervisor::probe::{Finding, Question, Report, Tee, Verdict};
use serde::Serialize;

/// Raised when a field changes its meaning or goes; new ones may come.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    /// What the exit status is about.
    asked: Tee,
    configuration: Option<&'a Path>,
    containerd_configuration: &'a Path,
    reports: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    tee: Tee,
    verdict: Verdict,
    findings: &'a [Finding],
}

pub(super) fn json(asked: Tee, question: &Question, reports: &[Report]) -> anyhow::Result<String> {
    let document = Document {
        format: FORMAT,
        asked,
        configuration: question.configuration.as_deref(),
        containerd_configuration: &question.containerd.config,
        reports: reports
            .iter()
            .map(|report| Entry {
                tee: report.tee,
                verdict: report.verdict(),
                findings: &report.findings,
            })
            .collect(),
    };
    Ok(format!("{}\n", serde_json::to_string_pretty(&document)?))
}
