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
