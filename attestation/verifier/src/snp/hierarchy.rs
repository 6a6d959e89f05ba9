//! The hierarchies of keys that SNP evidence may end in, and their revocation lists.

use nacre_evidence::snp::{Product, SigningKey};
use time::OffsetDateTime;

use super::vek::Vek;
use crate::appraisal::Root;
use crate::trust::{self, Trust, TrustError};
use crate::x509::{Certificate, RevocationList, X509Error};

/// AMD's certificates, from its key service: `/vcek/v1/<product>/cert_chain` (root key and signing key
/// of chip keys) and `/vlek/v1/<product>/cert_chain` (signing key of loaded keys).
const VENDOR: [VendorRoot; 3] = [
    VendorRoot {
        product: Product::Milan,
        ark: include_bytes!("roots/milan-ark.der"),
        ask: include_bytes!("roots/milan-ask.der"),
        asvk: include_bytes!("roots/milan-asvk.der"),
    },
    VendorRoot {
        product: Product::Genoa,
        ark: include_bytes!("roots/genoa-ark.der"),
        ask: include_bytes!("roots/genoa-ask.der"),
        asvk: include_bytes!("roots/genoa-asvk.der"),
    },
    VendorRoot {
        product: Product::Turin,
        ark: include_bytes!("roots/turin-ark.der"),
        ask: include_bytes!("roots/turin-ask.der"),
        asvk: include_bytes!("roots/turin-asvk.der"),
    },
];

struct VendorRoot {
    product: Product,
    ark: &'static [u8],
    ask: &'static [u8],
    asvk: &'static [u8],
}

/// A root key and the keys below it that sign report keys.
pub(crate) struct Hierarchy {
    pub(crate) root: Root,
    /// AMD has one hierarchy a product; others may be for any.
    pub(crate) product: Option<Product>,
    pub(crate) ark: Certificate,
    intermediates: Vec<Intermediate>,
}

pub(crate) struct Intermediate {
    pub(crate) certificate: Certificate,
    /// The kind of key it signs, where it is for one kind only.
    pub(crate) signs: Option<SigningKey>,
}

/// A path from a report's key to a root.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    pub(crate) hierarchy: &'a Hierarchy,
    pub(crate) intermediate: &'a Intermediate,
}

impl<'a> Path<'a> {
    /// The chain's certificates, the root last.
    pub(crate) fn certificates(&self, vek: &'a Vek) -> [(&'static str, &'a Certificate); 3] {
        let own = if vek.kind() == SigningKey::Vcek { "VCEK" } else { "VLEK" };
        let signing = &self.intermediate.certificate;
        [(own, &vek.certificate), ("ASK", signing), ("ARK", &self.hierarchy.ark)]
    }
}

/// Everything that a verifier knows of SNP roots, verified once.
pub(crate) struct Hierarchies {
    hierarchies: Vec<Hierarchy>,
    lists: Vec<(RevocationList, Certificate)>,
    list_required: bool,
}

impl Hierarchies {
    pub(crate) fn new(trust: &Trust) -> Result<Hierarchies, TrustError> {
        // First, because it costs nothing.
        let lists = trust.snp_crls.iter().enumerate();
        let lists = lists
            .map(|(index, der)| trust::revocation_list(index, der))
            .collect::<Result<Vec<_>, _>>()?;
        let mut hierarchies = Vec::new();
        for VendorRoot { product, ark, ask, asvk } in VENDOR {
            let (name, product) = (product.name(), Some(product));
            let signing = [(Some(SigningKey::Vcek), ask), (Some(SigningKey::Vlek), asvk)];
            hierarchies.push(hierarchy(Root::Vendor, name, product, ark, &signing)?);
        }
        for extra in &trust.danger_extra_snp_roots {
            let root = Root::Extra { name: extra.name.clone() };
            let signing = [(None, extra.ask_der.as_slice())];
            hierarchies.push(hierarchy(root, &extra.name, None, &extra.ark_der, &signing)?);
        }
        let issuers: Vec<&Certificate> = hierarchies
            .iter()
            .flat_map(|each| {
                let signing = each.intermediates.iter().map(|signing| &signing.certificate);
                std::iter::once(&each.ark).chain(signing)
            })
            .collect();
        let lists = lists
            .into_iter()
            .enumerate()
            .map(|(index, list)| {
                let issuer = trust::issuer_of(index, &list, &issuers)?;
                Ok((list, issuer))
            })
            .collect::<Result<_, _>>()?;
        Ok(Hierarchies { hierarchies, lists, list_required: trust.snp_crl_required })
    }

