//! The pod: its namespaces, its shared memory, its containers.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_policy::{Event, Gate};
use nacre_protocol::agent::{CreateSandboxRequest, Storage};
use nacre_protocol::channel::{CONTAINERS_ROOT, COPY_ROOT, DRIVER_EPHEMERAL};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::cgroup;
use crate::container::Container;
use crate::copy_file::CopyRoot;
use crate::error::RpcError;
use crate::images::Images;
use crate::network;
use crate::oci::{PodNamespaces, check_path, refuse_if};
use crate::oom::OomWatch;
use crate::raw;
use crate::reaper::Reaper;
use crate::secrets::Secrets;
use crate::start_report::StartReport;
use crate::storage::GuestStorage;

/// Most containers of a pod, the pause container included.
const MOST_CONTAINERS: usize = 128;
/// Where the pod's namespaces are kept.
const NAMESPACES: &str = "/run/nacre/ns";
/// Directory beneath which ephemeral storages are mounted.
const EPHEMERAL_ROOT: &str = "/run/kata-containers/sandbox";
/// Longest name that Linux takes for a host.
const LONGEST_HOSTNAME: usize = 64;

/// Everything that requests work on.
pub struct Sandbox {
    /// Collects exit statuses.
    pub(crate) reaper: Arc<Reaper>,
    /// Watches for containers without memory.
    pub(crate) oom: OomWatch,
    /// How long starts took.
    pub(crate) report: StartReport,
    /// Secrets of the pod.
    pub(crate) secrets: Arc<Secrets>,
    /// Where images and writable layers live.
    pub(crate) storage: GuestStorage,
    /// Its images.
    pub(crate) images: Arc<Images>,
    copies: Mutex<Option<CopyRoot>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    created: bool,
    ephemeral: Vec<PathBuf>,
    containers: HashMap<String, Slot>,
}

/// A container's name is taken from the first moment of its creation.
#[derive(Debug)]
enum Slot {
    Creating,
    Ready(Arc<Container>),
}

impl Sandbox {
    /// Needs the runtime.
    pub(crate) fn new(
        reaper: Arc<Reaper>,
        secrets: Arc<Secrets>,
        storage: GuestStorage,
        images: Arc<Images>,
    ) -> io::Result<Self> {
        Ok(Self {
            reaper,
            oom: OomWatch::new()?,
            report: StartReport::default(),
            secrets,
            storage,
            images,
            copies: Mutex::new(None),
            state: Mutex::default(),
        })
    }

    /// Makes what the pod's containers share.
    pub(crate) fn create(&self, request: &CreateSandboxRequest) -> Result<(), RpcError> {
        let why = "modules come with the guest image only";
        refuse_if(!request.kernel_modules.is_empty(), "kernel_modules", why)?;
        let why = "hooks are not supported in this guest";
        refuse_if(!request.guest_hook_path.is_empty(), "guest_hook_path", why)?;
        check_hostname(&request.hostname)?;
        for (index, storage) in request.storages.iter().enumerate() {
            check_ephemeral(&format!("storages[{index}]"), storage)?;
        }
        let mut state = self.lock();
        if state.created {
            return Err(RpcError::AlreadyExists("this VM's sandbox was created before".into()));
        }
        let failed = |doing: &'static str| move |e: io::Error| RpcError::internal(doing, e);
        cgroup::prepare().map_err(failed("failed to prepare control groups"))?;
        make_namespaces(request.hostname.clone())
            .map_err(failed("failed to make the pod's namespaces"))?;
        if !request.dns.is_empty() {
            network::write_resolv_conf(&request.dns)?;
        }
        for storage in &request.storages {
            mount_ephemeral(storage, &mut state.ephemeral)?;
        }
        state.created = true;
        Ok(())
    }

    /// Takes the name of a container that is about to be made.
    pub(crate) fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, RpcError> {
        check_container_id(id)?;
        let mut state = self.lock();
        if !state.created {
            let why = "there is no sandbox: call CreateSandbox first";
            return Err(RpcError::Precondition(why.into()));
        }
        if state.containers.contains_key(id) {
            return Err(RpcError::AlreadyExists(format!("container {id:?} exists")));
        }
        if state.containers.len() >= MOST_CONTAINERS {
            let why = format!("the pod has {MOST_CONTAINERS} containers, which is the most");
            return Err(RpcError::Exhausted(why));
        }
        state.containers.insert(id.to_owned(), Slot::Creating);
        Ok(Reservation { sandbox: Arc::clone(self), id: id.to_owned(), kept: false })
    }

