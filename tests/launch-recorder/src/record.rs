//! The record as the preloaded library wrote it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Most bytes of a record, and of the contents beside it.
const LARGEST: u64 = 256 << 20;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file cannot be read. Without it, nothing was recorded: QEMU never came to KVM.
    #[error("failed to read {path}: {source}; did QEMU start, and with the library preloaded?", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// A line is not one of the library's.
    #[error("line {number} of the record: {source}")]
    Line {
        /// Counted from one.
        number: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A line refers to contents that are not there.
    #[error("the contents of {call} are not in the record")]
    Contents {
        /// Whose.
        call: &'static str,
    },
    /// The calls are not one whole launch.
    #[error("not a whole launch: {0}")]
    Incomplete(String),
}

/// One call of QEMU's, with what matters of its arguments. Addresses and sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the kernel's own names (abi)")]
pub enum Call {
    CreateVm {
        vm_type: u64,
    },
    MemoryRegion {
        gpa: u64,
        size: u64,
        guest_memfd: bool,
    },
    MemoryAttributes {
        gpa: u64,
        size: u64,
        private: bool,
    },
    SevInit2 {
        vmsa_features: u64,
        ghcb_version: u16,
    },
    SnpLaunchStart {
        policy: u64,
        workarounds: Bytes,
    },
    SnpLaunchUpdate {
        gpa: u64,
        length: u64,
        page_type: u8,
        contents: Option<Extent>,
    },
    VcpuState {
        registers: Bytes,
        special_registers: Bytes,
    },
    SnpLaunchFinish {
        host_data: Bytes,
        author_key: bool,
        vcek_disabled: bool,
        id_block: Option<Bytes>,
        id_auth: Option<Bytes>,
    },
    TdxInitVm {
        attributes: u64,
        xfam: u64,
        mr_config_id: Bytes,
        mr_owner: Bytes,
        mr_owner_config: Bytes,
        cpuid: Bytes,
    },
    TdxInitVcpu {
        rcx: u64,
    },
    TdxInitMemRegion {
        gpa: u64,
        length: u64,
        measured: bool,
        contents: Extent,
    },
    TdxFinalizeVm,
    /// The first processor ran: the guest would be executing now.
    Run,
}

/// Bytes within a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(text).map(Bytes).map_err(D::Error::custom)
    }
}

/// A piece of the contents file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    offset: u64,
    length: u64,
}

/// All calls of one QEMU, in order.
#[derive(Debug)]
pub struct Record {
    /// The calls.
    pub calls: Vec<Call>,
    contents: Vec<u8>,
}

