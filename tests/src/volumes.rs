//! Volumes as the kubelet makes them on the node: directories that begin empty, files whose source may
//! change, paths of the node, and parts of volumes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use crate::kubelet::PODS;
use crate::world::World;

/// Where storage drivers leave descriptions of volumes that they hand over, inside.
const DIRECT_VOLUMES: &str = "/run/kata-containers/shared/direct-volumes";

/// A volume of a pod. Its object, if it has one, is not among the files that the owner shows to `nacre policy
/// generate`, so that the host may choose and change the contents.
#[derive(Debug, Clone)]
pub struct Volume {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    EmptyDir {
        memory_mib: Option<u64>,
    },
    ConfigMap,
    Secret,
    Token,
    HostPath(String),
    HugePages,
    /// A claim whose storage driver hands over this file or device of the node.
    Disk(String),
    /// A claim with `volumeMode: Block`, bound to this device of the node.
    BlockDevice(String),
}

/// Name and text of files.
pub type FileTexts<'a> = &'a [(&'a str, &'a str)];

impl Volume {
    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }

    /// `emptyDir: {}`.
    pub fn empty_dir(name: &str) -> Self {
        Self::new(name, Kind::EmptyDir { memory_mib: None })
    }

    /// `emptyDir` of memory with a limit.
    pub fn in_memory(name: &str, mib: u64) -> Self {
        Self::new(name, Kind::EmptyDir { memory_mib: Some(mib) })
    }

    /// A `ConfigMap` of this name.
    pub fn config_map(name: &str) -> Self {
        Self::new(name, Kind::ConfigMap)
    }

    /// A Secret of this name.
    pub fn secret(name: &str) -> Self {
        Self::new(name, Kind::Secret)
    }

    /// A projected service-account token.
    pub fn token(name: &str) -> Self {
        Self::new(name, Kind::Token)
    }

    /// A directory of the node.
    pub fn host_path(name: &str, path: &str) -> Self {
        Self::new(name, Kind::HostPath(path.to_owned()))
    }

    /// `emptyDir` of huge pages.
    pub fn huge_pages(name: &str) -> Self {
        Self::new(name, Kind::HugePages)
    }

    /// A claim with a file system, whose storage driver hands over a disk image or device of the node (a path
    /// inside) instead of mounting it.
    pub fn disk(name: &str, device: &str) -> Self {
        Self::new(name, Kind::Disk(device.to_owned()))
    }

    /// A claim with `volumeMode: Block`, bound to that device of the node.
    pub fn block_device(name: &str, device: &str) -> Self {
        Self::new(name, Kind::BlockDevice(device.to_owned()))
    }

    /// The claim as its owner writes it, where that says something.
    pub(crate) fn claim(&self, namespace: &str) -> Option<Value> {
        let mode = match self.kind {
            Kind::Disk(_) => "Filesystem",
            Kind::BlockDevice(_) => "Block",
            _ => return None,
        };
        Some(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": self.name, "namespace": namespace },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": mode,
                "resources": { "requests": { "storage": "64Mi" } },
            },
        }))
    }

    /// As an entry of `spec.volumes`.
    pub(crate) fn to_kubernetes(&self) -> Value {
        let source = match &self.kind {
            Kind::EmptyDir { memory_mib: None } => json!({ "emptyDir": {} }),
            Kind::EmptyDir { memory_mib: Some(mib) } => {
                json!({ "emptyDir": { "medium": "Memory", "sizeLimit": format!("{mib}Mi") } })
            }
            Kind::HugePages => json!({ "emptyDir": { "medium": "HugePages" } }),
            Kind::ConfigMap => json!({ "configMap": { "name": self.name } }),
            Kind::Secret => json!({ "secret": { "secretName": self.name } }),
            Kind::Token => json!({ "projected": { "sources": [
                { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
            ] } }),
            Kind::HostPath(path) => json!({ "hostPath": { "path": path } }),
            Kind::Disk(_) | Kind::BlockDevice(_) => {
                json!({ "persistentVolumeClaim": { "claimName": self.name } })
            }
        };
        let mut entry = source;
        entry["name"] = json!(self.name);
        entry
    }

    fn plugin(&self) -> &'static str {
        match self.kind {
            Kind::EmptyDir { .. } | Kind::HugePages => "empty-dir",
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
            Kind::Token => "projected",
            Kind::HostPath(_) => "host-path",
            Kind::Disk(_) | Kind::BlockDevice(_) => "csi",
        }
    }

    /// Where the kubelet keeps it, inside.
    fn directory(&self, uid: &str) -> String {
        match &self.kind {
            Kind::HostPath(path) => path.clone(),
            Kind::Disk(_) => {
                let volume = "pvc-0a1b2c3d-0000-4000-8000-000000000000";
                format!("{PODS}/{uid}/volumes/kubernetes.io~csi/{volume}-{}/mount", self.name)
            }
            _ => format!("{PODS}/{uid}/volumes/kubernetes.io~{}/{}", self.plugin(), self.name),
        }
    }

    /// Makes it on the node, unless another container had it made.
    fn make(&self, world: &World, uid: &str) -> anyhow::Result<String> {
        let directory = self.directory(uid);
        let path = world.path(&directory);
        if path.exists() {
            return Ok(directory);
        }
        fs::create_dir_all(&path)?;
        match &self.kind {
            Kind::EmptyDir { memory_mib: Some(mib) } => {
                let options = format!("size={mib}m,mode=0777");
                world.run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &directory])?;
            }
            Kind::HugePages => {
                world.run(&["mount", "-t", "hugetlbfs", "none", &directory])?;
            }
            Kind::EmptyDir { memory_mib: None } => {
                world.run(&["chmod", "0777", &directory])?;
            }
            Kind::Disk(device) => {
                // As `kata-runtime direct-volume add` leaves it.
                let name = URL_SAFE.encode(&directory);
                let place = world.path(&format!("{DIRECT_VOLUMES}/{name}"));
                fs::create_dir_all(&place)?;
                let info = json!({
                    "volume-type": "block", "device": device, "fstype": "ext4",
                    "metadata": {}, "options": [],
                });
                fs::write(place.join("mountInfo.json"), info.to_string())?;
            }
            Kind::ConfigMap
            | Kind::Secret
            | Kind::Token
            | Kind::HostPath(_)
            | Kind::BlockDevice(_) => {}
        }
        Ok(directory)
    }
}

