//! A recorded launch of an SEV-SNP guest.

use sha2::{Digest as _, Sha384};

use crate::abi;
use crate::record::{Call, Record, RecordError, fixed};
use crate::vmsa::{self, Vcpu};

const PAGE_SIZE: usize = 4096;

/// Where firmware says that it puts the page with a processor's first state: the highest of 48 bits (SEV-SNP
/// Firmware ABI Specification, `SNP_LAUNCH_FINISH`).
const VMSA_GPA: u64 = 0xffff_ffff_f000;

/// What every SNP guest has: SEV-SNP active (AMD64 Architecture Programmer's Manual 2, `SEV_FEATURES`).
const SNP_ACTIVE: u64 = 1;

/// A whole launch, from the making of the VM to the first processor's run.
#[derive(Debug)]
pub struct SnpLaunch {
    /// The guest policy.
    pub policy: u64,
    /// `SEV_FEATURES` of its processors: those asked for, and that SEV-SNP is active.
    pub guest_features: u64,
    /// Pages put into the guest, in order.
    pub updates: Vec<SnpUpdate>,
    /// Its processors, in order.
    pub vcpus: Vec<Vcpu>,
    /// `HOST_DATA`.
    pub host_data: [u8; 32],
    /// The ID block and its authentication information, if there is one.
    pub id_block: Option<IdBlock>,
    /// Whether an author key has signed the ID key.
    pub author_key: bool,
    /// Whether the guest's reports may not be signed with the chip's own key.
    pub vcek_disabled: bool,
}

/// What the guest's owner signed (SEV-SNP firmware ABI, `SNP_LAUNCH_FINISH`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdBlock {
    /// ID block.
    pub block: [u8; abi::ID_BLOCK_SIZE],
    /// ID authentication information.
    pub auth: Vec<u8>,
}

/// What a page is for, by the number that firmware knows it by (`SNP_LAUNCH_UPDATE`, `PAGE_TYPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Anything.
    Normal = abi::PAGE_NORMAL,
    /// A processor's first state; KVM puts it in by itself.
    Vmsa = 2,
    /// Zeros.
    Zero = abi::PAGE_ZERO,
    /// What is not measured.
    Unmeasured = abi::PAGE_UNMEASURED,
    /// For keys that firmware fills in.
    Secrets = abi::PAGE_SECRETS,
    /// CPUID values.
    Cpuid = abi::PAGE_CPUID,
}

/// Consecutive pages of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpUpdate {
    /// Guest address of the first.
    pub gpa: u64,
    /// Type of all of them.
    pub page_type: PageType,
    /// Of all of them, in bytes.
    pub length: u64,
    /// What is in them: of normal pages and of those with CPUID values.
    pub contents: Option<Vec<u8>>,
}

impl SnpLaunch {
    /// Finds the launch in a record.
    ///
    /// # Errors
    /// If the record has anything else than one launch of an SNP guest, complete, and in the only order that
    /// firmware accepts.
    pub fn of(record: &Record) -> Result<SnpLaunch, RecordError> {
        let incomplete = |what: &str| RecordError::Incomplete(what.to_owned());
        let mut calls = record.calls.iter().filter(|call| {
            !matches!(call, Call::MemoryRegion { .. } | Call::MemoryAttributes { .. })
        });
        if calls.next() != Some(&Call::CreateVm { vm_type: abi::SNP_VM }) {
            return Err(incomplete("no VM of type SNP was made first"));
        }
        let Some(Call::SevInit2 { vmsa_features, .. }) = calls.next() else {
            return Err(incomplete("the VM was not initialized with KVM_SEV_INIT2"));
        };
        let Some(Call::SnpLaunchStart { policy, .. }) = calls.next() else {
            return Err(incomplete("no KVM_SEV_SNP_LAUNCH_START follows"));
        };
        let (mut updates, mut vcpus) = (Vec::new(), Vec::new());
        let finish = loop {
            match calls.next() {
                Some(Call::SnpLaunchUpdate { gpa, length, page_type, contents }) => {
                    let contents = contents
                        .map(|extent| record.contents("KVM_SEV_SNP_LAUNCH_UPDATE", extent, *length))
                        .transpose()?
                        .map(<[u8]>::to_vec);
                    let page_type = known(*page_type)?;
                    updates.push(SnpUpdate { gpa: *gpa, page_type, length: *length, contents });
                }
                Some(Call::VcpuState { registers, special_registers }) => {
                    let registers = fixed("kvm_regs", registers)?;
                    let special_registers = fixed("kvm_sregs", special_registers)?;
                    vcpus.push(Vcpu { registers, special_registers });
                }
                Some(finish @ Call::SnpLaunchFinish { .. }) => break finish,
                _ => return Err(incomplete("no KVM_SEV_SNP_LAUNCH_FINISH follows the pages")),
            }
        };
        if calls.next() != Some(&Call::Run) || calls.next().is_some() {
            return Err(incomplete("no processor ran, or something else was asked for"));
        }
        let Call::SnpLaunchFinish { host_data, author_key, vcek_disabled, id_block, id_auth } =
            finish
        else {
            return Err(incomplete("no KVM_SEV_SNP_LAUNCH_FINISH"));
        };
        let id_block = match (id_block, id_auth) {
            (Some(block), Some(auth)) => {
                Some(IdBlock { block: fixed("the ID block", block)?, auth: auth.0.clone() })
            }
            (None, None) => None,
            _ => return Err(incomplete("an ID block goes with authentication information")),
        };
        Ok(SnpLaunch {
            policy: *policy,
            guest_features: vmsa_features | SNP_ACTIVE,
            updates,
            vcpus,
            host_data: fixed("HOST_DATA", host_data)?,
            id_block,
            author_key: *author_key,
            vcek_disabled: *vcek_disabled,
        })
    }

