//! Simple signing with GnuPG's own keys and messages.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nacre_image_security::{ImagePolicy, Subject};
use support::Fake;

const IMAGE: &str = "r.example/team/app:v1";
const KEY: &str = "kbs:///default/keys/vendor";

/// A home directory of GnuPG, with its agent.
struct Gpg(tempfile::TempDir);

impl Gpg {
    /// `None`, and says so, where there is no gpg.
    fn new() -> Option<Self> {
        if Command::new("gpg").arg("--version").output().is_err() {
            println!("SKIPPED: gpg is not installed");
            return None;
        }
        let owner_only = std::fs::Permissions::from_mode(0o700);
        let mut home = tempfile::Builder::new();
        // The agent's socket lies in it, whose path may not be long.
        Some(Self(home.prefix("gpg").permissions(owner_only).tempdir_in("/tmp").unwrap()))
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let file = self.0.path().join("input");
        std::fs::write(&file, input).unwrap();
        let output = Command::new("gpg")
            .arg("--homedir")
            .arg(self.0.path())
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"])
            .args(["--passphrase", ""])
            .args(arguments)
            .stdin(std::fs::File::open(&file).unwrap())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "gpg {arguments:?}");
        output.stdout
    }

    fn key(&self, name: &str, algorithm: &str, expires: &str) {
        self.run(&["--quick-generate-key", name, algorithm, "sign", expires], b"");
    }

    fn export(&self, name: &str) -> Vec<u8> {
        self.run(&["--export", name], b"")
    }

    fn fingerprints(&self, name: &str) -> Vec<String> {
        let listing = self.run(&["--with-colons", "--list-keys", name], b"");
        let listing = String::from_utf8(listing).unwrap();
        let lines = listing.lines().filter(|line| line.starts_with("fpr:"));
        lines.map(|line| line.split(':').nth(9).unwrap().to_owned()).collect()
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let home: &Path = self.0.path();
        let _ = Command::new("gpgconf").arg("--homedir").arg(home).args(["--kill", "all"]).output();
    }
}

fn policy() -> ImagePolicy {
    let text = format!(
        "[[image]]\nmatch = \"r.example/**\"\nidentity = \"exact\"\n\
         lookaside = \"https://vendor.example/sigs/\"\nrequire = [{{ gpg-key = \"{KEY}\" }}]"
    );
    ImagePolicy::parse(text.as_bytes()).unwrap()
}

fn payload(subject: &Subject, name: &str) -> Vec<u8> {
    let digest = subject.manifests[0];
    format!(
        r#"{{"critical":{{"type":"atomic container signature","image":{{"docker-manifest-digest":"{digest}"}},"identity":{{"docker-reference":"{name}"}}}},"optional":{{"creator":"test","timestamp":1}}}}"#
    )
    .into_bytes()
}

fn stored_at(subject: &Subject, number: usize) -> String {
    let hex = subject.manifests[0].hex();
    format!("https://vendor.example/sigs/team/app@sha256={hex}/signature-{number}")
}

/// The decision on an image whose store holds these messages.
async fn decide(keyring: Vec<u8>, messages: Vec<Vec<u8>>) -> Result<String, String> {
    let mut fake = Fake::default();
    let subject = fake.image(IMAGE, b"manifest");
    fake.resources.insert(KEY.into(), keyring);
    for (at, message) in messages.into_iter().enumerate() {
        fake.lookaside.insert(stored_at(&subject, at + 1), message);
    }
    match policy().admit(&subject, &fake).await {
        Ok(admitted) => Ok(admitted.reason().to_owned()),
        Err(refused) => Err(refused.to_string()),
    }
}

fn subject() -> Subject {
    Fake::default().image(IMAGE, b"manifest")
}

