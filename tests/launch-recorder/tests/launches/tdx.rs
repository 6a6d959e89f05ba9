//! TDX: what was configured arrives, and MRTD is what was predicted.

use std::fs;

use nacre_hypervisor::{Confidential, QuoteService, TdAttributes};
use nacre_launch_recorder::tdx::TdxLaunch;
use nacre_measurement::tdx::mr_td;

use crate::lab::{Lab, Release, assert_memory_is_private, flip};

pub(crate) const FIRMWARE: &str = "usr/share/ovmf/OVMF.inteltdx.fd";

fn plain(lab: &Lab) -> nacre_hypervisor::TdxLaunch {
    nacre_hypervisor::TdxLaunch {
        firmware: lab.firmware.clone(),
        attributes: TdAttributes::default(),
        mr_config_id: [0x11; 48],
        mr_owner: [0x22; 48],
        mr_owner_config: [0x33; 48],
        quote_generation: None,
    }
}

async fn launched(lab: &Lab, launch: &nacre_hypervisor::TdxLaunch, vcpus: u32) -> TdxLaunch {
    let record = lab.launch(Confidential::Tdx(launch.clone()), vcpus).await.unwrap();
    assert_memory_is_private(&record);
    TdxLaunch::of(&record).unwrap()
}

/// What an owner computes beforehand.
pub(crate) fn predicted(lab: &Lab) -> [u8; 48] {
    mr_td(&fs::read(&lab.firmware).unwrap()).unwrap()
}

#[tokio::test]
async fn qemu_11_launches_what_is_configured_and_predicted() {
    let Some(lab) = Lab::open(Release::V11, FIRMWARE) else { return };
    let launch = plain(&lab);
    for vcpus in [1, 2, 4] {
        let recorded = launched(&lab, &launch, vcpus).await;
        assert_eq!(recorded.attributes, launch.attributes.bits());
        assert_eq!(recorded.mr_config_id, launch.mr_config_id);
        assert_eq!(recorded.mr_owner, launch.mr_owner);
        assert_eq!(recorded.mr_owner_config, launch.mr_owner_config);
        const X87_AND_SSE: u64 = 3;
        assert_eq!(recorded.xfam & X87_AND_SSE, X87_AND_SSE);
        assert!(recorded.cpuid.iter().any(|entry| entry.leaf == (1, 0)));
        // Every processor finds the hand-off blocks, which are among the pages but not measured.
        assert_eq!(recorded.vcpus.len(), vcpus as usize);
        for hand_off in &recorded.vcpus {
            let region = recorded.regions.iter().find(|region| region.gpa == *hand_off).unwrap();
            assert!(!region.measured);
        }
        assert!(recorded.regions.iter().any(|region| region.measured));
        assert_eq!(recorded.mr_td(), predicted(&lab), "{vcpus} processors");
    }
}

#[tokio::test]
async fn mrtd_is_the_firmwares_alone() {
    let Some(mut lab) = Lab::open(Release::V11, FIRMWARE) else { return };
    let launch = plain(&lab);
    let first = launched(&lab, &launch, 1).await;

    // Registers that the firmware extends at run time have these.
    flip(&lab.initrd, 100);
    lab.command_line.push_str(" x");
    let quotes = Some(QuoteService::Vsock { cid: 2, port: 4050 });
    let changed = nacre_hypervisor::TdxLaunch {
        mr_config_id: [0x44; 48],
        quote_generation: quotes,
        ..launch.clone()
    };
    let other = launched(&lab, &changed, 1).await;
    assert_eq!(other.mr_config_id, [0x44; 48]);
    assert_eq!(other.mr_td(), first.mr_td());

    // A bit of the firmware's code.
    let end = usize::try_from(fs::metadata(&lab.firmware).unwrap().len()).unwrap();
    flip(&lab.firmware, end - 0x2000);
    let other = launched(&lab, &launch, 1).await;
    assert_ne!(other.mr_td(), first.mr_td());
    assert_eq!(other.mr_td(), predicted(&lab));
}
