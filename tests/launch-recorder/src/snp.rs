//! A recorded launch of an SEV-SNP guest.

use nacre_evidence::snp::{LaunchDigest, PageType, VMSA_GPA};

use crate::abi;
use crate::record::{Call, Record, RecordError, fixed};
use crate::vmsa::{self, Vcpu};

const PAGE_SIZE: usize = 4096;

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
        let mut digest = LaunchDigest::new();
        for update in &self.updates {
            update.extend(&mut digest);
        }
        for vcpu in &self.vcpus {
            let page = vmsa::page(vcpu, self.guest_features);
            digest.update(PageType::Vmsa, VMSA_GPA, &page);
        }
        digest.finish()
    }

    /// The contents of the first page of that type.
    #[must_use]
    pub fn contents(&self, page_type: PageType, gpa: u64) -> Option<&[u8]> {
        let update = self.updates.iter().find(|u| u.page_type == page_type && u.gpa == gpa)?;
        update.contents.as_deref()
    }
}

impl SnpUpdate {
    fn extend(&self, digest: &mut LaunchDigest) {
        const NOTHING: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let contents = self.contents.as_deref().unwrap_or_default();
        let mut pages = contents.as_chunks::<PAGE_SIZE>().0.iter();
        for gpa in (self.gpa..self.gpa + self.length).step_by(PAGE_SIZE) {
            digest.update(self.page_type, gpa, pages.next().unwrap_or(&NOTHING));
        }
    }
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
