//! Fields that a policy does not depend on: known by name and form, so that a slip in one is still found.
//!
//! Source: Kubernetes API reference, core/v1, apps/v1, batch/v1 (1.34).

use super::decode::Shape;

const TEXTS: Shape = Shape::List(&Shape::Text);

pub(super) const LABEL_SELECTOR: Shape = Shape::Object(&[
    ("matchLabels", &Shape::Texts),
    ("matchExpressions", &Shape::List(&REQUIREMENT)),
]);

const REQUIREMENT: Shape =
    Shape::Object(&[("key", &Shape::Text), ("operator", &Shape::Text), ("values", &TEXTS)]);

const NODE_SELECTOR_TERM: Shape = Shape::Object(&[
    ("matchExpressions", &Shape::List(&REQUIREMENT)),
    ("matchFields", &Shape::List(&REQUIREMENT)),
]);

const POD_AFFINITY_TERM: Shape = Shape::Object(&[
    ("labelSelector", &LABEL_SELECTOR),
    ("namespaceSelector", &LABEL_SELECTOR),
    ("namespaces", &TEXTS),
    ("topologyKey", &Shape::Text),
    ("matchLabelKeys", &TEXTS),
    ("mismatchLabelKeys", &TEXTS),
]);

const POD_AFFINITY: Shape = Shape::Object(&[
    ("requiredDuringSchedulingIgnoredDuringExecution", &Shape::List(&POD_AFFINITY_TERM)),
    (
        "preferredDuringSchedulingIgnoredDuringExecution",
        &Shape::List(&Shape::Object(&[
            ("weight", &Shape::Integer),
            ("podAffinityTerm", &POD_AFFINITY_TERM),
        ])),
    ),
]);

const NODE_AFFINITY: Shape = Shape::Object(&[
    (
        "requiredDuringSchedulingIgnoredDuringExecution",
        &Shape::Object(&[("nodeSelectorTerms", &Shape::List(&NODE_SELECTOR_TERM))]),
    ),
    (
        "preferredDuringSchedulingIgnoredDuringExecution",
        &Shape::List(&Shape::Object(&[
            ("weight", &Shape::Integer),
            ("preference", &NODE_SELECTOR_TERM),
        ])),
    ),
]);

pub(super) const AFFINITY: Shape = Shape::Object(&[
    ("nodeAffinity", &NODE_AFFINITY),
    ("podAffinity", &POD_AFFINITY),
    ("podAntiAffinity", &POD_AFFINITY),
]);

pub(super) const TOLERATIONS: Shape = Shape::List(&Shape::Object(&[
    ("key", &Shape::Text),
    ("operator", &Shape::Text),
    ("value", &Shape::Text),
    ("effect", &Shape::Text),
    ("tolerationSeconds", &Shape::Integer),
]));

pub(super) const TOPOLOGY_SPREAD_CONSTRAINTS: Shape = Shape::List(&Shape::Object(&[
    ("maxSkew", &Shape::Integer),
    ("topologyKey", &Shape::Text),
    ("whenUnsatisfiable", &Shape::Text),
    ("labelSelector", &LABEL_SELECTOR),
    ("minDomains", &Shape::Integer),
    ("nodeAffinityPolicy", &Shape::Text),
    ("nodeTaintsPolicy", &Shape::Text),
    ("matchLabelKeys", &TEXTS),
]));

pub(super) const LOCAL_REFERENCES: Shape = Shape::List(&LOCAL_REFERENCE);
pub(super) const LOCAL_REFERENCE: Shape = Shape::Object(&[("name", &Shape::Text)]);

pub(super) const DNS_OPTIONS: Shape =
    Shape::List(&Shape::Object(&[("name", &Shape::Text), ("value", &Shape::Text)]));

pub(super) const HOST_ALIASES: Shape =
    Shape::List(&Shape::Object(&[("ip", &Shape::Text), ("hostnames", &TEXTS)]));

pub(super) const READINESS_GATES: Shape =
    Shape::List(&Shape::Object(&[("conditionType", &Shape::Text)]));

pub(super) const SCHEDULING_GATES: Shape = Shape::List(&LOCAL_REFERENCE);

