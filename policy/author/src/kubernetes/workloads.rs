//! Objects that make pods: how they name them, what they add, and the pod itself.

use std::collections::{BTreeMap, BTreeSet};

use super::containers::{self, RestartPolicy, Surroundings, check_name};
use super::context::{Notes, PodContext};
use super::decode::{Cursor, Decode, Placed, present};
use super::error::{Place, ReadError};
use super::objects::{
    Claim, CronJob, DaemonSet, Deployment, Job, JobSpec, ObjectMeta, ReplicaSet,
    ReplicationController, StatefulSet,
};
use super::pod_spec::{PodSecurityContext, PodSpec, PodTemplate};
use super::security::{self, Lines};
use super::store::{Store, is_block};
use super::volumes;
use crate::expand::quote;
use crate::workload::{Pod, PodName, Volume, VolumeKind, Workload};

/// Kinds that make pods, and the API group and version in which they do.
pub(super) const KINDS: [(&str, &str); 8] = [
    ("Pod", "v1"),
    ("ReplicationController", "v1"),
    ("Deployment", "apps/v1"),
    ("ReplicaSet", "apps/v1"),
    ("StatefulSet", "apps/v1"),
    ("DaemonSet", "apps/v1"),
    ("Job", "batch/v1"),
    ("CronJob", "batch/v1"),
];

/// Longest part of a generated name that is not generated: 63 characters less 5 random ones.
const GENERATED_BASE: usize = 58;

/// What a kind says of its pods.
struct Maker {
    metadata: Placed<ObjectMeta>,
    template: Template,
    claim_templates: Vec<Placed<Claim>>,
    name: PodName,
    hostname: Hostname,
    subdomain: Option<String>,
    added_keys: &'static [&'static str],
    indexed: bool,
}

/// Who decides on the hostname.
enum Hostname {
    /// The pod's specification; without a word there, this one, or the pod's name.
    Specified(Option<PodName>),
    /// The controller: this one, or the pod's name.
    Controlled(Option<PodName>),
}

struct Template {
    /// Where metadata and specification stand.
    place: Place,
    metadata: Option<Placed<ObjectMeta>>,
    spec: Placed<PodSpec>,
}

impl From<Placed<PodTemplate>> for Template {
    fn from(template: Placed<PodTemplate>) -> Self {
        Self { place: template.place, metadata: template.value.metadata, spec: template.value.spec }
    }
}

/// Reads one workload object of the kind `kind`.
pub(super) fn workload(
    kind: &str,
    at: &Cursor<'_>,
    document: usize,
    store: &Store,
    notes: &mut Notes,
) -> Result<Workload, ReadError> {
    let maker = maker(kind, at)?;
    let object_name = object_name(&maker.metadata)?.0.to_owned();
    let namespace = namespace(&maker.metadata)?;
    let name = maker.name.clone();
    Ok(Workload {
        kind: kind.to_owned(),
        object_name,
        name,
        namespace,
        source: at.place().file.to_string(),
        document,
        line: at.place().line,
        pod: pod(maker, store, notes)?,
    })
}

fn maker(kind: &str, at: &Cursor<'_>) -> Result<Maker, ReadError> {
    match kind {
        "Pod" => {
            let super::objects::Pod { metadata, spec } = Decode::decode(at)?;
            let (name, generated) = object_name(&metadata)?;
            let hostname = (!generated && name.len() > 63).then(|| {
                // Where the name is longer than a host's may be, the kubelet cuts it.
                PodName::Exact(name[..63].trim_end_matches(['-', '.']).to_owned())
            });
            Ok(Maker {
                name: if generated {
                    generated_name(name)
                } else {
                    PodName::Exact(name.to_owned())
                },
                hostname: Hostname::Specified(hostname),
                subdomain: None,
                template: Template {
                    place: at.place().clone(),
                    metadata: Some(metadata.clone()),
                    spec,
                },
                metadata,
                claim_templates: Vec::new(),
                added_keys: &[],
                indexed: false,
            })
        }
        "Deployment" => {
            let Deployment { metadata, spec } = Decode::decode(at)?;
            replicas(metadata, spec.template, &["pod-template-hash"])
        }
        "ReplicaSet" => {
            let ReplicaSet { metadata, spec } = Decode::decode(at)?;
            replicas(metadata, spec.template, &[])
        }
        "ReplicationController" => {
            let ReplicationController { metadata, spec } = Decode::decode(at)?;
            replicas(metadata, spec.template, &[])
        }
        "DaemonSet" => {
            let DaemonSet { metadata, spec } = Decode::decode(at)?;
            let added = &["controller-revision-hash", "pod-template-generation"];
            replicas(metadata, spec.template, added)
        }
        "StatefulSet" => {
            let StatefulSet { metadata, spec } = Decode::decode(at)?;
            let added = &[
                "controller-revision-hash",
                "statefulset.kubernetes.io/pod-name",
                "apps.kubernetes.io/pod-index",
            ];
            let name = PodName::Pattern(format!("^{}-[0-9]+$", name_pattern(&metadata)?));
            Ok(Maker {
                hostname: Hostname::Controlled(None),
                subdomain: spec.service_name,
                claim_templates: spec.claim_templates,
                name,
                ..replicas(metadata, spec.template, added)?
            })
        }
        "Job" => {
            let Job { metadata, spec } = Decode::decode(at)?;
            let hostname = format!("^{}-[0-9]+$", name_pattern(&metadata)?);
            job(metadata, spec, hostname)
        }
        _ => {
            let CronJob { metadata, spec } = Decode::decode(at)?;
            let hostname = format!("^{}-[0-9]+-[0-9]+$", name_pattern(&metadata)?);
            job(metadata, spec.job_template.spec, hostname)
        }
    }
}

