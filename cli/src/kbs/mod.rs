//! `nacre kbs`: runs a key broker and administers one.

mod audit;
mod collateral;
mod explain;
mod grant;
mod policy;
mod reference_value;
mod secret;
mod server;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use nacre_kbs::admin::Client;

use crate::Verdict;
use crate::input::read_text;
use crate::output::Output;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Init(server::Init),
    Serve(server::Serve),
    /// Secrets: what the broker keeps and releases.
    #[command(subcommand)]
    Secret(secret::Command),
    /// Grants: which pods, by their initdata, get which secrets.
    #[command(subcommand)]
    Grant(grant::Command),
    /// The resource policy (Rego), in place of grants.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Reference values: what a genuine guest measures.
    #[command(subcommand, name = "reference-value")]
    ReferenceValue(reference_value::Command),
    /// The audit log: who got what, and why not.
    #[command(subcommand)]
    Audit(audit::Command),
    Explain(explain::Arguments),
    /// Certificates and the like that the broker would otherwise ask a mirror for.
    #[command(subcommand)]
    Collateral(collateral::Command),
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Init(arguments) => server::init(&arguments),
        Command::Serve(arguments) => server::serve(&arguments),
        Command::Secret(command) => secret::run(command),
        Command::Grant(command) => grant::run(command),
        Command::Policy(command) => policy::run(command),
        Command::ReferenceValue(command) => reference_value::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Collateral(command) => collateral::run(command),
    }
}

/// Which broker, and who asks.
#[derive(Args)]
struct Administrator {
    /// URL of the broker.
    #[arg(
        long,
        env = "NACRE_KBS_URL",
        value_name = "URL",
        default_value = "https://localhost:8080"
    )]
    url: String,
    /// Certificate (PEM) that the broker's own certificate is checked against; not needed for http.
    #[arg(long, env = "NACRE_KBS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The administrator's private key, made by `nacre kbs init`.
    #[arg(long, env = "NACRE_KBS_ADMIN_KEY", value_name = "FILE")]
    admin_key: PathBuf,
}

/// What to list.
#[derive(Args)]
pub(crate) struct Listing {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    administrator: Administrator,
}

/// One of the things that have a name.
#[derive(Args)]
pub(crate) struct Named {
    /// Its name, as the list has it.
    id: String,
    #[command(flatten)]
    administrator: Administrator,
}

impl Administrator {
    fn client(&self) -> anyhow::Result<Client> {
        ensure!(
            self.url.starts_with("http://") || self.ca.is_some(),
            "--ca (or NACRE_KBS_CA) is needed for {}: tls.crt of the directory that `nacre kbs init` made, or \
             the CA that signed the broker's certificate",
            self.url
        );
        let key = read_text(&self.admin_key)?;
        let ca = self.ca.as_deref().map(read_text).transpose()?;
        Client::new(&self.url, ca.as_deref(), &key)
            .with_context(|| format!("the administrator's connection to {}", self.url))
    }
}

/// Runs the one request of a command.
fn block_on<T>(request: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(request)
}
