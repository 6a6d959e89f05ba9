//! containerd's task API: reads requests, writes answers. What happens in between is [`Pod`]'s.
//!
//! Each request is carried out by a task of its own: when containerd hangs up or loses patience in
//! the middle, the work is still finished or undone as a whole.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use protobuf::well_known_types::empty::Empty;

use crate::error::{Code, TaskError};
use crate::events::timestamp;
use crate::io::Stdio;
use crate::pod::{Pod, find};
use crate::process::{ProcessId, State, TerminalSize};
use crate::stats;

/// Version of the protocol that containerd is told.
const VERSION: &str = "v2";

/// The service that the shim's socket offers.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) pod: Arc<Pod>,
}

impl Service {
    /// Carries out a request even if the one who asked goes away.
    async fn detached<T, F>(&self, work: impl FnOnce(Arc<Pod>) -> F) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
        T: Send + 'static,
    {
        match tokio::spawn(work(self.pod.clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!("{error}");
                Err(error.into())
            }
            Err(failed) => {
                let cause = format!("the shim's own task failed: {failed}");
                Err(TaskError::new(Code::INTERNAL, "carry out a request", cause).into())
            }
        }
    }
}

fn empty<T>(_: T) -> Empty {
    Empty::new()
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let pid = self.detached(|pod| async move { pod.create(request).await }).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let started =
            self.detached(|pod| async move { pod.start(&request.id, &request.exec_id).await });
        Ok(api::StartResponse { pid: started.await?, ..Default::default() })
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let id = ProcessId { container: request.id, exec: request.exec_id };
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().unwrap_or_default().value;
        self.detached(|pod| async move { pod.exec(id, stdio, &spec).await }).await.map(empty)
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let id = ProcessId { container: request.id, exec: request.exec_id };
        let (signal, all) = (request.signal, request.all);
        self.detached(|pod| async move { pod.kill(&id, signal, all).await }).await.map(empty)
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let exit = self.pod.wait(&request.id, &request.exec_id).await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let deleted =
            self.detached(|pod| async move { pod.delete(&request.id, &request.exec_id).await });
        let (exit, pid) = deleted.await?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit)),
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let container = self.pod.container(&request.id)?;
        let process = find(&container, &request.exec_id)?;
        let mut answer = api::StateResponse {
            id: request.id,
            bundle: container.bundle.clone(),
            pid: container.sandbox.pid(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let status = match process.state() {
            State::Created => api::Status::CREATED,
            State::Running => api::Status::RUNNING,
            State::Paused => api::Status::PAUSED,
            State::Stopped(exit) => {
                answer.exit_status = exit.status;
                answer.exited_at = MessageField::some(timestamp(exit));
                api::Status::STOPPED
            }
        };
        answer.status = EnumOrUnknown::new(status);
        Ok(answer)
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let pid = self.pod.container(&request.id)?.sandbox.pid();
        let process = api::ProcessInfo { pid, ..Default::default() };
        Ok(api::PidsResponse { processes: vec![process], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        self.detached(|pod| async move { pod.pause(&request.id).await }).await.map(empty)
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        self.detached(|pod| async move { pod.resume(&request.id).await }).await.map(empty)
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let cause = "a guest's memory is not for the host to keep: checkpoints are not supported";
        let doing = format!("checkpoint container {}", request.id);
        Err(TaskError::new(Code::UNIMPLEMENTED, doing, cause).into())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let size = TerminalSize { rows: request.height, columns: request.width };
        let (id, exec) = (request.id, request.exec_id);
        self.detached(|pod| async move { pod.resize(&id, &exec, size).await }).await.map(empty)
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        if request.stdin {
            self.pod.close_input(&request.id, &request.exec_id)?;
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let resources = request.resources.into_option().unwrap_or_default().value;
        let id = request.id;
        self.detached(|pod| async move { pod.update(&id, &resources).await }).await.map(empty)
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let answer = self.detached(|pod| async move { pod.stats(&request.id).await }).await?;
        let converted = stats::convert(&answer)
            .map_err(|cause| TaskError::new(Code::INTERNAL, "encode statistics", cause))?;
        Ok(api::StatsResponse { stats: MessageField::some(converted), ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = match self.pod.container(&request.id) {
            Ok(container) => container.sandbox.pid(),
            Err(_) => self.pod.current().map_or(0, |sandbox| sandbox.pid()),
        };
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: VERSION.to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        self.detached(|pod| async move {
            pod.shutdown(request.now).await;
            Ok(())
        })
        .await
        .map(empty)
    }
}
