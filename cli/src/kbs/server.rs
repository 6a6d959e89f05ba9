//! `nacre kbs init` and `nacre kbs serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nacre_emulated::RsaBits;
use nacre_kbs::InitOptions;

use crate::Verdict;
use crate::input::print;

/// Make a directory with everything that a new key broker needs: keys, certificate, configuration.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs init /var/lib/nacre-kbs --name kbs.example --name 192.0.2.7

Keep store.key apart from backups of the store, and admin.key with the administrator.")]
pub(crate) struct Init {
    /// The directory; it must be empty or not exist yet.
    directory: PathBuf,
    /// Name or address by which guests reach the broker, for its certificate. May be given several times.
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    name: Vec<String>,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Believe the emulated secure processors of the installation with this directory; its root is made if
    /// there is none. They prove nothing: for development.
    #[arg(long, value_name = "DIRECTORY")]
    danger_emulated: Option<PathBuf>,
}

/// Run a key broker until it is told to end (SIGTERM, SIGINT).
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs serve --config /var/lib/nacre-kbs/config.toml
  
  It logs to standard error; NACRE_LOG=debug says more.")]
pub(crate) struct Serve {
    /// Its configuration, made by `nacre kbs init`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn init(arguments: &Init) -> anyhow::Result<Verdict> {
    if let Some(directory) = &arguments.danger_emulated {
        nacre_emulated::Root::open_or_create(directory, RsaBits::AsAmd)
            .context("the emulated secure processors' root")?;
    }
    let options = InitOptions {
        names: arguments.name.clone(),
        listen: arguments.listen,
        danger_emulated: arguments.danger_emulated.clone(),
    };
    let made = nacre_kbs::init(&arguments.directory, &options)?;
    let host = arguments.name.first().map_or("localhost", String::as_str);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let (config, ca, key) =
        (made.config.display(), made.certificate.display(), made.admin_key.display());
    print(&format!(
        "# Start it:\nnacre kbs serve --config {config}\n\n# Administer it:\nexport NACRE_KBS_URL=https://{host}:{}\n\
         export NACRE_KBS_CA={ca}\nexport NACRE_KBS_ADMIN_KEY={key}\nnacre kbs secret list\n",
        arguments.listen.port()
    ))?;
    Ok(Verdict::Good)
}

pub(super) fn serve(arguments: &Serve) -> anyhow::Result<Verdict> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NACRE_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    nacre_kbs::serve(&arguments.config)
        .with_context(|| format!("the broker of {}", arguments.config.display()))?;
    Ok(Verdict::Good)
}
