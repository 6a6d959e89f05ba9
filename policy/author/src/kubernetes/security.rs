//! Security settings: the container's over the pod's, and the refusal of what a confidential pod must not have.

use std::collections::{BTreeMap, BTreeSet};

use super::decode::Placed;
use super::error::{Place, ReadError};
use super::pod_spec::{
    Capabilities, PodSecurityContext, PodSpec, Profile, SeLinuxOptions, SecurityContext,
};
use crate::workload::{AppArmor, SeLinux, Seccomp, Security};

/// The first line of fields by their names in the policy document.
pub(super) type Lines = BTreeMap<&'static str, u32>;

/// Refuses what would make the pod part of its host.
pub(super) fn check_pod(spec: &PodSpec) -> Result<(), ReadError> {
    const SHARED: &str = "a confidential pod runs in a virtual machine of its own and shares nothing of the host; \
                          remove the field";
    for (name, field) in [
        ("hostNetwork", &spec.host_network),
        ("hostPID", &spec.host_pid),
        ("hostIPC", &spec.host_ipc),
    ] {
        if let Some(field) = field
            && field.value
        {
            return Err(field.place.refused(format!("{name}: true"), SHARED));
        }
    }
    if let Some(field) = &spec.host_users
        && !field.value
    {
        return Err(field.place.refused(
            "hostUsers: false",
            "the guest runs no user namespaces; its virtual machine already keeps the pod's users from the host's; \
             remove the field",
        ));
    }
    if let Some(os) = &spec.os
        && os.name.value != "linux"
    {
        return Err(os
            .name
            .place
            .refused(format!("os.name: {}", os.name.value), "the guest runs Linux; write linux"));
    }
    if let Some(containers) = &spec.ephemeral_containers
        && !containers.value.is_empty()
    {
        return Err(containers.place.refused(
            "ephemeralContainers",
            "a container that is added while the pod runs is not in its measured policy; remove the field",
        ));
    }
    if let Some(security) = &spec.security_context
        && let Some(windows) = &security.value.windows_options
    {
        return Err(refuse_windows(&windows.place));
    }
    Ok(())
}

fn refuse_windows(place: &Place) -> ReadError {
    place.refused("windowsOptions", "the guest runs Linux; remove the field")
}

/// Merges the settings of a container with those of its pod.
pub(super) fn merge(
    pod: Option<&PodSecurityContext>,
    container: Option<&Placed<SecurityContext>>,
    app_armor_annotation: Option<&str>,
    lines: &mut Lines,
) -> Result<Security, ReadError> {
    let own = container.map(|placed| &placed.value);
    if let Some(placed) = container {
        lines.insert("security", placed.place.line);
    }
    if let Some(windows) = own.and_then(|own| own.windows_options.as_ref()) {
        return Err(refuse_windows(&windows.place));
    }
    let user = own.and_then(|own| own.run_as_user.as_ref()).or_else(|| pod?.run_as_user.as_ref());
    let group =
        own.and_then(|own| own.run_as_group.as_ref()).or_else(|| pod?.run_as_group.as_ref());
    let non_root =
        own.and_then(|own| own.run_as_non_root.as_ref()).or_else(|| pod?.run_as_non_root.as_ref());
    let seccomp =
        own.and_then(|own| own.seccomp_profile.as_ref()).or_else(|| pod?.seccomp_profile.as_ref());
    let app_armor = own.and_then(|own| own.app_armor_profile.as_ref());
    let se_linux = own
        .and_then(|own| own.se_linux_options.as_ref())
        .or_else(|| pod?.se_linux_options.as_ref());

    note(lines, "user", user);
    note(lines, "group", group);
    note(lines, "non_root", non_root);
    note(lines, "seccomp", seccomp);
    let mut security = Security {
        run_as_user: user.map(id).transpose()?,
        run_as_group: group.map(id).transpose()?,
        non_root: non_root.is_some_and(|field| field.value),
        allow_privilege_escalation: true,
        seccomp: seccomp.map(seccomp_of).transpose()?.unwrap_or_default(),
        app_armor: match (app_armor, app_armor_annotation) {
            (Some(profile), _) => app_armor_of(profile)?,
            (None, Some(annotation)) => app_armor_of_annotation(annotation),
            (None, None) => pod
                .and_then(|pod| pod.app_armor_profile.as_ref())
                .map(app_armor_of)
                .transpose()?
                .unwrap_or_default(),
        },
        se_linux: se_linux.map(se_linux_of),
        ..Security::default()
    };
    if let (Some(user), Some(non_root)) = (user, non_root)
        && non_root.value
        && user.value == 0
    {
        return Err(user.place.invalid(
            "is 0 where runAsNonRoot is true: choose another user, or remove runAsNonRoot",
        ));
    }
    if let Some(own) = own {
        restrict(&mut security, own, lines)?;
    }
    Ok(security)
}

