//! A host that is described, and that keeps a record of what it is asked.

use std::arch::x86_64::CpuidResult;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::Opened;
use crate::probe::{
    Device, DeviceCall, Entry, Host, Kind, Ownership, Part, SevCommand, UserAccess, UserProblem,
};

/// What `/dev/kvm` of a host answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeKvm {
    pub(crate) api_version: i32,
    pub(crate) extensions: BTreeMap<u32, i32>,
}

/// A host.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeHost {
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    /// What is no file: sockets and directories.
    pub(crate) others: BTreeMap<PathBuf, Kind>,
    /// Whose they are; the rest is root's.
    pub(crate) owners: BTreeMap<PathBuf, Ownership>,
    pub(crate) programs: BTreeMap<PathBuf, BTreeMap<&'static str, &'static str>>,
    /// What this user may not see, devices too.
    pub(crate) denied: Vec<PathBuf>,
    /// What another user may not open.
    pub(crate) closed: Vec<PathBuf>,
    pub(crate) cpuid: BTreeMap<u32, [u32; 4]>,
    pub(crate) kvm: Option<FakeKvm>,
    pub(crate) sev: BTreeMap<u32, Vec<u8>>,
    pub(crate) devices: Vec<&'static str>,
    pub(crate) clock: bool,
    pub(crate) free: u64,
    /// Calls of devices, in order: the capability's or command's number, and the size of the reply.
    pub(crate) calls: RefCell<Vec<String>>,
}

fn failed<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl FakeHost {
    pub(crate) fn write(&mut self, path: &str, text: impl AsRef<[u8]>) {
        self.files.insert(path.into(), text.as_ref().to_owned());
    }

    pub(crate) fn remove(&mut self, path: &str) {
        assert!(self.files.remove(Path::new(path)).is_some(), "{path}");
    }

    pub(crate) fn recorded(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    fn allowed(&self, path: &Path) -> io::Result<()> {
        if self.denied.iter().any(|denied| denied == path) { failed(libc::EACCES) } else { Ok(()) }
    }

    fn kvm(&self) -> io::Result<&FakeKvm> {
        self.allowed(Path::new(Device::Kvm.path()))?;
        self.kvm.as_ref().map_or_else(|| failed(libc::ENOENT), Ok)
    }
}

impl Host for FakeHost {
    fn read(&self, path: &Path, part: Part) -> io::Result<Vec<u8>> {
        self.allowed(path)?;
        let Some(bytes) = self.files.get(path) else { return failed(libc::ENOENT) };
        match part {
            Part::Whole(most) if bytes.len() > most => Err(io::ErrorKind::FileTooLarge.into()),
            Part::Whole(_) => Ok(bytes.clone()),
            Part::Beginning(most) => Ok(bytes[..bytes.len().min(most)].to_vec()),
            Part::End(most) => Ok(bytes[bytes.len().saturating_sub(most)..].to_vec()),
        }
    }

    fn look(&self, path: &Path) -> io::Result<Entry> {
        const ROOTS: Ownership = Ownership { uid: 0, gid: 0, mode: 0o755 };
        let ownership = self.owners.get(path).copied().unwrap_or(ROOTS);
        let free = self.free;
        let entry = |kind, size, executable| Entry { kind, size, executable, free, ownership };
        if self.programs.contains_key(path) {
            return Ok(entry(Kind::File, 1, true));
        }
        if let Some(bytes) = self.files.get(path) {
            return Ok(entry(Kind::File, bytes.len() as u64, false));
        }
        self.others
            .get(path)
            .map_or_else(|| failed(libc::ENOENT), |&kind| Ok(entry(kind, 0, false)))
    }

    fn list(&self, directory: &Path, most: usize) -> io::Result<Vec<OsString>> {
        let inside = self.files.keys().filter(|path| path.parent() == Some(directory));
        let names: Vec<OsString> =
            inside.filter_map(|path| path.file_name()).map(OsString::from).collect();
        match names.len() {
            0 => failed(libc::ENOENT),
            count if count > most => Err(io::ErrorKind::FileTooLarge.into()),
            _ => Ok(names),
        }
    }

    fn may_open(&self, user: &str, opened: Opened) -> UserAccess {
        let Opened { path, how } = opened;
        let problem = format!("{user} may not {how} {}", path.display());
        if self.closed.contains(&path) { Err(UserProblem::Unfit(problem)) } else { Ok(()) }
    }

    fn cpuid(&self, leaf: u32) -> CpuidResult {
        let [eax, ebx, ecx, edx] = self.cpuid.get(&leaf).copied().unwrap_or_default();
        CpuidResult { eax, ebx, ecx, edx }
    }

    fn device(&self, call: DeviceCall<'_>) -> io::Result<i32> {
        let record = |text: String| self.calls.borrow_mut().push(text);
        match call {
            DeviceCall::Open(device) => {
                record(format!("open {}", device.path()));
                self.allowed(Path::new(device.path()))?;
                if self.devices.contains(&device.path()) { Ok(0) } else { failed(libc::ENODEV) }
            }
            DeviceCall::KvmApiVersion => {
                record("KVM_GET_API_VERSION".to_owned());
                Ok(self.kvm()?.api_version)
            }
            DeviceCall::KvmCreateVm => {
                record("KVM_CREATE_VM".to_owned());
                self.kvm().map(|_| 0)
            }
            DeviceCall::KvmExtension(number) => {
                record(format!("KVM_CHECK_EXTENSION {number}"));
                Ok(self.kvm()?.extensions.get(&number).copied().unwrap_or_default())
            }
            DeviceCall::Sev { command, reply } => {
                record(format!("SEV_ISSUE_CMD {} {}", command.number(), reply.len()));
                self.allowed(Path::new(Device::Sev.path()))?;
                if !self.devices.contains(&Device::Sev.path()) {
                    return failed(libc::ENOENT);
                }
                let Some(bytes) = self.sev.get(&command.number()) else { return failed(libc::EIO) };
                reply.copy_from_slice(bytes);
                Ok(0)
            }
        }
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> io::Result<Vec<u8>> {
        let Some(program) = self.programs.get(program) else { return failed(libc::ENOENT) };
        match program.get(arguments.join(" ").as_str()) {
            Some(output) => Ok(output.as_bytes().to_vec()),
            None => Err(io::Error::other("it failed (exit status: 1)")),
        }
    }

    fn clock_synchronised(&self) -> io::Result<bool> {
        Ok(self.clock)
    }
}

/// Replies of AMD's secure processor: `SEV_PLATFORM_STATUS` and `SNP_PLATFORM_STATUS`.
pub(crate) fn sev_replies(api: (u8, u8), initialised: bool) -> BTreeMap<u32, Vec<u8>> {
    let status = vec![api.0, api.1, 1, 0, 1, 0, 0, 21, 0, 0, 0, 0];
    let mut snp = vec![api.0, api.1, u8::from(initialised), u8::from(initialised), 21, 0, 0, 0];
    snp.extend([0, 0, 0, 0, 3, 0, 0, 0]);
    let tcb = [4, 0, 0, 0, 0, 0, 24, 219];
    snp.extend(tcb);
    snp.extend(tcb);
    BTreeMap::from([
        (SevCommand::PlatformStatus.number(), status),
        (SevCommand::SnpPlatformStatus.number(), snp),
    ])
}
