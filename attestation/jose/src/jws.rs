//! JSON web signatures (RFC 7515), compact form: ES256 on P-256 and `EdDSA` with Ed25519 (RFC 8037).

use nacre_protocol::kbs::Jwk;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use serde_json::{Map, Value};

use crate::encoding::{decode, decode_array, encode};
use crate::tee_key::uncompressed;
use crate::{Ed25519Key, Ed25519Public, Es256Key, JoseError};

/// Name of ECDSA on P-256 with SHA-256.
pub const ES256: &str = "ES256";
/// Name of `EdDSA`, which is Ed25519 here.
pub const EDDSA: &str = "EdDSA";
/// Longest message, in bytes of its text: a sealed envelope or a token with all its claims fits.
pub const LIMIT: usize = 128 * 1024;
/// Largest header, in bytes.
pub const HEADER_LIMIT: usize = 8 * 1024;

const SIGNATURE: usize = 64;
const ALGORITHMS: &str = "use ES256 or EdDSA";

/// Members of a header.
pub type Header = Map<String, Value>;

/// A message that was taken apart and not believed yet. Only its checks give its payload.
pub struct Unverified<'a> {
    header: Header,
    payload: Vec<u8>,
    signed: &'a str,
    signature: [u8; SIGNATURE],
}

/// Takes a message apart.
///
/// # Errors
/// If it is too large, is not three parts of base64url, has a header that is no JSON object or names
/// critical extensions.
pub fn parse(compact: &str) -> Result<Unverified<'_>, JoseError> {
    if compact.len() > LIMIT {
        return Err(JoseError::TooLarge { what: "a signed message", limit: LIMIT });
    }
    let malformed = JoseError::Malformed("a signed message");
    let (signed, signature) = compact.rsplit_once('.').ok_or(malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(malformed)?;
    let header = decode("the header of a signed message", header, HEADER_LIMIT)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| JoseError::Malformed("the header of a signed message"))?;
    for extension in ["crit", "b64"] {
        if header.contains_key(extension) {
            return Err(JoseError::Unsupported {
                what: "an extension in the header of a signed message",
                supported: "leave out crit and b64",
            });
        }
    }
    let payload = decode("the payload of a signed message", payload, LIMIT)?;
    let signature = decode_array("the signature", signature)?;
    Ok(Unverified { header, payload, signed, signature })
}

impl Unverified<'_> {
    /// The header: anybody may have written it. Good for choosing among keys that are trusted already.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The identifier of a key in the header: anybody may have written it.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.header.get("kid")?.as_str()
    }

    /// The payload before any check: anybody may have written it. For those to whom it is told by
    /// somebody they trust already.
    #[must_use]
    pub fn danger_payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, if it is signed by ES256 with `key`, on P-256.
    ///
    /// # Errors
    /// If the algorithm is another one, the key is none, or the signature is wrong.
    pub fn verify_es256(self, key: &Jwk) -> Result<Vec<u8>, JoseError> {
        self.expect_algorithm(ES256)?;
        let Jwk::Ec { crv, alg, x, y } = key else { return Err(JoseError::OtherKey) };
        if crv != "P-256" || alg != ES256 {
            return Err(JoseError::OtherKey);
        }
        let point = uncompressed(&decode_array::<32>("x", x)?, &decode_array::<32>("y", y)?);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JoseError::Signature)?;
        Ok(self.payload)
    }

    /// The payload, if it is signed by `EdDSA` with `key`.
    ///
    /// # Errors
    /// If the algorithm is another one, or the signature is wrong.
    pub fn verify_eddsa(self, key: &Ed25519Public) -> Result<Vec<u8>, JoseError> {
        self.expect_algorithm(EDDSA)?;
        UnparsedPublicKey::new(&ED25519, key.as_bytes())
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JoseError::Signature)?;
        Ok(self.payload)
    }

    fn expect_algorithm(&self, name: &str) -> Result<(), JoseError> {
        if self.header.get("alg").and_then(Value::as_str) == Some(name) {
            return Ok(());
        }
        let what = "the algorithm of a signed message";
        Err(JoseError::Unsupported { what, supported: ALGORITHMS })
    }
}

/// [`parse`] and [`Unverified::verify_es256`].
///
/// # Errors
/// As those.
pub fn verify_es256(compact: &str, key: &Jwk) -> Result<Vec<u8>, JoseError> {
    parse(compact)?.verify_es256(key)
}

/// [`parse`] and [`Unverified::verify_eddsa`].
///
/// # Errors
/// As those.
pub fn verify_eddsa(compact: &str, key: &Ed25519Public) -> Result<Vec<u8>, JoseError> {
    parse(compact)?.verify_eddsa(key)
}

/// Signs `payload` by ES256. `header` gets the algorithm.
///
/// # Errors
/// If it becomes longer than [`LIMIT`], or the system gives no random bytes.
pub fn sign_es256(header: Header, payload: &[u8], key: &Es256Key) -> Result<String, JoseError> {
    sign(header, ES256, payload, |signed| key.sign(signed))
}

/// Signs `payload` by `EdDSA`. `header` gets the algorithm.
///
/// # Errors
/// If it becomes longer than [`LIMIT`].
pub fn sign_eddsa(header: Header, payload: &[u8], key: &Ed25519Key) -> Result<String, JoseError> {
    sign(header, EDDSA, payload, |signed| Ok(key.sign(signed)))
}

