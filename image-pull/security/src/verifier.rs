//! Signers of a requirement with their keys at hand, ready to judge signatures.

use crate::envelope::Envelope;
use crate::identity::Identity;
use crate::key::PublicKey;
use crate::miss::{Miss, Stage};
use crate::policy::{Material, Signer};
use crate::search::Found;
use crate::{Sources, Subject};

/// A [`Signer`], loaded.
#[derive(Debug)]
pub(crate) enum Verifier {
    Keys { keys: Vec<PublicKey> },
}

impl Verifier {
    /// Fetches what the policy only names.
    pub(crate) async fn load(signer: &Signer, sources: &dyn Sources) -> Result<Self, String> {
        match signer {
            Signer::Keys { keys, logs: _ } => {
                let mut loaded = Vec::new();
                for key in keys {
                    loaded.push(parsed(key, &key.fetch(sources).await?)?);
                }
                Ok(Self::Keys { keys: loaded })
            }
        }
    }

    /// Whether it can be met by signatures in the image's repository.
    pub(crate) fn is_attached(&self) -> bool {
        match self {
            Self::Keys { .. } => true,
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
            (Self::Keys { keys }, Found::Sigstore(envelope)) => {
                Some(by_keys(keys, envelope, subject, identity))
            }
            (Self::Keys { .. }, Found::Simple(_)) | (_, Found::Broken(_)) => None,
        }
    }

    /// Who is asked for.
    pub(crate) fn wanted(&self) -> String {
        match self {
            Self::Keys { keys } => match keys.as_slice() {
                [key] => key.to_string(),
                keys => format!("one of {} keys", keys.len()),
            },
        }
    }
}

fn parsed(material: &Material, bytes: &[u8]) -> Result<PublicKey, String> {
    PublicKey::from_file(bytes).map_err(|problem| format!("{material}: {problem}"))
}

fn by_keys(
    keys: &[PublicKey],
    envelope: &Envelope,
    subject: &Subject,
    identity: &Identity,
) -> Result<String, Miss> {
    let signer = keys.iter().find_map(|key| Some((key, envelope.verified_by(key)?)));
    let (key, authentic) =
        signer.ok_or_else(|| Miss::new(Stage::Signer, "made by somebody else"))?;
    authentic.check(subject, identity)?;
    Ok(format!("signed by {key}"))
}
