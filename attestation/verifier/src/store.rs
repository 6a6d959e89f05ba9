//! Collateral on disk, so that appraisals need no network.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use nacre_evidence::Evidence;

use crate::collateral::{Collateral, CollateralKey};
use crate::references::Hex;
use crate::snp::Vek;
use crate::tdx::{TDX_COLLATERAL_LIMIT, TdxCollateral, TdxCollateralError, fmspc};
use crate::x509::CERTIFICATE_LIMIT;

/// Why collateral cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("collateral store: {path}: {source}")]
    Io {
        /// Which file or directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What should be kept is not what its key names.
    #[error("collateral store: {key}: {problem}; it is not kept")]
    Other {
        /// The key.
        key: CollateralKey,
        /// What is wrong with it.
        problem: String,
    },
    /// It is no TDX collateral.
    #[error(transparent)]
    Tdx(#[from] TdxCollateralError),
}

/// A directory with a file for each piece of collateral.
#[derive(Debug, Clone)]
pub struct CollateralStore {
    directory: PathBuf,
}

impl CollateralStore {
    /// Opens a directory, and makes it where it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<CollateralStore, StoreError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(|source| failed(&directory, source))?;
        Ok(CollateralStore { directory })
    }

    /// What the store has for `evidence`. What cannot be read counts as absent.
    #[must_use]
    pub fn collateral(&self, evidence: &Evidence) -> Collateral {
        if let Evidence::Tdx { quote, .. } = evidence {
            let tdx = fmspc(quote)
                .and_then(|fmspc| read(&self.tdx_path(fmspc), TDX_COLLATERAL_LIMIT).ok().flatten())
                .and_then(|json| TdxCollateral::parse(&json).ok());
            return Collateral { snp_certificates: Vec::new(), tdx };
        }
        let snp_certificates = CollateralKey::needed(evidence)
            .iter()
            .filter_map(|key| read(&self.path(key), CERTIFICATE_LIMIT).ok().flatten())
            .collect();
        Collateral { snp_certificates, tdx: None }
    }

    /// What `evidence` needs and neither has itself nor finds in the store.
    #[must_use]
    pub fn missing(&self, evidence: &Evidence) -> Vec<CollateralKey> {
        let needed = CollateralKey::needed(evidence);
        let Evidence::Snp { report, certificates } = evidence else { return needed };
        let tcb = report.fields().reported_tcb;
        let brought = certificates.iter().any(|certificate| {
            Vek::parse(&certificate.data)
                .is_ok_and(|vek| vek.tcb == tcb && vek.is_of_chip(&report.fields().chip_id))
        });
        if brought || needed.iter().any(|key| self.path(key).exists()) {
            return Vec::new();
        }
        needed
    }

    /// Keeps what a mirror or the vendor answered for `key`, if it is that.
    ///
    /// # Errors
    /// If it is something else, or cannot be written.
    pub fn put(&self, key: &CollateralKey, bytes: &[u8]) -> Result<(), StoreError> {
        let other = |problem: String| StoreError::Other { key: key.clone(), problem };
        let CollateralKey::Vcek { product, chip_id, tcb } = key;
        let vek = Vek::parse(bytes).map_err(|error| other(error.to_string()))?;
        if vek.product != *product || vek.tcb != *tcb || !vek.is_of_chip(chip_id) {
            return Err(other("it is another chip's or another TCB's certificate".to_owned()));
        }
        let path = self.path(key);
        write(&self.directory, &path, bytes).map_err(|source| failed(&path, source))
    }

    /// Keeps Intel's collateral for a kind of platform, in the form of [`TdxCollateral::parse`].
    ///
    /// # Errors
    /// If it is no collateral, or cannot be written.
    pub fn put_tdx(&self, json: &[u8]) -> Result<(), StoreError> {
        let path = self.tdx_path(TdxCollateral::parse(json)?.fmspc());
        write(&self.directory, &path, json).map_err(|source| failed(&path, source))
    }

    fn tdx_path(&self, fmspc: Hex<6>) -> PathBuf {
        self.directory.join(format!("tdx-{fmspc}.json"))
    }

    fn path(&self, key: &CollateralKey) -> PathBuf {
        self.directory.join(key.file_name())
    }
}

