//! `nacre measure`.

mod explanation;
mod launch;
mod release;
mod shapes;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use nacre_configuration::{Config, DEFAULT_PATH, Tee};
use nacre_image_manifest::Sha256Hex;
use nacre_verifier::{
    Allowed, Hex, ReferenceValues, SnpPolicy, SnpReferences, TcbMinimum, TdxReferences, Values,
};

use crate::Verdict;
use crate::input::{print, read_text, write_or_print};
use launch::{Digests, Measured, SnpDigests};
pub(crate) use release::measurements_of;

/// Compute what a genuine guest measures, before any is started.
///
/// It reads the guest image, the firmware and the command line of a node's configuration, and writes the
/// document that `nacre kbs reference-value add` takes: one measurement for each number of processors that
/// pods may have, or for those that the given pods have.
///
/// SEV-SNP: the launch digest is computed completely.
///
/// TDX: MRTD (the firmware) is computed completely. RTMR1 (kernel) and RTMR2 (command line, initrd) are
/// predicted by the rules of firmware and kernel; the prediction was compared with event logs, never with
/// hardware. RTMR0 (ACPI tables, boot variables, the firmware's configuration) depends on the host's QEMU
/// and on the pod's memory, processors and devices, and cannot be computed. Take it from a guest on a machine
/// of yours, once for each shape of pods: write values with --rtmr0 any, have the guest's quote appraised with
/// them and with Intel's data about the machine, and only if all passed give the first of its registers with
/// --rtmr0. The pod's policy must have `guest_api.evidence = true`: its containers then read the quote.
///
/// Settings of the configuration by which guests protect less (`danger_*`, `vm.kernel_parameters`) are refused,
/// unless --danger-accept is given. The files of the guest image must be those of its manifest.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre measure --tee snp --tcb-minimum tcb.json -o guest.json
  nacre measure --tee snp --tcb-minimum any --explain web.yaml
  nacre measure --tee tdx --rtmr0 any -o first.json
  nacre attest appraise evidence.json --reference first.json --tdx-collateral collateral.json --output json
  nacre measure --tee tdx --rtmr0 8f3c...e1 -o guest.json
  nacre measure --tee emulated-snp --config node.toml --vcpus 1 --vcpus 2
  nacre measure --release DIR --firmware DIR -o - | diff DIR/measurements.json -

