//! CRI conformance: what a kubelet may expect of the handler `nacre`, each behaviour by its name, on a
//! given release of containerd.
//!
//! The table is in [`table`]; the scenes look at its behaviours, many in one pod. It plays the kubelet with
//! everything that CRI lets it say, which the stories of the other tests do not need.

mod kubelet;
mod life;
#[cfg(test)]
mod page;
mod refusals;
mod report;
mod resources;
mod security;
mod streaming;
mod streams;
mod table;

use anyhow::Context as _;
use k8s_cri::v1 as cri;

use crate::image::Image;
use crate::products::ContainerdVersion;
use crate::world::World;
use kubelet::Kubelet;
use report::Report;

/// What every scene needs.
#[derive(Debug)]
struct Stage<'w> {
    world: &'w World,
    /// The kubelet of pods in VMs.
    kubelet: Kubelet<'w>,
    report: &'w Report,
    /// An image with `BusyBox`, whose stop signal is `SIGUSR1`.
    image: String,
}

impl Stage<'_> {
    /// A container that runs a shell script.
    fn script(&self, name: &str, script: &str) -> cri::ContainerConfig {
        let image = cri::ImageSpec {
            image: self.image.clone(),
            user_specified_image: self.image.clone(),
            ..Default::default()
        };
        let namespaces = cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let security = cri::LinuxContainerSecurityContext {
            namespace_options: Some(namespaces),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            labels: [("container".to_owned(), name.to_owned())].into(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A part of a container's configuration that [`Stage::script`] always makes.
fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Runs the suite in a world of its own; an error if a behaviour is not as the table says.
pub fn conform(release: ContainerdVersion) -> anyhow::Result<()> {
    // Without optimization the futures of whole scenes do not fit a test's stack of 2 MiB.
    const STACK_BYTES: usize = 64 << 20;
    let suite = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(in_a_world(release))
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(suite)?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn in_a_world(release: ContainerdVersion) -> anyhow::Result<()> {
    let world = World::builder().containerd(release).start().await?;
    world.products().check()?;
    world.danger_allow_all_by_default()?;
    let report = Report::new(release);
    let verdict = report.finish(scenes(&world, &report).await);
    if verdict.is_err() {
        world.show_logs();
    }
    verdict
}

async fn scenes(world: &World, report: &Report) -> anyhow::Result<()> {
    let image = world.push(&Image::busybox("conformance").stop_signal("SIGUSR1"))?;
    world.pull(&image).await?;
    let kubelet = Kubelet { world, handler: "nacre" };
    let stage = Stage { world, kubelet, report, image };
    refusals::before_a_machine(&stage).await;
    resources::make_group(world)?;
    let pod = life::begin(&stage).await.context("the pod of most scenes does not start")?;
    life::containers(&stage, &pod).await;
    security::containers(&stage, &pod).await;
    streams::containers(&stage, &pod).await;
    resources::containers(&stage, &pod).await;
    refusals::containers(&stage, &pod).await;
    life::end(&stage, &pod).await;
    refusals::privileged(&stage).await;
    life::again(&stage).await?;
    life::crowd(&stage).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md");
        let expected = page::text();
        if std::env::var_os("NACRE_WRITE_PAGES").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == expected,
            "docs/conformance.md is not the table's: NACRE_WRITE_PAGES=1 cargo test -p nacre-tests --lib \
             writes it"
        );
    }

    #[test]
    fn names_are_unique_and_no_skip_is_without_reason() {
        let names: BTreeSet<_> = table::BEHAVIOURS.iter().map(|it| it.name).collect();
        assert_eq!(names.len(), table::BEHAVIOURS.len());
        for behaviour in table::BEHAVIOURS {
            for skip in behaviour.skips {
                assert!(skip.reason.len() > 20, "{}", behaviour.name);
                assert!(!skip.releases.is_empty(), "{}", behaviour.name);
            }
        }
    }
}
