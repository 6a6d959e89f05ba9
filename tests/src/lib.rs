//! The harness of the end-to-end tests: a small world with a real containerd, a registry, a pod
//! network and Nacre in it, and words to tell a story about pods.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use nacre_tests::{Image, World};
//! let world = World::new().await?;
//! let image = world.push(&Image::busybox("app"))?;
//! let pod = world.pod("web").await?;
//! let hello = pod.container("hello", &image).args(["echo", "hello"]).start().await?;
//! assert_eq!(hello.wait_exit().await?.code, 0);
//! assert_eq!(hello.stdout()?, "hello\n");
//! pod.stop().await?;
//! pod.remove().await?;
//! assert_eq!(world.leftovers().await?, Vec::<String>::new());
//! # Ok(())
//! # }
//! ```
//!
//! A world has its own process, mount and network namespaces and keeps all its files in memory. When
//! the test process ends, however it ends, the kernel takes all of it away; two worlds cannot meet.
//! It needs root, and trusts everything that runs in it: nothing here is part of the product.

mod cluster_dns;
mod configuration;
mod cri;
mod ctr;
mod image;
mod namespaces;
mod pod;
mod products;
mod registry;
mod world;

pub use ctr::{Ctr, Output, Terminal};
pub use image::{Compression, Image, Layer};
pub use namespaces::Process;
pub use pod::{Container, ContainerBuilder, Exit, Pod, PodBuilder};
pub use products::{ContainerdVersion, Products};
pub use registry::Registry;
pub use world::{Runtime, World, WorldBuilder};

/// SHA-256 of some bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}
