//! A container of the pod: how it is made in the guest, and the processes in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::agent as api;
use nacre_protocol::channel::{CONTAINERS_ROOT, DRIVER_IMAGE_PULL, PAUSE_IMAGE};
use nacre_protocol::oci;
use nacre_protocol::start_report::Phase;
use oci_spec::runtime::Spec;
use protobuf::MessageField;

use crate::annotations::{self, Kind};
use crate::error::{Doing, TaskError};
use crate::io::{Pumps, Streams};
use crate::last_words::LastWords;
use crate::process::{Process, ProcessId, State};
use crate::sandbox::Sandbox;
use crate::spec::Converted;
use crate::start_report::Attempt;
use crate::volumes::{Following, Prepared};
use crate::{pull_progress, spec, volumes};

/// A container that exists in the guest.
pub(crate) struct Container {
    pub(crate) bundle: String,
    pub(crate) init: Arc<Process>,
    pub(crate) sandbox: Arc<Sandbox>,
    last_words: Option<LastWords>,
    execs: Mutex<HashMap<String, Exec>>,
    /// Keeps its volumes up to date.
    _following: Option<Following>,
}

/// What goes on with a container beside its processes.
#[derive(Default)]
pub(crate) struct Beside {
    /// Keeps its volumes up to date.
    pub(crate) following: Option<Following>,
    /// Where its termination message goes.
    pub(crate) last_words: Option<LastWords>,
}

/// A process that joins the container, and until its start what it is to be.
#[derive(Clone)]
pub(crate) struct Exec {
    pub(crate) process: Arc<Process>,
    pub(crate) spec: Arc<oci::Process>,
}

impl Container {
    pub(crate) fn new(
        bundle: String,
        init: Process,
        sandbox: Arc<Sandbox>,
        beside: Beside,
    ) -> Container {
        let Beside { following, last_words } = beside;
        Container {
            bundle,
            init: Arc::new(init),
            sandbox,
            last_words,
            execs: Mutex::default(),
            _following: following,
        }
    }

    /// Brings the container's last words to the host's file, when it has ended.
    pub(crate) async fn keep_last_words(&self) {
        let Some(file) = self.last_words.clone() else { return };
        let id = &self.init.id.container;
        let kept = match self.sandbox.agent.last_words(id, &file.path).await {
            Ok(words) if words.is_empty() => return,
            Ok(words) => tokio::task::spawn_blocking(move || file.write(&words))
                .await
                .map_err(|panicked| panicked.to_string())
                .and_then(|written| written.map_err(|error| error.to_string())),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            tracing::warn!("the termination message of container {id} stays in the guest: {error}");
        }
    }

    /// Whether the pod lives as long as this container.
    pub(crate) fn carries_the_sandbox(&self) -> bool {
        self.init.id.container == self.sandbox.id
    }

    /// The processes that joined the container.
    pub(crate) fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container's first process for an empty name, else the one that joined under it.
    pub(crate) fn process(&self, exec: &str) -> Option<Arc<Process>> {
        if exec.is_empty() {
            return Some(self.init.clone());
        }
        self.execs().get(exec).map(|exec| exec.process.clone())
    }

    /// All its processes that run, the first one last.
    pub(crate) fn running(&self) -> Vec<Arc<Process>> {
        let mut all: Vec<_> = self.execs().values().map(|exec| exec.process.clone()).collect();
        all.push(self.init.clone());
        all.retain(|process| matches!(process.state(), State::Running | State::Paused));
        all
    }
}

/// What can be said of a container before there is a machine: everything that may be wrong with it.
pub(crate) struct Draft {
    pub(crate) id: String,
    image: String,
    converted: Converted,
    shares_pod_processes: bool,
}

