//! The emulated secure processor of a pod's machine: what is launched is measured while QEMU starts, and
//! the guest is answered on a port of its own for as long as its machine lives.
//!
//! It is for development (`vm.tee = "emulated-snp"`): this host could sign any report.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use nacre_configuration::{Config, Guest, Tee};
use nacre_emulated::{Launch, LaunchError, Processor, ProcessorError, Root, RootError, RsaBits};
use nacre_hypervisor::SerialPort;
use nacre_protocol::channel::PROCESSOR_PORT_NAME;
use nacre_protocol::initdata::Initdata;
use nacre_protocol::start_report::Failure;

use crate::error::{Code, Coded};

/// Why a machine has no emulated secure processor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmulationError {
    #[error("emulated.directory: {0}")]
    Root(#[from] RootError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("vm.firmware_dirs: {0}")]
    Firmware(std::io::Error),
    #[error("the emulated secure processor: {0}")]
    Processor(#[from] ProcessorError),
    #[error("failed to make the port of the emulated secure processor: {0}")]
    Port(std::io::Error),
    #[error("the launch was not measured to its end: {0}")]
    Cut(#[from] tokio::task::JoinError),
}

impl Coded for EmulationError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Measure)
    }
}

/// What a machine's emulated secure processor is made of.
#[derive(Debug)]
pub(crate) struct Emulation {
    directory: PathBuf,
    firmware: PathBuf,
    guest: Guest,
    vcpus: u32,
    debug: bool,
    host_data: [u8; 32],
    port: UnixStream,
}

impl Emulation {
    /// What the configuration says, and the port that the machine must have; none without emulation.
    pub(crate) fn of(
        config: &Config,
        guest: &Guest,
        vcpus: u32,
        initdata: Option<&Initdata>,
    ) -> Result<Option<(Emulation, SerialPort)>, EmulationError> {
        match config.vm.tee {
            Tee::None | Tee::Snp | Tee::Tdx => return Ok(None),
            Tee::EmulatedSnp => {}
        }
        let (port, socket) = UnixStream::pair().map_err(EmulationError::Port)?;
        let emulation = Emulation {
            directory: config.emulated.directory.clone(),
            firmware: config.qemu_paths().firmware().map_err(EmulationError::Firmware)?,
            guest: guest.clone(),
            vcpus,
            debug: config.emulated.danger_debug,
            host_data: initdata.map_or([0; 32], |initdata| initdata.digest().host_data()),
            port,
        };
        Ok(Some((emulation, SerialPort { name: PROCESSOR_PORT_NAME.to_owned(), socket })))
    }

    /// Measures the launch and serves the port until the machine ends. Requests that the guest sends
    /// before that wait. Returns when it serves.
    pub(crate) async fn start(self) -> Result<(), EmulationError> {
        tokio::task::spawn_blocking(|| self.start_now()).await?
    }

