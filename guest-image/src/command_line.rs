//! The kernel's parameters: part of what is measured of a guest, so the same for every pod.

const PARAMETERS: &[&str] = &[
    "console=hvc0",
    "quiet",
    // A guest that panics ends at once, by a reset, which ends its VM.
    "panic=-1",
    "reboot=t",
    // The machine has no HPET to check the time stamp counter against; unchecked it is good, while
    // against jiffies it would be found unstable on a busy host.
    "tsc=reliable",
    "no_timer_check",
    // Known-answer tests of every cipher, a third of the boot: the kernel is a pinned, measured build.
    "cryptomgr.notests",
    // With one processor the kernel would rewrite each lock prefix, which is slow to emulate.
    "noreplace-smp",
    // Translates names in the formats of trace events, which nobody reads here; a tenth of the boot.
    "initcall_blacklist=trace_eval_init",
];

/// The whole line.
pub(crate) fn command_line() -> String {
    PARAMETERS.join(" ")
}
