//! Puts kernel, initrd and manifest together.

use std::path::Path;

use nacre_image_manifest::{
    Artifact, DEVELOPMENT_MARK, Entry, FORMAT, Initrd, Kernel, MANIFEST, Manifest, Sha256Hex,
};

use crate::certificates::{self, CertificatesError};
use crate::command_line::command_line;
use crate::cpio::{Archive, CpioError, Node};
use crate::elf::{Elf, ElfError};
use crate::kernel::{self, KernelError};
use crate::modules::{self, Module, ModuleError};
use crate::pins::Pins;
use crate::{FileError, Progress, make_directory, read, replace_file};

/// What the initrd may take, compressed, in bytes.
pub const MAX_COMPRESSED_INITRD: usize = 12 << 20;

/// The level of the compressed size that is stated; the booted file is not compressed.
const ZSTD_LEVEL: i32 = 9;

/// What an image is built from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Versions and hashes of the packages, and the names of the modules.
    pub pins: &'a Pins,
    /// The unpacked kernel package.
    pub kernel: &'a Path,
    /// The unpacked ca-certificates package.
    pub certificates: &'a Path,
    /// The agent: a static program, becomes `/init`.
    pub agent: &'a Path,
    /// The pause program: static, the whole root file system of a pod's first container.
    pub pause: &'a Path,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel could not be taken out of its package.
    #[error("the kernel package is of no use: {0}")]
    Kernel(#[from] KernelError),
    /// Its modules could not be gathered.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The certificate authorities could not be gathered.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The initrd's layout is wrong.
    #[error("the initrd cannot be written: {0}")]
    Layout(#[from] CpioError),
    /// A program of the guest is not one.
    #[error("{path} cannot be a program of the guest: {source}")]
    Program {
        /// The file.
        path: String,
        /// What is wrong.
        source: ElfError,
    },
    /// A program of the guest needs libraries, and the guest has none.
    #[error(
        "{0} is dynamically linked, but the guest has no libraries: build it with \
         target-feature=+crt-static (the workspace's .cargo/config.toml sets it)"
    )]
    Dynamic(String),
    /// The limit is passed.
    #[error(
        "the initrd takes {0} bytes compressed, more than {MAX_COMPRESSED_INITRD}: is the agent \
         stripped and built with --release?"
    )]
    TooBig(usize),
}

/// Builds `vmlinux`, `vmlinuz`, `initrd.img`, `initrd-development.img` and `manifest.json` in `out_dir`: the same
/// bytes for the same inputs. Each file is replaced in one step, and only if it differs.
///
/// The initrd is not compressed: the guest would have to decompress it at every start. Under software
/// emulation that is a tenth of a CPU-second for 13 MB (median of 14 boots: 2.9 s bare, 3.0 s with zstd).
pub fn build(inputs: Inputs, out_dir: &Path, progress: Progress) -> Result<Manifest, ImageError> {
    let pins = inputs.pins;
    progress("kernel: taking the ELF file out of the bzImage");
    let bzimage =
        read(&inputs.kernel.join("boot").join(format!("vmlinuz-{}", pins.kernel.release)))?;
    let vmlinux = kernel::vmlinux(&bzimage)?;

    progress("initrd: gathering programs, modules and certificates");
    let archive = initrd(inputs)?;
    let initrd = archive.to_bytes();
    let zstd_size = zstd::bulk::compress(&initrd, ZSTD_LEVEL).map_or(usize::MAX, |z| z.len());
    if zstd_size > MAX_COMPRESSED_INITRD {
        return Err(ImageError::TooBig(zstd_size));
    }

    // The kernel unpacks archives that follow each other into one root.
    let development = [initrd.as_slice(), &development_mark()?.to_bytes()].concat();

    let manifest = Manifest {
        format: FORMAT,
        kernel: Kernel {
            release: pins.kernel.release.clone(),
            package: (&pins.kernel.package).into(),
            vmlinux: Artifact::new("vmlinux", &vmlinux),
            bzimage: Artifact::new("vmlinuz", &bzimage),
        },
        initrd: Initrd {
            file: Artifact::new("initrd.img", &initrd),
            zstd_size: zstd_size as u64,
            development: Artifact::new("initrd-development.img", &development),
        },
        command_line: command_line(),
        certificates: (&pins.certificates).into(),
        files: list(&archive),
    };
    make_directory(out_dir)?;
    replace_file(&out_dir.join("vmlinux"), &vmlinux)?;
    replace_file(&out_dir.join("vmlinuz"), &bzimage)?;
    replace_file(&out_dir.join("initrd.img"), &initrd)?;
    replace_file(&out_dir.join("initrd-development.img"), &development)?;
    let json = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data") + "\n";
    replace_file(&out_dir.join(MANIFEST), json.as_bytes())?;
    progress(&format!(
        "{} files, initrd {:.1} MiB ({:.1} MiB with zstd -{ZSTD_LEVEL}), kernel {:.1} MiB",
        manifest.files.len(),
        mebibytes(initrd.len()),
        mebibytes(zstd_size),
        mebibytes(vmlinux.len()),
    ));
    Ok(manifest)
}

