//! What guests of a configuration are launched with, read and measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nacre_configuration::Config;
use nacre_evidence::snp::KernelHashes;
use nacre_hypervisor::{Confidential, IdBlock, SnpLaunch};
use nacre_image_manifest::GuestImage;
use nacre_measurement::snp::{Launch, SNP_ACTIVE};
use nacre_measurement::tdx::{self, TdxInputs, TdxMeasurement};
use sha2::{Digest as _, Sha256, Sha384};

use crate::input::read;

/// A file that a guest is launched with.
pub(super) struct Source {
    /// What it is for.
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    /// In bytes.
    pub(super) size: usize,
    pub(super) sha256: [u8; 32],
}

/// A launch, measured.
pub(super) struct Measured {
    /// Firmware, kernel and initrd.
    pub(super) sources: [Source; 3],
    pub(super) command_line: String,
    /// Settings by which such guests protect less.
    pub(super) dangers: Vec<&'static str>,
    pub(super) digests: Digests,
}

/// What reports and quotes of such guests have.
pub(super) enum Digests {
    Snp(SnpDigests),
    Tdx(Box<TdxMeasurement>),
}

/// Launch digests, and what else an SNP report says of the launch.
pub(super) struct SnpDigests {
    /// Processor model, where it is no emulated one.
    pub(super) cpu: Option<&'static str>,
    /// Whether the policy allows processors with hyper-threads.
    pub(super) smt: bool,
    /// By number of processors.
    pub(super) by_vcpus: Vec<(u32, [u8; 48])>,
    /// SHA-384 of the key that signed the ID block.
    pub(super) id_key: Option<[u8; 48]>,
    /// SHA-384 of the key that certified that key.
    pub(super) author_key: Option<[u8; 48]>,
}

impl Measured {
    /// Measures what the shim launches with this configuration, for these numbers of processors.
    pub(super) fn of(config: &Config, vcpus: &[u32]) -> anyhow::Result<Measured> {
        let guest = config.guest()?;
        let confidential = config.confidential(None)?;
        let path = match &confidential {
            Some(Confidential::Snp(launch)) => launch.firmware.clone(),
            Some(Confidential::Tdx(launch)) => launch.firmware.clone(),
            None => config.qemu_paths().firmware().context("the firmware is not there")?,
        };
        // Read once: what is hashed for one register is what is hashed for all.
        let (firmware, kernel, initrd) = (
            read(&path)?,
            genuine(&guest.image, &guest.kernel)?,
            genuine(&guest.image, &guest.initrd)?,
        );
        let command_line = guest.command_line;
        let launched = Files { firmware: &firmware, kernel: &kernel, initrd: &initrd };
        let named = || path.display().to_string();
        let digests = match confidential {
            None => Digests::Snp(launched.emulated(&command_line, vcpus)?),
            Some(Confidential::Snp(launch)) => {
                Digests::Snp(launched.snp(&command_line, &launch, vcpus).with_context(named)?)
            }
            Some(Confidential::Tdx(_)) => {
                Digests::Tdx(Box::new(launched.tdx(&command_line).with_context(named)?))
            }
        };
        let sources = [
            Source::of("firmware", &path, &firmware),
            Source::of("kernel", &guest.kernel, &kernel),
            Source::of("initrd", &guest.initrd, &initrd),
        ];
        Ok(Measured { sources, command_line, dangers: config.dangers(), digests })
    }
}

impl Source {
    fn of(what: &'static str, path: &Path, bytes: &[u8]) -> Source {
        let sha256 = Sha256::digest(bytes).into();
        Source { what, path: path.to_owned(), size: bytes.len(), sha256 }
    }
}

/// A file of the image, as its manifest says: an owner who registers the values registers the image whose manifest
/// was compared or built, not whatever stands in the directory.
fn genuine(image: &GuestImage, path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = read(path)?;
    let mut artifacts = image.manifest().artifacts().into_iter();
    let artifact = artifacts.find(|artifact| image.directory().join(&artifact.name) == path);
    let artifact = artifact.with_context(|| format!("{}: no manifest has it", path.display()))?;
    artifact.check(&bytes).with_context(|| {
        format!(
            "{} is not what the image's manifest says: install the image again, or see with `nacre image \
             verify {}` what else is wrong with it",
            path.display(),
            image.directory().display()
        )
    })?;
    Ok(bytes)
}

/// Contents of what is launched.
struct Files<'a> {
    firmware: &'a [u8],
    kernel: &'a [u8],
    initrd: &'a [u8],
}

impl Files<'_> {
    fn emulated(&self, command_line: &str, vcpus: &[u32]) -> anyhow::Result<SnpDigests> {
        let Files { firmware, kernel, initrd } = *self;
        let launch = nacre_emulated::Launch::new(firmware, kernel, initrd, command_line, 1)?;
        let digest =
            |count: &u32| Ok((*count, nacre_emulated::measure(&launch.with_vcpus(*count)?)));
        Ok(SnpDigests {
            cpu: None,
            smt: true,
            by_vcpus: vcpus.iter().map(digest).collect::<anyhow::Result<_>>()?,
            id_key: None,
            author_key: None,
        })
    }

    fn snp(
        &self,
        command_line: &str,
        launch: &SnpLaunch,
        vcpus: &[u32],
    ) -> anyhow::Result<SnpDigests> {
        let hashes = KernelHashes::of(self.kernel, self.initrd, command_line);
        let measured = Launch::new(self.firmware, &hashes)?;
        let most = vcpus.iter().copied().max().context("no number of processors")?;
        let all = measured.measurements(most, launch.cpu.cpuid_signature(), SNP_ACTIVE)?;
        let mut by_vcpus: Vec<(u32, [u8; 48])> =
            (1..).zip(all).filter(|(count, _)| vcpus.contains(count)).collect();
        let (mut id_key, mut author_key) = (None, None);
        if let Some(signed) = &launch.id_block {
            let digest = signed.launch_digest();
            ensure!(
                signed.policy() == launch.policy.bits(),
                "snp.id_block is signed for guest policy {:#x}, the configuration launches with {:#x}",
                signed.policy(),
                launch.policy.bits()
            );
            // Guests with any other digest are refused by the secure processor.
            by_vcpus.retain(|(_, found)| *found == digest);
            if by_vcpus.is_empty() {
                bail!(
                    "snp.id_block is signed for launch digest {}, which no guest of this configuration \
                     has: none would start",
                    hex::encode(digest)
                );
            }
            (id_key, author_key) = key_digests(signed);
        }
        let (cpu, smt) = (Some(launch.cpu.name()), launch.policy.allows_smt());
        Ok(SnpDigests { cpu, smt, by_vcpus, id_key, author_key })
    }

    fn tdx(&self, command_line: &str) -> anyhow::Result<TdxMeasurement> {
        let Files { firmware, kernel, initrd } = *self;
        Ok(tdx::measure(&TdxInputs { firmware, kernel, initrd, command_line })?)
    }
}

/// As reports have them: SHA-384 of the key that signed the ID block and of the one that certified it (SEV-SNP
/// Firmware ABI, "`SNP_LAUNCH_FINISH`", ID authentication information: keys of 404h bytes at 240h and 880h).
fn key_digests(signed: &IdBlock) -> (Option<[u8; 48]>, Option<[u8; 48]>) {
    const KEY: usize = 0x404;
    let digest = |offset: usize| -> [u8; 48] {
        Sha384::digest(&signed.authentication()[offset..offset + KEY]).into()
    };
    (Some(digest(0x240)), signed.has_author_key().then(|| digest(0x880)))
}
