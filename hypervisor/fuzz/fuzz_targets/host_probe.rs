//! A host on which every file, program, device and register answers with the fuzzer's bytes: each question
//! gets a report, the same findings each time, on lines of bounded length; labels are valid; never a panic.
#![no_main]

use std::arch::x86_64::CpuidResult;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use nacre_hypervisor::probe::{
    ContainerdPaths, DeviceCall, Entry, Facts, FirmwarePaths, Host, ImagePaths, ImageSummary, Kind,
    Needs, Ownership, Part, Question, Tee, UserAccess, UserProblem,
};
use nacre_hypervisor::{Accelerator, Opened};

struct Answering<'a>(&'a [u8]);

impl Answering<'_> {
    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| self.0.get(at + byte).copied().unwrap_or(0)))
    }
}

impl Host for Answering<'_> {
    fn read(&self, path: &Path, part: Part) -> io::Result<Vec<u8>> {
        // One processor or the other, so that what depends on it is reached.
        if path == Path::new("/proc/cpuinfo") && self.number(0) & 1 == 0 {
            let vendor = if self.number(0) & 2 == 0 { "AuthenticAMD" } else { "GenuineIntel" };
            return Ok(format!("vendor_id : {vendor}\nflags : svm sev_snp\n").into_bytes());
        }
        if path.starts_with("/sys/module") {
            return Ok(b"Y\n".to_vec());
        }
        let bytes = self.0;
        match part {
            Part::Whole(most) if bytes.len() > most => Err(io::ErrorKind::FileTooLarge.into()),
            Part::Whole(_) => Ok(bytes.to_vec()),
            Part::Beginning(most) => Ok(bytes[..bytes.len().min(most)].to_vec()),
            Part::End(most) => Ok(bytes[bytes.len().saturating_sub(most)..].to_vec()),
        }
    }

    fn look(&self, path: &Path) -> io::Result<Entry> {
        let kind = if path.ends_with("sock") { Kind::Socket } else { Kind::File };
        let size = u64::from(self.number(4));
        let ownership =
            Ownership { uid: self.number(4), gid: self.number(8), mode: self.number(12) & 0o7777 };
        Ok(Entry { kind, size, executable: true, free: size << 20, ownership })
    }

    fn list(&self, _directory: &Path, most: usize) -> io::Result<Vec<OsString>> {
        let text = String::from_utf8_lossy(self.0);
        Ok(text.lines().take(most).map(OsString::from).collect())
    }

    fn cpuid(&self, _leaf: u32) -> CpuidResult {
        let [eax, ebx, ecx, edx] = [0, 4, 8, 12].map(|at| self.number(at));
        CpuidResult { eax, ebx, ecx, edx }
    }

    fn device(&self, call: DeviceCall<'_>) -> io::Result<i32> {
        match call {
            DeviceCall::KvmApiVersion => Ok(12),
            DeviceCall::KvmExtension(_) => Ok(self.number(0).cast_signed()),
            DeviceCall::Sev { reply, .. } => {
                for (to, from) in reply.iter_mut().zip(self.0) {
                    *to = *from;
                }
                Ok(0)
            }
            DeviceCall::Open(_) | DeviceCall::KvmCreateVm => Ok(0),
        }
    }

    fn may_open(&self, _user: &str, _opened: Opened) -> UserAccess {
        match self.number(8) % 3 {
            0 => Ok(()),
            1 => Err(UserProblem::Unseen),
            _ => Err(UserProblem::Unfit("it is closed".to_owned())),
        }
    }

    fn run(&self, _program: &Path, _arguments: &[&str]) -> io::Result<Vec<u8>> {
        Ok(self.0.to_vec())
    }

    fn clock_synchronised(&self) -> io::Result<bool> {
        Ok(self.number(0) & 4 == 0)
    }
}

fn question() -> Question {
    Question {
        configuration: None,
        qemu: "/qemu".into(),
        user: "nacre-vm".to_owned(),
        accelerator: Accelerator::Auto,
        firmware: FirmwarePaths {
            plain: vec![PathBuf::from("/plain")],
            snp: "/snp".into(),
            tdx: "/tdx".into(),
        },
        image: ImagePaths {
            directory: "/image".into(),
            manifest: "manifest.json",
            read: |bytes| match std::str::from_utf8(bytes) {
                Ok(text) => Ok(ImageSummary { summary: text.to_owned(), files: Vec::new() }),
                Err(error) => Err(error.to_string()),
            },
        },
        quote_generation: None,
        storage: "/storage".into(),
        needs: Needs { memory_mib: 512, host_mib: 64, scratch_disk_mib: 64 },
        containerd: ContainerdPaths {
            config: "/containerd/config.toml".into(),
            program_dirs: vec!["/bin".into()],
            default_shim_config: "/config.toml".into(),
            shim_config: Some("/config.toml".into()),
            read: |bytes| match bytes.first() {
                Some(b'#') => Ok(Tee::Snp),
                _ => Err(String::from_utf8_lossy(bytes).into_owned()),
            },
        },
    }
}

fuzz_target!(|bytes: &[u8]| {
    let question = question();
    let facts = Facts::gather(&Answering(bytes), &question);
    let ids = |tee| -> Vec<&str> {
        let findings = facts.report(&question, tee).findings;
        for finding in &findings {
            for text in [&finding.found, &finding.advice] {
                assert!(text.chars().count() <= 401 && !text.chars().any(char::is_control));
            }
        }
        findings.iter().map(|finding| finding.id).collect()
    };
    let [first, rest @ ..] = Tee::ALL.map(ids);
    assert!(rest.iter().all(|other| *other == first));
    for label in facts.labels(Tee::Snp, &Tee::ALL.map(|tee| facts.report(&question, tee))) {
        let value = label.value.as_bytes();
        assert!(value.len() <= 63 && value.first().is_some_and(u8::is_ascii_alphanumeric));
        assert!(value.last().is_some_and(u8::is_ascii_alphanumeric));
        assert!(value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)));
    }
});
