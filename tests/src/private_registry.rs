//! A second registry of a world: over https, with a certificate of its own, for those who have a
//! password. The guest has one, the node has another: what the one knows must never be found with the other.

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_cri::v1 as cri;

use crate::world::World;

/// Its name, for the host and for guests alike.
pub(crate) const ADDRESS: &str = "10.88.0.1:5443";
const DIRECTORY: &str = "/run/world/private";
/// Certificate, inside.
const CERTIFICATE: &str = "/run/world/private/tls.crt";
/// The owner's `config.json` for it, inside.
const OWNERS_FILE: &str = "/run/world/private/config.json";

/// What guests log in with; the host must not know it.
pub const GUESTS_PASSWORD: &str = "only the guest knows";
/// The same with the guest's name, as it stands in a `config.json`: base64 of `guest:PASSWORD`.
pub const GUESTS_LOGIN: &str = "Z3Vlc3Q6b25seSB0aGUgZ3Vlc3Qga25vd3M=";
/// What the node logs in with, for manifests and configurations.
const NODES_PASSWORD: &str = "metadata only";
/// Both, hashed by bcrypt.
const HTPASSWD: &str = "guest:$2b$04$LfXYViKOwL8CFY/HSZAqlOXIO31CfmSRGWVWRrrePoIqRlQZnrO6u\n\
                        node:$2b$04$UGxknovz.WIWg4Hv8AGOReZbvxT4uTAQ52C/UIP8cyUlmYdyDN5t2\n";

/// A private registry that runs in a world.
#[derive(Debug)]
pub struct PrivateRegistry<'w> {
    world: &'w World,
}

impl World {
    /// Starts it, and lets containerd trust its certificate.
    pub fn start_private_registry(&self) -> anyhow::Result<PrivateRegistry<'_>> {
        let key = rcgen::KeyPair::generate()?;
        let host = ADDRESS.split(':').next().unwrap_or_default();
        let certificate = rcgen::CertificateParams::new([host.to_owned()])?.self_signed(&key)?;
        let configuration = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: \
             {DIRECTORY}/storage\nhttp:\n  addr: :5443\n  tls:\n    certificate: {CERTIFICATE}\n    \
             key: {DIRECTORY}/tls.key\nauth:\n  htpasswd:\n    realm: private\n    path: \
             {DIRECTORY}/htpasswd\n"
        );
        let hosts = format!(
            "server = \"https://{ADDRESS}\"\n[host.\"https://{ADDRESS}\"]\ncapabilities = \
             [\"pull\", \"resolve\"]\nca = {CERTIFICATE:?}\n"
        );
        let login = serde_json::json!({ "auths": { ADDRESS: { "auth": GUESTS_LOGIN } } });
        for (path, text) in [
            (CERTIFICATE, certificate.pem()),
            (&format!("{DIRECTORY}/tls.key"), key.serialize_pem()),
            (&format!("{DIRECTORY}/htpasswd"), HTPASSWD.to_owned()),
            (&format!("{DIRECTORY}/registry.yml"), configuration),
            (OWNERS_FILE, login.to_string()),
            (&format!("/run/world/certs.d/{ADDRESS}/hosts.toml"), hosts),
        ] {
            let path = self.path(path);
            fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
            fs::write(path, text)?;
        }
        let arguments = ["serve", &format!("{DIRECTORY}/registry.yml")];
        self.start_daemon("docker-registry".as_ref(), &arguments)?;
        let started = Instant::now();
        while self.namespaces.in_network(|| TcpStream::connect(ADDRESS)).is_err() {
            self.check_started("docker-registry", started)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(PrivateRegistry { world: self })
    }

    /// Credentials of the node, as the kubelet takes them from `imagePullSecrets`.
    pub(crate) fn nodes_login(reference: &str) -> Option<cri::AuthConfig> {
        reference.starts_with(ADDRESS).then(|| cri::AuthConfig {
            username: "node".to_owned(),
            password: NODES_PASSWORD.to_owned(),
            ..Default::default()
        })
    }
}

impl PrivateRegistry<'_> {
    /// `host:port`.
    pub fn address(&self) -> &'static str {
        ADDRESS
    }

    /// The certificate's file, inside.
    pub fn certificate(&self) -> &'static str {
        CERTIFICATE
    }

    /// The owner's credentials, a `config.json` inside.
    pub fn credentials(&self) -> &'static str {
        OWNERS_FILE
    }

    /// The reference, with its digest, that a tag of this registry stands for, asked by skopeo.
    pub fn pinned(&self, name: &str) -> anyhow::Result<String> {
        let image = format!("docker://{ADDRESS}/{name}:1");
        let words = ["skopeo", "inspect", "--tls-verify=false", "--authfile", OWNERS_FILE];
        let digest =
            self.world.run(&[&words[..], &["--format", "{{.Digest}}", &image]].concat())?;
        Ok(format!("{ADDRESS}/{name}@{}", digest.trim()))
    }
}
