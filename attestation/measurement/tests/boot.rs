//! What firmware and kernel measure when they boot, compared with event logs: one recorded with edk2 2026.08,
//! QEMU 11.1.3 and the image's kernel and an emulated TPM (`vectors/boot`), and one of a real TDX guest.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use nacre_evidence::tdx::{Event as Logged, EventLog};
use nacre_measurement::pe::authenticode;
use nacre_measurement::tdx::{Event, Prediction, TdxInputs, measure};
use sha2::{Digest, Sha256, Sha384};
use synthetic::program;

mod synthetic;

const LOG: &[u8] = include_bytes!("vectors/boot/event.log");
const INITRD: &[u8] = include_bytes!("vectors/boot/initrd");
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet";
/// The kernel with which the log was recorded, see `guest-image/pins.toml`.
const KERNEL: &str = "fadf27c4528461030ddff1d20e6622f76e1e007f7c64796f5ad9b71e37267a6f";

const EV_SEPARATOR: u32 = 4;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_ACTION: u32 = 0x8000_0007;

fn kernel() -> Option<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nacre/image/vmlinuz");
    let kernel = std::fs::read(&path).ok();
    let kernel = kernel.filter(|bytes| hex::encode(Sha256::digest(bytes)) == KERNEL);
    if kernel.is_none() {
        println!("SKIPPED: {} is not there, or another than was recorded", path.display());
    }
    kernel
}

/// Events of RTMR1 and RTMR2 of a boot with this kernel.
fn predicted(kernel: &[u8], initrd: &[u8], command_line: &str) -> [Vec<Event>; 2] {
    let firmware = synthetic::tdx(8192);
    let inputs = TdxInputs { firmware: &firmware, kernel, initrd, command_line };
    let [rtmr0, rtmr1, rtmr2, rtmr3] = measure(&inputs).unwrap().rtmr;
    assert!(matches!(rtmr0, Prediction::Unpredictable(reason) if reason.contains("from a quote")));
    assert_eq!(rtmr3.value(), Some([0; 48]));
    [rtmr1, rtmr2].map(|prediction| match prediction {
        Prediction::ByRule { value, events } => {
            let mut register = [0; 48];
            for event in &events {
                register = Sha384::digest([register, event.digest].concat()).into();
            }
            assert_eq!(register, value);
            events
        }
        Prediction::Unpredictable(reason) => panic!("{reason}"),
    })
}

/// Events of the PCRs that TDX's registers 1 and 2 take the place of.
fn recorded() -> [Vec<Logged>; 2] {
    let log = EventLog::parse(LOG).unwrap();
    let of = |pcrs: std::ops::RangeInclusive<u32>| {
        let events = log.events().iter().filter(|event| pcrs.contains(&event.register));
        // A TPM has a separator in each PCR, TDX one in the register: that of PCR 4.
        let own = events.filter(|event| event.kind != EV_SEPARATOR || event.register == 4);
        own.cloned().collect::<Vec<_>>()
    };
    [of(2..=6), of(8..=15)]
}

fn digests(events: &[Event]) -> Vec<[u8; 48]> {
    events.iter().map(|event| event.digest).collect()
}

#[test]
fn the_log_of_a_boot_is_what_is_predicted() {
    let [log1, log2] = recorded();
    assert_eq!((log1.len(), log2.len()), (5, 2));
    let logged = |events: &[Logged]| events.iter().map(|event| event.digest).collect::<Vec<_>>();
    // Any kernel: the others of its events do not depend on it.
    let [rtmr1, rtmr2] = predicted(&program(&[]), INITRD, COMMAND_LINE);
    assert_eq!(digests(&rtmr1)[1..], logged(&log1)[1..]);
    assert_eq!(digests(&rtmr2), logged(&log2));
    assert_eq!(rtmr2[0].what, "load options \"initrd=initrd console=ttyS0 panic=-1 quiet\"");

    let Some(kernel) = kernel() else { return };
    let [rtmr1, _] = predicted(&kernel, INITRD, COMMAND_LINE);
    assert_eq!(digests(&rtmr1), logged(&log1));
    assert_eq!(log1[0].kind, EV_EFI_BOOT_SERVICES_APPLICATION);
}

