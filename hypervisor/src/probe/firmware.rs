//! Firmware images of guests: which are there, and what they are made for.

use std::path::{Path, PathBuf};

use super::finding::{Finding, Status, Tee};
use super::host::{Host, Kind, Missing, Part};

/// An image of EDK II's OVMF, by the table at its end (OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Build {
    /// It starts SEV-SNP guests: it has a reset block and SEV metadata.
    pub(crate) snp: bool,
    /// It compares kernel, initrd and command line with their measured hashes: it has a place for them.
    pub(crate) hashes: bool,
    /// It starts TDX guests: it has TDX metadata.
    pub(crate) tdx: bool,
    /// Its variables have a platform key: Secure Boot is on.
    pub(crate) secure_boot: bool,
}

/// An image that could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image {
    /// In bytes.
    size: u64,
    build: Build,
}

/// The firmware of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firmware {
    /// For guests without protection: the first that is there.
    plain: Option<PathBuf>,
    snp: Result<Image, Missing>,
    tdx: Result<Image, Missing>,
}

/// Firmware files of a node, by its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwarePaths {
    /// Where firmware for guests without protection may be; the first that is there is taken.
    pub plain: Vec<PathBuf>,
    /// OVMF built for SEV-SNP (`AmdSev`).
    pub snp: PathBuf,
    /// TDVF: OVMF built for TDX.
    pub tdx: PathBuf,
}

impl Firmware {
    pub(crate) fn gather(host: &dyn Host, paths: &FirmwarePaths) -> Firmware {
        let is_file = |path: &&PathBuf| host.look(path).is_ok_and(|entry| entry.kind == Kind::File);
        Firmware {
            plain: paths.plain.iter().find(is_file).cloned(),
            snp: Image::gather(host, &paths.snp),
            tdx: Image::gather(host, &paths.tdx),
        }
    }
}

impl Image {
    fn gather(host: &dyn Host, path: &Path) -> Result<Image, Missing> {
        let entry = host.look(path).map_err(|error| Missing::of(&error))?;
        if entry.kind != Kind::File {
            return Err(Missing::Broken("it is no file".to_owned()));
        }
        let read = |part| host.read(path, part).map_err(|error| Missing::of(&error));
        let (start, end) = (read(Part::Beginning(VARIABLES_BYTES))?, read(Part::End(TABLE_BYTES))?);
        Ok(Image { size: entry.size, build: Build::parse(&start, &end) })
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
    image: &Result<Image, Missing>,
    path: &Path,
    tee: Tee,
    by: Tee,
) -> Finding {
    let shown = path.display();
    let advice = match by {
        Tee::Tdx => {
            "install OVMF for TDX without Secure Boot's keys (docs/confidential-launch.md), or correct tdx.firmware"
        }
        _ => "install OVMF's AmdSev build, Debian's package ovmf-amdsev, or correct snp.firmware",
    };
    let (status, found) = match image {
        Err(Missing::Denied) if tee == by => return Finding::unseen(id, shown.to_string()),
        Err(missing) => (Status::Fail, format!("{shown} {missing}")),
        Ok(Image { size, build }) => {
            let (status, what) = build.judge(by);
            (status, format!("{shown}, {} KiB, {what}", size / 1024))
        }
    };
    let status = if tee == by { status } else { Status::NotApplicable };
    Finding::new(id, status, found, advice)
}

/// How much of an image's end is read; the table has some 0.2 KiB.
const TABLE_BYTES: usize = 4096;
/// How much of its beginning is: OVMF's variables and what they need (OvmfPkg/VarStore.fdf.inc).
const VARIABLES_BYTES: usize = 0x8_4000;

impl Build {
    /// Whether it starts guests of a kind.
    fn judge(self, by: Tee) -> (Status, &'static str) {
        match (by, self) {
            (Tee::Tdx, Build { tdx: false, .. }) => (Status::Fail, "not made for TDX"),
            (Tee::Tdx, Build { secure_boot: true, .. }) => (
                Status::Fail,
                "made for TDX, with keys of Secure Boot, which refuse the guest's kernel",
            ),
            (Tee::Tdx, _) => (Status::Pass, "made for TDX"),
            (_, Build { snp: false, .. }) => (Status::Fail, "not made for SEV-SNP"),
            (_, Build { hashes: false, .. }) => {
                (Status::Fail, "made for SEV-SNP, does not check the kernel's hashes")
            }
            _ => (Status::Pass, "made for SEV-SNP, checks the kernel's hashes"),
        }
    }

    /// Reads an image by its variables, in its beginning, and the table at its end. What is no such table
    /// says nothing.
    ///
    /// The table, from the end: 32 bytes of reset vector; before them the entry of the table as a whole; before it the
    /// other entries. An entry ends with its length, 2 bytes, and its GUID, 16 bytes; its data is before them.
    pub(crate) fn parse(start: &[u8], end: &[u8]) -> Build {
        const RESET_VECTOR: usize = 32;
        const TABLE: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);
        const SEV_HASHES: [u8; 16] = guid(0x7255_371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454);
        const SEV_METADATA: [u8; 16] = guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);
        const SEV_RESET_BLOCK: [u8; 16] = guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
        const TDX_METADATA: [u8; 16] = guid(0xe47a_6535, 0x984a, 0x4798, 0x865e_4685_a7bf_8ec2);

