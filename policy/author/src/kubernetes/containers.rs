//! Containers of a pod.

use std::collections::{BTreeMap, BTreeSet};

use super::context::{Notes, PodContext, Quantities};
use super::decode::{Placed, QuantityText};
use super::environment::Environment;
use super::error::{Place, ReadError};
use super::pod_spec::{self, Exec, PodSecurityContext, ResourceRequirements};
use super::quantity::{Quantity, linux_resources};
use super::security::{self, Lines};
use crate::expand::Text;
use crate::workload::{
    Container, ExecCommand, Located, Propagation, Resources, Role, USUAL_TERMINATION_LOG, Volume,
    VolumeDevice, VolumeKind, VolumeMount,
};

/// What a container needs to know of its pod.
pub(super) struct Surroundings<'a> {
    pub(super) pod: &'a PodContext<'a>,
    pub(super) security: Option<&'a PodSecurityContext>,
    pub(super) volumes: &'a [Volume],
    /// The pod's `restartPolicy`.
    pub(super) restart_policy: RestartPolicy,
    /// Whether a container may have all others restarted, whatever their policies.
    pub(super) restart_all: bool,
    /// `spec.resources`, whose limits hold for containers without their own.
    pub(super) pod_limits: &'a Quantities,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(super) fn of(field: &Placed<String>) -> Result<Self, ReadError> {
        match field.value.as_str() {
            "Always" => Ok(Self::Always),
            "OnFailure" => Ok(Self::OnFailure),
            "Never" => Ok(Self::Never),
            _ => Err(field.place.invalid("must be Always, OnFailure or Never")),
        }
    }
}

/// Reads one container; `init` says in which list it stands.
pub(super) fn container(
    placed: &Placed<pod_spec::Container>,
    init: bool,
    around: &Surroundings<'_>,
    notes: &mut Notes,
) -> Result<Container, ReadError> {
    let spec = &placed.value;
    let mut lines =
        Lines::from([("container", placed.place.line), ("image", spec.image.place.line)]);
    check_name(&spec.name, "container")?;
    if spec.image.value.is_empty() || spec.image.value.contains(char::is_whitespace) {
        return Err(spec
            .image
            .place
            .invalid("is no image reference: write registry/name:tag or registry/name@digest"));
    }
    let (role, restartable) = role(spec, init, around, &mut lines)?;
    let annotation = format!("container.apparmor.security.beta.kubernetes.io/{}", spec.name.value);
    let security = security::merge(
        around.security,
        spec.security_context.as_ref(),
        around.pod.annotations.get(&annotation).map(String::as_str),
        &mut lines,
    )?;

    let mut environment = Environment::of(spec, around.pod, notes)?;
    let command = match &spec.command {
        Some(words) if !words.value.is_empty() => {
            lines.insert("command", words.place.line);
            Some(environment.command_line(&words.value)?)
        }
        _ => None,
    };
    let args = match &spec.args {
        Some(words) if !words.value.is_empty() => {
            lines.insert("args", words.place.line);
            Some(environment.command_line(&words.value)?)
        }
        _ => None,
    };
    let mounts = mounts(spec, &mut environment, around.volumes, &mut lines)?;
    let devices = devices(spec, around.volumes, &mut lines)?;
    note_lines(spec, &mut lines);
    Ok(Container {
        name: spec.name.value.clone(),
        role,
        restartable,
        image: spec.image.located(),
        command,
        args,
        working_dir: spec
            .working_dir
            .as_ref()
            .map(|field| field.value.clone())
            .filter(|directory| !directory.is_empty()),
        env: environment.into_variables(),
        security,
        mounts,
        devices,
        resources: resources(&spec.name.value, around),
        exec: commands(spec, &mut lines)?,
        stop_signal: stop_signal(spec)?,
        stdin: spec.stdin.as_ref().is_some_and(|field| field.value),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.as_ref().is_some_and(|field| field.value),
        termination_message_path: spec
            .termination_message_path
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| USUAL_TERMINATION_LOG.to_owned()),
        lines,
    })
}

