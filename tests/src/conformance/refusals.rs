//! What a pod in a VM cannot have is refused, and the refusal names it.

use anyhow::{bail, ensure};
use k8s_cri::v1 as cri;

use super::Stage;
use super::kubelet::Sandbox;

/// Nothing was made, and the reason has all these parts.
pub(super) fn refused<T: std::fmt::Debug>(
    result: anyhow::Result<T>,
    parts: &[&str],
) -> anyhow::Result<()> {
    let error = match result {
        Ok(made) => bail!("it is not refused: {made:?}"),
        Err(error) => error.to_string(),
    };
    ensure!(parts.iter().all(|part| error.contains(part)), "another reason: {error}");
    Ok(())
}

/// What is refused before there is a machine.
pub(super) async fn before_a_machine(stage: &Stage<'_>) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    let with = |name: &str, change: &dyn Fn(&mut cri::NamespaceOption)| {
        let mut config = kubelet.sandbox(name);
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        change(context.namespace_options.get_or_insert_default());
        config
    };
    let node = cri::NamespaceMode::Node;
    report
        .check("host-network-refused", async {
            let config = with("host-network", &|options| options.set_network(node));
            refused(kubelet.run(config).await, &["nacre: ", "hostNetwork"])
        })
        .await;
    report
        .check("host-pid-refused", async {
            let config = with("host-pid", &|options| options.set_pid(node));
            refused(kubelet.run(config).await, &["nacre: ", "hostPID"])
        })
        .await;
    report
        .check("host-ipc-refused", async {
            let config = with("host-ipc", &|options| options.set_ipc(node));
            refused(kubelet.run(config).await, &["nacre: ", "hostIPC"])
        })
        .await;
    report
        .check("refusals-leave-nothing", async {
            let left = stage.world.leftovers().await?;
            ensure!(left.is_empty(), "{left:?}");
            ensure!(stage.world.virtual_machines()?.is_empty());
            Ok(())
        })
        .await;
}

/// What is refused to one container, while its pod lives on.
pub(super) async fn containers(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("character-device-refused", async {
            let mut config = stage.script("device", "true");
            config.devices.push(cri::Device {
                container_path: "/dev/kmsg".into(),
                host_path: "/dev/kmsg".into(),
                permissions: "rw".into(),
            });
            refused(kubelet.launch(pod, config).await, &["nacre: ", "linux.devices", "/dev/kmsg"])
        })
        .await;
    report
        .check("pod-outlives-refusals", async {
            let (said, code) = kubelet.finish(pod, stage.script("after", "echo fine")).await?;
            ensure!((said.as_str(), code) == ("fine\n", 0), "{said:?}, {code}");
            Ok(())
        })
        .await;
}

/// A privileged pod: its sandbox is refused, or the privileged container in it.
pub(super) async fn privileged(stage: &Stage<'_>) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("privileged-refused", async {
            const REASON: [&str; 2] = ["nacre: ", "without privileged: true"];
            let mut config = kubelet.sandbox("privileged");
            let linux = config.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().privileged = true;
            let pod = match kubelet.run(config).await {
                Ok(pod) => pod,
                Err(error) => return refused::<()>(Err(error), &REASON),
            };
            let mut config = stage.script("privileged", "true");
            super::security(&mut config).privileged = true;
            let launched = kubelet.launch(&pod, config).await;
            kubelet.remove_sandbox(&pod.id).await?;
            refused(launched, &REASON)
        })
        .await;
}
