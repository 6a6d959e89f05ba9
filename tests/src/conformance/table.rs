//! The behaviours, each with what it promises and where it is skipped. The page in `docs/` is made of it.

use crate::products::ContainerdVersion::{self, V1_6, V1_7, V2_1};

/// One thing that a kubelet may expect.
#[derive(Debug)]
pub(super) struct Behaviour {
    /// As it is printed.
    pub(super) name: &'static str,
    /// Its heading in the page.
    pub(super) area: &'static str,
    /// What the kubelet sees.
    pub(super) promise: &'static str,
    pub(super) skips: &'static [Skip],
}

/// Releases on which a behaviour is not looked at.
#[derive(Debug)]
pub(super) struct Skip {
    pub(super) releases: &'static [ContainerdVersion],
    pub(super) reason: &'static str,
}

impl Behaviour {
    /// Why it is skipped on a release.
    pub(super) fn skip(&self, release: ContainerdVersion) -> Option<&'static str> {
        let skip = self.skips.iter().find(|skip| skip.releases.contains(&release))?;
        Some(skip.reason)
    }
}

const SANDBOXES: &str = "Sandboxes";
const CONTAINERS: &str = "Containers";
const SURROUNDINGS: &str = "What a container finds around it";
const SECURITY: &str = "Security";
const STREAMS: &str = "Commands, ports and logs";
const RESOURCES: &str = "Limits and statistics";
const REFUSALS: &str = "Refusals";

const fn pass(area: &'static str, name: &'static str, promise: &'static str) -> Behaviour {
    Behaviour { name, area, promise, skips: &[] }
}