    /// What the guest's reports would have as their measurement.
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        let mut digest = [0; 48];
        for update in &self.updates {
            digest = update.extend(digest);
        }
        for vcpu in &self.vcpus {
            let page = vmsa::page(vcpu, self.guest_features);
            digest = extend(digest, PageType::Vmsa, VMSA_GPA, &page);
        }
        digest
    }

    /// The contents of the first page of that type.
    #[must_use]
    pub fn contents(&self, page_type: PageType, gpa: u64) -> Option<&[u8]> {
        let update = self.updates.iter().find(|u| u.page_type == page_type && u.gpa == gpa)?;
        update.contents.as_deref()
    }
}

impl SnpUpdate {
    fn extend(&self, mut digest: [u8; 48]) -> [u8; 48] {
        const NOTHING: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let contents = self.contents.as_deref().unwrap_or_default();
        let mut pages = contents.as_chunks::<PAGE_SIZE>().0.iter();
        for gpa in (self.gpa..self.gpa + self.length).step_by(PAGE_SIZE) {
            digest = extend(digest, self.page_type, gpa, pages.next().unwrap_or(&NOTHING));
        }
        digest
    }
}

/// One page more: the digest of `PAGE_INFO` (SEV-SNP Firmware ABI Specification, `SNP_LAUNCH_UPDATE`).
fn extend(digest_cur: [u8; 48], page_type: PageType, gpa: u64, page: &[u8; PAGE_SIZE]) -> [u8; 48] {
    const LENGTH: u16 = 0x70;
    // No initial migration image, no permissions for VMPL 3, 2 and 1, and a reserved byte.
    const NOT_USED: [u8; 5] = [0; 5];
    // Of all others only what and where they are counts.
    let contents: [u8; 48] = match page_type {
        PageType::Normal | PageType::Vmsa => Sha384::digest(page).into(),
        PageType::Zero | PageType::Unmeasured | PageType::Secrets | PageType::Cpuid => [0; 48],
    };
    Sha384::new()
        .chain_update(digest_cur)
        .chain_update(contents)
        .chain_update(LENGTH.to_le_bytes())
        .chain_update([page_type as u8])
        .chain_update(NOT_USED)
        .chain_update(gpa.to_le_bytes())
        .finalize()
        .into()
}

fn known(page_type: u8) -> Result<PageType, RecordError> {
    match page_type {
        abi::PAGE_NORMAL => Ok(PageType::Normal),
        abi::PAGE_ZERO => Ok(PageType::Zero),
        abi::PAGE_UNMEASURED => Ok(PageType::Unmeasured),
        abi::PAGE_SECRETS => Ok(PageType::Secrets),
        abi::PAGE_CPUID => Ok(PageType::Cpuid),
        other => Err(RecordError::Incomplete(format!("pages of unknown type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use nacre_evidence::snp::{LaunchDigest, PageType as Measured};

    use super::*;

    const ALL: [(PageType, Measured); 6] = [
        (PageType::Normal, Measured::Normal),
        (PageType::Vmsa, Measured::Vmsa),
        (PageType::Zero, Measured::Zero),
        (PageType::Unmeasured, Measured::Unmeasured),
        (PageType::Secrets, Measured::Secrets),
        (PageType::Cpuid, Measured::Cpuid),
    ];

    /// Computed with Python's hashlib by the specification.
    #[test]
    fn the_chain_is_the_specifications() {
        let update = |gpa, page_type, contents: Option<Vec<u8>>| SnpUpdate {
            gpa,
            page_type,
            length: contents.as_ref().map_or(PAGE_SIZE, Vec::len) as u64,
            contents,
        };
        let normal = [[7; PAGE_SIZE], [8; PAGE_SIZE]].concat();
        let updates = [
            update(0x1000, PageType::Normal, Some(normal)),
            update(0x1_0000, PageType::Zero, None),
            update(0x1_1000, PageType::Unmeasured, None),
            update(0x1_2000, PageType::Secrets, None),
            update(0x1_3000, PageType::Cpuid, Some(vec![9; PAGE_SIZE])),
        ];
        let digest = updates.iter().fold([0; 48], |digest, update| update.extend(digest));
        assert_eq!(
            hex::encode(digest),
            "68ebc03eff18c79f420da78119a89353fa890409f8e6d20e496e45d5353c14b23c434f030022998ee3ead9b742c1f014"
        );
    }

    /// The measurement's own code has the same rules, and shares none of the lines above.
    #[test]
    fn each_type_of_page_extends_as_in_the_measurement() {
        let (mut ours, mut theirs) = ([0; 48], LaunchDigest::new());
        for ((page_type, measured), number) in ALL.into_iter().zip(1_u8..) {
            assert_eq!(page_type as u8, number);
            let gpa = u64::from(number) << 12 | u64::from(number) << 40;
            ours = extend(ours, page_type, gpa, &[number; PAGE_SIZE]);
            theirs.update(measured, gpa, &[number; PAGE_SIZE]);
            assert_eq!(ours, theirs.clone().finish(), "{page_type:?}");
        }
    }
}
