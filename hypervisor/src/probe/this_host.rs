//! The host that this process runs on.

use std::arch::x86_64::CpuidResult;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::host::{Device, DeviceCall, Entry, Host, Kind, Part};
use super::user::{self, UserAccess};
use crate::Opened;
use crate::socket_access::Ownership;
use crate::sys;

/// The host that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisHost;

/// Longest time that a program may take: QEMU has many libraries, and the disk may be busy.
const LONGEST_RUN: Duration = Duration::from_secs(10);
/// Largest output of a program that is read; QEMU's list of objects has 1 KiB.
const MOST_OUTPUT: usize = 64 * 1024;

impl Host for ThisHost {
    fn read(&self, path: &Path, part: Part) -> io::Result<Vec<u8>> {
        // Opening a pipe or a device must neither wait nor start anything; only then is it known what it is.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let (Part::Whole(most) | Part::Beginning(most) | Part::End(most)) = part;
        if let Part::End(_) = part {
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(length.saturating_sub(most as u64)))?;
        }
        let mut bytes = Vec::new();
        let limit = most as u64 + u64::from(matches!(part, Part::Whole(_)));
        file.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            let problem = format!("it has more than {most} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        Ok(bytes)
    }

    fn look(&self, path: &Path) -> io::Result<Entry> {
        const ANY_EXECUTE: u32 = 0o111;
        let metadata = std::fs::metadata(path)?;
        let kind = match metadata.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_socket() => Kind::Socket,
            _ => Kind::Other,
        };
        let space = rustix::fs::statvfs(path)?;
        Ok(Entry {
            kind,
            size: if kind == Kind::File { metadata.len() } else { 0 },
            executable: kind == Kind::File && metadata.mode() & ANY_EXECUTE != 0,
            free: space.f_bavail.saturating_mul(space.f_frsize),
            ownership: Ownership::of(&metadata),
        })
    }

    fn list(&self, directory: &Path, most: usize) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            if names.len() == most {
                let problem = format!("it has more than {most} entries");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
            }
            names.push(entry?.file_name());
        }
        names.sort();
        Ok(names)
    }

    fn cpuid(&self, leaf: u32) -> CpuidResult {
        sys::cpuid(leaf)
    }

    fn device(&self, call: DeviceCall<'_>) -> io::Result<i32> {
        match call {
            DeviceCall::Open(device) => open(device, true).map(|_| 0),
            DeviceCall::KvmApiVersion => Ok(kvm()?.get_api_version()),
            DeviceCall::KvmCreateVm => kvm()?.create_vm().map(|_| 0).map_err(system_error),
            DeviceCall::KvmExtension(capability) => {
                Ok(kvm()?.check_extension_raw(capability.into()))
            }
            // The commands that ask need no right to write.
            DeviceCall::Sev { command, reply } => {
                sys::issue_sev_command(&open(Device::Sev, false)?, command, reply).map(|()| 0)
            }
        }
    }

    fn may_open(&self, user: &str, opened: Opened) -> UserAccess {
        user::may_open(user, &opened)
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> io::Result<Vec<u8>> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(Stdio::piped());
        sys::confine(&mut command, sys::Confinement::default());
        let mut child = command.spawn()?;
        let output = output_within(&mut child, Instant::now() + LONGEST_RUN);
        if output.is_err() {
            end_group(&child);
        }
        let status = child.wait()?;
        let output = output?;
        match (status.success(), status.signal()) {
            (true, _) => Ok(output),
            (false, Some(signal)) => {
                Err(io::Error::other(format!("it was killed by signal {signal}")))
            }
            (false, None) => Err(io::Error::other(format!("it failed ({status})"))),
        }
    }

    fn clock_synchronised(&self) -> io::Result<bool> {
        sys::clock_synchronised()
    }
}

fn kvm() -> io::Result<Kvm> {
    Kvm::new().map_err(system_error)
}

fn system_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn open(device: Device, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(device.path())
}

