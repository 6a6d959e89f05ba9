//! The structures around a pod's specification: metadata, controllers, `ConfigMaps`, Secrets, accounts and claims.
//!
//! Source: Kubernetes API reference, meta/v1, core/v1, apps/v1, batch/v1 (1.34).

use std::collections::BTreeMap;

use super::decode::{Encoded, Placed, Shape, objects};
use super::pod_spec::{ClaimSpec, PodSpec, PodTemplate};
use super::shapes;

objects! {
    ObjectMeta {
        name: Option<Placed<String>> = "name",
        generate_name: Option<Placed<String>> = "generateName",
        namespace: Option<Placed<String>> = "namespace",
        labels: BTreeMap<String, String> = "labels",
        annotations: Option<Placed<BTreeMap<String, String>>> = "annotations",
    } + {
        "creationTimestamp": &Shape::Text,
        "deletionGracePeriodSeconds": &Shape::Integer,
        "deletionTimestamp": &Shape::Text,
        "finalizers": &Shape::List(&Shape::Text),
        "generation": &Shape::Integer,
        "managedFields": &Shape::Any,
        "ownerReferences": &shapes::OWNER_REFERENCES,
        "resourceVersion": &Shape::Text,
        "selfLink": &Shape::Text,
        "uid": &Shape::Text,
    }

    Pod {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: Placed<PodSpec> = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    Deployment {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: DeploymentSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    DeploymentSpec {
        template: Placed<PodTemplate> = "template",
    } + {
        "replicas": &Shape::Integer,
        "selector": &shapes::LABEL_SELECTOR,
        "strategy": &shapes::ROLLOUT,
        "minReadySeconds": &Shape::Integer,
        "revisionHistoryLimit": &Shape::Integer,
        "paused": &Shape::Bool,
        "progressDeadlineSeconds": &Shape::Integer,
    }

    ReplicaSet {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: ReplicaSetSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    ReplicaSetSpec {
        template: Placed<PodTemplate> = "template",
    } + {
        "replicas": &Shape::Integer,
        "selector": &shapes::LABEL_SELECTOR,
        "minReadySeconds": &Shape::Integer,
    }

    ReplicationController {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: ReplicationControllerSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    ReplicationControllerSpec {
        template: Placed<PodTemplate> = "template",
    } + {
        "replicas": &Shape::Integer,
        "selector": &Shape::Texts,
        "minReadySeconds": &Shape::Integer,
    }

    DaemonSet {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: DaemonSetSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    DaemonSetSpec {
        template: Placed<PodTemplate> = "template",
    } + {
        "selector": &shapes::LABEL_SELECTOR,
        "updateStrategy": &shapes::ROLLOUT,
        "minReadySeconds": &Shape::Integer,
        "revisionHistoryLimit": &Shape::Integer,
    }

    StatefulSet {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: StatefulSetSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    StatefulSetSpec {
        template: Placed<PodTemplate> = "template",
        service_name: Option<String> = "serviceName",
        claim_templates: Vec<Placed<Claim>> = "volumeClaimTemplates",
    } + {
        "replicas": &Shape::Integer,
        "selector": &shapes::LABEL_SELECTOR,
        "podManagementPolicy": &Shape::Text,
        "updateStrategy": &shapes::ROLLOUT,
        "revisionHistoryLimit": &Shape::Integer,
        "minReadySeconds": &Shape::Integer,
        "persistentVolumeClaimRetentionPolicy": &shapes::CLAIM_RETENTION,
        "ordinals": &shapes::ORDINALS,
    }

    Job {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: JobSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    JobSpec {
        template: Placed<PodTemplate> = "template",
        completion_mode: Option<Placed<String>> = "completionMode",
    } + {
        "parallelism": &Shape::Integer,
        "completions": &Shape::Integer,
        "activeDeadlineSeconds": &Shape::Integer,
        "podFailurePolicy": &shapes::POD_FAILURE_POLICY,
        "successPolicy": &shapes::SUCCESS_POLICY,
        "backoffLimit": &Shape::Integer,
        "backoffLimitPerIndex": &Shape::Integer,
        "maxFailedIndexes": &Shape::Integer,
        "selector": &shapes::LABEL_SELECTOR,
        "manualSelector": &Shape::Bool,
        "ttlSecondsAfterFinished": &Shape::Integer,
        "suspend": &Shape::Bool,
        "podReplacementPolicy": &Shape::Text,
        "managedBy": &Shape::Text,
    }

    CronJob {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: CronJobSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }

    CronJobSpec {
        job_template: JobTemplate = "jobTemplate",
    } + {
        "schedule": &Shape::Text,
        "timeZone": &Shape::Text,
        "startingDeadlineSeconds": &Shape::Integer,
        "concurrencyPolicy": &Shape::Text,
        "suspend": &Shape::Bool,
        "successfulJobsHistoryLimit": &Shape::Integer,
        "failedJobsHistoryLimit": &Shape::Integer,
    }

    JobTemplate {
        spec: JobSpec = "spec",
    } + {
        "metadata": &Shape::Any,
    }

    ConfigMap {
        metadata: Placed<ObjectMeta> = "metadata",
        data: BTreeMap<String, String> = "data",
        binary_data: BTreeMap<String, Placed<Encoded>> = "binaryData",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "immutable": &Shape::Bool,
    }

    Secret {
        metadata: Placed<ObjectMeta> = "metadata",
        data: BTreeMap<String, Placed<Encoded>> = "data",
        string_data: BTreeMap<String, String> = "stringData",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "immutable": &Shape::Bool,
        "type": &Shape::Text,
    }

    ServiceAccount {
        metadata: Placed<ObjectMeta> = "metadata",
        automount_token: Option<bool> = "automountServiceAccountToken",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "secrets": &Shape::Any,
        "imagePullSecrets": &shapes::LOCAL_REFERENCES,
    }

    Claim {
        metadata: Placed<ObjectMeta> = "metadata",
        spec: ClaimSpec = "spec",
    } + {
        "apiVersion": &Shape::Text,
        "kind": &Shape::Text,
        "status": &Shape::Any,
    }
}
