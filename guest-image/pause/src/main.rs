//! The first process of a pod: it keeps the pod's namespaces alive, ends on SIGTERM or SIGINT, and, as
//! process 1 of a shared PID namespace, reaps what others leave behind.
//!
//! Built with the profile "freestanding" it needs neither a C library nor the standard library: a few KiB
//! that read no file, no argument and no environment. In the other profiles a panic unwinds, which needs
//! the standard library: there it is the same program on top of it, so that the workspace's ordinary
//! commands (check, clippy, test) take it along.

#![cfg_attr(panic = "abort", no_std, no_main)]

mod kernel;

use kernel::Signal;

/// Waits for signals, for ever or until one asks for the end. Returns the exit code.
///
/// The signals are blocked, not handled: the kernel throws away unhandled signals to process 1 of a
/// PID namespace, but keeps blocked ones until they are fetched.
fn pause() -> u8 {
    kernel::block_all_signals();
    loop {
        // Also before the first signal: children may have ended before the mask was set.
        kernel::reap_children();
        match kernel::wait_for_signal() {
            Signal::Terminate | Signal::Interrupt => return 0,
            Signal::Other => {}
        }
    }
}

#[cfg(not(panic = "abort"))]
fn main() -> std::process::ExitCode {
    pause().into()
}

#[cfg(panic = "abort")]
mod freestanding {
    //! What a C library would bring: the entry point and the end.

    use crate::{kernel, pause};

    /// Called by `_start`.
    extern "C" fn start() -> ! {
        kernel::exit(pause())
    }

    #[panic_handler]
    fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
        kernel::exit(101)
    }

    #[allow(unsafe_code)]
    mod entry {
        // SAFETY: this is the process's entry point, which the kernel enters once, with a valid stack
        // and without a return address. The frame pointer is cleared and the stack aligned to 16 bytes
        // as the x86-64 ABI asks (section 3.4.1), then a function is called that does not return.
        core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "xor ebp, ebp",
            "and rsp, -16",
            "call {start}",
            "ud2",
            start = sym super::start,
        );
    }
}
