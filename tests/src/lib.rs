//! The harness of the end-to-end tests: a small world with a real containerd, a registry, a pod
//! network and Nacre in it, and words to tell a story about pods.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use nacre_tests::{Image, World, container};
//! let world = World::new().await?;
//! let image = world.push(&Image::busybox("app"))?;
//! let pod = world.pod("web").with(container("hello", &image).args(["echo", "hello"])).await?;
//! let hello = pod.start("hello").await?;
//! assert_eq!(hello.wait_exit().await?.code, 0);
//! assert_eq!(hello.stdout()?, "hello\n");
//! pod.stop().await?;
//! pod.remove().await?;
//! assert_eq!(world.leftovers().await?, Vec::<String>::new());
//! # Ok(())
//! # }
//! ```
//!
//! Pods run under a policy that `nacre policy generate` makes of their manifest: for that their
//! containers are declared before they start.
//!
//! A world has its own process, mount and network namespaces and control groups, and keeps all its files
//! in memory. When the test process ends, however it ends, the kernel takes all of it away but empty control
//! groups, which the next world removes; two worlds cannot meet, and test programs may run at the same time.
//! It needs root, and trusts everything that runs in it: nothing here is part of the product.

mod broker;
mod cluster_dns;
mod collector;
mod configuration;
pub mod conformance;
mod container;
mod control_groups;
mod cri;
mod ctr;
mod declaration;
mod development;
mod docker;
mod faults;
pub mod hostile;
mod image;
mod kubelet;
mod namespaces;
mod node;
mod node_cache;
mod pod;
mod policy;
mod private_registry;
mod products;
mod registry;
mod volumes;
mod world;
mod yaml;

pub use broker::Broker;
pub use collector::Collector;
pub use container::{Container, Exit};
pub use ctr::{Ctr, Output, Terminal};
pub use declaration::{Declaration, container};
pub use docker::Docker;
pub use faults::{Frozen, Holdings};
pub use image::{Compression, Image, Layer};
pub use namespaces::Process;
pub use node::CONTAINERD_CONFIG;
pub use pod::{Pod, PodBuilder};
pub use private_registry::{GUESTS_LOGIN, GUESTS_PASSWORD, PrivateRegistry};
pub use products::{ContainerdVersion, Products};
pub use registry::Registry;
pub use volumes::{FileTexts, Volume};
pub use world::{PATIENCE, Runtime, World, WorldBuilder};

/// SHA-256 of some bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}
