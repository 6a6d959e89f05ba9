//! Making a container: image, mounts, limits, first process. What fails leaves nothing behind.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nacre_image_pull::{Image, UserSource, merge_process};
use nacre_protocol::agent::{CreateContainerRequest, Storage};
use nacre_protocol::channel::{
    ANNOTATION_CONTAINER_NAME, ANNOTATION_CONTAINER_TYPE, CONTAINER_TYPE_SANDBOX, CONTAINERS_ROOT,
    DRIVER_IMAGE_PULL, PAUSE_IMAGE,
};
use nacre_protocol::start_report::{Failure, Phase};
use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use tokio::sync::oneshot;

use super::footprint::Footprint;
use super::image_user::{self, UserOfImage};
use super::layer_usage::LayerUsage;
use super::{Container, Execs, sources, stdio_of, volumes};
use crate::cgroup::{Cgroup, Limits};
use crate::device_policy::{DevicePolicy, GuestDevices};
use crate::error::RpcError;
use crate::launcher::{self, Kind};
use crate::oci::{ParsedSpec, missing, refuse_if};
use crate::sandbox::Sandbox;
use crate::secrets::{self, UnsealedEnv};
use crate::storage::{AskedVolumes, ImageStore};

/// The built-in root file system of the pod's own container.
const PAUSE_ROOT: &str = "/pause_bundle/rootfs";
/// The program in it.
const PAUSE_PROGRAM: &str = "/pause";
/// Longest image reference.
const LONGEST_REFERENCE: usize = 512;

/// Makes the container of a request, up to where its program waits to be run. When the request is
/// given up on the way, what was made is undone.
pub(crate) async fn create(
    sandbox: &Arc<Sandbox>,
    request: &CreateContainerRequest,
    given_up: oneshot::Receiver<()>,
) -> Result<(), RpcError> {
    let begun = Instant::now();
    let plan = Plan::parse(request)?;
    let reservation = sandbox.reserve(&plan.id)?;
    let id = plan.id.clone();
    let context = format!("failed to create container {id:?}");
    let store = sandbox.storage.ready().await?;
    let footprint = Footprint::make(&id, store.scratch(&id));
    let footprint = footprint.map_err(|e| RpcError::internal(&context, e))?;
    let built = tokio::select! {
        built = build(sandbox, &store, plan, &footprint, request) => built,
        _ = given_up => Err(RpcError::Internal(format!("{context}: the request was given up"))),
    };
    match built {
        Ok(parts) => {
            reservation.fill(parts.into_container(sandbox, footprint));
            sandbox.report.record(&id, Phase::Create, begun.elapsed());
            Ok(())
        }
        Err(error) => {
            if let Err(left) = footprint.release().await {
                tracing::error!(container = id, "failed to undo a failed creation: {left}");
            }
            Err(error)
        }
    }
}

/// A checked request.
struct Plan {
    id: String,
    is_pod: bool,
    in_kubernetes: bool,
    shares_processes: bool,
    image: String,
    spec: ParsedSpec,
    limits: Limits,
    devices: DevicePolicy,
    /// The owner's name for it; empty outside of Kubernetes.
    name: String,
    volumes: AskedVolumes,
}

impl Plan {
    fn parse(request: &CreateContainerRequest) -> Result<Self, RpcError> {
        let id = request.container_id.clone();
        let same = request.exec_id.is_empty() || request.exec_id == id;
        refuse_if(!same, "exec_id", "must be the container's for its first process")?;
        let why = "the user comes with OCI.Process.User";
        refuse_if(request.string_user.is_some(), "string_user", why)?;
        let why = "mounts shared between containers are not supported";
        refuse_if(!request.shared_mounts.is_empty(), "shared_mounts", why)?;
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let why = "streams go through ReadStdout, ReadStderr and WriteStdin";
        refuse_if(ports != [0, 0, 0], "stdin_port, stdout_port, stderr_port", why)?;
        let rootfs = Path::new(CONTAINERS_ROOT).join(&id).join("rootfs");
        let spec = request.OCI.as_ref().ok_or_else(|| missing("OCI"))?;
        let kind = spec.Annotations.get(ANNOTATION_CONTAINER_TYPE).map(String::as_str);
        let is_pod = kind == Some(CONTAINER_TYPE_SANDBOX);
        let name = spec.Annotations.get(ANNOTATION_CONTAINER_NAME).cloned().unwrap_or_default();
        let absent = nacre_protocol::oci::LinuxResources::new();
        let resources = spec.Linux.as_ref().and_then(|linux| linux.Resources.as_ref());
        let resources = resources.unwrap_or(&absent);
        let guests_own = GuestDevices::find();
        let image = image_of(&request.storages, &rootfs)?;
        let mut parsed = ParsedSpec::parse(spec, &rootfs)?;
        if image == PAUSE_IMAGE {
            // Whatever the host's sandbox image would run.
            parsed.process.set_args(Some(vec![PAUSE_PROGRAM.into()]));
            parsed.process.set_cwd("/".into());
        }
        Ok(Self {
            is_pod,
            in_kubernetes: kind.is_some(),
            shares_processes: request.sandbox_pidns && !is_pod,
            image,
            limits: Limits::parse("OCI.Linux.Resources", resources)?,
            devices: DevicePolicy::new(
                "OCI.Linux.Resources.Devices",
                &resources.Devices,
                &guests_own,
            )?,
            spec: parsed,
            name,
            volumes: volumes::parse(request)?,
            id,
        })
    }
}

