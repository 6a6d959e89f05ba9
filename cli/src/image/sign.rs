//! `nacre image sign`.

use std::path::PathBuf;

use anyhow::{Context, Error, bail};
use clap::{Args, ValueEnum};
use nacre_image_pull::{NoResources, RemoteImage};
use nacre_image_security::Sources;
use nacre_image_security::sign::{self, Attachment, SigningKey};
use nacre_trust::Digest;
use oci_client::Reference;
use zeroize::Zeroizing;

use super::manifest::media_type;
use super::place::Place;
use super::push::Pusher;
use super::registry::{Access, read_small};
use crate::Verdict;
use crate::input::print;

/// Sign a container image: what a tag names now, by its digest.
///
/// The signature goes into the repository of the image, in one of cosign's two forms, where image policies of
/// guests find it, and cosign, skopeo and podman do too. It vouches for the digest and for the name, so the image
/// cannot be put in another one's place. For a list of platforms, the list is signed. Signatures that are there
/// already stay. Prints where the signature is.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre image keygen -o signing.pem > signing.pub
  nacre image sign registry.example/web:1 --key signing.pem
  nacre image sign registry.example/web:1 --key signing.pem --format bundle

A policy (image-policy.toml) that demands it:
  default = \"reject\"
  [[image]]
  match = \"registry.example/web\"
  require = [{ cosign-key = \"kbs:///default/web/signing-key\" }]

and whether it admits the image:
  nacre image inspect registry.example/web:1 --policy image-policy.toml \\
      --resource kbs:///default/web/signing-key=signing.pub

Exit status: 0 signed; 2 something stands in the way.")]
pub(crate) struct Arguments {
    /// The image: HOST/PATH:TAG. A signature of HOST/PATH@DIGEST names no tag.
    #[arg(value_name = "REF")]
    image: Place,
    /// Private key: P-256, PKCS#8 PEM without a passphrase, as `nacre image keygen` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How the signature is kept.
    #[arg(long, value_enum, default_value_t = Format::CosignLegacy)]
    format: Format,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Under the tag sha256-DIGEST.sig: cosign to version 2, skopeo, podman, cri-o.
    CosignLegacy,
    /// As a sigstore bundle that refers to the image: cosign from version 3.
    Bundle,
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let Place::Registry(reference) = &arguments.image else {
        bail!("{}: images are signed in a registry", arguments.image);
    };
    let pem = Zeroizing::new(read_small(&arguments.key)?);
    let key = SigningKey::from_pkcs8_pem(&pem);
    let key = key.with_context(|| arguments.key.display().to_string())?;
    let image = RemoteImage::open(arguments.access.config()?, reference)
        .await
        .with_context(|| reference.clone())?;
    let document = image.documents().first().context("the registry gave no manifest")?;
    let repository = Repository::open(&image, &arguments.access).await?;
    let (name, kind) = (repository.name(), media_type(&document.bytes)?);
    let target = sign::Target {
        name: &name,
        media_type: &kind,
        digest: document.digest,
        size: document.bytes.len() as u64,
    };
    let signed = match arguments.format {
        Format::CosignLegacy => repository.sign_classic(&key, &target).await?,
        Format::Bundle => repository.sign_bundle(&key, &target).await?,
    };
    eprintln!("signed {} as {name}", document.digest);
    print(&format!("{signed}\n"))?;
    Ok(Verdict::Good)
}

const LOOKING: &str = "failed to look for signatures that are there already";

/// Where the image is, for reading and for writing.
struct Repository<'a> {
    image: &'a RemoteImage,
    host: String,
    path: String,
    tag: Option<String>,
    pusher: Pusher,
}

impl Repository<'_> {
    async fn open<'a>(image: &'a RemoteImage, access: &Access) -> anyhow::Result<Repository<'a>> {
        let subject = image.subject();
        let (host, path, tag) = (subject.host, subject.path, subject.tag);
        let place = Reference::with_tag(host.clone(), path.clone(), "latest".to_owned());
        let pusher = Pusher::open(place, access).await?;
        Ok(Repository { image, host, path, tag, pusher })
    }

    /// What the signature vouches for.
    fn name(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{}/{}{tag}", self.host, self.path)
    }

    async fn sign_classic(
        &self,
        key: &SigningKey,
        target: &sign::Target<'_>,
    ) -> anyhow::Result<String> {
        let tag = format!("{}.sig", tag_of(&target.digest));
        let previous = self.manifest(&tag).await?;
        self.push(&sign::cosign(key, target, previous.as_deref())?).await
    }

    async fn sign_bundle(
        &self,
        key: &SigningKey,
        target: &sign::Target<'_>,
    ) -> anyhow::Result<String> {
        let bundle = sign::bundle(key, target)?;
        let pushed = self.push(&bundle).await?;
        let listed = self.image.sources(&NoResources).referrers(&target.digest).await;
        if listed.map_err(Error::msg).context(LOOKING)?.is_none() {
            // The registry does not list referrers: an index under a tag does.
            let previous = self.manifest(&tag_of(&target.digest)).await?;
            self.push(&sign::referrers_index(target, &bundle, previous.as_deref())?).await?;
        }
        Ok(pushed)
    }

    async fn manifest(&self, tag: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let found = self.image.sources(&NoResources).manifest(tag).await;
        found.map_err(Error::msg).context(LOOKING)
    }

    async fn push(&self, attachment: &Attachment) -> anyhow::Result<String> {
        for blob in &attachment.blobs {
            self.pusher.put_bytes(blob).await?;
        }
        let (host, path) = (self.host.clone(), self.path.clone());
        let under = attachment.reference.clone();
        let reference = if under.parse::<Digest>().is_ok() {
            Reference::with_digest(host, path, under)
        } else {
            Reference::with_tag(host, path, under)
        };
        self.pusher.put_manifest(&reference, &attachment.manifest, attachment.media_type).await?;
        Ok(reference.whole())
    }
}

fn tag_of(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}
