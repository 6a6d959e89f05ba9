//! The launch digest and the page of kernel hashes, compared with the `sev` crate's: a firmware image
//! of our own, with every kind of page that it can ask for.

use std::fs;

use nacre_evidence::snp::{KernelHashes, LaunchDigest, PageType, VMSA_GPA, kernel_hashes_page};
use sev::measurement::sev_hashes::SevHashes;
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType, VMSA};

const SIZE: usize = 8192;
const RESET: u32 = 0x0080_b004;
const HASHES: u32 = 0x0080_fc00;
/// Address, size and kind of the pages that the firmware asks for.
const SECTIONS: [[u32; 3]; 4] = [
    [0x0080_0000, 0x2000, 1],
    [0x0080_d000, 0x1000, 2],
    [0x0080_e000, 0x1000, 3],
    [0x0080_f000, 0x1000, 0x10],
];

/// As OVMF is laid out: a table at the end, read backwards, that points to the metadata.
fn firmware() -> Vec<u8> {
    let mut image: Vec<u8> = (0..SIZE).map(|n| u8::try_from(n % 251).expect("small")).collect();
    let metadata_at = 4096;
    let mut metadata = b"ASEV".to_vec();
    for number in [16 + 12 * 4, 1, 4] {
        metadata.extend_from_slice(&u32::to_le_bytes(number));
    }
    metadata.extend(SECTIONS.into_iter().flatten().flat_map(u32::to_le_bytes));
    image[metadata_at..metadata_at + metadata.len()].copy_from_slice(&metadata);

    let mut table = Vec::new();
    let offset = u32::try_from(SIZE - metadata_at).expect("small");
    for (guid, data) in [
        ("dc886566984a4798a75e5585a7bf67cc", offset),
        ("00f771de1a7e4fcb890e68c77e2fb44e", RESET),
        ("7255371f3a3b4b04927b1da6efa8d454", HASHES),
    ] {
        table.extend_from_slice(&data.to_le_bytes());
        table.extend_from_slice(&22_u16.to_le_bytes());
        table.extend_from_slice(&little_endian(guid));
    }
    let length = u16::try_from(table.len() + 18).expect("small");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&little_endian("96b582de1fb245f7baeaa366c55a082d"));
    let end = SIZE - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

fn little_endian(guid: &str) -> Vec<u8> {
    let mut bytes = hex::decode(guid).expect("digits");
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[test]
fn the_digest_of_a_launch_is_the_peers() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (firmware, kernel, initrd) = (firmware(), b"a kernel".as_slice(), b"an initrd".as_slice());
    let command_line = "console=hvc0 quiet";
    let theirs = snp_calc_launch_digest(SnpMeasurementArgs {
        vcpus: 3,
        vcpu_type: CpuType::EpycV4,
        ovmf_file: path("firmware", &firmware),
        guest_features: GuestFeatures(1),
        kernel_file: Some(path("kernel", kernel)),
        initrd_file: Some(path("initrd", initrd)),
        append: Some(command_line),
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    })
    .unwrap();

    let mut ours = LaunchDigest::new();
    ours.update_range((1 << 32) - SIZE as u64, &firmware);
    let nothing = [0x55; 4096];
    ours.update(PageType::Zero, 0x80_0000, &nothing);
    ours.update(PageType::Zero, 0x80_1000, &nothing);
    ours.update(PageType::Secrets, 0x80_d000, &nothing);
    ours.update(PageType::Cpuid, 0x80_e000, &nothing);
    let hashes = KernelHashes::of(kernel, initrd, command_line);
    let page = kernel_hashes_page(&hashes, 0xc00).unwrap();
    ours.update(PageType::Normal, 0x80_f000, &page);
    let features = GuestFeatures(1);
    let vmsa = VMSA::new(RESET.into(), CpuType::EpycV4, VMMType::QEMU, Some(3), features);
    for page in vmsa.pages(3).unwrap() {
        ours.update(PageType::Vmsa, VMSA_GPA, page.as_slice().try_into().unwrap());
    }
    assert_eq!(hex::encode(ours.finish()), theirs.get_hex_ld());

    let peer = SevHashes::new(path("kernel", kernel), None, None).unwrap();
    let without = KernelHashes::of(kernel, b"", "");
    for offset in [0, 0xc00, 0xf50] {
        let page = kernel_hashes_page(&without, offset).unwrap();
        assert_eq!(page.as_slice(), peer.construct_page(offset).unwrap(), "{offset:#x}");
    }
}
