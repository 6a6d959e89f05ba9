//! `--output json`: the document, as docs/node-check.md describes it.

use std::path::Path;

use nacre_hypervisor::probe::{Finding, Question, Report, Tee, Verdict};
use serde::Serialize;

/// Raised when a field changes its meaning or goes; new ones may come.
const FORMAT: u32 = 1;

/// What `nacre check --output json` prints.
#[derive(Serialize)]
pub(super) struct Document<'a> {
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

impl<'a> Document<'a> {
    pub(super) fn new(asked: Tee, question: &'a Question, reports: &'a [Report]) -> Self {
        let entry = |report: &'a Report| Entry {
            tee: report.tee,
            verdict: report.verdict(),
            findings: &report.findings,
        };
        Self {
            format: FORMAT,
            asked,
            configuration: question.configuration.as_deref(),
            containerd_configuration: &question.containerd.config,
            reports: reports.iter().map(entry).collect(),
        }
    }
}
