//! From a node's configuration file and a pod's initdata to the hardware's fields.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_configuration::Config;
use nacre_hypervisor::SnpCpu;
use nacre_launch_recorder::record::Record;
use nacre_launch_recorder::snp::SnpLaunch;
use nacre_launch_recorder::tdx::TdxLaunch;
use nacre_protocol::initdata::{Algorithm, Initdata};
use sha2::{Digest as _, Sha256, Sha384};

use crate::lab::{Lab, Release, prefix};
use crate::{snp, tdx};

/// Launches what the shim launches for this configuration and this initdata.
async fn launch(lab: &mut Lab, sections: &str, initdata: &Initdata, vcpus: u32) -> Record {
    let image = fs::canonicalize(prefix().join("image")).unwrap();
    let text = format!("[vm]\nimage = {:?}\naccelerator = \"kvm\"\n{sections}", image);
    let config = Config::parse(&text, "the node's configuration").unwrap();
    let guest = config.guest().unwrap();
    lab.kernel = guest.kernel;
    lab.initrd = guest.initrd;
    lab.command_line = guest.command_line;
    let confidential = config.confidential(Some(&initdata.digest())).unwrap().unwrap();
    lab.launch(confidential, vcpus).await.unwrap()
}

fn initdata(algorithm: Algorithm) -> Initdata {
    let files = BTreeMap::from([("policy.rego".to_owned(), "package agent_policy\n".to_owned())]);
    Initdata::new(algorithm, files).unwrap()
}

async fn snp_fields_are_the_configurations(release: Release) {
    let Some(mut lab) = Lab::open(release, snp::FIRMWARE) else { return };
    let (mut block, auth) = ([0xb1; 96], [0xa7; 4096]);
    // The policy that was signed.
    block[0x58..].copy_from_slice(&0x2_0000_u64.to_le_bytes());
    let (block_file, auth_file) = (lab.dir.path().join("block"), lab.dir.path().join("auth"));
    fs::write(&block_file, STANDARD.encode(block)).unwrap();
    fs::write(&auth_file, STANDARD.encode(auth)).unwrap();
    let sections = format!(
        "tee = \"snp\"\n[snp]\nfirmware = {:?}\ncpu = \"EPYC-Milan-v2\"\nsmt = false\n\
         id_block = {block_file:?}\nid_auth = {auth_file:?}\n",
        lab.firmware
    );
    let initdata = initdata(Algorithm::Sha256);
    let record = launch(&mut lab, &sections, &initdata, 2).await;
    let recorded = SnpLaunch::of(&record).unwrap();
    assert_eq!(recorded.policy, 0x2_0000, "neither hyper-threads nor debugging");
    assert_eq!(recorded.host_data[..], Sha256::digest(initdata.text())[..]);
    let id_block = recorded.id_block.as_ref().unwrap();
    assert_eq!((&id_block.block, &id_block.auth[..]), (&block, &auth[..]));
    assert!(recorded.author_key, "the key is not all zeros");
    assert!(lab.command_line.split(' ').any(|word| word == "nacre.tee=snp"));
    assert_eq!(recorded.digest(), snp::predicted(&lab, SnpCpu::EpycMilanV2, 2));
}

#[tokio::test]
async fn qemu_10_gets_snp_fields_from_the_configuration() {
    snp_fields_are_the_configurations(Release::V10).await;
}

#[tokio::test]
async fn qemu_11_gets_snp_fields_from_the_configuration() {
    snp_fields_are_the_configurations(Release::V11).await;
}

#[tokio::test]
async fn qemu_11_gets_tdx_fields_from_the_configuration() {
    let Some(mut lab) = Lab::open(Release::V11, tdx::FIRMWARE) else { return };
    let sections = format!(
        "tee = \"tdx\"\n[tdx]\nfirmware = {:?}\nquote_generation = \"vsock:2:4050\"\n\
         mr_owner = \"{}\"\nmr_owner_config = \"{}\"\n",
        lab.firmware,
        "0a".repeat(48),
        "0b".repeat(48)
    );
    let initdata = initdata(Algorithm::Sha384);
    let record = launch(&mut lab, &sections, &initdata, 2).await;
    let recorded = TdxLaunch::of(&record).unwrap();
    assert_eq!(recorded.attributes, 1 << 28, "SEPT_VE_DISABLE, no debugging");
    assert_eq!(recorded.mr_config_id[..], Sha384::digest(initdata.text())[..]);
    assert_eq!((recorded.mr_owner, recorded.mr_owner_config), ([0x0a; 48], [0x0b; 48]));
    assert_eq!(recorded.mr_td(), tdx::predicted(&lab));
}
