//! `nacre policy test`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nacre_policy::Policy;
use serde::Serialize;

use super::replay::{Judged, replay};
use crate::Verdict;
use crate::input::{print, read_policy};

/// Replay recorded requests and compare the verdicts with the recorded ones.
///
/// Development images of the guest record the requests of a pod, one JSON object a line. Each file is a pod
/// of its own. A request passes if this policy allows what the agent allowed then, and denies what it denied.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre policy test web.rego --requests 3f2a.jsonl
  nacre policy test web.rego --requests a.jsonl --requests b.jsonl --output junit > result.xml

Exit status: 0 all verdicts are as recorded; 1 some are not; 2 a file cannot be read.")]
pub(crate) struct Arguments {
    /// Policy document or initdata TOML.
    #[arg(value_name = "POLICY")]
    policy: PathBuf,
    /// Recordings; `-` is standard input.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    requests: Vec<PathBuf>,
    /// Form of the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Counts by request, and what differs.
    Text,
    /// Every request as JSON.
    Json,
    /// For CI systems.
    Junit,
}

#[derive(Serialize)]
struct Recording {
    file: String,
    requests: Vec<Judged>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let text = read_policy(&arguments.policy)?;
    let policy = Policy::parse(&text).with_context(|| arguments.policy.display().to_string())?;
    let mut recordings = Vec::new();
    for path in &arguments.requests {
        let requests = replay(&policy, path)?;
        if requests.is_empty() {
            bail!("{} holds no request: a test of nothing would pass", path.display());
        }
        recordings.push(Recording { file: path.display().to_string(), requests });
    }
    let different = recordings.iter().flat_map(|recording| &recording.requests);
    let different = different.filter(|judged| !judged.is_as_recorded()).count();
    print(&match arguments.output {
        Format::Text => table(&recordings),
        Format::Json => json(&recordings, different)?,
        Format::Junit => junit(&recordings),
    })?;
    Ok(if different == 0 { Verdict::Good } else { Verdict::Bad })
}

fn table(recordings: &[Recording]) -> String {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut differences = String::new();
    for Recording { file, requests } in recordings {
        for judged in requests {
            let count = counts.entry(&judged.request).or_default();
            count[usize::from(!judged.allowed)] += 1;
            if !judged.is_as_recorded() {
                count[2] += 1;
                let why = judged.denial.as_deref().unwrap_or("it is allowed now and was denied");
                let (line, request) = (judged.line, &judged.request);
                differences.push_str(&format!("{file}:{line}: {request}: {why}\n"));
            }
        }
    }
    let width = counts.keys().map(|name| name.len()).max().unwrap_or_default();
    let mut text =
        format!("{:width$}  {:>8}  {:>8}  {:>12}\n", "REQUEST", "ALLOWED", "DENIED", "NOT AS THEN");
    for (name, [allowed, denied, different]) in &counts {
        text.push_str(&format!("{name:width$}  {allowed:>8}  {denied:>8}  {different:>12}\n"));
    }
    if !differences.is_empty() {
        text.push('\n');
        text.push_str(&differences);
    }
    text
}

fn json(recordings: &[Recording], different: usize) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Result<'a> {
        recordings: &'a [Recording],
        requests: usize,
        not_as_recorded: usize,
    }
    let requests = recordings.iter().map(|recording| recording.requests.len()).sum();
    let result = Result { recordings, requests, not_as_recorded: different };
    Ok(format!("{}\n", serde_json::to_string_pretty(&result)?))
}

fn junit(recordings: &[Recording]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for Recording { file, requests } in recordings {
        let failures = requests.iter().filter(|judged| !judged.is_as_recorded()).count();
        let (file, tests) = (xml(file), requests.len());
        text.push_str(&format!(
            "  <testsuite name=\"{file}\" tests=\"{tests}\" failures=\"{failures}\">\n"
        ));
        for judged in requests {
            let name = xml(&format!("{} line {}", judged.request, judged.line));
            text.push_str(&format!("    <testcase classname=\"{file}\" name=\"{name}\""));
            if judged.is_as_recorded() {
                text.push_str("/>\n");
                continue;
            }
            let (short, why) = match &judged.denial {
                Some(denial) => ("denied, was allowed", denial.as_str()),
                None => ("allowed, was denied", ""),
            };
            text.push_str(&format!(
                ">\n      <failure message=\"{short}\">{}</failure>\n    </testcase>\n",
                xml(why)
            ));
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no place for these at all.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_stays_xml() {
        assert_eq!(xml("a<b>&\"c\"\u{1}\n"), "a&lt;b&gt;&amp;&quot;c&quot;?\n");
    }
}