pub(super) const POD_RESOURCE_CLAIMS: Shape = Shape::List(&Shape::Object(&[
    ("name", &Shape::Text),
    ("resourceClaimName", &Shape::Text),
    ("resourceClaimTemplateName", &Shape::Text),
]));

pub(super) const RESOURCES: Shape =
    Shape::Object(&[("limits", &Shape::Quantities), ("requests", &Shape::Quantities)]);

pub(super) const PORTS: Shape = Shape::List(&Shape::Object(&[
    ("name", &Shape::Text),
    ("containerPort", &Shape::Integer),
    ("hostPort", &Shape::Integer),
    ("hostIP", &Shape::Text),
    ("protocol", &Shape::Text),
]));

pub(super) const RESIZE_POLICY: Shape =
    Shape::List(&Shape::Object(&[("resourceName", &Shape::Text), ("restartPolicy", &Shape::Text)]));

pub(super) const EXIT_CODES: Shape =
    Shape::Object(&[("operator", &Shape::Text), ("values", &Shape::List(&Shape::Integer))]);

pub(super) const HTTP_GET: Shape = Shape::Object(&[
    ("path", &Shape::Text),
    ("port", &Shape::IntegerOrText),
    ("host", &Shape::Text),
    ("scheme", &Shape::Text),
    (
        "httpHeaders",
        &Shape::List(&Shape::Object(&[("name", &Shape::Text), ("value", &Shape::Text)])),
    ),
]);

pub(super) const TCP_SOCKET: Shape =
    Shape::Object(&[("host", &Shape::Text), ("port", &Shape::IntegerOrText)]);

pub(super) const GRPC: Shape =
    Shape::Object(&[("port", &Shape::Integer), ("service", &Shape::Text)]);

pub(super) const SLEEP: Shape = Shape::Object(&[("seconds", &Shape::Integer)]);

pub(super) const OWNER_REFERENCES: Shape = Shape::List(&Shape::Object(&[
    ("apiVersion", &Shape::Text),
    ("kind", &Shape::Text),
    ("name", &Shape::Text),
    ("uid", &Shape::Text),
    ("controller", &Shape::Bool),
    ("blockOwnerDeletion", &Shape::Bool),
]));

pub(super) const TYPED_REFERENCE: Shape = Shape::Object(&[
    ("apiGroup", &Shape::Text),
    ("kind", &Shape::Text),
    ("name", &Shape::Text),
    ("namespace", &Shape::Text),
]);

pub(super) const ROLLOUT: Shape = Shape::Object(&[
    ("type", &Shape::Text),
    (
        "rollingUpdate",
        &Shape::Object(&[
            ("maxSurge", &Shape::IntegerOrText),
            ("maxUnavailable", &Shape::IntegerOrText),
            ("partition", &Shape::Integer),
        ]),
    ),
]);

pub(super) const CLAIM_RETENTION: Shape =
    Shape::Object(&[("whenDeleted", &Shape::Text), ("whenScaled", &Shape::Text)]);

pub(super) const ORDINALS: Shape = Shape::Object(&[("start", &Shape::Integer)]);

pub(super) const POD_FAILURE_POLICY: Shape = Shape::Object(&[(
    "rules",
    &Shape::List(&Shape::Object(&[
        ("action", &Shape::Text),
        (
            "onExitCodes",
            &Shape::Object(&[
                ("containerName", &Shape::Text),
                ("operator", &Shape::Text),
                ("values", &Shape::List(&Shape::Integer)),
            ]),
        ),
        (
            "onPodConditions",
            &Shape::List(&Shape::Object(&[("type", &Shape::Text), ("status", &Shape::Text)])),
        ),
    ])),
)]);

pub(super) const SUCCESS_POLICY: Shape = Shape::Object(&[(
    "rules",
    &Shape::List(&Shape::Object(&[
        ("succeededCount", &Shape::Integer),
        ("succeededIndexes", &Shape::Text),
    ])),
)]);

pub(super) const WORKLOAD_REFERENCE: Shape = Shape::Object(&[
    ("name", &Shape::Text),
    ("podGroup", &Shape::Text),
    ("podGroupReplicaKey", &Shape::Text),
]);

