//! `nacre policy generate`.

mod sizes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nacre_configuration::sizing::annotation::IMAGES_MIB;
use nacre_policy_author::document::Document;
use nacre_policy_author::generate::{Generated, Options, generate};
use nacre_policy_author::kubernetes::{SourceFile, read as read_yaml};
use nacre_policy_author::lint::{Severity, lint};
use nacre_policy_author::settings::{DEFAULT, Settings};
use nacre_policy_author::workload::{Reading, Workload};
use nacre_policy_author::yaml::{Insertion, insert};
use nacre_protocol::initdata::{ANNOTATION, Initdata, POLICY};

use crate::Verdict;
use crate::images::RegistryImages;
use crate::initdata::{BrokerOptions, Hash};
use crate::input::{print, read, read_initdata, write_or_print};
use crate::volumes::{self, VolumeOptions};

/// Write the policy of a pod from its Kubernetes YAML.
///
/// The policy allows exactly what the YAML asks for: these images (pinned by their digests now), commands,
/// variables, users, mounts and probes. Images are looked up at their registries. What the pod refers to (a
/// Secret, a configuration) belongs in the files, so that its contents are enforced. Unknown fields are errors.
///
/// With --output yaml it also says how much memory the images take when they are unpacked: the annotation
/// `io.nacre.vm.images_mib`, by which the pod's machine is sized. For this all their layers are fetched, unless
/// the pod has the annotation already.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre policy generate web.yaml                          the policy, as Rego
  nacre policy generate --output yaml web.yaml config.yaml | kubectl apply -f -
  nacre policy generate --output yaml -o web-nacre.yaml web.yaml
  nacre policy generate --settings cluster.toml --workload Deployment/web all.yaml
  nacre policy generate --initdata base.toml --output annotation web.yaml
  nacre policy generate --kbs-url https://kbs.example:8080 --kbs-cert ca.pem --output yaml web.yaml
  nacre policy generate --volume data=kbs:///default/volumes/data --output yaml db.yaml
  nacre policy generate --print-settings > cluster.toml   every setting, explained

Exit status: 0 written; 2 something stands in the way; it is named with file and line.")]
pub(crate) struct Arguments {
    /// YAML or JSON files with the workloads and what they refer to; `-` is standard input.
    #[arg(required_unless_present = "print_settings", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Settings of the cluster (TOML): a file with its drop-ins FILE.d/*.toml, or a directory. Later ones win
    /// key by key.
    #[arg(long, value_name = "FILE")]
    settings: Vec<PathBuf>,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Output::Policy)]
    output: Output,
    /// Where to write it [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
    /// Take only this workload, as KIND/NAME. May be given several times.
    #[arg(long, value_name = "KIND/NAME")]
    workload: Vec<String>,
    /// Bring rules and runtime profile along instead of using those of the guest image.
    #[arg(long)]
    standalone: bool,
    /// Leave images named by their tags. DANGEROUS: registry and host then decide what runs.
    #[arg(long)]
    danger_unpinned: bool,
    /// Put the policy beside the other files of this initdata (TOML or an annotation's text): where the guest
    /// gets its secrets, for one. An annotation that the YAML has already goes before it.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    #[command(flatten)]
    broker: BrokerOptions,
    #[command(flatten)]
    volumes: VolumeOptions,
    /// Digest by which the guest's hardware vouches for new initdata.
    #[arg(long, value_enum, default_value_t = Hash::Sha256)]
    algorithm: Hash,
    /// Do not fetch layers only to learn how large the images are.
    #[arg(long)]
    no_image_sizes: bool,
    /// Say how large the images are with any output, and whether a pod's annotation is enough for them.
    #[arg(long, conflicts_with = "no_image_sizes")]
    image_sizes: bool,
    /// Print the settings with their defaults and explanations, and nothing else.
    #[arg(long)]
    print_settings: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// The policy document, Rego.
    Policy,
    /// The input with the annotations and pinned images; everything else untouched.
    Yaml,
    /// The initdata document, TOML.
    Initdata,
    /// The value of the pod's annotation.
    Annotation,
}

