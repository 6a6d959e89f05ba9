//! The processor of one guest: it makes reports, and serves the guest's port.

use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;

use nacre_evidence::EvidenceError;
use nacre_evidence::snp::{
    CertType, Certificate, CertificateTable, FirmwareVersion, GuestPolicy, KeyInfo, PlatformInfo,
    ReportFields, ReportVersion, Signature,
};
use nacre_protocol::processor::{
    REQUEST_SIZE, ReportRequest, ReportResponse, ResponseError, refusal,
};
use p384::ecdsa::SigningKey;
use p384::ecdsa::signature::Signer;
use rand_core::{OsRng, RngCore};

use crate::launch::{Launch, measure};
use crate::root::Root;
use crate::{CPUID, TCB};

/// Guest policy: hyper-threads allowed, the bit that must be one, and nothing else.
const POLICY: u64 = 1 << 16 | 1 << 17;
const POLICY_DEBUG: u64 = 1 << 19;
/// Hyper-threads on, memory with error correction, no memory aliases.
const PLATFORM: u64 = 1 | 1 << 2 | 1 << 5;
const FIRMWARE: FirmwareVersion = FirmwareVersion { major: 1, minor: 55, build: 37 };
/// ECDSA P-384 with SHA-384.
const SIGNATURE_ALGORITHM: u32 = 1;