impl Record {
    /// Reads a record and the contents beside it.
    ///
    /// # Errors
    /// If it was not written whole by the library.
    pub fn read(path: &Path) -> Result<Record, RecordError> {
        let lines = read_bounded(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".contents");
        let contents = read_bounded(Path::new(&beside))?;
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let calls = lines
            .enumerate()
            .map(|(index, line)| {
                let number = index + 1;
                serde_json::from_slice(line).map_err(|source| RecordError::Line { number, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Record { calls, contents })
    }

    /// The bytes that a line refers to: as many as `length`, which the call itself names.
    pub(crate) fn contents(
        &self,
        call: &'static str,
        extent: Extent,
        length: u64,
    ) -> Result<&[u8], RecordError> {
        let missing = || RecordError::Contents { call };
        if extent.length != length {
            return Err(missing());
        }
        let start = usize::try_from(extent.offset).map_err(|_| missing())?;
        let length = usize::try_from(length).map_err(|_| missing())?;
        let end = start.checked_add(length).ok_or_else(missing)?;
        self.contents.get(start..end).ok_or_else(missing)
    }
}

/// Bytes of a field whose size is fixed.
pub(crate) fn fixed<const N: usize>(
    name: &'static str,
    bytes: &Bytes,
) -> Result<[u8; N], RecordError> {
    bytes.0.as_slice().try_into().map_err(|_| {
        RecordError::Incomplete(format!("{name} has {} bytes instead of {N}", bytes.0.len()))
    })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, RecordError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| RecordError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snp::SnpLaunch;
    use crate::tdx::TdxLaunch;

    const SNP: [&str; 6] = [
        r#"{"call":"create-vm","vm_type":4}"#,
        r#"{"call":"sev-init2","vmsa_features":32,"ghcb_version":2}"#,
        r#"{"call":"snp-launch-start","policy":196608,"workarounds":"00"}"#,
        r#"{"call":"snp-launch-update","gpa":4096,"length":4096,"page_type":1,"contents":{"offset":1,"length":4096}}"#,
        r#"{"call":"snp-launch-finish","host_data":"0707070707070707070707070707070707070707070707070707070707070707","author_key":false,"vcek_disabled":true}"#,
        r#"{"call":"run"}"#,
    ];

    const TDX: [&str; 5] = [
        r#"{"call":"create-vm","vm_type":5}"#,
        r#"{"call":"tdx-init-vm","attributes":1,"xfam":3,"mr_config_id":"CONFIG","mr_owner":"CONFIG","mr_owner_config":"CONFIG","cpuid":""}"#,
        r#"{"call":"tdx-init-mem-region","gpa":0,"length":4096,"measured":true,"contents":{"offset":0,"length":4096}}"#,
        r#"{"call":"tdx-finalize-vm"}"#,
        r#"{"call":"run"}"#,
    ];

    fn record(lines: &[&str]) -> Result<Record, RecordError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let text = lines.join("\n").replace("CONFIG", &"09".repeat(48));
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("record.contents"), [7; 4097]).unwrap();
        Record::read(&path)
    }

    fn refused(lines: &[&str]) -> String {
        let record = record(lines).unwrap();
        let snp = SnpLaunch::of(&record).map(|_| ());
        let tdx = TdxLaunch::of(&record).map(|_| ());
        format!("{} / {}", snp.unwrap_err(), tdx.unwrap_err())
    }

    #[test]
    fn whole_launches_are_found() {
        let snp = SnpLaunch::of(&record(&SNP).unwrap()).unwrap();
        assert_eq!((snp.policy, snp.guest_features), (0x3_0000, 33));
        assert_eq!(snp.host_data, [7; 32]);
        assert!(snp.vcek_disabled && !snp.author_key && snp.id_block.is_none());
        let mut digest = nacre_evidence::snp::LaunchDigest::new();
        digest.update_range(4096, &[7; 4096]);
        assert_eq!(snp.digest(), digest.finish());

        let tdx = TdxLaunch::of(&record(&TDX).unwrap()).unwrap();
        assert_eq!((tdx.attributes, tdx.xfam, tdx.mr_owner), (1, 3, [9; 48]));
        assert_eq!(tdx.regions.len(), 1);
        let unmeasured =
            record(&[TDX[0], TDX[1], &TDX[2].replace("true", "false"), TDX[3], TDX[4]]);
        let unmeasured = TdxLaunch::of(&unmeasured.unwrap()).unwrap();
        assert_ne!(unmeasured.mr_td(), tdx.mr_td());
    }

    /// A record that lacks a call, or has one twice, is no launch.
    #[test]
    fn each_call_is_there_once_and_in_order() {
        for whole in [&SNP[..], &TDX] {
            for index in 0..whole.len() {
                // A launch may have any number of pages.
                let any_number = whole[index].contains("contents");
                let mut lines = whole.to_vec();
                let line = lines.remove(index);
                if !any_number {
                    refused(&lines);
                    lines.insert(index, line);
                    lines.insert(index, line);
                    refused(&lines);
                }
                if index > 0 {
                    let mut lines = whole.to_vec();
                    lines.swap(index - 1, index);
                    refused(&lines);
                }
            }
        }
    }

    #[test]
    fn contents_are_as_long_as_the_call_says() {
        for contents in [
            r#"{"offset":2,"length":4096}"#,
            r#"{"offset":0,"length":4095}"#,
            r#"{"offset":18446744073709551615,"length":4096}"#,
        ] {
            let snp = SNP[3].replace(r#"{"offset":1,"length":4096}"#, contents);
            let mut lines = SNP;
            lines[3] = &snp;
            assert!(refused(&lines).contains("KVM_SEV_SNP_LAUNCH_UPDATE are not in the record"));
            let tdx = TDX[2].replace(r#"{"offset":0,"length":4096}"#, contents);
            let mut lines = TDX;
            lines[2] = &tdx;
            assert!(refused(&lines).contains("KVM_TDX_INIT_MEM_REGION are not in the record"));
        }
    }

    #[test]
    fn a_line_is_one_of_the_librarys() {
        for line in [
            "",
            "{}",
            r#"{"call":"reboot"}"#,
            r#"{"call":"create-vm"}"#,
            r#"{"call":"create-vm","vm_type":4,"more":1}"#,
            r#"{"call":"tdx-init-vcpu","rcx":-1}"#,
            r#"{"call":"snp-launch-start","policy":1,"workarounds":"0"}"#,
        ] {
            let error = record(&[SNP[0], &format!("x{line}")]).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of the record"), "{error}");
            if !line.is_empty() {
                assert!(record(&[line]).is_err(), "{line}");
            }
        }
        let error = Record::read(Path::new("/nowhere/record")).unwrap_err().to_string();
        assert!(error.contains("did QEMU start"), "{error}");
    }
}
