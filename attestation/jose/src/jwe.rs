//! JSON web encryption (RFC 7516), flattened form: AES-256-GCM, with the content key wrapped by
//! ECDH-ES+A256KW on P-256 or P-521 (RFC 7518, section 4.6) or by RSA-OAEP-256 (section 4.3).

use aes_kw::KekAes256;
use nacre_protocol::kbs::{Jwk, RESOURCE_LIMIT};
use rand_core::OsRng;
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{agreement, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::{decode, decode_array, encode};
use crate::tee_key::{rsa_public, uncompressed};
use crate::{JoseError, TeeKey};

/// Key agreement on an elliptic curve, then AES key wrap.
pub const ECDH_ES_A256KW: &str = "ECDH-ES+A256KW";
/// RSA encryption.
pub const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// The one content encryption.
pub const A256GCM: &str = "A256GCM";
/// Largest plaintext, in bytes.
pub const PLAINTEXT_LIMIT: usize = RESOURCE_LIMIT;
/// Largest protected header, in bytes.
pub const HEADER_LIMIT: usize = 1024;

pub(crate) const P256: &str = "P-256";
pub(crate) const P521: &str = "P-521";

const ALGORITHMS: &str = "use ECDH-ES+A256KW on P-256 or P-521, or RSA-OAEP-256, with A256GCM";
const TAG: usize = 16;

/// An encrypted message, flattened (RFC 7516, section 7.2.2). Every member is base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwe {
    /// The header, which is authenticated.
    pub protected: String,
    /// The content key, wrapped.
    pub encrypted_key: String,
    /// Further authenticated data. This crate writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
    /// 12 bytes.
    pub iv: String,
    /// As long as the plaintext.
    pub ciphertext: String,
    /// 16 bytes.
    pub tag: String,
}

/// The order of members is part of the protocol: older clients write the header anew and authenticate
/// that.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<Epk>,
}

/// The sender's ephemeral public key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Epk {
    pub(crate) crv: String,
    pub(crate) kty: String,
    pub(crate) x: String,
    pub(crate) y: String,
}

/// Encrypts `plaintext` so that only the holder of `key` reads it.
///
/// # Errors
/// If it is larger than [`PLAINTEXT_LIMIT`], or the key is not one of those that this module names.
pub fn encrypt(plaintext: &[u8], key: &Jwk) -> Result<Jwe, JoseError> {
    within("the plaintext", plaintext.len())?;
    let mut content_key = Zeroizing::new([0; 32]);
    let mut iv = [0; aead::NONCE_LEN];
    let random = SystemRandom::new();
    random.fill(content_key.as_mut_slice()).map_err(|_| JoseError::Library)?;
    random.fill(&mut iv).map_err(|_| JoseError::Library)?;

    let (alg, epk, encrypted_key) = match key {
        Jwk::Ec { crv, alg, x, y } if alg == ECDH_ES_A256KW => {
            let (epk, z) = match crv.as_str() {
                P256 => agree_p256(x, y)?,
                P521 => agree_p521(x, y)?,
                _ => return Err(unsupported("the curve of the key")),
            };
            (ECDH_ES_A256KW, Some(epk), wrap(&z, &content_key)?)
        }
        Jwk::Rsa { alg, n, e } if alg == RSA_OAEP_256 => {
            let padding = rsa::Oaep::new::<sha2::Sha256>();
            let wrapped = rsa_public(n, e)?.encrypt(&mut OsRng, padding, content_key.as_slice());
            (RSA_OAEP_256, None, wrapped.map_err(|_| JoseError::Library)?)
        }
        _ => return Err(unsupported("the algorithm of the key")),
    };

    let header = Header { alg: alg.to_owned(), enc: A256GCM.to_owned(), epk };
    let protected = encode(serde_json::to_vec(&header).map_err(|_| JoseError::Library)?);
    let cipher = cipher(&content_key)?;
    let mut ciphertext = plaintext.to_vec();
    let tag = cipher
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(protected.as_bytes()),
            &mut ciphertext,
        )
        .map_err(|_| JoseError::Library)?;
    Ok(Jwe {
        protected,
        encrypted_key: encode(encrypted_key),
        aad: None,
        iv: encode(iv),
        ciphertext: encode(ciphertext),
        tag: encode(tag),
    })
}

