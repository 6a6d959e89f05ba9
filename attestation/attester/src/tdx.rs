//! Intel TDX: quotes through configfs-tsm, the TD's configuration by the driver's ioctl.
//!
//! A quote is made on the host, by its quoting enclave, and anything may come back from there: in the
//! guest it is believed in nothing. `MRCONFIGID` is read from the TDREPORT, which the TDX module itself
//! writes into the guest's memory.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nacre_evidence::tdx::{EVENT_LOG_LIMIT, EventLog, Quote};
use nacre_evidence::{Evidence, EvidenceError};
use sha2::{Digest as _, Sha384};

use crate::system::{Kind, System};
use crate::tsm::{Tsm, read_bounded};
use crate::{AttestError, Attester, blocking, failed, raw};

const NAME: &str = "the host's quoting service";
/// Where a TDREPORT has `TDINFO.MRCONFIGID` (TDX Module ABI Specification, `TDREPORT_STRUCT`: 256 bytes
/// of `REPORTMACSTRUCT`, 239 of `TEE_TCB_INFO`, 17 reserved, then 8, 8 and 48 bytes before it).
const MR_CONFIG_ID: std::ops::Range<usize> = 576..624;

/// Register, kind and algorithm of events that are added to the log (TCG PC Client Platform Firmware
/// Profile, `TCG_PCR_EVENT2`): RTMR3, `EV_EVENT_TAG`, SHA-384.
const RTMR3: u32 = 4;
const EV_EVENT_TAG: u32 = 6;
const ALG_SHA384: u16 = 0x000c;

/// The guest driver of TDX.
#[derive(Debug, Clone)]
pub(crate) struct Tdx {
    tsm: Tsm,
    system: System,
    /// Events that were measured at run time, as the log has them. Held while the register is extended.
    added: Arc<Mutex<Vec<u8>>>,
}

impl Tdx {
    /// The driver must be loaded.
    pub(crate) fn open(system: System) -> Result<Tdx, AttestError> {
        Ok(Tdx { tsm: Tsm::open(&system, "tdx_guest")?, system, added: Arc::default() })
    }

    fn evidence_now(&self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        // The log must be the one that the quote's registers are about.
        let added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.tsm.ask(report_data)?;
        let quote = Quote::parse(&answer.report)
            .map_err(|cause| AttestError::Evidence { source_name: NAME, cause })?;
        if quote.body().report_data != *report_data {
            return Err(AttestError::OtherReportData(NAME));
        }
        let event_log = self.event_log(&added)?;
        Ok(Evidence::Tdx { quote, event_log })
    }

    /// The firmware's log, as ACPI hands it to the kernel, and what was added since.
    fn event_log(&self, added: &[u8]) -> Result<Option<Vec<u8>>, AttestError> {
        let path = self.system.sys.join("firmware/acpi/tables/data/CCEL");
        let mut log = match read_bounded(&path, EVENT_LOG_LIMIT as u64) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        if !added.is_empty() {
            let invalid =
                |cause| AttestError::Evidence { source_name: "the firmware's event log", cause };
            log.truncate(EventLog::parse(&log).map_err(invalid)?.size());
            log.extend_from_slice(added);
            if log.len() > EVENT_LOG_LIMIT {
                let what = "event log in bytes";
                return Err(invalid(EvidenceError::TooLarge { what, limit: EVENT_LOG_LIMIT }));
            }
        }
        Ok(Some(log))
    }

    fn mr_config_id(&self) -> Result<Vec<u8>, AttestError> {
        let path = self.system.dev.join("tdx_guest");
        let device = OpenOptions::new().read(true).write(true).open(&path);
        let report = device.and_then(|device| Ok(raw::td_report(&device)?));
        Ok(report.map_err(failed("get a TDREPORT from", &path))?[MR_CONFIG_ID].to_vec())
    }

    fn extend_now(&self, event: &[u8]) -> Result<(), AttestError> {
        let register = self.register();
        if !register.exists() {
            return Err(AttestError::NoRuntimeRegister(Kind::Tdx));
        }
        let digest: [u8; 48] = Sha384::digest(event).into();
        let entry = log_entry(&digest, event);
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        if added.len() + entry.len() > EVENT_LOG_LIMIT / 2 {
            let (source_name, what) = ("this guest", "events measured at run time, in bytes");
            let cause = EvidenceError::TooLarge { what, limit: EVENT_LOG_LIMIT / 2 };
            return Err(AttestError::Evidence { source_name, cause });
        }
        fs::write(&register, digest).map_err(failed("extend", &register))?;
        added.extend(entry);
        Ok(())
    }