/// The settings that only containers have.
fn restrict(
    security: &mut Security,
    own: &SecurityContext,
    lines: &mut Lines,
) -> Result<(), ReadError> {
    if let Some(field) = &own.privileged
        && field.value
    {
        return Err(field.place.refused(
            "privileged: true",
            "it gives the container every device and capability of the guest; grant single ones with \
             securityContext.capabilities.add",
        ));
    }
    note(lines, "readonly_root", own.read_only_root.as_ref());
    security.readonly_root = own.read_only_root.as_ref().is_some_and(|field| field.value);
    let escalation = own.allow_privilege_escalation.as_ref();
    note(lines, "no_new_privileges", escalation);
    security.allow_privilege_escalation = escalation.is_none_or(|field| field.value);
    if let Some(proc_mount) = &own.proc_mount {
        lines.insert("proc_mount", proc_mount.place.line);
        security.unmasked_proc = match proc_mount.value.as_str() {
            "Default" => false,
            "Unmasked" => true,
            _ => return Err(proc_mount.place.invalid("must be Default or Unmasked")),
        };
    }
    if let Some(capabilities) = &own.capabilities {
        lines.insert("capabilities", capabilities.place.line);
        let Capabilities { add, drop } = &capabilities.value;
        security.capabilities_add = capability_set(add)?;
        security.capabilities_drop = capability_set(drop)?;
    }
    if let Some(escalation) = escalation
        && !escalation.value
        && security.capabilities_add.contains("CAP_SYS_ADMIN")
    {
        return Err(escalation.place.invalid(
            "is false beside the added capability SYS_ADMIN, which Kubernetes refuses: remove one of them",
        ));
    }
    Ok(())
}

fn note<T>(lines: &mut Lines, name: &'static str, field: Option<&Placed<T>>) {
    if let Some(field) = field {
        lines.insert(name, field.place.line);
    }
}

/// A user or group id, within what Kubernetes allows.
pub(super) fn id(field: &Placed<i64>) -> Result<u32, ReadError> {
    u32::try_from(field.value)
        .ok()
        .filter(|id| i32::try_from(*id).is_ok())
        .ok_or_else(|| field.place.invalid("must be between 0 and 2147483647"))
}

fn seccomp_of(profile: &Placed<Profile>) -> Result<Seccomp, ReadError> {
    let kind = &profile.value.kind;
    match kind.value.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => Err(kind.place.refused(
            "a seccomp profile of the type Localhost",
            "it is a file of the host, which the guest does not trust; write RuntimeDefault or Unconfined",
        )),
        _ => Err(kind
            .place
            .invalid("must be RuntimeDefault, Unconfined or Localhost")),
    }
}

fn app_armor_of(profile: &Placed<Profile>) -> Result<AppArmor, ReadError> {
    let Profile { kind, localhost_profile } = &profile.value;
    match (kind.value.as_str(), localhost_profile) {
        ("RuntimeDefault", _) => Ok(AppArmor::RuntimeDefault),
        ("Unconfined", _) => Ok(AppArmor::Unconfined),
        ("Localhost", Some(name)) => Ok(AppArmor::Localhost(name.value.clone())),
        ("Localhost", None) => Err(profile.place.invalid("needs localhostProfile")),
        _ => Err(kind.place.invalid("must be RuntimeDefault, Unconfined or Localhost")),
    }
}

/// The annotation that came before the field: `container.apparmor.security.beta.kubernetes.io/CONTAINER`.
fn app_armor_of_annotation(value: &str) -> AppArmor {
    match value {
        "runtime/default" => AppArmor::RuntimeDefault,
        "unconfined" => AppArmor::Unconfined,
        _ => value
            .strip_prefix("localhost/")
            .map_or(AppArmor::Unset, |name| AppArmor::Localhost(name.to_owned())),
    }
}

fn se_linux_of(options: &SeLinuxOptions) -> SeLinux {
    SeLinux {
        user: options.user.clone(),
        role: options.role.clone(),
        kind: options.kind.clone(),
        level: options.level.clone(),
    }
}

/// Linux capabilities without their prefix. Source: capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

fn capability_set(names: &[Placed<String>]) -> Result<BTreeSet<String>, ReadError> {
    names
        .iter()
        .map(|name| {
            let upper = name.value.to_uppercase();
            if upper == "ALL" {
                Ok(upper)
            } else if CAPABILITIES.contains(&upper.as_str()) {
                Ok(format!("CAP_{upper}"))
            } else if let Some(bare) = upper.strip_prefix("CAP_") {
                Err(name.place.invalid(format!(
                    "{:?} must stand without its prefix in Kubernetes: write {bare}",
                    name.value
                )))
            } else {
                Err(name.place.invalid(format!(
                    "{:?} is no Linux capability: write a name such as NET_BIND_SERVICE, or ALL",
                    name.value
                )))
            }
        })
        .collect()
}
