//! The capabilities of a container, as containerd's CRI plugin computes them.

use std::collections::BTreeSet;

use serde_json::Value;

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
    // One list for each default that a runtime has.
    let merged = nacre_policy::merge_runtimes(runtimes).map_err(|error| error.to_string())?;
    let lists = merged.get("capabilities").and_then(Value::as_array);
    let lists = lists.into_iter().flatten().filter_map(Value::as_array);
    let names = |list: &Vec<Value>| {
        let names = list.iter().filter_map(Value::as_str);
        names.map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    let defaults: BTreeSet<BTreeSet<String>> = lists.map(names).collect();
    over(security, &defaults).map_err(|problem| {
        let runtimes = runtimes.join(", ");
        format!(
            "{problem} of the runtimes {runtimes}: begin with `drop: [\"ALL\"]` and add what the container \
             needs"
        )
    })
}

fn over(
    security: &Security,
    defaults: &BTreeSet<BTreeSet<String>>,
) -> Result<Option<Vec<String>>, &'static str> {
    let (add, drop) = (&security.capabilities_add, &security.capabilities_drop);
    if add.is_empty() && drop.is_empty() {
        return Ok(None);
    }
    let mut set: BTreeSet<String> = match (add.contains("ALL"), drop.contains("ALL")) {
        // "drop: ALL" is applied behind "add: ALL", single names behind both.
        (_, true) => BTreeSet::new(),
        (true, false) => ALL.iter().map(ToString::to_string).collect(),
        (false, false) => match defaults.iter().collect::<Vec<_>>().as_slice() {
            [default] => (*default).clone(),
            [] => {
                return Err("the result depends on the default capabilities, which are not known,");
            }
            _ => return Err("the result depends on the default capabilities, which differ,"),
        },
    };
    set.extend(add.iter().filter(|name| *name != "ALL").cloned());
    set.retain(|name| !drop.contains(name));
    Ok(Some(set.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn result(
        add: &[&str],
        drop: &[&str],
        defaults: &[&[&str]],
    ) -> Result<Option<Vec<String>>, &'static str> {
        let security = Security {
            capabilities_add: set(add),
            capabilities_drop: set(drop),
            ..Security::default()
        };
        over(&security, &defaults.iter().map(|names| set(names)).collect())
    }

    #[test]
    fn sets_are_those_of_containerd() {
        let (one, two) = (&["CAP_CHOWN", "CAP_KILL"][..], &["CAP_CHOWN"][..]);
        for (add, drop, defaults, expected) in [
            (&["CAP_BPF"][..], &[][..], &[one][..], &["CAP_BPF", "CAP_CHOWN", "CAP_KILL"][..]),
            (&[], &["CAP_KILL"], &[one], &["CAP_CHOWN"]),
            (&["CAP_KILL"], &["CAP_KILL"], &[one], &["CAP_CHOWN"]),
            (&["CAP_BPF"], &["ALL"], &[one, two], &["CAP_BPF"]),
            (&["ALL", "CAP_BPF"], &["ALL"], &[], &["CAP_BPF"]),
        ] {
            let expected = expected.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(result(add, drop, defaults), Ok(Some(expected)), "{add:?} {drop:?}");
        }
        assert_eq!(result(&[], &[], &[one, two]), Ok(None));
        assert_eq!(result(&["ALL"], &["CAP_BPF"], &[]).unwrap().unwrap().len(), ALL.len() - 1);
    }

    #[test]
    fn the_default_set_is_that_of_the_profiles() {
        let security =
            Security { capabilities_add: set(&["CAP_NET_ADMIN"]), ..Security::default() };
        let runtimes: Vec<String> = nacre_policy::runtimes().keys().cloned().collect();
        for name in runtimes.iter().filter(|name| name.starts_with("containerd-")) {
            let set = capabilities(&security, std::slice::from_ref(name)).unwrap().unwrap();
            assert_eq!(set.len(), 15, "{name}: containerd's fourteen and the added one");
            assert!(set.contains(&"CAP_NET_ADMIN".into()) && set.contains(&"CAP_CHOWN".into()));
        }
        let error = capabilities(&security, &["absent".into()]).unwrap_err();
        assert!(error.contains("\"absent\" is not known"), "{error}");
    }

    #[test]
    fn defaults_that_differ_are_no_base() {
        assert!(result(&["CAP_BPF"], &[], &[&["CAP_CHOWN"], &[]]).unwrap_err().contains("differ"));
        assert!(result(&["CAP_BPF"], &[], &[]).unwrap_err().contains("not known"));
    }
}