/// The one image among the storages; it goes to the container's root.
fn image_of(storages: &[Storage], rootfs: &Path) -> Result<String, RpcError> {
    let mut images =
        storages.iter().enumerate().filter(|(_, storage)| storage.driver == DRIVER_IMAGE_PULL);
    let (index, storage) = images.next().ok_or_else(|| {
        let why = format!("no storage has the driver {DRIVER_IMAGE_PULL}: there is no root");
        RpcError::invalid("storages", why)
    })?;
    let field = format!("storages[{index}]");
    refuse_if(images.next().is_some(), "storages", "more than one image")?;
    let why = format!("must be {}", rootfs.display());
    refuse_if(Path::new(&storage.mount_point) != rootfs, &format!("{field}.mount_point"), &why)?;
    let length = storage.source.len();
    let bad = length == 0 || length > LONGEST_REFERENCE;
    refuse_if(bad, &format!("{field}.source"), "must be an image reference of up to 512 bytes")?;
    Ok(storage.source.clone())
}

/// What a launched container consists of beside its footprint.
struct Parts {
    id: String,
    is_pod: bool,
    shares_processes: bool,
    seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
    devices: DevicePolicy,
    unsealed: UnsealedEnv,
    files: HashMap<PathBuf, PathBuf>,
    image: Option<Image>,
    image_user: Option<UserOfImage>,
    process: crate::process::Process,
    starter: launcher::Control,
}

impl Parts {
    fn into_container(self, sandbox: &Sandbox, footprint: Footprint) -> Container {
        Container {
            id: self.id,
            is_pod: self.is_pod,
            shares_processes: self.shares_processes,
            init: Arc::new(self.process),
            starter: tokio::sync::Mutex::new(Some(self.starter)),
            started: AtomicBool::new(false),
            exit_told: AtomicBool::new(false),
            seccomp: self.seccomp,
            devices: self.devices,
            unsealed: self.unsealed,
            files: self.files,
            layer_usage: LayerUsage::default(),
            image_user: self.image_user,
            _image: self.image,
            reaper: Arc::clone(&sandbox.reaper),
            execs: Mutex::new(Execs::default()),
            exec_number: AtomicU64::new(0),
            footprint,
        }
    }
}

