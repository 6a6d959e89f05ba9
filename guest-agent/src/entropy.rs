//! Keys and nonces come from the kernel's generator, and that is seeded by the processor alone.
//!
//! The measured command line lets RDSEED and RDRAND count (`random.trust_cpu=on`) and a seed of the
//! firmware's not (`random.trust_bootloader=off`). The guest image has no driver for a random device of
//! the host's. In a TEE the instructions are the hardware's, where the host cannot stand between; the
//! kernel ends such a guest by itself if they fail at its start.

use rustix::rand::{GetRandomFlags, getrandom};

/// Why there is no randomness to make keys of.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntropyError {
    /// The processor that the VM shows has no such instruction.
    #[error(
        "the VM's processor has neither RDSEED nor RDRAND, so keys cannot be made: launch it with a \
         processor model that has them (QEMU: -cpu host, max or EPYC)"
    )]
    NoInstruction,
    /// The kernel did not take them for enough.
    #[error(
        "the kernel's random generator is not seeded, although the processor has RDSEED or RDRAND: \
         they fail, or random.trust_cpu=on is missing on the kernel's command line"
    )]
    NotSeeded,
}

/// Checks that the kernel's generator was seeded by the processor. To be asked before anything else of
/// the guest runs: later it may be seeded by the timing of interrupts, which the host makes.
pub(crate) fn check() -> Result<(), EntropyError> {
    if !std::arch::is_x86_feature_detected!("rdseed")
        && !std::arch::is_x86_feature_detected!("rdrand")
    {
        return Err(EntropyError::NoInstruction);
    }
    let mut byte = [0_u8; 1];
    match getrandom(&mut byte, GetRandomFlags::NONBLOCK) {
        Ok(1) => Ok(()),
        _ => Err(EntropyError::NotSeeded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_machine_is_seeded_if_its_processor_can() {
        let able = std::arch::is_x86_feature_detected!("rdseed")
            || std::arch::is_x86_feature_detected!("rdrand");
        assert_eq!(check(), if able { Ok(()) } else { Err(EntropyError::NoInstruction) });
    }
}
