//! Where the programs and files under test are.

use std::path::{Path, PathBuf};

use anyhow::ensure;

/// A containerd release that Nacre supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerdVersion {
    /// The system's own; Debian 12 has 1.6.20.
    V1_6,
    /// 1.7, unpacked beneath the prefix.
    V1_7,
    /// 2.1, unpacked beneath the prefix.
    V2_1,
}

impl ContainerdVersion {
    /// All, oldest first.
    pub const ALL: [ContainerdVersion; 3] =
        [ContainerdVersion::V1_6, ContainerdVersion::V1_7, ContainerdVersion::V2_1];

    /// Its number, as people say it.
    pub fn name(self) -> &'static str {
        match self {
            ContainerdVersion::V1_6 => "1.6",
            ContainerdVersion::V1_7 => "1.7",
            ContainerdVersion::V2_1 => "2.1",
        }
    }
}

/// What the build made, and what `cargo xtask` fetched.
#[derive(Debug, Clone)]
pub struct Products {
    /// Fetched and made files: `$NACRE_PREFIX`, else `target/nacre`.
    pub prefix: PathBuf,
    /// Built programs: `$NACRE_BIN`, else the release directory.
    pub programs: PathBuf,
}

impl Products {
    /// Looks in the environment, else in this work tree's `target/`.
    pub fn find() -> Products {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
        let from = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| target.join(default), PathBuf::from)
        };
        Products {
            prefix: from("NACRE_PREFIX", "nacre"),
            programs: from("NACRE_BIN", "x86_64-unknown-linux-gnu/release"),
        }
    }

    /// The containerd shim.
    pub fn shim(&self) -> PathBuf {
        self.programs.join("containerd-shim-nacre-v2")
    }

    /// The snapshotter.
    pub fn snapshotter(&self) -> PathBuf {
        self.programs.join("nacre-snapshotter")
    }

    /// The node's cache of blobs.
    pub fn node_cache(&self) -> PathBuf {
        self.programs.join("nacre-cache")
    }

    /// The owner's tool.
    pub fn nacre(&self) -> PathBuf {
        self.programs.join("nacre")
    }

    /// The guest image's directory.
    pub fn image(&self) -> PathBuf {
        self.prefix.join("image")
    }

    /// The guest's kernel, an ELF file.
    pub fn kernel(&self) -> PathBuf {
        self.image().join("vmlinux")
    }

    /// The guest's initrd.
    pub fn initrd(&self) -> PathBuf {
        self.image().join("initrd.img")
    }

    /// What the guest image consists of.
    pub fn manifest(&self) -> PathBuf {
        self.image().join("manifest.json")
    }

    /// Where the root of this installation's emulated secure processors is, or will be.
    pub fn emulated_root(&self) -> PathBuf {
        self.prefix.join("emulated")
    }

    /// QEMU: the one beneath the prefix, or the system's if there is none.
    pub fn qemu(&self) -> PathBuf {
        let own = self.prefix.join("qemu/usr/bin/qemu-system-x86_64");
        if own.exists() { own } else { "/usr/bin/qemu-system-x86_64".into() }
    }

    /// Where QEMU finds its firmware.
    pub fn firmware_dirs(&self) -> Vec<PathBuf> {
        ["usr/share/qemu", "usr/share/seabios"]
            .iter()
            .flat_map(|d| [self.prefix.join("qemu").join(d), Path::new("/").join(d)])
            .filter(|d| d.is_dir())
            .collect()
    }

    /// Directory of `containerd` and `ctr` of that version.
    pub fn containerd(&self, version: ContainerdVersion) -> PathBuf {
        match version {
            ContainerdVersion::V1_6 => "/usr/bin".into(),
            ContainerdVersion::V1_7 => self.prefix.join("containerd-1.7/usr/bin"),
            ContainerdVersion::V2_1 => self.prefix.join("containerd-2.1/usr/bin"),
        }
    }

    /// Docker's daemon and client, beneath the prefix.
    pub fn docker(&self) -> [PathBuf; 2] {
        ["sbin/dockerd", "bin/docker"].map(|name| self.prefix.join("docker/usr").join(name))
    }

    /// Says what is missing for a world with Nacre in it.
    pub fn check(&self) -> anyhow::Result<()> {
        let host = [self.shim(), self.snapshotter(), self.node_cache()];
        let programs = host.into_iter().chain([self.nacre(), self.qemu()]);
        let parts = programs.chain([self.kernel(), self.initrd()]);
        let missing: Vec<_> =
            parts.filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
        ensure!(
            missing.is_empty(),
            "not built or fetched yet: {}; `cargo xtask demo` or `cargo xtask test` makes them",
            missing.join(", ")
        );
        Ok(())
    }
}