async fn build(
    sandbox: &Arc<Sandbox>,
    store: &ImageStore,
    mut plan: Plan,
    footprint: &Footprint,
    request: &CreateContainerRequest,
) -> Result<Parts, RpcError> {
    let context = format!("failed to create container {:?}", plan.id);
    let fail = |doing: &str, error: &dyn std::fmt::Display| {
        RpcError::internal(&context, format!("failed to {doing}: {error}"))
    };
    // Both wait for the network, so they wait together.
    let (image, mut unsealed) = tokio::try_join!(pull(sandbox, &plan), unseal(sandbox, &plan))?;
    tracing::debug!(container = plan.id, "mounting");
    mount_root(footprint, store, image.as_ref()).map_err(|e| RpcError::internal(&context, e))?;
    let rootfs = footprint.directory().join("rootfs");
    if let Some(image) = &image {
        let user = if plan.in_kubernetes { UserSource::Spec } else { UserSource::Image };
        merge_process(&image.config, &mut plan.spec.process, user, &rootfs)
            .map_err(|e| RpcError::internal(&context, e))?;
    }
    let image_user = user_of_image(sandbox, &mut plan, image.as_ref(), &rootfs)?;
    if let Some(env) = plan.spec.process.env_mut() {
        // The image may have brought some of its own.
        unsealed.add(&sandbox.secrets, env).await?;
        unsealed.apply(env);
    }
    let no_program = plan.spec.process.args().as_ref().is_none_or(Vec::is_empty);
    let why = "names no program, and the image has none either";
    refuse_if(no_program, "OCI.Process.Args", why)?;
    for (index, storage) in request.storages.iter().enumerate() {
        if storage.driver != DRIVER_IMAGE_PULL && !volumes::is_volume(storage) {
            sandbox.add_volume(&format!("storages[{index}]"), storage, store)?;
        }
    }
    let devices = sandbox.volumes.provide(&sandbox.secrets, &plan.name, &plan.volumes).await;
    let devices = devices.map_err(|e| RpcError::internal(&context, e))?;
    for device in &devices {
        plan.devices.allow_block(device.major, device.minor, device.read_only);
    }
    plan.spec.add_devices(volumes::nodes(&devices));
    make_working_directory(&rootfs, plan.spec.process.cwd())
        .map_err(|e| fail("make the working directory", &e))?;
    set_network_sysctls(&plan.spec.network_sysctls)?;
    tracing::debug!(container = plan.id, "limiting");
    let cgroup = footprint.cgroup();
    cgroup.apply(&plan.limits).map_err(|e| RpcError::internal(&context, e))?;
    cgroup.kill_as_one_when_out_of_memory().map_err(|e| fail("set up the control group", &e))?;
    fs::File::open(cgroup.path())
        .and_then(|group| plan.devices.attach(group.as_fd()))
        .map_err(|e| fail("restrict the container's devices", &e))?;
    sandbox
        .oom
        .watch(&plan.id, cgroup.path())
        .map_err(|e| fail("watch the container's memory", &e))?;
    tracing::debug!(container = plan.id, "binding");
    let mounts = std::mem::take(&mut plan.spec.mounts);
    let sources::Prepared { mut mounts, files } =
        sources::prepare(sandbox, footprint, mounts).await?;
    add_credentials(sandbox, &plan, footprint, &mut mounts).await?;
    let namespaces = sandbox.namespaces(plan.shares_processes)?;
    let seccomp = plan.spec.seccomp().cloned();
    let owner = plan.spec.process.user().uid();
    let spec = plan.spec.into_runtime_spec(mounts, &namespaces, &Cgroup::oci_path(&plan.id));
    let bundle = footprint.directory();
    spec.save(bundle.join("config.json")).map_err(|e| fail("write the bundle", &e))?;
    let process = request.OCI.get_or_default().Process.get_or_default();
    let kind = Kind::Init { bundle: bundle.to_string_lossy().into_owned() };
    let stdio = stdio_of(process, bundle.to_owned());
    tracing::debug!(container = plan.id, "launching");
    let launched = launcher::launch(&sandbox.reaper, &plan.id, owner, kind, stdio).await;
    let launched = launched.map_err(|e| RpcError::internal(&context, e))?;
    tracing::debug!(container = plan.id, "launched");
    let (process, starter) = launched.into_parts();
    Ok(Parts {
        id: plan.id,
        is_pod: plan.is_pod,
        shares_processes: plan.shares_processes,
        seccomp,
        devices: plan.devices,
        unsealed,
        files,
        image,
        image_user,
        process,
        starter,
    })
}

/// Answers where the host has left the user to the image, before anything is done for that user.
fn user_of_image(
    sandbox: &Sandbox,
    plan: &mut Plan,
    image: Option<&Image>,
    rootfs: &Path,
) -> Result<Option<UserOfImage>, RpcError> {
    let user = plan.spec.process.user_mut();
    if !image_user::is_wanted(user) {
        return Ok(None);
    }
    let answer = UserOfImage::read(&sandbox.gate, &plan.id, &plan.name, image, rootfs)?;
    answer.put("OCI.Process.User", user)?;
    Ok(Some(answer))
}

/// The policy has judged the sealed text; the process gets what it stands for.
async fn unseal(sandbox: &Sandbox, plan: &Plan) -> Result<UnsealedEnv, RpcError> {
    let begun = Instant::now();
    let env = plan.spec.process.env().as_deref().unwrap_or_default();
    let unsealed = UnsealedEnv::of(&sandbox.secrets, env).await;
    let unsealed = unsealed.map_err(|error| error.or_failed(Failure::Unseal))?;
    if !unsealed.is_empty() {
        sandbox.report.record(&plan.id, Phase::Unseal, begun.elapsed());
    }
    Ok(unsealed)
}

/// Shows the container what the initdata lists and the policy lets it have. They come last: nothing of the
/// request can be mounted within a file.
async fn add_credentials(
    sandbox: &Sandbox,
    plan: &Plan,
    footprint: &Footprint,
    mounts: &mut Vec<Mount>,
) -> Result<(), RpcError> {
    let (directory, user) = (footprint.directory(), plan.spec.process.user());
    for credential in secrets::credentials(&sandbox.secrets, &plan.id, directory, user).await? {
        let path = credential.destination();
        let hides = mounts.iter().any(|mount| mount.destination().starts_with(path));
        let why = format!("{} is where a credential of the initdata goes", path.display());
        refuse_if(hides, "OCI.Mounts", &why)?;
        mounts.push(credential);
    }
    Ok(())
}

