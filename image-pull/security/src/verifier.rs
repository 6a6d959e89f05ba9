//! Signers of a requirement with their keys at hand, ready to judge signatures.

use std::time::SystemTime;

use crate::certificate::{Authority, CODE_SIGNING, Certificate};
use crate::envelope::{ATOMIC_TYPE, Envelope, check_claims, simple_signing};
use crate::identity::Identity;
use crate::key::PublicKey;
use crate::miss::{Miss, Stage};
use crate::openpgp::{Keyring, SignedMessage, Unsigned};
use crate::policy::{Material, NamePattern, RootMaterial, Signer};
use crate::search::Found;
use crate::transparency::{Log, LoggedSigner, logged};
use crate::trust_root::TrustRoot;
use crate::{Sources, Subject, sct, timestamp};

/// A [`Signer`], loaded.
#[derive(Debug)]
pub(crate) enum Verifier<'a> {
    Keys { keys: Vec<PublicKey>, logs: Vec<Log> },
    Certified { root: TrustRoot, issuer: &'a str, name: &'a NamePattern },
    Gpg { keyring: Keyring, now: i64 },
}

impl<'a> Verifier<'a> {
    /// Fetches what the policy only names.
    pub(crate) async fn load(signer: &'a Signer, sources: &dyn Sources) -> Result<Self, String> {
        match signer {
            Signer::Keys { keys, logs } => Ok(Self::Keys {
                keys: load_keys(keys, sources).await?,
                logs: load_logs(logs, sources).await?,
            }),
            Signer::Certified { root, issuer, name } => {
                Ok(Self::Certified { root: load_root(root, sources).await?, issuer, name })
            }
            Signer::Gpg { keyrings } => {
                Ok(Self::Gpg { keyring: load_keyring(keyrings, sources).await?, now: now() })
            }
        }
    }

    /// Whether it can be met by signatures in the image's repository; else by a signature store.
    pub(crate) fn is_attached(&self) -> bool {
        match self {
            Self::Keys { .. } | Self::Certified { .. } => true,
            Self::Gpg { .. } => false,
        }
    }

    /// The judgement on one signature: who made it. `None`: it is of another kind altogether.
    pub(crate) fn judge(
        &self,
        found: &Found,
        subject: &Subject,
        identity: &Identity,
    ) -> Option<Result<String, Miss>> {
        match (self, found) {
            (Self::Keys { keys, logs }, Found::Sigstore(envelope)) => {
                Some(by_keys(keys, logs, envelope, subject, identity))
            }
            (Self::Certified { root, issuer, name }, Found::Sigstore(envelope)) => {
                let who = Who { issuer, name };
                Some(by_certificate(root, who, envelope, subject, identity))
            }
            (Self::Gpg { keyring, now }, Found::Simple(message)) => {
                Some(by_gpg(keyring, *now, message, subject, identity))
            }
            (Self::Keys { .. } | Self::Certified { .. }, Found::Simple(_))
            | (Self::Gpg { .. }, Found::Sigstore(_))
            | (_, Found::Broken(_)) => None,
        }
    }

    /// Who is asked for.
    pub(crate) fn wanted(&self) -> String {
        match self {
            Self::Keys { keys, .. } => match keys.as_slice() {
                [key] => key.to_string(),
                keys => format!("one of {} keys", keys.len()),
            },
            Self::Certified {
                name: NamePattern::Email(name) | NamePattern::Pattern(name), ..
            } => name.clone(),
            Self::Gpg { keyring, .. } => keyring.describe(),
        }
    }
}

/// The guest's clock, which the host can set: see [`crate::openpgp`].
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn load_keyring(files: &[Material], sources: &dyn Sources) -> Result<Keyring, String> {
    let mut all: Option<Keyring> = None;
    for file in files {
        let bytes = file.fetch(sources).await?;
        let one = Keyring::parse(&bytes).map_err(|problem| format!("{file}: {problem}"))?;
        all = Some(match all {
            Some(all) => all.join(one),
            None => one,
        });
    }
    all.ok_or_else(|| "no keyring is named".to_owned())
}

async fn load_keys(keys: &[Material], sources: &dyn Sources) -> Result<Vec<PublicKey>, String> {
    let mut loaded = Vec::new();
    for key in keys {
        let bytes = key.fetch(sources).await?;
        loaded.push(PublicKey::from_file(&bytes).map_err(|problem| format!("{key}: {problem}"))?);
    }
    Ok(loaded)
}

async fn load_logs(logs: &[Material], sources: &dyn Sources) -> Result<Vec<Log>, String> {
    Ok(load_keys(logs, sources).await?.into_iter().map(Log::of_key).collect())
}

async fn load_root(root: &RootMaterial, sources: &dyn Sources) -> Result<TrustRoot, String> {
    match root {
        RootMaterial::Document(document) => {
            let text = document.fetch(sources).await?;
            TrustRoot::parse(&text).map_err(|problem| format!("{document}: {problem}"))
        }
        RootMaterial::Authority { certificates, logs } => {
            let pem = certificates.fetch(sources).await?;
            TrustRoot::of_authority(&pem, load_logs(logs, sources).await?)
                .map_err(|problem| format!("{certificates}: {problem}"))
        }
    }
}

