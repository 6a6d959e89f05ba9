//! `nacre-kbs`: a key broker as a program of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nacre_kbs::InitOptions;

/// A key broker: secrets for pods that prove what they are.
///
/// Begin with `nacre-kbs init DIR`, start it with `nacre-kbs serve --config DIR/config.toml`, and
/// administer it with `nacre kbs`: register reference values (`nacre measure`), set secrets, and grant
/// them to pods.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    ///
    /// The log goes to standard error; `NACRE_LOG` chooses what (such as `info` or `nacre_kbs=debug`).
    Serve {
        /// The configuration; `nacre-kbs init` makes one that explains itself.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make keys, a self-signed certificate and a configuration.
    ///
    /// In DIR: config.toml (every setting explained), store.key (keep it apart from backups), admin.key
    /// (give it to the administrator), admin.pub, tls.crt (give it to clients as their CA), tls.key.
    Init {
        /// The directory; nothing in it is overwritten.
        directory: PathBuf,
        /// A host name or address by which clients know the broker. May be given several times.
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
        /// Address and port.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Believe reports of the emulated processors whose root is in this directory. For development:
        /// they prove nothing.
        #[arg(long, value_name = "DIR")]
        danger_emulated: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Serve { config } => {
            let filter = tracing_subscriber::EnvFilter::try_from_env("NACRE_LOG")
                .unwrap_or_else(|_| "info".into());
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            nacre_kbs::serve(&config).with_context(|| format!("broker of {}", config.display()))
        }
        Command::Init { directory, names, listen, danger_emulated } => {
            let options = InitOptions { names, listen, danger_emulated };
            let made = nacre_kbs::init(&directory, &options)?;
            println!("made {}", made.config.display());
            println!("serve:      nacre-kbs serve --config {}", made.config.display());
            println!("clients:    {} is their CA", made.certificate.display());
            println!("administer: nacre kbs --admin-key {} ...", made.admin_key.display());
            Ok(())
        }
    }
}
