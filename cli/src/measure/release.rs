//! What guests of an image measure, for those who get the image: `measurements.json` beside its manifest.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nacre_configuration::{Config, Tee};
use nacre_image_manifest::MEASUREMENTS;
use serde_json::{Value, json};

use super::explanation;
use super::launch::Measured;

/// Version of the document.
const FORMAT: u32 = 1;

/// What guests of an image measure with the shipped configuration.
pub(crate) struct Release {
    document: Value,
    /// For people: a line each.
    lines: Vec<String>,
    left_out: Vec<String>,
}

/// Measures an image for both kinds of hardware, with the shipped configuration and the firmware in a directory
/// (by default where it is installed). A TEE whose firmware is not there is left out, which is said.
///
/// # Errors
/// If the image or a firmware cannot be read or measured.
pub(crate) fn measurements_of(image: &Path, firmware: Option<&Path>) -> anyhow::Result<Release> {
    let image = std::path::absolute(image)?;
    let mut document = json!({
        "format": FORMAT,
        "note": "what guests of this image measure with the configuration as shipped; other settings and \
            other firmware give other values (nacre measure)",
    });
    let (mut lines, mut left_out) = (Vec::new(), Vec::new());
    for (tee, name) in [(Tee::Snp, "snp"), (Tee::Tdx, "tdx")] {
        let mut config = Config::default();
        config.vm.image.clone_from(&image);
        config.vm.tee = tee;
        let path = match tee {
            Tee::Tdx => &mut config.tdx.firmware,
            _ => &mut config.snp.firmware,
        };
        if let (Some(directory), Some(file)) = (firmware, path.file_name().map(PathBuf::from)) {
            *path = std::path::absolute(directory.join(file))?;
        }
        if !path.exists() {
            left_out.push(format!("{name}: not measured, {} is not there", path.display()));
            continue;
        }
        let vcpus: Vec<u32> = (1..=config.vm.max_vcpus).collect();
        let measured = Measured::of(&config, &vcpus).with_context(|| format!("--tee {name}"))?;
        let mut value = explanation::json(&measured);
        for source in &measured.sources {
            // Where the files were is nobody's business; their names are.
            let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(source) = value[source.what].as_object_mut() {
                source.remove("path");
                source.insert("name".to_owned(), name.into());
            }
        }
        lines.extend(headlines(name, &value));
        document[name] = value;
    }
    Ok(Release { document, lines, left_out })
}

/// What people compare.
fn headlines(name: &str, value: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(measurements) = value["measurements"].as_object() {
        let mut measurements: Vec<(u32, &str)> = measurements
            .iter()
            .filter_map(|(vcpus, digest)| Some((vcpus.parse().ok()?, digest.as_str()?)))
            .collect();
        measurements.sort_unstable();
        lines.extend(
            measurements.iter().map(|(vcpus, digest)| format!("{name} {vcpus} vcpus {digest}")),
        );
    }
    lines.extend(value["mr_td"].as_str().map(|digest| format!("{name} mrtd {digest}")));
    for (number, register) in value["rtmr"].as_array().into_iter().flatten().enumerate() {
        let told = register["value"].as_str().unwrap_or("unpredictable");
        lines.push(format!("{name} rtmr{number} {told}"));
    }
    lines
}

impl Release {
    /// The file's text.
    ///
    /// # Errors
    /// Never, for a document of plain values.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(&self.document)?))
    }

    /// TEEs that were left out, and why.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Writes it beside the image's manifest. Returns what to print.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, image: &Path) -> anyhow::Result<String> {
        self.write_to(&image.join(MEASUREMENTS))
    }

    /// Writes it to a file. Returns what to print.
    pub(super) fn write_to(&self, path: &Path) -> anyhow::Result<String> {
        std::fs::write(path, self.text()?)
            .with_context(|| format!("failed to write {}", path.display()))?;
        let mut told = format!("{}\n", path.display());
        for line in self.lines.iter().chain(&self.left_out) {
            // Writing to a String cannot fail.
            let _ = writeln!(told, "  {line}");
        }
        Ok(told)
    }
}
