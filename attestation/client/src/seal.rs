//! The cryptography of sealed secrets: sealing on the owner's machine, checking and opening in the guest.
//! Their form is [`nacre_protocol::sealed`].

use nacre_jose::{Es256Key, JoseError, Jwk, jws};
use nacre_protocol::kbs::ResourceUri;
use nacre_protocol::sealed::{
    self, Envelope, KEY_LENGTH, NONCE_LENGTH, PLAIN_LIMIT, SealedError, Secret, Signed,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Why a secret cannot be sealed or unsealed. Never with a part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It has not the form of a sealed secret.
    #[error(transparent)]
    Form(#[from] SealedError),
    /// What lies at the key broker is no public key for its signature.
    #[error(
        "what {0} holds is not the JSON web key (kty EC, crv P-256, x, y) that checks a sealed secret"
    )]
    VerificationKey(String),
    /// Somebody else made it, or changed it.
    #[error("the sealed secret was not signed by the key {0}, or it was changed afterwards")]
    Signature(String),
    /// What lies at the key broker is no key of an envelope.
    #[error("what {0} holds is not a key of {KEY_LENGTH} bytes, which opens an envelope")]
    WrappingKey(String),
    /// The envelope was sealed under another key.
    #[error("the sealed secret cannot be opened with the key {0}: it was sealed under another one")]
    Open(String),
    /// Too large to be sealed.
    #[error(
        "an envelope holds at most {PLAIN_LIMIT} bytes: give larger secrets to the key broker and seal their name (`nacre seal vault`)"
    )]
    TooLarge,
    /// The system gave no random bytes, or signing failed.
    #[error("the cryptographic library failed: {0}")]
    Library(JoseError),
}

/// Who signs: the owner's private key, and where guests find the public one.
pub struct Signer<'a> {
    /// The private key.
    pub key: &'a Es256Key,
    /// Resource of the key broker that holds `key.public()` as a JSON web key.
    pub public_key: &'a ResourceUri,
}

/// Seals the name of a secret that a key broker keeps.
///
/// # Errors
/// [`SealError::Library`].
pub fn seal_vault(name: &ResourceUri, signer: &Signer<'_>) -> Result<String, SealError> {
    sign(&Secret::Vault(name.clone()), signer)
}

/// Seals a secret itself, under a key that the key broker keeps as `key_id` (32 bytes).
///
/// # Errors
/// [`SealError::TooLarge`], [`SealError::Library`].
pub fn seal_envelope(
    secret: &[u8],
    key: &[u8; KEY_LENGTH],
    key_id: &ResourceUri,
    signer: &Signer<'_>,
) -> Result<String, SealError> {
    if secret.len() > PLAIN_LIMIT {
        return Err(SealError::TooLarge);
    }
    let own_key = Zeroizing::new(random::<KEY_LENGTH>()?);
    let (nonce, key_nonce) = (random()?, random()?);
    let envelope = Envelope {
        key: key_id.clone(),
        key_nonce,
        wrapped_key: encrypt(key, key_nonce, own_key.as_slice())?,
        nonce,
        data: encrypt(&own_key, nonce, secret)?,
    };
    sign(&Secret::Envelope(envelope), signer)
}

fn sign(secret: &Secret, signer: &Signer<'_>) -> Result<String, SealError> {
    let header = sealed::header(signer.public_key);
    let signed = jws::sign_es256(header, &secret.payload(), signer.key);
    Ok(sealed::text_of(&signed.map_err(SealError::Library)?))
}

/// Checks the signature with what the key broker holds at [`Signed::key`].
///
/// # Errors
/// [`SealError`].
pub fn verify(signed: &Signed<'_>, verification_key: &[u8]) -> Result<Secret, SealError> {
    let at = || signed.key().to_string();
    let key = public_key(verification_key).ok_or_else(|| SealError::VerificationKey(at()))?;
    let payload = jws::verify_es256(signed.jws(), &key).map_err(|e| match e {
        JoseError::Key(_) | JoseError::OtherKey => SealError::VerificationKey(at()),
        _ => SealError::Signature(at()),
    })?;
    Ok(Secret::parse(&payload)?)
}

/// Opens an envelope with what the key broker holds at its key.
///
/// # Errors
/// [`SealError::WrappingKey`], [`SealError::Open`].
pub fn open(envelope: &Envelope, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let key = <&[u8; KEY_LENGTH]>::try_from(key)
        .map_err(|_| SealError::WrappingKey(envelope.key.to_string()))?;
    let failed = || SealError::Open(envelope.key.to_string());
    let own_key = decrypt(key, envelope.key_nonce, &envelope.wrapped_key).ok_or_else(failed)?;
    let own_key = <&[u8; KEY_LENGTH]>::try_from(own_key.as_slice()).map_err(|_| failed())?;
    decrypt(own_key, envelope.nonce, &envelope.data).ok_or_else(failed)
}

