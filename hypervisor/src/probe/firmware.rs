//! Firmware images of guests: which are there, and what they are made for.

use std::path::{Path, PathBuf};

use super::finding::{Finding, Status, Tee};
use super::host::{Entry, Host, Kind, Missing, Part};

/// An image of EDK II's OVMF, by the table at its end (OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Footer {
    /// It starts SEV-SNP guests: it has a reset block and SEV metadata.
    pub(crate) snp: bool,
    /// It compares kernel, initrd and command line with their measured hashes: it has a place for them.
    pub(crate) hashes: bool,
    /// It starts TDX guests: it has TDX metadata.
    pub(crate) tdx: bool,
}

/// What is at a place.
pub(crate) type Found = Result<Entry, Missing>;

/// The firmware of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firmware {
    /// For guests without protection: the first that is there.
    plain: Option<PathBuf>,
    snp: (Found, Option<Footer>),
    tdx: (Found, Option<Footer>),
}

/// Firmware files of a node, by its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwarePaths {
    /// Where firmware for guests without protection may be; the first that is there is taken.
    pub plain: Vec<PathBuf>,
    /// OVMF built for SEV-SNP (AmdSev).
    pub snp: PathBuf,
    /// TDVF: OVMF built for TDX.
    pub tdx: PathBuf,
}

impl Firmware {
    pub(crate) fn gather(host: &dyn Host, paths: &FirmwarePaths) -> Firmware {
        let look = |path: &Path| host.look(path).map_err(|error| Missing::of(&error));
        let is_file = |path: &&PathBuf| look(path).is_ok_and(|entry| entry.kind == Kind::File);
        let image = |path: &Path| {
            let found = look(path);
            let footer = match &found {
                Ok(entry) if entry.kind == Kind::File => {
                    host.read(path, Part::End(FOOTER_BYTES)).ok().map(|end| Footer::parse(&end))
                }
                _ => None,
            };
            (found, footer)
        };
        Firmware {
            plain: paths.plain.iter().find(is_file).cloned(),
            snp: image(&paths.snp),
            tdx: image(&paths.tdx),
        }
    }
}

pub(crate) fn findings(firmware: &Firmware, paths: &FirmwarePaths, tee: Tee) -> [Finding; 3] {
    [
        plain(firmware, paths, tee),
        confidential("firmware.snp", &firmware.snp, &paths.snp, tee, Tee::Snp),
        confidential("firmware.tdx", &firmware.tdx, &paths.tdx, tee, Tee::Tdx),
    ]
}

fn plain(firmware: &Firmware, paths: &FirmwarePaths, tee: Tee) -> Finding {
    const ID: &str = "firmware.plain";
    match (&firmware.plain, tee.is_hardware()) {
        (Some(path), false) => Finding::pass(ID, path.display().to_string()),
        (Some(path), true) => Finding::skip(ID, path.display().to_string()),
        (None, hardware) => {
            let places: Vec<String> =
                paths.plain.iter().map(|path| path.display().to_string()).collect();
            Finding::new(
                ID,
                if hardware { Status::NotApplicable } else { Status::Fail },
                format!("none of {}", places.join(", ")),
                "install QEMU's own firmware, or correct vm.firmware_dirs",
            )
        }
    }
}

fn confidential(
    id: &'static str,
    (found, footer): &(Found, Option<Footer>),
    path: &Path,
    tee: Tee,
    by: Tee,
) -> Finding {
    let shown = path.display();
    let (key, build, package) = match by {
        Tee::Tdx => ("tdx.firmware", "OVMF built for TDX (TDVF)", "ovmf-inteltdx"),
        _ => ("snp.firmware", "OVMF of the AmdSev build", "ovmf-amdsev"),
    };
    let install = format!("install {build}, Debian's package {package}, or correct {key}");
    let status = |status| if tee == by { status } else { Status::NotApplicable };
    let entry = match found {
        Ok(entry) if entry.kind == Kind::File => entry,
        Ok(_) => {
            return Finding::new(id, status(Status::Fail), format!("{shown} is no file"), install);
        }
        Err(Missing::Denied) if tee == by => return Finding::unseen(id, shown.to_string()),
        Err(missing) => {
            return Finding::new(id, status(Status::Fail), format!("{shown} {missing}"), install);
        }
    };
    let size = format!("{shown}, {} KiB", entry.size / 1024);
    let Some(footer) = footer else {
        return Finding::new(
            id,
            status(Status::Unknown),
            size,
            "run as root to see what it is made for",
        );
    };
    let starts = match by {
        Tee::Tdx => footer.tdx,
        _ => footer.snp,
    };
    if !starts {
        return Finding::new(
            id,
            status(Status::Fail),
            format!("{size}, not made for {by}"),
            install,
        );
    }
    if by == Tee::Snp && !footer.hashes {
        let found = format!("{size}, does not check the kernel's hashes");
        return Finding::new(id, status(Status::Fail), found, install);
    }
    let checks = if by == Tee::Snp { ", checks the kernel's hashes" } else { "" };
    Finding::new(id, status(Status::Pass), format!("{size}{checks}"), "")
}

/// How much of an image's end is read; the table has some 0.2 KiB.
const FOOTER_BYTES: usize = 4096;

