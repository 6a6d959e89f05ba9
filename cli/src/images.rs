//! Images as registries describe them, each asked for once.

use std::collections::BTreeMap;

use nacre_image_pull::{InspectConfig, Inspected, Inspector, Limits, Registries};
use nacre_policy_author::generate::{ImageFacts, Images};
use nacre_policy_author::settings::Registry;

/// Asks registries.
pub(crate) struct RegistryImages {
    inspector: Inspector,
    runtime: tokio::runtime::Runtime,
    known: BTreeMap<String, ImageFacts>,
}

impl RegistryImages {
    /// Nothing is asked for yet.
    pub(crate) fn new(settings: &Registry) -> anyhow::Result<Self> {
        let inspector = Inspector::new(InspectConfig {
            registries: Registries {
                danger_plain_http: settings.danger_plain_http.clone(),
                ca_file: settings.ca_file.clone(),
                ..Registries::default()
            },
            limits: Limits::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { inspector, runtime, known: BTreeMap::new() })
    }
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
