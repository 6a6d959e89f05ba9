//! SNP launch digests: equal to those of sev-snp-measure and of the `sev` crate, different for any
//! change of what is launched, and no digest of firmware that is not sound.

#![allow(clippy::unwrap_used)]

mod synthetic;

use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_evidence::snp::KernelHashes;
use nacre_measurement::MeasureError;
use nacre_measurement::snp::{Launch, SNP_ACTIVE, SnpInputs, VCPUS_LIMIT, measure};
use proptest::prelude::*;
use serde::Deserialize;
use synthetic::{header, image, pattern, snp, snp_entries, snp_metadata, snp_sections};

const SIZE: usize = 8192;
const HASHES: u32 = 0x81_0c00;
const RESET: u32 = 0x80_b004;
const EPYC_V4: u32 = 0x0080_0f12;

/// A line of `vectors/snp.json`.
#[derive(Deserialize)]
struct Vector {
    firmware_size: usize,
    hashes: u32,
    reset: u32,
    kernel_size: usize,
    initrd_size: usize,
    command_line: String,
    vcpus: u32,
    vcpu_type: String,
    cpu_signature: u32,
    guest_features: u64,
    measurement: String,
}

impl Vector {
    fn hashes(&self) -> KernelHashes {
        let (kernel, initrd) = (pattern(self.kernel_size, 11), pattern(self.initrd_size, 13));
        KernelHashes::of(&kernel, &initrd, &self.command_line)
    }

    fn firmware(&self) -> Vec<u8> {
        snp(self.firmware_size, self.hashes, self.reset)
    }
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("vectors/snp.json")).unwrap()
}

#[test]
fn digests_are_those_of_sev_snp_measure() {
    let vectors = vectors();
    assert!(vectors.len() > 6);
    for vector in vectors {
        let measurement = measure(&SnpInputs {
            firmware: &vector.firmware(),
            hashes: vector.hashes(),
            vcpus: vector.vcpus,
            cpu_signature: vector.cpu_signature,
            guest_features: vector.guest_features,
        });
        let case = format!("{} x {}, {}", vector.vcpus, vector.vcpu_type, vector.command_line);
        assert_eq!(hex::encode(measurement.unwrap()), vector.measurement, "{case}");
    }
}

/// The recorded digests are what the tool still says, where it is installed.
#[test]
fn sev_snp_measure_says_what_is_recorded() {
    let environment = target().join("sev-snp-measure/bin/python3");
    let python = if environment.exists() { environment } else { PathBuf::from("python3") };
    let there = Command::new(&python).args(["-c", "import sevsnpmeasure"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!(
            "SKIPPED: sev-snp-measure is not installed (python3 -m venv target/nacre/sev-snp-measure \
             && target/nacre/sev-snp-measure/bin/pip install sev-snp-measure==0.0.13)"
        );
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/snp.py");
    let output = Command::new(&python).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), include_str!("vectors/snp.json"));
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nacre")
}

/// Digest by the `sev` crate, which reads files.
fn peer(firmware: &[u8], vcpus: u32, files: (&[u8], &[u8], &str)) -> String {
    use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
    use sev::measurement::vcpu_types::CpuType;
    use sev::measurement::vmsa::{GuestFeatures, VMMType};

    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let arguments = SnpMeasurementArgs {
        vcpus,
        vcpu_type: CpuType::EpycV4,
        ovmf_file: write("firmware", firmware),
        guest_features: GuestFeatures(SNP_ACTIVE),
        kernel_file: Some(write("kernel", files.0)),
        initrd_file: Some(write("initrd", files.1)),
        append: Some(files.2),
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    };
    snp_calc_launch_digest(arguments).unwrap().get_hex_ld()
}

#[test]
fn the_real_firmware_measures_what_the_peer_says() {
    let path = target().join("firmware/usr/share/ovmf/OVMF.amdsev.fd");
    let Ok(firmware) = std::fs::read(&path) else {
        println!("SKIPPED: {} is absent; cargo xtask setup fetches it", path.display());
        return;
    };
    let files: (&[u8], &[u8], &str) = (b"a kernel", b"an initrd", "console=hvc0");
    let launch = Launch::new(&firmware, &KernelHashes::of(files.0, files.1, files.2)).unwrap();
    for vcpus in [1, 2, 7] {
        let ours = launch.measurement(vcpus, EPYC_V4, SNP_ACTIVE).unwrap();
        assert_eq!(hex::encode(ours), peer(&firmware, vcpus, files), "{vcpus}");
    }
}

