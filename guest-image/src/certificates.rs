//! The certificate authorities the guest trusts for TLS: one PEM file, from a pinned package.

use std::path::{Path, PathBuf};

use crate::{FileError, list, read};

/// Where the ca-certificates package keeps Mozilla's authorities, one PEM file each.
const DIRECTORY: &str = "usr/share/ca-certificates/mozilla";

/// Where the initrd has them.
pub(crate) const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The package's files could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is no certificate.
    #[error("{0} is no PEM certificate")]
    NotPem(PathBuf),
    /// A directory without certificates.
    #[error("the ca-certificates package holds no .crt file in {DIRECTORY}")]
    None,
}

/// All certificates of an unpacked ca-certificates package as one PEM text, in the order of their
/// file names.
pub fn bundle(package_root: &Path) -> Result<Vec<u8>, CertificatesError> {
    let mut pem = Vec::new();
    for path in list(&package_root.join(DIRECTORY))? {
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let certificate = read(&path)?;
        if !certificate.starts_with(b"-----BEGIN CERTIFICATE-----") {
            return Err(CertificatesError::NotPem(path));
        }
        pem.extend(certificate);
        if pem.last() != Some(&b'\n') {
            pem.push(b'\n');
        }
    }
    if pem.is_empty() { Err(CertificatesError::None) } else { Ok(pem) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_bundle_is_sorted_and_refuses_what_is_no_certificate() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(DIRECTORY);
        fs::create_dir_all(&directory).unwrap();
        assert!(matches!(bundle(root.path()), Err(CertificatesError::None)));
        fs::write(directory.join("b.crt"), "-----BEGIN CERTIFICATE-----\nB").unwrap();
        fs::write(directory.join("a.crt"), "-----BEGIN CERTIFICATE-----\nA\n").unwrap();
        fs::write(directory.join("README"), "no certificate").unwrap();
        let expected = "-----BEGIN CERTIFICATE-----\nA\n-----BEGIN CERTIFICATE-----\nB\n";
        assert_eq!(bundle(root.path()).unwrap(), expected.as_bytes());
        fs::write(directory.join("c.crt"), "garbage").unwrap();
        assert!(bundle(root.path()).unwrap_err().to_string().contains("c.crt"));
    }
}