/// Decrypts what was encrypted to `key`.
///
/// # Errors
/// If it is no such message, too large, for another key, or changed on the way.
pub fn decrypt(message: &Jwe, key: &TeeKey) -> Result<Zeroizing<Vec<u8>>, JoseError> {
    let header = decode("the protected header", &message.protected, HEADER_LIMIT)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| JoseError::Malformed("the protected header"))?;
    if header.enc != A256GCM {
        return Err(unsupported("the content encryption"));
    }
    let wrapped = decode("the encrypted key", &message.encrypted_key, 512)?;
    let iv = decode_array::<{ aead::NONCE_LEN }>("the iv", &message.iv)?;
    let tag = decode_array::<TAG>("the tag", &message.tag)?;
    let mut buffer =
        Zeroizing::new(decode("the ciphertext", &message.ciphertext, PLAINTEXT_LIMIT)?);
    within("the ciphertext", buffer.len())?;

    let content_key = match (header.alg.as_str(), &header.epk) {
        (ECDH_ES_A256KW, Some(epk)) if epk.kty == "EC" => unwrap(&key.agree(epk)?, &wrapped)?,
        (ECDH_ES_A256KW, _) => return Err(JoseError::Malformed("the protected header")),
        (RSA_OAEP_256, None) => {
            let key = key.unwrap_rsa(&wrapped)?;
            Zeroizing::new(key.as_slice().try_into().map_err(|_| JoseError::Decryption)?)
        }
        _ => return Err(unsupported("the algorithm")),
    };
    // RFC 7516, section 5.1, step 14.
    let authenticated = match &message.aad {
        None => message.protected.clone(),
        Some(aad) if aad.len() <= HEADER_LIMIT => format!("{}.{aad}", message.protected),
        Some(_) => return Err(JoseError::TooLarge { what: "the aad", limit: HEADER_LIMIT }),
    };
    buffer.extend_from_slice(&tag);
    let nonce = Nonce::assume_unique_for_key(iv);
    let length = cipher(&content_key)?
        .open_in_place(nonce, Aad::from(authenticated.as_bytes()), &mut buffer)
        .map_err(|_| JoseError::Decryption)?
        .len();
    buffer.truncate(length);
    Ok(buffer)
}

/// By ring: it is several times as fast as the general implementation, and this runs for every
/// resource that a broker hands out.
fn agree_p256(x: &str, y: &str) -> Result<(Epk, Zeroizing<Vec<u8>>), JoseError> {
    let point = uncompressed(&decode_array::<32>("x", x)?, &decode_array::<32>("y", y)?);
    let random = SystemRandom::new();
    let own = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &random)
        .map_err(|_| JoseError::Library)?;
    let public = own.compute_public_key().map_err(|_| JoseError::Library)?;
    let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
    let z = agreement::agree_ephemeral(own, &peer, |z| Zeroizing::new(z.to_vec()))
        .map_err(|_| JoseError::Key("it is no point of P-256"))?;
    Ok((epk(P256, public.as_ref()), z))
}

fn agree_p521(x: &str, y: &str) -> Result<(Epk, Zeroizing<Vec<u8>>), JoseError> {
    use p521::elliptic_curve::sec1::ToEncodedPoint as _;
    let point = uncompressed(&decode_array::<66>("x", x)?, &decode_array::<66>("y", y)?);
    let peer = p521::PublicKey::from_sec1_bytes(&point)
        .map_err(|_| JoseError::Key("it is no point of P-521"))?;
    let own = p521::ecdh::EphemeralSecret::random(&mut OsRng);
    let z = Zeroizing::new(own.diffie_hellman(&peer).raw_secret_bytes().to_vec());
    Ok((epk(P521, own.public_key().to_encoded_point(false).as_bytes()), z))
}

