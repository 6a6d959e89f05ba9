//! Against the original: skopeo signs and this crate verifies, and the other way round, in a real
//! registry.

#![allow(clippy::unwrap_used)]

#[path = "support/registry.rs"]
mod registry;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use nacre_image_security::ImagePolicy;
use nacre_image_security::sign::{self, SigningKey, Target};
use nacre_trust::{Algorithm, Digest};
use registry::{Registry, Repository};

const KEY: &str = "kbs:///default/keys/team";

fn vectors(name: &str) -> String {
    format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// An image in skopeo's `dir:` form; `word` makes it another one.
fn image(directory: &Path, word: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let layer = vec![0; 1024];
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Labels":{{"word":"{word}"}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(Algorithm::Sha256, &layer)
    );
    let blob = |kind: &str, content: &[u8]| {
        let digest = Digest::of(Algorithm::Sha256, content);
        std::fs::write(directory.join(digest.hex()), content).unwrap();
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#, content.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        blob("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        blob("application/vnd.oci.image.layer.v1.tar", &layer)
    );
    std::fs::write(directory.join("manifest.json"), manifest).unwrap();
    std::fs::write(directory.join("version"), "Directory Transport Version: 1.1\n").unwrap();
}

/// skopeo with a home and a registries.d of its own.
struct Skopeo<'a> {
    home: &'a Path,
}

impl<'a> Skopeo<'a> {
    fn new(home: &'a Path, registry: &Registry) -> Self {
        let registries = home.join("registries.d");
        std::fs::create_dir_all(&registries).unwrap();
        let store = home.join("store");
        std::fs::create_dir_all(&store).unwrap();
        let text = format!(
            "docker:\n  {}:\n    use-sigstore-attachments: true\n    sigstore: file://{store}\n    \
             sigstore-staging: file://{store}\n",
            registry.host,
            store = store.display()
        );
        std::fs::write(registries.join("test.yaml"), text).unwrap();
        Self { home }
    }

    fn run(&self, options: &[&str], arguments: &[&str]) -> Output {
        Command::new("skopeo")
            .arg("--registries.d")
            .arg(self.home.join("registries.d"))
            .args(options)
            .arg("copy")
            .args(arguments)
            .env("HOME", self.home)
            .env("XDG_RUNTIME_DIR", self.home)
            .env("GNUPGHOME", self.home.join("gnupg"))
            .output()
            .unwrap()
    }

    /// To sign with the key of the vectors.
    fn sigstore_options(&self) -> [String; 4] {
        let password = self.home.join("password");
        std::fs::write(&password, "test").unwrap();
        [
            "--sign-by-sigstore-private-key".into(),
            vectors("cosign.key"),
            "--sign-passphrase-file".into(),
            password.display().to_string(),
        ]
    }

    /// Whether it knows sigstore; says so if not. Debian's builds have left it out.
    fn knows_sigstore(&self, image: &Path) -> bool {
        let (from, to) = (format!("dir:{}", image.display()), self.home.join("probe"));
        let to = format!("dir:{}", to.display());
        let sign = self.sigstore_options();
        let options = [&sign[..], &["--sign-identity".into(), "r.example/a:v1".into()]].concat();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let output = self.run(&["--insecure-policy"], &[&options[..], &[&from, &to]].concat());
        let left_out = String::from_utf8_lossy(&output.stderr).contains("sigstore disabled");
        if left_out {
            println!("SKIPPED: this skopeo was built without sigstore");
        }
        !left_out
    }