        let mut build = Build { secure_boot: has_platform_key(start), ..Build::default() };
        let Some(before) = end.len().checked_sub(RESET_VECTOR) else { return build };
        let Some((TABLE, _, mut entries)) = entry(&end[..before], true) else { return build };
        let (mut metadata, mut reset_block) = (false, false);
        while let Some((guid, data, front)) = entry(entries, false) {
            match guid {
                // Address and size of the place; builds that do not check the hashes have it empty.
                SEV_HASHES => build.hashes = data.len() == 8 && data[4..] != [0; 4],
                SEV_METADATA => metadata = data.len() == 4,
                SEV_RESET_BLOCK => reset_block = data.len() == 4,
                TDX_METADATA => build.tdx = data.len() == 4,
                _ => {}
            }
            entries = front;
        }
        build.snp = metadata && reset_block;
        build
    }
}

/// Whether there is a variable PK (UEFI specification, 32.3; header: `MdeModulePkg`'s
/// `AUTHENTICATED_VARIABLE_HEADER`, 60 bytes, with `EFI_GLOBAL_VARIABLE` at 44 and the name behind it).
fn has_platform_key(variables: &[u8]) -> bool {
    const START_AND_ADDED: [u8; 3] = [0xaa, 0x55, 0x3f];
    const VENDOR: usize = 44;
    const NAME: usize = 60;
    const PK: &[u8] = b"P\0K\0\0\0";
    const GLOBAL: [u8; 16] = guid(0x8be4_df61, 0x93ca, 0x11d2, 0xaa0d_00e0_9803_2b8c);
    variables.windows(NAME + PK.len()).any(|variable| {
        variable.starts_with(&START_AND_ADDED)
            && variable[VENDOR..NAME] == GLOBAL
            && variable[NAME..] == *PK
    })
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
        assert_eq!(
            Build::parse(&[], &all),
            Build { snp: true, hashes: true, tdx: true, secure_boot: false }
        );
        let no_hashes = image(&[(METADATA, &[0; 4]), (RESET, &[0; 4]), (HASHES, &[0; 8])]);
        assert_eq!(Build::parse(&[], &no_hashes), Build { snp: true, ..Build::default() });
        assert_eq!(Build::parse(&[], &image(&[(METADATA, &[0; 4])])), Build::default());
        assert_eq!(Build::parse(&[], &image(&[])), Build::default());
    }

    #[test]
    fn a_platform_key_is_told_from_other_variables() {
        let variable = |state: u8, name: &str| {
            let mut bytes = vec![0xff; 72];
            bytes.extend([0xaa, 0x55, state, 0]);
            bytes.resize(72 + 44, 0);
            bytes.extend(parse_guid("8be4df61-93ca-11d2-aa0d-00e098032b8c"));
            bytes.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
            bytes.extend([0, 0, 1, 2, 3]);
            Build::parse(&bytes, &[]).secure_boot
        };
        assert!(variable(0x3f, "PK"));
        // Deleted, and others'.
        assert!(!variable(0x3c, "PK"));
        assert!(!variable(0x3f, "KEK"));
        assert!(!variable(0x3f, "PKx"));
    }

    /// The images that `cargo xtask` fetches; their packages say what they are made for.
    #[test]
    fn debians_images_are_what_their_packages_say() {
        let prefix = std::env::var_os("NACRE_PREFIX").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre"),
            PathBuf::from,
        );
        for (name, expected) in [
            ("OVMF.amdsev.fd", Build { snp: true, hashes: true, tdx: true, secure_boot: false }),
            ("OVMF.inteltdx.fd", Build { snp: true, hashes: false, tdx: true, secure_boot: false }),
            (
                "OVMF.inteltdx.ms.fd",
                Build { snp: true, hashes: false, tdx: true, secure_boot: true },
            ),
        ] {
            let path = prefix.join("firmware/usr/share/ovmf").join(name);
            let Ok(image) = std::fs::read(&path) else {
                println!("SKIPPED: {} is absent: cargo xtask setup fetches it", path.display());
                continue;
            };
            let end = &image[image.len() - TABLE_BYTES..];
            assert_eq!(Build::parse(&image[..VARIABLES_BYTES], end), expected, "{name}");
        }
    }

    #[test]
    fn images_that_are_cut_or_lie_say_nothing() {
        let image = image(&[(TDX, &[1, 0, 0, 0]), (METADATA, &[0; 4]), (RESET, &[0; 4])]);
        for start in 0..image.len() {
            let build = Build::parse(&[], &image[start..]);
            assert!(build == Build::default() || start <= 100, "{start}");
        }
        for at in 100..image.len() - 32 {
            for value in [0, 1, 17, 18, 0xff] {
                let mut image = image.clone();
                image[at] = value;
                let _ = Build::parse(&image, &image);
            }
        }
        assert_eq!(Build::parse(&[0xaa; 4096], &[0xff; 4096]), Build::default());
    }
}
