//! What the real QEMU makes of the command lines of confidential guests.
//!
//! QEMU reads its arguments in two steps. Objects and the machine come first, then it asks KVM for a
//! confidential VM, which hosts without the hardware refuse; processors, firmware and devices come only after
//! that. So each guest is launched twice: as it is, up to KVM's refusal; and with the hardware's part taken
//! out between us and QEMU, as an emulated VM that has to come up.
#![allow(clippy::unwrap_used)]

mod tap;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_hypervisor::{
    AcceleratorChoice, Confidential, Disk, DiskImage, GuestPolicy, HostCapabilities, Hypervisor,
    IdBlock, LaunchError, MemoryEncryption, Nic, QemuBackend, QemuPaths, QemuVersion, QuoteService,
    SerialPort, SnpCpu, SnpLaunch, TdAttributes, TdxLaunch, Vm, VmConfig,
};

const V10_0: QemuVersion = QemuVersion { major: 10, minor: 0 };
const V11_1: QemuVersion = QemuVersion { major: 11, minor: 1 };

/// Takes the hardware out: `sed` expressions for single arguments.
const WITHOUT_HARDWARE: &[&str] = &[
    "s/^sev-snp-guest,.*/rng-builtin,id=tee/",
    "s/^{\"qom-type\":\"tdx-guest\".*/rng-builtin,id=tee/",
    "s/,confidential-guest-support=tee,/,/",
    "s/^kvm$/tcg,thread=multi/",
    "s/^host,/max,/",
];

/// Long enough for an emulated boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// One QEMU at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A QEMU of a known version, and what guests are launched from.
struct Lab {
    dir: tempfile::TempDir,
    paths: QemuPaths,
    image: PathBuf,
    ovmf: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// What `cargo xtask` fetches and makes.
fn prefix() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre");
    std::env::var_os("NACRE_PREFIX").map_or_else(default, Into::into)
}

fn skipped(reason: &str) {
    eprintln!(
        "SKIPPED: {reason}; `cargo xtask setup` and `cargo xtask image` make what is missing"
    );
}

