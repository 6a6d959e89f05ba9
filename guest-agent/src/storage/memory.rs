//! The store in memory: a tmpfs with a quota.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::MountFlags;

use super::StorageError;

/// One file, directory or link for this many bytes of quota. Each costs the kernel about a KiB that `size=`
/// does not count, so the worst case, a store of empty files, adds an eighth of the memory to the half.
const BYTES_PER_INODE: u64 = 4096;

/// Mounts a tmpfs of half of the memory: what images and writable layers may take at most is as much as
/// they leave for the programs that run from them, the agent and the kernel. The kernel's own default is
/// the same share, but for each tmpfs. Returns the quota in bytes.
pub(super) fn mount(target: &Path) -> Result<u64, StorageError> {
    let information = rustix::system::sysinfo();
    let memory = information.totalram.saturating_mul(information.mem_unit.into());
    let quota = quota_of(memory);
    let doing = format!("mount a tmpfs of {} MiB on {}", quota >> 20, target.display());
    let options = CString::new(options(quota)).map_err(StorageError::step(&*doing))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(StorageError::step(doing))?;
    Ok(quota)
}

/// Half, in whole pages.
fn quota_of(memory: u64) -> u64 {
    (memory / 2) & !4095
}

fn options(quota: u64) -> String {
    format!("mode=0700,size={quota},nr_inodes={}", quota / BYTES_PER_INODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_half_of_the_memory_and_bounds_inodes() {
        let quota = quota_of((512 << 20) + 4097);
        assert_eq!(quota, 256 << 20);
        assert_eq!(options(quota), "mode=0700,size=268435456,nr_inodes=65536");
    }
}
