//! Images as registries describe them, each asked for once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nacre_image_pull::{
    Credentials, InspectConfig, Inspected, InspectedLayers, Inspector, Limits, Registries,
};
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
    layers: BTreeMap<String, InspectedLayers>,
    sizes: BTreeMap<String, LayerSizes>,
}

/// What the layers of an image take, by `diff_id`; none if they are encrypted; why that is not known.
type LayerSizes = Result<Option<BTreeMap<Digest, StoredSize>>, String>;

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
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (known, layers, sizes) = Default::default();
        Ok(Self { inspector, runtime, known, layers, sizes })
    }

    /// What images take together when they are unpacked, layers that they share once; none if one has
    /// encrypted layers, which nobody can count without their keys. Fetches layers that were not read yet.
    pub(crate) fn stored<'a>(
        &mut self,
        references: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<StoredSize>, String> {
        let mut layers: BTreeMap<Digest, StoredSize> = BTreeMap::new();
        for reference in references {
            match self.sizes(reference)? {
                Some(sizes) => layers.extend(sizes),
                None => return Ok(None),
            }
        }
        Ok(Some(layers.into_values().fold(StoredSize::default(), StoredSize::plus)))
    }

    fn sizes(&mut self, reference: &str) -> LayerSizes {
        if let Some(known) = self.sizes.get(reference) {
            return known.clone();
        }
        self.image(reference)?;
        let Some(layers) = self.layers.get(reference) else { return Ok(None) };
        let sizes = self.runtime.block_on(self.inspector.sizes(layers));
        let sizes = sizes.map_err(|error| format!("image {reference}: {error}"));
        self.sizes.insert(reference.to_owned(), sizes.clone());
        sizes
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
        self.layers.insert(reference.to_owned(), inspected.layers.clone());
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
