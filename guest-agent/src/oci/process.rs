//! Processes: program, user, capabilities, limits.

use nacre_protocol::oci as proto;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, UserBuilder,
};

use super::{NO_APPARMOR, NO_SELINUX, check_path, missing, refuse_if, word};
use crate::error::RpcError;

const MOST_WORDS: usize = 32 * 1024;
/// Linux takes no longer single argument or variable (`MAX_ARG_STRLEN`).
const LONGEST_WORD: usize = 128 * 1024 - 1;
/// Linux takes no more supplementary groups (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// Checks a process. `field` is its path in the request.
pub(crate) fn parse(field: &str, process: &proto::Process) -> Result<Process, RpcError> {
    let field = |name: &str| format!("{field}.{name}");
    refuse_if(!process.SelinuxLabel.is_empty(), &field("SelinuxLabel"), NO_SELINUX)?;
    let unconfined = matches!(process.ApparmorProfile.as_str(), "" | "unconfined");
    refuse_if(!unconfined, &field("ApparmorProfile"), NO_APPARMOR)?;
    let cwd = if process.Cwd.is_empty() { "/" } else { process.Cwd.as_str() };
    check_path(&field("Cwd"), cwd)?;
    check_words(&field("Args"), &process.Args)?;
    check_words(&field("Env"), &process.Env)?;
    for (index, variable) in process.Env.iter().enumerate() {
        let named = variable.find('=').is_some_and(|at| at > 0);
        refuse_if(!named, &field(&format!("Env[{index}]")), "must have the form NAME=VALUE")?;
    }
    let score = i32::try_from(process.OOMScoreAdj).ok().filter(|s| (-1000..=1000).contains(s));
    let score = score
        .ok_or_else(|| RpcError::invalid(field("OOMScoreAdj"), "must be between -1000 and 1000"))?;
    let user = process.User.as_ref().ok_or_else(|| missing(&field("User")))?;
    let mut parsed = Process::default();
    parsed.set_terminal(Some(process.Terminal));
    parsed.set_console_size(None);
    parsed.set_user(parse_user(&field("User"), user)?);
    parsed.set_args(Some(process.Args.clone()));
    parsed.set_env(Some(process.Env.clone()));
    parsed.set_cwd(cwd.into());
    parsed.set_capabilities(Some(parse_capabilities(
        &field("Capabilities"),
        process.Capabilities.get_or_default(),
    )?));
    parsed.set_rlimits(Some(parse_limits(&field("Rlimits"), &process.Rlimits)?));
    // The runtime library loads the seccomp filter in time only if this is absent, not if it is false.
    parsed.set_no_new_privileges(process.NoNewPrivileges.then_some(true));
    parsed.set_apparmor_profile(None);
    parsed.set_selinux_label(None);
    parsed.set_oom_score_adj(Some(score));
    Ok(parsed)
}

/// Every capability that Linux has.
pub(crate) fn all_capabilities() -> Capabilities {
    use Capability as C;
    [
        C::AuditControl,
        C::AuditRead,
        C::AuditWrite,
        C::BlockSuspend,
        C::Bpf,
        C::CheckpointRestore,
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::IpcLock,
        C::IpcOwner,
        C::Kill,
        C::Lease,
        C::LinuxImmutable,
        C::MacAdmin,
        C::MacOverride,
        C::Mknod,
        C::NetAdmin,
        C::NetBindService,
        C::NetBroadcast,
        C::NetRaw,
        C::Perfmon,
        C::Setgid,
        C::Setfcap,
        C::Setpcap,
        C::Setuid,
        C::SysAdmin,
        C::SysBoot,
        C::SysChroot,
        C::SysModule,
        C::SysNice,
        C::SysPacct,
        C::SysPtrace,
        C::SysRawio,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Syslog,
        C::WakeAlarm,
    ]
    .into_iter()
    .collect()
}

/// The five sets in the order bounding, effective, permitted, inheritable, ambient; all of them given,
/// since the runtime library leaves absent ones as they are.
pub(crate) fn capability_sets(set: impl Fn(usize) -> Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set(0)));
    sets.set_effective(Some(set(1)));
    sets.set_permitted(Some(set(2)));
    sets.set_inheritable(Some(set(3)));
    sets.set_ambient(Some(set(4)));
    sets
}

fn check_words(field: &str, words: &[String]) -> Result<(), RpcError> {
    if words.len() > MOST_WORDS {
        let why = format!("{} words are more than the {MOST_WORDS} allowed", words.len());
        return Err(RpcError::invalid(field, why));
    }
    for (index, text) in words.iter().enumerate() {
        let field = format!("{field}[{index}]");
        refuse_if(text.contains('\0'), &field, "must not contain NUL")?;
        refuse_if(text.len() > LONGEST_WORD, &field, "is longer than Linux allows (128 KiB)")?;
    }
    Ok(())
}

