//! Certificates that a host gives along with a report (GHCB, "SNP Extended Guest Request").

use crate::EvidenceError;
use crate::reader::Reader;

/// Most certificates in a table or in evidence.
pub const CERTIFICATE_COUNT_LIMIT: usize = 8;
/// Largest certificate, in bytes.
pub const CERTIFICATE_LIMIT: usize = 8 * 1024;

const WHAT: &str = "SNP certificate table";
const ENTRY_SIZE: usize = 24;

/// A GUID, its bytes in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Guid> {
        let mut groups = text.split('-').map(str::len);
        if !groups.by_ref().eq([8, 4, 4, 4, 12]) {
            return None;
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text.replace('-', ""), &mut bytes).ok()?;
        Some(Guid(bytes))
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = hex::encode(self.0);
        let (a, b, c, d, e) = (&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl std::fmt::Debug for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What a certificate is, by the table's GUIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertType {
    /// AMD's root key.
    Ark,
    /// AMD's signing key, of chip or of loaded keys.
    Ask,
    /// The chip's key.
    Vcek,
    /// A key loaded by a cloud provider.
    Vlek,
    /// A revocation list.
    Crl,
    /// Something that the host adds.
    Other(Guid),
}

impl CertType {
    const KNOWN: [(CertType, Guid); 5] = [
        (CertType::Ark, Guid(0xc0b4_06a4_a803_4952_9743_3fb6_014c_d0ae_u128.to_be_bytes())),
        (CertType::Ask, Guid(0x4ab7_b379_bbac_4fe4_a02f_05ae_f327_c782_u128.to_be_bytes())),
        (CertType::Vcek, Guid(0x63da_758d_e664_4564_adc5_f4b9_3be8_accd_u128.to_be_bytes())),
        (CertType::Vlek, Guid(0xa807_4bc2_a25a_483e_aae6_39c0_45a0_b8a1_u128.to_be_bytes())),
        (CertType::Crl, Guid(0x92f8_1bc3_5811_4d3d_97ff_d19f_88dc_67ea_u128.to_be_bytes())),
    ];

    /// As the table names it.
    #[must_use]
    pub fn guid(self) -> Guid {
        match self {
            CertType::Other(guid) => guid,
            known => Self::KNOWN
                .into_iter()
                .find_map(|(each, guid)| (each == known).then_some(guid))
                .expect("all but Other are listed"),
        }
    }

    /// What the table means by a GUID.
    #[must_use]
    pub fn of_guid(guid: Guid) -> CertType {
        Self::KNOWN
            .into_iter()
            .find_map(|(known, each)| (each == guid).then_some(known))
            .unwrap_or(CertType::Other(guid))
    }
}

/// A certificate as it came: DER mostly; not parsed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What it is said to be.
    pub cert_type: CertType,
    /// At most [`CERTIFICATE_LIMIT`] bytes.
    pub data: Vec<u8>,
}

/// The certificates of a host, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateTable(Vec<Certificate>);

impl CertificateTable {
    /// Makes a table.
    ///
    /// # Errors
    /// If there are more or larger certificates than the limits allow.
    pub fn new(certificates: Vec<Certificate>) -> Result<CertificateTable, EvidenceError> {
        if certificates.len() > CERTIFICATE_COUNT_LIMIT {
            return Err(too_many());
        }
        if certificates.iter().any(|certificate| certificate.data.len() > CERTIFICATE_LIMIT) {
            return Err(too_large());
        }
        Ok(CertificateTable(certificates))
    }

    /// Reads a table: entries of GUID, offset and length, ended by one of zeros; then what they point to.
    /// No bytes at all are an empty table, as a host writes that has no certificates.
    ///
    /// # Errors
    /// If the entries do not end, point outside of the bytes, or exceed the limits.
    pub fn parse(bytes: &[u8]) -> Result<CertificateTable, EvidenceError> {
        let mut certificates = Vec::new();
        if bytes.is_empty() {
            return Ok(CertificateTable(certificates));
        }
        let mut reader = Reader::new(WHAT, bytes);
        loop {
            let guid = Guid(reader.array()?);
            let (offset, length) = (reader.length()?, reader.length()?);
            if guid.0 == [0; 16] {
                return Ok(CertificateTable(certificates));
            }
            if certificates.len() == CERTIFICATE_COUNT_LIMIT {
                return Err(too_many());
            }
            if length > CERTIFICATE_LIMIT {
                return Err(too_large());
            }
            let data = offset
                .checked_add(length)
                .and_then(|end| bytes.get(offset..end))
                .ok_or(EvidenceError::Truncated { what: WHAT, offset: bytes.len() })?
                .to_vec();
            certificates.push(Certificate { cert_type: CertType::of_guid(guid), data });
        }
    }

