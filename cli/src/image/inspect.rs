//! `nacre image inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use clap::Args;
use nacre_image_encryption::{EncryptedLayer, is_encrypted};
use nacre_image_pull::{RemoteImage, Resources};
use nacre_image_security::{ImagePolicy, Sources};
use nacre_protocol::kbs::ResourceUri;
use nacre_trust::Digest;
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::manifest::{Descriptor, Index, size};
use super::place::Place;
use super::registry::{Access, read_small};
use super::source::{Source, SourceImage};
use crate::Verdict;
use crate::output::Output;
use crate::table::table;

/// Show a container image as a guest sees it: digests, layers, for whom they are encrypted, signatures; and whether an
/// image policy admits it.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre image inspect registry.example/web:1
  nacre image inspect registry.example/web:1 --policy image-policy.toml
  nacre image inspect registry.example/web:1 --policy policy.json \\
      --resource kbs:///default/web/signing-key=signing.pub
  nacre image inspect oci:build:web --output json

Exit status: 0 shown, and admitted if a policy is given; 1 the policy refuses the image; 2 it
cannot be read.")]
pub(crate) struct Arguments {
    /// The image: HOST/PATH:TAG, HOST/PATH@DIGEST, or oci:DIRECTORY:TAG.
    #[arg(value_name = "REF")]
    image: Place,
    /// An image policy, as in initdata: TOML, or containers' policy.json.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What the key broker would answer for a key that the policy names, as URI=FILE. May be given several
    /// times.
    #[arg(long, value_name = "URI=FILE", requires = "policy")]
    resource: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    access: Access,
}

#[derive(Serialize)]
struct Shown {
    reference: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<String>,
    manifest: String,
    platform: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    layers: Vec<ShownLayer>,
    /// None where nobody can be asked for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<Signature>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Decision>,
}

#[derive(Serialize)]
struct ShownLayer {
    digest: String,
    size: u64,
    media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_for: Option<Vec<String>>,
}

/// Something that says it is about the image; only a policy tells whether it is worth anything.
#[derive(Serialize)]
struct Signature {
    /// What it is about.
    of: String,
    /// Where it was found: a tag, or the digest of a referrer.
    found: String,
    kind: String,
}

#[derive(Serialize)]
struct Decision {
    admitted: bool,
    why: String,
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let policy = arguments.policy.as_ref().map(|path| {
        let policy = ImagePolicy::parse(&read_small(path)?);
        policy.with_context(|| path.display().to_string())
    });
    let policy = policy.transpose()?;
    let named = Named::read(&arguments.resource)?;
    let image = SourceImage::open(&arguments.image, arguments.access.config()?)
        .await
        .with_context(|| arguments.image.to_string())?;
    let config = image.config().await?;
    let mut shown = describe(arguments, &image, &config);
    match &image.source {
        Source::Registry(remote) => {
            shown.signatures = Some(signatures(remote, &named).await?);
            if let Some(policy) = &policy {
                shown.policy = Some(decide(policy, remote, &named).await);
            }
        }
        Source::Layout(_) => ensure!(
            policy.is_none(),
            "a policy judges the reference that a pod asks for; {} is a directory",
            arguments.image
        ),
    }
    arguments.output.show(&shown, text)?;
    let refused = shown.policy.is_some_and(|decision| !decision.admitted);
    Ok(if refused { Verdict::Bad } else { Verdict::Good })
}

