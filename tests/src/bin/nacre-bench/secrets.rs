//! What a secret costs a pod: from `RunPodSandbox` to the first output byte, with and without.

use std::time::Instant;

use nacre_tests::{Broker, Image, World, container};

use crate::{Samples, median};

const SECRET: &str = "kbs:///default/bench/secret";
/// What is compared, each with the one before it.
const KINDS: [&str; 3] =
    ["no TEE, no secret", "emulated TEE, no secret", "emulated TEE, a sealed variable"];
const TEE: &str = "tee = \"emulated-snp\"\n";

pub(crate) async fn measure(world: &World, runs: u32) -> anyhow::Result<String> {
    world.danger_emulate_tee()?;
    let broker = world.start_broker().await?;
    broker.expect_these_guests("bench")?;
    broker.set_secret(SECRET, "value")?;
    let sealed = broker.seal(SECRET)?;
    let image = world.push(&Image::busybox("bench"))?;
    let mut samples = Samples::new();
    // The first round warms caches and counts for nothing.
    for run in 0..=runs {
        eprintln!("run {run} of {runs}");
        for kind in KINDS {
            let time = one_pod(world, &broker, &image, kind, &sealed).await?;
            if run > 0 {
                samples.entry(kind.to_owned()).or_default().push(time);
            }
        }
    }
    let mut table =
        format!("| RunPodSandbox to first output byte, medians of {runs} | ms |\n|---|---|\n");
    for kind in KINDS {
        table.push_str(&format!("| {kind} | {:.0} |\n", median(&samples[kind])));
    }
    let [none, tee, secret] = KINDS.map(|kind| median(&samples[kind]));
    table.push_str(&format!("| of it the TEE | {:.0} |\n", tee - none));
    table.push_str(&format!("| of it the secret | {:.0} |\n", secret - tee));
    Ok(table)
}

/// Milliseconds.
async fn one_pod(
    world: &World,
    broker: &Broker<'_>,
    image: &str,
    kind: &str,
    sealed: &str,
) -> anyhow::Result<f64> {
    world.configure_shim(|text| {
        let text = text.replace(TEE, "");
        if kind == KINDS[0] { text } else { text.replacen("[vm]\n", &format!("[vm]\n{TEE}"), 1) }
    })?;
    let value = if kind == KINDS[2] { sealed } else { "value" };
    let app = container("app", image).env("SECRET", value).script("echo $SECRET; sleep 1000");
    let pod = world.pod("bench").with(app).secrets_of(broker).with_policy()?;
    broker.grant("bench", pod.annotation_text(), ["default/bench/*", "default/seal/*"])?;
    let started = Instant::now();
    let pod = pod.await?;
    let app = pod.start("app").await?;
    app.wait_for("value").await?;
    let time = started.elapsed().as_secs_f64() * 1000.0;
    pod.stop().await?;
    pod.remove().await?;
    Ok(time)
}