/// In the order of the page.
pub(super) const BEHAVIOURS: &[Behaviour] = &[
    pass(SANDBOXES, "runtime-status", "Version and Status answer; runtime and network are ready"),
    pass(SANDBOXES, "unknown-ids", "the status of what does not exist is NotFound"),
    Behaviour {
        name: "unknown-ids-ended",
        area: SANDBOXES,
        promise: "stopping and removing what does not exist succeeds",
        skips: &[Skip {
            releases: &[V1_6],
            reason: "containerd 1.6 itself answers NotFound, whatever the runtime; the kubelet takes that too",
        }],
    },
    pass(
        SANDBOXES,
        "sandbox-status",
        "a sandbox is ready, with the name, labels and annotations that it was given",
    ),
    pass(SANDBOXES, "runtime-handler", "its status names the handler of its RuntimeClass"),
    pass(SANDBOXES, "sandbox-addresses", "its status has its IPv4 and IPv6 addresses"),
    pass(SANDBOXES, "sandbox-list", "sandboxes are listed by id, label and state"),
    pass(
        SANDBOXES,
        "sandbox-name-reserved",
        "a second sandbox of the same name and attempt is refused",
    ),
    pass(SANDBOXES, "sandbox-stop", "a stop ends its containers, and may be repeated"),
    pass(
        SANDBOXES,
        "sandbox-remove",
        "removing takes its containers along, leaves nothing on the node, and may be repeated",
    ),
    pass(
        SANDBOXES,
        "sandbox-second-attempt",
        "the same pod gets a new sandbox; one that still runs can be removed",
    ),
    pass(
        CONTAINERS,
        "container-states",
        "created, running, exited with code, reason and times in order",
    ),
    pass(CONTAINERS, "container-list", "containers are listed by pod, label and state"),
    pass(CONTAINERS, "container-completes", "exit code 0 is Completed"),
    pass(CONTAINERS, "start-error", "a program that does not exist is named in the error"),
    pass(
        CONTAINERS,
        "stop-signal-of-image",
        "a stop sends the image's STOPSIGNAL and waits for the container",
    ),
    pass(CONTAINERS, "stop-grace-ends", "when the grace period ends, SIGKILL: exit code 137"),
    pass(CONTAINERS, "stop-and-remove-again", "stop and remove may be repeated"),
    pass(CONTAINERS, "remove-running", "a running container can be removed"),
    pass(
        CONTAINERS,
        "restart-in-sandbox",
        "a container gets a second attempt in the same sandbox, beside the first",
    ),
    pass(
        CONTAINERS,
        "init-containers",
        "containers run to their ends one after the other, under one kernel",
    ),
    pass(
        CONTAINERS,
        "sidecar-restarts",
        "one container ends and is started again three times, another runs on",
    ),
    pass(CONTAINERS, "ten-containers", "ten containers run in one pod"),
    pass(
        CONTAINERS,
        "shared-processes",
        "with a shared process namespace containers see each other's processes",
    ),
    pass(
        CONTAINERS,
        "termination-message",
        "what a container writes to its termination log reaches the kubelet's file",
    ),
    pass(SURROUNDINGS, "hostname", "the pod's host name"),
    pass(
        SURROUNDINGS,
        "dns-config",
        "name servers, search domains and options in `/etc/resolv.conf`",
    ),
    pass(SURROUNDINGS, "sysctls", "the pod's sysctls"),
    pass(SURROUNDINGS, "shared-memory", "`/dev/shm` of 64 MiB, shared by the pod's containers"),
    pass(SURROUNDINGS, "environment", "environment, arguments and working directory"),
    pass(SECURITY, "run-as-user-and-group", "runAsUser and runAsGroup"),
    pass(
        SECURITY,
        "run-as-username",
        "the user that an image names, with its groups; commands run as it, too",
    ),
    pass(SECURITY, "supplemental-groups", "supplementalGroups, and with them fsGroup"),
    pass(SECURITY, "capabilities-dropped", "`drop: [ALL]` leaves none"),
    pass(SECURITY, "capabilities-added", "an added capability is there and no other"),
    pass(SECURITY, "no-new-privileges", "allowPrivilegeEscalation: false"),
    pass(SECURITY, "seccomp-runtime-default", "the profile RuntimeDefault filters"),
    pass(SECURITY, "seccomp-unconfined", "the profile Unconfined does not"),
    pass(SECURITY, "seccomp-localhost", "a profile from a file of the node"),
    pass(SECURITY, "readonly-root", "readOnlyRootFilesystem"),
    pass(SECURITY, "masked-paths", "masked paths show nothing"),
    pass(SECURITY, "readonly-paths", "read-only paths cannot be written"),
    pass(STREAMS, "exec-sync", "both outputs and the exit code of a command"),
    pass(
        STREAMS,
        "exec-sync-timeout",
        "a command that takes too long is DeadlineExceeded, and is ended",
    ),
    pass(STREAMS, "exec-sync-absent", "a command that does not exist is named"),
    pass(
        STREAMS,
        "exec-streams",
        "input, both outputs and the exit code through the streaming server",
    ),
    pass(STREAMS, "exec-terminal", "a terminal whose size follows, through the streaming server"),
    pass(STREAMS, "attach", "input to and output of a running container"),
    pass(STREAMS, "port-forward", "a connection to a port of the pod's localhost"),
    pass(STREAMS, "log-format", "time, stream and tag on every line; long lines in parts"),
    pass(STREAMS, "log-rotation", "a log that was renamed is opened anew, and no line is lost"),
    pass(
        STREAMS,
        "log-rotation-of-ended",
        "the log of a container that has ended is not opened again",
    ),
    pass(
        RESOURCES,
        "memory-limit-oom-killed",
        "a container beyond its memory limit is OOMKilled, with exit code 137",
    ),
    pass(RESOURCES, "update-resources", "new limits hold in the running container"),
    pass(RESOURCES, "stats-cpu-memory", "processor time and working set of a container"),
    pass(RESOURCES, "stats-list", "the statistics of all containers of a pod"),
    Behaviour {
        name: "stats-filesystem",
        area: RESOURCES,
        promise: "what a container has written to its root",
        skips: &[Skip {
            releases: &[V1_7, V2_1],
            reason: "it asks only its default snapshotter what containers use, and here that is another; the figure is 0",
        }],
    },
    pass(
        RESOURCES,
        "stats-sandbox",
        "processor time and working set of a pod, and its containers with it",
    ),
    pass(RESOURCES, "stats-network", "bytes in and out of the pod's interface"),
    Behaviour {
        name: "stats-as-runc",
        area: RESOURCES,
        promise: "the same memory, held by a container of runc, raises its working set by the same figure; both count processor time",
        skips: &[Skip {
            releases: &[V1_6],
            reason: "containerd 1.6 has one snapshotter for all pods, so that none of runc can run beside",
        }],
    },
    pass(REFUSALS, "host-network-refused", "hostNetwork is refused by name"),
    pass(REFUSALS, "host-pid-refused", "hostPID is refused by name"),
    pass(REFUSALS, "host-ipc-refused", "hostIPC is refused by name"),
    pass(REFUSALS, "refusals-leave-nothing", "such a pod leaves no machine, process or file"),
    pass(
        REFUSALS,
        "character-device-refused",
        "a character device of the node is refused by field and path",
    ),
    pass(REFUSALS, "privileged-refused", "a privileged pod is refused by field"),
    pass(REFUSALS, "pod-outlives-refusals", "the pod runs on after a refusal"),
];
