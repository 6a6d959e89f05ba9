//! `nacre-demo`: one pod's life with Nacre, step by step, for people to watch.
//!
//! What it claims it checks; it ends with an error if any of it does not hold.

mod secrets;
mod step;

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use nacre_tests::{Container, Image, Pod, PodBuilder, World, container};

use crate::step::{Step, note};

/// Runs a pod in its own VM on a real containerd and shows what happens.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Leaves everything running, and says how to look at it and how to end it.
    #[arg(long)]
    keep: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    println!("\nNacre demo: a pod in a virtual machine of its own\n");
    let mut builder = World::builder();
    if arguments.keep {
        builder = builder.outlive();
    }
    let step = Step::begin("starting containerd, a registry and a pod network of their own");
    let world = builder.start().await?;
    step.done(
        "containerd, registry, snapshotter and pod network run, apart from this machine's own",
    );

    let container = story(&world, arguments.keep).await.inspect_err(|_| world.show_logs())?;
    if arguments.keep {
        return keep(world, &container);
    }
    println!("\nA secret for pods that prove what they are\n");
    secrets::story(&world).await.inspect_err(|_| world.show_logs())?;
    println!("\nAll of it held. {:.1} s in all.\n", started.elapsed().as_secs_f64());
    Ok(())
}

/// Returns the id of a container that runs, if the pod is kept.
async fn story(world: &World, keep: bool) -> anyhow::Result<String> {
    let step = Step::begin("making a test image");
    let image = world.push(&Image::busybox("demo"))?;
    step.done(&format!("test image made and pushed: {image}"));

    let step = Step::begin("making the pod's policy from its manifest");
    let pod = declared(world, &image).with_policy()?;
    let (manifest, annotation) = (pod.manifest(), pod.annotation_text().len());
    step.done(&format!(
        "nacre policy generate: {} lines of YAML, {annotation} bytes of annotation",
        manifest.lines().count()
    ));

    let step = Step::begin("starting the pod: QEMU, kernel, agent");
    let pod = pod.await?;
    let machine = world.virtual_machines()?.into_iter().next().context("no VM runs")?;
    step.done(&format!("pod is ready: its VM is process {}", machine.pid));
    if machine.command.contains("tcg") {
        note("no hardware virtualization here: QEMU emulates the processor, so all is slower");
    }

    let step = Step::begin("starting a container; the guest pulls the image by itself");
    let server = pod.start("server").await?;
    server.wait_for("hello").await?;
    step.done("first container runs, its image was pulled inside the guest");

    show_kernels(&server).await?;
    show_host_content(world)?;
    show_output_and_exec(&server).await?;
    show_two_containers(world, &pod).await?;
    show_a_denial(&server).await?;
    if !keep {
        end(world, &pod).await?;
    }
    Ok(server.id().to_owned())
}

/// The commands that the pod's owner lets the host run in it.
const SIZE: &str = "echo $(hostname): $(nproc) CPU, $(free -m | awk '/Mem/{print $2}') MiB";

fn declared<'w>(world: &'w World, image: &str) -> PodBuilder<'w> {
    let server = "mkdir /www; echo 'hello over localhost' > /www/index.html; \
                  echo hello from inside the VM; exec httpd -f -p 127.0.0.1:80 -h /www";
    let client = "until wget -q -O- http://127.0.0.1/; do sleep 0.1; done";
    let exec = format!("allow.exec = [[\"sh\", \"-c\", \"uname -r\"], [\"sh\", \"-c\", {SIZE:?}]]");
    world
        .pod("demo")
        .with(container("server", image).script(server))
        .with(container("client", image).script(client))
        .settings(&exec)
}

async fn show_kernels(container: &Container<'_>) -> anyhow::Result<()> {
    let step = Step::begin("comparing kernels");
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let guest = container.sh("uname -r").await?;
    ensure!(host != guest, "the container runs on the host's kernel {host}");
    step.done("it has a kernel of its own");
    note(&format!("host   {host}"));
    note(&format!("guest  {guest}"));
    Ok(())
}

fn show_host_content(world: &World) -> anyhow::Result<()> {
    let step = Step::begin("looking through the host's content store");
    let layers = world.host_layers()?;
    ensure!(layers.is_empty(), "the host holds layers: {layers:?}");
    let blobs = world.host_blobs()?;
    step.done(&format!("the host holds {blobs} manifests and configurations, and no layer"));
    Ok(())
}

async fn show_output_and_exec(container: &Container<'_>) -> anyhow::Result<()> {
    let step = Step::begin("reading its output");
    let said = container.stdout()?;
    ensure!(said == "hello from inside the VM\n", "its output is {said:?}");
    step.done(&format!("its output: {}", said.trim()));
    let step = Step::begin("running a command in it");
    let answer = container.sh(SIZE).await?;
    step.done(&format!("exec answers: {answer}"));
    Ok(())
}

async fn show_two_containers(world: &World, pod: &Pod<'_>) -> anyhow::Result<()> {
    let step = Step::begin("starting a second container in the same pod");
    let client = pod.start("client").await?;
    let exit = client.wait_exit().await?;
    let said = client.stdout()?;
    ensure!(exit.code == 0 && said == "hello over localhost\n", "{exit:?}, {said:?}");
    ensure!(world.virtual_machines()?.len() == 1, "the pod has more than one VM");
    step.done(&format!("a second container asks the first: {}", said.trim()));
    Ok(())
}

async fn show_a_denial(container: &Container<'_>) -> anyhow::Result<()> {
    let step = Step::begin("trying what the owner did not allow");
    let Err(error) = container.exec(["cat", "/etc/shadow"]).await else {
        bail!("a command that no policy allows was run");
    };
    let text = format!("{error:#}");
    let denial = text.split_once("policy denies").context(text.clone())?.1;
    step.done("the host asks for another command, and the guest refuses");
    note(&format!("policy denies{denial}"));
    Ok(())
}

async fn end(world: &World, pod: &Pod<'_>) -> anyhow::Result<()> {
    let step = Step::begin("stopping the pod");
    pod.stop().await?;
    pod.remove().await?;
    step.done("pod stopped and removed");
    let step = Step::begin("looking for what it left");
    let left = world.leftovers().await?;
    ensure!(left.is_empty(), "the pod left something behind:\n  {}", left.join("\n  "));
    step.done("nothing left: no processes, mounts, network namespaces, taps or sockets");
    Ok(())
}

fn keep(world: World, container: &str) -> anyhow::Result<()> {
    let enter = format!("sudo nsenter -t {} -p -m -n", world.init());
    let end = format!("sudo kill -9 {}", world.init());
    let logs = world.logs().display().to_string();
    world.leave()?;
    println!("\nEverything keeps running. To play with it:\n");
    println!("  {enter} ctr -n k8s.io containers ls");
    println!("  {enter} ctr -n k8s.io content ls");
    println!("  {enter} ctr -n k8s.io task ls");
    println!("  {enter} ctr -n k8s.io task exec -t --exec-id me {container} sh");
    println!("  less {logs}/containerd.log");
    println!("\nTo end all of it:\n\n  {end}\n");
    Ok(())
}
