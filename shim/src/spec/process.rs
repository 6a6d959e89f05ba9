//! The process of a container, or one that joins it.

use nacre_protocol::oci;
use oci_spec::runtime as spec;
use protobuf::MessageField;

use super::{SpecError, unsupported};

/// Reads the process of an exec request.
pub(crate) fn process_from_json(json: &[u8]) -> Result<oci::Process, SpecError> {
    let source: spec::Process = serde_json::from_slice(json).map_err(|cause| SpecError::Parse {
        what: "the process of the exec request",
        cause: cause.to_string(),
    })?;
    process(&source, &mut Vec::new())
}

/// Converts a process; `left_out` gets what belongs to this host.
pub(crate) fn process(
    source: &spec::Process,
    left_out: &mut Vec<String>,
) -> Result<oci::Process, SpecError> {
    let args = source.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(SpecError::Missing { field: "process.args" });
    }
    for (field, present) in [
        ("process.ioPriority", source.io_priority().is_some()),
        ("process.scheduler", source.scheduler().is_some()),
        ("process.execCPUAffinity", source.exec_cpu_affinity().is_some()),
        ("process.commandLine", source.command_line().is_some()),
        ("process.user.umask", source.user().umask().is_some()),
    ] {
        if present {
            return Err(unsupported(field, "the agent API has no place for it"));
        }
    }
    let is_set = |label: &Option<String>| label.as_ref().is_some_and(|label| !label.is_empty());
    if is_set(source.apparmor_profile()) {
        left_out.push("process.apparmorProfile (a profile of the host's kernel)".to_owned());
    }
    if is_set(source.selinux_label()) {
        left_out.push("process.selinuxLabel (a label of the host's kernel)".to_owned());
    }
    let cwd = source.cwd();
    if !cwd.is_absolute() {
        return Err(SpecError::Value {
            field: "process.cwd".to_owned(),
            problem: format!("is {cwd:?}: it must be absolute"),
        });
    }
    Ok(oci::Process {
        Terminal: source.terminal().unwrap_or(false),
        ConsoleSize: source.console_size().as_ref().map(console_size).transpose()?.into(),
        User: MessageField::some(user(source.user())),
        Args: args,
        Env: source.env().clone().unwrap_or_default(),
        Cwd: super::text(cwd, "process.cwd")?,
        Capabilities: source.capabilities().as_ref().map(capabilities).into(),
        Rlimits: source.rlimits().as_deref().unwrap_or_default().iter().map(rlimit).collect(),
        NoNewPrivileges: source.no_new_privileges().unwrap_or(false),
        OOMScoreAdj: source.oom_score_adj().unwrap_or(0).into(),
        ..Default::default()
    })
}

fn console_size(size: &spec::Box) -> Result<oci::Box, SpecError> {
    let side = |name: &str, value: u64| {
        u32::try_from(value).map_err(|_| SpecError::Value {
            field: format!("process.consoleSize.{name}"),
            problem: format!("is {value}: too large"),
        })
    };
    Ok(oci::Box {
        Height: side("height", size.height())?,
        Width: side("width", size.width())?,
        ..Default::default()
    })
}

fn user(source: &spec::User) -> oci::User {
    oci::User {
        UID: source.uid(),
        GID: source.gid(),
        AdditionalGids: source.additional_gids().clone().unwrap_or_default(),
        Username: source.username().clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn capabilities(source: &spec::LinuxCapabilities) -> oci::LinuxCapabilities {
    let names = |set: &Option<spec::Capabilities>| {
        let mut names: Vec<String> = set
            .iter()
            .flatten()
            .map(|capability| {
                let name = capability.to_string();
                if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
            })
            .collect();
        names.sort();
        names
    };
    oci::LinuxCapabilities {
        Bounding: names(source.bounding()),
        Effective: names(source.effective()),
        Inheritable: names(source.inheritable()),
        Permitted: names(source.permitted()),
        Ambient: names(source.ambient()),
        ..Default::default()
    }
}

fn rlimit(source: &spec::PosixRlimit) -> oci::POSIXRlimit {
    oci::POSIXRlimit {
        Type: source.typ().to_string(),
        Hard: source.hard(),
        Soft: source.soft(),
        ..Default::default()
    }
}
