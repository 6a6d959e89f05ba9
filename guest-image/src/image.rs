//! Puts kernel, initrd and manifest together.

use std::fs;
use std::path::Path;

use nacre_image_manifest::{
    Artifact, DevelopmentShell, Entry, FORMAT, Initrd, Kernel, MANIFEST, MEASUREMENTS, Manifest,
    Sha256Hex, development_archive,
};

use crate::certificates::{self, CertificatesError};
use crate::command_line::command_line;
use crate::cpio::{Archive, CpioError, Node};
use crate::elf::{Elf, ElfError};
use crate::kernel::{self, KernelError};
use crate::modules::{self, Module, ModuleError};
use crate::pins::Pins;
use crate::{FileError, Progress, make_directory, read, remove_file, replace_file};

/// What the initrd may take, compressed, in bytes.
pub const MAX_COMPRESSED_INITRD: u64 = 12 << 20;

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
    /// The unpacked busybox-static package, whose program becomes the development image's shell.
    pub development_shell: &'a Path,
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
    TooBig(u64),
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
    let shell = program(&inputs.development_shell.join("bin/busybox"))?;
    let described = DevelopmentShell {
        package: (&pins.development_shell).into(),
        sha256: Sha256Hex::of(&shell),
    };
    let packed = pack(&archive, Some((&shell, described)));
    if packed.described.zstd_size > MAX_COMPRESSED_INITRD {
        return Err(ImageError::TooBig(packed.described.zstd_size));
    }

    let manifest = Manifest {
        format: FORMAT,
        kernel: Kernel {
            release: pins.kernel.release.clone(),
            package: (&pins.kernel.package).into(),
            vmlinux: Artifact::new("vmlinux", &vmlinux),
            bzimage: Artifact::new("vmlinuz", &bzimage),
        },
        initrd: packed.described.clone(),
        command_line: command_line(),
        certificates: (&pins.certificates).into(),
        extensions: Vec::new(),
        files: Entry::list(&archive),
    };
    make_directory(out_dir)?;
    write(out_dir, &manifest, [&vmlinux, &bzimage], &packed)?;
    progress(&sizes(&manifest));
    Ok(manifest)
}

/// The root file system the kernel starts the agent in.
fn initrd(inputs: Inputs) -> Result<Archive, ImageError> {
    let mut archive = Archive::default();
    for directory in ["dev", "etc", "etc/nacre", "etc/ssl", "etc/ssl/certs", "proc", "run", "sys"] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    archive.add("tmp", 0o1777, Node::Directory)?;
    let epoch = format!("{}\n", inputs.pins.epoch);
    archive.add("etc/nacre/epoch", 0o444, Node::File(epoch.into_bytes()))?;
    // The kernel opens it for /init before anything is mounted on /dev.
    archive.add("dev/console", 0o600, Node::CharDevice(5, 1))?;
    archive.add("init", 0o755, Node::File(program(inputs.agent)?))?;

    // The pod's first container: its root file system, with the mount points a runtime expects.
    for directory in ["", "/rootfs", "/rootfs/dev", "/rootfs/etc", "/rootfs/proc", "/rootfs/sys"] {
        archive.add(&format!("pause_bundle{directory}"), 0o755, Node::Directory)?;
    }
    archive.add("pause_bundle/rootfs/pause", 0o755, Node::File(program(inputs.pause)?))?;

    let bundle = certificates::bundle(inputs.certificates)?;
    archive.add(certificates::BUNDLE, 0o644, Node::File(bundle))?;

    let kernel = &inputs.pins.kernel;
    let modules = modules::resolve(inputs.kernel, &kernel.release, &kernel.modules)?;
    for directory in ["lib", "lib/modules", modules::DIRECTORY] {
        archive.add(directory, 0o755, Node::Directory)?;
    }
    let order = modules::order_file(&modules).into_bytes();
    archive.add(modules::ORDER, 0o644, Node::File(order))?;
    for Module { name, content, .. } in modules {
        archive.add(&modules::path_of(&name), 0o644, Node::File(content))?;
    }
    Ok(archive)
}