impl Draft {
    /// Checks and converts the specification.
    pub(crate) fn new(id: &str, kind: &Kind, source: &Spec) -> Result<Draft, TaskError> {
        let creating = format!("create container {id}");
        let annotations = spec::annotations(source);
        let image = match kind {
            Kind::Sandbox => PAUSE_IMAGE,
            Kind::Member { .. } | Kind::Single => {
                annotations::image(&annotations).doing(&creating)?
            }
        };
        let shares_pod_processes = spec::shares_pod_processes(source);
        if shares_pod_processes && !matches!(kind, Kind::Member { .. }) {
            return Err(spec::unsupported(
                "a pid namespace of the host by path",
                "only containers of one pod can share it",
            ))
            .doing(&creating);
        }
        let mut converted = spec::convert(source, &root_of(id)).doing(&creating)?;
        if *kind == Kind::Sandbox {
            converted.drop_host_mounts();
        }
        for part in &converted.left_out {
            tracing::info!("container {id}: left out of the guest's specification: {part}");
        }
        Ok(Draft { id: id.to_owned(), image: image.to_owned(), converted, shares_pod_processes })
    }

    /// Whether there is a terminal is decided by the request, which names its streams.
    pub(crate) fn set_terminal(&mut self, terminal: bool) {
        self.converted.spec.Process.mut_or_insert_default().Terminal = terminal;
    }

    /// Makes the container in the guest, which pulls its image; from then on its volumes follow the host's.
    pub(crate) async fn create(
        self,
        sandbox: &Arc<Sandbox>,
        attempt: &Attempt,
    ) -> Result<Beside, TaskError> {
        let Draft { id, image, converted, shares_pod_processes } = self;
        let creating = format!("create container {id} from image {image}");
        let Converted { mut spec, mut host_mounts, devices, .. } = converted;
        let attaching = sandbox.attach(&mut spec, &mut host_mounts, devices).await;
        let attached = attaching.doing(&creating)?;
        let mut prepared = Prepared::default();
        let mut last_words = None;
        if !host_mounts.is_empty() {
            let positions: Vec<_> = host_mounts.iter().map(|mount| mount.position).collect();
            last_words = LastWords::find(&host_mounts);
            let copying = volumes::prepare(&sandbox.agent, &id, host_mounts);
            let copied = attempt.timed(Phase::Copy, copying).await;
            prepared = copied.doing(format!("copy files for container {id} into the guest"))?;
            let places = std::mem::take(&mut prepared.places);
            for (position, place) in positions.into_iter().zip(places) {
                spec.Mounts[position].source = place;
            }
        }
        let image_storage = api::Storage {
            driver: DRIVER_IMAGE_PULL.to_owned(),
            driver_options: vec![image_metadata(&spec.Annotations)],
            source: image,
            fstype: "overlay".to_owned(),
            mount_point: root_of(&id),
            ..Default::default()
        };
        let request = api::CreateContainerRequest {
            container_id: id.clone(),
            exec_id: id.clone(),
            storages: [vec![image_storage], prepared.storages, attached.storages].concat(),
            devices: attached.devices,
            OCI: MessageField::some(spec),
            sandbox_pidns: shares_pod_processes,
            ..Default::default()
        };
        let creation = sandbox.agent.create_container(request);
        let creation = pull_progress::logged(sandbox, &id, creation);
        let created = attempt.timed(Phase::Create, creation).await;
        created.map_err(|error| sandbox.explain(&creating, &error))?;
        let following = Following::start(sandbox, &id, prepared.changing);
        Ok(Beside { following, last_words })
    }
}

impl Exec {
    /// A process that will join a container.
    pub(crate) fn new(
        id: ProcessId,
        stdio: crate::io::Stdio,
        streams: Streams,
        mut spec: oci::Process,
    ) -> Exec {
        spec.Terminal = stdio.terminal;
        let process = Arc::new(Process::new(id, stdio, Pumps::new(streams)));
        Exec { process, spec: Arc::new(spec) }
    }
}

fn root_of(id: &str) -> String {
    format!("{CONTAINERS_ROOT}/{id}/rootfs")
}

/// The option that names the storage driver once more and carries what is known of the image.
fn image_metadata(annotations: &HashMap<String, String>) -> String {
    format!("{DRIVER_IMAGE_PULL}={}", serde_json::json!({ "metadata": annotations }))
}
