//! What the owner says about images: `image.toml` and the image policy.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use nacre_image_pull::{IMAGE_POLICIES, IMAGE_TOML, Settings, Source};
use nacre_image_security::ImagePolicy;
use nacre_protocol::kbs::ResourceUri;
use toml::Value;

use super::Arguments;
use crate::input::read_text;

/// Writes what the arguments say; what the document said before about something else stays.
pub(super) fn add(
    files: &mut BTreeMap<String, String>,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let mut settings = match &arguments.image_settings {
        Some(path) => Some(read_text(path)?),
        None => files.get(IMAGE_TOML).cloned(),
    }
    .map(|text| text.parse::<toml::Table>().context(IMAGE_TOML))
    .transpose()?
    .unwrap_or_default();
    let mut said = arguments.image_settings.is_some();
    let mut say = |key: &str, value: Value| {
        settings.insert(key.to_owned(), value);
        said = true;
    };
    if let Some(login) = &arguments.registry_credentials {
        say("credentials", login.clone().into());
    }
    if let Some(path) = &arguments.registry_ca {
        say("ca", read_text(path)?.into());
    }
    if !arguments.layer_key.is_empty() {
        let keys = arguments.layer_key.iter().map(|uri| Value::from(uri.to_string()));
        say("layer_keys", keys.collect::<Vec<_>>().into());
    }
    match arguments.image_policy.as_deref() {
        Some(uri) if uri.starts_with("kbs") => {
            uri.parse::<ResourceUri>().with_context(|| format!("--image-policy {uri}"))?;
            say("policy", uri.into());
        }
        Some(path) => {
            let text = read_text(Path::new(path))?;
            let [native, containers] = IMAGE_POLICIES;
            let (name, other) = match text.trim_start().starts_with('{') {
                true => (containers, native),
                false => (native, containers),
            };
            files.remove(other);
            files.insert(name.to_owned(), text);
        }
        None => {}
    }
    if said {
        files.insert(IMAGE_TOML.to_owned(), toml::to_string(&settings)?);
    }
    Ok(())
}

/// Reads everything as the guest will, so that mistakes show here and not when a pod starts.
pub(super) fn check(files: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let settings = Settings::read(files)?;
    if let Some(Source::Text(policy)) = &settings.policy {
        ImagePolicy::parse(policy.as_bytes()).context("the image policy")?;
    }
    let asks = settings.credentials.is_some()
        || !settings.layer_keys.is_empty()
        || matches!(settings.policy, Some(Source::Resource(_)));
    if asks && !files.contains_key("cdh.toml") && !files.contains_key("aa.toml") {
        bail!(
            "{IMAGE_TOML} names resources of a key broker, but the document names no broker: add --kbs-url"
        );
    }
    Ok(())
}