impl Lab {
    /// `None`, with a line that says why, where something is missing.
    fn open(version: QemuVersion) -> Option<Lab> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = prefix();
        let (binary, data) = if version == V11_1 {
            (prefix.join("qemu-11/qemu-system-x86_64"), prefix.join("qemu-11/usr/share"))
        } else if prefix.join("qemu").exists() {
            (prefix.join("qemu/usr/bin/qemu-system-x86_64"), prefix.join("qemu/usr/share"))
        } else {
            ("/usr/bin/qemu-system-x86_64".into(), "/usr/share".into())
        };
        let paths =
            QemuPaths { binary, firmware_dirs: vec![data.join("qemu"), data.join("seabios")] };
        let found = match QemuBackend::on_host(paths.clone(), host()) {
            Ok(backend) => backend.version(),
            Err(error) => return skip(&format!("there is no QEMU {version}: {error}")),
        };
        if found != version {
            return skip(&format!("{} is QEMU {found}, not {version}", paths.binary.display()));
        }
        let (image, ovmf) = (prefix.join("image"), prefix.join("firmware/usr/share/ovmf"));
        for file in [
            image.join("vmlinuz"),
            image.join("initrd.img"),
            ovmf.join("OVMF.amdsev.fd"),
            ovmf.join("OVMF.inteltdx.fd"),
        ] {
            if !file.exists() {
                return skip(&format!("{} is absent", file.display()));
            }
        }
        let dir = tempfile::Builder::new().prefix("nacre").tempdir().unwrap();
        Some(Lab { dir, paths, image, ovmf, _turn: turn })
    }

    /// The image's: with another the agent finds drivers that it does not expect.
    fn command_line(&self) -> String {
        let manifest = fs::read(self.image.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["command_line"].as_str().unwrap().to_owned()
    }

    fn snp(&self, cpu: SnpCpu, id_block: Option<IdBlock>) -> Confidential {
        Confidential::Snp(SnpLaunch {
            firmware: self.ovmf.join("OVMF.amdsev.fd"),
            policy: GuestPolicy::new(true),
            host_data: [7; 32],
            cpu,
            id_block,
        })
    }

    fn tdx(&self, quote_generation: Option<QuoteService>) -> Confidential {
        Confidential::Tdx(TdxLaunch {
            firmware: self.ovmf.join("OVMF.inteltdx.fd"),
            attributes: TdAttributes::default(),
            mr_config_id: [7; 48],
            mr_owner: [8; 48],
            mr_owner_config: [9; 48],
            quote_generation,
        })
    }

    /// A guest with one device of each kind that this host lets us have.
    fn guest(&self, confidential: Confidential) -> (VmConfig, Option<tap::Namespace>) {
        let run_dir = self.dir.path().join("run");
        fs::create_dir_all(&run_dir).unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o700)).unwrap();
        let disk = self.dir.path().join("disk");
        fs::write(&disk, [0; 4096]).unwrap();
        let scratch = tempfile::tempfile().unwrap();
        scratch.set_len(4096).unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let (namespace, tap) = tap::in_new_namespace().unzip();
        let config = VmConfig {
            id: "contract".into(),
            run_dir,
            kernel: self.image.join("vmlinuz"),
            initrd: self.image.join("initrd.img"),
            command_line: self.command_line(),
            vcpus: 2,
            memory_mib: 512,
            confidential: Some(confidential),
            disks: vec![
                Disk { serial: "disk".into(), image: DiskImage::ReadOnly(disk) },
                Disk { serial: "scratch".into(), image: DiskImage::Scratch(scratch.into()) },
            ],
            nics: tap
                .into_iter()
                .map(|tap| Nic { tap, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 })
                .collect(),
            serial_ports: vec![SerialPort { name: "further".into(), socket }],
            netns: namespace.as_ref().map(tap::Namespace::path),
        };
        (config, namespace)
    }

    /// Launches the guest with a QEMU that gets each argument through these `sed` expressions.
    async fn launch(
        &self,
        confidential: Confidential,
        edits: &[&str],
    ) -> Result<Arc<dyn Vm>, LaunchError> {
        let script = self.dir.path().join("qemu");
        let edits: String = edits.iter().map(|edit| format!(" -e '{edit}'")).collect();
        let text = format!(
            "#!/bin/sh\nleft=$#\nwhile [ \"$left\" -gt 0 ]; do\n\
             argument=$(printf '%s\\n' \"$1\" | sed -e ''{edits})\nshift\nleft=$((left - 1))\n\
             set -- \"$@\" \"$argument\"\ndone\nexec {:?} \"$@\"\n",
            self.paths.binary
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let paths = QemuPaths { binary: script, ..self.paths.clone() };
        let backend = QemuBackend::on_host(paths, host()).unwrap();
        let (config, _namespace) = self.guest(confidential);
        backend.launch(config).await
    }

    /// QEMU's last word on the guest; `None` if it was launched.
    async fn refusal(&self, confidential: Confidential, edits: &[&str]) -> Option<String> {
        self.launch(confidential, edits).await.err().map(|error| error.to_string())
    }

    /// The guest gets as far as this host's KVM lets it: to the refusal of its kind of VM.
    async fn reaches_the_hardware(&self, confidential: &Confidential, kind: &str) {
        let on_kvm = self.refusal(confidential.clone(), &[]).await;
        match on_kvm.as_deref() {
            None => eprintln!("this host has the hardware: the guest was launched"),
            Some(error) if has_kvm() => {
                assert!(error.contains(&format!("vm-type {kind} not supported by KVM")), "{error}");
            }
            Some(_) => eprintln!("SKIPPED: KVM's refusal of {kind} guests, for want of /dev/kvm"),
        }
        let error = self.refusal(confidential.clone(), &["s/^kvm$/tcg/"]).await;
        let error = error.expect("a confidential guest without KVM");
        assert!(error.contains("KVM required"), "{error}");
    }

    /// QEMU accepts everything but the hardware's part, and the VM comes up.
    async fn comes_up_without_the_hardware(&self, confidential: &Confidential) {
        let vm = self.launch(confidential.clone(), WITHOUT_HARDWARE).await.unwrap();
        vm.stop(Duration::ZERO).await;
    }

    /// With a mistake in it the command line is refused for that mistake.
    async fn notices(&self, confidential: &Confidential, mistake: &str, without_hardware: bool) {
        let edits = if without_hardware { WITHOUT_HARDWARE } else { &[] };
        let edits: Vec<_> = [mistake].iter().chain(edits).copied().collect();
        let error = self.refusal(confidential.clone(), &edits).await;
        let error = error.unwrap_or_else(|| panic!("{mistake} went unnoticed"));
        assert!(error.contains("bogus"), "{mistake}: {error}");
    }
}

fn skip(reason: &str) -> Option<Lab> {
    skipped(reason);
    None
}

/// A host that has both kinds of hardware, if one asks it.
fn host() -> HostCapabilities {
    // QEMU compares the C-bit with what this processor says.
    let hidden = MemoryEncryption { c_bit: 0, reduced_address_bits: 1 };
    let memory_encryption = Some(MemoryEncryption::of_this_host().unwrap_or(hidden));
    let why = "the test says so".to_owned();
    HostCapabilities { accelerator: AcceleratorChoice::Kvm { why }, memory_encryption }
}

fn has_kvm() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// As an owner would have signed it, but for the signatures.
fn id_block() -> IdBlock {
    let mut block = [1; IdBlock::BLOCK];
    block[0x58..].copy_from_slice(&GuestPolicy::new(true).bits().to_le_bytes());
    IdBlock::new(&block, &[2; IdBlock::AUTHENTICATION]).unwrap()
}

