//! What a container may do: users, capabilities, filters, file systems.

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;
use k8s_cri::v1::security_profile::ProfileType;

use super::kubelet::Sandbox;
use super::{Stage, security};
use crate::cri::call;
use crate::image::Image;

/// A profile of the node's administrator, inside: everything but making directories.
const PROFILE: &str = "/run/world/no-mkdir.json";

/// A line of `/proc/self/status`.
fn field<'t>(status: &'t str, name: &str) -> anyhow::Result<&'t str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {status:?}"))?.trim())
}

fn profile(kind: ProfileType, path: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

pub(super) async fn containers(stage: &Stage<'_>, pod: &Sandbox) {
    users(stage, pod).await;
    rights(stage, pod).await;
    filters(stage, pod).await;
    files(stage, pod).await;
}

async fn users(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("run-as-user-and-group", async {
            let mut config = stage.script("user", "id -u; id -g");
            security(&mut config).run_as_user = Some(cri::Int64Value { value: 1234 });
            security(&mut config).run_as_group = Some(cri::Int64Value { value: 4321 });
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(said == "1234\n4321\n", "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("run-as-username", async {
            // Another image with the same layers.
            let named = Image::busybox("conformance-named").stop_signal("SIGUSR1").user("tester");
            let named = stage.world.push(&named)?;
            stage.world.pull(&named).await?;
            let named = cri::ImageSpec { image: named, ..Default::default() };
            let mut config = stage.script("username", "id >/tmp/who; echo up; sleep 1000");
            config.image = Some(named.clone());
            // As the kubelet does, which reads the name from the image.
            let request = cri::ImageStatusRequest { image: Some(named), verbose: false };
            let status =
                call("ImageStatus", stage.world.cri.images().image_status(request)).await?;
            security(&mut config).run_as_username = status.image.context("no image")?.username;
            security(&mut config).supplemental_groups = vec![5001];
            let log = format!("{}/{}", pod.config.log_directory, config.log_path);
            let id = kubelet.launch(pod, config).await?;
            kubelet.logs(&log, "up").await?;
            let said = kubelet.sh(&id, "cat /tmp/who; id").await?;
            let who = said.lines().collect::<Vec<_>>();
            ensure!(
                who.len() == 2 && who[0] == who[1],
                "a command runs as its container: {said:?}"
            );
            ensure!(who[0].starts_with("uid=1000(tester) gid=1000(tester) "), "{said:?}");
            for group in ["1000(tester)", "2000(extra)", "5001"] {
                ensure!(who[0].split(['=', ',']).any(|word| word == group), "{group}: {said:?}");
            }
            kubelet.stop(&id, 0).await?;
            kubelet.remove(&id).await
        })
        .await;
    report
        .check("supplemental-groups", async {
            // The kubelet adds fsGroup to them.
            let mut config = stage.script("groups", "id -G");
            security(&mut config).run_as_user = Some(cri::Int64Value { value: 1234 });
            security(&mut config).supplemental_groups = vec![5001, 5002];
            let (said, _) = kubelet.finish(pod, config).await?;
            let groups: Vec<_> = said.split_whitespace().collect();
            ensure!(groups.contains(&"5001") && groups.contains(&"5002"), "{said:?}");
            Ok(())
        })
        .await;
}

async fn rights(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    let status = "cat /proc/self/status";
    report
        .check("capabilities-dropped", async {
            let mut config = stage.script("caps-none", status);
            let drop_capabilities = vec!["ALL".into()];
            let wanted = cri::Capability { drop_capabilities, ..Default::default() };
            security(&mut config).capabilities = Some(wanted);
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(u64::from_str_radix(field(&said, "CapEff")?, 16)? == 0, "{said}");
            ensure!(u64::from_str_radix(field(&said, "CapBnd")?, 16)? == 0, "{said}");
            Ok(())
        })
        .await;
    report
        .check("capabilities-added", async {
            const NET_ADMIN: u64 = 1 << 12;
            let mut config = stage.script("caps-net", status);
            let (said, _) = kubelet.finish(pod, config.clone()).await?;
            let before = u64::from_str_radix(field(&said, "CapEff")?, 16)?;
            let add_capabilities = vec!["NET_ADMIN".into()];
            let wanted = cri::Capability { add_capabilities, ..Default::default() };
            security(&mut config).capabilities = Some(wanted);
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt = 1;
            }
            config.log_path = "caps-net-1.log".into();
            let (said, _) = kubelet.finish(pod, config).await?;
            let after = u64::from_str_radix(field(&said, "CapEff")?, 16)?;
            ensure!(before & NET_ADMIN == 0 && after == before | NET_ADMIN, "{before:x} {after:x}");
            Ok(())
        })
        .await;
    report
        .check("no-new-privileges", async {
            let mut config = stage.script("nnp", status);
            security(&mut config).no_new_privs = true;
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(field(&said, "NoNewPrivs")? == "1", "{said}");
            Ok(())
        })
        .await;
}

async fn filters(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    let status = "cat /proc/self/status";
    report
        .check("seccomp-runtime-default", async {
            let mut config = stage.script("seccomp-default", status);
            security(&mut config).seccomp = profile(ProfileType::RuntimeDefault, "");
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(field(&said, "Seccomp")? == "2", "{said}");
            Ok(())
        })
        .await;
    report
        .check("seccomp-unconfined", async {
            let mut config = stage.script("seccomp-none", status);
            security(&mut config).seccomp = profile(ProfileType::Unconfined, "");
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(field(&said, "Seccomp")? == "0", "{said}");
            Ok(())
        })
        .await;
    report
        .check("seccomp-localhost", async {
            let no_mkdir = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
            });
            std::fs::write(stage.world.path(PROFILE), no_mkdir.to_string())?;
            let script = "touch /tmp/file && ! mkdir /tmp/directory";
            let mut config = stage.script("seccomp-own", script);
            security(&mut config).seccomp = profile(ProfileType::Localhost, PROFILE);
            let (_, code) = kubelet.finish(pod, config).await?;
            ensure!(code == 0, "{code}");
            Ok(())
        })
        .await;
}

async fn files(stage: &Stage<'_>, pod: &Sandbox) {
    let (kubelet, report) = (&stage.kubelet, stage.report);
    report
        .check("readonly-root", async {
            let mut config =
                stage.script("readonly", "touch /file 2>&1; touch /dev/shm/file && echo ok");
            security(&mut config).readonly_rootfs = true;
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(said.contains("Read-only file system") && said.ends_with("ok\n"), "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("masked-paths", async {
            let mut config = stage.script("masked", "wc -c </proc/kcore; ls /sys/firmware | wc -l");
            security(&mut config).masked_paths =
                ["/proc/kcore", "/sys/firmware"].map(str::to_owned).to_vec();
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(said == "0\n0\n", "{said:?}");
            Ok(())
        })
        .await;
    report
        .check("readonly-paths", async {
            let script = "echo 1 >/proc/sys/kernel/panic; grep -c ' /proc/sys ' /proc/mounts";
            let mut config = stage.script("readonly-paths", script);
            security(&mut config).readonly_paths = vec!["/proc/sys".into()];
            let log = format!("{}/{}", pod.config.log_directory, config.log_path);
            let (said, _) = kubelet.finish(pod, config).await?;
            ensure!(said == "1\n", "{said:?}");
            let errors = kubelet.logged(&log, "stderr")?;
            ensure!(errors.contains("Read-only file system"), "{errors:?}");
            Ok(())
        })
        .await;
}
