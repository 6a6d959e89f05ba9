//! Policies for a world's pods: made by `nacre policy generate` from their manifests, as an owner makes
//! them.

use std::fs;

use nacre_protocol::initdata::{self, Initdata};

use crate::registry;
use crate::world::World;

/// Settings for every pod of a world, inside.
const SETTINGS: &str = "/run/world/settings.toml";

/// Generates the policy of a pod; returns its initdata as the annotation's text. `settings` are added to
/// those of the world, the policy to the initdata in a file.
pub(crate) fn generate(
    world: &World,
    pod: &str,
    manifest: &str,
    settings: &str,
    base: Option<&str>,
) -> anyhow::Result<String> {
    let own = format!("/run/world/owner/{pod}");
    fs::create_dir_all(world.path(&own))?;
    let registry = format!("[registry]\ndanger_plain_http = [{:?}]\n", registry::ADDRESS);
    let (file, extra) = (format!("{own}/pod.yaml"), format!("{own}/settings.toml"));
    for (path, text) in [(SETTINGS, registry.as_str()), (&file, manifest), (&extra, settings)] {
        fs::write(world.path(path), text)?;
    }
    let mut words = vec!["policy", "generate", "--output", "annotation", "--settings", SETTINGS];
    words.extend(["--settings", &extra, &file]);
    if let Some(base) = base {
        words.extend(["--initdata", base]);
    }
    Ok(world.nacre(&words)?.trim().to_owned())
}

/// Writes a policy that denies nothing, and initdata with it; returns the paths of both, inside.
pub(crate) fn allow_all(world: &World) -> anyhow::Result<(&'static str, &'static str)> {
    const POLICY: &str = "/run/world/allow-all.rego";
    const INITDATA: &str = "/run/world/allow-all.toml";
    let policy = world.nacre(&["policy", "allow-all"])?;
    fs::write(world.path(POLICY), &policy)?;
    let files = [(initdata::POLICY.to_owned(), policy)].into();
    let document = Initdata::new(initdata::Algorithm::Sha256, files)?;
    fs::write(world.path(INITDATA), document.text())?;
    Ok((POLICY, INITDATA))
}

/// Replays what a development image recorded of a pod against the pod's own policy, as
/// `nacre policy test` does; returns its table.
pub(crate) fn replay(world: &World, annotation: &str, requests: &str) -> anyhow::Result<String> {
    const FILE: &str = "/run/world/replayed.toml";
    fs::write(world.path(FILE), Initdata::from_annotation(annotation)?.text())?;
    world.nacre(&["policy", "test", FILE, "--requests", requests])
}
