//! Bind mounts: which paths of the guest a container may see.
//!
//! A source is opened once, without following symbolic links, and bound by that descriptor to a place
//! that only the agent writes. The runtime library binds from there: what the host copies in the meantime cannot
//! change what the container gets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nacre_protocol::channel::{COPY_ROOT, SANDBOX_SHM};
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::footprint::Footprint;
use crate::error::RpcError;
use crate::oci::{BindSource, ParsedMount};
use crate::sandbox::Sandbox;
use crate::secrets::{FilesError, Tree};

/// Mounts that are ready for the runtime library.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) mounts: Vec<Mount>,
    /// Plain copies of the host's files: destination in the container, and the place that it was bound to.
    pub(super) files: HashMap<PathBuf, PathBuf>,
}

/// Replaces the sources of bind mounts by places that only the agent writes. Where the host has copied
/// sealed secrets, that is a copy in which they are unsealed.
pub(super) async fn prepare(
    sandbox: &Sandbox,
    footprint: &Footprint,
    mounts: Vec<ParsedMount>,
) -> Result<Prepared, RpcError> {
    let mut prepared = Prepared::default();
    for (index, parsed) in mounts.into_iter().enumerate() {
        let ParsedMount { field, mut mount, bind } = parsed;
        if let Some(source) = bind {
            let field = format!("{field}.source");
            let mut fd = open(sandbox, &field, &source)?;
            let mut is_plain_copy = source.0.starts_with(COPY_ROOT);
            if let Some(unsealed) = unseal(sandbox, footprint, index, &source, &fd).await? {
                fd = unsealed;
                is_plain_copy = false;
            }
            let place = bind_to_place(footprint, index, &fd).map_err(|e| {
                let doing = format!("failed to bind {} ({field})", source.0.display());
                RpcError::internal(doing, e)
            })?;
            if is_plain_copy && place.is_file() {
                prepared.files.insert(mount.destination().clone(), place.clone());
            }
            mount.set_source(Some(place));
        }
        prepared.mounts.push(mount);
    }
    Ok(prepared)
}

/// The copy that the container gets instead, if the host has copied sealed secrets there.
async fn unseal(
    sandbox: &Sandbox,
    footprint: &Footprint,
    index: usize,
    source: &BindSource,
    fd: &OwnedFd,
) -> Result<Option<OwnedFd>, RpcError> {
    if !source.0.starts_with(COPY_ROOT) {
        return Ok(None);
    }
    let name = source.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |e: FilesError| RpcError::internal(format!("volume {name}"), e);
    let Some(tree) = Tree::find(fd.as_fd()).map_err(failed)? else { return Ok(None) };
    let place = footprint.directory().join(format!("unsealed-{index}"));
    tree.unseal(&sandbox.secrets, &place).await.map_err(failed)?;
    sandbox.with_copies(|copies| {
        copies.holds_sealed(&source.0);
        Ok(())
    })?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, &place, flags, Mode::empty());
    opened.map(Some).map_err(|e| failed(io::Error::from(e).into()))
}

fn open(sandbox: &Sandbox, field: &str, source: &BindSource) -> Result<OwnedFd, RpcError> {
    let path = &source.0;
    let absent = |e: io::Error| {
        RpcError::invalid(field, format!("{} cannot be opened: {e}", path.display()))
    };
    let volume = sandbox.open_volume(path).or_else(|| sandbox.volumes.open_directory(path));
    if let Some(opened) = volume {
        return opened.map_err(absent);
    }
    let copied = sandbox.with_copies(|copies| Ok(copies.open(path)))?;
    match copied {
        Some(opened) => opened.map_err(absent),
        None => {
            let why = format!(
                "{} may not be bound: only files copied beneath {COPY_ROOT}, {SANDBOX_SHM} and \
                 volumes of the pod exist in this guest",
                path.display()
            );
            Err(RpcError::invalid(field, why))
        }
    }
}

fn bind_to_place(footprint: &Footprint, index: usize, source: &OwnedFd) -> io::Result<PathBuf> {
    let stat = rustix::fs::fstat(source)?;
    let name = format!("bind-{index}");
    let place = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => footprint.mount_point(&name)?,
        FileType::RegularFile => footprint.file_mount_point(&name)?,
        _ => return Err(io::Error::other("it is neither a file nor a directory")),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source.as_fd(), "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, &place, flags)?;
    Ok(place)
}