/// `point` is uncompressed: 04, x, y.
fn epk(curve: &str, point: &[u8]) -> Epk {
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    Epk { crv: curve.to_owned(), kty: "EC".to_owned(), x: encode(x), y: encode(y) }
}

/// Concat KDF (RFC 7518, section 4.6.2; NIST SP 800-56A, section 5.8.1) for up to 256 bits of key:
/// one round of SHA-256.
fn concat_kdf(z: &[u8], algorithm: &str, apu: &[u8], apv: &[u8], bits: u32) -> Zeroizing<[u8; 32]> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&1_u32.to_be_bytes());
    hash.update(z);
    for part in [algorithm.as_bytes(), apu, apv] {
        let length = u32::try_from(part.len()).expect("names are short");
        hash.update(&length.to_be_bytes());
        hash.update(part);
    }
    hash.update(&bits.to_be_bytes());
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(hash.finish().as_ref());
    key
}

fn wrapping_key(z: &[u8]) -> KekAes256 {
    KekAes256::from(*concat_kdf(z, ECDH_ES_A256KW, &[], &[], 256))
}

/// Wraps a content key under what two sides agreed on: ECDH-ES+A256KW without apu and apv. `z` is the x
/// coordinate of the shared point, whole.
///
/// # Errors
/// Never, for keys of this length.
pub fn wrap(z: &[u8], content_key: &[u8; 32]) -> Result<Vec<u8>, JoseError> {
    let mut wrapped = [0; 40];
    wrapping_key(z).wrap(content_key, &mut wrapped).map_err(|_| JoseError::Library)?;
    Ok(wrapped.to_vec())
}

