//! MRTD, equal to what the `igvm` crate computes (`vectors/mrtd`), and no digest of unsound images.

#![allow(clippy::unwrap_used)]

mod synthetic;

use std::path::Path;

use nacre_measurement::tdx::mr_td;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use synthetic::{TdxSection, header, image, tdx, tdx_entries, tdx_metadata, tdx_sections};

const SIZE: usize = 8192;

#[test]
fn mrtd_is_what_igvm_says() {
    for (size, expected) in [
        (
            8192,
            "2fa862cbc5595af4f342877f39c6a049b5788d150564e716dcbb030043f76d589ff2c0563484c9b2ab0149381f7d7a17",
        ),
        (
            65536,
            "6a91c1fae2cc21223c138c10a1b169a9b0a2f92b97e7034b2c21beb0204e55f661c774bcac1ad5282513943c5965333b",
        ),
    ] {
        assert_eq!(hex::encode(mr_td(&tdx(size)).unwrap()), expected, "{size}");
    }
}

/// Debian's images, edk2 2026.08: with Microsoft's keys for Secure Boot in its variables as it ships.
#[test]
fn the_real_firmware_measures_what_igvm_says() {
    const SHIPPED: &str = "a265075b4147a096109e501e76196df1ec8a18659c26f7401492c597ec88f312";
    const MR_TD: &str = "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c59aefecce725b0d08a5e9d3d3183bd08";
    const VARIABLES: usize = 540_672;
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/nacre/firmware/usr/share/ovmf/OVMF.inteltdx.ms.fd");
    let Ok(mut firmware) = std::fs::read(&path) else {
        println!("SKIPPED: {} is absent; cargo xtask setup fetches it", path.display());
        return;
    };
    if hex::encode(Sha256::digest(&firmware)) != SHIPPED {
        println!("SKIPPED: {} is of another version than was recorded", path.display());
        return;
    }
    assert_eq!(hex::encode(mr_td(&firmware).unwrap()), MR_TD);
    // Variables are measured into RTMR0 instead.
    firmware[..VARIABLES].fill(0xff);
    assert_eq!(hex::encode(mr_td(&firmware).unwrap()), MR_TD);
}

fn refusal(change: impl FnOnce(&mut Vec<TdxSection>)) -> String {
    let mut sections = tdx_sections(8192);
    change(&mut sections);
    let image = image(SIZE, &tdx_metadata(&sections), &tdx_entries(SIZE));
    mr_td(&image).unwrap_err().to_string()
}

#[test]
fn images_that_qemu_would_not_launch_have_no_digest() {
    type Change = fn(&mut Vec<TdxSection>);
    let cases: [(Change, &str); 16] = [
        (|sections| sections[0].0 = 4097, "do not fill"),
        (|sections| sections[0].1 = 4095, "do not fill"),
        (|sections| sections[0].0 = u32::MAX, "do not fill"),
        (|sections| sections[1].1 = 0, "do not fill"),
        (|sections| sections[1].3 = 0x2000, "covered twice"),
        (|sections| sections[2].2 += 1, "no pages below 4 GiB"),
        (|sections| sections[2].2 = u64::MAX - 0xfff, "no pages below 4 GiB"),
        (|sections| sections[2].3 = 1, "no pages below 4 GiB"),
        (|sections| sections[3].3 = 0x400_1000, "covers more than|cover more than|covered twice"),
        (|sections| sections[2].1 = 1, "has bytes"),
        (|sections| sections[3].1 = 1, "has bytes"),
        (|sections| sections[2].5 = 1, "hand-off blocks are to be measured"),
        (|sections| sections[3].4 = 4, "kind 4"),
        (|sections| sections[3].5 = 2, "unknown attributes 0x2"),
        (|sections| _ = sections.remove(0), "no boot volume"),
        (|sections| _ = sections.remove(2), "no place for hand-off blocks"),
    ];
    for (change, expected) in cases {
        let error = refusal(change);
        assert!(expected.split('|').any(|words| error.contains(words)), "{expected}: {error}");
    }
    for (offset, value, expected) in
        [(0, 0, "signature"), (4, 8, "length"), (8, 0, "another version"), (12, 65, "more than 64")]
    {
        let mut metadata = tdx_metadata(&tdx_sections(8192));
        metadata[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        let error = mr_td(&image(SIZE, &metadata, &tdx_entries(SIZE))).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let none = header(b"TDVF", 32, 0);
    let error = mr_td(&image(SIZE, &none, &tdx_entries(SIZE))).unwrap_err().to_string();
    assert!(error.contains("no boot volume"), "{error}");
    let error = mr_td(&image(SIZE, &none, &[])).unwrap_err().to_string();
    assert!(error.contains("no metadata for TDX: give a TDVF image"), "{error}");
}

proptest! {
    #[test]
    fn every_measured_byte_counts_and_no_other(at in 0..SIZE, flip in 1..=255_u8) {
        let mut firmware = tdx(SIZE);
        let digest = mr_td(&firmware).unwrap();
        firmware[at] ^= flip;
        // The first half holds variables, which are not measured.
        match mr_td(&firmware) {
            Ok(other) if at < SIZE / 2 => prop_assert_eq!(other, digest),
            Ok(other) => prop_assert_ne!(other, digest),
            Err(_) => prop_assert!(at >= SIZE / 2),
        }
    }

    #[test]
    fn any_bytes_end_in_a_digest_or_an_error(
        at in 0..SIZE,
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut firmware = tdx(SIZE);
        let count = noise.len().min(SIZE - at);
        firmware[at..at + count].copy_from_slice(&noise[..count]);
        let _ = mr_td(&firmware);
    }
}
