//! Keys of encrypted layers: from the key broker, before anything of the image is fetched.

use std::collections::HashMap;
use std::sync::Arc;

use nacre_image_encryption::{EncryptedLayer, EncryptionError, KeyRing, LayerCipher};
use nacre_trust::{Algorithm, Digest};
use zeroize::Zeroizing;

use crate::manifest::LayerBlob;
use crate::{PullError, Resources};

/// An encrypted layer together with a key that opens it.
pub(crate) struct Opened {
    digest: Digest,
    layer: EncryptedLayer,
    keys: KeyRing,
    /// Names blob and wrapped keys: who does not have the same of both has not been given this layer.
    pub(crate) seal: Digest,
}

impl Opened {
    /// Starts decrypting from the first byte.
    pub(crate) fn cipher(&self) -> Result<LayerCipher, PullError> {
        self.layer.unwrap(&self.keys).map_err(|error| refused(&self.digest, &error))
    }
}

/// For each layer that is encrypted, its key.
pub(crate) async fn open(
    layers: &[(LayerBlob, Digest)],
    resources: &dyn Resources,
    layer_keys: &[String],
) -> Result<Vec<Option<Arc<Opened>>>, PullError> {
    let mut broker = Broker { resources, answers: HashMap::new() };
    let mut opened: Vec<Option<Arc<Opened>>> = Vec::with_capacity(layers.len());
    for (at, (blob, _)) in layers.iter().enumerate() {
        let same = layers[..at].iter().position(|(other, _)| other == blob);
        opened.push(match (same, &blob.encryption) {
            (Some(same), _) => opened[same].clone(),
            (None, None) => None,
            (None, Some(_)) => Some(Arc::new(broker.open(blob, layer_keys).await?)),
        });
    }
    Ok(opened)
}

/// Asks for each resource once.
struct Broker<'a> {
    resources: &'a dyn Resources,
    answers: HashMap<String, Result<Zeroizing<Vec<u8>>, String>>,
}

impl Broker<'_> {
    async fn open(&mut self, blob: &LayerBlob, layer_keys: &[String]) -> Result<Opened, PullError> {
        let refused = |error: EncryptionError| refused(&blob.digest, &error);
        let annotations = blob.encryption.as_deref().ok_or(PullError::Abandoned)?;
        let layer = EncryptedLayer::parse(annotations).map_err(refused)?;
        let mut keys = KeyRing::new();
        // One recipient's key is enough: why another cannot be had is told only if none is.
        let mut problems = Vec::new();
        for uri in layer.key_ids() {
            match self.key(&uri).await {
                Ok(key) => note(&mut problems, &uri, keys.add_provider_key(&uri, &key)),
                Err(problem) => problems.push(problem),
            }
        }
        for uri in layer_keys.iter().filter(|_| layer.takes_private_keys()) {
            match self.key(uri).await {
                Ok(key) => note(&mut problems, uri, keys.add_private_key(&key)),
                Err(problem) => problems.push(problem),
            }
        }
        let mut seal = format!("{}\n", blob.digest);
        for (name, value) in annotations {
            seal.push_str(&format!("{name:?}={value:?}\n"));
        }
        let seal = Digest::of(Algorithm::Sha256, seal.as_bytes());
        let opened = Opened { digest: blob.digest, layer, keys, seal };
        match opened.cipher() {
            Ok(_) => Ok(opened),
            Err(PullError::Encrypted { digest, problem }) if !problems.is_empty() => {
                let problem = format!("{problem} ({})", problems.join("; "));
                Err(PullError::Encrypted { digest, problem })
            }
            Err(error) => Err(error),
        }
    }

    async fn key(&mut self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        if let Some(answer) = self.answers.get(uri) {
            return answer.clone();
        }
        let answer = self.resources.resource(uri).await;
        self.answers.insert(uri.to_owned(), answer.clone());
        answer
    }
}

fn note(problems: &mut Vec<String>, uri: &str, added: Result<(), EncryptionError>) {
    if let Err(error) = added {
        problems.push(format!("{uri}: {error}"));
    }
}

pub(crate) fn refused(digest: &Digest, error: &EncryptionError) -> PullError {
    PullError::Encrypted { digest: *digest, problem: error.to_string() }
}
