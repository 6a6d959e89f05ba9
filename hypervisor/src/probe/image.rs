//! The guest image of a node.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::host::{Host, Kind, Missing, Part};

/// A guest image by its directory. Its manifest is another crate's: whoever asks brings the reader.
#[derive(Debug, Clone)]
pub struct ImagePaths {
    /// The directory.
    pub directory: PathBuf,
    /// Name of the manifest in it.
    pub manifest: &'static str,
    /// Reads a manifest, or says what is wrong with it.
    pub read: fn(&[u8]) -> Result<ImageSummary, String>,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// For people, such as the kernel's release.
    pub summary: String,
    /// Names and sizes in bytes of the files beside the manifest.
    pub files: Vec<(String, u64)>,
}

/// What is in the directory.
pub(crate) type Image = Result<ImageSummary, Problem>;

/// Why it is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    Manifest(Missing),
    Inside(String),
}

/// The shipped manifest has some 10 KiB.
const MOST_BYTES: usize = 4 * 1024 * 1024;

pub(crate) fn gather(host: &dyn Host, paths: &ImagePaths) -> Image {
    let path = paths.directory.join(paths.manifest);
    let bytes = host
        .read(&path, Part::Whole(MOST_BYTES))
        .map_err(|error| Problem::Manifest(Missing::of(&error)))?;
    let image = (paths.read)(&bytes).map_err(Problem::Inside)?;
    for (name, size) in &image.files {
        let path = paths.directory.join(name);
        let shown = path.display();
        match host.look(&path) {
            Ok(entry) if entry.kind != Kind::File => {
                return Err(Problem::Inside(format!("{shown} is no file")));
            }
            Ok(entry) if entry.size != *size => {
                let found = entry.size;
                let problem = format!("{shown} has {found} bytes, in the manifest {size}");
                return Err(Problem::Inside(problem));
            }
            Ok(_) => {}
            Err(error) => {
                return Err(Problem::Inside(format!("{shown} {}", Missing::of(&error))));
            }
        }
    }
    Ok(image)
}

pub(crate) fn finding(image: &Image, directory: &Path) -> Finding {
    const ID: &str = "image";
    let shown = directory.display();
    match image {
        Ok(image) => Finding::pass(ID, format!("{shown}: {}; hashes not compared", image.summary)),
        Err(Problem::Manifest(Missing::Denied)) => Finding::unseen(ID, shown.to_string()),
        Err(Problem::Manifest(missing)) => Finding::fail(
            ID,
            format!("the manifest in {shown} {missing}"),
            "install a guest image there, or correct vm.image",
        ),
        Err(Problem::Inside(problem)) => Finding::fail(
            ID,
            problem,
            "install the guest image anew; nacre image verify tells what differs",
        ),
    }
}
