//! The guest's kernel, taken out of Debian's bzImage.
//!
//! A bzImage is a loader around a compressed ELF file. Unpacked once, here, the VM starts at the
//! ELF's PVH entry and no guest has to decompress it again, which under software emulation is a
//! quarter of the boot. The price: the loader inside the bzImage is what places the kernel at a
//! random physical address, so this start has no KASLR.
//!
//! Format: Linux, Documentation/arch/x86/boot.rst.

use std::io::Read;

use crate::elf::{Elf, ElfError};

/// No kernel is this big; a payload that inflates further is no kernel.
const MAX_VMLINUX: u32 = 512 << 20;

/// The first bytes of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// `payload_offset` and `payload_length` exist from this boot protocol on.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

/// The note that names the PVH entry point (xen/interface/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Why no kernel could be taken out.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not what a boot loader would take.
    #[error("the file is no bzImage: {0}")]
    NoBzImage(&'static str),
    /// The header points outside the file.
    #[error("the bzImage is cut short: its payload ends behind the end of the file")]
    CutShort,
    /// Another compression.
    #[error("the kernel is not compressed with zstd; pin one that is (CONFIG_KERNEL_ZSTD=y)")]
    NotZstd,
    /// It says so, or it went on.
    #[error("the kernel inflates to more than {MAX_VMLINUX} bytes")]
    TooBig,
    /// zstd's own words.
    #[error("failed to decompress the kernel: {0}")]
    Zstd(#[source] std::io::Error),
    /// More or fewer bytes than its trailer says.
    #[error("the kernel inflates to {found} bytes, the bzImage says {declared}")]
    Size {
        /// In the bzImage.
        declared: u32,
        /// In fact.
        found: usize,
    },
    /// The content is not a kernel to start.
    #[error("what the bzImage holds is no kernel: {0}")]
    Elf(#[from] ElfError),
    /// It cannot be started directly.
    #[error("the kernel has no PVH entry point; pin one that has (CONFIG_PVH=y)")]
    NoPvh,
}

/// The uncompressed ELF kernel inside a bzImage, checked to be one that starts by PVH.
pub fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, KernelError> {
    let payload = payload(bzimage)?;
    // The build appends the uncompressed size to the zstd frame (scripts/Makefile.lib, size_append).
    let (frame, size) = payload.split_last_chunk::<4>().ok_or(KernelError::CutShort)?;
    let declared = u32::from_le_bytes(*size);
    if !frame.starts_with(&ZSTD_MAGIC) {
        return Err(KernelError::NotZstd);
    }
    if declared > MAX_VMLINUX {
        return Err(KernelError::TooBig);
    }
    let mut kernel = Vec::new();
    zstd::Decoder::with_buffer(frame)
        .and_then(|decoder| decoder.take(u64::from(declared) + 1).read_to_end(&mut kernel))
        .map_err(KernelError::Zstd)?;
    if kernel.len() as u64 != u64::from(declared) {
        return Err(KernelError::Size { declared, found: kernel.len() });
    }
    if !Elf::parse(&kernel)?.has_note(b"Xen", XEN_ELFNOTE_PHYS32_ENTRY)? {
        return Err(KernelError::NoPvh);
    }
    Ok(kernel)
}

/// The compressed kernel by the setup header's fields.
fn payload(bzimage: &[u8]) -> Result<&[u8], KernelError> {
    let at = |offset: usize, size: usize| {
        bzimage.get(offset..offset + size).ok_or(KernelError::NoBzImage("it is too short"))
    };
    let u32_at = |offset| at(offset, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if at(0x1fe, 2)? != [0x55, 0xaa] || at(0x202, 4)? != b"HdrS" {
        return Err(KernelError::NoBzImage("the setup header's signature is absent"));
    }
    let version = at(0x206, 2)?;
    if u16::from_le_bytes([version[0], version[1]]) < PROTOCOL_WITH_PAYLOAD {
        return Err(KernelError::NoBzImage("its boot protocol is older than 2.08"));
    }
    let sectors = match at(0x1f1, 1)? {
        [0] => 4, // "for backwards compatibility"
        other => usize::from(other[0]),
    };
    let start = u64::from(u32_at(0x248)?) + (sectors as u64 + 1) * 512;
    let end = start + u64::from(u32_at(0x24c)?);
    let index = |offset: u64| usize::try_from(offset).map_err(|_| KernelError::CutShort);
    bzimage.get(index(start)?..index(end)?).ok_or(KernelError::CutShort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf_file;

    const PVH_NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01";

    fn bzimage(kernel: &[u8], declared: u32) -> Vec<u8> {
        let payload = zstd::encode_all(kernel, 1).unwrap();
        bzimage_of(&[payload, declared.to_le_bytes().to_vec()].concat())
    }

    fn bzimage_of(payload: &[u8]) -> Vec<u8> {
        const LEAD: usize = 16;
        let mut image = vec![0; 2 * 512 + LEAD];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&u32::try_from(LEAD).unwrap().to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image.extend([0; 32]);
        image
    }

    fn size(kernel: &[u8]) -> u32 {
        u32::try_from(kernel.len()).unwrap()
    }

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        let kernel = elf_file(4, PVH_NOTE, b"");
        assert_eq!(vmlinux(&bzimage(&kernel, size(&kernel))).unwrap(), kernel);
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_with_the_reason() {
        let kernel = elf_file(4, PVH_NOTE, b"");
        let good = bzimage(&kernel, size(&kernel));
        let why = |image: &[u8]| vmlinux(image).unwrap_err();
        assert!(matches!(why(b""), KernelError::NoBzImage(_)));
        assert!(matches!(why(&[0; 4096]), KernelError::NoBzImage(_)));
        assert!(matches!(why(&good[..good.len() - 33]), KernelError::CutShort));
        let lies = bzimage(&kernel, size(&kernel) - 1);
        assert!(matches!(why(&lies), KernelError::Size { .. }));
        let lies = bzimage(&kernel, MAX_VMLINUX + 1);
        assert!(matches!(why(&lies), KernelError::TooBig));
        assert!(matches!(why(&bzimage_of(b"\x1f\x8b gzip")), KernelError::NotZstd));
        let text = b"no kernel";
        assert!(matches!(why(&bzimage(text, size(text))), KernelError::Elf(_)));
        let old = elf_file(4, b"", b"");
        assert!(matches!(why(&bzimage(&old, size(&old))), KernelError::NoPvh));
        for length in 0..good.len() - 32 {
            why(&good[..length]);
        }
    }
}
