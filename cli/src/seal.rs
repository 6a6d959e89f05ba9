//! `nacre seal`: secrets that travel through Kubernetes closed.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use nacre_jose::Es256Key;
use nacre_kbs_client::seal::{Signer, seal_envelope, seal_vault};
use nacre_protocol::kbs::ResourceUri;
use nacre_protocol::sealed::KEY_LENGTH;

use crate::Verdict;
use crate::input::{print, read, read_text};

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Key(Key),
    Vault(Vault),
    Envelope(Envelope),
}

/// Make a key that signs sealed secrets.
///
/// The private half stays with the owner. The public half goes to the key broker, where guests fetch it to
/// check what they are given.
#[derive(Args)]
#[command(after_help = "Example:
  nacre seal key -o seal.pem > seal.jwk
  nacre kbs secret set kbs:///default/seal/key --from seal.jwk
  nacre kbs grant add web --initdata web.yaml --resource default/seal/key --resource 'default/web/*'")]
pub(crate) struct Key {
    /// Where to write the private key (PEM); it must not exist yet. The public key is printed.
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: PathBuf,
}

/// Seal the name of a secret that the key broker keeps.
#[derive(Args)]
#[command(after_help = "Example:
  nacre seal vault kbs:///default/web/password --key seal.pem --public-key kbs:///default/seal/key

The result goes into the value of an environment variable or of a Kubernetes Secret; containers see the secret
itself.")]
pub(crate) struct Vault {
    /// Where the secret is: `kbs:///repository/type/name`
    uri: ResourceUri,
    #[command(flatten)]
    signer: Signature,
}

/// Seal a secret itself, encrypted under a key that the key broker keeps.
#[derive(Args)]
#[command(after_help = "Example:
  openssl rand 32 > wrapping.key
  nacre kbs secret set kbs:///default/web/wrapping --from wrapping.key
  nacre seal envelope --from password.txt --wrapping-key wrapping.key \\
      --wrapping-key-uri kbs:///default/web/wrapping --key seal.pem --public-key kbs:///default/seal/key")]
pub(crate) struct Envelope {
    /// The secret; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The wrapping key: 32 bytes.
    #[arg(long, value_name = "FILE")]
    wrapping_key: PathBuf,
    /// Where guests get the wrapping key.
    #[arg(long, value_name = "URI")]
    wrapping_key_uri: ResourceUri,
    #[command(flatten)]
    signer: Signature,
}

#[derive(Args)]
struct Signature {
    /// Private key, made by `nacre seal key`.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where guests get the public key.
    #[arg(long, value_name = "URI")]
    public_key: ResourceUri,
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Key(arguments) => make_key(&arguments.to)?,
        Command::Vault(Vault { uri, signer }) => {
            let key = signer.key()?;
            let signer = Signer { key: &key, public_key: &signer.public_key };
            print(&format!("{}\n", seal_vault(&uri, &signer)?))?;
        }
        Command::Envelope(arguments) => seal(&arguments)?,
    }
    Ok(Verdict::Good)
}

fn make_key(to: &Path) -> anyhow::Result<()> {
    let key = Es256Key::generate()?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .and_then(|mut file| file.write_all(key.to_pem().as_bytes()))
        .with_context(|| format!("failed to write {}", to.display()))?;
    print(&format!("{}\n", serde_json::to_string(&key.public())?))
}

fn seal(arguments: &Envelope) -> anyhow::Result<()> {
    let path = &arguments.wrapping_key;
    let wrapping: [u8; KEY_LENGTH] = read(path)?.try_into().map_err(|other: Vec<u8>| {
        anyhow!("{} has {} bytes; a wrapping key has {KEY_LENGTH}", path.display(), other.len())
    })?;
    let secret = read(&arguments.from)?;
    let key = arguments.signer.key()?;
    let signer = Signer { key: &key, public_key: &arguments.signer.public_key };
    print(&format!(
        "{}\n",
        seal_envelope(&secret, &wrapping, &arguments.wrapping_key_uri, &signer)?
    ))
}

impl Signature {
    fn key(&self) -> anyhow::Result<Es256Key> {
        let text = read_text(&self.key)?;
        Es256Key::from_pem(&text).with_context(|| self.key.display().to_string())
    }
}
