//! Images as registries describe them, each asked for once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nacre_image_pull::{Credentials, InspectConfig, Inspected, Inspector, Limits, Registries};
use nacre_policy_author::generate::{ImageFacts, Images};
use nacre_policy_author::settings::Registry;
use nacre_protocol::guest_memory::StoredSize;
use nacre_trust::Digest;
use zeroize::Zeroizing;

/// Asks registries.
pub(crate) struct RegistryImages {
    inspector: Inspector,
    runtime: tokio::runtime::Runtime,
    known: BTreeMap<String, ImageFacts>,
    /// What the layers of each image take, by `diff_id`; empty if nobody can tell.
    sizes: BTreeMap<String, BTreeMap<Digest, StoredSize>>,
}

impl RegistryImages {
    /// Nothing is asked for yet.
    pub(crate) fn new(settings: &Registry) -> anyhow::Result<Self> {
        let inspector = Inspector::new(InspectConfig {
            registries: Registries {
                credentials: credentials(settings.credentials_file.as_deref())?,
                danger_plain_http: settings.danger_plain_http.clone(),
                ca_file: settings.ca_file.clone(),
                ..Registries::default()
            },
            limits: Limits::default(),
            sizes: true,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { inspector, runtime, known: BTreeMap::new(), sizes: BTreeMap::new() })
    }
}

impl RegistryImages {
    /// What images take together when they are unpacked, layers that they share once; absent if one of them
    /// was not looked up, or has encrypted layers, which nobody can count without their keys.
    pub(crate) fn stored<'a>(
        &self,
        references: impl IntoIterator<Item = &'a str>,
    ) -> Option<StoredSize> {
        let mut layers: BTreeMap<Digest, StoredSize> = BTreeMap::new();
        for reference in references {
            layers.extend(self.sizes.get(reference).filter(|sizes| !sizes.is_empty())?);
        }
        Some(layers.into_values().fold(StoredSize::default(), StoredSize::plus))
    }
}

/// Largest file of credentials, in bytes.
const CREDENTIALS_LIMIT: u64 = 1 << 20;

/// Credentials in a file; if none is named, those of `docker login` (`$DOCKER_CONFIG`, else `~/.docker`),
/// if there are any.
pub(crate) fn credentials(named: Option<&Path>) -> anyhow::Result<Credentials> {
    let usual = || {
        let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let directory = directory.or_else(|| Some(std::env::home_dir()?.join(".docker")))?;
        Some(directory.join("config.json")).filter(|file| file.exists())
    };
    let Some(path) = named.map(Path::to_owned).or_else(usual) else {
        return Ok(Credentials::default());
    };
    let shown = path.display().to_string();
    let mut document = Zeroizing::new(Vec::new());
    File::open(&path)
        .and_then(|file| file.take(CREDENTIALS_LIMIT + 1).read_to_end(&mut document))
        .with_context(|| format!("failed to read the credentials in {shown}"))?;
    Credentials::parse_docker_config(&document).context(shown)
}

impl Images for RegistryImages {
    fn image(&mut self, reference: &str) -> Result<ImageFacts, String> {
        if let Some(known) = self.known.get(reference) {
            return Ok(known.clone());
        }
        let inspected = self
            .runtime
            .block_on(self.inspector.inspect(reference))
            .map_err(|error| format!("image {reference}: {error}"))?;
        self.sizes.insert(reference.to_owned(), inspected.sizes.clone());
        let facts = facts(inspected);
        self.known.insert(reference.to_owned(), facts.clone());
        Ok(facts)
    }
}

fn facts(inspected: Inspected) -> ImageFacts {
    let rest = inspected.reference.strip_prefix(&inspected.name).unwrap_or_default();
    let (tag, digest) = match rest.split_once('@') {
        Some((tag, digest)) => (tag, Some(digest.to_owned())),
        None => (rest, None),
    };
    let tag = tag.strip_prefix(':').map(ToOwned::to_owned);
    let config = inspected.config.config().clone().unwrap_or_default();
    ImageFacts {
        tag,
        digest: digest.unwrap_or_else(|| inspected.manifest_digest.to_string()),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
        name: inspected.name,
        passwd: inspected.passwd,
        group: inspected.group,
    }
}