    /// The bytes that [`CertificateTable::parse`] reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut table = Vec::new();
        let mut data = Vec::new();
        let start = ENTRY_SIZE * (self.0.len() + 1);
        let field = |n: usize| u32::try_from(n).expect("limits keep it small").to_le_bytes();
        for certificate in &self.0 {
            table.extend_from_slice(&certificate.cert_type.guid().0);
            table.extend_from_slice(&field(start + data.len()));
            table.extend_from_slice(&field(certificate.data.len()));
            data.extend_from_slice(&certificate.data);
        }
        table.extend_from_slice(&[0; ENTRY_SIZE]);
        table.extend_from_slice(&data);
        table
    }

    /// The certificates, in order.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// The certificates, in order.
    #[must_use]
    pub fn into_certificates(self) -> Vec<Certificate> {
        self.0
    }
}

const fn too_many() -> EvidenceError {
    EvidenceError::TooLarge { what: "number of SNP certificates", limit: CERTIFICATE_COUNT_LIMIT }
}

const fn too_large() -> EvidenceError {
    EvidenceError::TooLarge { what: "SNP certificate in bytes", limit: CERTIFICATE_LIMIT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sev::firmware::host::{CertTableEntry, CertType as SevCertType};

    fn table() -> CertificateTable {
        let other = Guid::parse("01234567-89ab-cdef-0123-456789abcdef").unwrap();
        CertificateTable::new(vec![
            Certificate { cert_type: CertType::Vcek, data: vec![1, 2, 3] },
            Certificate { cert_type: CertType::Other(other), data: vec![] },
            Certificate { cert_type: CertType::Ark, data: vec![9; CERTIFICATE_LIMIT] },
        ])
        .unwrap()
    }

    #[test]
    fn tables_round_trip() {
        assert_eq!(CertificateTable::parse(&table().encode()).unwrap(), table());
        assert_eq!(CertificateTable::parse(&[]).unwrap(), CertificateTable::default());
        assert_eq!(CertificateTable::parse(&[0; 4096]).unwrap(), CertificateTable::default());
        for (cert_type, guid) in CertType::KNOWN {
            assert_eq!(CertType::of_guid(guid), cert_type);
            assert_eq!(cert_type.guid(), guid);
            assert_eq!(Guid::parse(&guid.to_string()), Some(guid));
        }
    }

    #[test]
    fn the_peer_reads_and_writes_the_same_bytes() {
        let entries: Vec<CertTableEntry> = [
            (SevCertType::ARK, 5),
            (SevCertType::ASK, 6),
            (SevCertType::VCEK, 7),
            (SevCertType::VLEK, 8),
            (SevCertType::CRL, 9),
        ]
        .into_iter()
        .map(|(cert_type, size)| CertTableEntry::new(cert_type, vec![0xaa; size]))
        .collect();
        let bytes = CertTableEntry::cert_table_to_vec_bytes(&entries).unwrap();
        let parsed = CertificateTable::parse(&bytes).unwrap();
        let found: Vec<_> =
            parsed.certificates().iter().map(|c| (c.cert_type, c.data.len())).collect();
        let expected =
            [CertType::Ark, CertType::Ask, CertType::Vcek, CertType::Vlek, CertType::Crl]
                .into_iter()
                .zip(5..);
        assert!(found.into_iter().eq(expected));
        assert_eq!(parsed.encode(), bytes);
    }

    #[test]
    fn hostile_tables_are_refused() {
        let good = table().encode();
        for cut in [1, 23, 24, 71, 95, good.len() - 1] {
            let error = CertificateTable::parse(&good[..cut]).unwrap_err();
            assert!(matches!(error, EvidenceError::Truncated { .. }), "cut at {cut}: {error}");
        }
        let with = |offset: u32, length: u32| {
            let mut bytes = good.clone();
            bytes[16..20].copy_from_slice(&offset.to_le_bytes());
            bytes[20..24].copy_from_slice(&length.to_le_bytes());
            CertificateTable::parse(&bytes).unwrap_err()
        };
        assert!(matches!(with(u32::MAX, 1), EvidenceError::Truncated { .. }));
        assert!(matches!(with(u32::MAX, 8192), EvidenceError::Truncated { .. }));
        assert!(matches!(with(0, u32::MAX), EvidenceError::TooLarge { .. }));
        assert!(matches!(with(0, 8193), EvidenceError::TooLarge { .. }));

        let mut endless = good[..24].repeat(9);
        endless.extend_from_slice(&[0; 24]);
        endless.extend_from_slice(&[0; 100]);
        assert_eq!(CertificateTable::parse(&endless).unwrap_err(), too_many());
        let certificate = Certificate { cert_type: CertType::Ask, data: vec![] };
        assert_eq!(CertificateTable::new(vec![certificate; 9]).unwrap_err(), too_many());
        let certificate = Certificate { cert_type: CertType::Ask, data: vec![0; 8193] };
        assert_eq!(CertificateTable::new(vec![certificate]).unwrap_err(), too_large());
    }

    #[test]
    fn guids_have_one_form() {
        for text in
            ["", "-", "c0b406a4a803495297433fb6014cd0ae", "c0b406a4-a803-4952-9743-3fb6014cd0ag"]
        {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }
}