/// Volumes that the node mounts and that look all the same to the guest: the form, and whether it can be read-only.
pub(super) const NODE_VOLUMES: &[(&str, Shape)] = &[
    (
        "nfs",
        Shape::Object(&[
            ("server", &Shape::Text),
            ("path", &Shape::Text),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "iscsi",
        Shape::Object(&[
            ("targetPortal", &Shape::Text),
            ("iqn", &Shape::Text),
            ("lun", &Shape::Integer),
            ("iscsiInterface", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("portals", &TEXTS),
            ("chapAuthDiscovery", &Shape::Bool),
            ("chapAuthSession", &Shape::Bool),
            ("secretRef", &LOCAL_REFERENCE),
            ("initiatorName", &Shape::Text),
        ]),
    ),
    (
        "fc",
        Shape::Object(&[
            ("targetWWNs", &TEXTS),
            ("lun", &Shape::Integer),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("wwids", &TEXTS),
        ]),
    ),
    (
        "cephfs",
        Shape::Object(&[
            ("monitors", &TEXTS),
            ("path", &Shape::Text),
            ("user", &Shape::Text),
            ("secretFile", &Shape::Text),
            ("secretRef", &LOCAL_REFERENCE),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "rbd",
        Shape::Object(&[
            ("monitors", &TEXTS),
            ("image", &Shape::Text),
            ("fsType", &Shape::Text),
            ("pool", &Shape::Text),
            ("user", &Shape::Text),
            ("keyring", &Shape::Text),
            ("secretRef", &LOCAL_REFERENCE),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "glusterfs",
        Shape::Object(&[
            ("endpoints", &Shape::Text),
            ("path", &Shape::Text),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "flexVolume",
        Shape::Object(&[
            ("driver", &Shape::Text),
            ("fsType", &Shape::Text),
            ("secretRef", &LOCAL_REFERENCE),
            ("readOnly", &Shape::Bool),
            ("options", &Shape::Texts),
        ]),
    ),
    (
        "awsElasticBlockStore",
        Shape::Object(&[
            ("volumeID", &Shape::Text),
            ("fsType", &Shape::Text),
            ("partition", &Shape::Integer),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "gcePersistentDisk",
        Shape::Object(&[
            ("pdName", &Shape::Text),
            ("fsType", &Shape::Text),
            ("partition", &Shape::Integer),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "azureDisk",
        Shape::Object(&[
            ("diskName", &Shape::Text),
            ("diskURI", &Shape::Text),
            ("cachingMode", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("kind", &Shape::Text),
        ]),
    ),
    (
        "azureFile",
        Shape::Object(&[
            ("secretName", &Shape::Text),
            ("shareName", &Shape::Text),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "vsphereVolume",
        Shape::Object(&[
            ("volumePath", &Shape::Text),
            ("fsType", &Shape::Text),
            ("storagePolicyName", &Shape::Text),
            ("storagePolicyID", &Shape::Text),
        ]),
    ),
    (
        "cinder",
        Shape::Object(&[
            ("volumeID", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("secretRef", &LOCAL_REFERENCE),
        ]),
    ),
    (
        "portworxVolume",
        Shape::Object(&[
            ("volumeID", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "quobyte",
        Shape::Object(&[
            ("registry", &Shape::Text),
            ("volume", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("user", &Shape::Text),
            ("group", &Shape::Text),
            ("tenant", &Shape::Text),
        ]),
    ),
    (
        "scaleIO",
        Shape::Object(&[
            ("gateway", &Shape::Text),
            ("system", &Shape::Text),
            ("secretRef", &LOCAL_REFERENCE),
            ("sslEnabled", &Shape::Bool),
            ("protectionDomain", &Shape::Text),
            ("storagePool", &Shape::Text),
            ("storageMode", &Shape::Text),
            ("volumeName", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
        ]),
    ),
    (
        "storageos",
        Shape::Object(&[
            ("volumeName", &Shape::Text),
            ("volumeNamespace", &Shape::Text),
            ("fsType", &Shape::Text),
            ("readOnly", &Shape::Bool),
            ("secretRef", &LOCAL_REFERENCE),
        ]),
    ),
    ("photonPersistentDisk", Shape::Object(&[("pdID", &Shape::Text), ("fsType", &Shape::Text)])),
    ("flocker", Shape::Object(&[("datasetName", &Shape::Text), ("datasetUUID", &Shape::Text)])),
];
