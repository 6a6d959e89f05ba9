//! The emulated AMD secure processor, behind a virtio-serial port of the VM
//! (`nacre_protocol::processor`).
//!
//! Whatever comes from the port is the host's word. That is what emulation is: the relying party tells it
//! by the root, and accepts it only where it is configured to.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nacre_evidence::Evidence;
use nacre_evidence::snp::{Certificate, CertificateTable, Report};
use nacre_protocol::channel::PROCESSOR_PORT_NAME;
use nacre_protocol::processor::{ReportRequest, ReportResponse, ResponseError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::system::{Kind, System};
use crate::{AttestError, Attester, blocking, failed};

const NAME: &str = "the emulated secure processor";

/// How long the kernel may take to show the port, and how often it is looked for.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
const PORT_POLL: Duration = Duration::from_millis(2);
/// How long the host may take to answer: at its first request it may still be measuring the VM.
const PATIENCE: Duration = Duration::from_secs(60);

/// The port, and who waits for it.
#[derive(Debug, Clone)]
pub(crate) struct EmulatedSnp {
    port: Arc<Mutex<Port>>,
}

/// The guest's end of the stream.
#[derive(Debug)]
struct Port {
    fd: OwnedFd,
    patience: Duration,
    /// An answer was not read to its end: what comes next has no meaning.
    broken: bool,
}

impl EmulatedSnp {
    /// Waits for the port, as the kernel shows it only when the host has introduced it.
    pub(crate) async fn open(system: &System) -> Result<EmulatedSnp, AttestError> {
        let begun = Instant::now();
        let path = loop {
            match find(&system.sys.join("class/virtio-ports"), &system.dev) {
                Some(path) => break path,
                None if begun.elapsed() > PORT_PATIENCE => return Err(AttestError::NoPort),
                None => tokio::time::sleep(PORT_POLL).await,
            }
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| failed("open", &path)(errno.into()))?;
        Ok(EmulatedSnp::on(fd, PATIENCE))
    }

    fn on(fd: OwnedFd, patience: Duration) -> EmulatedSnp {
        EmulatedSnp { port: Arc::new(Mutex::new(Port { fd, patience, broken: false })) }
    }

    async fn ask(&self, report_data: [u8; 64]) -> Result<(Report, Vec<Certificate>), AttestError> {
        let port = Arc::clone(&self.port);
        let work = move || port.lock().unwrap_or_else(PoisonError::into_inner).ask(report_data);
        let ReportResponse { report, certificates } = blocking(work).await?;
        let invalid = |cause| AttestError::Evidence { source_name: NAME, cause };
        let report = Report::parse(&report).map_err(invalid)?;
        if report.fields().report_data != report_data {
            return Err(AttestError::OtherReportData(NAME));
        }
        let certificates = CertificateTable::parse(&certificates).map_err(invalid)?;
        Ok((report, certificates.into_certificates()))
    }
}

#[async_trait]
impl Attester for EmulatedSnp {
    fn kind(&self) -> Kind {
        Kind::EmulatedSnp
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Evidence, AttestError> {
        let (report, certificates) = self.ask(report_data).await?;
        Ok(Evidence::Snp { report, certificates })
    }

    async fn host_data(&self) -> Result<Vec<u8>, AttestError> {
        let (report, _) = self.ask([0; 64]).await?;
        Ok(report.fields().host_data.to_vec())
    }
}

/// The device node of the port of that name.
fn find(class: &Path, dev: &Path) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = dev.join(entry.file_name());
        (name.trim() == PROCESSOR_PORT_NAME && device.exists()).then_some(device)
    })
}

impl Port {
    fn ask(&mut self, report_data: [u8; 64]) -> Result<ReportResponse, AttestError> {
        if self.broken {
            return Err(AttestError::Broken);
        }
        let mut stream = Stream { fd: &self.fd, deadline: Instant::now() + self.patience };
        let request = ReportRequest { report_data, vmpl: 0 };
        let answer = stream
            .send(&request.to_bytes())
            .map_err(ResponseError::from)
            .and_then(|()| ReportResponse::read(&mut stream));
        // A refusal was read to its end; every other failure leaves bytes behind, or may.
        self.broken = !matches!(answer, Ok(_) | Err(ResponseError::Status(_)));
        Ok(answer?)
    }
}

