//! The library that is preloaded into QEMU (`LD_PRELOAD`).
//!
//! It stands between QEMU and the kernel: where QEMU asks KVM for a confidential VM it answers as a host with
//! that hardware would, runs a plain VM behind it, and writes down what QEMU asked for, in order. Everything
//! else goes to the kernel as it is. It is as strict as the kernel where a launch can be wrong: pages that
//! were not made private before, commands out of order and reserved bits are refused.
//!
//! No guest ever runs: its processors idle until QEMU is asked to end.
//!
//! The record is JSON, one object a line, in the file that `NACRE_LAUNCH_RECORD` names, which must not exist
//! before; pages and other bytes are in a second file beside it, `*.contents`. Without the variable nothing is
//! changed or recorded. This code runs in QEMU's process and trusts it; it is for tests only.

// Shared with the crate that reads the record, which uses the rest of it.
#[cfg(not(any(test, clippy)))]
#[allow(dead_code)]
mod abi;
#[cfg(test)]
mod bench;
// In the crate's unit tests nobody calls the C functions.
#[cfg_attr(test, allow(dead_code))]
mod boundary;
mod journal;
mod kvm;
mod memory;
mod private;
mod snp;
mod tdx;

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

#[cfg(any(test, clippy))]
use crate::abi;
use boundary::RunPage;
use kvm::Host;

/// What becomes of a call.
enum Answer {
    /// The kernel answers it.
    Kernel,
    /// It succeeds with this value.
    Done(c_int),
    /// It fails with this error number.
    Error(Errno),
    /// It takes as long as QEMU lets the processor of this page run.
    Idle(Arc<RunPage>),
}

/// Error numbers of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errno {
    Interrupted = 4,
    Io = 5,
    TooBig = 7,
    Fault = 14,
    Invalid = 22,
    NotTerminal = 25,
}

type Answered = Result<c_int, Errno>;

static HOST: Mutex<Option<Host>> = Mutex::new(None);

/// Judges one `ioctl`.
fn ioctl(fd: c_int, request: u64, argument: u64) -> Answer {
    if !kvm::is_ours(request) {
        return Answer::Kernel;
    }
    let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    if host.is_none() {
        *host = Host::recording();
    }
    host.as_mut().map_or(Answer::Kernel, |host| host.ioctl(fd, request, argument))
}

/// A guest without anything to do. QEMU takes a processor's thread back by a signal, as from KVM.
fn idle(page: &RunPage) -> Errno {
    const SHORT: Duration = Duration::from_millis(5);
    while !page.is_wanted_back() {
        thread::sleep(SHORT);
    }
    Errno::Interrupted
}

/// Whether a path is that of AMD's secure processor, which is there then: its `ioctl`s are answered here.
fn is_secure_processor(path: &[u8]) -> bool {
    path == b"/dev/sev" && std::env::var_os(journal::VARIABLE).is_some()
}
