//! How host and guest find each other: ports, names and sizes both sides must agree on.

/// Name of the virtio-serial port that carries the agent API where the host has no vhost-vsock.
pub const SERIAL_PORT_NAME: &str = "org.nacre.agent.0";

/// Name of the virtio-serial port behind which the host keeps an emulated AMD secure processor. What
/// travels on it is described in the crate `nacre-emulated`.
pub const PROCESSOR_PORT_NAME: &str = "org.nacre.processor.0";

/// Name of the virtio-serial port behind which the host keeps its node's cache of image blobs, if it has
/// one. What travels on it is [`crate::blob_cache`].
pub const CACHE_PORT_NAME: &str = "org.nacre.cache.0";

/// Name of the virtio-serial port over which a development image gives a shell. What travels on it is
/// [`crate::debug_shell`].
pub const DEBUG_SHELL_PORT_NAME: &str = "org.nacre.shell.0";

/// Name of the socket, in a sandbox's run directory, at which the shim offers that shell.
pub const DEBUG_SHELL_SOCKET: &str = "shell.sock";

/// Serial number of the disk that the guest may use, encrypted, for images and writable layers.
pub const SCRATCH_DISK_SERIAL: &str = "nacre-scratch";

/// What the serial numbers of the places for volumes begin with; the place's number follows, from 0. Each
/// is a disk without contents until the host puts a volume there.
pub const VOLUME_SERIAL_PREFIX: &str = "nacre-volume-";

/// Most places for volumes of a pod.
pub const MOST_VOLUMES: u32 = 8;

/// Serial number of a place for a volume.
#[must_use]
pub fn volume_serial(place: u32) -> String {
    format!("{VOLUME_SERIAL_PREFIX}{place}")
}

/// The place that a serial number is of.
#[must_use]
pub fn volume_place(serial: &str) -> Option<u32> {
    let place = serial.strip_prefix(VOLUME_SERIAL_PREFIX)?;
    let place = (0..MOST_VOLUMES).find(|known| known.to_string() == place)?;
    Some(place)
}

/// Directory of the guest in which file systems of volumes are mounted, by their serial numbers.
pub const VOLUMES_ROOT: &str = "/run/kata-containers/sandbox/volumes";

/// Storage driver, and type of device, of a volume: a disk named by its serial number.
pub const DRIVER_BLOCK: &str = "blk";

/// vsock port of the agent API.
pub const VSOCK_PORT: u32 = 1024;

/// Largest payload of one `ReadStdout`, `ReadStderr`, `WriteStdin` or of one read or write of a port, in bytes. It bounds what either
/// side buffers for a stream.
pub const STREAM_CHUNK: usize = 64 * 1024;

/// Most connections to ports of the pod that are carried at a time.
pub const MOST_PORT_CONNECTIONS: usize = 64;

/// Largest piece of a file in one `CopyFile`, in bytes: that of a `ConfigMap` or Secret as a whole, since
/// the policy compares contents only of files that come in one piece.
pub const COPY_CHUNK: usize = 1024 * 1024;

/// Directory in the guest beneath which `CopyFile` may write.
pub const COPY_ROOT: &str = "/run/kata-containers/shared/containers";

/// Directory in the guest that holds one directory a container (its root file system among others).
pub const CONTAINERS_ROOT: &str = "/run/kata-containers";

/// Where the pod's shared memory is mounted in the guest; containers' `/dev/shm` are bound to it.
pub const SANDBOX_SHM: &str = "/run/kata-containers/sandbox/shm";

/// Storage driver that makes the agent pull an image by itself.
pub const DRIVER_IMAGE_PULL: &str = "image_guest_pull";

/// Storage driver of a tmpfs that lives as long as the pod.
pub const DRIVER_EPHEMERAL: &str = "ephemeral";

/// Storage driver of a directory in the guest's store for images and writable layers that lives as long as
/// the pod.
pub const DRIVER_LOCAL: &str = "local";

/// Directory in the guest beneath which the pod's [`DRIVER_EPHEMERAL`] volumes are, each under its name.
pub const EPHEMERAL_VOLUMES: &str = "/run/kata-containers/sandbox/ephemeral";

/// Directory in the guest beneath which the pod's [`DRIVER_LOCAL`] volumes are, each under its name.
pub const LOCAL_VOLUMES: &str = "/run/kata-containers/sandbox/local";

/// Source that names the guest's built-in pause program in a [`DRIVER_IMAGE_PULL`] storage.
pub const PAUSE_IMAGE: &str = "pause";

/// Annotation with the kind of a container: [`CONTAINER_TYPE_SANDBOX`] or [`CONTAINER_TYPE_CONTAINER`].
pub const ANNOTATION_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The pod's own (pause) container.
pub const CONTAINER_TYPE_SANDBOX: &str = "sandbox";
/// An application container of a pod.
pub const CONTAINER_TYPE_CONTAINER: &str = "container";
/// Annotation with the identifier of the sandbox that a container belongs to.
pub const ANNOTATION_SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Annotation with a container's name in its pod.
pub const ANNOTATION_CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// Annotation with the reference of a container's image.
pub const ANNOTATION_IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// `log_type` of the `GetDiagnosticData` request that hands out requests that a development image has
/// recorded: whole lines of JSON, at most 1 MiB an answer, each line once; nothing when there are no more.
pub const RECORDED_REQUESTS: &str = "nacre.requests";

/// Kernel parameters that the agent reads. They are part of the measured command line.
pub mod kernel_parameter {
    /// `tracing` filter of the agent, such as `info` or `nacre_agent=debug`.
    pub const LOG: &str = "nacre.log";
    /// Comma-separated `host[:port]` of registries that may be asked over plain HTTP.
    pub const DANGER_PLAIN_HTTP: &str = "nacre.danger_plain_http";
    /// The trusted execution environment that the VM is launched in: `snp`, `tdx` or `emulated-snp`. The
    /// agent ends the boot if it finds another one, or none.
    pub const TEE: &str = "nacre.tee";
    /// `1`: where initdata brings no policy, the agent takes one from a `SetPolicy` request that comes
    /// before any other, and keeps it. Whoever runs the host then chooses the policy.
    pub const DANGER_SET_POLICY: &str = "nacre.danger_set_policy";
    /// `1`: a development image keeps every request, whole, for `GetDiagnosticData` of
    /// [`super::RECORDED_REQUESTS`].
    pub const DANGER_RECORD: &str = "nacre.danger_record";
}