fn note_lines(spec: &pod_spec::Container, lines: &mut Lines) {
    let places: [(&'static str, Option<&Place>); 6] = [
        ("cwd", spec.working_dir.as_ref().map(|field| &field.place)),
        ("env", spec.env.as_ref().map(|field| &field.place)),
        ("env_from", spec.env_from.as_ref().map(|field| &field.place)),
        ("resources", spec.resources.as_ref().map(|field| &field.place)),
        ("stdin", spec.stdin.as_ref().map(|field| &field.place)),
        ("tty", spec.tty.as_ref().map(|field| &field.place)),
    ];
    for (name, place) in places {
        if let Some(place) = place {
            lines.insert(name, place.line);
        }
    }
}

/// A name that Kubernetes allows for containers and volumes (RFC 1123 label).
pub(super) fn check_name(name: &Placed<String>, what: &str) -> Result<(), ReadError> {
    let text = name.value.as_str();
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty()
        || text.len() > 63
        || !text.bytes().all(inner)
        || text.starts_with('-')
        || text.ends_with('-')
    {
        return Err(name.place.invalid(format!(
            "{text:?} is no name for a {what}: use up to 63 of a-z, 0-9 and '-', the latter not at the ends"
        )));
    }
    Ok(())
}

fn role(
    spec: &pod_spec::Container,
    init: bool,
    around: &Surroundings<'_>,
    lines: &mut Lines,
) -> Result<(Role, bool), ReadError> {
    for rule in &spec.restart_rules {
        let action = &rule.value.action;
        if !matches!(action.value.as_str(), "Restart" | "RestartAllContainers") {
            return Err(action.place.invalid("must be Restart or RestartAllContainers"));
        }
    }
    let own = match &spec.restart_policy {
        Some(field) => {
            lines.insert("restart", field.place.line);
            Some(RestartPolicy::of(field)?)
        }
        None => None,
    };
    let restartable = own.unwrap_or(around.restart_policy) != RestartPolicy::Never
        || around.restart_all
        || restarts(spec, "Restart");
    Ok(match (init, own) {
        (true, Some(RestartPolicy::Always)) => (Role::Sidecar, true),
        (true, _) => (Role::Init, restartable),
        (false, _) => (Role::App, restartable),
    })
}

/// Whether a rule of the container has this action.
pub(super) fn restarts(spec: &pod_spec::Container, action: &str) -> bool {
    spec.restart_rules.iter().any(|rule| rule.value.action.value == action)
}

fn mounts(
    spec: &pod_spec::Container,
    environment: &mut Environment,
    volumes: &[Volume],
    lines: &mut Lines,
) -> Result<Vec<VolumeMount>, ReadError> {
    let Some(list) = &spec.volume_mounts else {
        return Ok(Vec::new());
    };
    lines.insert("mounts", list.place.line);
    let mut paths = BTreeSet::new();
    let mut mounts = Vec::new();
    for (index, entry) in list.value.iter().enumerate() {
        let mount = &entry.value;
        let volume = volume_of(&mount.name, volumes)?;
        if block_mode(volume) == Some(true) {
            return Err(mount.name.place.invalid(format!(
                "the volume {:?} is a block device: name it in volumeDevices instead",
                volume.name
            )));
        }
        let path = &mount.mount_path;
        if path.value.is_empty() || path.value.contains(':') {
            return Err(path.place.invalid("must be a path without ':'"));
        }
        if !paths.insert(path.value.as_str()) {
            return Err(path.place.invalid(format!(
                "{:?} is mounted twice in this container: remove one of the mounts",
                path.value
            )));
        }
        mounts.push(VolumeMount {
            path: if path.value.starts_with('/') {
                path.value.clone()
            } else {
                format!("/{}", path.value)
            },
            volume: mount.name.value.clone(),
            read_only: mount.read_only.unwrap_or(false),
            recursive_read_only: recursive_read_only(mount)?,
            sub_path: sub_path(mount, environment, &entry.place)?.map(Text::into_value),
            index,
            propagation: propagation(mount)?,
            line: entry.place.line,
        });
    }
    Ok(mounts)
}

fn volume_of<'a>(name: &Placed<String>, volumes: &'a [Volume]) -> Result<&'a Volume, ReadError> {
    volumes.iter().find(|volume| volume.name == name.value).ok_or_else(|| {
        name.place.invalid(format!(
            "the pod has no volume {:?}: add it to spec.volumes, or correct the name",
            name.value
        ))
    })
}

