//! `nacre attest appraise`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nacre_verifier::{
    Allowed, Appraisal, Check, CheckCode, Collateral, Evidence, Expected, ExtraRoot, Hex,
    ReferenceSet, ReferenceValues, Root, SnpPolicy, SnpReferences, TcbMinimum, TdxCollateral,
    TdxReferences, Trust, Values, Verdict as Outcome, Verifier,
};
use time::OffsetDateTime;

use crate::Verdict;
use crate::input::{read, read_initdata};
use crate::moment::moment;
use crate::output::Output;

/// Appraise evidence offline, and print each check with what was expected and what was found.
///
/// It is the appraisal that a key broker makes. What is not given to compare with is not compared, and the
/// result says so: reference values, initdata, what the guest had signed.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre attest appraise report.bin --certificate vcek.der
  nacre attest appraise evidence.json --reference guest.json --initdata web.yaml
  nacre attest appraise evidence.json --danger-extra-snp-root /var/lib/nacre/emulated --output json

Exit status: 0 every check that was made passed; 1 one failed; 2 something cannot be read.")]
pub(crate) struct Arguments {
    /// An SNP report (1184 bytes), a TDX quote, or the JSON form that guests send.
    #[arg(value_name = "EVIDENCE")]
    evidence: PathBuf,
    /// Reference values; may be given several times.
    #[arg(long, value_name = "FILE")]
    reference: Vec<PathBuf>,
    /// Initdata that the guest should have: TOML, an annotation's text, or YAML of one pod.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    /// What the guest had signed: 128 hexadecimal digits.
    #[arg(long, value_name = "HEX", value_parser = report_data)]
    report_data: Option<ReportData>,
    /// A certificate (DER) of the chip's key that the evidence does not bring; may be given several times.
    #[arg(long, value_name = "FILE")]
    certificate: Vec<PathBuf>,
    /// Intel's data about a TDX quote's platform (JSON): TCB info, QE identity, revocation lists.
    #[arg(long, value_name = "FILE")]
    tdx_collateral: Option<PathBuf>,
    /// A revocation list (DER); may be given several times.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Directory of a root (ark.der, ask.der) that is believed beside the vendor's: an emulated processor's.
    #[arg(long, value_name = "DIRECTORY")]
    danger_extra_snp_root: Vec<PathBuf>,
    /// Time for which everything must be valid, as 2027-01-31T00:00:00Z [default: now].
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<OffsetDateTime>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy)]
struct ReportData([u8; 64]);

fn report_data(text: &str) -> Result<ReportData, String> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| "it is 128 hexadecimal digits".to_owned())?;
    Ok(ReportData(bytes))
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let evidence = Evidence::read(&read(&arguments.evidence)?)
        .with_context(|| arguments.evidence.display().to_string())?;
    let (own_report_data, own_binding, own_values) = own(&evidence);
    let initdata = match &arguments.initdata {
        Some(path) => Some(read_initdata(path)?.digest().as_bytes().to_vec()),
        None => Some(own_binding).filter(|bytes| bytes.iter().any(|byte| *byte != 0)),
    };
    let mut references = read_all(&arguments.reference, |path, bytes| {
        ReferenceValues::parse(&bytes).with_context(|| path.display().to_string())
    })?;
    if references.is_empty() {
        let id = "what-the-evidence-says".to_owned();
        references.push(ReferenceValues { id, expires: None, note: None, values: own_values });
    }
    let references = ReferenceSet::new(references);
    let expected = Expected {
        report_data: arguments.report_data.map_or(own_report_data, |given| given.0),
        init_data: initdata.as_deref(),
        references: &references,
        now: arguments.at.unwrap_or_else(OffsetDateTime::now_utc),
    };
    let snp_certificates = read_all(&arguments.certificate, |_, bytes| Ok(bytes))?;
    let tdx = match &arguments.tdx_collateral {
        Some(path) => {
            Some(TdxCollateral::parse(&read(path)?).with_context(|| path.display().to_string())?)
        }
        None => None,
    };
    let collateral = Collateral { snp_certificates, tdx };
    let verifier = Verifier::new(&trust(arguments)?)?;
    let appraisal = verifier.appraise(&evidence, &expected, &collateral);
    let mut left_out = left_out(arguments);
    left_out.retain(|code| appraisal.checks().iter().any(|check| check.code == *code));
    let good = !appraisal.checks().iter().any(|check| fails(check, &left_out));
    arguments.output.show(&appraisal, |appraisal| text(appraisal, &left_out, good))?;
    Ok(if good { Verdict::Good } else { Verdict::Bad })
}

