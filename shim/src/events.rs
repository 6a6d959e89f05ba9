//! Tells containerd what happens to processes.

use containerd_shim::event::Event;
use containerd_shim::publisher::RemotePublisher;
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::MessageDyn;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;

use crate::io::Stdio;
use crate::process::{Exit, ProcessId};

/// Deadline of one attempt to reach containerd, in nanoseconds. A containerd that is down is tried
/// again for some seconds; after a restart it asks for the state by itself.
const ATTEMPT_NANOS: i64 = 10_000_000_000;

/// Publishes events of one containerd namespace.
pub(crate) struct Events {
    publisher: RemotePublisher,
    namespace: String,
}

impl Events {
    pub(crate) fn new(publisher: RemotePublisher, namespace: &str) -> Events {
        Events { publisher, namespace: namespace.to_owned() }
    }

    pub(crate) async fn created(&self, id: &str, bundle: &str, stdio: &Stdio, pid: u32) {
        self.publish(task::TaskCreate {
            container_id: id.to_owned(),
            bundle: bundle.to_owned(),
            io: MessageField::some(task::TaskIO {
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn started(&self, id: &ProcessId, pid: u32) {
        let container_id = id.container.clone();
        if id.exec.is_empty() {
            self.publish(task::TaskStart { container_id, pid, ..Default::default() }).await;
        } else {
            let exec_id = id.exec.clone();
            self.publish(task::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            })
            .await;
        }
    }

    pub(crate) async fn exec_added(&self, id: &ProcessId) {
        let (container_id, exec_id) = (id.container.clone(), id.exec.clone());
        self.publish(task::TaskExecAdded { container_id, exec_id, ..Default::default() }).await;
    }

    pub(crate) async fn exited(&self, id: &ProcessId, exit: Exit, pid: u32) {
        self.publish(task::TaskExit {
            container_id: id.container.clone(),
            id: id.agent_exec_id().to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
        .await;
    }

    /// Only containers are announced; a deleted exec is not.
    pub(crate) async fn deleted(&self, id: &ProcessId, exit: Exit, pid: u32) {
        self.publish(task::TaskDelete {
            container_id: id.container.clone(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn out_of_memory(&self, id: &str) {
        self.publish(task::TaskOOM { container_id: id.to_owned(), ..Default::default() }).await;
    }

    pub(crate) async fn paused(&self, id: &str) {
        self.publish(task::TaskPaused { container_id: id.to_owned(), ..Default::default() }).await;
    }

    pub(crate) async fn resumed(&self, id: &str) {
        self.publish(task::TaskResumed { container_id: id.to_owned(), ..Default::default() }).await;
    }

    async fn publish<E: Event + MessageDyn>(&self, event: E) {
        let topic = event.topic();
        let context = ttrpc::context::with_timeout(ATTEMPT_NANOS);
        let published =
            self.publisher.publish(context, &topic, &self.namespace, Box::new(event)).await;
        if let Err(error) = published {
            tracing::warn!("event {topic} did not reach containerd: {error}");
        }
    }
}

/// The time of an exit as protobuf has it.
pub(crate) fn timestamp(exit: Exit) -> Timestamp {
    let since = exit.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Default::default()
    }
}
