//! `nacre image encrypt`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use clap::{ArgGroup, Args};
use nacre_image_encryption::{
    EncryptedLayer, LayerEncryptor, MEDIA_TYPE_SUFFIX, PROVIDER_KEY_LENGTH, PublicKey, Recipient,
    is_encrypted, new_provider_key,
};
use nacre_protocol::kbs::ResourceUri;
use oci_client::Reference;
use zeroize::Zeroizing;

use super::manifest::{Descriptor, OCI_MANIFEST, size};
use super::place::Place;
use super::push::Target;
use super::registry::{Access, read_small, write_secret};
use super::source::SourceImage;
use crate::Verdict;
use crate::input::print;

/// Encrypt the layers of a container image: only pods that get the key can run it.
///
/// Each layer gets a new key of its own, which is wrapped for every recipient in the image's manifest. The
/// guest fetches the recipient's key from the key broker after it has proved what it is, and decrypts while
/// it pulls; the host and the registry see only ciphertext. The image's configuration (entry point,
/// environment, history) and the sizes of its layers stay readable.
///
/// The image for linux/amd64 is taken; other platforms of a list are not. Prints the new reference.
#[derive(Args)]
#[command(group(ArgGroup::new("whom").args(["key_id", "recipient"]).required(true).multiple(true)))]
#[command(after_help = "Examples:
  nacre image encrypt registry.example/web:1 registry.example/web:1-encrypted \\
      --key-id kbs:///default/web/image-key --generate-key image.key
  nacre kbs secret set kbs:///default/web/image-key --from image.key

  nacre image encrypt oci:build:web registry.example/web:2 --key-id kbs:///default/web/image-key \\
      --key-file image.key --layer -1
  nacre image encrypt registry.example/web:1 oci:encrypted:web --recipient jwe:layers.pub

Layers go through a temporary file ($TMPDIR), which only ever holds ciphertext and layers that
stay as they are. Other tools read the result: skopeo copy --decryption-key layers.pem for
jwe: recipients, Confidential Containers' guests for keys of the broker.

Exit status: 0 written; 2 something stands in the way.")]
pub(crate) struct Arguments {
    /// The image: HOST/PATH:TAG, or oci:DIRECTORY:TAG.
    #[arg(value_name = "SRC")]
    source: Place,
    /// Where to write the encrypted image, in the same forms.
    #[arg(value_name = "DST")]
    target: Place,
    /// Where guests get the key: `kbs:///repository/type/name`.
    #[arg(long, value_name = "URI")]
    key_id: Option<ResourceUri>,
    /// The key: 32 bytes.
    #[arg(long, value_name = "FILE", requires = "key_id", conflicts_with = "generate_key")]
    key_file: Option<PathBuf>,
    /// Make a new key in this file, which must not exist yet.
    #[arg(long, value_name = "FILE", requires = "key_id")]
    generate_key: Option<PathBuf>,
    /// A public key (PEM: P-256, P-384, P-521 or RSA) whose private half opens the layers: jwe:FILE. May be given
    /// several times.
    #[arg(long, value_name = "jwe:FILE")]
    recipient: Vec<String>,
    /// Encrypt only this layer, by its number in `nacre image inspect`; -1 is the last [default: all]. May be given
    /// several times.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    layer: Vec<i64>,
    /// Allow DST to be SRC: the tag then names the encrypted image only.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    access: Access,
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    ensure!(
        arguments.replace || !is_same(&arguments.source, &arguments.target)?,
        "{} would be replaced by its encrypted form; name another tag, or give --replace",
        arguments.source
    );
    let image = SourceImage::open(&arguments.source, arguments.access.config()?)
        .await
        .with_context(|| arguments.source.to_string())?;
    if let Some(index) = image.index {
        eprintln!("{} is a list of platforms ({index}); taking linux/amd64", arguments.source);
    }
    let mut manifest = image.manifest.clone().into_oci()?;
    let mut chosen = chosen(&arguments.layer, manifest.layers.len())?;
    chosen.retain(|number| !is_encrypted(&manifest.layers[*number].media_type));
    ensure!(!chosen.is_empty(), "there is nothing to do: the layers are encrypted already");
    let target = Target::open(&arguments.target, &arguments.access).await?;
    let recipients = arguments.recipients()?;
    if let Some(current) = target.current().await {
        eprintln!("{} names {current} until now", arguments.target);
    }