fn sign(
    mut header: Header,
    algorithm: &str,
    payload: &[u8],
    signature: impl FnOnce(&[u8]) -> Result<[u8; SIGNATURE], JoseError>,
) -> Result<String, JoseError> {
    header.insert("alg".to_owned(), algorithm.into());
    let header = serde_json::to_vec(&header).map_err(|_| JoseError::Library)?;
    if header.len() > HEADER_LIMIT {
        let what = "the header of a signed message";
        return Err(JoseError::TooLarge { what, limit: HEADER_LIMIT });
    }
    let mut text = format!("{}.{}", encode(header), encode(payload));
    let signature = signature(text.as_bytes())?;
    text.push('.');
    text.push_str(&encode(signature));
    if text.len() > LIMIT {
        return Err(JoseError::TooLarge { what: "a signed message", limit: LIMIT });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header::from_iter([("typ".to_owned(), "JWT".into())])
    }

    /// RFC 7515, appendix A.3.
    #[test]
    fn es256_of_the_specification() {
        let message = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
                       cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8IS\
                       lSApmWQxfKTUJqPP3-Kg6NU1Q";
        let key = Jwk::Ec {
            crv: "P-256".into(),
            alg: ES256.into(),
            x: "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU".into(),
            y: "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0".into(),
        };
        let payload = verify_es256(message, &key).unwrap();
        assert!(payload.starts_with(b"{\"iss\":\"joe\""));
        let wrong = message.replace(".Dt", ".Et");
        assert_eq!(verify_es256(&wrong, &key), Err(JoseError::Signature));
        let Jwk::Ec { crv, x, y, .. } = key else { panic!("EC") };
        let for_encryption = Jwk::Ec { crv, alg: "ECDH-ES+A256KW".into(), x, y };
        assert_eq!(verify_es256(message, &for_encryption), Err(JoseError::OtherKey));
    }

    /// RFC 8037, appendix A.4 and A.5.
    #[test]
    fn eddsa_of_the_specification() {
        let seed = decode("d", "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", 32).unwrap();
        let key = Ed25519Key::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(encode(key.public().as_bytes()), "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-\
                       09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let signed = sign_eddsa(Header::new(), b"Example of Ed25519 signing", &key).unwrap();
        assert_eq!(signed, message);
        assert_eq!(verify_eddsa(message, &key.public()).unwrap(), b"Example of Ed25519 signing");
    }

    #[test]
    fn keys_survive_pem() {
        let key = Es256Key::generate().unwrap();
        let again = Es256Key::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.public(), key.public());
        let signed = sign_es256(header(), b"{}", &again).unwrap();
        assert_eq!(verify_es256(&signed, &key.public()).unwrap(), b"{}");

        let key = Ed25519Key::generate().unwrap();
        let again = Ed25519Key::from_pem(&key.to_pem()).unwrap();
        let public = Ed25519Public::from_pem(&key.public().to_pem()).unwrap();
        let signed = sign_eddsa(header(), b"{}", &again).unwrap();
        assert_eq!(verify_eddsa(&signed, &public).unwrap(), b"{}");
        assert_eq!(
            verify_eddsa(&signed, &Ed25519Key::generate().unwrap().public()),
            Err(JoseError::Signature)
        );
        for bad in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            &"A".repeat(20_000),
        ] {
            assert!(Es256Key::from_pem(bad).is_err());
            assert!(Ed25519Key::from_pem(bad).is_err());
            assert!(Ed25519Public::from_pem(bad).is_err());
        }
    }

    /// Made by `openssl genpkey -algorithm ed25519`, which leaves out the public half.
    #[test]
    fn keys_of_other_tools_are_read() {
        let private = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                       -----END PRIVATE KEY-----\n";
        let key = Ed25519Key::from_pem(private).unwrap();
        assert_eq!(encode(key.public().as_bytes()), "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    }

    #[test]
    fn the_algorithm_is_not_the_messages_choice() {
        let key = Es256Key::generate().unwrap();
        let good = sign_es256(header(), b"{}", &key).unwrap();
        let (_, rest) = good.split_once('.').unwrap();
        for bad in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"EdDSA"}"#,
            r#"{"alg":["ES256"]}"#,
            r#"{"alg":"ES256","crit":["exp"]}"#,
            r#"{"alg":"ES256","b64":false}"#,
            "{}",
            "[]",
            "\"ES256\"",
        ] {
            let message = format!("{}.{rest}", encode(bad));
            let error = verify_es256(&message, &key.public()).unwrap_err();
            assert_ne!(error, JoseError::Signature, "{bad}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in ["", ".", "..", "...", "a.b.c", "e30.e30.", "e30.e30.AAAA", "e30..e30.e30"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let long = format!("e30.{}.AA", "A".repeat(LIMIT));
        assert_eq!(
            parse(&long).err(),
            Some(JoseError::TooLarge { what: "a signed message", limit: LIMIT })
        );
        let key = Es256Key::generate().unwrap();
        assert!(sign_es256(header(), &vec![0; LIMIT], &key).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_change_is_noticed(place in any::<prop::sample::Index>(), bit in 0_u8..6) {
            let key = Ed25519Key::from_seed(&[7; 32]).unwrap();
            let good = sign_eddsa(header(), b"{\"role\":\"admin\"}", &key).unwrap();
            let mut bytes = good.into_bytes();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(verify_eddsa(&text, &key.public()).is_err());
            }
        }
    }
}
