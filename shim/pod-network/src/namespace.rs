//! Network namespaces: open one, make one, run work inside one.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Loopback, NetworkError, loopback, sys};

/// A network namespace, kept alive by its descriptor.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
    path: Option<PathBuf>,
}

impl Namespace {
    /// Opens the namespace that CNI prepared. The one that this process or process 1 uses is refused:
    /// redirecting its interfaces would cut the host off.
    pub fn open(path: &Path) -> Result<Namespace, NetworkError> {
        let refused = |cause| NetworkError::Namespace { path: path.to_owned(), cause };
        let file = File::open(path).map_err(refused)?;
        let this = file.metadata().map_err(refused)?;
        for own in ["/proc/self/ns/net", "/proc/1/ns/net"] {
            // Where process 1 belongs to somebody else, this process cannot be in its namespace's charge.
            let Ok(own) = std::fs::metadata(own) else { continue };
            if (own.dev(), own.ino()) == (this.dev(), this.ino()) {
                return Err(NetworkError::HostNamespace { path: path.to_owned() });
            }
        }
        Ok(Namespace { descriptor: file.into(), path: Some(path.to_owned()) })
    }

    /// Makes an empty namespace for a pod without a network.
    pub fn isolated() -> Result<Namespace, NetworkError> {
        let made = std::thread::spawn(|| {
            sys::unshare_network()?;
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        });
        let descriptor = made
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            .map_err(|cause| NetworkError::Namespace { path: "(new)".into(), cause })?;
        Ok(Namespace { descriptor, path: None })
    }

    /// The namespace's own path, if it has one. It outlives this process.
    #[must_use]
    pub fn own_path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// A path of the namespace: its own, or one by way of this process.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| {
            format!("/proc/{}/fd/{}", std::process::id(), self.descriptor.as_raw_fd()).into()
        })
    }

    pub(crate) async fn catch_loopback(&self) -> Result<Loopback, NetworkError> {
        let own = self.descriptor.try_clone();
        let own = own.map_err(|cause| NetworkError::Namespace { path: self.path(), cause })?;
        self.run(move || async move { Ok(loopback::catch(own.as_fd())?) }).await
    }

    /// Runs `work` on a thread of its own inside the namespace, with a runtime of its own, so that
    /// no other task of this process ever finds itself in the wrong network.
    pub async fn run<W, F, T>(&self, work: W) -> Result<T, NetworkError>
    where
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<T, NetworkError>>,
        T: Send + 'static,
    {
        let path = self.path();
        let failed = move |cause| NetworkError::Namespace { path, cause };
        let descriptor = match self.descriptor.try_clone() {
            Ok(descriptor) => descriptor,
            Err(cause) => return Err(failed(cause)),
        };
        let (answer, result) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
            let entered =
                move_into_link_name_space(descriptor.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(io::Error::from)
                    .and_then(|()| {
                        tokio::runtime::Builder::new_current_thread().enable_all().build()
                    });
            let _ = answer.send(entered.map(|runtime| runtime.block_on(work())));
        });
        if let Err(cause) = thread {
            return Err(failed(cause));
        }
        match result.await {
            Ok(Ok(done)) => done,
            Ok(Err(cause)) => Err(failed(cause)),
            Err(_) => Err(failed(io::Error::other("the thread inside it panicked"))),
        }
    }
}
