//! What firmware and kernel extend the run-time registers with, as far as the files tell.
//!
//! Rules, of edk2 202505 and later and Linux 6.9 and later, with QEMU 10.1 and later (which hands the
//! kernel over as the file is):
//!
//! - RTMR1: the kernel's Authenticode digest when it is loaded; "Calling EFI Application from Boot
//!   Option" and a separator when the boot begins; two actions when the kernel ends the firmware's
//!   services (edk2, `TdTcg2Dxe`, `TryRunningQemuKernel`; register 1 has PCR 2 to 6).
//! - RTMR2: the kernel's load options, UTF-16 with the zero that ends them; the initrd (Linux,
//!   `efi-stub-helper.c`, `efi_measure_tagged_event`; register 2 has PCR 8 to 15). OVMF puts
//!   `initrd=initrd ` before the command line (edk2, `GenericQemuLoadImageLib`).
//! - RTMR0: configuration, which nobody can tell from the files; [`Prediction::Unpredictable`].
//! - RTMR3: nothing.
//!
//! The firmware must boot without Secure Boot; with it, it measures what vouched for the kernel too.

use std::fmt;

use sha2::{Digest as _, Sha384};

use super::TdxInputs;
use crate::{MeasureError, pe};

const CONFIGURATION: &str = "the firmware measures configuration, ACPI tables and boot variables there: they \
     depend on QEMU's version and on the pod's memory, processors and devices; take it from a quote of \
     a guest that you trust, one for each shape of pods";

/// What a register is extended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What is measured, for people.
    pub what: String,
    /// SHA-384, as event logs have it.
    pub digest: [u8; 48],
}

impl Event {
    fn of(what: impl Into<String>, bytes: &[u8]) -> Event {
        Event { what: what.into(), digest: Sha384::digest(bytes).into() }
    }
}

/// A register's value, as far as it can be told beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prediction {
    /// Computed by the rules. They were read from the sources and compared with event logs; the result
    /// was never compared with hardware.
    ByRule {
        /// Value of the register.
        value: [u8; 48],
        /// What it was extended with, in order.
        events: Vec<Event>,
    },
    /// It depends on what is not known here; the reason, and what to do.
    Unpredictable(&'static str),
}

impl Prediction {
    fn by_rule(events: Vec<Event>) -> Prediction {
        let extend = |register: [u8; 48], event: &Event| {
            Sha384::new().chain_update(register).chain_update(event.digest).finalize().into()
        };
        Prediction::ByRule { value: events.iter().fold([0; 48], extend), events }
    }

    /// The value, if it is predicted.
    #[must_use]
    pub const fn value(&self) -> Option<[u8; 48]> {
        match self {
            Prediction::ByRule { value, .. } => Some(*value),
            Prediction::Unpredictable(_) => None,
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prediction::ByRule { value, .. } => {
                value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Prediction::Unpredictable(reason) => write!(f, "unpredictable: {reason}"),
        }
    }
}

pub(super) fn predict(inputs: &TdxInputs<'_>) -> Result<[Prediction; 4], MeasureError> {
    // Firmware and kernel leave RTMR3 alone; the pod's containers may extend it later.
    let rtmr3 = Prediction::by_rule(Vec::new());
    let rtmr1 = rtmr1(kernel(inputs)?);
    Ok([Prediction::Unpredictable(CONFIGURATION), rtmr1, rtmr2(inputs), rtmr3])
}

fn kernel(inputs: &TdxInputs<'_>) -> Result<Event, MeasureError> {
    let mut digest = [0; 48];
    digest.copy_from_slice(&pe::authenticode::<Sha384>(inputs.kernel)?);
    Ok(Event { what: "kernel, by Authenticode".to_owned(), digest })
}

fn rtmr1(kernel: Event) -> Prediction {
    let action = |text: &str| Event::of(format!("{text:?}"), text.as_bytes());
    Prediction::by_rule(vec![
        kernel,
        action("Calling EFI Application from Boot Option"),
        Event::of("separator", &[0; 4]),
        action("Exit Boot Services Invocation"),
        action("Exit Boot Services Returned with Success"),
    ])
}

fn rtmr2(inputs: &TdxInputs<'_>) -> Prediction {
    let options = load_options(inputs);
    let encoded: Vec<u8> = options.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut events = vec![Event::of(format!("load options {options:?}"), &encoded)];
    if !inputs.initrd.is_empty() {
        events.push(Event::of("initrd", inputs.initrd));
    }
    Prediction::by_rule(events)
}

/// As the firmware gives them to the kernel.
fn load_options(inputs: &TdxInputs<'_>) -> String {
    let initrd = if inputs.initrd.is_empty() { "" } else { "initrd=initrd " };
    format!("{initrd}{}", inputs.command_line)
}
