//! Filters of system calls.

use nacre_protocol::oci as proto;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSyscall, LinuxSyscallBuilder,
};

use super::{refuse_if, word};
use crate::error::RpcError;

const MOST_RULES: usize = 1024;
const MOST_NAMES: usize = 1024;
/// A system call has six arguments.
const LAST_ARGUMENT: u64 = 5;

/// Checks a filter. `field` is its path in the request.
pub(super) fn parse(field: &str, filter: &proto::LinuxSeccomp) -> Result<LinuxSeccomp, RpcError> {
    refuse_if(filter.Syscalls.len() > MOST_RULES, field, "more than 1024 rules")?;
    let architectures: Result<Vec<_>, _> = filter
        .Architectures
        .iter()
        .map(|name| word(&format!("{field}.Architectures"), name))
        .collect();
    let flags: Result<Vec<_>, _> =
        filter.Flags.iter().map(|name| word(&format!("{field}.Flags"), name)).collect();
    let rules: Result<Vec<_>, _> = filter
        .Syscalls
        .iter()
        .enumerate()
        .map(|(index, rule)| parse_rule(&format!("{field}.Syscalls[{index}]"), rule))
        .collect();
    LinuxSeccompBuilder::default()
        .default_action(action(&format!("{field}.DefaultAction"), &filter.DefaultAction)?)
        .architectures(architectures?)
        .flags(flags?)
        .syscalls(rules?)
        .build()
        .map_err(|e| RpcError::invalid(field, e))
}

fn parse_rule(field: &str, rule: &proto::LinuxSyscall) -> Result<LinuxSyscall, RpcError> {
    refuse_if(rule.Names.is_empty(), &format!("{field}.Names"), "names no system call")?;
    refuse_if(rule.Names.len() > MOST_NAMES, &format!("{field}.Names"), "more than 1024 names")?;
    let arguments: Result<Vec<_>, _> = rule
        .Args
        .iter()
        .enumerate()
        .map(|(index, argument)| parse_argument(&format!("{field}.Args[{index}]"), argument))
        .collect();
    let arguments = arguments?;
    let mut builder = LinuxSyscallBuilder::default()
        .names(rule.Names.clone())
        .action(action(&format!("{field}.Action"), &rule.Action)?);
    // Zero is "not given" in the request; the action's default is EPERM.
    if rule.errnoret != 0 {
        builder = builder.errno_ret(rule.errnoret);
    }
    if !arguments.is_empty() {
        builder = builder.args(arguments);
    }
    builder.build().map_err(|e| RpcError::invalid(field, e))
}

fn parse_argument(
    field: &str,
    argument: &proto::LinuxSeccompArg,
) -> Result<LinuxSeccompArg, RpcError> {
    let absent = argument.Index > LAST_ARGUMENT;
    refuse_if(absent, &format!("{field}.Index"), "system calls have arguments 0 to 5")?;
    let index = usize::try_from(argument.Index).map_err(|e| RpcError::invalid(field, e))?;
    LinuxSeccompArgBuilder::default()
        .index(index)
        .value(argument.Value)
        .value_two(argument.ValueTwo)
        .op(word::<oci_spec::runtime::LinuxSeccompOperator>(&format!("{field}.Op"), &argument.Op)?)
        .build()
        .map_err(|e| RpcError::invalid(field, e))
}

fn action(field: &str, text: &str) -> Result<LinuxSeccompAction, RpcError> {
    let action = word(field, text)?;
    let notify = action == LinuxSeccompAction::ScmpActNotify;
    refuse_if(notify, field, "SCMP_ACT_NOTIFY needs a listener, which this guest has not")?;
    Ok(action)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(names: &[&str], action: &str) -> proto::LinuxSyscall {
        proto::LinuxSyscall {
            Names: names.iter().map(|name| (*name).to_owned()).collect(),
            Action: action.into(),
            ..Default::default()
        }
    }

    fn filter() -> proto::LinuxSeccomp {
        proto::LinuxSeccomp {
            DefaultAction: "SCMP_ACT_ERRNO".into(),
            Architectures: vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into()],
            Syscalls: vec![rule(&["read", "write"], "SCMP_ACT_ALLOW")],
            ..Default::default()
        }
    }

    #[test]
    fn a_filter_is_read() {
        let mut filter = filter();
        let mut clone = rule(&["clone3"], "SCMP_ACT_ERRNO");
        clone.errnoret = 38;
        clone.Args.push(proto::LinuxSeccompArg {
            Index: 0,
            Value: 1,
            Op: "SCMP_CMP_MASKED_EQ".into(),
            ..Default::default()
        });
        filter.Syscalls.push(clone);
        let parsed = parse("Seccomp", &filter).unwrap();
        assert_eq!(parsed.default_action(), LinuxSeccompAction::ScmpActErrno);
        let rules = parsed.syscalls().as_ref().unwrap();
        assert_eq!((rules[0].errno_ret(), rules[1].errno_ret()), (None, Some(38)));
        assert!(rules[0].args().is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let change = |change: fn(&mut proto::LinuxSeccomp)| {
            let mut filter = filter();
            change(&mut filter);
            parse("Seccomp", &filter).unwrap_err().to_string()
        };
        assert!(change(|f| f.DefaultAction = "ALLOW".into()).contains("Seccomp.DefaultAction"));
        assert!(change(|f| f.DefaultAction.clear()).contains("Seccomp.DefaultAction"));
        assert!(change(|f| f.Flags.push("x".into())).contains("Seccomp.Flags"));
        assert!(
            change(|f| f.Syscalls[0].Action = "SCMP_ACT_NOTIFY".into())
                .contains("Seccomp.Syscalls[0].Action")
        );
        assert!(change(|f| f.Syscalls[0].Names.clear()).contains("Seccomp.Syscalls[0].Names"));
    }
}
