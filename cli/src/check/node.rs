//! What a node's configuration asks of its host.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nacre_configuration::sizing::HOST_MIB;
use nacre_configuration::{Config, ConfigError, DEFAULT_PATH};
use nacre_hypervisor::probe::{
    ContainerdPaths, FirmwarePaths, ImagePaths, ImageSummary, Needs, Question, Tee,
};
use nacre_image_manifest::{Artifact, MANIFEST, Manifest};

/// A node by its configuration.
pub(super) struct Node {
    pub(super) question: Question,
    pub(super) tee: Tee,
}

/// Where services find programs beside this process's `PATH`: systemd's default.
const SERVICE_DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Reads the configuration: the named file, or the default one if it is there.
pub(super) fn read(named: Option<&Path>, containerd: &Path) -> Result<Node, ConfigError> {
    let (config, path) = match (named, Config::read(named.unwrap_or(Path::new(DEFAULT_PATH)))) {
        (named, Ok(config)) => (config, Some(named.unwrap_or(Path::new(DEFAULT_PATH)).to_owned())),
        // As the shim does.
        (None, Err(ConfigError::Read { cause, .. }))
            if cause.kind() == std::io::ErrorKind::NotFound =>
        {
            (Config::default(), None)
        }
        (_, Err(error)) => return Err(error),
    };
    let path_of_programs = std::env::var_os("PATH").unwrap_or_default();
    Ok(Node {
        tee: tee(&config),
        question: question(config, path, named, containerd, &path_of_programs),
    })
}

fn tee(config: &Config) -> Tee {
    match config.vm.tee {
        nacre_configuration::Tee::None => Tee::None,
        nacre_configuration::Tee::EmulatedSnp => Tee::EmulatedSnp,
        nacre_configuration::Tee::Snp => Tee::Snp,
        nacre_configuration::Tee::Tdx => Tee::Tdx,
    }
}

fn question(
    config: Config,
    path: Option<PathBuf>,
    named: Option<&Path>,
    containerd: &Path,
    path_of_programs: &OsStr,
) -> Question {
    let mut program_dirs: Vec<PathBuf> =
        std::env::split_paths(path_of_programs).filter(|dir| dir.is_absolute()).collect();
    program_dirs.extend(SERVICE_DIRS.map(PathBuf::from));
    let firmware = FirmwarePaths {
        plain: config.qemu_paths().firmware_places(),
        snp: config.snp.firmware,
        tdx: config.tdx.firmware,
    };
    let read = if config.vm.danger_development_image { development_image } else { image };
    Question {
        qemu: config.vm.qemu,
        user: config.vm.user,
        accelerator: config.vm.accelerator.into(),
        firmware,
        image: ImagePaths { directory: config.vm.image, manifest: MANIFEST, read },
        quote_generation: config.tdx.quote_generation,
        needs: Needs {
            memory_mib: config.vm.memory_mib,
            host_mib: HOST_MIB,
            scratch_disk_mib: config.storage.scratch_disk_mib,
        },
        storage: config.storage.directory,
        containerd: ContainerdPaths {
            config: containerd.to_owned(),
            program_dirs,
            default_shim_config: DEFAULT_PATH.into(),
            read: |bytes| {
                let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
                let config = Config::parse(text, "it").map_err(|error| error.to_string())?;
                Ok(tee(&config))
            },
            shim_config: named.map(Path::to_owned),
        },
        configuration: path,
    }
}

fn image(manifest: &[u8]) -> Result<ImageSummary, String> {
    summary(manifest, |manifest| &manifest.initrd.file)
}

fn development_image(manifest: &[u8]) -> Result<ImageSummary, String> {
    summary(manifest, |manifest| &manifest.initrd.development)
}

fn summary(bytes: &[u8], initrd: fn(&Manifest) -> &Artifact) -> Result<ImageSummary, String> {
    let manifest = Manifest::parse(bytes)?;
    let files = [&manifest.kernel.vmlinux, &manifest.kernel.bzimage, initrd(&manifest)];
    let files = files.map(|file| (file.name.clone(), file.size));
    let initrd = &initrd(&manifest).name;
    Ok(ImageSummary {
        summary: format!("kernel {}, {initrd}", manifest.kernel.release),
        files: files.to_vec(),
    })
}
