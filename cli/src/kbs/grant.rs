//! `nacre kbs grant`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgGroup, Args, Subcommand};
use nacre_kbs::Grant;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Administrator, Listing, Named, block_on};
use crate::Verdict;
use crate::input::{print, read_initdata};
use crate::moment::moment;
use crate::output::print_json;
use crate::table::table;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Add(Add),
    /// List the grants.
    #[command(after_help = "Example:
  nacre kbs grant list --output json")]
    List(Listing),
    /// Remove a grant. Tokens that pods hold end within minutes.
    #[command(after_help = "Example:
  nacre kbs grant remove web")]
    Remove(Named),
}

/// Let pods with this initdata have these secrets.
///
/// A genuine guest runs whatever its initdata says: another policy, another pod. So secrets are granted to
/// initdata, by digest. A grant of the same name is replaced.
#[derive(Args)]
#[command(
    group(ArgGroup::new("to").required(true).multiple(true).args(["initdata", "digest", "danger_any_initdata"])),
    after_help = "Examples:
  nacre kbs grant add web --initdata web.yaml --resource 'default/web/*'
  nacre kbs grant add web --digest sha256:9f86... --resource default/web/password --expires 2027-01-31T00:00:00Z"
)]
pub(crate) struct Add {
    /// Name of the grant.
    id: String,
    /// Initdata TOML, an annotation's text, or YAML of one pod that has the annotation. May be given several
    /// times: the old and the new one during an upgrade.
    #[arg(long, value_name = "FILE")]
    initdata: Vec<PathBuf>,
    /// Digest of initdata, as `nacre initdata digest` prints it. May be given several times.
    #[arg(long, value_name = "DIGEST")]
    digest: Vec<String>,
    /// Pods with any initdata, or none: whoever can start a pod from the genuine guest image gets the
    /// secrets. DANGEROUS.
    #[arg(long)]
    danger_any_initdata: bool,
    /// Secrets, as repository/type/name; each part may be `*`. May be given several times.
    #[arg(long, required = true, value_name = "PATTERN")]
    resource: Vec<String>,
    /// Until when, as 2027-01-31T00:00:00Z [default: until it is removed].
    #[arg(long, value_name = "TIME", value_parser = moment)]
    expires: Option<OffsetDateTime>,
    /// For people who read the list.
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
    #[command(flatten)]
    administrator: Administrator,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Add(arguments) => add(arguments),
        Command::List(arguments) => list(&arguments),
        Command::Remove(Named { id, administrator }) => {
            let client = administrator.client()?;
            block_on(async { Ok(client.delete_grant(&id).await?) })
        }
    }?;
    Ok(Verdict::Good)
}

fn add(arguments: Add) -> anyhow::Result<()> {
    let mut initdata = arguments.digest;
    for path in &arguments.initdata {
        initdata.push(read_initdata(path)?.digest().to_string());
    }
    let grant = Grant {
        id: arguments.id,
        initdata,
        danger_any_initdata: arguments.danger_any_initdata,
        resources: arguments.resource,
        expires: arguments.expires,
        note: arguments.note,
    };
    grant.check()?;
    let client = arguments.administrator.client()?;
    block_on(async { Ok(client.add_grant(&grant).await?) })
        .with_context(|| format!("failed to add the grant {}", grant.id))
}

fn list(arguments: &Listing) -> anyhow::Result<()> {
    let client = arguments.administrator.client()?;
    let grants = block_on(async { Ok(client.grants().await?) })?;
    if arguments.output.is_json() {
        return print_json(&grants);
    }
    let mut rows = Vec::new();
    for grant in &grants {
        let expires = grant.expires.map(|end| end.format(&Rfc3339)).transpose()?;
        let to = match grant.danger_any_initdata {
            true => "ANY".to_owned(),
            false => grant.initdata.join(" "),
        };
        let (what, expires) = (grant.resources.join(" "), expires.unwrap_or_else(|| "-".into()));
        rows.push([grant.id.clone(), what, expires, to, grant.note.clone()]);
    }
    print(&table(["ID", "RESOURCES", "EXPIRES", "INITDATA", "NOTE"], &rows))
}
