//! Findings for people.

use nacre_hypervisor::probe::{Finding, Report, Status, Tee, Verdict};

/// How they are shown.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Whether statuses are coloured.
    pub(super) colours: bool,
    /// Whether checks that do not apply are listed.
    pub(super) all: bool,
}

impl Style {
    fn shows(self, status: Status) -> bool {
        self.all || status != Status::NotApplicable
    }

    /// A status in a column of this width.
    fn word(self, status: Status, width: usize) -> String {
        let (word, colour) = match status {
            Status::Pass => ("pass", 32),
            Status::NotApplicable => return format!("{:width$}", "-"),
            Status::Warn => ("warn", 33),
            Status::Unknown => ("unknown", 35),
            Status::Fail => ("FAIL", 31),
        };
        if self.colours {
            format!("\u{1b}[{colour}m{word:width$}\u{1b}[0m")
        } else {
            format!("{word:width$}")
        }
    }
}

/// Width of a column for statuses.
const STATUS: usize = "unknown".len();

/// One question: each finding, and below it what to do.
pub(super) fn one(report: &Report, style: Style) -> String {
    let shown = report.findings.iter().filter(|finding| style.shows(finding.status));
    let shown: Vec<&Finding> = shown.collect();
    let width = shown.iter().map(|finding| finding.id.len()).max().unwrap_or_default();
    let mut text = format!("{:STATUS$}  {:width$}  FOUND\n", "STATUS", "CHECK");
    for finding in &shown {
        let Finding { id, status, found, advice } = finding;
        text.push_str(&format!("{}  {id:width$}  {found}\n", style.word(*status, STATUS)));
        if !advice.is_empty() {
            text.push_str(&format!("{:STATUS$}  {:width$}  -> {advice}\n", "", ""));
        }
    }
    text.push_str(&hidden(report.findings.len() - shown.len()));
    text.push_str(&format!("\n{}\n", answer(report)));
    text
}

/// All questions: a column for each, and what to do for the one that was `asked`.
pub(super) fn summary(reports: &[Report], asked: Tee, style: Style) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let widths: Vec<usize> =
        reports.iter().map(|report| report.tee.name().len().max(STATUS)).collect();
    let rows = (0..first.findings.len())
        .map(|row| reports.iter().map(|report| &report.findings[row]).collect::<Vec<&Finding>>());
    let rows: Vec<Vec<&Finding>> =
        rows.filter(|row| row.iter().any(|finding| style.shows(finding.status))).collect();
    let width = rows.iter().map(|row| row[0].id.len()).max().unwrap_or_default();
    let mut text = format!("{:width$}", "CHECK");
    for (report, width) in reports.iter().zip(&widths) {
        text.push_str(&format!("  {:width$}", report.tee.name().to_uppercase()));
    }
    text.push_str("  FOUND\n");
    for row in &rows {
        text.push_str(&format!("{:width$}", row[0].id));
        for (finding, &width) in row.iter().zip(&widths) {
            text.push_str(&format!("  {}", style.word(finding.status, width)));
        }
        // The question that it matters most for has the most to say.
        let worst = row.iter().max_by_key(|finding| finding.status);
        text.push_str(&format!("  {}\n", worst.map_or("", |finding| finding.found.as_str())));
    }
    text.push_str(&hidden(first.findings.len() - rows.len()));
    text.push('\n');
    for report in reports {
        text.push_str(&format!("{}\n", answer(report)));
    }
    if let Some(report) = reports.iter().find(|report| report.tee == asked) {
        let advised = report.findings.iter().filter(|finding| !finding.advice.is_empty());
        let advised: Vec<&Finding> = advised.collect();
        if !advised.is_empty() {
            text.push_str(&format!(
                "\nWhat to do for {asked}, which the configuration asks for:\n"
            ));
        }
        for Finding { id, status, advice, .. } in advised {
            text.push_str(&format!("{}  {id:width$}  {advice}\n", style.word(*status, STATUS)));
        }
    }
    text
}

fn hidden(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "1 check does not apply; --all lists it\n".to_owned(),
        count => format!("{count} checks do not apply; --all lists them\n"),
    }
}

/// The answer on one line.
fn answer(report: &Report) -> String {
    let tee = report.tee;
    let names = |status| -> Vec<&str> { report.of(status).map(|finding| finding.id).collect() };
    let warnings = match names(Status::Warn).len() {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        count => format!(", {count} warnings"),
    };
    match report.verdict() {
        Verdict::Ready => format!("{tee}: ready{warnings}"),
        Verdict::Unknown => {
            let hidden = names(Status::Unknown);
            format!("{tee}: not known, run as root to see {}{warnings}", hidden.join(", "))
        }
        Verdict::NotReady => {
            let failing = names(Status::Fail);
            format!("{tee}: not ready, {} failing: {}", failing.len(), failing.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &'static str, status: Status, found: &str, advice: &str) -> Finding {
        Finding { id, status, found: found.to_owned(), advice: advice.to_owned() }
    }

    fn plain() -> Report {
        let findings = vec![
            finding("cpu.model", Status::Pass, "Xeon", ""),
            finding("kvm.device", Status::Warn, "/dev/kvm is absent", "load kvm_intel"),
            finding("snp.cpu", Status::NotApplicable, "not asked for", ""),
        ];
        Report { tee: Tee::None, findings }
    }

    fn snp() -> Report {
        let findings = vec![
            finding("cpu.model", Status::Pass, "Xeon", ""),
            finding("kvm.device", Status::Unknown, "/dev/kvm", "run as root"),
            finding("snp.cpu", Status::Fail, "not a processor of AMD's", "buy one"),
        ];
        Report { tee: Tee::Snp, findings }
    }

    const STYLE: Style = Style { colours: false, all: false };

    #[test]
    fn one_question_is_findings_with_what_to_do() {
        let text = "STATUS   CHECK       FOUND\n\
                    pass     cpu.model   Xeon\n\
                    warn     kvm.device  /dev/kvm is absent\n                     \
                    -> load kvm_intel\n\
                    1 check does not apply; --all lists it\n\
                    \n\
                    none: ready, 1 warning\n";
        assert_eq!(one(&plain(), STYLE), text);
        assert!(one(&plain(), Style { all: true, ..STYLE }).contains("-        snp.cpu"));
        assert!(one(&snp(), STYLE).ends_with("\nsnp: not ready, 1 failing: snp.cpu\n"));
    }

    #[test]
    fn a_summary_has_a_column_for_each_question() {
        let text = "CHECK       NONE     SNP      FOUND\n\
                    cpu.model   pass     pass     Xeon\n\
                    kvm.device  warn     unknown  /dev/kvm\n\
                    snp.cpu     -        FAIL     not a processor of AMD's\n\
                    \n\
                    none: ready, 1 warning\n\
                    snp: not ready, 1 failing: snp.cpu\n\
                    \n\
                    What to do for none, which the configuration asks for:\n\
                    warn     kvm.device  load kvm_intel\n";
        assert_eq!(summary(&[plain(), snp()], Tee::None, STYLE), text);
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let style = Style { colours: true, all: false };
        let coloured = one(&snp(), style);
        assert!(coloured.contains("\u{1b}[31mFAIL   \u{1b}[0m  snp.cpu"), "{coloured:?}");
        let bare: String = ["[31m", "[32m", "[35m", "[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\u{1b}{code}"), ""));
        assert_eq!(bare, one(&snp(), STYLE));
    }
}
