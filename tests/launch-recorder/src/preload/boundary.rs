//! The only unsafe code: the C functions that QEMU calls instead of the C library's, the calls to the kernel
//! behind them, and the page that KVM shares with QEMU. The crate's unit tests have the functions under other
//! names, so that they do not call them by mistake.

#![deny(unsafe_op_in_unsafe_fn)]
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Answer;
use super::abi::RUN_IMMEDIATE_EXIT;

const SYS_MMAP: c_long = 9;
const SYS_IOCTL: c_long = 16;
const SYS_OPENAT: c_long = 257;
const SYS_MEMFD_CREATE: c_long = 319;
const AT_FDCWD: c_int = -100;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
}

/// `int ioctl(int fd, unsigned long request, ...)`: on x86-64 a third argument is where it would be without
/// the dots.
///
/// # Safety
/// As for the kernel's `ioctl`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    let errno = match super::ioctl(fd, request, argument) {
        Answer::Kernel => return kernel_ioctl(fd, request, argument),
        Answer::Done(value) => return value,
        Answer::Error(errno) => errno,
        Answer::Idle(page) => super::idle(&page),
    };
    // SAFETY: the C library's own location of this thread's errno, valid for as long as the thread.
    unsafe { *__errno_location() = errno as c_int };
    -1
}

/// `int open(const char *path, int flags, ...)`.
///
/// # Safety
/// `path` is a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { open_path(path, flags, mode) }
}

/// `open` of programs with 64-bit file offsets.
///
/// # Safety
/// `path` is a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { open_path(path, flags, mode) }
}

/// `open` without a mode, of programs built with `_FORTIFY_SOURCE`.
///
/// # Safety
/// `path` is a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { open_path(path, flags, 0) }
}

/// [`__open_2`] with 64-bit file offsets.
///
/// # Safety
/// `path` is a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise is ours.
    unsafe { open_path(path, flags, 0) }
}

/// # Safety
/// `path` is a C string.
unsafe fn open_path(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let path = if path.is_null() {
        path
    } else {
        // SAFETY: not null, and a C string as the caller promised.
        let name = unsafe { CStr::from_ptr(path) };
        if super::is_secure_processor(name.to_bytes()) { c"/dev/null".as_ptr() } else { path }
    };
    // SAFETY: openat only reads the string; it checks the pointer itself.
    descriptor(unsafe { syscall(SYS_OPENAT, AT_FDCWD, path, flags, mode) })
}

/// What the kernel itself answers; sets errno.
pub(crate) fn kernel_ioctl(fd: RawFd, request: u64, argument: u64) -> c_int {
    // SAFETY: passed on as QEMU gave it, or with the address of a buffer of the size that `request` encodes
    // (`kernel_ioctl_with`). The kernel checks both.
    descriptor(unsafe { syscall(SYS_IOCTL, fd, request, argument) })
}

/// An `ioctl` on a structure of ours. `structure` is as large as the request says, or as the count in it says.
pub(crate) fn kernel_ioctl_with(fd: RawFd, request: u64, structure: &mut [u8]) -> c_int {
    kernel_ioctl(fd, request, structure.as_mut_ptr() as u64)
}

/// A file in memory.
pub(crate) fn memory_file(size: u64) -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: c_int = 1;
    // SAFETY: memfd_create only reads the name, which is a C string.
    let fd = unsafe { syscall(SYS_MEMFD_CREATE, c"guest-memory".as_ptr(), CLOSE_ON_EXEC) };
    let fd = descriptor(fd);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file.into())
}

/// The page of `struct kvm_run` that KVM and QEMU share for one processor.
pub(crate) struct RunPage(*mut u8);

// SAFETY: the mapping is never taken away, and belongs to the process, not to a thread.
unsafe impl Send for RunPage {}

// SAFETY: it is only read, and atomically.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps it once more, beside QEMU's own mapping.
    pub(crate) fn map(vcpu: RawFd) -> io::Result<RunPage> {
        const LENGTH: usize = 4096;
        // SAFETY: a new mapping at an address of the kernel's choice takes nobody's memory.
        let address = unsafe {
            syscall(
                SYS_MMAP,
                ptr::null_mut::<c_void>(),
                LENGTH,
                PROT_READ_WRITE,
                MAP_SHARED,
                vcpu,
                0_i64,
            )
        };
        if address == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(RunPage(address as *mut u8))
    }

    /// Whether QEMU wants the processor's thread back.
    pub(crate) fn is_wanted_back(&self) -> bool {
        // SAFETY: within the page, which stays mapped. QEMU writes this byte from a signal handler, or from
        // another thread, whence the atomic type, whose layout is that of a byte.
        let immediate_exit = unsafe { &*self.0.add(RUN_IMMEDIATE_EXIT).cast::<AtomicU8>() };
        immediate_exit.load(Ordering::Acquire) != 0
    }
}

/// The kernel's answers of these calls are numbers of 32 bits.
#[allow(clippy::cast_possible_truncation)]
const fn descriptor(answer: c_long) -> c_int {
    answer as c_int
}