    /// The path from a certificate to the first root that it verifiably ends in.
    pub(crate) fn path(&self, vek: &Vek) -> Result<Path<'_>, String> {
        let issuer = vek.certificate.issuer();
        let mut problem = None;
        for hierarchy in &self.hierarchies {
            for intermediate in &hierarchy.intermediates {
                match verify(vek, intermediate) {
                    Ok(()) => return Ok(Path { hierarchy, intermediate }),
                    Err(PathError::X509(X509Error::Issuer { .. })) => {}
                    Err(other) => problem = Some(other),
                }
            }
        }
        Err(problem.map_or_else(
            || format!("issued by {issuer}, which no trusted root vouches for"),
            |problem| problem.to_string(),
        ))
    }

    /// What the lists say about the certificates of a chain.
    pub(crate) fn revocation(&self, path: Path<'_>, vek: &Vek, now: OffsetDateTime) -> Revocation {
        let chain = path.certificates(vek);
        let mut current = false;
        let mut stale = None;
        for (list, issuer) in &self.lists {
            for (name, certificate) in chain {
                let listed = list.revokes(certificate.serial());
                if listed && certificate.verify_issued_by(issuer).is_ok() {
                    return Revocation::Revoked(name);
                }
            }
            if issuer.is(&path.hierarchy.ark) {
                if list.period().contains(now) {
                    current = true;
                } else {
                    stale = Some(list.period());
                }
            }
        }
        match stale {
            _ if current => Revocation::NotRevoked,
            Some(period) => Revocation::Stale(period.to_string()),
            None if self.list_required => Revocation::Missing,
            None => Revocation::NoList,
        }
    }
}

/// What revocation lists say.
pub(crate) enum Revocation {
    NotRevoked,
    Revoked(&'static str),
    Stale(String),
    Missing,
    NoList,
}

#[derive(Debug, thiserror::Error)]
enum PathError {
    #[error("{0}")]
    X509(#[from] X509Error),
    #[error("its issuer signs other keys than this kind")]
    Kind,
}

fn verify(vek: &Vek, intermediate: &Intermediate) -> Result<(), PathError> {
    vek.certificate.verify_issued_by(&intermediate.certificate)?;
    match intermediate.signs {
        Some(kind) if kind != vek.kind() => Err(PathError::Kind),
        _ => Ok(()),
    }
}

fn hierarchy(
    root: Root,
    name: &str,
    product: Option<Product>,
    ark: &[u8],
    signing: &[(Option<SigningKey>, &[u8])],
) -> Result<Hierarchy, TrustError> {
    let ark = trust::certificate(name, "root certificate (ARK)", ark)?;
    let not_self_signed = |problem| TrustError::root(name, "root certificate (ARK)", &problem);
    ark.verify_issued_by(&ark).map_err(not_self_signed)?;
    let mut intermediates = Vec::new();
    for (signs, der) in signing {
        const WHAT: &str = "signing certificate (ASK)";
        let certificate = trust::certificate(name, WHAT, der)?;
        let failed = |problem| TrustError::root(name, WHAT, &problem);
        certificate.verify_issued_by(&ark).map_err(failed)?;
        if !certificate.is_authority().map_err(failed)? {
            return Err(failed(X509Error::NotAuthority("certificates")));
        }
        intermediates.push(Intermediate { certificate, signs: *signs });
    }
    Ok(Hierarchy { root, product, ark, intermediates })
}