/// The content key that [`wrap`] wrapped.
///
/// # Errors
/// If it was wrapped under something else.
pub fn unwrap(z: &[u8], wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, JoseError> {
    if wrapped.len() != 40 {
        return Err(JoseError::Malformed("the encrypted key"));
    }
    let mut key = Zeroizing::new([0; 32]);
    let unwrapped = wrapping_key(z).unwrap(wrapped, key.as_mut_slice());
    unwrapped.map_err(|_| JoseError::Decryption)?;
    Ok(key)
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, JoseError> {
    let key = UnboundKey::new(&aead::AES_256_GCM, key).map_err(|_| JoseError::Library)?;
    Ok(LessSafeKey::new(key))
}

fn within(what: &'static str, length: usize) -> Result<(), JoseError> {
    if length > PLAINTEXT_LIMIT {
        return Err(JoseError::TooLarge { what, limit: PLAINTEXT_LIMIT });
    }
    Ok(())
}

const fn unsupported(what: &'static str) -> JoseError {
    JoseError::Unsupported { what, supported: ALGORITHMS }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static EC: LazyLock<TeeKey> = LazyLock::new(TeeKey::generate);
    static P521_KEY: LazyLock<TeeKey> = LazyLock::new(TeeKey::generate_p521);
    static RSA: LazyLock<TeeKey> = LazyLock::new(|| TeeKey::generate_rsa(2048).unwrap());

    /// RFC 7518, appendix C.
    #[test]
    fn key_derivation_of_the_specification() {
        let z = [
            158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49,
            110, 163, 218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
        ];
        let key = concat_kdf(&z, "A128GCM", b"Alice", b"Bob", 128);
        assert_eq!(encode(&key[..16]), "VqqN6vgjbSBcIijNcacQGg");
    }

    /// RFC 7518, appendix C: both sides' keys and the agreed Z.
    #[test]
    fn key_agreement_of_the_specification() {
        let private = decode("d", "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw", 32).unwrap();
        let bob = TeeKey::from_p256_bytes(&private).unwrap();
        let alice = Epk {
            crv: P256.into(),
            kty: "EC".into(),
            x: "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0".into(),
            y: "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps".into(),
        };
        assert_eq!(
            hex::encode(bob.agree(&alice).unwrap()),
            "9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4"
        );
    }

    /// RFC 3394, section 4.6: 256 bits of key data with a 256-bit key.
    #[test]
    fn key_wrap_of_the_specification() {
        let kek = hex::decode("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F");
        let data = hex::decode("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F");
        let kek: [u8; 32] = kek.unwrap().try_into().unwrap();
        let mut wrapped = [0; 40];
        KekAes256::from(kek).wrap(&data.unwrap(), &mut wrapped).unwrap();
        assert_eq!(
            hex::encode_upper(wrapped),
            "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
        );
    }

    #[test]
    fn every_kind_of_key_reads_what_was_encrypted_to_it() {
        for key in [&*EC, &*P521_KEY, &*RSA] {
            for plaintext in [b"".as_slice(), b"a secret", &[0xff; 5000]] {
                let message = encrypt(plaintext, &key.public()).unwrap();
                let text = serde_json::to_string(&message).unwrap();
                let read: Jwe = serde_json::from_str(&text).unwrap();
                assert_eq!(decrypt(&read, key).unwrap().as_slice(), plaintext);
            }
        }
        let for_other = encrypt(b"x", &TeeKey::generate().public()).unwrap();
        assert_eq!(decrypt(&for_other, &EC).err(), Some(JoseError::Decryption));
        assert_eq!(decrypt(&for_other, &RSA).err(), Some(JoseError::OtherKey));
        assert_eq!(decrypt(&for_other, &P521_KEY).err(), Some(JoseError::OtherKey));
    }

    /// Older clients write the header anew with `alg`, `enc` and the rest sorted, and authenticate
    /// that text.
    #[test]
    fn the_header_has_the_order_that_older_clients_write() {
        let message = encrypt(b"x", &EC.public()).unwrap();
        let header = String::from_utf8(decode("", &message.protected, 1024).unwrap()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&header).unwrap();
        let epk = &value["epk"];
        assert_eq!(
            header,
            format!(
                "{{\"alg\":\"ECDH-ES+A256KW\",\"enc\":\"A256GCM\",\"epk\":{{\"crv\":\"P-256\",\"kty\":\"EC\",\
                 \"x\":{},\"y\":{}}}}}",
                epk["x"], epk["y"]
            )
        );
        let message = encrypt(b"x", &RSA.public()).unwrap();
        let header = decode("", &message.protected, 1024).unwrap();
        assert_eq!(header, br#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#);
        let text = serde_json::to_string(&message).unwrap();
        assert!(!text.contains("\"aad\""), "{text}");
    }

    #[test]
    fn further_authenticated_data_is_authenticated() {
        let mut message = encrypt(b"x", &EC.public()).unwrap();
        message.aad = Some(encode("more"));
        assert_eq!(decrypt(&message, &EC).err(), Some(JoseError::Decryption));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let Jwk::Ec { x, y, .. } = EC.public() else { panic!("EC") };
        let ec = |crv: &str, alg: &str, x: &str, y: &str| Jwk::Ec {
            crv: crv.into(),
            alg: alg.into(),
            x: x.into(),
            y: y.into(),
        };
        let refused = |key: &Jwk| encrypt(b"x", key).unwrap_err();
        let off_curve = refused(&ec(P256, ECDH_ES_A256KW, &x, &x));
        assert_eq!(off_curve, JoseError::Key("it is no point of P-256"));
        let zeros = encode([0; 66]);
        assert!(matches!(refused(&ec(P521, ECDH_ES_A256KW, &zeros, &zeros)), JoseError::Key(_)));
        assert!(matches!(refused(&ec(P256, ECDH_ES_A256KW, "AA", &y)), JoseError::Malformed("x")));
        assert!(matches!(refused(&ec(P521, ECDH_ES_A256KW, &x, &y)), JoseError::Malformed("x")));
        assert!(matches!(
            refused(&ec("P-384", ECDH_ES_A256KW, &x, &y)),
            JoseError::Unsupported { .. }
        ));
        assert!(matches!(refused(&ec(P256, "ECDH-ES", &x, &y)), JoseError::Unsupported { .. }));
        let Jwk::Rsa { n, e, .. } = RSA.public() else { panic!("RSA") };
        let rsa =
            |alg: &str, n: &str, e: &str| Jwk::Rsa { alg: alg.into(), n: n.into(), e: e.into() };
        assert!(matches!(refused(&rsa("RSA1_5", &n, &e)), JoseError::Unsupported { .. }));
        assert!(matches!(refused(&rsa(RSA_OAEP_256, &n, "AA")), JoseError::Key(_)));
        assert!(matches!(refused(&rsa(RSA_OAEP_256, "AQAB", &e)), JoseError::Key(_)));
        let small = encode([0xff; 128]);
        assert!(matches!(refused(&rsa(RSA_OAEP_256, &small, &e)), JoseError::Key(_)));
        let huge = encode([0xff; 1024]);
        assert!(matches!(refused(&rsa(RSA_OAEP_256, &huge, &e)), JoseError::TooLarge { .. }));
    }

    #[test]
    fn messages_that_are_none_are_refused() {
        let good = encrypt(b"secret", &EC.public()).unwrap();
        let refused = |change: &dyn Fn(&mut Jwe)| {
            let mut message = good.clone();
            change(&mut message);
            decrypt(&message, &EC).expect_err("refused")
        };
        let header = |text: &str| encode(text);
        for bad in [
            String::new(),
            "*".into(),
            header("{}"),
            header(r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}"#),
            header(r#"{"alg":"none","enc":"A256GCM"}"#),
            header(r#"{"alg":"dir","enc":"A256GCM"}"#),
            header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#),
            header(r#"{"alg":"RSA-OAEP-256","enc":"A128CBC-HS256"}"#),
            header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","zip":"DEF"}"#),
            header(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM","crit":["x"]}"#),
            "A".repeat(100_000),
        ] {
            refused(&|message| message.protected.clone_from(&bad));
        }
        assert_eq!(refused(&|m| m.iv.truncate(8)), JoseError::Malformed("the iv"));
        assert_eq!(refused(&|m| m.tag.truncate(8)), JoseError::Malformed("the tag"));
        assert_eq!(
            refused(&|m| m.encrypted_key.truncate(32)),
            JoseError::Malformed("the encrypted key")
        );
        assert_eq!(refused(&|m| m.ciphertext.truncate(4)), JoseError::Decryption);
        assert_eq!(
            refused(&|m| m.ciphertext = "A".repeat(PLAINTEXT_LIMIT * 2)),
            JoseError::TooLarge { what: "the ciphertext", limit: PLAINTEXT_LIMIT }
        );
        let text =
            serde_json::to_string(&good).unwrap().replace("{\"protected", "{\"x\":1,\"protected");
        assert!(serde_json::from_str::<Jwe>(&text).is_err());
        assert!(encrypt(&vec![0; PLAINTEXT_LIMIT + 1], &EC.public()).is_err());
        encrypt(&vec![0; PLAINTEXT_LIMIT], &EC.public()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whichever character of whichever member changes, nothing is read.
        #[test]
        fn any_change_is_noticed(member in 0_usize..5, place in any::<prop::sample::Index>(), bit in 0_u8..6) {
            let good = encrypt(b"some secret", &EC.public()).unwrap();
            let mut changed = good.clone();
            let text = match member {
                0 => &mut changed.protected,
                1 => &mut changed.encrypted_key,
                2 => &mut changed.iv,
                3 => &mut changed.ciphertext,
                _ => &mut changed.tag,
            };
            let place = place.index(text.len());
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1 << bit;
            prop_assume!(bytes.is_ascii());
            *text = String::from_utf8(bytes).unwrap();
            prop_assert!(decrypt(&changed, &EC).is_err());
        }
    }
}
