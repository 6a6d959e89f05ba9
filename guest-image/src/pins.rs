//! Which Debian packages everything is made from: `pins.toml`, checked as it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use nacre_image_manifest::{Origin, Sha256Hex};
use serde::Deserialize;

/// The pins of this source tree.
const SHIPPED: &str = include_str!("../pins.toml");

/// All pinned packages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// Before this moment, in seconds since 1970 (UTC), the image cannot run: the guest's clock is wrong.
    pub epoch: u64,
    /// The guest's kernel.
    pub kernel: KernelPin,
    /// The package whose certificate authorities the guest trusts for TLS.
    pub certificates: Package,
    /// The package of the development image's shell.
    pub development_shell: Package,
    /// QEMU with its data and BIOS, for machines whose own is too old.
    pub qemu: Vec<Package>,
    /// containerd releases for the tests, by their `major.minor`.
    pub containerd: BTreeMap<String, Package>,
    /// Docker's daemon and client, for the tests.
    pub docker: ProgramPin,
    /// Firmware of confidential guests.
    pub firmware: Vec<Package>,
    /// Headers of a current kernel.
    pub kernel_headers: Vec<Package>,
    /// QEMU 11 with the libraries it needs.
    pub qemu_11: ProgramPin,
}

/// A program of another suite with all that it is linked against.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramPin {
    /// The program, its data, the dynamic loader and the libraries.
    pub packages: Vec<Package>,
}

/// The guest's kernel and what is taken from its package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPin {
    /// What `uname -r` says in the guest; names files inside the package.
    pub release: String,
    /// Modules for the initrd, with underscores; dependencies are added.
    pub modules: Vec<String>,
    /// Where it comes from.
    pub package: Package,
}

/// One Debian package, pinned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its full version, with epoch.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// The suite that carries it.
    pub suite: String,
    /// SHA-256 of the .deb file.
    pub sha256: Sha256Hex,
}

impl Package {
    /// The name `apt-get download` gives the file (a colon in the version is written `%3a`).
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

impl From<&Package> for Origin {
    fn from(package: &Package) -> Self {
        let Package { name, version, sha256, .. } = package.clone();
        Self { package: name, version, sha256 }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// What is wrong with a pins file.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// Not the TOML that is expected.
    #[error("the pins cannot be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// Text that would become an apt argument or a path.
    #[error("the pinned {field} {value:?} holds a character that Debian's {field}s do not have")]
    Text {
        /// `name`, `version`, ...
        field: &'static str,
        /// What it says.
        value: String,
    },
}

impl Pins {
    /// The pins of this source tree.
    pub fn shipped() -> Result<Self, PinsError> {
        SHIPPED.parse()
    }

    fn packages(&self) -> impl Iterator<Item = &Package> {
        [&self.kernel.package, &self.certificates, &self.development_shell]
            .into_iter()
            .chain(&self.qemu)
            .chain(self.containerd.values())
            .chain(&self.docker.packages)
            .chain(&self.firmware)
            .chain(&self.kernel_headers)
            .chain(&self.qemu_11.packages)
    }
}

impl FromStr for Pins {
    type Err = PinsError;

    fn from_str(text: &str) -> Result<Self, PinsError> {
        let pins: Self = toml::from_str(text)?;
        check("release", &pins.kernel.release, "+-.~")?;
        for module in &pins.kernel.modules {
            check("module", module, "_")?;
        }
        for package in pins.packages() {
            check("name", &package.name, "+-.")?;
            check("version", &package.version, "+-.~:")?;
            check("architecture", &package.architecture, "-")?;
            check("suite", &package.suite, "-")?;
        }
        Ok(pins)
    }
}

/// Letters, digits and `extra`, beginning with a letter or digit: no option, no path, no pattern.
fn check(field: &'static str, value: &str, extra: &str) -> Result<(), PinsError> {
    let first = value.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && value.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c)) {
        Ok(())
    } else {
        Err(PinsError::Text { field, value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_pins_are_sound() {
        let pins = Pins::shipped().unwrap();
        assert!(pins.kernel.package.name.ends_with(&pins.kernel.release));
        assert!(pins.qemu[0].file_name().starts_with("qemu-system-x86_1%3a"));
    }

    #[test]
    fn options_paths_and_unknown_keys_are_refused() {
        let refused = |from: &str, to: &str| {
            assert!(SHIPPED.contains(from));
            SHIPPED.replace(from, to).parse::<Pins>().unwrap_err().to_string()
        };
        assert!(refused("name = \"seabios\"", "name = \"--force\"").contains("name"));
        assert!(refused("suite = \"sid\"", "suite = \"../x\"").contains("suite"));
        assert!(refused("[certificates]", "[certificates]\nurl = \"x\"").contains("url"));
        assert!(refused("ef590f89", "EF590F89").contains("hexadecimal"));
    }
}