/// A JSON web key as tools write one, with members beside those that matter here (`kid`, `use`).
#[derive(Deserialize)]
struct AnyKey {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

fn public_key(json: &[u8]) -> Option<Jwk> {
    let AnyKey { kty, crv, x, y } = serde_json::from_slice(json).ok()?;
    (kty == "EC" && crv == "P-256").then(|| Jwk::Ec { crv, alg: sealed::ALGORITHM.into(), x, y })
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| SealError::Library(JoseError::Library))
}

fn cipher(key: &[u8; KEY_LENGTH]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

fn encrypt(
    key: &[u8; KEY_LENGTH],
    nonce: [u8; NONCE_LENGTH],
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let failed = || SealError::Library(JoseError::Library);
    let mut data = plain.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let cipher = cipher(key).ok_or_else(failed)?;
    cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut data).map_err(|_| failed())?;
    Ok(data)
}

fn decrypt(
    key: &[u8; KEY_LENGTH],
    nonce: [u8; NONCE_LENGTH],
    data: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut data = Zeroizing::new(data.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let length = cipher(key)?.open_in_place(nonce, Aad::empty(), &mut data).ok()?.len();
    data.truncate(length);
    Some(data)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static KEY: LazyLock<Es256Key> = LazyLock::new(|| Es256Key::generate().unwrap());

    fn at(text: &str) -> ResourceUri {
        text.parse().unwrap()
    }

    fn jwk(key: &Es256Key) -> Vec<u8> {
        serde_json::to_vec(&key.public()).unwrap()
    }

    #[test]
    fn what_is_sealed_is_unsealed() {
        let (name, kid) = (at("kbs:///a/secret/1"), at("kbs:///a/keys/seal"));
        let signer = Signer { key: &KEY, public_key: &kid };
        let vault = seal_vault(&name, &signer).unwrap();
        let signed = Signed::parse(&vault).unwrap();
        assert_eq!(signed.key(), &kid);
        assert_eq!(verify(&signed, &jwk(&KEY)), Ok(Secret::Vault(name.clone())));
        let wrapping = [7; 32];
        for secret in [b"".as_slice(), b"swordfish", &[0; PLAIN_LIMIT]] {
            let envelope = seal_envelope(secret, &wrapping, &name, &signer).unwrap();
            assert!(envelope.len() <= sealed::TEXT_LIMIT);
            let Secret::Envelope(envelope) =
                verify(&Signed::parse(&envelope).unwrap(), &jwk(&KEY)).unwrap()
            else {
                panic!("an envelope")
            };
            assert_eq!(envelope.key, name);
            assert_eq!(open(&envelope, &wrapping).unwrap().as_slice(), secret);
            assert_eq!(open(&envelope, &[8; 32]), Err(SealError::Open(name.to_string())));
            assert_eq!(open(&envelope, &[7; 31]), Err(SealError::WrappingKey(name.to_string())));
            for damage in [0, envelope.data.len() - 1] {
                let mut damaged = envelope.clone();
                damaged.data[damage] ^= 1;
                assert_eq!(open(&damaged, &wrapping), Err(SealError::Open(name.to_string())));
            }
        }
        let large = vec![0; PLAIN_LIMIT + 1];
        assert_eq!(seal_envelope(&large, &wrapping, &name, &signer), Err(SealError::TooLarge));
    }

    #[test]
    fn a_seal_of_another_or_a_changed_one_is_refused() {
        let kid = at("kbs:///a/keys/seal");
        let signer = Signer { key: &KEY, public_key: &kid };
        let text = seal_vault(&at("kbs:///a/secret/1"), &signer).unwrap();
        let other = Es256Key::generate().unwrap();
        let signed = Signed::parse(&text).unwrap();
        assert_eq!(verify(&signed, &jwk(&other)), Err(SealError::Signature(kid.to_string())));
        let swapped = seal_vault(&at("kbs:///a/secret/2"), &signer).unwrap();
        let parts = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let mut mixed = parts(&text);
        mixed[2] = parts(&swapped)[2].clone();
        let mixed = mixed.join(".");
        let signed_mix = Signed::parse(&mixed).unwrap();
        assert_eq!(verify(&signed_mix, &jwk(&KEY)), Err(SealError::Signature(kid.to_string())));
        for key in [
            "",
            "{}",
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
            r#"{"kty":"oct","k":"AA"}"#,
        ] {
            let error = verify(&signed, key.as_bytes()).unwrap_err();
            assert!(
                matches!(error, SealError::VerificationKey(_) | SealError::Signature(_)),
                "{error}"
            );
        }
        let mut named: serde_json::Value = serde_json::from_slice(&jwk(&KEY)).unwrap();
        named["kid"] = "seal".into();
        verify(&signed, named.to_string().as_bytes()).unwrap();
    }
}