fn by_keys(
    keys: &[PublicKey],
    logs: &[Log],
    envelope: &Envelope,
    subject: &Subject,
    identity: &Identity,
) -> Result<String, Miss> {
    let signer = keys.iter().find_map(|key| Some((key, envelope.verified_by(key)?)));
    let (key, authentic) =
        signer.ok_or_else(|| Miss::new(Stage::Signer, "made by somebody else"))?;
    if !logs.is_empty() {
        let signer = LoggedSigner::Key(key);
        logged(envelope, signer, logs).map_err(|why| Miss::new(Stage::Proof, &why))?;
    }
    authentic.check(subject, identity)?;
    Ok(format!("signed by {key}"))
}

fn by_gpg(
    keyring: &Keyring,
    now: i64,
    message: &[u8],
    subject: &Subject,
    identity: &Identity,
) -> Result<String, Miss> {
    let message = SignedMessage::parse(message).map_err(|why| Miss::new(Stage::Form, &why))?;
    let signer = keyring.verify(&message, now).map_err(|unsigned| match unsigned {
        Unsigned::Stranger(key) => Miss::new(Stage::Signer, &format!("made by GPG key {key}")),
        Unsigned::Invalid(why) => Miss::new(Stage::Proof, &why),
    })?;
    let claim = simple_signing(message.content(), &[ATOMIC_TYPE])?;
    check_claims(&[claim], subject, identity)?;
    Ok(format!("signed by GPG key {signer}"))
}

/// Who has to be in the certificate.
#[derive(Clone, Copy)]
struct Who<'a> {
    issuer: &'a str,
    name: &'a NamePattern,
}

fn by_certificate(
    root: &TrustRoot,
    who: Who<'_>,
    envelope: &Envelope,
    subject: &Subject,
    identity: &Identity,
) -> Result<String, Miss> {
    let form = |why: String| Miss::new(Stage::Form, &why);
    let proof = |why: String| Miss::new(Stage::Proof, &why);
    let Some((leaf, chain)) = envelope.certificates.split_first() else {
        return Err(Miss::new(Stage::Signer, "made with a key, not with a certificate"));
    };
    let certificate = Certificate::parse(leaf).map_err(form)?;
    let chain: Vec<Certificate> =
        chain.iter().map(|der| Certificate::parse(der)).collect::<Result<_, _>>().map_err(form)?;
    // Before the certificate is verified this only spares work, and gives the better message.
    let name = named(&certificate, who)?;
    let authentic = envelope
        .verified_by(&certificate.key)
        .ok_or_else(|| proof("the signature is not its certificate's".into()))?;
    for time in times(root, envelope, &certificate).map_err(proof)? {
        issued(root, &certificate, &chain, time).map_err(proof)?;
    }
    if !root.certificate_logs.is_empty() {
        let issuers = root.authorities.iter().flat_map(Authority::issuers);
        sct::check(&certificate, issuers.chain(&chain), &root.certificate_logs).map_err(proof)?;
    }
    authentic.check(subject, identity)?;
    Ok(format!("signed by {name}"))
}

fn named(certificate: &Certificate, who: Who<'_>) -> Result<String, Miss> {
    let stranger = |why: String| Miss::new(Stage::Signer, &why);
    let issuer = certificate.issuer().map_err(stranger)?;
    let names = certificate.names().map_err(stranger)?;
    let accepted = names.iter().find(|name| who.name.accepts(name));
    match accepted {
        Some(name) if issuer == who.issuer => Ok(name.text().to_owned()),
        Some(_) => Err(stranger(format!("made by an identity of {issuer}"))),
        None => {
            let name = names.first().map_or("nobody", |name| name.text());
            Err(stranger(format!("made by {name}")))
        }
    }
}

/// When the signature was seen, by everybody who is trusted to tell; at least one.
fn times(
    root: &TrustRoot,
    envelope: &Envelope,
    certificate: &Certificate,
) -> Result<Vec<i64>, String> {
    let mut times = Vec::new();
    if !root.logs.is_empty() {
        let signer = LoggedSigner::Certificate(certificate.der());
        let entries = logged(envelope, signer, &root.logs)?;
        times.extend(entries.iter().filter_map(|entry| entry.time));
    }
    let mut problem = None;
    for token in &envelope.timestamps {
        match timestamp::verified(token, &envelope.signature, &root.timestamp_authorities) {
            Ok(time) => times.push(time),
            Err(why) => problem = Some(why),
        }
    }
    if times.is_empty() {
        return Err(
            problem.unwrap_or_else(|| "nobody who is trusted tells when it was made".into())
        );
    }
    Ok(times)
}

fn issued(
    root: &TrustRoot,
    certificate: &Certificate,
    chain: &[Certificate],
    time: i64,
) -> Result<(), String> {
    let mut problem = String::new();
    for authority in &root.authorities {
        match authority.check(certificate, chain, CODE_SIGNING, time) {
            Ok(()) => return Ok(()),
            Err(why) => problem = why,
        }
    }
    Err(problem)
}
