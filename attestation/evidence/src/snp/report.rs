//! The attestation report (ABI, attestation report structure).

use super::values::{
    Cpuid, FirmwareVersion, GuestPolicy, KeyInfo, Mitigations, PlatformInfo, Product, Tcb,
};
use crate::EvidenceError;
use crate::reader::Reader;

/// Size of a report, in bytes.
pub const REPORT_SIZE: usize = 0x4a0;
/// Size of its signed part, from its beginning, in bytes.
pub const SIGNED_SIZE: usize = 0x2a0;

const WHAT: &str = "SNP report";

/// Versions of the report that differ in their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReportVersion {
    /// Without CPUID.
    V2,
    /// With CPUID.
    V3,
    /// With mitigation vectors.
    V5,
}

impl ReportVersion {
    /// As the report writes it.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            ReportVersion::V2 => 2,
            ReportVersion::V3 => 3,
            ReportVersion::V5 => 5,
        }
    }

    pub(crate) fn of_number(version: u32) -> Result<ReportVersion, EvidenceError> {
        [ReportVersion::V2, ReportVersion::V3, ReportVersion::V5]
            .into_iter()
            .find(|known| known.number() == version)
            .ok_or(EvidenceError::Version { what: WHAT, version, known: "2, 3 and 5" })
    }
}

/// What a report says, by its fields. A [`Report`] has them as parsed; the emulated secure processor
/// fills them in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFields {
    /// Of this structure.
    pub version: ReportVersion,
    /// Security version of the guest, from its ID block.
    pub guest_svn: u32,
    /// What the guest's owner allows.
    pub policy: GuestPolicy,
    /// From the ID block.
    pub family_id: [u8; 16],
    /// From the ID block.
    pub image_id: [u8; 16],
    /// Privilege level that the report was asked for, 0 to 3.
    pub vmpl: u32,
    /// 1 is ECDSA P-384 with SHA-384.
    pub signature_algorithm: u32,
    /// Security versions that run.
    pub current_tcb: Tcb,
    /// State of the platform.
    pub platform_info: PlatformInfo,
    /// Which keys have to do with this report.
    pub key_info: KeyInfo,
    /// What the guest asked to be signed.
    pub report_data: [u8; 64],
    /// Launch digest.
    pub measurement: [u8; 48],
    /// What the host gave at the launch.
    pub host_data: [u8; 32],
    /// SHA-384 of the key that signed the ID block; zeros without one.
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the key that certified the ID key; zeros without one.
    pub author_key_digest: [u8; 48],
    /// Of this guest, as long as it runs.
    pub report_id: [u8; 32],
    /// Of its migration agent; ones without one.
    pub report_id_ma: [u8; 32],
    /// Security versions from which the signing key is derived.
    pub reported_tcb: Tcb,
    /// The processor; from version 3 on.
    pub cpuid: Option<Cpuid>,
    /// Identity of the chip; zeros where masked. Turin uses the first 8 bytes.
    pub chip_id: [u8; 64],
    /// Security versions that the platform cannot go below.
    pub committed_tcb: Tcb,
    /// Firmware that runs.
    pub current_version: FirmwareVersion,
    /// Firmware that the platform cannot go below.
    pub committed_version: FirmwareVersion,
    /// Security versions when this guest was launched or imported.
    pub launch_tcb: Tcb,
    /// From version 5 on.
    pub mitigations: Option<Mitigations>,
}

impl ReportFields {
    /// The product by the processor's CPUID; none in reports of version 2.
    #[must_use]
    pub fn product(&self) -> Option<Product> {
        self.cpuid.and_then(|cpuid| Product::of_cpuid(cpuid.family, cpuid.model))
    }

    /// The bytes that a signature is made of.
    ///
    /// # Errors
    /// If the fields do not fit the version and processor.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, EvidenceError> {
        Ok(self.attach_signature(&Signature::ZERO)?.signed_bytes().to_vec())
    }

    /// The whole report, with a signature over [`ReportFields::signed_bytes`].
    ///
    /// # Errors
    /// If the fields do not fit the version and processor.
    pub fn attach_signature(&self, signature: &Signature) -> Result<Report, EvidenceError> {
        let report = Report::parse(&self.encode(signature))?;
        if *report.fields == *self { Ok(report) } else { Err(EvidenceError::Inconsistent) }
    }

    fn encode(&self, signature: &Signature) -> [u8; REPORT_SIZE] {
        let mut bytes = [0; REPORT_SIZE];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0x000, &self.version.number().to_le_bytes());
        put(0x004, &self.guest_svn.to_le_bytes());
        put(0x008, &self.policy.0.to_le_bytes());
        put(0x010, &self.family_id);
        put(0x020, &self.image_id);
        put(0x030, &self.vmpl.to_le_bytes());
        put(0x034, &self.signature_algorithm.to_le_bytes());
        put(0x038, &self.current_tcb.to_bytes());
        put(0x040, &self.platform_info.0.to_le_bytes());
        put(0x048, &self.key_info.0.to_le_bytes());
        put(0x050, &self.report_data);
        put(0x090, &self.measurement);
        put(0x0c0, &self.host_data);
        put(0x0e0, &self.id_key_digest);
        put(0x110, &self.author_key_digest);
        put(0x140, &self.report_id);
        put(0x160, &self.report_id_ma);
        put(0x180, &self.reported_tcb.to_bytes());
        if let Some(Cpuid { family, model, stepping }) = self.cpuid {
            put(0x188, &[family, model, stepping]);
        }
        put(0x1a0, &self.chip_id);
        put(0x1e0, &self.committed_tcb.to_bytes());
        let version = |v: FirmwareVersion| [v.build, v.minor, v.major];
        put(0x1e8, &version(self.current_version));
        put(0x1ec, &version(self.committed_version));
        put(0x1f0, &self.launch_tcb.to_bytes());
        if let Some(Mitigations { launch, current }) = self.mitigations {
            put(0x1f8, &launch.to_le_bytes());
            put(0x200, &current.to_le_bytes());
        }
        put(SIGNED_SIZE, &signature.r);
        put(SIGNED_SIZE + 72, &signature.s);
        bytes
    }
}