#[tokio::test]
async fn messages_of_every_kind_of_key_are_verified() {
    let Some(gpg) = Gpg::new() else { return };
    let good = payload(&subject(), IMAGE);
    for algorithm in ["rsa2048", "rsa3072", "ed25519", "nistp256", "nistp384"] {
        gpg.key(algorithm, algorithm, "never");
        let sign = |more: &[&str]| {
            gpg.run(&[&["--local-user", algorithm], more, &["--sign"]].concat(), &good)
        };
        let plain = ["--compress-algo", "none"];
        let zlib = ["--compress-algo", "zlib"];
        for (message, how) in [(sign(&[]), "zip"), (sign(&plain), "none"), (sign(&zlib), "zlib")] {
            let decided = decide(gpg.export(algorithm), vec![message]).await;
            let reason = decided.unwrap_or_else(|refused| panic!("{algorithm} {how}: {refused}"));
            assert!(reason.contains(&gpg.fingerprints(algorithm)[0]), "{reason}");
        }
        let armored = gpg.run(&["--armor", "--export", algorithm], b"");
        decide(armored, vec![sign(&[])]).await.unwrap();
    }
    // A stranger's signature first, then one of the right key.
    let stranger = gpg.run(&["--local-user", "ed25519", "--sign"], &good);
    let right = gpg.run(&["--local-user", "rsa2048", "--sign"], &good);
    decide(gpg.export("rsa2048"), vec![stranger.clone(), right]).await.unwrap();
    let refused = decide(gpg.export("rsa2048"), vec![stranger]).await.unwrap_err();
    let fingerprint = &gpg.fingerprints("ed25519")[0];
    assert!(refused.contains(&format!("made by GPG key {fingerprint}")), "{refused}");
    assert!(refused.contains("1 signature, none by GPG key"), "{refused}");
}

/// What stands before the first subkey of a keyring, whose packets have the old format, as gpg writes them
/// (RFC 4880, sections 4.2.1 and 4.3).
fn before_subkeys(keyring: &[u8]) -> &[u8] {
    const SUBKEY: u8 = 14;
    let mut at = 0;
    while (keyring[at] >> 2) & 0xf != SUBKEY {
        assert_eq!(keyring[at] & 0xc0, 0x80, "the old format");
        let size = 1 << (keyring[at] & 3);
        let length = &keyring[at + 1..=at + size];
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        at += 1 + size + length;
    }
    &keyring[..at]
}

#[tokio::test]
async fn subkeys_sign_for_their_primary_key() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.run(&["--quick-generate-key", "owner", "rsa2048", "cert", "never"], b"");
    let primary = gpg.fingerprints("owner")[0].clone();
    gpg.run(&["--quick-add-key", &primary, "ed25519", "sign", "never"], b"");
    gpg.run(&["--quick-add-key", &primary, "rsa2048", "encrypt", "never"], b"");
    let good = payload(&subject(), IMAGE);
    let message = gpg.run(&["--local-user", "owner", "--sign"], &good);
    let reason = decide(gpg.export("owner"), vec![message.clone()]).await.unwrap();
    assert!(reason.contains(&primary), "{reason}");
    // The primary key alone, which may only certify.
    let keyring = gpg.export("owner");
    let alone = before_subkeys(&keyring).to_vec();
    let refused = decide(alone, vec![message]).await.unwrap_err();
    assert!(refused.contains("no key of the keyring may sign"), "{refused}");
}

#[tokio::test]
async fn another_content_name_or_form_is_refused() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("vendor", "ed25519", "never");
    let keyring = gpg.export("vendor");
    let subject = subject();
    let other = Fake::default().image(IMAGE, b"another manifest");
    let good = payload(&subject, IMAGE);
    let sign = |content: &[u8]| gpg.run(&["--sign"], content);
    let mut tampered = gpg.run(&["--compress-algo", "none", "--sign"], &good);
    let at = tampered.windows(6).position(|six| six == b"atomic").unwrap();
    tampered[at] ^= 1;
    let twice = String::from_utf8(good.clone()).unwrap();
    let twice = twice.replacen("\"critical\":", "\"critical\":{},\"critical\":", 1);
    let cosign = String::from_utf8(good.clone()).unwrap();
    let cosign = cosign.replace("atomic container", "cosign container image");
    for (message, problem) in [
        (sign(&payload(&other, IMAGE)), "the signature is for another image"),
        (sign(&payload(&subject, "r.example/team/app:v2")), "is for r.example/team/app:v2"),
        (sign(twice.as_bytes()), "occurs twice"),
        (sign(cosign.as_bytes()), "its payload is a"),
        (tampered, "made by GPG key"),
        (gpg.run(&["--store"], &good), "not an OpenPGP message with one signature"),
        (gpg.run(&["--detach-sign"], &good), "not an OpenPGP message with one signature"),
        (gpg.run(&["--clear-sign"], &good), "malformed"),
        (gpg.run(&["--digest-algo", "SHA1", "--sign"], &good), "a hash function that is broken"),
        (b"no message".to_vec(), "malformed"),
        (Vec::new(), "not an OpenPGP message"),
        (vec![b'x'; 600 * 1024], "at most"),
        (sign(&vec![b' '; 4 * 1024 * 1024]), "at most"),
    ] {
        let refused = decide(keyring.clone(), vec![message]).await.unwrap_err();
        assert!(refused.contains(problem), "{problem}: {refused}");
        assert!(refused.len() <= 600, "{refused}");
    }
    let refused = decide(keyring, vec![]).await.unwrap_err();
    assert!(refused.contains("0 signatures, none by GPG key"), "{refused}");
    let refused = decide(b"no keyring".to_vec(), vec![]).await.unwrap_err();
    assert!(refused.contains(&format!("{KEY}: ")), "{refused}");
}

