//! Small firmware images in the layout of OVMF: as `tests/vectors/snp.py` makes them, and TDVF; a small kernel.
//! Each test program uses a part of them.

#![allow(dead_code)]

pub(crate) const SNP_METADATA: &str = "dc886566984a4798a75e5585a7bf67cc";
pub(crate) const SNP_RESET: &str = "00f771de1a7e4fcb890e68c77e2fb44e";
pub(crate) const SNP_HASHES: &str = "7255371f3a3b4b04927b1da6efa8d454";
pub(crate) const TDX_METADATA: &str = "e47a6535984a4798865e4685a7bf8ec2";

pub(crate) fn pattern(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from((n * seed + 3) % 251).expect("below 251")).collect()
}

fn little_endian(guid: &str) -> Vec<u8> {
    let mut bytes = hex::decode(guid).expect("digits");
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// The table of GUIDs with these entries, the last one read first.
pub(crate) fn table(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes + 18).expect("short").to_le_bytes();
    let mut table = Vec::new();
    for (guid, data) in entries {
        table.extend_from_slice(data);
        table.extend_from_slice(&length(data.len()));
        table.extend_from_slice(&little_endian(guid));
    }
    let footer = length(table.len());
    table.extend_from_slice(&footer);
    table.extend_from_slice(&little_endian("96b582de1fb245f7baeaa366c55a082d"));
    table
}

/// Puts metadata into the middle of an image and the table to its end.
pub(crate) fn image(size: usize, metadata: &[u8], entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut image = pattern(size, 7);
    image[size / 2..size / 2 + metadata.len()].copy_from_slice(metadata);
    let table = table(entries);
    let end = size - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

pub(crate) fn header(signature: &[u8; 4], section_size: usize, count: usize) -> Vec<u8> {
    let mut header = signature.to_vec();
    for number in [16 + section_size * count, 1, count] {
        header.extend_from_slice(&u32::try_from(number).expect("short").to_le_bytes());
    }
    header
}

/// Address, size and kind of what an SNP image asks for.
pub(crate) fn snp_sections(hashes: u32) -> Vec<[u32; 3]> {
    vec![
        [0x80_0000, 0x9000, 1],
        [0x80_a000, 0x3000, 1],
        [0x80_d000, 0x1000, 2],
        [0x80_e000, 0x1000, 3],
        [0x80_f000, 0x1000, 4],
        [hashes & !0xfff, 0x1000, 0x10],
        [0x81_1000, 0x2000, 1],
    ]
}

pub(crate) fn snp_metadata(sections: &[[u32; 3]]) -> Vec<u8> {
    let mut metadata = header(b"ASEV", 12, sections.len());
    metadata.extend(sections.iter().flatten().flat_map(|field| field.to_le_bytes()));
    metadata
}

pub(crate) fn snp_entries(size: usize, hashes: u32, reset: u32) -> Vec<(&'static str, Vec<u8>)> {
    let half = u32::try_from(size / 2).expect("short");
    let table = [hashes.to_le_bytes(), 0x400_u32.to_le_bytes()].concat();
    vec![
        (SNP_METADATA, half.to_le_bytes().to_vec()),
        (SNP_RESET, reset.to_le_bytes().to_vec()),
        (SNP_HASHES, table),
    ]
}

/// OVMF's `AmdSev` image in small.
pub(crate) fn snp(size: usize, hashes: u32, reset: u32) -> Vec<u8> {
    let metadata = snp_metadata(&snp_sections(hashes));
    image(size, &metadata, &snp_entries(size, hashes, reset))
}

/// A section of TDVF: offset and length in the image, address and size in memory, kind, attributes.
pub(crate) type TdxSection = (u32, u32, u64, u64, u32, u32);

/// What a TDX image of `size` bytes asks for: boot volume (measured), configuration volume, hand-off
/// blocks, two pieces of memory.
pub(crate) fn tdx_sections(size: u32) -> Vec<TdxSection> {
    let below = 1 << 32;
    let half = size / 2;
    vec![
        (half, half, below - u64::from(half), half.into(), 0, 1),
        (0, half, below - u64::from(size), half.into(), 1, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x81_0000, 0x1000, 3, 0),
        (0, 0, 0x80_6000, 0x3000, 3, 1),
    ]
}

pub(crate) fn tdx_metadata(sections: &[TdxSection]) -> Vec<u8> {
    let mut metadata = header(b"TDVF", 32, sections.len());
    for (offset, length, address, size, kind, attributes) in sections {
        metadata.extend([offset, length].iter().flat_map(|field| field.to_le_bytes()));
        metadata.extend([address, size].iter().flat_map(|field| field.to_le_bytes()));
        metadata.extend([kind, attributes].iter().flat_map(|field| field.to_le_bytes()));
    }
    metadata
}

pub(crate) fn tdx_entries(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let half = u32::try_from(size / 2).expect("short");
    vec![(TDX_METADATA, half.to_le_bytes().to_vec())]
}

/// TDVF in small.
pub(crate) fn tdx(size: usize) -> Vec<u8> {
    let sections = tdx_sections(u32::try_from(size).expect("short"));
    image(size, &tdx_metadata(&sections), &tdx_entries(size))
}

const HEADERS: usize = 0x400;

/// A small EFI program: headers, two sections out of order, signatures.
pub(crate) fn program(signatures: &[u8]) -> Vec<u8> {
    let mut image = vec![0x11; HEADERS];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x86, &3_u16.to_le_bytes()); // sections
    put(0x94, &240_u16.to_le_bytes()); // size of what follows
    put(0x98, &0x20b_u16.to_le_bytes());
    put(0x98 + 60, &u32::try_from(HEADERS).expect("small").to_le_bytes());
    put(0x98 + 108, &16_u32.to_le_bytes());
    put(0x98 + 144, &0x700_u32.to_le_bytes());
    put(0x98 + 148, &u32::try_from(signatures.len()).expect("small").to_le_bytes());
    for (number, (size, offset)) in
        [(0x100_u32, 0x600_u32), (0x200, 0x400), (0, 7)].iter().enumerate()
    {
        put(0x188 + 40 * number + 16, &size.to_le_bytes());
        put(0x188 + 40 * number + 20, &offset.to_le_bytes());
    }
    image.extend((0..0x300).map(|n| u8::try_from(n % 251).expect("small")));
    image.extend_from_slice(signatures);
    image
}