/// The port until a deadline.
struct Stream<'a> {
    fd: &'a OwnedFd,
    deadline: Instant,
}

impl Stream<'_> {
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(PollFlags::OUT)?;
            match rustix::io::write(self.fd, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits until the port is ready. One whose host end is closed reports a hang-up at once.
    fn wait(&self, wanted: PollFlags) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut poll = [PollFd::new(self.fd, wanted)];
        match rustix::event::poll(&mut poll, Some(&timeout)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if poll[0].revents().intersects(wanted) => Ok(()),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the host has closed its end of the port",
            )),
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::IN)?;
            match rustix::io::read(self.fd, &mut *buffer) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::SystemTime;

    use nacre_emulated::{Launch, Processor, Root, RsaBits};
    use nacre_protocol::processor::{REQUEST_SIZE, Refusal, refusal};

    use super::*;

    /// A port whose host does `serve` in a thread.
    fn port(serve: impl FnOnce(UnixStream) + Send + 'static) -> EmulatedSnp {
        let (guest, host) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        thread::spawn(move || serve(host));
        EmulatedSnp::on(guest.into(), Duration::from_millis(300))
    }

    fn request(host: &mut UnixStream) -> ReportRequest {
        let mut bytes = [0; REQUEST_SIZE];
        host.read_exact(&mut bytes).unwrap();
        ReportRequest::parse(&bytes).unwrap()
    }

    async fn failure(port: &EmulatedSnp) -> String {
        port.evidence([1; 64]).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_the_port_goes_on() {
        let port = port(|mut host| {
            for _ in 0..2 {
                assert_eq!(request(&mut host).report_data, [1; 64]);
                host.write_all(&refusal(Refusal::InvalidKey)).unwrap();
            }
        });
        for _ in 0..2 {
            assert!(failure(&port).await.contains("answers with status 0x27"));
        }
    }

    #[tokio::test]
    async fn a_host_that_is_silent_or_gone_breaks_the_port() {
        let silent = port(|mut host| {
            request(&mut host);
            thread::sleep(Duration::from_secs(2));
        });
        assert!(failure(&silent).await.contains("timed out"));
        assert!(failure(&silent).await.contains("broke earlier"));
        let gone = port(|mut host| {
            request(&mut host);
        });
        let error = failure(&gone).await;
        assert!(error.contains("answer could not be read"), "{error}");
    }

    #[tokio::test]
    async fn a_port_that_answers_another_question_gives_no_evidence() {
        let root = Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap();
        let launch = Launch::new(&[1; 4096], b"kernel", b"initrd", "quiet", 1).unwrap();
        let processor = Processor::launch(&root, &launch, [7; 32]).unwrap();
        let replay = processor.report([2; 64], 0).unwrap();
        let certificates = processor.certificates().to_vec();
        let honest = port(move |host| processor.serve(&host).unwrap());
        assert_eq!(honest.host_data().await.unwrap(), [7; 32]);
        let evidence = honest.evidence([1; 64]).await.unwrap();
        assert_eq!(evidence.report_data(), &[1; 64]);
        assert!(matches!(evidence, Evidence::Snp { certificates, .. } if certificates.len() == 3));
        let replaying = port(move |mut host| {
            request(&mut host);
            let response = ReportResponse { report: replay, certificates };
            host.write_all(&response.to_bytes().unwrap()).unwrap();
        });
        assert!(failure(&replaying).await.contains("holds other report data"));
    }

    #[tokio::test]
    async fn nonsense_is_no_evidence() {
        let answers = |bytes: Vec<u8>| {
            port(move |mut host| {
                request(&mut host);
                host.write_all(&bytes).unwrap();
            })
        };
        let response = |report: &[u8], certificates: &[u8]| {
            ReportResponse { report: report.into(), certificates: certificates.into() }
                .to_bytes()
                .unwrap()
        };
        let short = answers(response(&[0; 4], &[]));
        assert!(failure(&short).await.contains("is no evidence"));
        let endless = answers(vec![0xff; 64]);
        assert!(failure(&endless).await.contains("4294967295 bytes, more than"));
    }
}