/// The root file system the kernel starts the agent in.
fn initrd(inputs: Inputs) -> Result<Archive, ImageError> {
    let mut archive = Archive::default();
    for directory in ["dev", "etc", "etc/ssl", "etc/ssl/certs", "proc", "run", "sys"] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    archive.add("tmp", 0o1777, Node::Directory)?;
    // The kernel opens it for /init before anything is mounted on /dev.
    archive.add("dev/console", 0o600, Node::CharDevice(5, 1))?;
    archive.add("init", 0o755, Node::File(program(inputs.agent)?))?;

    // The pod's first container: its root file system, with the mount points a runtime expects.
    for directory in ["", "/rootfs", "/rootfs/dev", "/rootfs/etc", "/rootfs/proc", "/rootfs/sys"] {
        archive.add(&format!("pause_bundle{directory}"), 0o755, Node::Directory)?;
    }
    archive.add("pause_bundle/rootfs/pause", 0o755, Node::File(program(inputs.pause)?))?;

    let bundle = certificates::bundle(inputs.certificates)?;
    archive.add("etc/ssl/certs/ca-certificates.crt", 0o644, Node::File(bundle))?;

    let kernel = &inputs.pins.kernel;
    let modules = modules::resolve(inputs.kernel, &kernel.release, &kernel.modules)?;
    for directory in ["lib", "lib/modules", "lib/modules/nacre"] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    let order = modules::order_file(&modules).into_bytes();
    archive.add("lib/modules/nacre/modules.order", 0o644, Node::File(order))?;
    for Module { name, content, .. } in modules {
        archive.add(&format!("lib/modules/nacre/{name}.ko"), 0o644, Node::File(content))?;
    }
    Ok(archive)
}

/// What makes a development image of the ordinary one.
fn development_mark() -> Result<Archive, CpioError> {
    let mut archive = Archive::default();
    for directory in ["etc", "etc/nacre"] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    archive.add(DEVELOPMENT_MARK, 0o444, Node::File(Vec::new()))?;
    Ok(archive)
}

/// One entry of the manifest for each of the archive, in its order.
fn list(archive: &Archive) -> Vec<Entry> {
    let entry = |(path, mode, node): (&str, u32, &Node)| {
        let (kind, bytes) = match node {
            Node::Directory => ("directory".to_owned(), None),
            Node::File(bytes) => ("file".to_owned(), Some(bytes)),
            Node::CharDevice(major, minor) => (format!("character device {major}:{minor}"), None),
        };
        Entry {
            path: format!("/{path}"),
            kind,
            mode: format!("{mode:04o}"),
            size: bytes.map(|bytes| bytes.len() as u64),
            sha256: bytes.map(|bytes| Sha256Hex::of(bytes)),
        }
    };
    archive.entries().map(entry).collect()
}

/// A program's bytes, checked to run in a guest that has no loader and no libraries.
fn program(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = read(path)?;
    let named = || path.display().to_string();
    match Elf::parse(&bytes).and_then(|elf| elf.needs_loader()) {
        Ok(false) => Ok(bytes),
        Ok(true) => Err(ImageError::Dynamic(named())),
        Err(source) => Err(ImageError::Program { path: named(), source }),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf_file;
    use std::fs;

    #[test]
    fn a_program_must_be_a_static_elf_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("agent");
        let why = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            program(&path).map(|_| ()).unwrap_err().to_string()
        };
        assert!(why(b"#!/bin/sh\n").contains("ELF"));
        assert!(why(&elf_file(3, b"/lib64/ld.so\0", b"")).contains("crt-static"));
        fs::write(&path, elf_file(1, b"", b"")).unwrap();
        program(&path).unwrap();
    }
}
