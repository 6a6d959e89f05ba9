//! Any bytes on the processor's port, in both directions: what a guest sends is answered request by
//! request, what a host sends is read within its bounds or refused.
#![no_main]

use std::io::{self, Read, Write};
use std::sync::LazyLock;
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use nacre_emulated::{Launch, Processor, Root, RsaBits};
use nacre_evidence::snp::{CertificateTable, Report};
use nacre_protocol::processor::{
    REPORT_LIMIT, REQUEST_SIZE, ReportRequest, ReportResponse, ResponseError, TABLE_LIMIT,
};

/// Beyond this many requests the processor pauses.
const REQUESTS: usize = 16;

static PROCESSOR: LazyLock<Processor> = LazyLock::new(|| {
    let root = Root::generate(RsaBits::ForTests, SystemTime::now()).expect("random numbers");
    let launch = Launch::new(&[0; 4096], b"kernel", b"initrd", "quiet", 1).expect("in range");
    Processor::launch(&root, &launch, [1; 32]).expect("small certificates")
});

/// The guest's bytes, and what the processor says to them.
struct Port<'a> {
    guest: &'a [u8],
    answers: Vec<u8>,
}

impl Read for Port<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.guest.read(buffer)
    }
}

impl Write for Port<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answers.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    from_the_guest(&bytes[..bytes.len().min(REQUESTS * REQUEST_SIZE)]);
    from_the_host(bytes);
});

fn from_the_guest(bytes: &[u8]) {
    let mut port = Port { guest: bytes, answers: Vec::new() };
    PROCESSOR.serve(&mut port).expect("memory does not fail");
    let mut answers = &port.answers[..];
    for request in bytes.chunks_exact(REQUEST_SIZE) {
        let request = ReportRequest::parse(request.try_into().expect("its size"));
        match (request, ReportResponse::read(&mut answers)) {
            (Ok(request), Ok(response)) => {
                let report = Report::parse(&response.report).expect("well formed");
                let fields = report.fields();
                assert_eq!((fields.report_data, fields.vmpl), (request.report_data, request.vmpl));
                CertificateTable::parse(&response.certificates).expect("well formed");
            }
            (Err(_), Err(ResponseError::Status(_))) => {}
            (request, answer) => panic!("{request:?} is answered by {answer:?}"),
        }
    }
    assert!(answers.is_empty());
}

fn from_the_host(bytes: &[u8]) {
    let mut rest = bytes;
    let Ok(response) = ReportResponse::read(&mut rest) else { return };
    assert!(response.report.len() <= REPORT_LIMIT && response.certificates.len() <= TABLE_LIMIT);
    let read = &bytes[..bytes.len() - rest.len()];
    // The header's reserved bytes are ignored, everything else is kept.
    let again = response.to_bytes().expect("within the limits");
    assert_eq!((read.len(), &read[..8], &read[32..]), (again.len(), &again[..8], &again[32..]));
    let _ = Report::parse(&response.report);
    let _ = CertificateTable::parse(&response.certificates);
}
