//! From a node's configuration file and a pod's initdata to the hardware's fields.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_configuration::Config;
use nacre_hypervisor::SnpCpu;
use nacre_launch_recorder::record::Record;
use nacre_launch_recorder::snp::SnpLaunch;
use nacre_launch_recorder::tdx::TdxLaunch;
use nacre_protocol::initdata::{Algorithm, Initdata};
use sha2::{Digest as _, Sha256, Sha384};

use crate::lab::{Lab, Release, prefix, skipped};
use crate::{snp, tdx};

/// Processors of the pods here.
const VCPUS: u32 = 2;

/// A node's configuration with these sections, and what it boots.
fn configure(lab: &mut Lab, sections: &str) -> Config {
    let image = fs::canonicalize(prefix().join("image")).unwrap();
    let text = format!("[vm]\nimage = {image:?}\naccelerator = \"kvm\"\n{sections}");
    fs::write(configuration(lab), text).unwrap();
    let config = Config::read(&configuration(lab)).unwrap();
    let guest = config.guest().unwrap();
    lab.kernel = guest.kernel;
    lab.initrd = guest.initrd;
    lab.command_line = guest.command_line;
    config
}

/// Launches what the shim launches for a pod with this initdata.
async fn launch(lab: &Lab, config: &Config, initdata: &Initdata) -> Record {
    let confidential = config.confidential(Some(&initdata.digest())).unwrap().unwrap();
    lab.launch(confidential, VCPUS).await.unwrap()
}

fn configuration(lab: &Lab) -> PathBuf {
    lab.dir.path().join("node.toml")
}

/// What the owner's tool says about the same configuration: the values under a key of its document. `None`,
/// with a line that says why, where it is not built.
fn owner_computes(lab: &Lab, arguments: &[&str], key: &str) -> Option<Vec<String>> {
    let Some(programs) = std::env::var_os("NACRE_BIN") else {
        skipped("`nacre measure` is not asked; `cargo xtask test` says where it is");
        return None;
    };
    let mut nacre = Command::new(Path::new(&programs).join("nacre"));
    let vcpus = VCPUS.to_string();
    nacre.args(["measure", "--vcpus", &vcpus]).args(arguments).arg("--config");
    let output = nacre.arg(configuration(lab)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(document[key].clone()).unwrap()
}

fn initdata(algorithm: Algorithm) -> Initdata {
    let files = BTreeMap::from([("policy.rego".to_owned(), "package agent_policy\n".to_owned())]);
    Initdata::new(algorithm, files).unwrap()
}

async fn snp_fields_are_the_configurations(release: Release) {
    let Some(mut lab) = Lab::open(release, snp::FIRMWARE) else { return };
    let (block_file, auth_file) = (lab.dir.path().join("block"), lab.dir.path().join("auth"));
    let sections = format!(
        "tee = \"snp\"\n[snp]\nfirmware = {:?}\ncpu = \"EPYC-Milan-v2\"\nsmt = false\n\
         id_block = {block_file:?}\nid_auth = {auth_file:?}\n",
        lab.firmware
    );
    let config = configure(&mut lab, &sections);
    let predicted = snp::predicted(&lab, SnpCpu::EpycMilanV2, VCPUS);
    // Neither hyper-threads nor debugging.
    const POLICY: u64 = 0x2_0000;
    let (mut block, auth) = ([0xb1; 96], [0xa7; 4096]);
    block[..48].copy_from_slice(&predicted);
    block[0x58..].copy_from_slice(&POLICY.to_le_bytes());
    fs::write(block_file, STANDARD.encode(block)).unwrap();
    fs::write(auth_file, STANDARD.encode(auth)).unwrap();

    let initdata = initdata(Algorithm::Sha256);
    let record = launch(&lab, &config, &initdata).await;
    let recorded = SnpLaunch::of(&record).unwrap();
    assert_eq!(recorded.policy, POLICY);
    assert_eq!(recorded.host_data[..], Sha256::digest(initdata.text())[..]);
    let id_block = recorded.id_block.as_ref().unwrap();
    assert_eq!((&id_block.block, &id_block.auth[..]), (&block, &auth[..]));
    assert!(recorded.author_key, "the key is not all zeros");
    assert!(lab.command_line.split(' ').any(|word| word == "nacre.tee=snp"));
    assert_eq!(recorded.digest(), predicted);
    let arguments = ["--tee", "snp", "--tcb-minimum", "any"];
    if let Some(measurements) = owner_computes(&lab, &arguments, "measurements") {
        assert_eq!(measurements, [hex::encode(recorded.digest())]);
    }
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
    let config = configure(&mut lab, &sections);
    let record = launch(&lab, &config, &initdata).await;
    let recorded = TdxLaunch::of(&record).unwrap();
    assert_eq!(recorded.attributes, 1 << 28, "SEPT_VE_DISABLE, no debugging");
    assert_eq!(recorded.mr_config_id[..], Sha384::digest(initdata.text())[..]);
    assert_eq!((recorded.mr_owner, recorded.mr_owner_config), ([0x0a; 48], [0x0b; 48]));
    assert_eq!(recorded.mr_td(), tdx::predicted(&lab));
    if let Some(mr_td) = owner_computes(&lab, &["--tee", "tdx", "--rtmr0", "any"], "mr_td") {
        assert_eq!(mr_td, [hex::encode(recorded.mr_td())]);
    }
}
