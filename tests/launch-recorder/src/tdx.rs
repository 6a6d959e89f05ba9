//! A recorded launch of a TDX guest.

use sha2::{Digest as _, Sha384};

use crate::abi::{self, cpuid_entry};
use crate::record::{Call, Record, RecordError, fixed};

const PAGE_SIZE: usize = 4096;

/// A whole launch, from the making of the VM to the first processor's run.
#[derive(Debug)]
pub struct TdxLaunch {
    /// `ATTRIBUTES`.
    pub attributes: u64,
    /// Extended features that the guest may use.
    pub xfam: u64,
    /// `MRCONFIGID`.
    pub mr_config_id: [u8; 48],
    /// `MROWNER`.
    pub mr_owner: [u8; 48],
    /// `MROWNERCONFIG`.
    pub mr_owner_config: [u8; 48],
    /// CPUID leaves that the host configured.
    pub cpuid: Vec<CpuidEntry>,
    /// Of each processor: the guest address of the firmware's hand-off blocks.
    pub vcpus: Vec<u64>,
    /// Memory put into the guest, in order.
    pub regions: Vec<TdxRegion>,
}

/// One CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidEntry {
    /// Leaf and sub-leaf.
    pub leaf: (u32, u32),
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// Consecutive pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxRegion {
    /// Guest address of the first.
    pub gpa: u64,
    /// Whether what is in them is measured; that they are there always is.
    pub measured: bool,
    /// What is in them.
    pub contents: Vec<u8>,
}

impl TdxLaunch {
    /// Finds the launch in a record.
    ///
    /// # Errors
    /// If the record has anything else than one launch of a TDX guest, complete and in order.
    pub fn of(record: &Record) -> Result<TdxLaunch, RecordError> {
        let incomplete = |what: &str| RecordError::Incomplete(what.to_owned());
        let mut calls = record.calls.iter().filter(|call| {
            !matches!(call, Call::MemoryRegion { .. } | Call::MemoryAttributes { .. })
        });
        if calls.next() != Some(&Call::CreateVm { vm_type: abi::TDX_VM }) {
            return Err(incomplete("no VM of type TDX was made first"));
        }
        let Some(Call::TdxInitVm {
            attributes,
            xfam,
            mr_config_id,
            mr_owner,
            mr_owner_config,
            cpuid,
        }) = calls.next()
        else {
            return Err(incomplete("the VM was not initialized with KVM_TDX_INIT_VM"));
        };
        let (mut vcpus, mut regions) = (Vec::new(), Vec::new());
        loop {
            match calls.next() {
                Some(Call::TdxInitVcpu { rcx }) => vcpus.push(*rcx),
                Some(Call::TdxInitMemRegion { gpa, length, measured, contents }) => {
                    let contents =
                        record.contents("KVM_TDX_INIT_MEM_REGION", *contents, *length)?;
                    let contents = contents.to_vec();
                    regions.push(TdxRegion { gpa: *gpa, measured: *measured, contents });
                }
                Some(Call::TdxFinalizeVm) => break,
                _ => return Err(incomplete("no KVM_TDX_FINALIZE_VM follows the pages")),
            }
        }
        if calls.next() != Some(&Call::Run) || calls.next().is_some() {
            return Err(incomplete("no processor ran, or something else was asked for"));
        }
        let (entries, rest) = cpuid.0.as_chunks::<{ cpuid_entry::SIZE }>();
        if !rest.is_empty() {
            return Err(incomplete("the table of CPUID leaves ends within one"));
        }
        Ok(TdxLaunch {
            attributes: *attributes,
            xfam: *xfam,
            mr_config_id: fixed("MRCONFIGID", mr_config_id)?,
            mr_owner: fixed("MROWNER", mr_owner)?,
            mr_owner_config: fixed("MROWNERCONFIG", mr_owner_config)?,
            cpuid: entries.iter().map(CpuidEntry::of).collect(),
            vcpus,
            regions,
        })
    }

    /// What the guest's reports would have as `MRTD` (Intel TDX Module ABI, `TDH.MEM.PAGE.ADD`,
    /// `TDH.MR.EXTEND`): each page's address, and where it is measured its contents in pieces.
    #[must_use]
    pub fn mr_td(&self) -> [u8; 48] {
        const PIECE: usize = 256;
        let mut hash = Sha384::new();
        for region in &self.regions {
            let pages = region.contents.chunks(PAGE_SIZE);
            for (gpa, page) in (region.gpa..).step_by(PAGE_SIZE).zip(pages) {
                hash.update(operation(b"MEM.PAGE.ADD", gpa));
                if region.measured {
                    for (gpa, piece) in (gpa..).step_by(PIECE).zip(page.chunks(PIECE)) {
                        hash.update(operation(b"MR.EXTEND", gpa));
                        hash.update(piece);
                    }
                }
            }
        }
        hash.finalize().into()
    }
}

impl CpuidEntry {
    fn of(entry: &[u8; cpuid_entry::SIZE]) -> CpuidEntry {
        let at = |offset: usize| {
            let mut value = [0; 4];
            value.copy_from_slice(&entry[offset..offset + 4]);
            u32::from_le_bytes(value)
        };
        CpuidEntry {
            leaf: (at(cpuid_entry::FUNCTION), at(cpuid_entry::INDEX)),
            registers: [cpuid_entry::EAX, cpuid_entry::EBX, cpuid_entry::ECX, cpuid_entry::EDX]
                .map(at),
        }
    }
}

/// What the module hashes for one operation: its name and an address, in 128 bytes.
fn operation(name: &[u8], gpa: u64) -> [u8; 128] {
    let mut buffer = [0; 128];
    buffer[..name.len()].copy_from_slice(name);
    buffer[16..24].copy_from_slice(&gpa.to_le_bytes());
    buffer
}