/// ECDSA signature as the firmware writes it: both numbers little-endian, zero-extended to 72 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The number r.
    pub r: [u8; 72],
    /// The number s.
    pub s: [u8; 72],
}

impl Signature {
    const ZERO: Signature = Signature { r: [0; 72], s: [0; 72] };
}

/// An attestation report: its bytes, and what they say. Well formed; whether it is true is for the
/// verifier to find out.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    bytes: Box<[u8; REPORT_SIZE]>,
    fields: Box<ReportFields>,
    signature: Signature,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// If the length or version is another, reserved bytes are not zero, or the processor is unknown,
    /// so that nothing says how its TCB versions are laid out.
    pub fn parse(bytes: &[u8]) -> Result<Report, EvidenceError> {
        let bytes: [u8; REPORT_SIZE] = bytes.try_into().map_err(|_| EvidenceError::Length {
            what: WHAT,
            expected: REPORT_SIZE,
            found: bytes.len(),
        })?;
        let mut reader = Reader::new(WHAT, &bytes);
        let version = ReportVersion::of_number(reader.u32()?)?;
        let has_fmc = has_fmc(version, &bytes)?;
        let fields = ReportFields {
            version,
            guest_svn: reader.u32()?,
            policy: GuestPolicy(reader.u64()?),
            family_id: reader.array()?,
            image_id: reader.array()?,
            vmpl: reader.u32()?,
            signature_algorithm: reader.u32()?,
            current_tcb: tcb(&mut reader, has_fmc)?,
            platform_info: PlatformInfo(reader.u64()?),
            key_info: KeyInfo(reader.u32()?),
            report_data: {
                reader.reserved(4)?;
                reader.array()?
            },
            measurement: reader.array()?,
            host_data: reader.array()?,
            id_key_digest: reader.array()?,
            author_key_digest: reader.array()?,
            report_id: reader.array()?,
            report_id_ma: reader.array()?,
            reported_tcb: tcb(&mut reader, has_fmc)?,
            cpuid: cpuid(&mut reader, version)?,
            chip_id: {
                reader.reserved(21)?;
                reader.array()?
            },
            committed_tcb: tcb(&mut reader, has_fmc)?,
            current_version: firmware_version(&mut reader)?,
            committed_version: firmware_version(&mut reader)?,
            launch_tcb: tcb(&mut reader, has_fmc)?,
            mitigations: mitigations(&mut reader, version)?,
        };
        reader.reserved(SIGNED_SIZE - reader.position())?;
        let signature = Signature { r: reader.array()?, s: reader.array()? };
        reader.reserved(REPORT_SIZE - reader.position())?;
        Ok(Report { bytes: Box::new(bytes), fields: Box::new(fields), signature })
    }

    /// What it says.
    #[must_use]
    pub fn fields(&self) -> &ReportFields {
        &self.fields
    }

    /// The signature it carries.
    #[must_use]
    pub const fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The part that the signature covers.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.bytes[..SIGNED_SIZE]
    }

    /// The whole, as the firmware wrote it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REPORT_SIZE] {
        *self.bytes
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("fields", &self.fields).finish_non_exhaustive()
    }
}

/// Whether TCB versions have Turin's layout: by CPUID, and in version 2, which has none, by the chip
/// id, of which Turin fills 8 bytes only.
fn has_fmc(version: ReportVersion, bytes: &[u8; REPORT_SIZE]) -> Result<bool, EvidenceError> {
    if version == ReportVersion::V2 {
        let (head, tail) = bytes[0x1a0..0x1e0].split_at(8);
        let short = tail.iter().all(|byte| *byte == 0);
        if short && head.iter().all(|byte| *byte == 0) {
            return Err(EvidenceError::MaskedVersion2);
        }
        return Ok(short);
    }
    let (family, model) = (bytes[0x188], bytes[0x189]);
    Product::of_cpuid(family, model)
        .map(Product::has_fmc)
        .ok_or(EvidenceError::Processor { family, model })
}

fn tcb(reader: &mut Reader<'_>, has_fmc: bool) -> Result<Tcb, EvidenceError> {
    let offset = reader.position();
    Tcb::from_bytes(reader.array()?, has_fmc).ok_or(EvidenceError::Reserved { what: WHAT, offset })
}

fn cpuid(reader: &mut Reader<'_>, version: ReportVersion) -> Result<Option<Cpuid>, EvidenceError> {
    if version == ReportVersion::V2 {
        return reader.reserved(3).map(|()| None);
    }
    let [family, model, stepping] = reader.array()?;
    Ok(Some(Cpuid { family, model, stepping }))
}

fn firmware_version(reader: &mut Reader<'_>) -> Result<FirmwareVersion, EvidenceError> {
    let [build, minor, major] = reader.array()?;
    reader.reserved(1)?;
    Ok(FirmwareVersion { major, minor, build })
}

fn mitigations(
    reader: &mut Reader<'_>,
    version: ReportVersion,
) -> Result<Option<Mitigations>, EvidenceError> {
    if version < ReportVersion::V5 {
        return reader.reserved(16).map(|()| None);
    }
    Ok(Some(Mitigations { launch: reader.u64()?, current: reader.u64()? }))
}
