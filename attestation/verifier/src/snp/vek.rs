//! The certificate of the key that signs reports, VCEK or VLEK ("Versioned Chip Endorsement Key (VCEK)
//! Certificate and KDS Interface Specification", 57230, and its VLEK sibling, 58369: "certificate
//! extensions").

use der::Decode as _;
use der::asn1::{Ia5StringRef, OctetStringRef};
use der::oid::ObjectIdentifier;
use nacre_evidence::snp::{Product, SigningKey, Tcb};

use crate::x509::{Certificate, X509Error};

const PRODUCT_NAME: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.3.3");
const RESERVED: [ObjectIdentifier; 4] = [
    amd("1.3.6.1.4.1.3704.1.3.4"),
    amd("1.3.6.1.4.1.3704.1.3.5"),
    amd("1.3.6.1.4.1.3704.1.3.6"),
    amd("1.3.6.1.4.1.3704.1.3.7"),
];
const MICROCODE: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.3.9");
const HARDWARE_ID: ObjectIdentifier = amd("1.3.6.1.4.1.3704.1.4");

const fn amd(oid: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(oid)
}

/// Why a certificate is not that of a key that signs reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VekError {
    #[error("{0}")]
    X509(#[from] X509Error),
    #[error("the extension {0} is missing")]
    Missing(&'static str),
    #[error("the extension {0} is not encoded as specified")]
    Encoding(&'static str),
    #[error("the product {0:?} is unknown")]
    Product(String),
    #[error("reserved parts of the TCB version are not zero")]
    ReservedTcb,
    #[error("{product} certificates have {expected} of the extension fmcSPL")]
    Fmc { product: Product, expected: &'static str },
    #[error("the key is not of P-384")]
    Key,
    #[error("the certificate is an authority's")]
    Authority,
}

/// A VCEK's or VLEK's certificate. Parsed, not verified.
#[derive(Debug, Clone)]
pub(crate) struct Vek {
    pub(crate) certificate: Certificate,
    pub(crate) product: Product,
    /// Security versions from which the key is derived.
    pub(crate) tcb: Tcb,
    /// Of the chip: 64 bytes, on Turin 8. VLEKs have none.
    pub(crate) hardware_id: Option<Vec<u8>>,
    /// The point, uncompressed.
    pub(crate) key: Vec<u8>,
}

impl Vek {
    pub(crate) fn parse(der: &[u8]) -> Result<Vek, VekError> {
        let certificate = Certificate::parse(der)?;
        if certificate.is_authority()? {
            return Err(VekError::Authority);
        }
        let product = product(&certificate)?;
        let tcb = tcb(&certificate, product)?;
        let hardware_id = certificate
            .extension(HARDWARE_ID)
            .map(|bytes| hardware_id(bytes, product).ok_or(VekError::Encoding("hwID")))
            .transpose()?;
        let key = certificate.p384_key().ok_or(VekError::Key)?.to_vec();
        Ok(Vek { certificate, product, tcb, hardware_id, key })
    }

    /// The chip's key has the chip's id in its certificate, a loaded key has not.
    pub(crate) const fn kind(&self) -> SigningKey {
        if self.hardware_id.is_some() { SigningKey::Vcek } else { SigningKey::Vlek }
    }

    /// Whether this is the chip that a report names, all 64 bytes of it: where ids have fewer, the
    /// rest must be zero.
    pub(crate) fn is_of_chip(&self, chip_id: &[u8; 64]) -> bool {
        self.hardware_id.as_deref().is_some_and(|id| {
            let (head, tail) = chip_id.split_at(id.len());
            head == id && tail.iter().all(|byte| *byte == 0)
        })
    }
}

/// Length of a chip's id in certificates and in the key service's paths, in bytes.
pub(crate) const fn chip_id_length(product: Product) -> usize {
    match product {
        Product::Milan | Product::Genoa => 64,
        Product::Turin => 8,
    }
}

/// `productName1`: the product, and on Milan its stepping behind a dash.
fn product(certificate: &Certificate) -> Result<Product, VekError> {
    const NAME: &str = "productName1";
    let bytes = certificate.extension(PRODUCT_NAME).ok_or(VekError::Missing(NAME))?;
    let text = Ia5StringRef::from_der(bytes).map_err(|_| VekError::Encoding(NAME))?;
    let name = text.as_str().split('-').next().unwrap_or_default();
    match name {
        "Milan" => Ok(Product::Milan),
        "Genoa" | "Bergamo" | "Siena" => Ok(Product::Genoa),
        "Turin" => Ok(Product::Turin),
        other => Err(VekError::Product(other.chars().take(32).collect())),
    }
}

fn tcb(certificate: &Certificate, product: Product) -> Result<Tcb, VekError> {
    let part = |oid, name| number(certificate, oid, name)?.ok_or(VekError::Missing(name));
    for oid in RESERVED {
        if number(certificate, oid, "spl")?.is_some_and(|number| number != 0) {
            return Err(VekError::ReservedTcb);
        }
    }
    let fmc = number(certificate, FMC, "fmcSPL")?;
    if fmc.is_some() != product.has_fmc() {
        let expected = if product.has_fmc() { "one" } else { "none" };
        return Err(VekError::Fmc { product, expected });
    }
    Ok(Tcb {
        fmc,
        bootloader: part(BOOTLOADER, "blSPL")?,
        tee: part(TEE, "teeSPL")?,
        snp: part(SNP, "snpSPL")?,
        microcode: part(MICROCODE, "ucodeSPL")?,
    })
}

fn number(
    certificate: &Certificate,
    oid: ObjectIdentifier,
    name: &'static str,
) -> Result<Option<u8>, VekError> {
    certificate
        .extension(oid)
        .map(|bytes| u8::from_der(bytes).map_err(|_| VekError::Encoding(name)))
        .transpose()
}

/// AMD writes the id as the extension's contents; others wrap it into an octet string, as DER asks.
fn hardware_id(bytes: &[u8], product: Product) -> Option<Vec<u8>> {
    let length = chip_id_length(product);
    if bytes.len() == length {
        return Some(bytes.to_vec());
    }
    let wrapped = OctetStringRef::from_der(bytes).ok()?;
    (wrapped.as_bytes().len() == length).then(|| wrapped.as_bytes().to_vec())
}