fn describe(arguments: &Arguments, image: &SourceImage, config: &Value) -> Shown {
    let reference = match &image.source {
        Source::Registry(remote) => remote.reference(),
        Source::Layout(_) => arguments.image.to_string(),
    };
    let word = |name: &str| config.get(name).and_then(Value::as_str);
    let variant = word("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
    let [os, architecture] = ["os", "architecture"].map(|name| word(name).unwrap_or("unknown"));
    let layers = image.manifest.layers.iter().map(|layer| {
        let recipients = || {
            // What a guest cannot read is shown all the same.
            EncryptedLayer::parse(&layer.annotations)
                .map_or_else(|error| vec![format!("unreadable: {error}")], |read| read.recipients())
        };
        let encrypted_for = is_encrypted(&layer.media_type).then(recipients);
        let Descriptor { digest, size, media_type, .. } = layer.clone();
        ShownLayer { digest, size, media_type, encrypted_for }
    });
    Shown {
        reference,
        index: image.index.map(|digest| digest.to_string()),
        manifest: image.digest.to_string(),
        platform: printable(&format!("{os}/{architecture}{variant}")),
        created: word("created").map(printable),
        layers: layers.collect(),
        signatures: None,
        policy: None,
    }
}

async fn decide(policy: &ImagePolicy, image: &RemoteImage, named: &Named) -> Decision {
    match policy.admit(&image.subject(), &image.sources(named)).await {
        Ok(admitted) => Decision { admitted: true, why: admitted.reason().to_owned() },
        Err(refused) => Decision { admitted: false, why: refused.to_string() },
    }
}

/// What the repository has about the image: cosign's tags, and referrers.
async fn signatures(image: &RemoteImage, named: &Named) -> anyhow::Result<Vec<Signature>> {
    let sources = image.sources(named);
    let failed = |error: String| anyhow::anyhow!("looking for signatures: {error}");
    let mut found = Vec::new();
    for document in image.documents() {
        let digest = document.digest;
        let of = digest.to_string();
        for (suffix, kind) in [("sig", "cosign signature"), ("att", "cosign attestation")] {
            let tag = format!("{}-{}.{suffix}", digest.algorithm().name(), digest.hex());
            if let Some(manifest) = sources.manifest(&tag).await.map_err(failed)? {
                let count = count_layers(&manifest);
                let kind = format!("{kind}, {count} in all");
                found.push(Signature { of: of.clone(), found: tag, kind });
            }
        }
        let listed = referrers(&sources, &digest).await.map_err(failed)?;
        found.extend(listed.into_iter().map(|entry| Signature {
            of: of.clone(),
            kind: artifact_type(&entry),
            found: printable(&entry.digest),
        }));
    }
    Ok(found)
}

/// By the API, or where there is none, by the tag that stands in for it (distribution-spec 1.1).
async fn referrers(sources: &impl Sources, digest: &Digest) -> Result<Vec<Descriptor>, String> {
    let list = match sources.referrers(digest).await? {
        Some(list) => Some(list),
        None => {
            let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
            sources.manifest(&tag).await?
        }
    };
    let index = list.map(|list| Index::parse(&list)).transpose().map_err(|e| format!("{e:#}"))?;
    Ok(index.map(|index| index.manifests).unwrap_or_default())
}

fn artifact_type(entry: &Descriptor) -> String {
    let named = entry.others.get("artifactType").and_then(Value::as_str);
    printable(named.unwrap_or(&entry.media_type))
}

fn count_layers(manifest: &[u8]) -> usize {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    manifest.get("layers").and_then(Value::as_array).map_or(0, Vec::len)
}

fn text(shown: &Shown) -> String {
    let mut text = format!("reference  {}\n", shown.reference);
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:9}  {value}\n"));
    if let Some(index) = &shown.index {
        line("index", index);
    }
    line("manifest", &shown.manifest);
    line("platform", &shown.platform);
    if let Some(created) = &shown.created {
        line("created", created);
    }
    text.push('\n');
    let rows: Vec<[String; 5]> = shown
        .layers
        .iter()
        .enumerate()
        .map(|(number, layer)| {
            let whom = layer.encrypted_for.as_ref();
            let whom = whom.map_or("-".to_owned(), |whom| whom.join(", "));
            let kind = layer.media_type.rsplit_once(".v1.").map_or("", |(_, kind)| kind);
            let kind = if kind.is_empty() { layer.media_type.as_str() } else { kind };
            let layer_size = size(layer.size);
            [number.to_string(), layer.digest.clone(), layer_size, printable(kind), whom]
        })
        .collect();
    text.push_str(&table(["LAYER", "DIGEST", "SIZE", "TYPE", "ENCRYPTED FOR"], &rows));
    match shown.signatures.as_deref() {
        None => {}
        Some([]) => text.push_str("\nno signatures found\n"),
        Some(signatures) => {
            let row = |one: &Signature| [one.kind.clone(), one.of.clone(), one.found.clone()];
            let rows: Vec<[String; 3]> = signatures.iter().map(row).collect();
            text.push('\n');
            text.push_str(&table(["SIGNATURE (NOT VERIFIED)", "OF", "FOUND AS"], &rows));
        }
    }
    if let Some(decision) = &shown.policy {
        let word = if decision.admitted { "admitted" } else { "refused" };
        text.push_str(&format!("\npolicy: {word}: {}\n", decision.why));
    }
    text
}

/// Words of the image's author or its registry, for a terminal.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Resources that the caller has at hand.
struct Named(BTreeMap<ResourceUri, Zeroizing<Vec<u8>>>);

impl Named {
    fn read(options: &[String]) -> anyhow::Result<Named> {
        let read = |option: &String| {
            let (uri, file) = option
                .split_once('=')
                .with_context(|| format!("--resource {option}: write URI=FILE"))?;
            let uri: ResourceUri = uri.parse().with_context(|| format!("--resource {option}"))?;
            anyhow::Ok((uri, Zeroizing::new(read_small(file.as_ref())?)))
        };
        Ok(Named(options.iter().map(read).collect::<Result<_, _>>()?))
    }
}

#[async_trait]
impl Resources for Named {
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let named: ResourceUri = uri.parse().map_err(|error| format!("{uri}: {error}"))?;
        let found = self.0.get(&named).cloned();
        found.ok_or_else(|| format!("{uri} is in the key broker; give --resource {uri}=FILE"))
    }
}
