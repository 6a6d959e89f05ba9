//! AMD SEV-SNP: reports through configfs-tsm. The driver exchanges encrypted messages with the secure
//! processor, so the host cannot change a report; the certificates are the host's own words.

use std::fs::OpenOptions;

use async_trait::async_trait;
use nacre_evidence::Evidence;
use nacre_evidence::snp::{Certificate, CertificateTable, Report};

use crate::system::{Kind, System};
use crate::tsm::Tsm;
use crate::{AttestError, Attester, blocking, raw};

const NAME: &str = "the kernel's SNP driver";

/// The guest driver of SNP.
#[derive(Debug, Clone)]
pub(crate) struct Snp {
    tsm: Tsm,
    system: System,
}

impl Snp {
    /// The driver must be loaded.
    pub(crate) fn open(system: System) -> Result<Snp, AttestError> {
        Ok(Snp { tsm: Tsm::open(&system, "sev_guest")?, system })
    }

    fn report(&self, report_data: &[u8; 64]) -> Result<(Report, Vec<u8>), AttestError> {
        let answer = self.tsm.ask(report_data)?;
        Ok((about(report_data, &answer.report)?, answer.certificates))
    }

    fn evidence_now(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let (report, mut table) = self.report(report_data)?;
        if table.is_empty() {
            table = self.table_by_ioctl(report_data);
        }
        Ok(Evidence::Snp { report, certificates: certificates(&table) })
    }

    /// Kernels whose configfs-tsm has no `auxblob` give certificates by ioctl only. Evidence is good
    /// without them: the relying party may have them.
    fn table_by_ioctl(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let path = self.system.dev.join("sev-guest");
        let device = OpenOptions::new().read(true).write(true).open(&path);
        let table = device.and_then(|device| Ok(raw::snp_certificates(&device, report_data)?));
        table.unwrap_or_else(|error| {
            tracing::debug!("no certificates from {}: {error}", path.display());
            Vec::new()
        })
    }
}

/// The report, if it is one and holds what was asked for.
fn about(report_data: &[u8; 64], report: &[u8]) -> Result<Report, AttestError> {
    let report = Report::parse(report)
        .map_err(|cause| AttestError::Evidence { source_name: NAME, cause })?;
    if report.fields().report_data != *report_data {
        return Err(AttestError::OtherReportData(NAME));
    }
    Ok(report)
}

/// A table that the host has damaged counts as none: whoever verifies the report says what is missing.
fn certificates(table: &[u8]) -> Vec<Certificate> {
    match CertificateTable::parse(table) {
        Ok(table) => table.into_certificates(),
        Err(error) => {
            tracing::warn!("the host's certificates are dropped: {error}");
            Vec::new()
        }
    }
}

#[async_trait]
impl Attester for Snp {
    fn kind(&self) -> Kind {
        Kind::Snp
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Evidence, AttestError> {
        let this = self.clone();
        blocking(move || this.evidence_now(&report_data)).await
    }

    async fn host_data(&self) -> Result<Vec<u8>, AttestError> {
        let this = self.clone();
        let (report, _) = blocking(move || this.report(&[0; 64])).await?;
        Ok(report.fields().host_data.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use nacre_emulated::{Launch, Processor, Root, RsaBits};
    use nacre_evidence::snp::CertType;

    use super::*;

    #[test]
    fn a_report_must_be_one_and_about_what_was_asked() {
        let root = Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap();
        let launch = Launch::new(&[1; 4096], b"kernel", b"initrd", "quiet", 1).unwrap();
        let processor = Processor::launch(&root, &launch, [7; 32]).unwrap();
        let bytes = processor.report([2; 64], 0).unwrap();
        assert_eq!(about(&[2; 64], &bytes).unwrap().fields().host_data, [7; 32]);
        let error = about(&[1; 64], &bytes).unwrap_err();
        assert!(matches!(error, AttestError::OtherReportData(_)), "{error}");
        // What the ioctl gives has a header; configfs-tsm has none.
        let error = about(&[2; 64], &[&[0; 32], &bytes[..]].concat()).unwrap_err();
        assert!(matches!(error, AttestError::Evidence { .. }), "{error}");
    }

    #[test]
    fn a_damaged_table_of_the_host_costs_the_certificates_only() {
        let certificate = Certificate { cert_type: CertType::Vcek, data: vec![1, 2, 3] };
        let table = CertificateTable::new(vec![certificate.clone()]).unwrap().encode();
        assert_eq!(certificates(&table), [certificate]);
        assert_eq!(certificates(&table[..30]), []);
        assert_eq!(certificates(&[]), []);
        assert_eq!(certificates(&[0; 0x4000]), []);
    }

    #[test]
    fn without_the_device_there_are_no_certificates() {
        let root = tempfile::tempdir().unwrap();
        let system = System::beneath(root.path());
        std::fs::create_dir_all(system.sys.join("kernel/config/tsm/report")).unwrap();
        let snp = Snp::open(system).unwrap();
        assert_eq!(snp.table_by_ioctl(&[0; 64]), b"");
    }
}