    // The smallest first: whoever may not write here is told at once.
    copy(&image, &target, &manifest.config, "configuration").await?;
    for (number, layer) in manifest.layers.iter_mut().enumerate() {
        if chosen.contains(&number) {
            *layer = encrypt(&image, &target, layer, &recipients, number).await?;
        } else {
            copy(&image, &target, layer, &format!("layer {number}")).await?;
        }
    }
    let digest = target.put_manifest(&manifest.to_bytes()?, OCI_MANIFEST).await?;
    eprintln!("{} of {} layers encrypted", chosen.len(), manifest.layers.len());
    arguments.tell_what_comes_next();
    print(&format!("{}@{digest}\n", arguments.target))?;
    Ok(Verdict::Good)
}

impl Arguments {
    fn recipients(&self) -> anyhow::Result<Vec<Recipient>> {
        let mut recipients = Vec::new();
        for recipient in &self.recipient {
            let file = recipient.strip_prefix("jwe:").with_context(|| {
                format!("--recipient {recipient}: only jwe:FILE, a public key in PEM, is supported")
            })?;
            let key = PublicKey::parse(&read_small(Path::new(file))?);
            recipients.push(Recipient::Jwe(key.with_context(|| file.to_owned())?));
        }
        if let Some(key_id) = &self.key_id {
            recipients.push(Recipient::Provider { key_id: key_id.clone(), key: self.key()? });
        }
        Ok(recipients)
    }

    fn key(&self) -> anyhow::Result<Zeroizing<[u8; PROVIDER_KEY_LENGTH]>> {
        match (&self.key_file, &self.generate_key) {
            (Some(path), _) => {
                let content = Zeroizing::new(read_small(path)?);
                let key = content.as_slice().try_into().map_err(|_| {
                    anyhow!(
                        "{} has {} bytes; a key has {PROVIDER_KEY_LENGTH}: make one with --generate-key",
                        path.display(),
                        content.len()
                    )
                })?;
                Ok(Zeroizing::new(key))
            }
            (None, Some(path)) => {
                let key = new_provider_key()?;
                write_secret(path, key.as_slice())?;
                Ok(key)
            }
            (None, None) => bail!(
                "--key-id says where guests get the key; give the key itself with --key-file, or make one with \
                 --generate-key"
            ),
        }
    }

    fn tell_what_comes_next(&self) {
        if let Some(uri) = &self.key_id {
            let file = self.key_file.as_ref().or(self.generate_key.as_ref());
            let file = file.map(|path| path.display().to_string()).unwrap_or_default();
            eprintln!(
                "next: put the key into the broker, and grant it to the pod:\n  \
                 nacre kbs secret set {uri} --from {file}\n  \
                 nacre kbs grant add NAME --initdata POD.yaml --resource {}",
                uri.path()
            );
        }
        if !self.recipient.is_empty() {
            eprintln!(
                "next: put the private key into the broker, and name it in the pod's initdata:\n  \
                 nacre kbs secret set kbs:///default/NAME/layers --from PRIVATE.pem\n  \
                 nacre initdata create --layer-key kbs:///default/NAME/layers ..."
            );
        }
    }
}

/// The numbers of the layers that are meant.
fn chosen(layers: &[i64], count: usize) -> anyhow::Result<BTreeSet<usize>> {
    if layers.is_empty() {
        return Ok((0..count).collect());
    }
    let absolute = |number: &i64| {
        let from_end = || count.checked_sub(usize::try_from(number.unsigned_abs()).ok()?);
        let number = usize::try_from(*number).ok().or_else(from_end);
        number.filter(|number| *number < count)
    };
    let all = layers.iter().map(|number| {
        absolute(number)
            .with_context(|| format!("--layer {number}: the image has {count} layers, from 0 on"))
    });
    all.collect()
}

