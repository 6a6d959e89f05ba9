//! Where an image is written: a registry or a directory.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use nacre_trust::{Algorithm, Digest};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use super::layout::Layout;
use super::manifest::Descriptor;
use super::place::Place;
use super::registry::{Access, read_small};

/// Bytes of a blob that are sent at once.
const PIECE: usize = 1 << 20;

/// Takes blobs, then the manifest that names them.
pub(super) enum Target {
    Registry(Box<Pusher>),
    Layout { layout: Layout, tag: Option<String> },
}

/// One repository of a registry.
pub(super) struct Pusher {
    client: Client,
    reference: Reference,
    login: RegistryAuth,
}

impl Target {
    pub(super) async fn open(place: &Place, access: &Access) -> anyhow::Result<Target> {
        match place {
            Place::Layout { directory, tag } => {
                let layout = Layout::open_or_make(directory)?;
                Ok(Target::Layout { layout, tag: tag.clone() })
            }
            Place::Registry(reference) => {
                let reference: Reference =
                    reference.parse().map_err(|error| anyhow!("reference {reference}: {error}"))?;
                Ok(Target::Registry(Box::new(Pusher::open(reference, access).await?)))
            }
        }
    }

    /// What the tag names now.
    pub(super) async fn current(&self) -> Option<String> {
        match self {
            Target::Layout { layout, tag } => layout.tagged(tag.as_deref()),
            Target::Registry(pusher) => pusher.current().await,
        }
    }

    pub(super) async fn has(&self, digest: &Digest) -> bool {
        match self {
            Target::Layout { layout, .. } => layout.has(digest),
            Target::Registry(pusher) => pusher.has(digest).await,
        }
    }

    /// The file is read from its beginning and has these bytes.
    pub(super) async fn put_file(
        &self,
        digest: &Digest,
        size: u64,
        mut file: File,
    ) -> anyhow::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        match self {
            Target::Layout { layout, .. } => layout.put_file(digest, &mut file),
            Target::Registry(pusher) => pusher.put_file(digest, size, file).await,
        }
    }

    /// Everything that it names must be there. Gives it the tag.
    pub(super) async fn put_manifest(
        &self,
        document: &[u8],
        media_type: &str,
    ) -> anyhow::Result<Digest> {
        match self {
            Target::Layout { layout, tag } => {
                let digest = layout.put(document)?;
                let image = Descriptor::new(media_type, &digest, document.len() as u64);
                layout.name(tag.as_deref(), image)?;
                Ok(digest)
            }
            Target::Registry(pusher) => {
                pusher.put_manifest(&pusher.reference, document, media_type).await
            }
        }
    }
}

impl Pusher {
    pub(super) async fn open(reference: Reference, access: &Access) -> anyhow::Result<Pusher> {
        ensure!(
            reference.digest().is_none(),
            "{reference} names a digest, which nothing can be pushed to; name a tag"
        );
        let host = reference.registry();
        let login = match access.registries()?.credentials.password(host, reference.repository()) {
            Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        };
        let plain = access.is_plain(host);
        // As when pulling: nobody on the way shall read them.
        let login = if plain { RegistryAuth::Anonymous } else { login };
        let client = client(access, plain)?;
        client
            .auth(&reference, &login, RegistryOperation::Push)
            .await
            .map_err(|error| explain(host, &error, &login))?;
        Ok(Pusher { client, reference, login })
    }

    async fn current(&self) -> Option<String> {
        self.client.fetch_manifest_digest(&self.reference, &self.login).await.ok()
    }

    async fn has(&self, digest: &Digest) -> bool {
        let found = self.client.blob_exists(&self.reference, &digest.to_string()).await;
        found.unwrap_or(false)
    }

    /// Small content, under its SHA-256.
    pub(super) async fn put_bytes(&self, content: &[u8]) -> anyhow::Result<()> {
        let digest = Digest::of(Algorithm::Sha256, content);
        if self.has(&digest).await {
            return Ok(());
        }
        self.client
            .push_blob(&self.reference, content.to_vec(), &digest.to_string())
            .await
            .map_err(|error| self.failed(&error))
            .with_context(|| format!("failed to push {digest}"))?;
        Ok(())
    }

