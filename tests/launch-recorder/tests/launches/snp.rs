//! SEV-SNP: what was configured arrives, and what is measured is what was predicted.

use std::fs;

use nacre_evidence::snp::KernelHashes;
use nacre_hypervisor::{Confidential, GuestPolicy, IdBlock, SnpCpu};
use nacre_launch_recorder::record::Record;
use nacre_launch_recorder::snp::{PageType, SnpLaunch};
use nacre_measurement::snp::{SNP_ACTIVE, SnpInputs, measure};

use crate::lab::{Lab, Release, assert_memory_is_private, flip};

pub(crate) const FIRMWARE: &str = "usr/share/ovmf/OVMF.amdsev.fd";
const HOST_DATA: [u8; 32] = *b"the digest of the pod's initdata";

fn plain(lab: &Lab) -> nacre_hypervisor::SnpLaunch {
    nacre_hypervisor::SnpLaunch {
        firmware: lab.firmware.clone(),
        policy: GuestPolicy::new(true),
        host_data: HOST_DATA,
        cpu: SnpCpu::default(),
        id_block: None,
    }
}

async fn launched(
    lab: &Lab,
    launch: &nacre_hypervisor::SnpLaunch,
    vcpus: u32,
) -> (SnpLaunch, Record) {
    let record = lab.launch(Confidential::Snp(launch.clone()), vcpus).await.unwrap();
    (SnpLaunch::of(&record).unwrap(), record)
}

/// What an owner computes beforehand.
pub(crate) fn predicted(lab: &Lab, cpu: SnpCpu, vcpus: u32) -> [u8; 48] {
    let kernel = fs::read(&lab.kernel).unwrap();
    let initrd = fs::read(&lab.initrd).unwrap();
    measure(&SnpInputs {
        firmware: &fs::read(&lab.firmware).unwrap(),
        hashes: KernelHashes::of(&kernel, &initrd, &lab.command_line),
        vcpus,
        cpu_signature: cpu.cpuid_signature(),
        guest_features: SNP_ACTIVE,
    })
    .unwrap()
}

/// Each number of processors, on one QEMU.
async fn launches_are_as_configured_and_predicted(release: Release) {
    let Some(lab) = Lab::open(release, FIRMWARE) else { return };
    let launch = plain(&lab);
    for vcpus in [1, 2, 4] {
        let (recorded, record) = launched(&lab, &launch, vcpus).await;
        assert_eq!(recorded.policy, launch.policy.bits());
        assert_eq!(recorded.host_data, HOST_DATA);
        assert_eq!(recorded.guest_features, SNP_ACTIVE);
        assert_eq!(recorded.id_block, None);
        assert!(!recorded.author_key && !recorded.vcek_disabled);
        assert_eq!(recorded.vcpus.len(), vcpus as usize);
        for vcpu in &recorded.vcpus {
            assert_eq!(vcpu.rdx(), u64::from(launch.cpu.cpuid_signature()));
        }
        assert_eq!(recorded.vcpus[0].reset_vector(), 0xffff_fff0);
        assert_memory_is_private(&record);
        assert_eq!(recorded.digest(), predicted(&lab, launch.cpu, vcpus), "{vcpus} processors");
    }
}

#[tokio::test]
async fn qemu_10_launches_what_is_configured_and_predicted() {
    launches_are_as_configured_and_predicted(Release::V10).await;
}

#[tokio::test]
async fn qemu_11_launches_what_is_configured_and_predicted() {
    launches_are_as_configured_and_predicted(Release::V11).await;
}

/// Every processor model that a configuration may name.
async fn models_are_predicted(release: Release) {
    let Some(lab) = Lab::open(release, FIRMWARE) else { return };
    let mut digests = Vec::new();
    for cpu in SnpCpu::ALL {
        let launch = nacre_hypervisor::SnpLaunch { cpu, ..plain(&lab) };
        let (recorded, _) = launched(&lab, &launch, 2).await;
        assert_eq!(recorded.digest(), predicted(&lab, cpu, 2), "{cpu}");
        digests.push(recorded.digest());
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), SnpCpu::ALL.len(), "each model has a measurement of its own");
}

#[tokio::test]
async fn qemu_10_launches_every_model_as_predicted() {
    models_are_predicted(Release::V10).await;
}

