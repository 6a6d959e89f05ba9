//! The structures of a pod's specification.
//!
//! Source: Kubernetes API reference, core/v1 (1.34).

use std::collections::BTreeMap;

use super::decode::{Cursor, Decode, Placed, QuantityText, Shape, objects};
use super::error::ReadError;
use super::objects::ObjectMeta;
use super::shapes;

objects! {
    PodTemplate {
        metadata: Option<Placed<ObjectMeta>> = "metadata",
        spec: Placed<PodSpec> = "spec",
    }

    PodSpec {
        containers: Placed<Vec<Placed<Container>>> = "containers",
        init_containers: Vec<Placed<Container>> = "initContainers",
        ephemeral_containers: Option<Placed<Vec<Anything>>> = "ephemeralContainers",
        volumes: Vec<Placed<Volume>> = "volumes",
        hostname: Option<Placed<String>> = "hostname",
        hostname_override: Option<Placed<String>> = "hostnameOverride",
        hostname_as_fqdn: Option<Placed<bool>> = "setHostnameAsFQDN",
        subdomain: Option<Placed<String>> = "subdomain",
        restart_policy: Option<Placed<String>> = "restartPolicy",
        host_network: Option<Placed<bool>> = "hostNetwork",
        host_pid: Option<Placed<bool>> = "hostPID",
        host_ipc: Option<Placed<bool>> = "hostIPC",
        host_users: Option<Placed<bool>> = "hostUsers",
        share_process_namespace: Option<Placed<bool>> = "shareProcessNamespace",
        security_context: Option<Placed<PodSecurityContext>> = "securityContext",
        service_account_name: Option<Placed<String>> = "serviceAccountName",
        service_account: Option<Placed<String>> = "serviceAccount",
        automount_token: Option<Placed<bool>> = "automountServiceAccountToken",
        enable_service_links: Option<Placed<bool>> = "enableServiceLinks",
        node_name: Option<Placed<String>> = "nodeName",
        runtime_class_name: Option<Placed<String>> = "runtimeClassName",
        dns_policy: Option<String> = "dnsPolicy",
        dns_config: Option<Placed<DnsConfig>> = "dnsConfig",
        os: Option<OperatingSystem> = "os",
        resources: Option<Placed<ResourceRequirements>> = "resources",
    } + {
        "nodeSelector": &Shape::Texts,
        "affinity": &shapes::AFFINITY,
        "tolerations": &shapes::TOLERATIONS,
        "topologySpreadConstraints": &shapes::TOPOLOGY_SPREAD_CONSTRAINTS,
        "schedulerName": &Shape::Text,
        "schedulingGates": &shapes::SCHEDULING_GATES,
        "priority": &Shape::Integer,
        "priorityClassName": &Shape::Text,
        "preemptionPolicy": &Shape::Text,
        "imagePullSecrets": &shapes::LOCAL_REFERENCES,
        "terminationGracePeriodSeconds": &Shape::Integer,
        "activeDeadlineSeconds": &Shape::Integer,
        "readinessGates": &shapes::READINESS_GATES,
        "overhead": &Shape::Quantities,
        "hostAliases": &shapes::HOST_ALIASES,
        "resourceClaims": &shapes::POD_RESOURCE_CLAIMS,
        "workloadRef": &shapes::WORKLOAD_REFERENCE,
    }

    DnsConfig {
    } + {
        "nameservers": &Shape::List(&Shape::Text),
        "searches": &Shape::List(&Shape::Text),
        "options": &shapes::DNS_OPTIONS,
    }

    OperatingSystem {
        name: Placed<String> = "name",
    }

    Container {
        name: Placed<String> = "name",
        image: Placed<String> = "image",
        command: Option<Placed<Vec<Placed<String>>>> = "command",
        args: Option<Placed<Vec<Placed<String>>>> = "args",
        working_dir: Option<Placed<String>> = "workingDir",
        env: Option<Placed<Vec<Placed<EnvVar>>>> = "env",
        env_from: Option<Placed<Vec<Placed<EnvFrom>>>> = "envFrom",
        security_context: Option<Placed<SecurityContext>> = "securityContext",
        volume_mounts: Option<Placed<Vec<Placed<VolumeMount>>>> = "volumeMounts",
        volume_devices: Option<Placed<Vec<Placed<VolumeDevice>>>> = "volumeDevices",
        resources: Option<Placed<ResourceRequirements>> = "resources",
        liveness_probe: Option<Probe> = "livenessProbe",
        readiness_probe: Option<Probe> = "readinessProbe",
        startup_probe: Option<Probe> = "startupProbe",
        lifecycle: Option<Lifecycle> = "lifecycle",
        stdin: Option<Placed<bool>> = "stdin",
        stdin_once: Option<bool> = "stdinOnce",
        tty: Option<Placed<bool>> = "tty",
        restart_policy: Option<Placed<String>> = "restartPolicy",
        restart_rules: Vec<Placed<RestartRule>> = "restartPolicyRules",
        termination_message_path: Option<String> = "terminationMessagePath",
    } + {
        "imagePullPolicy": &Shape::Text,
        "ports": &shapes::PORTS,
        "resizePolicy": &shapes::RESIZE_POLICY,
        "terminationMessagePolicy": &Shape::Text,
    }

    RestartRule {
        action: Placed<String> = "action",
    } + {
        "exitCodes": &shapes::EXIT_CODES,
    }

    EnvVar {
        name: Placed<String> = "name",
        value: Option<Placed<String>> = "value",
        value_from: Option<Placed<EnvVarSource>> = "valueFrom",
    }

    EnvVarSource {
        config_map_key: Option<Placed<KeySelector>> = "configMapKeyRef",
        secret_key: Option<Placed<KeySelector>> = "secretKeyRef",
        field: Option<Placed<FieldSelector>> = "fieldRef",
        resource_field: Option<Placed<ResourceFieldSelector>> = "resourceFieldRef",
        file_key: Option<Placed<Anything>> = "fileKeyRef",
    }

    KeySelector {
        name: Option<Placed<String>> = "name",
        key: Placed<String> = "key",
        optional: Option<bool> = "optional",
    }

    FieldSelector {
        field_path: Placed<String> = "fieldPath",
    } + {
        "apiVersion": &Shape::Text,
    }

    ResourceFieldSelector {
        container_name: Option<Placed<String>> = "containerName",
        resource: Placed<String> = "resource",
        divisor: Option<Placed<QuantityText>> = "divisor",
    }

    EnvFrom {
        prefix: Option<Placed<String>> = "prefix",
        config_map: Option<Placed<EnvSource>> = "configMapRef",
        secret: Option<Placed<EnvSource>> = "secretRef",
    }

    EnvSource {
        name: Option<Placed<String>> = "name",
        optional: Option<bool> = "optional",
    }

    VolumeMount {
        name: Placed<String> = "name",
        mount_path: Placed<String> = "mountPath",
        read_only: Option<bool> = "readOnly",
        recursive_read_only: Option<Placed<String>> = "recursiveReadOnly",
        sub_path: Option<Placed<String>> = "subPath",
        sub_path_expr: Option<Placed<String>> = "subPathExpr",
        mount_propagation: Option<Placed<String>> = "mountPropagation",
    }

    VolumeDevice {
        name: Placed<String> = "name",
        device_path: Placed<String> = "devicePath",
    }

    ResourceRequirements {
        limits: BTreeMap<String, Placed<QuantityText>> = "limits",
        requests: BTreeMap<String, Placed<QuantityText>> = "requests",
        claims: Vec<Placed<ResourceClaim>> = "claims",
    }

    ResourceClaim {
    } + {
        "name": &Shape::Text,
        "request": &Shape::Text,
    }

    Probe {
        exec: Option<Exec> = "exec",
    } + {
        "httpGet": &shapes::HTTP_GET,
        "tcpSocket": &shapes::TCP_SOCKET,
        "grpc": &shapes::GRPC,
        "initialDelaySeconds": &Shape::Integer,
        "periodSeconds": &Shape::Integer,
        "timeoutSeconds": &Shape::Integer,
        "successThreshold": &Shape::Integer,
        "failureThreshold": &Shape::Integer,
        "terminationGracePeriodSeconds": &Shape::Integer,
    }

    Exec {
        command: Placed<Vec<String>> = "command",
    }

    Lifecycle {
        post_start: Option<Hook> = "postStart",
        pre_stop: Option<Hook> = "preStop",
        stop_signal: Option<Placed<String>> = "stopSignal",
    }

    Hook {
        exec: Option<Exec> = "exec",
    } + {
        "httpGet": &shapes::HTTP_GET,
        "tcpSocket": &shapes::TCP_SOCKET,
        "sleep": &shapes::SLEEP,
    }

    PodSecurityContext {
        run_as_user: Option<Placed<i64>> = "runAsUser",
        run_as_group: Option<Placed<i64>> = "runAsGroup",
        run_as_non_root: Option<Placed<bool>> = "runAsNonRoot",
        fs_group: Option<Placed<i64>> = "fsGroup",
        supplemental_groups: Vec<Placed<i64>> = "supplementalGroups",
        supplemental_groups_policy: Option<Placed<String>> = "supplementalGroupsPolicy",
        sysctls: Option<Placed<Vec<Placed<Sysctl>>>> = "sysctls",
        seccomp_profile: Option<Placed<Profile>> = "seccompProfile",
        app_armor_profile: Option<Placed<Profile>> = "appArmorProfile",
        se_linux_options: Option<SeLinuxOptions> = "seLinuxOptions",
        windows_options: Option<Placed<Anything>> = "windowsOptions",
    } + {
        "fsGroupChangePolicy": &Shape::Text,
        "seLinuxChangePolicy": &Shape::Text,
    }

    SecurityContext {
        run_as_user: Option<Placed<i64>> = "runAsUser",
        run_as_group: Option<Placed<i64>> = "runAsGroup",
        run_as_non_root: Option<Placed<bool>> = "runAsNonRoot",
        privileged: Option<Placed<bool>> = "privileged",
        read_only_root: Option<Placed<bool>> = "readOnlyRootFilesystem",
        allow_privilege_escalation: Option<Placed<bool>> = "allowPrivilegeEscalation",
        capabilities: Option<Placed<Capabilities>> = "capabilities",
        proc_mount: Option<Placed<String>> = "procMount",
        seccomp_profile: Option<Placed<Profile>> = "seccompProfile",
        app_armor_profile: Option<Placed<Profile>> = "appArmorProfile",
        se_linux_options: Option<SeLinuxOptions> = "seLinuxOptions",
        windows_options: Option<Placed<Anything>> = "windowsOptions",
    }

    Capabilities {
        add: Vec<Placed<String>> = "add",
        drop: Vec<Placed<String>> = "drop",
    }

    Sysctl {
        name: Placed<String> = "name",
        value: String = "value",
    }

    Profile {
        kind: Placed<String> = "type",
        localhost_profile: Option<Placed<String>> = "localhostProfile",
    }

    SeLinuxOptions {
        user: Option<String> = "user",
        role: Option<String> = "role",
        kind: Option<String> = "type",
        level: Option<String> = "level",
    }

    HostPath {
        path: Placed<String> = "path",
        kind: Option<String> = "type",
    }

    EmptyDir {
        medium: Option<Placed<String>> = "medium",
        size_limit: Option<Placed<QuantityText>> = "sizeLimit",
    } + {
        "mode": &Shape::Integer,
    }

    ConfigMapVolume {
        name: Option<Placed<String>> = "name",
        items: Option<Vec<Placed<KeyToPath>>> = "items",
        optional: Option<bool> = "optional",
    } + {
        "defaultMode": &Shape::Integer,
    }

    SecretVolume {
        name: Option<Placed<String>> = "secretName",
        items: Option<Vec<Placed<KeyToPath>>> = "items",
        optional: Option<bool> = "optional",
    } + {
        "defaultMode": &Shape::Integer,
    }

    KeyToPath {
        key: Placed<String> = "key",
        path: Placed<String> = "path",
    } + {
        "mode": &Shape::Integer,
    }

    ProjectedVolume {
        sources: Vec<Placed<Projection>> = "sources",
    } + {
        "defaultMode": &Shape::Integer,
    }

    Projection {
        config_map: Option<Placed<KeyProjection>> = "configMap",
        secret: Option<Placed<KeyProjection>> = "secret",
        downward: Option<Placed<DownwardProjection>> = "downwardAPI",
        token: Option<Placed<TokenProjection>> = "serviceAccountToken",
        trust_bundle: Option<Placed<TrustBundleProjection>> = "clusterTrustBundle",
        certificate: Option<Placed<CertificateProjection>> = "podCertificate",
    }

    KeyProjection {
        name: Option<Placed<String>> = "name",
        items: Option<Vec<Placed<KeyToPath>>> = "items",
        optional: Option<bool> = "optional",
    }

    DownwardProjection {
        items: Vec<Placed<DownwardFile>> = "items",
    }

    DownwardVolume {
        items: Vec<Placed<DownwardFile>> = "items",
    } + {
        "defaultMode": &Shape::Integer,
    }

    DownwardFile {
        path: Placed<String> = "path",
        field: Option<Placed<FieldSelector>> = "fieldRef",
        resource_field: Option<Placed<ResourceFieldSelector>> = "resourceFieldRef",
    } + {
        "mode": &Shape::Integer,
    }

    TokenProjection {
        path: Placed<String> = "path",
    } + {
        "audience": &Shape::Text,
        "expirationSeconds": &Shape::Integer,
    }

    TrustBundleProjection {
        path: Placed<String> = "path",
    } + {
        "name": &Shape::Text,
        "signerName": &Shape::Text,
        "labelSelector": &shapes::LABEL_SELECTOR,
        "optional": &Shape::Bool,
    }

    CertificateProjection {
        bundle_path: Option<Placed<String>> = "credentialBundlePath",
        key_path: Option<Placed<String>> = "keyPath",
        chain_path: Option<Placed<String>> = "certificateChainPath",
    } + {
        "signerName": &Shape::Text,
        "keyType": &Shape::Text,
        "maxExpirationSeconds": &Shape::Integer,
        "userAnnotations": &Shape::Texts,
    }

    ClaimVolume {
        claim_name: Placed<String> = "claimName",
        read_only: Option<bool> = "readOnly",
    }

    EphemeralVolume {
        template: Option<Placed<ClaimTemplate>> = "volumeClaimTemplate",
    }

    ClaimTemplate {
        spec: ClaimSpec = "spec",
    } + {
        "metadata": &Shape::Any,
    }

    ClaimSpec {
        volume_mode: Option<Placed<String>> = "volumeMode",
    } + {
        "accessModes": &Shape::List(&Shape::Text),
        "selector": &shapes::LABEL_SELECTOR,
        "resources": &shapes::RESOURCES,
        "volumeName": &Shape::Text,
        "storageClassName": &Shape::Text,
        "dataSource": &shapes::TYPED_REFERENCE,
        "dataSourceRef": &shapes::TYPED_REFERENCE,
        "volumeAttributesClassName": &Shape::Text,
    }

    CsiVolume {
        driver: Placed<String> = "driver",
        read_only: Option<bool> = "readOnly",
    } + {
        "fsType": &Shape::Text,
        "volumeAttributes": &Shape::Texts,
        "nodePublishSecretRef": &shapes::LOCAL_REFERENCE,
    }

    ImageVolume {
        reference: Placed<String> = "reference",
    } + {
        "pullPolicy": &Shape::Text,
    }

}