impl Arguments {
    /// Whether the sizes of this workload's images are worth fetching all their layers.
    fn wants_sizes(&self, workload: &Workload) -> bool {
        let is_said = workload.pod.annotations.contains_key(IMAGES_MIB);
        self.image_sizes || !self.no_image_sizes && self.output == Output::Yaml && !is_said
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    if arguments.print_settings {
        print(DEFAULT)?;
        return Ok(Verdict::Good);
    }
    let settings = Settings::read(&arguments.settings)?;
    let files = arguments.files.iter().map(|path| {
        let name =
            if path.as_os_str() == "-" { "stdin".into() } else { path.display().to_string() };
        Ok(SourceFile { name, content: read(path)? })
    });
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let reading = read_yaml(&files)?;
    for note in &reading.notes {
        eprintln!("note: {note}");
    }
    let workloads = chosen(&reading, &arguments.workload)?;
    if arguments.output != Output::Yaml && workloads.len() > 1 {
        let names: Vec<String> = workloads.iter().map(|workload| named(workload)).collect();
        bail!(
            "there are {} workloads ({}), each with a policy of its own: choose one with --workload, or \
             write all with --output yaml",
            names.len(),
            names.join(", ")
        );
    }
    let (algorithm, mut files_of_initdata) = match &arguments.initdata {
        Some(path) => {
            let base = read_initdata(path)?;
            (base.algorithm(), base.files().clone())
        }
        None => (arguments.algorithm.algorithm(), BTreeMap::new()),
    };
    arguments.broker.add(&mut files_of_initdata)?;
    let base = Initdata::new(algorithm, files_of_initdata)?;
    let mut images = RegistryImages::new(&settings.registry)?;
    let options =
        Options { standalone: arguments.standalone, danger_unpinned: arguments.danger_unpinned };
    let mut made = Vec::new();
    for workload in workloads {
        let generated = generate(workload, &mut images, &settings, options)?;
        let mut one = Made::new(workload, generated, &base, &arguments.volumes)?;
        if arguments.wants_sizes(workload) {
            let containers = workload.pod.containers.iter();
            let stored = images.stored(containers.map(|container| container.image.value.as_str()));
            one.images_mib = sizes::images(workload, stored, arguments.output == Output::Yaml);
        }
        made.push(one);
    }
    let result = match (arguments.output, made.as_slice()) {
        (Output::Yaml, made) => yaml(&files, made)?,
        (Output::Policy, [made]) => made.policy.clone(),
        (Output::Initdata, [made]) => made.initdata.text().to_owned(),
        (Output::Annotation, [made]) => format!("{}\n", made.initdata.to_annotation()?),
        _ => bail!("the files have no workload"),
    };
    write_or_print(arguments.to.as_deref(), &result)?;
    Ok(Verdict::Good)
}

fn named(workload: &Workload) -> String {
    format!("{}/{}", workload.kind, workload.object_name)
}

fn chosen<'a>(reading: &'a Reading, wanted: &[String]) -> anyhow::Result<Vec<&'a Workload>> {
    let all: Vec<&Workload> = reading.workloads.iter().collect();
    if all.is_empty() {
        bail!("the files have no workload: no Pod and nothing that makes pods");
    }
    if wanted.is_empty() {
        return Ok(all);
    }
    for name in wanted {
        if !all.iter().any(|workload| named(workload) == *name) {
            let known: Vec<String> = all.iter().map(|workload| named(workload)).collect();
            bail!("there is no workload {name:?}; the files have {}", known.join(", "));
        }
    }
    Ok(all.into_iter().filter(|workload| wanted.contains(&named(workload))).collect())
}

/// A workload with everything that is written for it.
struct Made<'a> {
    workload: &'a Workload,
    generated: Generated,
    policy: String,
    initdata: Initdata,
    /// What the images take, where the YAML is to say it.
    images_mib: Option<String>,
}

