//! The store in memory: a tmpfs with a quota.

use std::ffi::CString;
use std::path::Path;

use nacre_protocol::guest_memory::MemoryStore;
use rustix::mount::MountFlags;

use super::StorageError;

/// Mounts a tmpfs of the size that [`MemoryStore`] gives. The kernel's own default is half of the memory, but
/// for each tmpfs, and without a thought for what inodes take. Returns the quota in bytes.
pub(super) fn mount(target: &Path) -> Result<u64, StorageError> {
    let information = rustix::system::sysinfo();
    let memory = information.totalram.saturating_mul(information.mem_unit.into());
    let store = MemoryStore::of(memory);
    let quota = store.quota_bytes;
    let doing = format!("mount a tmpfs of {} MiB on {}", quota >> 20, target.display());
    let options = CString::new(options(store)).map_err(StorageError::step(&*doing))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(StorageError::step(doing))?;
    Ok(quota)
}

fn options(store: MemoryStore) -> String {
    format!("mode=0700,size={},nr_inodes={}", store.quota_bytes, store.inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_inodes_are_bounded() {
        let store = MemoryStore::of(576 << 20);
        assert_eq!(options(store), "mode=0700,size=402653184,nr_inodes=98304");
    }
}