    /// Writing 48 bytes to it extends it (`Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest`).
    fn register(&self) -> PathBuf {
        self.system.sys.join("devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
    }
}

fn log_entry(digest: &[u8; 48], event: &[u8]) -> Vec<u8> {
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    let mut entry = Vec::with_capacity(66 + event.len());
    entry.extend(RTMR3.to_le_bytes());
    entry.extend(EV_EVENT_TAG.to_le_bytes());
    entry.extend(1_u32.to_le_bytes());
    entry.extend(ALG_SHA384.to_le_bytes());
    entry.extend(digest);
    entry.extend(length.to_le_bytes());
    entry.extend(event);
    entry
}

#[async_trait]
impl Attester for Tdx {
    fn kind(&self) -> Kind {
        Kind::Tdx
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Evidence, AttestError> {
        let this = self.clone();
        blocking(move || this.evidence_now(&report_data)).await
    }

    async fn host_data(&self) -> Result<Vec<u8>, AttestError> {
        let this = self.clone();
        blocking(move || this.mr_config_id()).await
    }

    async fn extend_runtime(&self, event: &[u8]) -> Result<(), AttestError> {
        let (this, event) = (self.clone(), event.to_vec());
        blocking(move || this.extend_now(&event)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tdx() -> (tempfile::TempDir, Tdx) {
        let root = tempfile::tempdir().unwrap();
        let system = System::beneath(root.path());
        fs::create_dir_all(system.sys.join("kernel/config/tsm/report")).unwrap();
        fs::create_dir_all(system.sys.join("firmware/acpi/tables/data")).unwrap();
        let tdx = Tdx::open(system).unwrap();
        (root, tdx)
    }

    /// The log's first event, which names SHA-384 as its only algorithm.
    fn firmware_log() -> Vec<u8> {
        let mut event = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0".to_vec();
        event.extend([0x0c, 0, 48, 0, 0]);
        let mut log = [0_u32, 3].map(u32::to_le_bytes).concat();
        log.extend([0; 20]);
        log.extend(u32::try_from(event.len()).unwrap().to_le_bytes());
        log.extend(event);
        log
    }

    #[tokio::test]
    async fn events_at_run_time_extend_the_register_and_the_log() {
        let (_root, tdx) = tdx();
        let event = b"AAEL event";
        let without = tdx.extend_runtime(event).await.unwrap_err();
        assert!(matches!(without, AttestError::NoRuntimeRegister(Kind::Tdx)), "{without}");
        assert!(tdx.event_log(&[]).unwrap().is_none(), "no firmware, no log");

        let path = tdx.system.sys.join("firmware/acpi/tables/data/CCEL");
        fs::write(&path, [&firmware_log()[..], &[0xff; 100]].concat()).unwrap();
        fs::create_dir_all(tdx.register().parent().unwrap()).unwrap();
        fs::write(tdx.register(), [0; 48]).unwrap();
        tdx.extend_runtime(event).await.unwrap();
        let digest: [u8; 48] = Sha384::digest(event).into();
        assert_eq!(fs::read(tdx.register()).unwrap(), digest);
        let added = tdx.added.lock().unwrap().clone();
        let log = EventLog::parse(&tdx.event_log(&added).unwrap().unwrap()).unwrap();
        assert_eq!(log.events().len(), 1);
        assert_eq!((log.events()[0].digest, &log.events()[0].data[..]), (digest, &event[..]));
        let expected: [u8; 48] =
            Sha384::new().chain_update([0; 48]).chain_update(digest).finalize().into();
        assert_eq!(log.replay(), [[0; 48], [0; 48], [0; 48], expected]);
    }

    #[tokio::test]
    async fn events_cannot_fill_the_log() {
        let (_root, tdx) = tdx();
        fs::create_dir_all(tdx.register().parent().unwrap()).unwrap();
        fs::write(tdx.register(), [0; 48]).unwrap();
        let error = tdx.extend_runtime(&vec![0; EVENT_LOG_LIMIT / 2]).await.unwrap_err();
        assert!(error.to_string().contains("exceeds the limit"), "{error}");
        assert_eq!(fs::read(tdx.register()).unwrap(), [0; 48], "not extended");
    }

    #[tokio::test]
    async fn without_the_device_the_configuration_is_unknown() {
        let (_root, tdx) = tdx();
        let error = tdx.host_data().await.unwrap_err().to_string();
        assert!(error.contains("failed to get a TDREPORT from") && error.contains("dev/tdx_guest"));
    }
}