fn replicas(
    metadata: Placed<ObjectMeta>,
    template: Placed<PodTemplate>,
    added_keys: &'static [&'static str],
) -> Result<Maker, ReadError> {
    let (name, generated) = object_name(&metadata)?;
    let name = if generated { generated_name(name) } else { generated_name(&format!("{name}-")) };
    Ok(Maker {
        name,
        hostname: Hostname::Specified(None),
        subdomain: None,
        template: template.into(),
        metadata,
        claim_templates: Vec::new(),
        added_keys,
        indexed: false,
    })
}

fn job(metadata: Placed<ObjectMeta>, spec: JobSpec, hostname: String) -> Result<Maker, ReadError> {
    let indexed = match &spec.completion_mode {
        None => false,
        Some(mode) => match mode.value.as_str() {
            "NonIndexed" => false,
            "Indexed" => true,
            _ => return Err(mode.place.invalid("must be NonIndexed or Indexed")),
        },
    };
    let added = &[
        "controller-uid",
        "job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/job-index-failure-count",
        "batch.kubernetes.io/job-index-ignored-failure-count",
    ];
    let restart = &spec.template.value.spec.value.restart_policy;
    let allowed = restart.as_ref().is_some_and(|policy| policy.value != "Always");
    if !allowed {
        let place = match restart {
            Some(policy) => &policy.place,
            None => &spec.template.value.spec.place,
        };
        return Err(place.invalid("a job's pods need restartPolicy: Never or OnFailure"));
    }
    Ok(Maker {
        hostname: if indexed {
            Hostname::Controlled(Some(PodName::Pattern(hostname)))
        } else {
            Hostname::Specified(None)
        },
        indexed,
        ..replicas(metadata, spec.template, added)?
    })
}

/// `metadata.name`, or `metadata.generateName` and true.
fn object_name(metadata: &Placed<ObjectMeta>) -> Result<(&str, bool), ReadError> {
    let (name, generated) =
        match (present(&metadata.value.name), present(&metadata.value.generate_name)) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            (None, None) => {
                return Err(metadata.place.invalid("has neither name nor generateName: add one"));
            }
        };
    let text = name.value.as_str();
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if text.is_empty()
        || text.len() > 253
        || !text.bytes().all(inner)
        || text.starts_with(['-', '.'])
        || (!generated && text.ends_with(['-', '.']))
    {
        return Err(name.place.invalid(format!(
            "{text:?} is no name: use up to 253 of a-z, 0-9, '-' and '.', the latter two not at the ends"
        )));
    }
    Ok((text, generated))
}

fn namespace(metadata: &Placed<ObjectMeta>) -> Result<Option<String>, ReadError> {
    let Some(namespace) = present(&metadata.value.namespace) else {
        return Ok(None);
    };
    check_name(namespace, "namespace")?;
    Ok(Some(namespace.value.clone()))
}

fn generated_name(base: &str) -> PodName {
    // Names are ASCII here, so any cut is a character's.
    PodName::Prefix(base[..base.len().min(GENERATED_BASE)].to_owned())
}

/// An object's name as a pattern without anchors.
fn name_pattern(metadata: &Placed<ObjectMeta>) -> Result<String, ReadError> {
    let (name, generated) = object_name(metadata)?;
    let base = &name[..name.len().min(GENERATED_BASE)];
    Ok(if generated { format!("{}[a-z0-9]+", quote(base)) } else { quote(name) })
}