/// Whether a volume is a block device; none where the files do not say.
fn block_mode(volume: &Volume) -> Option<bool> {
    match &volume.kind {
        VolumeKind::Claim { block, .. } => *block,
        VolumeKind::Ephemeral { block } => Some(*block),
        _ => Some(false),
    }
}

fn recursive_read_only(mount: &pod_spec::VolumeMount) -> Result<bool, ReadError> {
    match &mount.recursive_read_only {
        None => Ok(false),
        Some(field) => match field.value.as_str() {
            "Disabled" => Ok(false),
            "IfPossible" | "Enabled" => Ok(true),
            _ => Err(field.place.invalid("must be Disabled, IfPossible or Enabled")),
        },
    }
}

fn sub_path(
    mount: &pod_spec::VolumeMount,
    environment: &mut Environment,
    place: &Place,
) -> Result<Option<Text>, ReadError> {
    let text = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(_), Some(_)) => {
            return Err(place.invalid("has both subPath and subPathExpr: remove one of them"));
        }
        (Some(path), None) => Text::known(&path.value),
        (None, Some(expression)) => environment.sub_path(expression)?,
        (None, None) => return Ok(None),
    };
    if let Some(path) = text.plain() {
        if path.is_empty() {
            return Ok(None);
        }
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(place.invalid("subPath must be a relative path without '..'"));
        }
    }
    Ok(Some(text))
}

fn propagation(mount: &pod_spec::VolumeMount) -> Result<Propagation, ReadError> {
    match &mount.mount_propagation {
        None => Ok(Propagation::None),
        Some(field) => match field.value.as_str() {
            "None" => Ok(Propagation::None),
            "HostToContainer" => Ok(Propagation::HostToContainer),
            "Bidirectional" => Err(field.place.refused(
                "mountPropagation: Bidirectional",
                "it needs a privileged container and gives mounts to the host; write None or HostToContainer",
            )),
            _ => Err(field
                .place
                .invalid("must be None, HostToContainer or Bidirectional")),
        },
    }
}

fn devices(
    spec: &pod_spec::Container,
    volumes: &[Volume],
    lines: &mut Lines,
) -> Result<Vec<VolumeDevice>, ReadError> {
    let Some(list) = &spec.volume_devices else {
        return Ok(Vec::new());
    };
    lines.insert("devices", list.place.line);
    let mut paths = BTreeSet::new();
    let mut devices = Vec::new();
    for entry in &list.value {
        let device = &entry.value;
        let volume = volume_of(&device.name, volumes)?;
        if block_mode(volume) == Some(false) {
            return Err(device.name.place.invalid(format!(
                "the volume {:?} is no block device: use a claim of volumeMode: Block, or name it in volumeMounts",
                volume.name
            )));
        }
        let path = &device.device_path;
        if !path.value.starts_with('/') || !paths.insert(path.value.as_str()) {
            return Err(path
                .place
                .invalid("must be an absolute path that no other device of the container has"));
        }
        devices.push(VolumeDevice {
            path: path.value.clone(),
            volume: device.name.value.clone(),
            line: entry.place.line,
        });
    }
    Ok(devices)
}