/// An initrd in its two forms, and what the manifest says of them.
pub(crate) struct Packed {
    initrd: Vec<u8>,
    development: Vec<u8>,
    pub(crate) described: Initrd,
}

/// Writes the archive's bytes. The shell is for the development image.
pub(crate) fn pack(archive: &Archive, shell: Option<(&[u8], DevelopmentShell)>) -> Packed {
    let (shell, development_shell) = shell.unzip();
    let initrd = archive.to_bytes();
    let zstd_size = zstd::bulk::compress(&initrd, ZSTD_LEVEL).map_or(usize::MAX, |z| z.len());
    let development = [initrd.as_slice(), &development_archive(shell)].concat();
    let described = Initrd {
        file: Artifact::new("initrd.img", &initrd),
        zstd_size: zstd_size as u64,
        development: Artifact::new("initrd-development.img", &development),
        development_shell,
    };
    Packed { initrd, development, described }
}

/// Puts the image's files into `directory`, the manifest last. Each is replaced in one step, and only if it
/// differs. What an earlier image measured goes before that image does.
pub(crate) fn write(
    directory: &Path,
    manifest: &Manifest,
    [vmlinux, bzimage]: [&[u8]; 2],
    packed: &Packed,
) -> Result<(), FileError> {
    let described = manifest.to_bytes();
    // Whether there was none or another: measurements that are there are not of this one.
    if fs::read(directory.join(MANIFEST)).ok().is_none_or(|earlier| earlier != described) {
        remove_file(&directory.join(MEASUREMENTS))?;
    }
    let [vmlinux_file, bzimage_file, initrd, development] = manifest.artifacts();
    let files = [
        (vmlinux_file, vmlinux),
        (bzimage_file, bzimage),
        (initrd, &packed.initrd),
        (development, &packed.development),
    ];
    for (file, bytes) in files {
        replace_file(&directory.join(&file.name), bytes)?;
    }
    replace_file(&directory.join(MANIFEST), &described)
}

/// A line about the sizes of what was built.
pub(crate) fn sizes(manifest: &Manifest) -> String {
    let Initrd { file, zstd_size, .. } = &manifest.initrd;
    format!(
        "{} files, initrd {:.1} MiB ({:.1} MiB with zstd -{ZSTD_LEVEL}), kernel {:.1} MiB",
        manifest.files.len(),
        mebibytes(file.size),
        mebibytes(*zstd_size),
        mebibytes(manifest.kernel.vmlinux.size),
    )
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
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf_file;

    #[test]
    fn another_image_takes_the_measurements_of_the_earlier_one_away() {
        let root = tempfile::tempdir().unwrap();
        let measurements = root.path().join(MEASUREMENTS);
        let origin = || nacre_image_manifest::Origin {
            package: "p".into(),
            version: "1".into(),
            sha256: Sha256Hex::of(b"package"),
        };
        let put = |command_line: &str| {
            let archive = Archive::default();
            let packed = pack(&archive, None);
            let manifest = Manifest {
                format: FORMAT,
                kernel: Kernel {
                    release: "6.12".into(),
                    package: origin(),
                    vmlinux: Artifact::new("vmlinux", b"kernel"),
                    bzimage: Artifact::new("vmlinuz", b"compressed"),
                },
                initrd: packed.described.clone(),
                command_line: command_line.into(),
                certificates: origin(),
                extensions: Vec::new(),
                files: Entry::list(&archive),
            };
            write(root.path(), &manifest, [b"kernel", b"compressed"], &packed).unwrap();
        };
        put("quiet");
        fs::write(&measurements, "{}").unwrap();
        put("quiet");
        assert!(measurements.exists(), "they are of this image");
        put("loud");
        assert!(!measurements.exists(), "they were of another image");
        // Nothing says of which image these are.
        fs::write(&measurements, "{}").unwrap();
        fs::remove_file(root.path().join(MANIFEST)).unwrap();
        put("loud");
        assert!(!measurements.exists());
    }

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
