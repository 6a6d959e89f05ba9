//! The client of containerd's CRI service, as the kubelet is one.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longest that any call may take; a hanging product must not hang the tests.
const LONGEST: Duration = Duration::from_secs(180);

/// Both services, on one connection that is made again if it breaks.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    channel: Channel,
}

impl Cri {
    pub(crate) fn new(socket: PathBuf) -> Cri {
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(connect);
        Cri { channel }
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }
}

/// Waits for an answer, but not for ever; the error says what was wanted and what containerd said.
pub(crate) async fn call<T>(
    what: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(LONGEST, answer)
        .await
        .with_context(|| format!("{what}: no answer within {} s", LONGEST.as_secs()))?;
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => {
            anyhow::bail!("{what}: {:?}: {}", status.code(), status.message());
        }
    }
}
