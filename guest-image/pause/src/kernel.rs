//! The five system calls that are needed (x86-64), each behind a safe function.

#![allow(unsafe_code)]

use core::arch::asm;

const RT_SIGPROCMASK: usize = 14;
#[cfg(panic = "abort")]
const EXIT_GROUP: usize = 231;
const WAIT4: usize = 61;
const RT_SIGTIMEDWAIT: usize = 128;

const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const ANY_CHILD: usize = usize::MAX; // pid -1

const SIGINT: isize = 2;
const SIGTERM: isize = 15;

/// All 64 signals. The kernel's own `sigset_t` is 8 bytes; it leaves SIGKILL and SIGSTOP out by itself.
static EVERY_SIGNAL: u64 = u64::MAX;
const SIGSET_SIZE: usize = size_of::<u64>();

/// What arrived.
pub(crate) enum Signal {
    /// SIGTERM: the pod ends.
    Terminate,
    /// SIGINT: the same, from a terminal.
    Interrupt,
    /// Anything else, SIGCHLD among it, or an interrupted wait.
    Other,
}

/// Keeps every signal pending until it is fetched.
pub(crate) fn block_all_signals() {
    let every = (&raw const EVERY_SIGNAL).expose_provenance();
    // SAFETY: the second argument points to 8 readable bytes that live for ever, the third is null
    // (the old mask is not wanted), the fourth is the size of the mask.
    unsafe { system_call(RT_SIGPROCMASK, [SIG_SETMASK, every, 0, SIGSET_SIZE]) };
}

/// Sleeps until a signal arrives and fetches it.
pub(crate) fn wait_for_signal() -> Signal {
    let every = (&raw const EVERY_SIGNAL).expose_provenance();
    // SAFETY: the first argument points to 8 readable bytes that live for ever; the second and third are
    // null (neither details nor a timeout are wanted), the fourth is the size of the mask.
    match unsafe { system_call(RT_SIGTIMEDWAIT, [every, 0, 0, SIGSET_SIZE]) } {
        SIGTERM => Signal::Terminate,
        SIGINT => Signal::Interrupt,
        _ => Signal::Other,
    }
}

/// Takes the exit status of every child that has ended.
pub(crate) fn reap_children() {
    // SAFETY: the pointers for status and usage are null: the kernel writes to no memory of ours.
    while unsafe { system_call(WAIT4, [ANY_CHILD, 0, WNOHANG, 0]) } > 0 {}
}

/// Ends the process.
#[cfg(panic = "abort")]
pub(crate) fn exit(code: u8) -> ! {
    loop {
        // SAFETY: takes no pointers.
        unsafe { system_call(EXIT_GROUP, [code.into(), 0, 0, 0]) };
    }
}

/// Makes a system call with up to four arguments and returns its result, negative for an error.
///
/// # Safety
///
/// Arguments that the call takes for pointers must be null or point to memory that the call may read
/// or write as it does.
unsafe fn system_call(number: usize, arguments: [usize; 4]) -> isize {
    let result: isize;
    // SAFETY: the x86-64 convention for system calls: number in rax, arguments in rdi, rsi, rdx, r10;
    // rcx and r11 are lost, nothing else changes, the stack is not used. What the pointers allow is the
    // caller's promise; `asm!` is taken to read and write memory.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
