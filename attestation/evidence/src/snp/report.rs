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

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(version: ReportVersion, product: Product) -> ReportFields {
        let (family, model) = match product {
            Product::Milan => (0x19, 0x01),
            Product::Genoa => (0x19, 0xa0),
            Product::Turin => (0x1a, 0x11),
        };
        let fmc = product.has_fmc().then_some(9);
        let tcb = |first| Tcb { fmc, bootloader: first, tee: 2, snp: 3, microcode: 4 };
        let mut chip_id = [0x77; 64];
        if product.has_fmc() {
            chip_id[8..].fill(0);
        }
        ReportFields {
            version,
            guest_svn: 1,
            policy: GuestPolicy(0x3_0000),
            family_id: [2; 16],
            image_id: [3; 16],
            vmpl: 1,
            signature_algorithm: 1,
            current_tcb: tcb(10),
            platform_info: PlatformInfo(5),
            key_info: KeyInfo(4),
            report_data: [6; 64],
            measurement: [7; 48],
            host_data: [8; 32],
            id_key_digest: [9; 48],
            author_key_digest: [10; 48],
            report_id: [11; 32],
            report_id_ma: [12; 32],
            reported_tcb: tcb(11),
            cpuid: (version > ReportVersion::V2).then_some(Cpuid { family, model, stepping: 1 }),
            chip_id,
            committed_tcb: tcb(12),
            current_version: FirmwareVersion { major: 1, minor: 55, build: 2 },
            committed_version: FirmwareVersion { major: 1, minor: 54, build: 3 },
            launch_tcb: tcb(13),
            mitigations: (version == ReportVersion::V5)
                .then_some(Mitigations { launch: 14, current: 15 }),
        }
    }

    const SIGNATURE: Signature = Signature { r: [0xaa; 72], s: [0xbb; 72] };

    fn report(version: ReportVersion, product: Product) -> Report {
        fields(version, product).attach_signature(&SIGNATURE).unwrap()
    }

    #[test]
    fn fields_survive_their_bytes() {
        for version in [ReportVersion::V2, ReportVersion::V3, ReportVersion::V5] {
            for product in Product::ALL {
                let report = report(version, product);
                assert_eq!(report.fields(), &fields(version, product));
                assert_eq!(report.signature(), &SIGNATURE);
                assert_eq!(Report::parse(&report.to_bytes()).unwrap(), report);
                let signed = report.fields().signed_bytes().unwrap();
                assert_eq!(signed, report.signed_bytes());
                assert_eq!(signed.len(), SIGNED_SIZE);
                let named = report.fields().product();
                assert_eq!(named, (version > ReportVersion::V2).then_some(product));
            }
        }
    }

    #[test]
    fn the_peer_reads_what_is_written() {
        use sev::firmware::guest::AttestationReport;
        use sev::parser::ByteParser as _;
        let bytes = report(ReportVersion::V5, Product::Turin).to_bytes();
        let peer = AttestationReport::from_bytes(&bytes).unwrap();
        assert_eq!(peer.reported_tcb.fmc, Some(9));
        assert_eq!(peer.reported_tcb.bootloader, 11);
        assert_eq!(peer.launch_mit_vector, Some(14));
        assert_eq!(peer.measurement, [7; 48]);
        assert_eq!(peer.to_bytes().unwrap().as_slice(), bytes);
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        let good = report(ReportVersion::V3, Product::Genoa).to_bytes();
        for offset in [
            0x3a, 0x4c, 0x182, 0x18b, 0x19f, 0x1e2, 0x1eb, 0x1ef, 0x1f2, 0x1f8, 0x207, 0x208,
            0x29f, 0x330, 0x49f,
        ] {
            let mut bytes = good;
            bytes[offset] = 1;
            let error = Report::parse(&bytes).unwrap_err();
            assert!(matches!(error, EvidenceError::Reserved { .. }), "{offset:#x}: {error}");
        }
        // Version 2 has no CPUID, version 5 has mitigation vectors there.
        let mut bytes = report(ReportVersion::V2, Product::Genoa).to_bytes();
        bytes[0x188] = 0x19;
        assert!(matches!(Report::parse(&bytes), Err(EvidenceError::Reserved { .. })));
        let mut bytes = report(ReportVersion::V5, Product::Genoa).to_bytes();
        bytes[0x1f8] ^= 1;
        assert!(Report::parse(&bytes).is_ok());
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = report(ReportVersion::V3, Product::Genoa).to_bytes();
        for length in [0, 1, REPORT_SIZE - 1] {
            let error = Report::parse(&good[..length]).unwrap_err();
            assert!(matches!(error, EvidenceError::Length { found, .. } if found == length));
        }
        assert!(Report::parse(&[good.as_slice(), &[0]].concat()).is_err());
        for version in [0_u32, 1, 4, 6, 0x0200_0000, u32::MAX] {
            let mut bytes = good;
            bytes[..4].copy_from_slice(&version.to_le_bytes());
            let error = Report::parse(&bytes).unwrap_err();
            assert!(matches!(error, EvidenceError::Version { version: v, .. } if v == version));
        }
        for (family, model) in [(0x17, 1), (0x19, 0x20), (0x1a, 0x12), (0x1a, 0x50)] {
            let mut bytes = good;
            bytes[0x188..0x18a].copy_from_slice(&[family, model]);
            assert_eq!(Report::parse(&bytes), Err(EvidenceError::Processor { family, model }));
        }
        let mut bytes = report(ReportVersion::V2, Product::Milan).to_bytes();
        bytes[0x1a0..0x1e0].fill(0);
        assert_eq!(Report::parse(&bytes), Err(EvidenceError::MaskedVersion2));
    }

    #[test]
    fn fields_that_do_not_fit_each_other_are_refused() {
        let refused = |change: fn(&mut ReportFields)| {
            let mut fields = fields(ReportVersion::V3, Product::Genoa);
            change(&mut fields);
            assert!(fields.signed_bytes().is_err());
        };
        refused(|fields| fields.version = ReportVersion::V2);
        refused(|fields| fields.cpuid = None);
        refused(|fields| fields.mitigations = Some(Mitigations { launch: 1, current: 0 }));
        refused(|fields| fields.launch_tcb.fmc = Some(1));
        refused(|fields| fields.cpuid = Some(Cpuid { family: 0x1a, model: 2, stepping: 0 }));
    }
}