async fn encrypt(
    image: &SourceImage,
    target: &Target,
    layer: &Descriptor,
    recipients: &[Recipient],
    number: usize,
) -> anyhow::Result<Descriptor> {
    let mut meter = Meter::new(format!("layer {number}: encrypting"), layer.size);
    let mut encryptor = LayerEncryptor::new(tempfile::tempfile()?, layer.digest()?.algorithm())?;
    image
        .read(layer, &mut |piece| {
            meter.add(piece.len());
            Ok(encryptor.write_all(piece)?)
        })
        .await?;
    meter.done();
    let (sealed, file) = encryptor.finish()?;
    // The reader has verified it; this is what was encrypted.
    ensure!(*sealed.plaintext_digest() == layer.digest()?, "layer {number} was changed on its way");
    send(target, sealed.digest(), sealed.size(), file, number).await?;
    let media_type = format!("{}{MEDIA_TYPE_SUFFIX}", layer.media_type);
    let mut encrypted = Descriptor::new(&media_type, sealed.digest(), sealed.size());
    encrypted.annotations = sealed.annotations(recipients, &layer.annotations)?;
    // What this program will read again.
    EncryptedLayer::parse(&encrypted.annotations)?;
    Ok(encrypted)
}

async fn send(
    target: &Target,
    digest: &nacre_trust::Digest,
    bytes: u64,
    file: File,
    number: usize,
) -> anyhow::Result<()> {
    eprintln!("layer {number}: writing {} as {digest}", size(bytes));
    target.put_file(digest, bytes, file).await
}

/// As it is, unless it is there already.
async fn copy(
    image: &SourceImage,
    target: &Target,
    blob: &Descriptor,
    what: &str,
) -> anyhow::Result<()> {
    let digest = blob.digest()?;
    if target.has(&digest).await {
        return Ok(());
    }
    let mut meter = Meter::new(format!("{what}: copying"), blob.size);
    let mut file = tempfile::tempfile()?;
    image
        .read(blob, &mut |piece| {
            meter.add(piece.len());
            Ok(file.write_all(piece)?)
        })
        .await?;
    meter.done();
    target.put_file(&digest, blob.size, file).await
}

/// Whether both name one tag.
fn is_same(source: &Place, target: &Place) -> anyhow::Result<bool> {
    match (source, target) {
        (Place::Registry(source), Place::Registry(target)) => {
            let parse = |text: &str| -> anyhow::Result<Reference> {
                text.parse().map_err(|error| anyhow!("reference {text}: {error}"))
            };
            let (source, target) = (parse(source)?, parse(target)?);
            let place = |of: &Reference| (of.registry().to_owned(), of.repository().to_owned());
            let same_tag = source.tag() == target.tag() && source.digest().is_none();
            Ok(place(&source) == place(&target) && same_tag)
        }
        (Place::Layout { directory: a, tag: one }, Place::Layout { directory: b, tag: other }) => {
            let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
            Ok(real(a) == real(b) && one == other)
        }
        _ => Ok(false),
    }
}

/// How far a blob is, on standard error.
struct Meter {
    what: String,
    total: u64,
    done: u64,
    shown: u64,
    live: bool,
}

impl Meter {
    fn new(what: String, total: u64) -> Meter {
        let live = std::io::stderr().is_terminal();
        Meter { what, total, done: 0, shown: 0, live }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let percent = self.done * 100 / self.total.max(1);
        if self.live && percent > self.shown {
            self.shown = percent;
            eprint!("\r{} {} ({percent} %)", self.what, size(self.total));
        }
    }

    fn done(&self) {
        let (start, end) = if self.live { ("\r", "        ") } else { ("", "") };
        eprintln!("{start}{} {}{end}", self.what, size(self.total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_chosen_from_both_ends() {
        assert_eq!(chosen(&[], 3).unwrap(), [0, 1, 2].into());
        assert_eq!(chosen(&[-1, 0, 2], 3).unwrap(), [0, 2].into());
        for wrong in [3, -4, i64::MIN, i64::MAX] {
            assert!(chosen(&[wrong], 3).unwrap_err().to_string().contains("3 layers"));
        }
    }

    #[test]
    fn the_same_tag_is_found_in_every_spelling() {
        let same = |a: &str, b: &str| is_same(&a.parse().unwrap(), &b.parse().unwrap()).unwrap();
        assert!(same("busybox", "docker.io/library/busybox:latest"));
        assert!(same("r.example:5000/a/b:1", "docker://r.example:5000/a/b:1"));
        assert!(!same("r.example/a:1", "r.example/a:2"));
        assert!(!same("oci:a:1", "r.example/a:1"));
        assert!(same("oci:/tmp:1", "oci:/tmp/../tmp:1"));
        let digest = format!("r.example/a@sha256:{}", "ab".repeat(32));
        assert!(!same(&digest, "r.example/a:latest"));
    }
}