fn parse_user(field: &str, user: &proto::User) -> Result<oci_spec::runtime::User, RpcError> {
    let too_many = user.AdditionalGids.len() > MOST_GROUPS;
    refuse_if(too_many, &format!("{field}.AdditionalGids"), "are more than Linux allows (65536)")?;
    // The kernel takes the highest number as "leave as it is".
    let reserved = [user.UID, user.GID].contains(&u32::MAX);
    refuse_if(reserved, field, "4294967295 is not a user or group")?;
    UserBuilder::default()
        .uid(user.UID)
        .gid(user.GID)
        .additional_gids(user.AdditionalGids.clone())
        .build()
        .map_err(|e| RpcError::invalid(field, e))
}

fn parse_capabilities(
    field: &str,
    capabilities: &proto::LinuxCapabilities,
) -> Result<LinuxCapabilities, RpcError> {
    let lists = [
        ("Bounding", &capabilities.Bounding),
        ("Effective", &capabilities.Effective),
        ("Permitted", &capabilities.Permitted),
        ("Inheritable", &capabilities.Inheritable),
        ("Ambient", &capabilities.Ambient),
    ];
    let mut sets = Vec::with_capacity(lists.len());
    for (name, list) in lists {
        let field = format!("{field}.{name}");
        let set: Result<Capabilities, RpcError> =
            list.iter().map(|capability| word(&field, capability)).collect();
        sets.push(set?);
    }
    Ok(capability_sets(|index| sets[index].clone()))
}

fn parse_limits(field: &str, limits: &[proto::POSIXRlimit]) -> Result<Vec<PosixRlimit>, RpcError> {
    let mut seen = Vec::new();
    let mut parsed = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let kind: PosixRlimitType = word(&format!("{field}.Type"), &limit.Type)?;
        refuse_if(seen.contains(&kind), &field, &format!("{} is given twice", limit.Type))?;
        refuse_if(limit.Soft > limit.Hard, &field, "the soft limit is above the hard one")?;
        seen.push(kind);
        let limit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit.Soft)
            .hard(limit.Hard)
            .build()
            .map_err(|e| RpcError::invalid(field, e))?;
        parsed.push(limit);
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> proto::Process {
        let mut process = proto::Process::new();
        process.Args = vec!["sh".into()];
        process.User.mut_or_insert_default();
        process
    }

    fn refused(change: impl Fn(&mut proto::Process)) -> String {
        let mut process = process();
        change(&mut process);
        parse("process", &process).unwrap_err().to_string()
    }

    #[test]
    fn absent_capabilities_are_no_capabilities() {
        let parsed = parse("process", &process()).unwrap();
        let sets = parsed.capabilities().clone().unwrap();
        assert_eq!(sets, capability_sets(|_| Capabilities::new()));
        assert_eq!(parsed.no_new_privileges(), None);
        assert!(parsed.rlimits().as_ref().unwrap().is_empty());
    }

    #[test]
    fn capabilities_and_limits_are_read() {
        let mut process = process();
        process.Capabilities.mut_or_insert_default().Bounding = vec!["CAP_NET_RAW".into()];
        process.Rlimits.push(proto::POSIXRlimit {
            Type: "RLIMIT_NOFILE".into(),
            Soft: 10,
            Hard: 20,
            ..Default::default()
        });
        let parsed = parse("process", &process).unwrap();
        let sets = parsed.capabilities().clone().unwrap();
        assert!(sets.bounding().as_ref().unwrap().contains(&Capability::NetRaw));
        assert_eq!(parsed.rlimits().as_ref().unwrap()[0].hard(), 20);
        assert_eq!(all_capabilities().len(), 41);
    }

    #[test]
    fn mistakes_are_named() {
        for (error, text) in [
            (refused(|p| p.Cwd = "etc".into()), "process.Cwd"),
            (refused(|p| p.Env.push("=x".into())), "process.Env[0]"),
            (refused(|p| p.Args.push("a\0b".into())), "process.Args[1]"),
            (refused(|p| p.OOMScoreAdj = 5000), "process.OOMScoreAdj"),
            (refused(|p| p.ApparmorProfile = "x".into()), "process.ApparmorProfile"),
            (refused(|p| p.SelinuxLabel = "x".into()), "process.SelinuxLabel"),
            (refused(|p| p.User.mut_or_insert_default().UID = u32::MAX), "process.User"),
            (refused(|p| p.User = None.into()), "process.User: is missing"),
            (
                refused(|p| {
                    p.Capabilities.mut_or_insert_default().Effective.push("CAP_X".into());
                }),
                "process.Capabilities.Effective: \"CAP_X\"",
            ),
            (
                refused(|p| {
                    p.Rlimits
                        .push(proto::POSIXRlimit { Type: "RLIMIT_X".into(), ..Default::default() });
                }),
                "process.Rlimits[0].Type",
            ),
        ] {
            assert!(error.contains(text), "{error}");
        }
    }
}