#[tokio::test]
async fn qemu_11_launches_every_model_as_predicted() {
    models_are_predicted(Release::V11).await;
}

/// What the guest's owner signed, and a policy that is not the usual one.
async fn id_block_arrives(release: Release) {
    let Some(lab) = Lab::open(release, FIRMWARE) else { return };
    let policy = GuestPolicy::new(false);
    let mut block = [0; IdBlock::BLOCK];
    block[..48].copy_from_slice(&predicted(&lab, SnpCpu::default(), 1));
    block[0x58..].copy_from_slice(&policy.bits().to_le_bytes());
    let mut auth: Vec<u8> = (0..=255).cycle().take(IdBlock::AUTHENTICATION).collect();
    for author_key in [true, false] {
        if !author_key {
            auth[0x880..0xc84].fill(0);
        }
        let id_block = IdBlock::new(&block, &auth).unwrap();
        let launch =
            nacre_hypervisor::SnpLaunch { policy, id_block: Some(id_block), ..plain(&lab) };
        let (recorded, _) = launched(&lab, &launch, 1).await;
        assert_eq!(recorded.policy, policy.bits());
        let arrived = recorded.id_block.as_ref().unwrap();
        assert_eq!(arrived.block, block);
        assert_eq!(arrived.auth, auth);
        assert_eq!(recorded.author_key, author_key);
        assert_eq!(recorded.host_data, HOST_DATA);
        assert_eq!(recorded.digest(), arrived.block[..48], "the guest is the one that was signed");
    }
}

#[tokio::test]
async fn qemu_10_hands_the_id_block_over() {
    id_block_arrives(Release::V10).await;
}

#[tokio::test]
async fn qemu_11_hands_the_id_block_over() {
    id_block_arrives(Release::V11).await;
}

/// One bit of anything that is booted changes the measurement, to what is predicted for the changed files.
#[tokio::test]
async fn a_changed_bit_changes_what_is_measured() {
    let Some(mut lab) = Lab::open(Release::V10, FIRMWARE) else { return };
    let launch = plain(&lab);
    let mut digests = Vec::new();
    let mut measure = async |lab: &Lab, what: &str| {
        let (recorded, _) = launched(lab, &launch, 1).await;
        assert_eq!(recorded.digest(), predicted(lab, launch.cpu, 1), "{what}");
        assert!(!digests.contains(&recorded.digest()), "{what} is not measured");
        digests.push(recorded.digest());
    };
    measure(&lab, "nothing").await;
    let last = |path| usize::try_from(fs::metadata(path).unwrap().len()).unwrap() - 1;
    flip(&lab.initrd, last(&lab.initrd));
    measure(&lab, "the initrd").await;
    flip(&lab.kernel, last(&lab.kernel));
    measure(&lab, "the kernel").await;
    lab.command_line.push_str(" x");
    measure(&lab, "the command line").await;
    flip(&lab.firmware, 0);
    measure(&lab, "the firmware").await;
}

/// The host's word for the files that are booted is in one page, and the guest's own in no other.
#[tokio::test]
async fn hashes_of_what_is_booted_are_in_the_measured_page() {
    let Some(lab) = Lab::open(Release::V10, FIRMWARE) else { return };
    let (recorded, _) = launched(&lab, &plain(&lab), 1).await;
    let kernel = fs::read(&lab.kernel).unwrap();
    let hashes = KernelHashes::of(&kernel, &fs::read(&lab.initrd).unwrap(), &lab.command_line);
    let pages = recorded.updates.iter().filter(|update| {
        let contents = update.contents.as_deref().unwrap_or_default();
        [hashes.kernel, hashes.initrd, hashes.command_line]
            .iter()
            .all(|hash| contents.windows(hash.len()).any(|window| window == hash))
    });
    let pages: Vec<_> = pages.map(|update| (update.page_type, update.length)).collect();
    assert_eq!(pages, [(PageType::Normal, 4096)]);
    let of_type = |page_type| recorded.updates.iter().filter(|u| u.page_type == page_type).count();
    assert_eq!(of_type(PageType::Secrets), 1);
    assert_eq!(of_type(PageType::Cpuid), 1);
}