/// What the evidence itself says, for what is not compared: bound data, digest of initdata, measurements.
fn own(evidence: &Evidence) -> ([u8; 64], Vec<u8>, Values) {
    match evidence {
        Evidence::Snp { report, .. } => {
            let fields = report.fields();
            let values = SnpReferences {
                measurements: vec![Hex(fields.measurement)],
                tcb_minimum: TcbMinimum::Any,
                policy: SnpPolicy::default(),
                id_key_digests: Vec::new(),
                author_key_digests: Vec::new(),
            };
            (fields.report_data, fields.host_data.to_vec(), Values::Snp(values))
        }
        Evidence::Tdx { quote, .. } => {
            let body = quote.body();
            let values = TdxReferences {
                mr_td: vec![Hex(body.mr_td)],
                rtmr: [const { Allowed::Any }; 4],
                tcb_status: vec!["UpToDate".to_owned()],
                advisories: Allowed::These(Vec::new()),
                debug: false,
            };
            (body.report_data, body.mr_config_id.to_vec(), Values::Tdx(values))
        }
    }
}

fn trust(arguments: &Arguments) -> anyhow::Result<Trust> {
    let roots = arguments.danger_extra_snp_root.iter().map(|directory| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (ark_der, ask_der) =
            (read(&directory.join("ark.der"))?, read(&directory.join("ask.der"))?);
        Ok(ExtraRoot { name, ark_der, ask_der })
    });
    Ok(Trust {
        danger_extra_snp_roots: roots.collect::<anyhow::Result<_>>()?,
        snp_crls: read_all(&arguments.crl, |_, bytes| Ok(bytes))?,
        ..Trust::default()
    })
}

fn read_all<T>(
    paths: &[PathBuf],
    parse: impl Fn(&Path, Vec<u8>) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    paths.iter().map(|path| parse(path, read(path)?)).collect()
}

/// Checks that compare with something that was not given.
fn left_out(arguments: &Arguments) -> Vec<CheckCode> {
    let mut codes = Vec::new();
    if arguments.report_data.is_none() {
        codes.extend([CheckCode::SnpReportData, CheckCode::TdxReportData]);
    }
    if arguments.initdata.is_none() {
        codes.extend([CheckCode::SnpHostData, CheckCode::TdxConfigId]);
    }
    if arguments.reference.is_empty() {
        codes.extend([
            CheckCode::SnpReferences,
            CheckCode::SnpMeasurement,
            CheckCode::SnpTcbMinimum,
        ]);
        codes.extend([CheckCode::TdxReferences, CheckCode::TdxMrTd, CheckCode::TdxRtmr0]);
        codes.extend([CheckCode::TdxRtmr1, CheckCode::TdxRtmr2, CheckCode::TdxRtmr3]);
    }
    codes
}

fn fails(check: &Check, left_out: &[CheckCode]) -> bool {
    check.is_failed() && !left_out.contains(&check.code)
}

fn text(appraisal: &Appraisal, left_out: &[CheckCode], good: bool) -> String {
    let mut text = String::new();
    let width = appraisal.checks().iter().map(|check| check.code.as_str().len()).max();
    let width = width.unwrap_or_default();
    for check in appraisal.checks() {
        let code = check.code.as_str();
        if left_out.contains(&check.code) {
            text.push_str(&format!("  left  {code:width$}  found {}\n", check.found));
            continue;
        }
        match check.verdict {
            Outcome::Passed => text.push_str(&format!("  pass  {code:width$}  {}\n", check.found)),
            Outcome::NotApplicable => {
                text.push_str(&format!("  none  {code:width$}  {}\n", check.found));
            }
            Outcome::Failed => text.push_str(&format!(
                "  FAIL  {code:width$}  expected {}\n        {:width$}  found    {}\n        {:width$}  do       {}\n",
                check.expected, "", check.found, "", check.fix
            )),
        }
    }
    let root = match appraisal.root() {
        Root::Vendor => "the vendor's root".to_owned(),
        Root::Extra { name } => format!("the extra root {name:?}: EMULATED, it proves nothing"),
        Root::Unproven => "no root that is trusted".to_owned(),
    };
    text.push_str(&format!("\nevidence of {}, from {root}\n", appraisal.tee()));
    let names: Vec<_> = left_out.iter().map(|code| code.as_str()).collect();
    text.push_str(&match (good, names.is_empty()) {
        (false, _) => "NOT affirming\n".to_owned(),
        (true, true) => "affirming\n".to_owned(),
        (true, false) => {
            format!("affirming as far as it was compared; left out: {}\n", names.join(", "))
        }
    });
    text
}
