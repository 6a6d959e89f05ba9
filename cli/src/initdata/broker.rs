//! The key broker, as initdata names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use nacre_protocol::kbs::ResourceUri;

use crate::input::read_text;

/// Where containers find resources as files.
const CREDENTIALS: &str = "/run/confidential-containers/";

/// Where a guest gets its secrets.
#[derive(Args)]
pub(crate) struct BrokerOptions {
    /// Where the guest reaches the key broker: its URL goes into aa.toml and cdh.toml.
    #[arg(long, value_name = "URL")]
    kbs_url: Option<String>,
    /// Certificate (PEM) that the broker's own certificate is checked against: a CA, or the broker's itself
    /// [default: the public CAs in the guest image].
    #[arg(long, value_name = "FILE", requires = "kbs_url")]
    kbs_cert: Option<PathBuf>,
    /// A resource that containers find as a file, as `PATH=kbs:///repository/type/name`, with a PATH beneath
    /// /run/confidential-containers/. May be given several times.
    #[arg(long, value_name = "PATH=URI", requires = "kbs_url")]
    secret_file: Vec<String>,
}

impl BrokerOptions {
    /// Puts what they say, if anything, into the files of an initdata document.
    pub(crate) fn add(&self, files: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
        let Some(url) = &self.kbs_url else { return Ok(()) };
        let broker = Broker::new(url, self.kbs_cert.as_deref(), &self.secret_file)?;
        files.insert("aa.toml".to_owned(), broker.attestation_agent()?);
        files.insert("cdh.toml".to_owned(), broker.data_hub()?);
        Ok(())
    }
}

/// Where a guest gets its secrets, in the words of Confidential Containers' two files.
struct Broker {
    url: String,
    certificate: Option<String>,
    secret_files: Vec<(String, ResourceUri)>,
}

impl Broker {
    fn new(url: &str, certificate: Option<&Path>, secrets: &[String]) -> anyhow::Result<Broker> {
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let host = host.unwrap_or_default().trim_end_matches('/');
        ensure!(
            !host.is_empty() && !host.contains(['/', '?', '#', '@']),
            "--kbs-url {url:?} is not of the form https://host[:port]"
        );
        if url.starts_with("http://") {
            eprintln!(
                "note: over plain HTTP everyone on the way learns which secrets the pod asks for (their \
                 contents stay encrypted) and can keep them from it"
            );
        }
        let certificate = certificate.map(read_text).transpose()?;
        if let Some(text) = &certificate {
            ensure!(
                text.contains("-----BEGIN CERTIFICATE-----") && !text.contains("PRIVATE KEY"),
                "--kbs-cert is not a certificate in PEM form"
            );
        }
        let secret_files = secrets.iter().map(|text| {
            let (path, uri) = text.split_once('=').context("--secret-file is PATH=URI")?;
            ensure!(
                path.starts_with(CREDENTIALS),
                "--secret-file {text}: the path must be beneath {CREDENTIALS}"
            );
            Ok((path.to_owned(), uri.parse().with_context(|| format!("--secret-file {text}"))?))
        });
        let secret_files = secret_files.collect::<anyhow::Result<_>>()?;
        Ok(Broker { url: url.trim_end_matches('/').to_owned(), certificate, secret_files })
    }

    fn attestation_agent(&self) -> anyhow::Result<String> {
        let mut kbs = toml::Table::new();
        kbs.insert("url".into(), self.url.clone().into());
        kbs.extend(self.certificate.clone().map(|text| ("cert".to_owned(), text.into())));
        let configs = toml::Table::from_iter([("kbs".to_owned(), kbs.into())]);
        let file = toml::Table::from_iter([("token_configs".to_owned(), configs.into())]);
        Ok(toml::to_string(&file)?)
    }

    fn data_hub(&self) -> anyhow::Result<String> {
        let mut kbc = toml::Table::new();
        kbc.insert("name".into(), "cc_kbc".into());
        kbc.insert("url".into(), self.url.clone().into());
        kbc.extend(self.certificate.clone().map(|text| ("kbs_cert".to_owned(), text.into())));
        let mut file = toml::Table::from_iter([("kbc".to_owned(), kbc.into())]);
        let credentials = self.secret_files.iter().map(|(path, uri)| {
            let mut entry = toml::Table::new();
            entry.insert("path".into(), path.clone().into());
            entry.insert("resource_uri".into(), uri.to_string().into());
            toml::Value::Table(entry)
        });
        let credentials: Vec<_> = credentials.collect();
        if !credentials.is_empty() {
            file.insert("credentials".into(), credentials.into());
        }
        Ok(toml::to_string(&file)?)
    }
}
