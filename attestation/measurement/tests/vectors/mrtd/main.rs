//! MRTD by the `igvm` crate (Microsoft): of the synthetic images of tests/tdx.rs, and of TDVF files.
//!
//! It reads sections by itself, in the plainest way, so that nothing is shared with what is tested.

use igvm::IgvmDirectiveHeader;
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType};

#[path = "../../synthetic/mod.rs"]
mod synthetic;

fn mrtd(image: &[u8]) -> String {
    let at = image.windows(4).rposition(|bytes| bytes == b"TDVF").expect("TDVF's metadata");
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&image[at..at + size]);
        usize::try_from(u64::from_le_bytes(bytes)).expect("small")
    };
    let mut pages = Vec::new();
    for section in 0..number(at + 12, 4) {
        let at = at + 16 + 32 * section;
        let (offset, length) = (number(at, 4), number(at + 4, 4));
        let (address, size, measured) = (number(at + 8, 8), number(at + 16, 8), number(at + 28, 4));
        for page in (0..size).step_by(4096) {
            let data = match length {
                0 => vec![0; 4096],
                _ => image[offset + page..offset + page + 4096].to_vec(),
            };
            pages.push(IgvmDirectiveHeader::PageData {
                gpa: (address + page) as u64,
                compatibility_mask: 1,
                flags: IgvmPageDataFlags::new().with_unmeasured(measured == 0),
                data_type: IgvmPageDataType::NORMAL,
                data,
            });
        }
    }
    hex::encode(igvm::measurement::generate_tdx_measurement(&pages, 1).expect("pages"))
}

fn main() {
    for size in [8192, 65536] {
        println!("synthetic {size} {}", mrtd(&synthetic::tdx(size)));
    }
    for path in std::env::args().skip(1) {
        println!("{path} {}", mrtd(&std::fs::read(&path).expect("a file")));
    }
}
