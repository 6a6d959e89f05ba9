//! A place to boot VMs in: the real QEMU, the real kernel, and an initrd made of BusyBox and one
//! script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_hypervisor::{
    Accelerator, HostUser, Hypervisor, LaunchError, QemuBackend, QemuPaths, Vm, VmConfig,
};

/// Long enough for an emulated boot on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One VM at a time: they are measured in seconds of processor time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Parameters of every guest here.
const COMMAND_LINE: &str = "console=hvc0 quiet panic=-1 reboot=t tsc=reliable no_timer_check \
                            cryptomgr.notests noreplace-smp";

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) kernel: PathBuf,
    pub(crate) backend: QemuBackend,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// `None`, with a line that says why, where QEMU, kernel or BusyBox are missing.
    pub(crate) fn open() -> Option<Lab> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let nacre = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre");
        let from_environment = |name, default: &str| {
            std::env::var_os(name).map_or_else(|| nacre.join(default), Into::into)
        };
        let binary: PathBuf = from_environment("NACRE_QEMU", "qemu/usr/bin/qemu-system-x86_64");
        let kernel: PathBuf = from_environment("NACRE_KERNEL", "image/vmlinux");
        let firmware_dirs = match std::env::var_os("NACRE_FIRMWARE") {
            Some(dirs) => std::env::split_paths(&dirs).collect(),
            None => vec![nacre.join("qemu/usr/share/qemu"), nacre.join("qemu/usr/share/seabios")],
        };
        for file in [&binary, &kernel, &PathBuf::from("/bin/busybox")] {
            if !file.exists() {
                eprintln!("skipped: {} is absent; run `cargo xtask image` first", file.display());
                return None;
            }
        }
        let backend =
            QemuBackend::new(QemuPaths { binary, firmware_dirs }, Accelerator::Auto).unwrap();
        let dir = tempfile::Builder::new().prefix("nacre").tempdir().unwrap();
        Some(Lab { dir, kernel, backend, _turn: turn })
    }

    /// A VM that runs `script` as its first process.
    pub(crate) fn config(&self, script: &str) -> VmConfig {
        let run_dir = self.dir.path().join("run");
        fs::create_dir_all(&run_dir).unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o700)).unwrap();
        let initrd = self.dir.path().join("initrd.img");
        fs::write(&initrd, archive(script)).unwrap();
        VmConfig {
            id: "lab".into(),
            run_dir,
            kernel: self.kernel.clone(),
            initrd,
            command_line: COMMAND_LINE.to_owned(),
            vcpus: 1,
            memory_mib: 256,
            confidential: None,
            disks: vec![],
            nics: vec![],
            serial_ports: vec![],
            netns: None,
        }
    }

    /// QEMU runs as this user from now on.
    pub(crate) fn run_as(self, user: HostUser) -> Lab {
        Lab { backend: self.backend.run_as(user), ..self }
    }

    pub(crate) async fn boot(&self, script: &str) -> Arc<dyn Vm> {
        self.backend.launch(self.config(script)).await.unwrap()
    }

    pub(crate) async fn refused(&self, change: impl FnOnce(&mut VmConfig)) -> LaunchError {
        let mut config = self.config("");
        change(&mut config);
        match self.backend.launch(config).await {
            Ok(_) => panic!("the VM was launched"),
            Err(error) => error,
        }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }
}

/// Waits until the guest has written `words` to its console.
pub(crate) async fn console_says(vm: &Arc<dyn Vm>, words: &str) {
    let start = Instant::now();
    while !vm.console_tail().contains(words) {
        assert!(start.elapsed() < PATIENCE, "no {words:?} in:\n{}", vm.console_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn process_is_there(pid: u32) -> bool {
    // A zombie is not there any more, it only has not been buried.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

/// An initrd (newc cpio): BusyBox, a console and /init.
fn archive(script: &str) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CHARACTER_DEVICE: u32 = 0o020_600;
    let busybox = fs::read("/bin/busybox").unwrap();
    let preamble = "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t devtmpfs dev /dev\n\
                    $B mount -t sysfs sys /sys\n$B mount -t proc proc /proc\n";
    let init = format!("{preamble}{script}\n");
    let mut out = Vec::new();
    for dir in ["bin", "dev", "sys", "proc"] {
        entry(&mut out, dir, DIRECTORY, (0, 0), &[]);
    }
    entry(&mut out, "dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    entry(&mut out, "bin/busybox", PROGRAM, (0, 0), &busybox);
    entry(&mut out, "init", PROGRAM, (0, 0), init.as_bytes());
    entry(&mut out, "TRAILER!!!", 0, (0, 0), &[]);
    out
}

fn entry(out: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let name_size = u32::try_from(name.len() + 1).unwrap();
    let data_size = u32::try_from(data.len()).unwrap();
    let fields = [0, mode, 0, 0, 1, 0, data_size, 0, 0, device.0, device.1, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}
