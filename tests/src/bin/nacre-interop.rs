//! `nacre-interop`: the guest's key-broker client against another implementation's server.
//!
//! It sends what Trustee calls a sample TEE's evidence, which proves nothing and which a Trustee server
//! accepts in its default build. `nacre-kbs` accepts no such thing.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use nacre_kbs_client::{Client, EvidenceSource, Options, Timeouts};
use nacre_protocol::kbs::ResourceUri;
use serde_json::{Value, json};

/// Attests to a Trustee server with sample evidence and fetches a resource.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The server, such as `http://127.0.0.1:8080`.
    #[arg(long)]
    server: String,
    /// Certificate (PEM) that an https server's own is checked against.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What to fetch; the server's resource policy must allow it.
    #[arg(long, default_value = "kbs:///default/test/interop")]
    resource: ResourceUri,
}

struct Sample;

#[async_trait]
impl EvidenceSource for Sample {
    fn tee(&self) -> &str {
        "sample"
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, String> {
        // SHA-384: what follows is zero.
        Ok(json!({ "svn": "1", "report_data": STANDARD.encode(&report_data[..48]) }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { server, ca, resource } = Arguments::parse();
    let ca_pem = ca.map(std::fs::read_to_string).transpose().context("the certificate")?;
    let evidence = Arc::new(Sample);
    let timeouts = Timeouts::default();
    let client = Client::new(Options {
        url: server,
        ca_pem,
        init_data: None,
        evidence,
        timeouts,
        told_time: None,
    })?;
    let token = client.token().await.context("attestation")?;
    println!("attested: a token of {} bytes", token.token().len());
    let content = client.resource(&resource).await.context("the resource")?;
    println!("{resource}: {} bytes", content.len());
    Ok(())
}