    /// Finds a container that is ready.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, RpcError> {
        match self.lock().containers.get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating) => {
                Err(RpcError::Precondition(format!("container {id:?} is still being created")))
            }
            None => Err(RpcError::not_found(format!("container {id:?}"))),
        }
    }

    /// All containers that are ready.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let state = self.lock();
        let ready = state.containers.values().filter_map(|slot| match slot {
            Slot::Ready(container) => Some(Arc::clone(container)),
            Slot::Creating => None,
        });
        ready.collect()
    }

    /// Tells the policy which containers have ended.
    pub(crate) fn tell_exits(&self, gate: &Gate) {
        for container in self.containers() {
            if container.init().has_exited() && !container.exit_told.swap(true, Ordering::Relaxed) {
                gate.observe(&Event::Exited { container_id: container.id().to_owned() });
            }
        }
    }

    /// Forgets a container that was taken down.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().containers.remove(id);
    }

    /// The namespaces for a new container. With `share_processes` it joins the pod's first container.
    pub(crate) fn namespaces(&self, share_processes: bool) -> Result<PodNamespaces, RpcError> {
        let pid = if share_processes {
            let pause = self.containers().into_iter().find(|container| container.is_pod());
            let pause = pause.filter(|container| !container.init().has_exited());
            let pause = pause.ok_or_else(|| {
                let why = "sandbox_pidns: the pod's own container, whose PID namespace is to be \
                           shared, does not run";
                RpcError::Precondition(why.into())
            })?;
            Some(format!("/proc/{}/ns/pid", pause.init().pid()).into())
        } else {
            None
        };
        let namespaces = Path::new(NAMESPACES);
        Ok(PodNamespaces { ipc: namespaces.join("ipc"), uts: namespaces.join("uts"), pid })
    }

    /// Mounts an ephemeral storage unless it is there.
    pub(crate) fn add_ephemeral(&self, field: &str, storage: &Storage) -> Result<(), RpcError> {
        check_ephemeral(field, storage)?;
        mount_ephemeral(storage, &mut self.lock().ephemeral)
    }

    /// True for the mount point of an ephemeral storage.
    pub(crate) fn is_ephemeral(&self, path: &Path) -> bool {
        self.lock().ephemeral.iter().any(|mount_point| mount_point == path)
    }

    /// Works with the directory of copied files.
    pub(crate) fn with_copies<T>(
        &self,
        work: impl FnOnce(&mut CopyRoot) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if copies.is_none() {
            let root = CopyRoot::create(Path::new(COPY_ROOT)).map_err(|e| {
                RpcError::internal("failed to make the directory of copied files", e)
            })?;
            *copies = Some(root);
        }
        match copies.as_mut() {
            Some(root) => work(root),
            None => Err(RpcError::Internal("there is no directory of copied files".into())),
        }
    }

    /// Kills and removes every container.
    pub(crate) async fn destroy(&self) {
        if let Err(error) = cgroup::kill_all() {
            tracing::warn!("failed to kill all containers at once: {error}");
        }
        for container in self.containers() {
            if let Err(error) = container.remove().await {
                tracing::warn!(container = container.id(), "failed to remove: {error}");
            }
            self.forget(container.id());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a container in the making. Dropping it frees the name.
pub(crate) struct Reservation {
    sandbox: Arc<Sandbox>,
    id: String,
    kept: bool,
}

impl Reservation {
    /// Makes the container one that requests can name.
    pub(crate) fn fill(mut self, container: Container) {
        self.kept = true;
        let slot = Slot::Ready(Arc::new(container));
        self.sandbox.lock().containers.insert(self.id.clone(), slot);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.sandbox.forget(&self.id);
        }
    }
}

/// A container's name becomes a directory and a control group.
fn check_container_id(id: &str) -> Result<(), RpcError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let first = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let ours = ["shared", "sandbox"].contains(&id);
    if !first || id.len() > 128 || !id.chars().all(plain) || ours {
        let why = "must be 1 to 128 letters, digits, '_', '-' and '.', begin with a letter or \
                   digit, and not be \"shared\" or \"sandbox\"";
        return Err(RpcError::invalid("container_id", why));
    }
    Ok(())
}

fn check_hostname(name: &str) -> Result<(), RpcError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.len() > LONGEST_HOSTNAME || !name.chars().all(plain) {
        let why = format!("must be at most {LONGEST_HOSTNAME} letters, digits, '-', '.' and '_'");
        return Err(RpcError::invalid("hostname", why));
    }
    Ok(())
}

