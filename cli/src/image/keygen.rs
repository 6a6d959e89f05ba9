//! `nacre image keygen`.

use std::path::{Path, PathBuf};

use clap::Args;
use nacre_image_security::sign::SigningKey;
use nacre_jose::Es256Key;

use super::registry::write_secret;
use crate::Verdict;
use crate::input::print;

/// Make a key pair that signs images, or that layers are encrypted to.
///
/// The private half signs (`nacre image sign`), or opens
/// layers: then it is put into the key broker. The public half goes into image policies, or is what
/// layers are encrypted to. Use one pair for one of both.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre image keygen -o signing.pem > signing.pub
  nacre image sign registry.example/web:1 --key signing.pem

  nacre image keygen -o layers.pem > layers.pub
  nacre image encrypt registry.example/web:1 registry.example/web:1-encrypted --recipient jwe:layers.pub
  nacre kbs secret set kbs:///default/web/layers --from layers.pem")]
pub(crate) struct Arguments {
    /// Where to write the private key (PKCS#8 PEM, P-256); it must not exist yet. The public key is printed.
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    make(&arguments.to)?;
    Ok(Verdict::Good)
}

fn make(to: &Path) -> anyhow::Result<()> {
    let key = Es256Key::generate()?;
    let public = SigningKey::from_pkcs8_pem(key.to_pem().as_bytes())?.public_key_pem();
    write_secret(to, key.to_pem().as_bytes())?;
    print(&public)
}