#[tokio::test]
async fn damaged_messages_and_keyrings_are_no_trouble() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("vendor", "ed25519", "never");
    let keyring = gpg.export("vendor");
    let message = gpg.run(&["--sign"], &payload(&subject(), IMAGE));
    let plain = gpg.run(&["--compress-algo", "none", "--sign"], &payload(&subject(), IMAGE));
    for at in 0..plain.len() {
        let mut damaged = plain.clone();
        damaged[at] ^= 0x11;
        let _ = decide(keyring.clone(), vec![damaged]).await;
        decide(keyring.clone(), vec![plain[..at].to_vec()]).await.unwrap_err();
    }
    for at in 0..message.len() {
        decide(keyring.clone(), vec![message[..at].to_vec()]).await.unwrap_err();
    }
    for at in 0..keyring.len() {
        let mut damaged = keyring.clone();
        damaged[at] ^= 0x11;
        let _ = decide(damaged, vec![message.clone()]).await;
        let _ = decide(keyring[..at].to_vec(), vec![message.clone()]).await;
    }
}

#[tokio::test]
async fn expired_and_revoked_keys_and_signatures_are_refused() {
    let Some(gpg) = Gpg::new() else { return };
    let good = payload(&subject(), IMAGE);
    let then = ["--faked-system-time", "20240101T000000!"];
    let in_the_past = |more: &[&str]| gpg.run(&[&then, more].concat(), &good);
    in_the_past(&["--quick-generate-key", "shortlived", "ed25519", "sign", "1d"]);
    in_the_past(&["--quick-generate-key", "lasting", "ed25519", "sign", "never"]);
    let by_expired = in_the_past(&["--local-user", "shortlived", "--sign"]);
    let refused = decide(gpg.export("shortlived"), vec![by_expired]).await.unwrap_err();
    assert!(refused.contains("is expired"), "{refused}");
    let expired = in_the_past(&["--default-sig-expire", "1d", "--local-user", "lasting", "--sign"]);
    let refused = decide(gpg.export("lasting"), vec![expired]).await.unwrap_err();
    assert!(refused.contains("the signature is expired"), "{refused}");
    let message = gpg.run(&["--local-user", "lasting", "--sign"], &good);
    decide(gpg.export("lasting"), vec![message.clone()]).await.unwrap();
    let fingerprint = gpg.fingerprints("lasting")[0].clone();
    let revocation = gpg.0.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let revocation = std::fs::read_to_string(revocation).unwrap().replace(":-----", "-----");
    gpg.run(&["--import"], revocation.as_bytes());
    let refused = decide(gpg.export("lasting"), vec![message]).await.unwrap_err();
    assert!(refused.contains("no key of the keyring may sign"), "{refused}");
}

#[tokio::test]
async fn policy_json_names_the_store_beside_the_transports() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("vendor", "ed25519", "never");
    let mut fake = Fake::default();
    let subject = fake.image(IMAGE, b"manifest");
    fake.resources.insert(KEY.into(), gpg.export("vendor"));
    let message = gpg.run(&["--sign"], &payload(&subject, IMAGE));
    fake.lookaside.insert(stored_at(&subject, 1), message);
    let policy = |lookaside: &str| {
        let text = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"r.example/team":[
               {{"type":"signedBy","keyType":"GPGKeys","keyPath":"{KEY}"}}]}}}}{lookaside}}}"#
        );
        ImagePolicy::parse(text.as_bytes()).unwrap()
    };
    let with = policy(r#","lookaside":{"r.example":"https://vendor.example/sigs"}"#);
    with.admit(&subject, &fake).await.unwrap();
    let refused = policy("").admit(&subject, &fake).await.unwrap_err().to_string();
    assert!(refused.contains("the policy has no lookaside"), "{refused}");
}
