//! The second part: a key broker gives a secret to a pod that proves what it is, and to no other.

use anyhow::{Context as _, ensure};
use nacre_tests::{Broker, Image, PodBuilder, World, container};

use crate::step::{Step, note};

const URI: &str = "kbs:///default/demo/greeting";
const SECRET: &str = "only the expected pod reads this";
/// Asks the guest, prints status line and answer.
const ASK: &str = "printf 'GET /cdh/resource/default/demo/greeting HTTP/1.0\\r\\n\\r\\n' \
                   | nc 127.0.0.1 8006; echo; echo asked; sleep 1000";

pub(crate) async fn story(world: &World) -> anyhow::Result<()> {
    let broker = broker(world).await?;
    let image = world.push(&Image::busybox("demo"))?;
    let granted = || -> anyhow::Result<PodBuilder<'_>> {
        let pod = declared(world, &broker, &image).with_policy()?;
        broker.grant("demo", pod.annotation_text(), ["default/demo/*"])?;
        Ok(pod)
    };

    let step = Step::begin("starting the pod that the owner expects");
    let told = ask(world, granted()?).await?;
    ensure!(told.contains(SECRET), "it was told: {told}");
    step.done(&format!("the pod proved what it is, and reads its secret: \"{SECRET}\""));

    let step = Step::begin("one more byte in the guest's initrd");
    world.change_image("initrd.img", |bytes| [bytes.as_slice(), &[0]].concat())?;
    let reason = refused(world, granted()?, "snp-measurement").await?;
    step.done("with one more byte in the initrd the pod is refused");
    note(&reason);
    world.restore_image()?;

    let step = Step::begin("another policy");
    let lax = declared(world, &broker, &image).settings("allow.exec_any = true");
    let reason = refused(world, lax, "grant").await?;
    step.done("under a policy that lets the host execute commands it is refused");
    note(&reason);

    let step = Step::begin("a launch that the host may debug");
    let debug = |text: String| text.replace("[emulated]\n", "[emulated]\ndanger_debug = true\n");
    world.configure_shim(debug)?;
    let reason = refused(world, granted()?, "debug").await?;
    step.done("launched so that the host may read its memory it is refused");
    note(&reason);

    let step = Step::begin("checking the broker's audit log");
    let audit = broker.audit()?;
    broker.verify_audit()?;
    step.done(&format!("the audit log has {} entries and is whole", audit.lines().count()));
    Ok(())
}

async fn broker(world: &World) -> anyhow::Result<Broker<'_>> {
    let step = Step::begin("starting a key broker");
    world.danger_emulate_tee()?;
    let broker = world.start_broker().await?;
    step.done("nacre kbs serve: a key broker runs, over https");
    note(
        "there is no confidential hardware here: QEMU's VMs get an emulated AMD secure processor,",
    );
    note("and this broker accepts its root, by a setting whose name begins with danger_");
    let step = Step::begin("telling the broker what to expect");
    broker.expect_these_guests("demo")?;
    broker.set_secret(URI, SECRET)?;
    step.done("nacre measure, nacre kbs reference-value add, secret set: it knows the guest image");
    Ok(broker)
}

fn declared<'w>(world: &'w World, broker: &Broker<'_>, image: &str) -> PodBuilder<'w> {
    world.pod("secret").with(container("app", image).script(ASK)).secrets_of(broker)
}

/// Starts the pod, ends it, and returns what it was told.
async fn ask(world: &World, pod: PodBuilder<'_>) -> anyhow::Result<String> {
    let pod = pod.await?;
    let app = pod.start("app").await?;
    app.wait_for("asked").await?;
    let told = app.stdout()?;
    pod.stop().await?;
    pod.remove().await?;
    let left = world.leftovers().await?;
    ensure!(left.is_empty(), "the pod left something behind:\n  {}", left.join("\n  "));
    Ok(told)
}

/// Starts a pod that must not get the secret; returns the reason that it was told.
async fn refused(world: &World, pod: PodBuilder<'_>, word: &str) -> anyhow::Result<String> {
    let told = ask(world, pod).await?;
    ensure!(!told.contains(SECRET), "it got the secret");
    ensure!(told.contains(word), "it was told: {told}");
    let reason = told.lines().find(|line| line.contains(word)).context("it is told why")?;
    Ok(reason.trim().to_owned())
}