fn check_ephemeral(field: &str, storage: &Storage) -> Result<(), RpcError> {
    if storage.driver != DRIVER_EPHEMERAL {
        let why = format!("{:?} is not known: use {DRIVER_EPHEMERAL}", storage.driver);
        return Err(RpcError::invalid(format!("{field}.driver"), why));
    }
    let why = "ephemeral storage is a tmpfs";
    refuse_if(storage.fstype != "tmpfs", &format!("{field}.fstype"), why)?;
    let field = |part: &str| format!("{field}.{part}");
    check_path(&field("mount_point"), &storage.mount_point)?;
    let beneath = Path::new(&storage.mount_point).strip_prefix(EPHEMERAL_ROOT);
    let one_below = beneath.is_ok_and(|path| path.components().count() == 1);
    let why = format!("must be a directory directly below {EPHEMERAL_ROOT}");
    refuse_if(!one_below, &field("mount_point"), &why)?;
    ephemeral_options(&field("options"), &storage.options).map(|_| ())
}

/// Flags, and data for the file system.
fn ephemeral_options(
    field: &str,
    options: &[String],
) -> Result<(MountFlags, std::ffi::CString), RpcError> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "noexec" => flags |= MountFlags::NOEXEC,
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" | "nodev" | "rw" => {}
            _ => {
                let known = option.split_once('=').is_some_and(|(name, value)| {
                    matches!(name, "size" | "mode" | "uid" | "gid" | "nr_inodes")
                        && (1..=20).contains(&value.len())
                        && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '%')
                });
                refuse_if(!known, field, &format!("{option:?} is not supported for tmpfs"))?;
                data.push(option.as_str());
            }
        }
    }
    let data = std::ffi::CString::new(data.join(",")).map_err(|e| RpcError::invalid(field, e))?;
    Ok((flags, data))
}

/// `storage` was checked.
fn mount_ephemeral(storage: &Storage, mounted: &mut Vec<PathBuf>) -> Result<(), RpcError> {
    let path = PathBuf::from(&storage.mount_point);
    if mounted.contains(&path) {
        return Ok(());
    }
    let fail = |e: io::Error| RpcError::internal(format!("failed to mount {}", path.display()), e);
    let (flags, data) = ephemeral_options("options", &storage.options)?;
    fs::create_dir_all(&path).map_err(fail)?;
    rustix::mount::mount("tmpfs", &path, "tmpfs", flags, Some(data.as_c_str()))
        .map_err(|e| fail(e.into()))?;
    mounted.push(path);
    Ok(())
}

/// New IPC and UTS namespaces, kept by mounts. A thread enters them; it ends with this function.
fn make_namespaces(hostname: String) -> io::Result<()> {
    fs::create_dir_all(NAMESPACES)?;
    fs::create_dir_all(CONTAINERS_ROOT)?;
    let make = move || {
        raw::unshare_ipc_and_uts()?;
        if !hostname.is_empty() {
            rustix::system::sethostname(hostname.as_bytes())?;
        }
        for kind in ["ipc", "uts"] {
            let path = Path::new(NAMESPACES).join(kind);
            // Left over from an attempt that failed later on.
            let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
            fs::File::create(&path)?;
            rustix::mount::mount_bind(format!("/proc/thread-self/ns/{kind}"), &path)?;
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("namespaces".into()).spawn(make)?;
    thread.join().map_err(|_| io::Error::other("the thread that makes namespaces panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_cannot_leave_their_directories() {
        for good in ["a", "0f3c-9.b_c"] {
            check_container_id(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "shared", "sandbox", "-a", "a b", &"a".repeat(200)] {
            assert!(check_container_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ephemeral_storages_are_tmpfs_in_their_place() {
        let storage = |mount_point: &str, options: &[&str]| Storage {
            driver: "ephemeral".into(),
            fstype: "tmpfs".into(),
            mount_point: mount_point.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        };
        let shm = "/run/kata-containers/sandbox/shm";
        check_ephemeral("s", &storage(shm, &["noexec", "mode=1777", "size=67108864"])).unwrap();
        for (bad, text) in [
            (storage("/etc", &[]), "s.mount_point"),
            (storage("/run/kata-containers/sandbox", &[]), "s.mount_point"),
            (storage("/run/kata-containers/sandbox/../../x", &[]), "s.mount_point"),
            (storage(shm, &["mpol=bind"]), "s.options"),
            (storage(shm, &["size=1,mpol=x"]), "s.options"),
            (Storage { driver: "blk".into(), ..storage(shm, &[]) }, "s.driver"),
            (Storage { fstype: "ext4".into(), ..storage(shm, &[]) }, "s.fstype"),
        ] {
            let error = check_ephemeral("s", &bad).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