/// The commands that the kubelet may run in the container.
fn commands(spec: &pod_spec::Container, lines: &mut Lines) -> Result<Vec<ExecCommand>, ReadError> {
    let lifecycle = spec.lifecycle.as_ref();
    let hook = |hook: Option<&pod_spec::Hook>| hook.and_then(|hook| hook.exec.clone());
    let probe = |probe: Option<&pod_spec::Probe>| probe.and_then(|probe| probe.exec.clone());
    let sources: [(&'static str, Option<Exec>); 5] = [
        ("startupProbe", probe(spec.startup_probe.as_ref())),
        ("livenessProbe", probe(spec.liveness_probe.as_ref())),
        ("readinessProbe", probe(spec.readiness_probe.as_ref())),
        (
            "lifecycle.postStart",
            hook(lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
        ),
        ("lifecycle.preStop", hook(lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref()))),
    ];
    let mut commands = Vec::new();
    for (purpose, exec) in sources {
        let Some(Exec { command }) = exec else {
            continue;
        };
        if command.value.is_empty() {
            return Err(command.place.invalid("names no program: write the command as a list"));
        }
        lines.entry("exec").or_insert(command.place.line);
        commands.push(ExecCommand { command: command.value, purpose, line: command.place.line });
    }
    Ok(commands)
}

fn stop_signal(spec: &pod_spec::Container) -> Result<Option<Located<String>>, ReadError> {
    let signal = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_ref());
    let Some(signal) = signal else {
        return Ok(None);
    };
    let allowed =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"+-".contains(&byte);
    match signal.value.strip_prefix("SIG") {
        Some(name) if !name.is_empty() && name.bytes().all(allowed) => Ok(Some(signal.located())),
        _ => Err(signal.place.invalid("is no signal: write its name, such as SIGTERM")),
    }
}

/// Reads `resources`: every quantity, exactly, with requests not above limits.
pub(super) fn quantities(
    requirements: Option<&Placed<ResourceRequirements>>,
    notes: &mut Notes,
) -> Result<Quantities, ReadError> {
    let Some(requirements) = requirements else {
        return Ok(Quantities::default());
    };
    let ResourceRequirements { limits, requests, claims } = &requirements.value;
    if let Some(claim) = claims.first() {
        notes.add(
            &claim.place,
            "devices of resource claims are not in the policy: the agent will refuse them",
        );
    }
    let read = |list: &BTreeMap<String, Placed<QuantityText>>, notes: &mut Notes| {
        list.iter()
            .map(|(name, text)| {
                let quantity = Quantity::parse(&text.value.0).map_err(|problem| {
                    text.place.invalid(format!("{:?} {problem}", text.value.0))
                })?;
                if name != "cpu" && quantity.is_fractional() {
                    notes.add(
                        &text.place,
                        format!(
                            "{:?} is a fraction of a byte; if mega is meant, write M or Mi",
                            text.value.0
                        ),
                    );
                }
                Ok::<_, ReadError>((name.clone(), quantity))
            })
            .collect::<Result<BTreeMap<_, _>, _>>()
    };
    let quantities = Quantities { limits: read(limits, notes)?, requests: read(requests, notes)? };
    for (name, request) in &quantities.requests {
        if let Some(limit) = quantities.limits.get(name)
            && (request.units() > limit.units() || request.thousandths() > limit.thousandths())
            && let Some(text) = requests.get(name)
        {
            return Err(text.place.invalid("is more than the limit: lower it, or raise the limit"));
        }
    }
    for (name, limit) in limits {
        if name.contains('/') {
            notes.add(
                &limit.place,
                "devices that a device plugin adds are not in the policy: the agent will refuse them",
            );
        }
    }
    Ok(quantities)
}

fn resources(name: &str, around: &Surroundings<'_>) -> Resources {
    let none = Quantities::default();
    let own = around.pod.resources.get(name).unwrap_or(&none);
    let limit = |resource: &str| own.limits.get(resource).copied();
    let request = |resource: &str| own.requests.get(resource).copied();
    let cpu_limit = limit("cpu").map(Quantity::thousandths);
    let memory_limit = limit("memory").map(Quantity::units);
    let cpu_request = request("cpu").map(Quantity::thousandths).or(cpu_limit);
    let pod_limit = |resource: &str| around.pod_limits.limits.get(resource).copied();
    Resources {
        cpu_request,
        cpu_limit,
        memory_request: request("memory").map(Quantity::units).or(memory_limit),
        memory_limit,
        other_limits: own
            .limits
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory"))
            .map(|(name, quantity)| (name.clone(), quantity.units()))
            .collect(),
        linux: linux_resources(
            cpu_request,
            cpu_limit.or_else(|| pod_limit("cpu").map(Quantity::thousandths)),
            memory_limit.or_else(|| pod_limit("memory").map(Quantity::units)),
        ),
    }
}
