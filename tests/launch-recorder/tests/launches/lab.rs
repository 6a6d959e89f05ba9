//! A place to launch confidential guests in: the real QEMU, started by Nacre's own backend, with the recorder
//! preloaded.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nacre_hypervisor::{
    AcceleratorChoice, Confidential, Disk, DiskImage, HostCapabilities, Hypervisor,
    MemoryEncryption, QemuBackend, QemuPaths, Vm, VmConfig,
};
use nacre_image_manifest::GuestImage;
use nacre_launch_recorder::record::{Call, Record};
use nacre_launch_recorder::{PRELOAD, RECORD_VARIABLE};

/// Long enough for QEMU to come to its guest's first instruction on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's, in MiB.
const MEMORY_MIB: u32 = 512;

/// Which QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    V10,
    V11,
}

impl Release {
    fn program(self) -> &'static str {
        match self {
            Release::V10 => "qemu/usr/bin/qemu-system-x86_64",
            Release::V11 => "qemu-11/qemu-system-x86_64",
        }
    }

    fn data(self) -> [&'static str; 2] {
        match self {
            Release::V10 => ["qemu/usr/share/qemu", "qemu/usr/share/seabios"],
            Release::V11 => ["qemu-11/usr/share/qemu", "qemu-11/usr/share/seabios"],
        }
    }
}

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    backend: QemuBackend,
    record: PathBuf,
    /// Copies, for tests to change.
    pub(crate) firmware: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) command_line: String,
}

impl Lab {
    /// `None`, with a line that says why, where something is missing.
    pub(crate) fn open(release: Release, firmware: &str) -> Option<Lab> {
        match Lab::prepare(release, firmware) {
            Ok(Ok(lab)) => Some(lab),
            Ok(Err(missing)) => {
                skipped(&missing);
                None
            }
            Err(error) => panic!("{error:#}"),
        }
    }

    fn prepare(release: Release, firmware: &str) -> Result<Result<Lab, String>> {
        if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
            return Ok(Err(format!("/dev/kvm cannot be used: {error}")));
        }
        let qemu = prefix().join(release.program());
        let firmware = prefix().join("firmware").join(firmware);
        for file in [&qemu, &firmware] {
            if !file.is_file() {
                return Ok(Err(format!(
                    "{} is absent; `cargo xtask setup` fetches it",
                    file.display()
                )));
            }
        }
        let Ok(image) = GuestImage::open(&prefix().join("image")) else {
            return Ok(Err("there is no guest image; `cargo xtask image` makes it".to_owned()));
        };

        let dir = tempfile::Builder::new().prefix("nacre").tempdir()?;
        let copy = |from: &Path, name: &str| {
            let to = dir.path().join(name);
            fs::copy(from, &to).with_context(|| from.display().to_string())?;
            anyhow::Ok(to)
        };
        // The loader takes a space or a colon in a path for the end of it: not where we choose the path.
        let library = dir.path().join("recorder.so");
        symlink(PRELOAD, &library)?;
        let record = dir.path().join("record");
        let binary = dir.path().join("qemu");
        let script = format!(
            "#!/bin/sh\nLD_PRELOAD={} {RECORD_VARIABLE}={} exec {} \"$@\"\n",
            quoted(&library),
            quoted(&record),
            quoted(&qemu)
        );
        fs::write(&binary, script)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o700))?;
        let firmware_dirs = release.data().map(|data| prefix().join(data)).to_vec();
        // What QEMU compares with this host's CPUID: without SEV there is no such bit.
        let host = HostCapabilities {
            accelerator: AcceleratorChoice::Kvm { why: "the recorder answers".to_owned() },
            memory_encryption: Some(MemoryEncryption { c_bit: c_bit(), reduced_address_bits: 1 }),
        };
        let backend = QemuBackend::on_host(QemuPaths { binary, firmware_dirs }, host)?;
        Ok(Ok(Lab {
            firmware: copy(&firmware, "firmware.fd")?,
            kernel: copy(&image.bzimage(), "vmlinuz")?,
            initrd: copy(&image.initrd(), "initrd.img")?,
            command_line: image.command_line().to_owned(),
            backend,
            record,
            dir,
        }))
    }

    /// Launches a guest up to its first instruction, and ends it.
    pub(crate) async fn launch(&self, confidential: Confidential, vcpus: u32) -> Result<Record> {
        let private = fs::Permissions::from_mode(0o700);
        let run_dir =
            tempfile::Builder::new().prefix("run").permissions(private).tempdir_in(&self.dir)?;
        let disk = self.dir.path().join("initdata.disk");
        fs::write(&disk, [0; 512])?;
        for leftover in [self.record.clone(), self.record.with_extension("contents")] {
            if leftover.exists() {
                fs::remove_file(leftover)?;
            }
        }
        let config = VmConfig {
            id: "recorded".into(),
            run_dir: run_dir.path().to_owned(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            command_line: self.command_line.clone(),
            vcpus,
            memory_mib: MEMORY_MIB,
            confidential: Some(confidential),
            disks: vec![Disk { serial: "nacre-initdata".into(), image: DiskImage::ReadOnly(disk) }],
            nics: vec![],
            serial_ports: vec![],
            netns: None,
        };
        let vm = self.backend.launch(config).await?;
        let record = self.until_it_runs(&*vm).await;
        let end = vm.stop(Duration::ZERO).await;
        let record = record?;
        ensure!(end.clean, "QEMU did not end in order: {}", end.reason);
        Ok(record)
    }

    async fn until_it_runs(&self, vm: &dyn Vm) -> Result<Record> {
        let start = Instant::now();
        loop {
            let record = Record::read(&self.record)?;
            if record.calls.contains(&Call::Run) {
                return Ok(record);
            }
            if let Ok(end) = tokio::time::timeout(Duration::from_millis(20), vm.wait()).await {
                bail!("QEMU ended: {}", end.reason);
            }
            ensure!(start.elapsed() < PATIENCE, "no processor runs: {:?}", record.calls.last());
        }
    }
}

/// The guest begins with nothing but private memory.
pub(crate) fn assert_memory_is_private(record: &Record) {
    let mut sizes = 0;
    for call in &record.calls {
        match call {
            Call::MemoryRegion { gpa, size, guest_memfd } => {
                assert!(*guest_memfd || *size == 0, "{size} bytes at {gpa:#x} are the host's");
                sizes += size;
            }
            Call::MemoryAttributes { gpa, size, private } => {
                assert!(private, "{size} bytes at {gpa:#x} are shared");
            }
            _ => {}
        }
    }
    assert!(sizes >= u64::from(MEMORY_MIB) << 20, "the guest has no memory");
}

/// Says it past the test harness, which shows what a test prints only when it fails.
pub(crate) fn skipped(reason: &str) {
    drop(writeln!(io::stderr(), "SKIPPED: {reason}"));
}

/// Changes one bit of a file.
pub(crate) fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Where `cargo xtask` puts what it fetches and makes.
pub(crate) fn prefix() -> PathBuf {
    std::env::var_os("NACRE_PREFIX").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nacre"),
        PathBuf::from,
    )
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Of the machine that runs the tests, whatever it is.
fn c_bit() -> u8 {
    MemoryEncryption::of_this_host().map_or(0, |encryption| encryption.c_bit)
}