fn failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.display().to_string(), source }
}

/// None for a file that is not there or larger than `limit`.
fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// The whole file or none of it, also when two write at once.
fn write(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nacre_evidence::snp::{Product, Report, Tcb};

    use super::*;

    fn report(version: u8, product: Product, masked: bool) -> Evidence {
        let mut bytes = [0; 0x4a0];
        bytes[0] = version;
        if version > 2 {
            bytes[0x188..0x18a].copy_from_slice(match product {
                Product::Milan => &[0x19, 0x01],
                Product::Genoa => &[0x19, 0x11],
                Product::Turin => &[0x1a, 0x02],
            });
        }
        // bootloader 3, tee 0, snp 8, microcode 115, and on Turin fmc 1 before them.
        bytes[0x180..0x188].copy_from_slice(match product {
            Product::Turin => &[1, 3, 0, 8, 0, 0, 0, 115],
            _ => &[3, 0, 0, 0, 0, 0, 8, 115],
        });
        if !masked {
            let length = if product == Product::Turin { 8 } else { 64 };
            bytes[0x1a0..0x1a0 + length].fill(0xc1);
        }
        let report = Report::parse(&bytes).unwrap();
        Evidence::Snp { report, certificates: Vec::new() }
    }

    fn paths(evidence: &Evidence) -> Vec<String> {
        CollateralKey::needed(evidence).iter().map(CollateralKey::path).collect()
    }

    #[test]
    fn keys_are_the_key_services_paths() {
        let id = "c1".repeat(64);
        let query = "blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115";
        let milan = report(3, Product::Milan, false);
        assert_eq!(paths(&milan), [format!("/vcek/v1/Milan/{id}?{query}")]);
        let turin = report(5, Product::Turin, false);
        assert_eq!(paths(&turin), [format!("/vcek/v1/Turin/c1c1c1c1c1c1c1c1?fmcSPL=01&{query}")]);
        let either = report(2, Product::Genoa, false);
        let expected = ["Milan", "Genoa"].map(|name| format!("/vcek/v1/{name}/{id}?{query}"));
        assert_eq!(paths(&either), expected);
        assert!(paths(&report(3, Product::Genoa, true)).is_empty(), "a masked chip has no path");
    }

    #[test]
    fn the_store_keeps_nothing_but_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let store = CollateralStore::open(directory.path().join("cache")).unwrap();
        let evidence = report(3, Product::Milan, false);
        let key = &CollateralKey::needed(&evidence)[0];
        assert_eq!(store.missing(&evidence), std::slice::from_ref(key));
        assert!(store.put(key, b"<html>429</html>").is_err());
        assert!(store.put(key, include_bytes!("snp/roots/milan-ask.der")).is_err());
        assert!(store.put_tdx(b"{}").is_err());
        assert_eq!(fs::read_dir(directory.path().join("cache")).unwrap().count(), 0);
        assert!(store.collateral(&evidence).snp_certificates.is_empty());
        // What is too large counts as absent.
        fs::write(store.path(key), vec![0; CERTIFICATE_LIMIT + 1]).unwrap();
        assert!(store.collateral(&evidence).snp_certificates.is_empty());
    }

    #[test]
    fn names_of_files_differ_as_keys_do() {
        let key = |product, tcb: Tcb| CollateralKey::Vcek { product, chip_id: [1; 64].into(), tcb };
        let tcb = Tcb { fmc: None, bootloader: 1, tee: 2, snp: 3, microcode: 4 };
        let names: std::collections::BTreeSet<String> = [
            key(Product::Milan, tcb),
            key(Product::Genoa, tcb),
            key(Product::Turin, Tcb { fmc: Some(1), ..tcb }),
            key(Product::Turin, Tcb { fmc: Some(11), ..tcb }),
            key(Product::Milan, Tcb { bootloader: 12, tee: 3, ..tcb }),
        ]
        .iter()
        .map(CollateralKey::file_name)
        .collect();
        assert_eq!(names.len(), 5);
        let plain = |name: &String| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        };
        assert!(names.iter().all(plain));
    }
}
