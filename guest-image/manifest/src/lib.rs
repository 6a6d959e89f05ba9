//! The directory of a guest image: kernel, initrd and `manifest.json`, which says what they are.
//!
//! Whoever launches, measures or builds on an image opens it here. A directory's contents are taken for
//! what they are, files that somebody installed: the manifest is bounded and checked when it is opened, the
//! files when somebody asks for it ([`GuestImage::verify`]), down to each entry of the initrd ([`cpio`]). It
//! never writes, and it decides nothing about trust: that a guest booted these files is known only once it is
//! attested.

#![forbid(unsafe_code)]

pub mod cpio;
mod image;
mod manifest;
mod sha256;
mod verify;

pub use image::{GuestImage, OpenError};
pub use manifest::{
    AddedCertificate, AddedModule, Artifact, DevelopmentShell, Entry, Extension, FORMAT, Initrd,
    Kernel, Manifest, Origin,
};
pub use sha256::{NoHash, Sha256Hex};
pub use verify::{Fault, Problem, VerifiedImage, VerifyError, development_archive};

/// The file, in the initrd's root, that only the development image has.
pub const DEVELOPMENT_MARK: &str = "etc/nacre/development";

/// Path of the program that is the development image's shell.
pub const DEVELOPMENT_SHELL: &str = "bin/busybox";

/// The manifest's name in the directory.
pub const MANIFEST: &str = "manifest.json";

/// What guests of the image measure, for key brokers: beside the manifest, where a release brings it. It is no
/// part of the image; a launch does not read it.
pub const MEASUREMENTS: &str = "measurements.json";
