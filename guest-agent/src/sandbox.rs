//! The pod: its namespaces, its shared memory, its containers.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_policy::{Event, Gate};
use nacre_protocol::agent::{CreateSandboxRequest, Storage};
use nacre_protocol::channel::{CONTAINERS_ROOT, COPY_ROOT};
use rustix::mount::UnmountFlags;

use crate::cgroup;
use crate::container::Container;
use crate::copy_file::CopyRoot;
use crate::error::RpcError;
use crate::images::Images;
use crate::network;
use crate::oci::{PodNamespaces, refuse_if};
use crate::oom::OomWatch;
use crate::pod_volumes::{self, PodVolumes};
use crate::raw;
use crate::reaper::Reaper;
use crate::secrets::Secrets;
use crate::start_report::StartReport;
use crate::storage::{GuestStorage, ImageStore, Volumes};

/// Most containers of a pod, the pause container included.
const MOST_CONTAINERS: usize = 128;
/// Where the pod's namespaces are kept.
const NAMESPACES: &str = "/run/nacre/ns";
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
    /// Judges what the agent itself asks while it carries a request out.
    pub(crate) gate: Arc<Gate>,
    /// Secrets of the pod.
    pub(crate) secrets: Arc<Secrets>,
    /// Where images and writable layers live.
    pub(crate) storage: GuestStorage,
    /// Its images.
    pub(crate) images: Arc<Images>,
    /// Its volumes on disks of the host's.
    pub(crate) volumes: Volumes,
    copies: Mutex<Option<CopyRoot>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    created: bool,
    volumes: PodVolumes,
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
        gate: Arc<Gate>,
        secrets: Arc<Secrets>,
        storage: GuestStorage,
        images: Arc<Images>,
        volumes: Volumes,
    ) -> io::Result<Self> {
        Ok(Self {
            reaper,
            oom: OomWatch::new()?,
            report: StartReport::default(),
            gate,
            secrets,
            storage,
            images,
            volumes,
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
            pod_volumes::check_ephemeral(&format!("storages[{index}]"), storage)?;
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
            state.volumes.mount_ephemeral(storage)?;
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

    /// Forgets a container that was taken down or never came to be, and what was copied for it.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().containers.remove(id);
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = copies.as_mut()
            && let Err(error) = root.forget(id)
        {
            tracing::warn!(container = id, "failed to remove its copied files: {error}");
        }
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

    /// Makes a volume of the pod unless it is there.
    pub(crate) fn add_volume(
        &self,
        field: &str,
        storage: &Storage,
        store: &ImageStore,
    ) -> Result<(), RpcError> {
        self.lock().volumes.add(field, storage, store)
    }

    /// Opens a volume of the pod or a path within one, for a bind mount. `None` if `path` is in none.
    pub(crate) fn open_volume(&self, path: &Path) -> Option<io::Result<OwnedFd>> {
        self.lock().volumes.open(path)
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

    /// Kills and removes every container, then writes volumes back and closes them.
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
        self.volumes.close().await;
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
}