impl Footer {
    /// Reads the table of an image that ends with `end`. What is no such table says nothing.
    ///
    /// From the end: 32 bytes of reset vector; before them the entry of the table as a whole; before it the
    /// other entries. An entry ends with its length, 2 bytes, and its GUID, 16 bytes; its data is before them.
    pub(crate) fn parse(end: &[u8]) -> Footer {
        const RESET_VECTOR: usize = 32;
        const TABLE: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);
        const SEV_HASHES: [u8; 16] = guid(0x7255_371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454);
        const SEV_METADATA: [u8; 16] = guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);
        const SEV_RESET_BLOCK: [u8; 16] = guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
        const TDX_METADATA: [u8; 16] = guid(0xe47a_6535, 0x984a, 0x4798, 0x865e_4685_a7bf_8ec2);

        let mut footer = Footer::default();
        let Some(before) = end.len().checked_sub(RESET_VECTOR) else { return footer };
        let Some((TABLE, _, mut entries)) = entry(&end[..before], true) else { return footer };
        let (mut metadata, mut reset_block) = (false, false);
        while let Some((guid, data, front)) = entry(entries, false) {
            match guid {
                // Address and size of the place; builds that do not check the hashes have it empty.
                SEV_HASHES => footer.hashes = data.len() == 8 && data[4..] != [0; 4],
                SEV_METADATA => metadata = data.len() == 4,
                SEV_RESET_BLOCK => reset_block = data.len() == 4,
                TDX_METADATA => footer.tdx = data.len() == 4,
                _ => {}
            }
            entries = front;
        }
        footer.snp = metadata && reset_block;
        footer
    }
}

/// The last entry's GUID and data, and what is before it. The entry of the table as a whole has the others
/// for data: for it, what is "before" are they.
fn entry(bytes: &[u8], whole: bool) -> Option<([u8; 16], &[u8], &[u8])> {
    const HEADER: usize = 2 + 16;
    let (front, guid) = bytes.split_last_chunk::<16>()?;
    let (front, length) = front.split_last_chunk::<2>()?;
    let data = usize::from(u16::from_le_bytes(*length)).checked_sub(HEADER)?;
    let (front, data) = front.split_at(front.len().checked_sub(data)?);
    Some((*guid, data, if whole { data } else { front }))
}

/// A GUID as UEFI writes it: the first three numbers little-endian.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let (a, b, c, d) =
        (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), rest.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);

    /// An image of these entries.
    pub(crate) fn image(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut table = Vec::new();
        let mut add = |guid: [u8; 16], data: &[u8], length: usize| {
            table.extend_from_slice(data);
            table.extend_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
            table.extend_from_slice(&guid);
        };
        let mut sum = 18;
        for (guid, data) in entries {
            add(parse_guid(guid), data, data.len() + 18);
            sum += data.len() + 18;
        }
        add(TABLE, &[], sum);
        [vec![0; 100], table, vec![0x90; 32]].concat()
    }

    fn parse_guid(text: &str) -> [u8; 16] {
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        let number = u128::from_str_radix(&hex, 16).unwrap().to_be_bytes();
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        order.map(|at: usize| number[at])
    }

    const HASHES: &str = "7255371f-3a3b-4b04-927b-1da6efa8d454";
    const METADATA: &str = "dc886566-984a-4798-a75e-5585a7bf67cc";
    const RESET: &str = "00f771de-1a7e-4fcb-890e-68c77e2fb44e";
    const TDX: &str = "e47a6535-984a-4798-865e-4685a7bf8ec2";

    #[test]
    fn the_table_tells_what_an_image_is_made_for() {
        let all = image(&[
            (TDX, &[1, 0, 0, 0]),
            (METADATA, &[1, 0, 0, 0]),
            (HASHES, &[0, 0xc, 0x81, 0, 0, 4, 0, 0]),
            (RESET, &[4, 0xb0, 0x80, 0]),
        ]);
        assert_eq!(Footer::parse(&all), Footer { snp: true, hashes: true, tdx: true });
        let no_hashes = image(&[(METADATA, &[0; 4]), (RESET, &[0; 4]), (HASHES, &[0; 8])]);
        assert_eq!(Footer::parse(&no_hashes), Footer { snp: true, hashes: false, tdx: false });
        assert_eq!(Footer::parse(&image(&[(METADATA, &[0; 4])])), Footer::default());
        assert_eq!(Footer::parse(&image(&[])), Footer::default());
    }

    #[test]
    fn images_that_are_cut_or_lie_say_nothing() {
        let image = image(&[(TDX, &[1, 0, 0, 0]), (METADATA, &[0; 4]), (RESET, &[0; 4])]);
        for start in 0..image.len() {
            let footer = Footer::parse(&image[start..]);
            assert!(footer == Footer::default() || start <= 100, "{start}");
        }
        for at in 100..image.len() - 32 {
            for value in [0, 1, 17, 18, 0xff] {
                let mut image = image.clone();
                image[at] = value;
                let _ = Footer::parse(&image);
            }
        }
        assert_eq!(Footer::parse(&[0xff; 4096]), Footer::default());
    }
}
