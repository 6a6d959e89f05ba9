//! The system call filter.

use nacre_protocol::oci;
use oci_spec::runtime as spec;
use serde::Serialize;

use super::{SpecError, unsupported};

pub(super) fn seccomp(source: &spec::LinuxSeccomp) -> Result<oci::LinuxSeccomp, SpecError> {
    if source.listener_path().is_some() || source.listener_metadata().is_some() {
        return Err(unsupported(
            "linux.seccomp.listenerPath",
            "a listener on the host cannot watch processes of the guest",
        ));
    }
    // The agent API has no default error number: EPERM, the kernel's own default, is what it means.
    if source.default_errno_ret().is_some_and(|number| number != libc::EPERM.cast_unsigned()) {
        return Err(unsupported(
            "linux.seccomp.defaultErrnoRet",
            "the agent API has no place for a value other than EPERM (1)",
        ));
    }
    Ok(oci::LinuxSeccomp {
        DefaultAction: name(&source.default_action())?,
        Architectures: names(source.architectures())?,
        Flags: names(source.flags())?,
        Syscalls: source
            .syscalls()
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(syscall)
            .collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

fn syscall(source: &spec::LinuxSyscall) -> Result<oci::LinuxSyscall, SpecError> {
    Ok(oci::LinuxSyscall {
        Names: source.names().clone(),
        Action: name(&source.action())?,
        errnoret: source.errno_ret().unwrap_or(0),
        Args: source
            .args()
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(argument)
            .collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

fn argument(source: &spec::LinuxSeccompArg) -> Result<oci::LinuxSeccompArg, SpecError> {
    Ok(oci::LinuxSeccompArg {
        Index: source.index() as u64,
        Value: source.value(),
        ValueTwo: source.value_two().unwrap_or(0),
        Op: name(&source.op())?,
        ..Default::default()
    })
}

fn names<T: Serialize>(list: &Option<Vec<T>>) -> Result<Vec<String>, SpecError> {
    list.iter().flatten().map(name).collect()
}

/// The name that the OCI specification has for a value.
fn name<T: Serialize>(value: &T) -> Result<String, SpecError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => Ok(name),
        _ => Err(SpecError::Value {
            field: "linux.seccomp".to_owned(),
            problem: "has a value without a name".to_owned(),
        }),
    }
}
