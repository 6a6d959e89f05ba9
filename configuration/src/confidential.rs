//! `[snp]` and `[tdx]`: what confidential guests are launched with.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nacre_hypervisor::{
    Confidential, GuestPolicy, IdBlock, IdBlockError, QuoteService, SnpCpu, SnpLaunch,
    TdAttributes, TdxLaunch,
};
use nacre_protocol::initdata::Digest;
use serde::de::{Deserialize, Deserializer, Error as _};

use crate::{Config, Tee};

/// A signed block in base64 is at most some six thousand characters long.
const MOST_BLOCK_BYTES: u64 = 16 * 1024;

/// `[snp]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnpSection {
    /// OVMF in its `AmdSev` build.
    pub firmware: PathBuf,
    /// The processor that guests see.
    #[serde(deserialize_with = "from_text")]
    pub cpu: SnpCpu,
    /// Whether guests may run where processors have hyper-threads.
    pub smt: bool,
    /// File with the owner's ID block, in base64; empty: none.
    pub id_block: PathBuf,
    /// File with its authentication information, in base64; empty: none.
    pub id_auth: PathBuf,
}

/// `[tdx]`
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TdxSection {
    /// OVMF in its `IntelTdx` build.
    pub firmware: PathBuf,
    /// Who makes quotes; nobody: guests cannot be attested.
    #[serde(deserialize_with = "from_text_unless_empty")]
    pub quote_generation: Option<QuoteService>,
    /// `MROWNER`.
    #[serde(deserialize_with = "register")]
    pub mr_owner: [u8; 48],
    /// `MROWNERCONFIG`.
    #[serde(deserialize_with = "register")]
    pub mr_owner_config: [u8; 48],
}

/// Why a confidential guest cannot be launched as configured.
#[derive(Debug, thiserror::Error)]
pub enum SignedLaunchError {
    /// A file cannot be read.
    #[error("cannot read {key} {path}: {cause}")]
    Read {
        /// Section and key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// It holds something else.
    #[error("{key} {path} is not in base64: {cause}")]
    Base64 {
        /// Section and key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        cause: base64::DecodeError,
    },
    /// Both files are base64, but one has another size.
    #[error("snp.id_block and snp.id_auth: {0}")]
    Size(#[from] IdBlockError),
}

impl Default for SnpSection {
    fn default() -> Self {
        SnpSection {
            firmware: "/opt/nacre/share/ovmf/OVMF.amdsev.fd".into(),
            cpu: SnpCpu::default(),
            smt: true,
            id_block: PathBuf::new(),
            id_auth: PathBuf::new(),
        }
    }
}

impl Default for TdxSection {
    fn default() -> Self {
        TdxSection {
            firmware: "/opt/nacre/share/ovmf/OVMF.inteltdx.fd".into(),
            quote_generation: Some(QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into())),
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
        }
    }
}

impl Config {
    /// What guests with this initdata are launched with; `None` where they are not confidential. A guest
    /// without initdata is bound to none: zeros.
    ///
    /// # Errors
    /// If a file with the owner's signature cannot be used.
    pub fn confidential(
        &self,
        initdata: Option<&Digest>,
    ) -> Result<Option<Confidential>, SignedLaunchError> {
        Ok(match self.vm.tee {
            Tee::None | Tee::EmulatedSnp => None,
            Tee::Snp => Some(Confidential::Snp(SnpLaunch {
                firmware: self.snp.firmware.clone(),
                policy: GuestPolicy::new(self.snp.smt),
                host_data: initdata.map_or([0; 32], Digest::host_data),
                cpu: self.snp.cpu,
                id_block: self.snp.signed()?,
            })),
            Tee::Tdx => Some(Confidential::Tdx(TdxLaunch {
                firmware: self.tdx.firmware.clone(),
                attributes: TdAttributes::default(),
                mr_config_id: initdata.map_or([0; 48], Digest::mr_config_id),
                mr_owner: self.tdx.mr_owner,
                mr_owner_config: self.tdx.mr_owner_config,
                quote_generation: self.tdx.quote_generation.clone(),
            })),
        })
    }