fn pod(maker: Maker, store: &Store, notes: &mut Notes) -> Result<Pod, ReadError> {
    let spec = &maker.template.spec.value;
    security::check_pod(spec)?;
    let metadata = maker.template.metadata.as_ref().map(|metadata| &metadata.value);
    let account = present(&spec.service_account_name)
        .or(present(&spec.service_account))
        .map(|account| account.value.clone());
    let namespace = namespace(&maker.metadata)?;
    let annotations = metadata
        .and_then(|metadata| metadata.annotations.as_ref())
        .map(|annotations| annotations.value.clone())
        .unwrap_or_default();
    let mut context = PodContext {
        store,
        name: maker.name,
        service_account: account.clone(),
        node_name: present(&spec.node_name).map(|node| node.value.clone()),
        labels: metadata.map(|metadata| metadata.labels.clone()).unwrap_or_default(),
        annotations,
        added_keys: maker.added_keys,
        indexed: maker.indexed,
        service_links: spec.enable_service_links.as_ref().is_none_or(|field| field.value),
        resources: BTreeMap::new(),
        namespace,
    };
    let all = spec
        .init_containers
        .iter()
        .map(|container| (container, true))
        .chain(spec.containers.value.iter().map(|container| (container, false)));
    for (container, _) in all.clone() {
        let name = &container.value.name;
        let quantities = containers::quantities(container.value.resources.as_ref(), notes)?;
        if context.resources.insert(name.value.clone(), quantities).is_some() {
            return Err(name
                .place
                .invalid(format!("the pod has two containers {:?}: rename one", name.value)));
        }
    }
    if spec.containers.value.is_empty() {
        return Err(spec.containers.place.invalid("needs at least one container"));
    }
    let volumes = pod_volumes(spec, &maker.claim_templates, &context, notes)?;
    let security = spec.security_context.as_ref().map(|placed| &placed.value);
    let pod_limits = containers::quantities(spec.resources.as_ref(), notes)?;
    let surroundings = Surroundings {
        pod: &context,
        security,
        volumes: &volumes,
        restart_policy: match &spec.restart_policy {
            Some(policy) => RestartPolicy::of(policy)?,
            None => RestartPolicy::Always,
        },
        restart_all: all
            .clone()
            .any(|(container, _)| containers::restarts(&container.value, "RestartAllContainers")),
        pod_limits: &pod_limits,
    };
    let containers = all
        .map(|(container, init)| containers::container(container, init, &surroundings, notes))
        .collect::<Result<Vec<_>, _>>()?;
    let groups = groups(security)?;
    Ok(Pod {
        hostname: hostname(spec, maker.hostname)?,
        subdomain: present(&spec.subdomain)
            .map(|subdomain| subdomain.value.clone())
            .or(maker.subdomain),
        shared_pid: spec.share_process_namespace.as_ref().is_some_and(|field| field.value),
        sysctls: sysctls(security)?,
        service_links: context.service_links,
        automount_token: spec.automount_token.as_ref().map(|field| field.value).or_else(|| {
            store.account_automount(context.namespace(), account.as_deref().unwrap_or("default"))
        }),
        service_account: account,
        containers,
        volumes,
        fs_group: groups.fs_group,
        supplemental_groups: groups.supplemental,
        strict_groups: groups.strict,
        runtime_class: spec.runtime_class_name.as_ref().map(|class| class.value.clone()),
        custom_dns: spec.dns_config.is_some() || spec.dns_policy.as_deref() == Some("None"),
        lines: lines(&maker.template, &maker.metadata),
        annotations: context.annotations,
        labels: context.labels,
    })
}

fn hostname(spec: &PodSpec, rule: Hostname) -> Result<Option<PodName>, ReadError> {
    if let Some(field) = &spec.hostname_as_fqdn
        && field.value
    {
        return Err(field.place.refused(
            "setHostnameAsFQDN: true",
            "the full name contains the cluster's domain, which the policy cannot know; remove the field",
        ));
    }
    let field = present(&spec.hostname_override).or(present(&spec.hostname));
    match (rule, field) {
        (Hostname::Controlled(name), _) | (Hostname::Specified(name), None) => Ok(name),
        (Hostname::Specified(_), Some(field)) => {
            let labels = field.value.split('.').all(|label| {
                !label.is_empty()
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            });
            if !labels || field.value.len() > 64 {
                return Err(field.place.invalid("is no hostname"));
            }
            Ok(Some(PodName::Exact(field.value.clone())))
        }
    }
}

struct Groups {
    fs_group: Option<u32>,
    supplemental: Vec<u32>,
    strict: bool,
}