impl<'a> Made<'a> {
    fn new(
        workload: &'a Workload,
        mut generated: Generated,
        base: &Initdata,
        volumes: &VolumeOptions,
    ) -> anyhow::Result<Self> {
        for note in &generated.notes {
            eprintln!("note: {note}");
        }
        // Other files that the owner put there stay.
        let (algorithm, mut files) = match workload.pod.annotations.get(ANNOTATION) {
            Some(annotation) => {
                let old = Initdata::from_annotation(annotation).with_context(|| {
                    format!("{}:{}: the annotation that is there", workload.source, workload.line)
                })?;
                (old.algorithm(), old.files().clone())
            }
            None => (base.algorithm(), base.files().clone()),
        };
        volumes.add(&mut files, workload)?;
        volumes::allow_disks_only(&mut generated.data, &files)?;
        let document = Document::new(generated.data.clone());
        for finding in lint(&document).iter().filter(|found| found.severity == Severity::Danger) {
            let container = finding.container.as_deref().unwrap_or("pod");
            eprintln!(
                "danger: {}:{}: {container}: {} ({}): {}",
                workload.source, workload.line, finding.message, finding.rule, finding.fix
            );
        }
        let policy = document.render();
        // What cannot be read back by the agent's engine must not be deployed.
        nacre_policy::Policy::parse(&policy)?;
        files.insert(POLICY.to_owned(), policy.clone());
        let initdata = Initdata::new(algorithm, files)?;
        Ok(Self { workload, generated, policy, initdata, images_mib: None })
    }
}

/// Most bytes of all annotations of an object that the API server takes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// All files, one behind the other.
fn yaml(files: &[SourceFile], made: &[Made<'_>]) -> anyhow::Result<String> {
    let mut result = String::new();
    let annotations = made.iter().map(|made| made.initdata.to_annotation());
    let annotations = annotations.collect::<Result<Vec<_>, _>>()?;
    for (made, value) in made.iter().zip(&annotations) {
        let others = &made.workload.pod.annotations;
        let others = others.iter().filter(|(name, _)| *name != ANNOTATION);
        let total = others.map(|(name, value)| name.len() + value.len()).sum::<usize>()
            + ANNOTATION.len()
            + value.len();
        if total > ANNOTATIONS_LIMIT {
            bail!(
                "{}: the annotations of {} have {total} bytes, and Kubernetes takes {ANNOTATIONS_LIMIT}: \
                 move large ConfigMaps and variables into the image",
                made.workload.source,
                named(made.workload)
            );
        }
    }
    let insertions: Vec<_> = made
        .iter()
        .zip(&annotations)
        .map(|(made, annotation)| Insertion {
            workload: made.workload,
            annotation: ANNOTATION,
            value: annotation,
            pinned: &made.generated.pinned,
        })
        .collect();
    let files = inserted(files, &insertions)?;
    for file in sizes::inserted_sizes(&files, made)? {
        let text = String::from_utf8(file.content).context("the reader has seen to UTF-8")?;
        if !result.is_empty() {
            if !result.ends_with('\n') {
                result.push('\n');
            }
            if !text.starts_with("---") {
                result.push_str("---\n");
            }
        }
        result.push_str(&text);
    }
    Ok(result)
}

/// The files with everything put into them.
fn inserted(files: &[SourceFile], insertions: &[Insertion<'_>]) -> anyhow::Result<Vec<SourceFile>> {
    let changed = files.iter().map(|file| {
        let text = std::str::from_utf8(&file.content).context("the reader has seen to UTF-8")?;
        let own = insertions.iter().filter(|insertion| insertion.workload.source == file.name);
        let own: Vec<_> = own.cloned().collect();
        let content = insert(&file.name, text, &own)?.into_bytes();
        Ok(SourceFile { name: file.name.clone(), content })
    });
    changed.collect()
}
