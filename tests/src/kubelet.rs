//! The files that the kubelet prepares on the node for a pod, and shows in its containers.

use std::fs;
use std::os::unix::fs::symlink;

use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use crate::declaration::{Declaration, Files};
use crate::world::World;

/// Where they are, inside.
pub(crate) const PODS: &str = "/run/world/kubelet/pods";
/// The namespace of all pods.
pub(crate) const NAMESPACE: &str = "stories";

/// The manifest of a pod and its `ConfigMaps`, as its owner writes it.
pub(crate) fn manifest(
    name: &str,
    containers: &[Declaration],
    shared_processes: bool,
) -> Vec<Value> {
    let files = || containers.iter().flat_map(|container| &container.files);
    let mut documents: Vec<Value> = files()
        .map(|files| {
            let data: serde_json::Map<_, _> =
                files.content.iter().map(|(name, text)| (name.clone(), json!(text))).collect();
            json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": { "name": files.name, "namespace": NAMESPACE },
                "data": data,
            })
        })
        .collect();
    let volume = |files: &Files| json!({ "name": files.name, "configMap": { "name": files.name } });
    let mut spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "containers": containers.iter().map(Declaration::to_kubernetes).collect::<Vec<_>>(),
    });
    let mut volumes: Vec<Value> = files().map(volume).collect();
    for shown in containers.iter().flat_map(|container| &container.volumes) {
        let volume = shown.volume.to_kubernetes();
        if !volumes.contains(&volume) {
            volumes.push(volume);
            documents.extend(shown.volume.claim(NAMESPACE));
        }
    }
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    if shared_processes {
        spec["shareProcessNamespace"] = json!(true);
    }
    documents.push(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": spec,
    }));
    documents
}

/// Writes the files of one container, and says how they are mounted.
pub(crate) fn mounts(
    world: &World,
    uid: &str,
    container: &Declaration,
) -> anyhow::Result<Vec<cri::Mount>> {
    let pod = format!("{PODS}/{uid}");
    let logs = format!("{pod}/containers/{}", container.name);
    fs::create_dir_all(world.path(&logs))?;
    let (hosts, log) = (format!("{pod}/etc-hosts"), format!("{logs}/1d6f0b5e"));
    let text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost\n";
    fs::write(world.path(&hosts), text)?;
    fs::write(world.path(&log), "")?;
    let mut mounts = Vec::new();
    for files in &container.files {
        let volume = config_map(world, &pod, files)?;
        mounts.push(mount(volume, &files.target, true));
    }
    let mounted = container.volumes.iter().filter(|shown| shown.device().is_none());
    for (number, shown) in mounted.enumerate() {
        let number = container.files.len() + number;
        mounts.push(shown.prepare(world, uid, &container.name, number)?);
    }
    mounts.push(mount(hosts, "/etc/hosts", false));
    mounts.push(mount(log, "/dev/termination-log", false));
    Ok(mounts)
}

/// A directory whose files can be replaced in one step, by exchanging the link `..data`.
fn config_map(world: &World, pod: &str, files: &Files) -> anyhow::Result<String> {
    const GENERATION: &str = "..2026_01_01_00_00_00.1";
    let volume = format!("{pod}/volumes/kubernetes.io~configmap/{}", files.name);
    let root = world.path(&volume);
    if root.exists() {
        return Ok(volume);
    }
    fs::create_dir_all(root.join(GENERATION))?;
    symlink(GENERATION, root.join("..data"))?;
    for (name, text) in &files.content {
        fs::write(root.join(GENERATION).join(name), text)?;
        symlink(format!("..data/{name}"), root.join(name))?;
    }
    Ok(volume)
}

fn mount(host_path: String, container_path: &str, readonly: bool) -> cri::Mount {
    let container_path = container_path.to_owned();
    cri::Mount { container_path, host_path, readonly, ..Default::default() }
}
