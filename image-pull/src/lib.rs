//! Pulls a container image inside the guest: from a reference to a verified, unpacked, mounted root
//! file system, and to the process that its configuration describes.
//!
//! Distrusted: the registry, its mirrors and everybody on the way to them, the image's author as far as
//! the guest's own files go, and the host with its cache of blobs, which may help and can do nothing else.
//! What is trusted about an image is its digest, and what the owner's image policy says of it; what a tag
//! means is the registry's word.
//!
//! Order of a pull: the tag is resolved once; the policy is asked by the reference that was asked for and
//! gives the proof that fetching layers demands; keys of encrypted layers come from the key broker; then
//! each layer in one pass, from the node's cache or a registry, verified before it counts.
//!
//! Never: content is used before its digest matched, a layer writes outside its own directory, a size
//! from outside decides how much memory is taken, credentials go to another host than theirs or over an
//! unencrypted connection, or a failed pull leaves anything behind.
//!
//! ```no_run
//! # async fn example() -> Result<(), nacre_image_pull::PullError> {
//! use nacre_image_pull::{PullConfig, Puller};
//! let puller = Puller::new(PullConfig::new("/run/nacre/image"))?;
//! let image = puller.pull("busybox:1.36", |progress| println!("{progress:?}")).await?;
//! image.mount("/run/scratch".as_ref(), "/run/rootfs".as_ref(), false)?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod archive;
mod blob;
mod budget;
mod cache;
mod credentials;
mod decryption;
mod directory_times;
mod error;
mod extract;
mod file_content;
mod inspect;
mod layer;
mod limits;
mod links;
mod manifest;
mod metadata;
mod mount;
mod parents;
mod pax;
mod pieces;
mod platform;
mod process;
mod progress;
mod puller;
mod reference;
mod registries;
mod registry;
mod remote;
mod removal;
mod resolve;
mod resources;
mod settings;
mod signatures;
mod sparse;
mod store;
mod tar_extensions;
mod tar_header;

pub use cache::{BlobCache, BlobSink, BlobStream};
pub use credentials::Credentials;
pub use error::{Presented, PullError};
pub use inspect::{InspectConfig, Inspected, InspectedLayers, Inspector};
pub use limits::Limits;
pub use process::{ImageUser, UserSource, merge_process};
pub use progress::Progress;
pub use puller::{Image, PullConfig, Puller};
pub use registries::{Mirror, Proxy, Registries};
pub use remote::{RemoteDocument, RemoteImage};
pub use resources::{NoResources, Resources};
pub use settings::{IMAGE_POLICIES, IMAGE_TOML, Login, NodeCache, Settings, SettingsError, Source};
pub use store::remove as remove_tree;