    async fn put_file(&self, digest: &Digest, size: u64, file: File) -> anyhow::Result<()> {
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece)?;
            piece.truncate(length);
            Ok::<_, OciDistributionError>((length > 0).then(|| (Bytes::from(piece), file)))
        });
        self.client
            .push_blob_stream(&self.reference, pieces, &digest.to_string(), Some(size))
            .await
            .map_err(|error| self.failed(&error))
            .with_context(|| format!("failed to push {digest}"))?;
        Ok(())
    }

    /// To the tag of `reference`, which is one of this repository, or by its digest.
    pub(super) async fn put_manifest(
        &self,
        reference: &Reference,
        document: &[u8],
        media_type: &str,
    ) -> anyhow::Result<Digest> {
        let kind = media_type.parse().context("a media type")?;
        self.client
            .push_manifest_raw(reference, document.to_vec(), kind)
            .await
            .map_err(|error| self.failed(&error))
            .with_context(|| format!("failed to push the manifest of {reference}"))?;
        Ok(Digest::of(Algorithm::Sha256, document))
    }

    fn failed(&self, error: &OciDistributionError) -> anyhow::Error {
        explain(self.reference.registry(), error, &self.login)
    }
}

fn explain(host: &str, error: &OciDistributionError, login: &RegistryAuth) -> anyhow::Error {
    let refused = matches!(
        error,
        OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::ServerError { code: 401 | 403, .. }
    );
    // It has words of the registry.
    let error: String = with_cause(error).chars().filter(|c| !c.is_control()).take(500).collect();
    match (refused, login) {
        (true, RegistryAuth::Anonymous) => anyhow!(
            "registry {host} demands credentials ({error}): log in (docker login {host}) or give --authfile"
        ),
        (true, _) => anyhow!("registry {host} refuses the credentials: {error}"),
        (false, _) => anyhow!("registry {host}: {error}"),
    }
}

/// What went wrong, and what was behind it in the end: a certificate, a name, a closed port.
fn with_cause(error: &OciDistributionError) -> String {
    let mut cause = std::error::Error::source(error);
    let mut last = String::new();
    while let Some(deeper) = cause {
        last = format!(": {deeper}");
        cause = deeper.source();
    }
    format!("{error}{last}")
}

fn client(access: &Access, plain: bool) -> anyhow::Result<Client> {
    // The library panics where the system has none, even if it is told to use others.
    if !system_has_certificates() {
        bail!(
            "the system has no file of CA certificates: install the package ca-certificates, or set \
             SSL_CERT_FILE to a file with some (PEM)"
        );
    }
    // A second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let protocol = if plain { ClientProtocol::Http } else { ClientProtocol::Https };
    let tls_certs_only = access.ca.as_deref().map(certificates).transpose()?.unwrap_or_default();
    let config = ClientConfig {
        protocol,
        tls_certs_only,
        // In one request: what every registry takes, however large the layer.
        use_monolithic_push: true,
        ..ClientConfig::default()
    };
    Client::try_from(config).context("failed to set up the connection to the registry")
}

fn system_has_certificates() -> bool {
    const FILES: [&str; 6] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
    named.iter().any(|name| std::env::var_os(name).is_some_and(|path| Path::new(&path).exists()))
        || FILES.iter().any(|file| Path::new(file).exists())
}

fn certificates(file: &Path) -> anyhow::Result<Vec<Certificate>> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8(read_small(file)?)
        .with_context(|| format!("{} is not PEM", file.display()))?;
    let blocks = text.split_inclusive(END).filter(|block| block.contains("BEGIN CERTIFICATE"));
    let found: Vec<Certificate> = blocks
        .map(|block| Certificate {
            encoding: CertificateEncoding::Pem,
            data: block.as_bytes().to_vec(),
        })
        .collect();
    ensure!(!found.is_empty(), "{} has no certificate (PEM)", file.display());
    Ok(found)
}