/// `None` for the built-in pause program.
async fn pull(sandbox: &Sandbox, plan: &Plan) -> Result<Option<Image>, RpcError> {
    if plan.image == PAUSE_IMAGE {
        return Ok(None);
    }
    let begun = Instant::now();
    tracing::info!(container = plan.id, image = plan.image, "pulling");
    let image = sandbox.images.pull(&plan.id, &plan.image).await;
    let image = image.map_err(|error| error.or_failed(Failure::Pull))?;
    sandbox.report.record(&plan.id, Phase::Pull, begun.elapsed());
    let digest = &image.manifest_digest;
    tracing::info!(container = plan.id, image = plan.image, %digest, "pulled");
    Ok(Some(image))
}

/// Writable at first: the runtime library makes mount points in it, and makes it read-only at last.
fn mount_root(
    footprint: &Footprint,
    store: &ImageStore,
    image: Option<&Image>,
) -> Result<(), String> {
    let doing =
        |e: io::Error| format!("failed to mount the root file system: {}", store.explain(&e));
    let scratch = footprint.scratch();
    fs::create_dir(scratch).map_err(doing)?;
    let rootfs = footprint.mount_point("rootfs").map_err(doing)?;
    match image {
        Some(image) => image.mount(scratch, &rootfs, false).map_err(|e| store.explain(&e)),
        None => mount_pause(scratch, &rootfs).map_err(doing),
    }
}

/// The runtime library makes directories in the root, so the built-in one gets a writable layer.
fn mount_pause(scratch: &Path, rootfs: &PathBuf) -> io::Result<()> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options =
        format!("lowerdir={PAUSE_ROOT},upperdir={},workdir={}", upper.display(), work.display());
    let options = CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount(
        "overlay",
        rootfs,
        "overlay",
        MountFlags::NODEV,
        Some(options.as_c_str()),
    )?;
    Ok(())
}

/// As runc does: a program may run in a directory that the image has not. Symbolic links are followed as
/// within the container; what cannot be made is left to the program's start, which tells better.
fn make_working_directory(rootfs: &Path, cwd: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
    let mut made = PathBuf::new();
    let mut parent = open(Path::new("."))?;
    for part in cwd.components().filter(|part| matches!(part, Component::Normal(_))) {
        made.push(part);
        parent = match open(&made) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                    Ok(()) => open(&made)?,
                    // A symbolic link that leads nowhere.
                    Err(Errno::EXIST) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(directory) => directory,
            Err(_) => return Ok(()),
        };
    }
    Ok(())
}

/// The VM's network is the pod's, so these are set where the agent is.
fn set_network_sysctls(sysctls: &HashMap<String, String>) -> Result<(), RpcError> {
    for (name, value) in sysctls {
        // Names are checked; in them `/` stands for a dot within a component.
        let path: String = name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect();
        fs::write(Path::new("/proc/sys").join(path), value).map_err(|e| {
            RpcError::invalid(format!("OCI.Linux.Sysctl[{name:?}]"), format!("{value:?}: {e}"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(source: &str, mount_point: &str) -> Storage {
        Storage {
            driver: DRIVER_IMAGE_PULL.into(),
            source: source.into(),
            mount_point: mount_point.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_container_has_one_image_at_its_root() {
        let rootfs = Path::new("/run/kata-containers/a/rootfs");
        let good = image("registry/x:1", "/run/kata-containers/a/rootfs");
        assert_eq!(image_of(std::slice::from_ref(&good), rootfs).unwrap(), "registry/x:1");
        for (bad, text) in [
            (vec![], "storages"),
            (vec![good.clone(), good.clone()], "more than one"),
            (vec![image("x", "/run/kata-containers/b/rootfs")], "storages[0].mount_point"),
            (vec![image("", "/run/kata-containers/a/rootfs")], "storages[0].source"),
        ] {
            let error = image_of(&bad, rootfs).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_working_directory_is_made_within_the_root() {
        let place = tempfile::tempdir().unwrap();
        let rootfs = place.path().join("rootfs");
        fs::create_dir_all(rootfs.join("real")).unwrap();
        for (target, link) in [("/real", "link"), ("../../outside", "up"), ("/absent", "dangling")]
        {
            std::os::unix::fs::symlink(target, rootfs.join(link)).unwrap();
        }
        for cwd in ["/a/b", "/link/c", "/up/d", "/dangling/e"] {
            make_working_directory(&rootfs, Path::new(cwd)).unwrap();
        }
        assert!(rootfs.join("a/b").is_dir() && rootfs.join("real/c").is_dir());
        assert!(!rootfs.join("absent").exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing outside");
    }

    #[test]
    fn what_this_guest_cannot_do_is_refused_before_anything_is_made() {
        let mut request = CreateContainerRequest::new();
        request.container_id = "a".into();
        request.shared_mounts.push(Default::default());
        let error = Plan::parse(&request).err().unwrap().to_string();
        assert!(error.contains("shared_mounts"), "{error}");
    }
}