/// A volume shown in a container.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) volume: Volume,
    pub(crate) target: String,
    pub(crate) part: Option<String>,
    pub(crate) read_only: bool,
}

impl Shown {
    /// As an entry of `volumeDevices`, and as the kubelet asks for it, if it is a device.
    pub(crate) fn device(&self) -> Option<(Value, cri::Device)> {
        let Kind::BlockDevice(host_path) = &self.volume.kind else { return None };
        let entry = json!({ "name": self.volume.name, "devicePath": self.target });
        let device = cri::Device {
            container_path: self.target.clone(),
            host_path: host_path.clone(),
            permissions: if self.read_only { "r" } else { "mrw" }.to_owned(),
        };
        Some((entry, device))
    }

    /// As an entry of `volumeMounts`.
    pub(crate) fn to_kubernetes(&self) -> Value {
        let mut entry = json!({ "name": self.volume.name, "mountPath": self.target });
        if let Some(part) = &self.part {
            entry["subPath"] = json!(part);
        }
        if self.read_only {
            entry["readOnly"] = json!(true);
        }
        entry
    }

    /// As the kubelet prepares it; `number` is that of the mount in the container.
    pub(crate) fn prepare(
        &self,
        world: &World,
        uid: &str,
        container: &str,
        number: usize,
    ) -> anyhow::Result<cri::Mount> {
        let volume = self.volume.make(world, uid)?;
        let host_path = match &self.part {
            None => volume,
            Some(part) => {
                let from = format!("{volume}/{part}");
                let name = &self.volume.name;
                let to = format!("{PODS}/{uid}/volume-subpaths/{name}/{container}/{number}");
                // A part may be a file.
                let script = format!(
                    "test -e {from} || mkdir -p -m 0777 {from}; mkdir -p $(dirname {to}); \
                     if test -d {from}; then mkdir -p {to}; else touch {to}; fi; mount --bind {from} {to}"
                );
                world.run(&["sh", "-c", &script])?;
                to
            }
        };
        let kubelets = matches!(self.volume.kind, Kind::ConfigMap | Kind::Secret | Kind::Token);
        Ok(cri::Mount {
            container_path: self.target.clone(),
            host_path,
            readonly: self.read_only || kubelets,
            ..Default::default()
        })
    }
}

impl World {
    /// Gives a volume of a pod these files, all at once, as the kubelet does for a `ConfigMap`, a Secret or a
    /// token: at first, and when they have changed.
    pub fn exchange_files(
        &self,
        pod: &str,
        volume: &Volume,
        number: u32,
        files: FileTexts<'_>,
    ) -> anyhow::Result<()> {
        let root = self.path(&volume.directory(&format!("uid-{pod}")));
        fs::create_dir_all(&root)?;
        let new = format!("..2026_01_01_00_00_00.{number}");
        let old = fs::read_link(root.join("..data")).ok();
        for (name, text) in files {
            let path = root.join(&new).join(name);
            fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            fs::write(path, text)?;
        }
        symlink(&new, root.join("..data_tmp"))?;
        fs::rename(root.join("..data_tmp"), root.join("..data"))?;
        for (name, _) in files {
            let first = name.split('/').next().unwrap_or_default();
            if fs::symlink_metadata(root.join(first)).is_err() {
                symlink(Path::new("..data").join(first), root.join(first))?;
            }
        }
        for entry in fs::read_dir(&root)? {
            let path = entry?.path();
            if path.is_symlink() && fs::metadata(&path).is_err() {
                fs::remove_file(path)?;
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(root.join(old))?;
        }
        Ok(())
    }

    /// What the node has in a volume of a pod, as `find` lists it.
    pub fn in_volume(&self, pod: &str, volume: &Volume) -> anyhow::Result<String> {
        self.run(&["find", &volume.directory(&format!("uid-{pod}"))])
    }

    /// Unmounts what the kubelet had mounted for a pod's volumes.
    pub fn unmount_volumes(&self, pod: &str) -> anyhow::Result<()> {
        let script = format!(
            "grep -o ' {PODS}/uid-{pod}/[^ ]*' /proc/self/mountinfo | tac | xargs -r umount"
        );
        self.run(&["sh", "-c", &script]).map(drop)
    }
}