    /// Pushes an image, signing it as `options` say.
    fn push(&self, from: &Path, to: &str, options: &[&str]) {
        let from = format!("dir:{}", from.display());
        let to = format!("docker://{to}");
        let arguments = [&["--dest-tls-verify=false"], options, &[&from, &to]].concat();
        let output = self.run(&["--insecure-policy"], &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether skopeo admits an image by a `policy.json`.
    fn admits(&self, policy: &str, image: &str) -> bool {
        let file = self.home.join("policy.json");
        std::fs::write(&file, policy).unwrap();
        let file = file.display().to_string();
        let from = format!("docker://{image}");
        let to = format!("dir:{}", self.home.join("pulled").display());
        let arguments = ["--src-tls-verify=false", &from, &to];
        self.run(&["--policy", &file], &arguments).status.success()
    }
}

fn policy_json(host: &str, requirement: &str) -> String {
    format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{host}/team":[{requirement}]}}}},"lookaside":{{"{host}":"https://store.example"}}}}"#
    )
}

async fn decide(policy: &str, repository: &Repository<'_>, tag: &str) -> Result<String, String> {
    let policy = ImagePolicy::parse(policy.as_bytes()).unwrap();
    let (subject, _) = repository.registry.subject(&repository.path, tag);
    match policy.admit(&subject, repository).await {
        Ok(admitted) => Ok(admitted.reason().to_owned()),
        Err(refused) => Err(refused.to_string()),
    }
}

#[tokio::test]
async fn what_skopeo_signs_with_a_sigstore_key_is_verified() {
    let Some(registry) = Registry::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let skopeo = Skopeo::new(home.path(), &registry);
    let sign = skopeo.sigstore_options();
    let sign: Vec<&str> = sign.iter().map(String::as_str).collect();
    for word in ["one", "two"] {
        image(&home.path().join(word), word);
    }
    if !skopeo.knows_sigstore(&home.path().join("one")) {
        return;
    }
    let host = registry.host.clone();
    skopeo.push(&home.path().join("one"), &format!("{host}/team/app:v1"), &sign);
    skopeo.push(&home.path().join("two"), &format!("{host}/team/app:unsigned"), &[]);
    let mut repository = Repository {
        registry: &registry,
        path: "team/app".into(),
        store: home.path().join("store"),
        resources: [(KEY.to_owned(), std::fs::read(vectors("cosign.pub")).unwrap())].into(),
    };
    // skopeo signs the name with its tag, so the strict default is met.
    let signed = format!(r#"{{"type":"sigstoreSigned","keyPath":"{KEY}"}}"#);
    let policy = policy_json(&host, &signed);
    let reason = decide(&policy, &repository, "v1").await.unwrap();
    assert!(reason.contains("signed by key"), "{reason}");
    let refused = decide(&policy, &repository, "unsigned").await.unwrap_err();
    assert!(refused.contains("0 signatures"), "{refused}");
    // The signed image under another tag: the same digest, another name.
    skopeo.push(&home.path().join("one"), &format!("{host}/team/app:v2"), &[]);
    let refused = decide(&policy, &repository, "v2").await.unwrap_err();
    assert!(refused.contains(&format!("the signature is for {host}/team/app:v1")), "{refused}");
    let stranger = rcgen::KeyPair::generate().unwrap().public_key_pem();
    repository.resources.insert(KEY.into(), stranger.into_bytes());
    let refused = decide(&policy, &repository, "v1").await.unwrap_err();
    assert!(refused.contains("1 signature, none by key"), "{refused}");
}

#[tokio::test]
async fn what_is_signed_here_skopeo_verifies() {
    let Some(registry) = Registry::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let skopeo = Skopeo::new(home.path(), &registry);
    image(&home.path().join("one"), "one");
    let host = registry.host.clone();
    let name = format!("{host}/team/app:v1");
    skopeo.push(&home.path().join("one"), &name, &[]);
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let key = SigningKey::from_pkcs8_pem(key.as_bytes()).unwrap();
    let public = home.path().join("key.pub");
    std::fs::write(&public, key.public_key_pem()).unwrap();
    let policy = |key: &str| {
        let requirement = format!(r#"{{"type":"sigstoreSigned","keyPath":"{key}"}}"#);
        // Without our addition, which skopeo does not know.
        let policy = policy_json(&host, &requirement);
        policy[..policy.find(r#","lookaside""#).unwrap()].to_owned() + "}"
    };
    let theirs = policy(&public.display().to_string());
    let both = skopeo.knows_sigstore(&home.path().join("one"));
    assert!(!skopeo.admits(&theirs, &name));
    let (subject, manifest) = registry.subject("team/app", "v1");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let size = manifest.len() as u64;
    let target = Target { name: &name, media_type, digest: subject.manifests[0], size };
    registry.push("team/app", &sign::cosign(&key, &target, None).unwrap());
    assert!(!both || skopeo.admits(&theirs, &name));
    let resources = [(KEY.to_owned(), key.public_key_pem().into_bytes())].into();
    let store = home.path().join("store");
    let repository = Repository { registry: &registry, path: "team/app".into(), store, resources };
    decide(&policy(KEY), &repository, "v1").await.unwrap();
    // The bundle, too: this registry has no referrers API, so the tag leads to it.
    skopeo.push(&home.path().join("one"), &format!("{host}/team/bundled:v1"), &[]);
    let name = format!("{host}/team/bundled:v1");
    let target = Target { name: &name, ..target };
    let bundle = sign::bundle(&key, &target).unwrap();
    registry.push("team/bundled", &bundle);
    let bundled = Repository { path: "team/bundled".into(), ..repository };
    let refused = decide(&policy(KEY), &bundled, "v1").await.unwrap_err();
    assert!(refused.contains("0 signatures"), "{refused}");
    registry.push("team/bundled", &sign::referrers_index(&target, &bundle, None).unwrap());
    decide(&policy(KEY), &bundled, "v1").await.unwrap();
}

#[tokio::test]
async fn what_skopeo_signs_with_gpg_is_verified() {
    let Some(registry) = Registry::start() else { return };
    let home = tempfile::Builder::new().prefix("sk").tempdir_in("/tmp").unwrap();
    let gnupg = home.path().join("gnupg");
    let gpg = |arguments: &[&str]| {
        let output = Command::new("gpg")
            .arg("--homedir")
            .arg(&gnupg)
            .args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(arguments)
            .output();
        output.ok().filter(|output| output.status.success()).map(|output| output.stdout)
    };
    std::fs::create_dir(&gnupg).unwrap();
    std::fs::set_permissions(&gnupg, std::fs::Permissions::from_mode(0o700)).unwrap();
    if gpg(&["--quick-generate-key", "vendor", "rsa2048", "sign", "never"]).is_none() {
        println!("SKIPPED: gpg is not installed, or makes no keys");
        return;
    }
    let skopeo = Skopeo::new(home.path(), &registry);
    image(&home.path().join("one"), "one");
    let host = registry.host.clone();
    let listing = String::from_utf8(gpg(&["--with-colons", "--list-keys"]).unwrap()).unwrap();
    let fingerprint = listing.lines().find(|line| line.starts_with("fpr:")).unwrap();
    let fingerprint = fingerprint.split(':').nth(9).unwrap();
    let name = format!("{host}/team/app:v1");
    skopeo.push(&home.path().join("one"), &name, &["--sign-by", fingerprint]);
    let repository = Repository {
        registry: &registry,
        path: "team/app".into(),
        store: home.path().join("store"),
        resources: [(KEY.to_owned(), gpg(&["--export", "vendor"]).unwrap())].into(),
    };
    let signed = format!(r#"{{"type":"signedBy","keyType":"GPGKeys","keyPath":"{KEY}"}}"#);
    let reason = decide(&policy_json(&host, &signed), &repository, "v1").await.unwrap();
    assert!(reason.contains("signed by GPG key"), "{reason}");
    let remapped = format!(
        r#"{{"type":"signedBy","keyType":"GPGKeys","keyPath":"{KEY}","signedIdentity":{{"type":"exactRepository","dockerRepository":"vendor.example/app"}}}}"#
    );
    let refused = decide(&policy_json(&host, &remapped), &repository, "v1").await.unwrap_err();
    assert!(refused.contains(&format!("the signature is for {host}/team/app:v1")), "{refused}");
    let _ = Command::new("gpgconf").arg("--homedir").arg(&gnupg).args(["--kill", "all"]).output();
}
