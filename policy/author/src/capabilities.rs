//! The capabilities of a container, as containerd's CRI plugin computes them.

use std::collections::BTreeSet;

use crate::workload::Security;

/// All that Linux has (capabilities(7), up to `CAP_CHECKPOINT_RESTORE` of Linux 5.9).
const ALL: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The set of a container; none if it is the runtime's default.
///
/// # Errors
/// If the result depends on defaults in which the named runtimes differ.
pub(crate) fn capabilities(
    security: &Security,
    runtimes: &[String],
) -> Result<Option<Vec<String>>, String> {
    let (add, drop) = (&security.capabilities_add, &security.capabilities_drop);
    if add.is_empty() && drop.is_empty() {
        return Ok(None);
    }
    let mut set: BTreeSet<String> = match (add.contains("ALL"), drop.contains("ALL")) {
        // "drop: ALL" is applied behind "add: ALL", single names behind both.
        (_, true) => BTreeSet::new(),
        (true, false) => ALL.iter().map(ToString::to_string).collect(),
        (false, false) => default_set(runtimes)?,
    };
    set.extend(add.iter().filter(|name| *name != "ALL").cloned());
    set.retain(|name| !drop.contains(name));
    Ok(Some(set.into_iter().collect()))
}

fn default_set(runtimes: &[String]) -> Result<BTreeSet<String>, String> {
    // One list for each default that a runtime has.
    let merged = nacre_policy::merge_runtimes(runtimes).map_err(|error| error.to_string())?;
    let lists = merged.get("capabilities").and_then(|lists| lists.as_array());
    let sets = lists.into_iter().flatten().filter_map(|list| list.as_array());
    let mut sets = sets.map(|list| {
        let names = list.iter().filter_map(|name| name.as_str());
        names.map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    });
    let first = sets.next().unwrap_or_default();
    if sets.any(|other| other != first) {
        return Err(format!(
            "the runtimes {} have different default capabilities: begin with `drop: [\"ALL\"]` and add \
             what the container needs, or name fewer runtimes in the settings",
            runtimes.join(", ")
        ));
    }
    if first.is_empty() {
        return Err(
            "the runtime's default capabilities are not known: begin with `drop: [\"ALL\"]` \
                    and add what the container needs"
                .into(),
        );
    }
    Ok(first)
}