#[test]
fn all_numbers_of_processors_are_measured_at_once() {
    let launch = Launch::new(&snp(SIZE, HASHES, RESET), &hashes()).unwrap();
    let all = launch.measurements(20, EPYC_V4, SNP_ACTIVE).unwrap();
    assert_eq!(all.len(), 20);
    for (vcpus, digest) in (1..).zip(&all) {
        assert_eq!(launch.measurement(vcpus, EPYC_V4, SNP_ACTIVE).unwrap(), *digest);
    }
    for vcpus in [0, VCPUS_LIMIT + 1] {
        assert_eq!(launch.measurement(vcpus, 0, 1), Err(MeasureError::Vcpus(vcpus)));
        assert_eq!(launch.measurements(vcpus, 0, 1), Err(MeasureError::Vcpus(vcpus)));
    }
}

fn hashes() -> KernelHashes {
    KernelHashes::of(b"kernel", b"initrd", "quiet")
}

fn inputs(firmware: &[u8]) -> SnpInputs<'_> {
    SnpInputs {
        firmware,
        hashes: hashes(),
        vcpus: 3,
        cpu_signature: EPYC_V4,
        guest_features: SNP_ACTIVE,
    }
}

/// Why firmware with this metadata and these entries is refused.
fn refusal(metadata: &[u8], entries: &[(&str, Vec<u8>)]) -> String {
    measure(&inputs(&image(SIZE, metadata, entries))).unwrap_err().to_string()
}