async fn snp_guests_with(version: QemuVersion) {
    let Some(lab) = Lab::open(version) else { return };
    for cpu in SnpCpu::ALL {
        lab.comes_up_without_the_hardware(&lab.snp(cpu, None)).await;
    }
    for id_block in [None, Some(id_block())] {
        lab.reaches_the_hardware(&lab.snp(SnpCpu::default(), id_block), "SEV-SNP").await;
    }
    let guest = lab.snp(SnpCpu::default(), None);
    for mistake in
        ["s/^sev-snp-guest,/&bogus=1,/", "s/^q35,/&bogus=1,/", "s/,host-data=/,host-bogus=/"]
    {
        lab.notices(&guest, mistake, false).await;
    }
    for mistake in
        ["s/^virtio-blk-pci,/&bogus=1,/", "s/^virtio-serial-pci,/&bogus=1,/", "s/^EPYC-v4/bogus/"]
    {
        lab.notices(&guest, mistake, true).await;
    }
}

#[tokio::test]
async fn qemu_10_0_takes_snp_guests() {
    snp_guests_with(V10_0).await;
}

#[tokio::test]
async fn qemu_11_1_takes_snp_guests() {
    snp_guests_with(V11_1).await;
}

#[tokio::test]
async fn qemu_11_1_takes_tdx_guests() {
    let Some(lab) = Lab::open(V11_1) else { return };
    let unix = QuoteService::Unix("/run/nacre,bogus/qgs.socket".into());
    for quotes in [None, Some(unix), Some(QuoteService::Vsock { cid: 2, port: 4050 })] {
        lab.reaches_the_hardware(&lab.tdx(quotes), "TDX").await;
    }
    let guest = lab.tdx(None);
    lab.comes_up_without_the_hardware(&guest).await;
    for mistake in ["s/\"attributes\"/\"bogus\":1,&/", "s/^q35,/&bogus=1,/"] {
        lab.notices(&guest, mistake, false).await;
    }
    for mistake in ["s/^virtio-blk-pci,/&bogus=1,/", "s/^host,/&bogus=1,/"] {
        lab.notices(&guest, mistake, true).await;
    }
}

/// TDVF without keys runs without TDX as well. (The `AmdSev` build of OVMF does not: where no hashes were measured
/// it starts nothing.)
#[tokio::test]
async fn the_firmware_of_tdx_guests_starts_the_images_kernel() {
    let Some(lab) = Lab::open(V11_1) else { return };
    let vm = lab.launch(lab.tdx(None), WITHOUT_HARDWARE).await.unwrap();
    let start = Instant::now();
    while !vm.console_tail().contains("nacre_agent") {
        assert!(start.elapsed() < PATIENCE, "no agent:\n{}", vm.console_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    vm.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn qemu_10_0_is_too_old_for_tdx_guests() {
    let Some(lab) = Lab::open(V10_0) else { return };
    let error = lab.refusal(lab.tdx(None), &[]).await.unwrap();
    assert!(error.contains("need QEMU 10.1 or later, and this is 10.0"), "{error}");
}

/// Family, model and stepping of the processors, as QEMU itself has them.
fn processors_are_what_we_take_them_for(version: QemuVersion) {
    let Some(lab) = Lab::open(version) else { return };
    let mut command = Command::new(&lab.paths.binary);
    for dir in &lab.paths.firmware_dirs {
        command.arg("-L").arg(dir);
    }
    command.args(["-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-S"]);
    command.args(["-qmp", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = command.spawn().unwrap();
    let mut input = qemu.stdin.take().unwrap();
    let mut answers = BufReader::new(qemu.stdout.take().unwrap()).lines();
    let mut ask = |command: serde_json::Value| -> serde_json::Value {
        // At once: `quit` is carried out at its last brace.
        input.write_all(command.to_string().as_bytes()).unwrap();
        loop {
            let answer: serde_json::Value =
                serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
            if let Some(answer) = answer.get("return") {
                break answer.clone();
            }
            assert!(answer.get("error").is_none(), "{answer}");
        }
    };
    ask(serde_json::json!({"execute": "qmp_capabilities"}));
    for cpu in SnpCpu::ALL {
        let model = serde_json::json!({"type": "full", "model": {"name": cpu.name()}});
        let command =
            serde_json::json!({"execute": "query-cpu-model-expansion", "arguments": model});
        let properties = ask(command)["model"]["props"].clone();
        let number = |name: &str| u32::try_from(properties[name].as_u64().unwrap()).unwrap();
        let signature = cpu.cpuid_signature();
        // AMD64 Architecture Programmer's Manual 3, E.3.2: extended and base family, extended and base model.
        let family = ((signature >> 20) & 0xff) + ((signature >> 8) & 0xf);
        let model = ((signature >> 12) & 0xf0) | ((signature >> 4) & 0xf);
        assert_eq!((number("family"), number("model")), (family, model), "{cpu}");
        assert_eq!(number("stepping"), signature & 0xf, "{cpu}");
    }
    ask(serde_json::json!({"execute": "quit"}));
    assert!(qemu.wait().unwrap().success());
}

#[test]
fn qemu_10_0_has_our_processors() {
    processors_are_what_we_take_them_for(V10_0);
}

#[test]
fn qemu_11_1_has_our_processors() {
    processors_are_what_we_take_them_for(V11_1);
}