/// Everything a child prints until it ends.
fn output_within(child: &mut Child, deadline: Instant) -> io::Result<Vec<u8>> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it takes too long");
    let Some(stdout) = child.stdout.as_mut() else {
        return Err(io::Error::other("it has no output"));
    };
    let mut output = Vec::new();
    loop {
        let left = deadline.checked_duration_since(Instant::now()).ok_or_else(late)?;
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut watched = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
        match poll(&mut watched, Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut piece = [0; 4096];
        match stdout.read(&mut piece)? {
            0 => break,
            count => output.extend_from_slice(&piece[..count]),
        }
        if output.len() > MOST_OUTPUT {
            return Err(io::Error::other("it prints too much"));
        }
    }
    // It has closed its output, and may still run.
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Err(late());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(output)
}

/// Ends a child and what it has started: it leads a session of its own.
fn end_group(child: &Child) {
    // The child was not waited for, so its number is still its own. It may have ended: then nothing is left.
    let _ = rustix::process::kill_process_group(sys::pid_of(child), rustix::process::Signal::KILL);
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (directory, path)
    }

    #[test]
    fn programs_are_bounded() {
        let (_kept, path) = script("echo \"$1 $HOME.\"; read line; echo no >&2");
        assert_eq!(ThisHost.run(&path, &["--version"]).unwrap(), b"--version .\n");
        let (_kept, path) = script("exit 3");
        assert!(ThisHost.run(&path, &[]).unwrap_err().to_string().contains("exit status: 3"));
        let (_kept, path) =
            script("while :; do echo 0123456789012345678901234567890123456789; done");
        assert!(ThisHost.run(&path, &[]).unwrap_err().to_string().contains("too much"));
        assert_eq!(
            ThisHost.run(Path::new("/nowhere"), &[]).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_all_it_started() {
        for text in [
            // Its output stays open: the grandchild has it.
            "sleep 600 & echo $! >PIDS; wait",
            // Its output ends, and it runs on.
            "exec >&-; sleep 600 & echo $! >PIDS; wait",
        ] {
            let (kept, path) = script("");
            let pids = kept.path().join("pids");
            let text = text.replace("PIDS", pids.to_str().unwrap());
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            let mut command = Command::new(&path);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            sys::confine(&mut command, sys::Confinement::default());
            let mut child = command.spawn().unwrap();
            let grandchild =
                eventually(|| std::fs::read_to_string(&pids).ok()?.trim().parse().ok());
            assert!(runs(grandchild));
            let deadline = Instant::now() + Duration::from_millis(10);
            let error = output_within(&mut child, deadline).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            end_group(&child);
            assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
            eventually(|| (!runs(grandchild)).then_some(()));
        }
    }

    fn eventually<T>(mut found: impl FnMut() -> Option<T>) -> T {
        const LONGEST: Duration = Duration::from_secs(60);
        let start = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(start.elapsed() < LONGEST, "it does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether a process is there and more than an entry that nobody has waited for.
    fn runs(pid: u32) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // proc(5): the state is behind the name, which is in parentheses.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    }

    #[test]
    fn only_regular_files_are_read_and_only_so_much() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), directory.path()] {
            assert!(ThisHost.read(path, Part::Beginning(1)).is_err(), "{path:?}");
        }
        let file = directory.path().join("file");
        std::fs::write(&file, "abcdef").unwrap();
        let read = |part| ThisHost.read(&file, part);
        assert_eq!(read(Part::Whole(6)).unwrap(), b"abcdef");
        assert_eq!(read(Part::Whole(5)).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(Part::Beginning(2)).unwrap(), b"ab");
        assert_eq!(read(Part::End(2)).unwrap(), b"ef");
        assert_eq!(read(Part::End(20)).unwrap(), b"abcdef");
        let entry = ThisHost.look(&file).unwrap();
        assert_eq!((entry.kind, entry.size, entry.executable), (Kind::File, 6, false));
        let metadata = std::fs::metadata(&file).unwrap();
        let Ownership { uid, gid, mode } = entry.ownership;
        assert_eq!((uid, gid), (metadata.uid(), metadata.gid()));
        assert_eq!(mode | libc::S_IFREG, metadata.mode());
        assert_eq!(ThisHost.list(directory.path(), 2).unwrap(), ["file", "pipe"]);
        assert!(ThisHost.list(directory.path(), 1).is_err());
    }
}
