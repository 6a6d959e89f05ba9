//! Volumes as bytes and words: the owner's declarations (`volumes.toml` of the initdata), the header of an
//! encrypted volume with the keys that come with it, and the superblock behind it.
//!
//! The guest's agent reads both, and the owner's tools write and check the declarations by the same code. What is
//! declared comes from the pod's owner; what is on a disk comes from the host, and nothing in it is believed before it
//! is authenticated. There is no I/O here: nobody opens a disk, maps one or asks for a key.

#![forbid(unsafe_code)]

pub mod declared;
pub mod header;
pub mod superblock;
