//! How the commands reach registries.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nacre_image_pull::{InspectConfig, Limits, Registries};

use crate::images::credentials;

/// Options that all commands share.
#[derive(Args, Clone)]
pub(crate) struct Access {
    /// Credentials for private images, as docker's config.json [default: what `docker login` keeps in
    /// `$DOCKER_CONFIG` or `~/.docker`].
    #[arg(long, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,
    /// Certificates (PEM) that registries' own ones are checked against [default: the system's].
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// A registry that is asked over plain HTTP: whoever sits between can choose what a tag means. It gets no
    /// credentials. May be given several times.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) danger_plain_http: Vec<String>,
}

impl Access {
    pub(super) fn registries(&self) -> anyhow::Result<Registries> {
        Ok(Registries {
            credentials: credentials(self.authfile.as_deref())?,
            danger_plain_http: self.danger_plain_http.clone(),
            ca_file: self.ca.clone(),
            ..Registries::default()
        })
    }

    pub(super) fn config(&self) -> anyhow::Result<InspectConfig> {
        Ok(InspectConfig { registries: self.registries()?, limits: Limits::default() })
    }

    pub(super) fn is_plain(&self, host: &str) -> bool {
        self.danger_plain_http.iter().any(|plain| plain == host)
    }
}

/// Reads a file whose content is small.
pub(super) fn read_small(path: &Path) -> anyhow::Result<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LIMIT + 1).read_to_end(&mut content))
        .with_context(|| format!("failed to read {}", path.display()))?;
    anyhow::ensure!(content.len() as u64 <= LIMIT, "{} is larger than 1 MiB", path.display());
    Ok(content)
}

/// Writes a new file that nobody else may read.
pub(super) fn write_secret(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("failed to write {}", path.display()))
}