#[test]
fn unsound_firmware_has_no_digest() {
    let good = snp(SIZE, HASHES, RESET);
    measure(&inputs(&good)).unwrap();
    let error = |firmware: &[u8]| measure(&inputs(firmware)).unwrap_err().to_string();
    for size in [0, 1, 4095, 4097, (16 << 20) + 4096] {
        assert!(error(&vec![0; size]).contains(&format!("firmware of {size} bytes")));
    }
    assert!(error(&[0; 4096]).contains("no table of GUIDs"), "{}", error(&[0; 4096]));
    let at = SIZE - 50;
    for length in [0_u16, 17, u16::MAX] {
        let mut firmware = good.clone();
        firmware[at..at + 2].copy_from_slice(&length.to_le_bytes());
        assert!(error(&firmware).contains("impossible"), "{length}: {}", error(&firmware));
    }
    for length in [0_u16, 17, u16::MAX] {
        let mut firmware = good.clone();
        firmware[at - 18..at - 16].copy_from_slice(&length.to_le_bytes());
        assert!(error(&firmware).contains("impossible length"), "{}", error(&firmware));
    }
    let entries = snp_entries(SIZE, HASHES, RESET);
    let many = vec![("00f771de1a7e4fcb890e68c77e2fb44e", Vec::new()); 65];
    assert!(refusal(&[], &many).contains("more than 64 entries"));
    let metadata = snp_metadata(&snp_sections(HASHES));
    for (left_out, expected) in
        ["metadata for SEV-SNP", "reset block", "table of kernel hashes"].iter().enumerate()
    {
        let mut entries = entries.clone();
        entries.remove(left_out);
        let error = refusal(&metadata, &entries);
        assert!(error.contains(&format!("has no {expected}: give OVMF's AmdSev")), "{error}");
    }
    for (number, data, expected) in [
        (0, vec![1, 2, 3], "entry is too short"),
        (0, u32::MAX.to_le_bytes().to_vec(), "outside"),
        (0, 8_u32.to_le_bytes().to_vec(), "signature"),
        (1, vec![0; 4], "no address"),
        (1, vec![0; 3], "no address"),
        (2, HASHES.to_le_bytes().to_vec(), "too short"),
        (2, [0x81_0f80_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat(), "do not fit"),
        (2, [0x80_0000_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat(), "do not fit"),
        (2, [HASHES.to_le_bytes(), 175_u32.to_le_bytes()].concat(), "175 bytes for kernel hashes"),
    ] {
        let mut entries = entries.clone();
        entries[number].1 = data;
        let error = refusal(&metadata, &entries);
        assert!(error.contains(expected), "{number} {expected}: {error}");
    }
}

#[test]
fn unsound_metadata_has_no_digest() {
    let entries = snp_entries(SIZE, HASHES, RESET);
    let with = |change: &dyn Fn(&mut Vec<[u32; 3]>)| {
        let mut sections = snp_sections(HASHES);
        change(&mut sections);
        refusal(&snp_metadata(&sections), &entries)
    };
    type Change = fn(&mut Vec<[u32; 3]>);
    let cases: [(Change, &str); 12] = [
        (|sections| sections[0][2] = 5, "kind 5"),
        (|sections| sections[0][2] = 0x101, "kind 257"),
        (|sections| sections[0][0] += 1, "no pages below 4 GiB"),
        (|sections| sections[0][1] += 1, "no pages below 4 GiB"),
        (|sections| sections[0][0] = 0xffff_f000, "no pages below 4 GiB"),
        (|sections| sections[1][0] = 0x80_8000, "covered twice"),
        // The firmware's own last page.
        (|sections| sections[0] = [0xffff_f000, 0x1000, 1], "0xfffff000 are covered twice"),
        (|sections| sections[0] = [0x1000_0000, 0x400_1000, 1], "cover more than"),
        (|sections| sections[2][1] = 0x2000, "is no page"),
        (|sections| _ = sections.remove(2), "no secrets page"),
        (|sections| _ = sections.remove(3), "no CPUID page"),
        (|sections| sections[6] = [0x81_1000, 0x1000, 0x10], "no page for kernel hashes"),
    ];
    for (change, expected) in cases {
        let error = with(&change);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let sections = snp_sections(HASHES);
    for (offset, value, expected) in
        [(4, 99, "length"), (8, 2, "another version"), (12, 65, "more than 64"), (12, 6, "length")]
    {
        let mut metadata = snp_metadata(&sections);
        metadata[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        let error = refusal(&metadata, &entries);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Metadata that would go on behind the image.
    let mut entries = entries;
    entries[0].1 = 512_u32.to_le_bytes().to_vec();
    let mut firmware = image(SIZE, &[], &entries);
    firmware[SIZE - 512..SIZE - 496].copy_from_slice(&header(b"ASEV", 12, 64));
    let error = measure(&inputs(&firmware)).unwrap_err().to_string();
    assert!(error.contains("outside"), "{error}");
}

proptest! {
    /// One byte anywhere in the firmware: another digest, or none.
    #[test]
    fn every_byte_of_the_firmware_counts(at in 0..SIZE, flip in 1..=255_u8) {
        let mut firmware = snp(SIZE, HASHES, RESET);
        let digest = measure(&inputs(&firmware)).unwrap();
        firmware[at] ^= flip;
        if let Ok(other) = measure(&inputs(&firmware)) {
            prop_assert_ne!(other, digest);
        }
    }

    #[test]
    fn every_other_input_counts(
        kernel in prop::collection::vec(any::<u8>(), 0..40),
        initrd in prop::collection::vec(any::<u8>(), 0..40),
        line in "[ -~]{0,40}",
        (vcpus, signature, features) in (1..9_u32, any::<u32>(), any::<u64>()),
    ) {
        let firmware = snp(SIZE, HASHES, RESET);
        let launch = |kernel: &[u8], initrd: &[u8], line: &str| {
            Launch::new(&firmware, &KernelHashes::of(kernel, initrd, line)).unwrap()
        };
        let of = |launch: &Launch| launch.measurement(vcpus, signature, features).unwrap();
        let base = launch(&kernel, &initrd, &line);
        let digest = of(&base);
        let more = |bytes: &[u8]| [bytes, &[0]].concat();
        prop_assert_ne!(of(&launch(&more(&kernel), &initrd, &line)), digest);
        prop_assert_ne!(of(&launch(&kernel, &more(&initrd), &line)), digest);
        prop_assert_ne!(of(&launch(&kernel, &initrd, &format!("{line} "))), digest);
        prop_assert_ne!(base.measurement(vcpus + 1, signature, features).unwrap(), digest);
        prop_assert_ne!(base.measurement(vcpus, signature ^ 1, features).unwrap(), digest);
        prop_assert_ne!(base.measurement(vcpus, signature, features ^ 2).unwrap(), digest);
        prop_assert_eq!(of(&base), digest);
    }

    #[test]
    fn any_bytes_end_in_a_digest_or_an_error(
        (pages, at) in (1..4_usize, any::<prop::sample::Index>()),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let size = pages * 4096;
        let mut firmware = if pages == 1 { vec![0xff; size] } else { snp(size, HASHES, RESET) };
        let at = at.index(size);
        let count = noise.len().min(size - at);
        firmware[at..at + count].copy_from_slice(&noise[..count]);
        let _ = measure(&inputs(&firmware));
    }
}