#[test]
fn every_file_of_a_boot_counts() {
    let (kernel, other) = (program(&[]), program(b"signed by somebody"));
    let base = predicted(&kernel, INITRD, COMMAND_LINE).map(|events| digests(&events));
    let of = |kernel: &[u8], initrd: &[u8], line: &str| {
        predicted(kernel, initrd, line).map(|events| digests(&events))
    };
    let [rtmr1, rtmr2] = of(&kernel, &INITRD[1..], COMMAND_LINE);
    assert_eq!(rtmr1, base[0]);
    assert_ne!(rtmr2, base[1]);
    let [rtmr1, rtmr2] = of(&kernel, INITRD, "console=ttyS0 panic=-1 quiet ");
    assert_eq!(rtmr1, base[0]);
    assert_ne!(rtmr2, base[1]);
    let mut changed = kernel.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_ne!(of(&changed, INITRD, COMMAND_LINE)[0], base[0]);
    assert_eq!(of(&other, INITRD, COMMAND_LINE), base, "signatures are not measured");
    assert_eq!(of(&kernel, b"", "").map(|events| events.len()), [5, 1]);
}

/// Debian's kernel has been signed over the digest that is computed here.
#[test]
fn the_kernel_is_signed_over_its_digest() {
    let Some(kernel) = kernel() else { return };
    let digest = authenticode::<Sha256>(&kernel).unwrap();
    assert!(kernel.windows(digest.len()).any(|bytes| bytes == digest));
}

/// The rules of TDX's own log, where the boot is another one: registers, order, digests of actions.
#[test]
fn a_real_guests_log_has_the_same_actions_in_the_same_register() {
    let root = std::env::var_os("NACRE_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors")),
        PathBuf::from,
    );
    let Ok(log) = std::fs::read(root.join("tdx/go-tdx-cos113/ccel_data.dat")) else {
        println!("SKIPPED: no vectors at {}", root.display());
        return;
    };
    let log = EventLog::parse(&log).unwrap();
    let found: Vec<_> = log
        .events()
        .iter()
        .filter(|event| event.register == 2)
        .filter(|event| matches!(event.kind, EV_SEPARATOR | EV_EFI_ACTION))
        .map(|event| event.digest)
        .collect();
    let [rtmr1, _] = predicted(&program(&[]), INITRD, COMMAND_LINE);
    assert_eq!(found, digests(&rtmr1)[1..]);
}

#[test]
fn a_program_is_hashed_without_checksum_and_signatures() {
    let image = program(b"signed");
    let digest = authenticode::<Sha384>(&image).unwrap();
    let counts = |at: usize| {
        let mut changed = image.clone();
        changed[at] ^= 1;
        authenticode::<Sha384>(&changed).is_ok_and(|other| other == digest)
    };
    // Checksum, place of the signatures, the signatures.
    let unmeasured = [0x98 + 64..0x98 + 68, 0x98 + 144..0x98 + 148, 0x700..0x706];
    for at in (0..image.len()).filter(|at| !(0x98 + 148..0x98 + 152).contains(at)) {
        let free = unmeasured.iter().any(|range| range.contains(&at));
        assert_eq!(counts(at), free, "{at:#x}");
    }
}

#[test]
fn hostile_programs_have_no_digest() {
    let good = program(b"signed");
    authenticode::<Sha384>(&good).unwrap();
    let error = |image: &[u8]| authenticode::<Sha384>(image).unwrap_err().to_string();
    for cut in (0..0x700).step_by(3) {
        assert!(authenticode::<Sha384>(&good[..cut]).is_err(), "{cut:#x}");
    }
    for (offset, bytes, expected) in [
        (0, b"ZM".to_vec(), "bzImage"),
        (0x3c, u32::MAX.to_le_bytes().to_vec(), "PE header"),
        (0x80, b"NE".to_vec(), "CONFIG_EFI_STUB"),
        (0x86, 97_u16.to_le_bytes().to_vec(), "more than 96 sections"),
        (0x86, 90_u16.to_le_bytes().to_vec(), "do not hold"),
        (0x94, 100_u16.to_le_bytes().to_vec(), "do not hold"),
        (0x98, 0x10b_u16.to_le_bytes().to_vec(), "64-bit"),
        (0x98 + 60, u32::MAX.to_le_bytes().to_vec(), "cut short"),
        (0x98 + 60, 0x100_u32.to_le_bytes().to_vec(), "do not hold"),
        (0x98 + 108, 4_u32.to_le_bytes().to_vec(), "do not hold"),
        (0x98 + 148, 0x400_u32.to_le_bytes().to_vec(), "signatures do not fit"),
        (0x188 + 16, u32::MAX.to_le_bytes().to_vec(), "cut short"),
        (0x188 + 20, 0x500_u32.to_le_bytes().to_vec(), "follow each other"),
        (0x188 + 20, 0x610_u32.to_le_bytes().to_vec(), "follow each other"),
    ] {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(&bytes);
        let error = error(&image);
        assert!(error.contains(expected), "{offset:#x} {expected}: {error}");
    }
}