fn groups(security: Option<&PodSecurityContext>) -> Result<Groups, ReadError> {
    let fs_group = security.and_then(|security| security.fs_group.as_ref());
    let supplemental = security.map_or(&[][..], |security| &security.supplemental_groups);
    let policy = security.and_then(|security| security.supplemental_groups_policy.as_ref());
    Ok(Groups {
        fs_group: fs_group.map(security::id).transpose()?,
        supplemental: supplemental.iter().map(security::id).collect::<Result<_, _>>()?,
        strict: match policy.map(|policy| (policy.value.as_str(), &policy.place)) {
            None | Some(("Merge", _)) => false,
            Some(("Strict", _)) => true,
            Some((_, place)) => return Err(place.invalid("must be Merge or Strict")),
        },
    })
}

fn sysctls(security: Option<&PodSecurityContext>) -> Result<BTreeMap<String, String>, ReadError> {
    let list = security.and_then(|security| security.sysctls.as_ref());
    let mut all = BTreeMap::new();
    for sysctl in list.iter().flat_map(|list| &list.value) {
        let name = &sysctl.value.name;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if name.value.is_empty() || !name.value.bytes().all(allowed) {
            return Err(name.place.invalid("is no name of a kernel parameter"));
        }
        let value = sysctl.value.value.clone();
        if all.insert(with_dots(&name.value), value).is_some() {
            return Err(name.place.invalid("stands twice: remove one"));
        }
    }
    Ok(all)
}

/// `net/ipv4/conf/eth0.1/x` as `net.ipv4.conf.eth0/1.x`: the first separator says which of the two is meant.
fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name
            .chars()
            .map(|letter| match letter {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn pod_volumes(
    spec: &PodSpec,
    claim_templates: &[Placed<Claim>],
    context: &PodContext<'_>,
    notes: &mut Notes,
) -> Result<Vec<Volume>, ReadError> {
    let mut all = Vec::new();
    let mut names = BTreeSet::new();
    for template in claim_templates {
        let Some(name) = &template.value.metadata.value.name else {
            return Err(template.place.invalid("needs metadata.name: volumeMounts refer to it"));
        };
        check_name(name, "volume")?;
        if !names.insert(name.value.as_str()) {
            return Err(name
                .place
                .invalid(format!("there are two claim templates {:?}: rename one", name.value)));
        }
        all.push(Volume {
            name: name.value.clone(),
            kind: VolumeKind::Claim {
                name: name.value.clone(),
                block: Some(is_block(template.value.spec.volume_mode.as_ref())?),
                read_only: false,
            },
            line: template.place.line,
        });
    }
    let mut own = BTreeSet::new();
    for volume in &spec.volumes {
        let name = &volume.value.name;
        check_name(name, "volume")?;
        if !own.insert(name.value.as_str()) {
            return Err(name
                .place
                .invalid(format!("the pod has two volumes {:?}: rename one", name.value)));
        }
        // A claim template takes the place of a volume of its name.
        if !names.contains(name.value.as_str()) {
            all.push(volumes::volume(volume, context, notes)?);
        }
    }
    Ok(all)
}

fn lines(template: &Template, object: &Placed<ObjectMeta>) -> Lines {
    let spec = &template.spec.value;
    let security = spec.security_context.as_ref().map(|placed| &placed.value);
    let metadata = template.metadata.as_ref();
    let own = &object.value;
    let places: [(&'static str, Option<&Place>); 17] = [
        ("template", Some(&template.place)),
        ("metadata", metadata.map(|metadata| &metadata.place)),
        (
            "annotations",
            metadata.and_then(|metadata| Some(&metadata.value.annotations.as_ref()?.place)),
        ),
        ("spec", Some(&template.spec.place)),
        ("name", own.name.as_ref().or(own.generate_name.as_ref()).map(|name| &name.place)),
        ("namespace", own.namespace.as_ref().map(|namespace| &namespace.place)),
        (
            "hostname",
            spec.hostname_override.as_ref().or(spec.hostname.as_ref()).map(|field| &field.place),
        ),
        ("subdomain", spec.subdomain.as_ref().map(|field| &field.place)),
        ("shared_pid", spec.share_process_namespace.as_ref().map(|field| &field.place)),
        ("service_links", spec.enable_service_links.as_ref().map(|field| &field.place)),
        ("service_account", spec.service_account_name.as_ref().map(|field| &field.place)),
        ("automount_token", spec.automount_token.as_ref().map(|field| &field.place)),
        ("runtime_class", spec.runtime_class_name.as_ref().map(|field| &field.place)),
        ("dns", spec.dns_config.as_ref().map(|field| &field.place)),
        ("security", spec.security_context.as_ref().map(|field| &field.place)),
        ("sysctls", security.and_then(|security| Some(&security.sysctls.as_ref()?.place))),
        ("fs_group", security.and_then(|security| Some(&security.fs_group.as_ref()?.place))),
    ];
    places.into_iter().filter_map(|(name, place)| Some((name, place?.line))).collect()
}