/// A volume: its name and exactly one source.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) name: Placed<String>,
    pub(super) source: VolumeSource,
}

#[derive(Debug, Clone)]
pub(super) enum VolumeSource {
    EmptyDir(EmptyDir),
    HostPath(HostPath),
    ConfigMap(Placed<ConfigMapVolume>),
    Secret(Placed<SecretVolume>),
    Projected(Placed<ProjectedVolume>),
    Downward(DownwardVolume),
    Claim(ClaimVolume),
    Ephemeral(Placed<EphemeralVolume>),
    Csi(CsiVolume),
    Image(ImageVolume),
    Node { kind: &'static str, read_only: bool },
}

impl Decode for Volume {
    fn decode(at: &Cursor<'_>) -> Result<Self, ReadError> {
        const OWN: [&str; 11] = [
            "name",
            "emptyDir",
            "hostPath",
            "configMap",
            "secret",
            "projected",
            "downwardAPI",
            "persistentVolumeClaim",
            "ephemeral",
            "csi",
            "image",
        ];
        let node_volumes: Vec<(&str, &Shape)> = shapes::NODE_VOLUMES
            .iter()
            .map(|(name, shape)| (*name, shape))
            .chain([("gitRepo", &Shape::Any)])
            .collect();
        at.allow(&OWN, &node_volumes)?;
        let mut sources = Vec::new();
        for key in OWN.iter().skip(1).chain(node_volumes.iter().map(|(name, _)| name)) {
            if let Some(child) = at.get(key)? {
                sources.push((*key, child));
            }
        }
        if let [_, (_, second), ..] = &sources[..] {
            return Err(second
                .place()
                .invalid("is a second source of this volume: a volume has one, remove the other"));
        }
        let source = match sources.first() {
            None => VolumeSource::EmptyDir(EmptyDir { medium: None, size_limit: None }),
            Some((key, child)) => Self::source(key, child)?,
        };
        Ok(Self { name: at.field("name")?, source })
    }
}

impl Volume {
    fn source(key: &str, at: &Cursor<'_>) -> Result<VolumeSource, ReadError> {
        Ok(match key {
            "emptyDir" => VolumeSource::EmptyDir(Decode::decode(at)?),
            "hostPath" => VolumeSource::HostPath(Decode::decode(at)?),
            "configMap" => VolumeSource::ConfigMap(Decode::decode(at)?),
            "secret" => VolumeSource::Secret(Decode::decode(at)?),
            "projected" => VolumeSource::Projected(Decode::decode(at)?),
            "downwardAPI" => VolumeSource::Downward(Decode::decode(at)?),
            "persistentVolumeClaim" => VolumeSource::Claim(Decode::decode(at)?),
            "ephemeral" => VolumeSource::Ephemeral(Decode::decode(at)?),
            "csi" => VolumeSource::Csi(Decode::decode(at)?),
            "image" => VolumeSource::Image(Decode::decode(at)?),
            _ => match shapes::NODE_VOLUMES.iter().find(|(name, _)| *name == key) {
                Some((kind, _)) => VolumeSource::Node {
                    kind,
                    read_only: at.field::<Option<bool>>("readOnly")?.unwrap_or(false),
                },
                None => {
                    return Err(at.place().refused(
                        "a gitRepo volume",
                        "Kubernetes has removed it; clone the repository in an init container",
                    ));
                }
            },
        })
    }
}

/// A field of which only its presence matters, or whose form is checked elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Anything;

impl Decode for Anything {
    fn decode(_: &Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self)
    }
}