Where tcb.json says which of AMD's firmware is new enough, for each processor that is accepted:
  {\"genoa\": {\"bootloader\": 10, \"tee\": 0, \"snp\": 23, \"microcode\": 84}}
The numbers are the owner's decision: AMD's security bulletins name them, and `nacre attest appraise`
shows those of a report.

Exit status: 0 written; 2 something cannot be read, or cannot be measured.")]
pub(crate) struct Arguments {
    /// What vouches for the guest.
    #[arg(long, value_enum, required_unless_present = "release")]
    tee: Option<Hardware>,
    /// The node's configuration, as its shim reads it [default: with --tee snp or tdx /etc/nacre/snp.toml or
    /// tdx.toml; where that is absent, and else, /etc/nacre/config.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Pods, or what makes pods: measure for their numbers of processors.
    #[arg(value_name = "YAML")]
    pods: Vec<PathBuf>,
    /// Number of processors; may be given several times [default: each that the configuration allows].
    #[arg(long, value_name = "NUMBER")]
    vcpus: Vec<u32>,
    /// Name of the document; a broker has one of each name [default: nacre-VERSION-TEE-HASH, the hash being that
    /// of the values, shortened].
    #[arg(long)]
    id: Option<String>,
    /// SEV-SNP: least security versions, a JSON file, or "any": old firmware with known holes is accepted.
    #[arg(long, value_name = "FILE|any")]
    tcb_minimum: Option<PathBuf>,
    /// TDX: value of RTMR0 from a quote of a trusted guest; may be given several times. Or "any": hosts
    /// may give guests any ACPI tables and boot variables.
    #[arg(long, value_name = "HEX|any")]
    rtmr0: Vec<String>,
    /// TDX: RTMR3, "any" where containers extend it [default: nothing has extended it].
    #[arg(long, value_name = "HEX|any")]
    rtmr3: Vec<String>,
    /// Accept settings of the configuration by which guests protect less. They are named in the document.
    #[arg(long)]
    danger_accept: bool,
    /// Say what was measured: files with sizes and digests, command line, each measurement.
    #[arg(long)]
    explain: bool,
    /// Form of what --explain says.
    #[arg(long, value_enum, default_value = "text", requires = "explain")]
    output: Output,
    /// Measure an image for its release instead, for the default configuration and the firmware in --firmware.
    /// It is written to DIR/measurements.json, if -o does not say something else.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "tee", "config", "pods", "vcpus", "id", "tcb_minimum", "rtmr0", "rtmr3", "danger_accept", "explain",
    ])]
    release: Option<PathBuf>,
    /// With --release: directory of OVMF.amdsev.fd and OVMF.inteltdx.fd [default: where installed].
    #[arg(long, value_name = "DIR", requires = "release")]
    firmware: Option<PathBuf>,
    /// Where to write it; `-` is standard output [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hardware {
    /// The emulated AMD secure processor: for development.
    EmulatedSnp,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Hardware {
    const fn tee(self) -> Tee {
        match self {
            Hardware::EmulatedSnp => Tee::EmulatedSnp,
            Hardware::Snp => Tee::Snp,
            Hardware::Tdx => Tee::Tdx,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Hardware::EmulatedSnp => "emulated-snp",
            Hardware::Snp => "snp",
            Hardware::Tdx => "tdx",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    if let Some(image) = &arguments.release {
        return measure_release(image, arguments.firmware.as_deref(), arguments.to.as_deref());
    }
    let hardware = arguments.tee.context("--tee is missing")?;
    arguments.fit(hardware)?;
    let path = match &arguments.config {
        Some(path) => path.clone(),
        None => hardware.tee().own_configuration().unwrap_or_else(|| DEFAULT_PATH.into()),
    };
    let mut config = Config::read(&path)?;
    config.vm.tee = hardware.tee();
    let dangers = config.dangers().join(", ");
    ensure!(
        dangers.is_empty() || arguments.danger_accept,
        "{}: guests are launched with {dangers}: they protect less than others, and whoever registers them \
         accepts that. Measure a configuration without, or give --danger-accept",
        path.display()
    );
    let vcpus = shapes::vcpus(&arguments.vcpus, &arguments.pods, &config)?;
    let measured = Measured::of(&config, &vcpus)?;
    let document = document(arguments, hardware, &measured)?;
    if arguments.explain {
        match arguments.output {
            Output::Text => eprint!("{}", explanation::text(&measured)),
            Output::Json => {
                let mut value = explanation::json(&measured);
                value["configuration"] = path.display().to_string().into();
                value["dangers"] = measured.dangers.as_slice().into();
                eprintln!("{value}");
            }
        }
    }
    // What programs read of standard error is JSON and nothing else.
    if arguments.output == Output::Text {
        if arguments.explain || arguments.config.is_none() {
            eprintln!("nacre: measured with {}", path.display());
        }
        if !dangers.is_empty() {
            eprintln!("nacre: warning: accepted, though guests protect less with it: {dangers}");
        }
    }
    write_or_print(
        arguments.to.as_deref().filter(|to| *to != Path::new("-")),
        &format!("{}\n", serde_json::to_string_pretty(&document)?),
    )?;
    Ok(Verdict::Good)
}

fn measure_release(
    image: &Path,
    firmware: Option<&Path>,
    to: Option<&Path>,
) -> anyhow::Result<Verdict> {
    let release = measurements_of(image, firmware)?;
    match to {
        None => print(&release.write(image)?)?,
        Some(to) if to == Path::new("-") => {
            for line in release.left_out() {
                eprintln!("nacre: warning: {line}");
            }
            print(&release.text()?)?;
        }
        Some(to) => print(&release.write_to(to)?)?,
    }
    Ok(Verdict::Good)
}

impl Arguments {
    /// Options of other hardware are mistakes.
    fn fit(&self, hardware: Hardware) -> anyhow::Result<()> {
        let name = hardware.name();
        ensure!(
            hardware == Hardware::Snp || self.tcb_minimum.is_none(),
            "--tcb-minimum has no meaning with --tee {name}"
        );
        ensure!(
            hardware == Hardware::Tdx || (self.rtmr0.is_empty() && self.rtmr3.is_empty()),
            "--rtmr0 and --rtmr3 have no meaning with --tee {name}"
        );
        Ok(())
    }
}

fn document(
    arguments: &Arguments,
    hardware: Hardware,
    measured: &Measured,
) -> anyhow::Result<ReferenceValues> {
    let (note, values) = match &measured.digests {
        Digests::Snp(digests) => {
            let (note, tcb_minimum) = match hardware {
                // There is no firmware that could have holes.
                Hardware::EmulatedSnp => {
                    ("emulated AMD secure processor: for development", TcbMinimum::Any)
                }
                _ => ("computed by nacre measure", tcb_minimum(arguments.tcb_minimum.as_deref())?),
            };
            (note, snp(digests, tcb_minimum))
        }
        Digests::Tdx(tdx) => {
            let note = "MRTD computed; RTMR1 and RTMR2 predicted by rule, never compared with \
                hardware, by nacre measure";
            let rtmr0 = allowed("--rtmr0", &arguments.rtmr0)?;
            let mut rtmr = [Allowed::Any, Allowed::Any, Allowed::Any, Allowed::Any];
            for (number, (slot, prediction)) in rtmr.iter_mut().zip(&tdx.rtmr).enumerate() {
                let given = match number {
                    0 => rtmr0.clone(),
                    3 => allowed("--rtmr3", &arguments.rtmr3)?,
                    _ => None,
                };
                let predicted = prediction.value().map(|value| Allowed::These(vec![Hex(value)]));
                *slot = given.or(predicted).with_context(|| {
                    format!(
                        "RTMR{number} is {prediction}. Give its values with --rtmr{number}, or \"any\""
                    )
                })?;
            }
            let values = Values::Tdx(TdxReferences {
                mr_td: vec![Hex(tdx.mr_td)],
                rtmr,
                tcb_status: vec!["UpToDate".to_owned()],
                advisories: Allowed::These(Vec::new()),
                debug: false,
            });
            (note, values)
        }
    };
    let name = format!("nacre-{}-{}", env!("CARGO_PKG_VERSION"), hardware.name());
    let mut document = ReferenceValues { id: name, expires: None, note: None, values };
    // A broker replaces a document by another of the same name: other values, another name.
    let hash = Sha256Hex::of(&serde_json::to_vec(&document)?).to_string();
    document.id = arguments.id.clone().unwrap_or_else(|| format!("{}-{hash:.8}", document.id));
    let accepted = measured.dangers.join(", ");
    document.note = Some(match accepted.as_str() {
        "" => note.to_owned(),
        accepted => format!("{note}; accepted with {accepted}"),
    });
    // The same rules as for documents that people write.
    Ok(ReferenceValues::parse(&serde_json::to_vec(&document)?)?)
}

fn snp(digests: &SnpDigests, tcb_minimum: TcbMinimum) -> Values {
    Values::Snp(SnpReferences {
        measurements: digests.by_vcpus.iter().map(|(_, digest)| Hex(*digest)).collect(),
        tcb_minimum,
        policy: SnpPolicy { smt: digests.smt, ..SnpPolicy::default() },
        id_key_digests: digests.id_key.iter().copied().map(Hex).collect(),
        author_key_digests: digests.author_key.iter().copied().map(Hex).collect(),
    })
}

fn tcb_minimum(given: Option<&Path>) -> anyhow::Result<TcbMinimum> {
    match given {
        None => bail!(
            "which of AMD's firmware is new enough is the owner's decision: give --tcb-minimum FILE with \
             least versions for each processor (see nacre measure --help), or --tcb-minimum any"
        ),
        Some(path) if path == Path::new("any") => Ok(TcbMinimum::Any),
        Some(path) => serde_json::from_str(&read_text(path)?).with_context(|| {
            format!("{}: no least security versions by processor", path.display())
        }),
    }
}

/// Values of a register that somebody gave; none if nobody did.
fn allowed(option: &str, given: &[String]) -> anyhow::Result<Option<Allowed<Hex<48>>>> {
    match given {
        [] => Ok(None),
        [word] if word == "any" => Ok(Some(Allowed::Any)),
        values => {
            let value = |text: &String| {
                serde_json::from_value(serde_json::Value::from(text.as_str())).with_context(|| {
                    format!("{option} {text:?}: give 96 hexadecimal digits, or \"any\" alone")
                })
            };
            Ok(Some(Allowed::These(values.iter().map(value).collect::<Result<_, _>>()?)))
        }
    }
}
