//! An owner's image: one that was verified, with certificate authorities and kernel modules put in.
//!
//! The same base and the same additions give the same bytes wherever, whenever and in whichever order they are
//! given. Programs, kernel and command line stay those of the base.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nacre_image_manifest::cpio::{Archive, CpioError, Node};
use nacre_image_manifest::{
    AddedCertificate, Artifact, Entry, Extension, GuestImage, Kernel, Manifest, OpenError,
    VerifiedImage, VerifyError,
};

use crate::authorities::{self, Authority, AuthorityError};
use crate::certificates::BUNDLE;
use crate::drivers::{self, DriverError, KernelPackage, LOAD, ModuleFile, Wanted};
use crate::image::{pack, sizes, write};
use crate::modules::{ORDER, order_file, path_of};
use crate::{FileError, Progress};

/// What goes into an image.
#[derive(Debug, Default)]
pub struct Additions {
    /// Certificate authorities.
    pub authorities: Vec<Authority>,
    /// Modules to load, as files.
    pub modules: Vec<ModuleFile>,
    /// Modules to load, by their names in the kernel's package.
    pub drivers: Vec<String>,
    /// The kernel's package, for `drivers` and for what modules depend on.
    pub kernel_package: Option<KernelPackage>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificate authorities cannot be put in.
    #[error("the certificate authorities of the base cannot be added to: {0}")]
    Bundle(#[from] AuthorityError),
    /// The modules cannot be put in.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The initrd's layout is wrong.
    #[error("the initrd cannot be written: {0}")]
    Layout(#[from] CpioError),
    /// It would be the base under another name.
    #[error("nothing is to be added: all certificate authorities are in the base already")]
    Nothing,
    /// No image is written over.
    #[error("{0} is there already; name a directory that is not")]
    There(PathBuf),
    /// It was written, and cannot be used.
    #[error("the new image is of no use: {0}")]
    Open(#[from] OpenError),
    /// It was written, and is wrong.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Makes an image from `base` in the new directory `out`, and verifies it. It appears complete or not at all.
///
/// # Errors
/// If something cannot be added, there is nothing to add, or `out` exists.
pub fn extend(
    base: &VerifiedImage,
    additions: &Additions,
    out: &Path,
    progress: Progress,
) -> Result<VerifiedImage, ExtendError> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(ExtendError::There(out.to_owned()));
    }
    let (archive, extension) = put_in(base, additions, progress)?;
    let shell = base.manifest().initrd.development_shell.clone();
    let packed = pack(&archive, base.development_shell().zip(shell));
    let mut manifest = base.manifest().clone();
    let Kernel { vmlinux, bzimage, .. } = &mut manifest.kernel;
    *vmlinux = Artifact::new("vmlinux", base.vmlinux());
    *bzimage = Artifact::new("vmlinuz", base.bzimage());
    manifest.initrd = packed.described.clone();
    manifest.extensions.push(extension);
    manifest.files = Entry::list(&archive);

    let new = New::beside(out)?;
    write(&new.0, &manifest, [base.vmlinux(), base.bzimage()], &packed)?;
    readable(&new.0, &manifest)?;
    GuestImage::open(&new.0)?.verify()?;
    fs::rename(&new.0, out).map_err(FileError::new("create", out))?;
    progress(&sizes(&manifest));
    Ok(GuestImage::open(out)?.verify()?)
}

/// The base's initrd with the additions, and what the manifest says of them.
fn put_in(
    base: &VerifiedImage,
    additions: &Additions,
    progress: Progress,
) -> Result<(Archive, Extension), ExtendError> {
    let mut archive = base.archive().clone();
    let bundle = archive.file(BUNDLE).unwrap_or_default();
    let (bundle, added) = authorities::append(bundle, &additions.authorities)?;
    for authority in &additions.authorities {
        if !added.contains(authority) {
            progress(&format!("{} is in the base already", authority.subject()));
        }
    }
    let wanted = Wanted {
        files: &additions.modules,
        names: &additions.drivers,
        package: additions.kernel_package.as_ref(),
    };
    let resolved = drivers::resolve(&wanted, &archive, base.manifest())?;
    if added.is_empty() && resolved.modules.is_empty() {
        return Err(ExtendError::Nothing);
    }
    if !added.is_empty() {
        put(&mut archive, BUNDLE, bundle)?;
    }
    if !resolved.modules.is_empty() {
        let loaded = resolved.described.iter().filter(|module| module.loaded);
        let loaded = loaded.map(|module| format!("{}\n", module.name)).collect::<String>();
        append(&mut archive, LOAD, &loaded)?;
        append(&mut archive, ORDER, &order_file(&resolved.modules))?;
        for module in resolved.modules {
            put(&mut archive, &path_of(&module.name), module.content)?;
        }
    }
    let certificates = added.iter().map(|authority| AddedCertificate {
        subject: authority.subject().to_owned(),
        sha256: authority.sha256().clone(),
    });
    let extension = Extension {
        base: base.image().manifest_file().sha256.clone(),
        certificates: certificates.collect(),
        modules: resolved.described,
    };
    Ok((archive, extension))
}

fn append(archive: &mut Archive, path: &str, text: &str) -> Result<(), CpioError> {
    let before = archive.file(path).unwrap_or_default();
    let content = [before, text.as_bytes()].concat();
    put(archive, path, content)
}

/// A file with its directories, in place of the one that may be there.
fn put(archive: &mut Archive, path: &str, content: Vec<u8>) -> Result<(), CpioError> {
    for (at, _) in path.match_indices('/') {
        match archive.add(&path[..at], 0o755, Node::Directory) {
            Ok(()) | Err(CpioError::Twice(_)) => {}
            Err(error) => return Err(error),
        }
    }
    archive.remove(path);
    archive.add(path, 0o644, Node::File(content))
}

/// Whatever the builder's umask: hosts read an image as other users than those who build it.
fn readable(directory: &Path, manifest: &Manifest) -> Result<(), FileError> {
    let allow = |path: &Path, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).map_err(FileError::new("make readable", path))
    };
    allow(directory, 0o755)?;
    let names = manifest.artifacts().map(|artifact| artifact.name.as_str());
    for name in names.into_iter().chain([nacre_image_manifest::MANIFEST]) {
        allow(&directory.join(name), 0o644)?;
    }
    Ok(())
}

/// A directory that goes away unless it was renamed.
struct New(PathBuf);

impl New {
    fn beside(out: &Path) -> Result<Self, FileError> {
        let mut name = out.as_os_str().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let path = PathBuf::from(name);
        fs::create_dir(&path).map_err(FileError::new("create the directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for New {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
