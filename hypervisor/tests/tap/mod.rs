//! A tap device in a network namespace of its own.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;

/// Lives as long as this value: a thread is in it.
pub(crate) struct Namespace {
    file: File,
    _alive: mpsc::Sender<()>,
}

impl Namespace {
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

pub(crate) fn in_new_namespace() -> Option<(Namespace, OwnedFd)> {
    let (tell, told) = mpsc::channel();
    let (alive, ended) = mpsc::channel();
    std::thread::spawn(move || {
        tell.send(make()).unwrap();
        let _ = ended.recv();
    });
    match told.recv().unwrap() {
        Ok((file, tap)) => Some((Namespace { file, _alive: alive }, tap)),
        Err(error) => {
            eprintln!("SKIPPED: no tap in a new network namespace ({error}); run as root");
            None
        }
    }
}

fn make() -> std::io::Result<(File, OwnedFd)> {
    // SAFETY: unshare takes flags only; CLONE_NEWNET changes this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let file = File::open("/proc/thread-self/ns/net")?;
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = i8::try_from(*from).unwrap();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok((file, tap.into()))
}