    /// What is wrong with the two sections, by key.
    pub(crate) fn check_confidential(&self) -> Result<(), (&'static str, String)> {
        for (key, path) in
            [("snp.firmware", &self.snp.firmware), ("tdx.firmware", &self.tdx.firmware)]
        {
            if !path.is_absolute() {
                return Err((key, format!("is {path:?}: give an absolute path")));
            }
        }
        for (key, path) in
            [("snp.id_block", &self.snp.id_block), ("snp.id_auth", &self.snp.id_auth)]
        {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Err((key, format!("is {path:?}: give an absolute path, or \"\" for none")));
            }
        }
        if self.snp.id_block.as_os_str().is_empty() != self.snp.id_auth.as_os_str().is_empty() {
            let problem = "is a block without its signatures, or the reverse: give both, or none";
            return Err(("snp.id_block", problem.to_owned()));
        }
        let hardware = matches!(self.vm.tee, Tee::Snp | Tee::Tdx);
        if hardware && self.vm.accelerator == crate::AcceleratorKey::Tcg {
            let problem = "is \"tcg\": software emulation runs no confidential guest; give \"kvm\"";
            return Err(("vm.accelerator", problem.to_owned()));
        }
        Ok(())
    }
}

impl SnpSection {
    fn signed(&self) -> Result<Option<IdBlock>, SignedLaunchError> {
        if self.id_block.as_os_str().is_empty() {
            return Ok(None);
        }
        let block = read_base64("snp.id_block", &self.id_block)?;
        let authentication = read_base64("snp.id_auth", &self.id_auth)?;
        Ok(Some(IdBlock::new(&block, &authentication)?))
    }
}

/// Reads a file in base64, with a line's end or without.
fn read_base64(key: &'static str, path: &Path) -> Result<Vec<u8>, SignedLaunchError> {
    let failed = |cause| SignedLaunchError::Read { key, path: path.to_owned(), cause };
    let mut text = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(MOST_BLOCK_BYTES + 1).read_to_end(&mut text))
        .map_err(failed)?;
    if read as u64 > MOST_BLOCK_BYTES {
        return Err(failed(io::Error::other(format!("larger than {MOST_BLOCK_BYTES} bytes"))));
    }
    let decoded = STANDARD.decode(text.trim_ascii());
    decoded.map_err(|cause| SignedLaunchError::Base64 { key, path: path.to_owned(), cause })
}

fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn from_text_unless_empty<'de, D: Deserializer<'de>, T>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// 48 bytes in hexadecimal; an empty text is all zeros, which is what the hardware has where nobody sets it.
fn register<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 48], D::Error> {
    let text = String::deserialize(deserializer)?;
    let mut bytes = [0; 48];
    if !text.is_empty() {
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| D::Error::custom("give 96 hexadecimal digits, or \"\" for zeros"))?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, "t").unwrap()
    }

    #[test]
    fn only_hardware_makes_a_guest_confidential() {
        for tee in ["none", "emulated-snp"] {
            let config = parse(&format!("[vm]\ntee = \"{tee}\""));
            assert_eq!(config.confidential(Some(&Digest::Sha256([1; 32]))).unwrap(), None);
        }
    }

    #[test]
    fn an_snp_guest_is_bound_to_its_initdata_and_gets_what_is_configured() {
        let config = parse("[vm]\ntee = \"snp\"\n[snp]\ncpu = \"EPYC-Genoa-v1\"\nsmt = false");
        let launch = |initdata| match config.confidential(initdata).unwrap() {
            Some(Confidential::Snp(launch)) => launch,
            other => panic!("{other:?}"),
        };
        // A longer digest is cut off, as it is for every verifier.
        let bound = launch(Some(&Digest::Sha384([7; 48])));
        assert_eq!(bound.host_data, [7; 32]);
        assert_eq!(bound.cpu, SnpCpu::EpycGenoaV1);
        assert_eq!(bound.policy, GuestPolicy::new(false));
        assert_eq!(bound.firmware, Path::new("/opt/nacre/share/ovmf/OVMF.amdsev.fd"));
        assert_eq!(bound.id_block, None);
        assert_eq!(launch(None).host_data, [0; 32]);
    }

    #[test]
    fn a_tdx_guest_is_bound_to_its_initdata_and_gets_what_is_configured() {
        let owner = "ab".repeat(48);
        let config = parse(&format!(
            "[vm]\ntee = \"tdx\"\n[tdx]\nmr_owner = \"{owner}\"\n\
             quote_generation = \"vsock:2:4050\""
        ));
        let launch = |initdata| match config.confidential(initdata).unwrap() {
            Some(Confidential::Tdx(launch)) => launch,
            other => panic!("{other:?}"),
        };
        let bound = launch(Some(&Digest::Sha256([7; 32])));
        // A shorter digest is followed by zeros.
        assert_eq!(bound.mr_config_id[..32], [7; 32]);
        assert_eq!(bound.mr_config_id[32..], [0; 16]);
        assert_eq!((bound.mr_owner, bound.mr_owner_config), ([0xab; 48], [0; 48]));
        assert_eq!(bound.quote_generation, Some(QuoteService::Vsock { cid: 2, port: 4050 }));
        let silent = parse("[tdx]\nquote_generation = \"\"");
        assert_eq!(silent.tdx.quote_generation, None);
    }

    #[test]
    fn what_the_owner_signed_is_read_and_its_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (block, auth) = (dir.path().join("block"), dir.path().join("auth"));
        let config =
            parse(&format!("[vm]\ntee = \"snp\"\n[snp]\nid_block = {block:?}\nid_auth = {auth:?}"));
        let error = || config.confidential(None).unwrap_err().to_string();
        assert!(error().contains("cannot read snp.id_block"), "{}", error());
        std::fs::write(&block, format!("{}\n", STANDARD.encode([1; 96]))).unwrap();
        assert!(error().contains("cannot read snp.id_auth"), "{}", error());
        std::fs::write(&auth, [0; 4096]).unwrap();
        assert!(error().contains("is not in base64"), "{}", error());
        std::fs::write(&auth, vec![b'A'; 20_000]).unwrap();
        assert!(error().contains("larger than"), "{}", error());
        std::fs::write(&auth, STANDARD.encode([2; 4095])).unwrap();
        assert!(error().contains("has 4095 bytes, not 4096"), "{}", error());
        std::fs::write(&auth, STANDARD.encode([2; 4096])).unwrap();
        let Some(Confidential::Snp(launch)) = config.confidential(None).unwrap() else {
            panic!("no SNP guest")
        };
        assert_eq!(launch.id_block.unwrap().block(), &[1; 96]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[snp]\ncpu = \"host\"", "give EPYC-v4, EPYC-Rome-v4"),
            ("[snp]\nfirmware = \"OVMF.fd\"", "snp.firmware is \"OVMF.fd\""),
            ("[snp]\npolicy = 0", "policy"),
            ("[snp]\nid_block = \"/a\"", "snp.id_block is a block without its signatures"),
            ("[snp]\nid_auth = \"/a\"", "snp.id_block is a block without its signatures"),
            ("[snp]\nid_auth = \"a\"", "snp.id_auth is \"a\""),
            ("[tdx]\nfirmware = \"\"", "tdx.firmware is \"\""),
            ("[tdx]\nquote_generation = \"qgs\"", "vsock:CID:PORT"),
            ("[tdx]\nmr_owner = \"ab\"", "give 96 hexadecimal digits"),
            ("[tdx]\nmr_owner_config = \"zz\"", "give 96 hexadecimal digits"),
            ("[vm]\ntee = \"snp\"\naccelerator = \"tcg\"", "vm.accelerator is \"tcg\""),
            ("[vm]\ntee = \"tdx\"\naccelerator = \"tcg\"", "vm.accelerator is \"tcg\""),
        ] {
            let error = Config::parse(text, "t").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }
}