    fn start_now(self) -> Result<(), EmulationError> {
        let root = Root::open_or_create(&self.directory, RsaBits::AsAmd)?;
        let launch = Launch::of_files(
            &self.firmware,
            &self.guest.kernel,
            &self.guest.initrd,
            &self.guest.command_line,
            self.vcpus,
        )?;
        let launch = if self.debug { launch.danger_debug() } else { launch };
        let processor = Processor::launch(&root, &launch, self.host_data)?;
        let measurement: String =
            processor.measurement().iter().map(|byte| format!("{byte:02x}")).collect();
        tracing::warn!(
            "the guest is vouched for by an emulated secure processor, for development only; it \
             measures {measurement}"
        );
        let port = self.port;
        let serve = move || {
            if let Err(error) = processor.serve(&port) {
                tracing::warn!("the emulated secure processor has ended: {error}");
            }
        };
        thread::Builder::new()
            .name("processor".into())
            .spawn(serve)
            .map_err(EmulationError::Port)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nacre_protocol::initdata::Algorithm;
    use nacre_protocol::processor::{ReportRequest, ReportResponse};

    use super::*;

    /// A node whose guest image is a few bytes, and whose root was made for tests.
    fn node() -> (tempfile::TempDir, Config, Guest) {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            std::fs::write(directory.path().join(name), content).unwrap();
        };
        write("vmlinux", b"kernel");
        write("initrd.img", b"initrd");
        write("qboot.rom", &[1; 4096]);
        // Hashes of the manifest are of no matter: what is measured is the files.
        let hash = "0".repeat(64);
        let file = |name| format!(r#"{{"name":"{name}","size":6,"sha256":"{hash}"}}"#);
        let package = format!(r#"{{"package":"p","version":"1","sha256":"{hash}"}}"#);
        let (vmlinux, bzimage) = (file("vmlinux"), file("vmlinuz"));
        let (initrd, development) = (file("initrd.img"), file("initrd-development.img"));
        let manifest = format!(
            r#"{{"format":2,"kernel":{{"release":"6","package":{package},"vmlinux":{vmlinux},
                "bzimage":{bzimage}}},"initrd":{{"file":{initrd},"zstd_size":6,"development":{development}}},
                "command_line":"quiet","certificates":{package},"files":[]}}"#
        );
        write("manifest.json", manifest.as_bytes());
        let mut config = Config::default();
        config.vm.image = directory.path().to_owned();
        config.vm.firmware_dirs = vec![directory.path().to_owned()];
        config.vm.tee = Tee::EmulatedSnp;
        let guest = config.guest().unwrap();
        config.emulated.directory = directory.path().join("emulated");
        Root::open_or_create(&config.emulated.directory, RsaBits::ForTests).unwrap();
        (directory, config, guest)
    }

    #[tokio::test]
    async fn the_guest_is_told_what_was_launched_and_bound_to_its_initdata() {
        let (_directory, mut config, guest) = node();
        let initdata = Initdata::new(Algorithm::Sha384, [("a".into(), "b".into())].into()).unwrap();
        let ask = async |config: &Config, initdata: Option<&Initdata>| {
            let (emulation, port) = Emulation::of(config, &guest, 2, initdata).unwrap().unwrap();
            assert_eq!(port.name, "org.nacre.processor.0");
            let mut guest = port.socket;
            // A request that comes before the launch is measured waits.
            let request = ReportRequest { report_data: [7; 64], vmpl: 0 };
            guest.write_all(&request.to_bytes()).unwrap();
            emulation.start().await.unwrap();
            ReportResponse::read(&guest).unwrap().report
        };
        let report = ask(&config, Some(&initdata)).await;
        // Attestation report: POLICY at 0x08, MEASUREMENT at 0x90, HOST_DATA at 0xc0.
        assert_eq!(report[0xc0..0xe0], initdata.digest().host_data());
        assert!(guest.command_line.starts_with("quiet "), "{guest:?}");
        let line = &guest.command_line;
        let launch = Launch::new(&[1; 4096], b"kernel", b"initrd", line, 2).unwrap();
        assert_eq!(report[0x90..0xc0], nacre_emulated::measure(&launch));
        assert_eq!(report[0x0a], 0b0011, "hyper-threads and the bit that is one");
        config.emulated.danger_debug = true;
        let report = ask(&config, None).await;
        assert_eq!(report[0xc0..0xe0], [0; 32]);
        assert_eq!(report[0x0a], 0b1011, "debugging as well");
    }

    #[tokio::test]
    async fn what_is_missing_is_named_and_without_emulation_nothing_is() {
        let (directory, mut config, guest) = node();
        std::fs::remove_file(directory.path().join("vmlinux")).unwrap();
        let (emulation, _port) = Emulation::of(&config, &guest, 1, None).unwrap().unwrap();
        let error = emulation.start().await.unwrap_err().to_string();
        assert!(error.contains("vmlinux to measure it"), "{error}");
        config.vm.tee = Tee::None;
        config.vm.firmware_dirs = vec!["/nowhere".into()];
        assert!(Emulation::of(&config, &guest, 1, None).unwrap().is_none());
    }
}