/// Requests that are answered at once; each further one waits for [`PAUSE`].
const AT_ONCE: u32 = 32;
/// A guest that asks without end gets this much less than a processor's time for it.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a guest has no processor.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// A report could not be laid out.
    #[error("a report could not be made: {0}")]
    Report(#[from] EvidenceError),
    /// A response exceeds what the port carries.
    #[error("a response could not be made: {0}")]
    Response(#[from] ResponseError),
    /// The system has no random numbers.
    #[error("no random numbers for the guest's report id: {0}")]
    Random(String),
    /// The stream to the guest broke.
    #[error("the port of the secure processor failed: {0}")]
    Port(#[from] io::Error),
}

/// The emulated secure processor, as one guest sees it.
#[derive(Debug, Clone)]
pub struct Processor {
    fields: ReportFields,
    key: SigningKey,
    certificates: Vec<u8>,
}

impl Processor {
    /// Launches a guest: measures it, and binds `host_data` to it for its life.
    ///
    /// # Errors
    /// If the root's certificates do not fit a certificate table, or there are no random numbers.
    pub fn launch(
        root: &Root,
        launch: &Launch,
        host_data: [u8; 32],
    ) -> Result<Processor, ProcessorError> {
        let mut report_id = [0; 32];
        OsRng
            .try_fill_bytes(&mut report_id)
            .map_err(|error| ProcessorError::Random(error.to_string()))?;
        let debug = if launch.is_debug() { POLICY_DEBUG } else { 0 };
        let fields = ReportFields {
            version: ReportVersion::V3,
            guest_svn: 0,
            policy: GuestPolicy(POLICY | debug),
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: 0,
            signature_algorithm: SIGNATURE_ALGORITHM,
            current_tcb: TCB,
            platform_info: PlatformInfo(PLATFORM),
            // Signed by the VCEK, which is not masked; no author key.
            key_info: KeyInfo(0),
            report_data: [0; 64],
            measurement: measure(launch),
            host_data,
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id,
            report_id_ma: [0xff; 32],
            reported_tcb: TCB,
            cpuid: Some(CPUID),
            chip_id: *root.chip_id(),
            committed_tcb: TCB,
            current_version: FIRMWARE,
            committed_version: FIRMWARE,
            launch_tcb: TCB,
            mitigations: None,
        };
        let table = [
            (CertType::Vcek, root.vcek()),
            (CertType::Ask, root.ask()),
            (CertType::Ark, root.ark()),
        ]
        .map(|(cert_type, der)| Certificate { cert_type, data: der.to_vec() });
        let certificates = CertificateTable::new(table.to_vec())?.encode();
        Ok(Processor { fields, key: root.vcek_key().clone(), certificates })
    }

    /// The measurement of the guest.
    #[must_use]
    pub const fn measurement(&self) -> &[u8; 48] {
        &self.fields.measurement
    }

    /// The table of certificates that belongs to the reports (GHCB), as the guest gets it.
    #[must_use]
    pub fn certificates(&self) -> &[u8] {
        &self.certificates
    }

    /// A signed report of version 3, 1184 bytes.
    ///
    /// # Errors
    /// If it cannot be laid out, which no `report_data` or `vmpl` brings about.
    pub fn report(&self, report_data: [u8; 64], vmpl: u32) -> Result<Vec<u8>, ProcessorError> {
        let fields = ReportFields { report_data, vmpl, ..self.fields.clone() };
        let signature: p384::ecdsa::Signature = self.key.sign(&fields.signed_bytes()?);
        let (r, s) = signature.split_bytes();
        let signature = Signature { r: little_endian(&r), s: little_endian(&s) };
        Ok(fields.attach_signature(&signature)?.to_bytes().to_vec())
    }

    /// Answers the guest's requests (`nacre_protocol::processor`) until it closes the stream, one after
    /// the other, with a pause before each once it has asked many times. Blocks.
    ///
    /// # Errors
    /// If the stream breaks.
    pub fn serve(&self, mut port: impl Read + Write) -> Result<(), ProcessorError> {
        let mut served: u32 = 0;
        let mut request = [0; REQUEST_SIZE];
        loop {
            match port.read_exact(&mut request) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            if served >= AT_ONCE {
                thread::sleep(PAUSE);
            }
            served = served.saturating_add(1);
            port.write_all(&self.answer(&request)?)?;
        }
    }

    fn answer(&self, request: &[u8; REQUEST_SIZE]) -> Result<Vec<u8>, ProcessorError> {
        let ReportRequest { report_data, vmpl } = match ReportRequest::parse(request) {
            Ok(request) => request,
            Err(why) => {
                tracing::debug!("a guest's request to its secure processor is refused: {why}");
                return Ok(refusal(why));
            }
        };
        let report = self.report(report_data, vmpl)?;
        let certificates = self.certificates.clone();
        Ok(ReportResponse { report, certificates }.to_bytes()?)
    }
}

/// A number in the report's form.
fn little_endian(number: &[u8]) -> [u8; 72] {
    let mut field = [0; 72];
    for (to, from) in field.iter_mut().zip(number.iter().rev()) {
        *to = *from;
    }
    field
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::LazyLock;
    use std::time::{Instant, SystemTime};

    use nacre_evidence::snp::{Product, Report};
    use p384::ecdsa::signature::Verifier;

    use super::*;
    use crate::{Root, RsaBits};

    static ROOT: LazyLock<Root> =
        LazyLock::new(|| Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap());

    fn launch() -> Launch {
        Launch::new(&[1; 4096], b"kernel", b"initrd", "quiet", 1).unwrap()
    }

    fn verify(report: &Report) {
        let number = |field: &[u8; 72]| -> [u8; 48] {
            assert_eq!(field[48..], [0; 24]);
            let mut bytes = [0; 48];
            bytes.copy_from_slice(&field[..48]);
            bytes.reverse();
            bytes
        };
        let (r, s) = (number(&report.signature().r), number(&report.signature().s));
        let signature = p384::ecdsa::Signature::from_scalars(r, s).unwrap();
        ROOT.vcek_key().verifying_key().verify(report.signed_bytes(), &signature).unwrap();
    }

    #[test]
    fn a_report_says_what_was_launched_and_is_signed() {
        let processor = Processor::launch(&ROOT, &launch(), [7; 32]).unwrap();
        let bytes = processor.report([9; 64], 2).unwrap();
        assert_eq!(bytes.len(), 1184);
        let report = Report::parse(&bytes).unwrap();
        let fields = report.fields();
        assert_eq!(fields.measurement, measure(&launch()));
        assert_eq!((fields.host_data, fields.report_data, fields.vmpl), ([7; 32], [9; 64], 2));
        assert_eq!(fields.product(), Some(Product::Genoa));
        assert!(fields.policy.reserved_one() && !fields.policy.debug_allowed());
        assert_eq!(fields.chip_id, *ROOT.chip_id());
        verify(&report);
        let debug = Processor::launch(&ROOT, &launch().danger_debug(), [7; 32]).unwrap();
        let debug = Report::parse(&debug.report([9; 64], 0).unwrap()).unwrap();
        assert!(debug.fields().policy.debug_allowed());
        assert_ne!(debug.fields().report_id, fields.report_id, "each guest has its own");
    }

    #[test]
    fn the_port_answers_what_the_specification_allows_and_survives_the_rest() {
        let processor = Processor::launch(&ROOT, &launch(), [0; 32]).unwrap();
        let table = processor.certificates().to_vec();
        let (mut guest, port) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || processor.serve(port));
        let request = ReportRequest { report_data: [3; 64], vmpl: 0 };
        guest.write_all(&[0xff; REQUEST_SIZE]).unwrap();
        let refused = ReportResponse::read(&guest).unwrap_err();
        assert!(matches!(refused, ResponseError::Status(0x16)), "{refused}");
        guest.write_all(&request.to_bytes()).unwrap();
        let response = ReportResponse::read(&guest).unwrap();
        let report = Report::parse(&response.report).unwrap();
        assert_eq!(report.fields().report_data, [3; 64]);
        verify(&report);
        assert_eq!(response.certificates, table);
        let certificates = CertificateTable::parse(&table).unwrap().into_certificates();
        let kinds = certificates.iter().map(|certificate| certificate.cert_type);
        assert!(kinds.eq([CertType::Vcek, CertType::Ask, CertType::Ark]));
        assert_eq!(certificates[0].data, ROOT.vcek());
        // A piece of a request, then the end.
        guest.write_all(&[1; 5]).unwrap();
        drop(guest);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn a_guest_that_asks_without_end_is_slowed_down() {
        let processor = Processor::launch(&ROOT, &launch(), [0; 32]).unwrap();
        let (mut guest, port) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || processor.serve(port));
        let invalid = [0xff; REQUEST_SIZE];
        let mut ask = |count: u32| {
            let begun = Instant::now();
            for _ in 0..count {
                guest.write_all(&invalid).unwrap();
                ReportResponse::read(&guest).unwrap_err();
            }
            begun.elapsed()
        };
        ask(AT_ONCE);
        assert!(ask(5) >= 5 * PAUSE);
        drop(guest);
        serving.join().unwrap().unwrap();
    }
}
