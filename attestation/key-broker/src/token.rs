//! Attestation tokens: what was appraised, signed for third parties and for asking this broker again.

use nacre_evidence::Tee;
use nacre_jose::jws::{self, Header};
use nacre_jose::{Es256Key, JoseError, Jwk};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use time::OffsetDateTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::claims::PROFILE;

/// Clocks of relying parties may differ by as much, in seconds.
const SKEW: i64 = 30;

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Its form or its signature.
    #[error("the token is not one of this broker's: {0}")]
    Jose(#[from] JoseError),
    /// Its time is over.
    #[error("the token is expired: attest again")]
    Expired,
    /// It lacks something.
    #[error("the token's claims are not those of this broker: {0}")]
    Claims(&'static str),
}

/// What is known of a guest that was attested.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attested {
    /// Claims of the token, as JSON: sessions keep them, and few policies read them.
    pub(crate) claims: Box<str>,
    /// What answers are encrypted to.
    pub(crate) tee_pubkey: Jwk,
    /// `HOST_DATA` or `MRCONFIGID`.
    pub(crate) init_data: Vec<u8>,
    /// Kind of hardware.
    pub(crate) tee: Tee,
    /// Whether its root is none of a vendor's.
    pub(crate) emulated: bool,
    /// Identifier of the request by which it was attested.
    pub(crate) attestation: String,
    /// When it is over, in seconds since 1970.
    pub(crate) expires: i64,
}

/// Signs and checks tokens.
pub(crate) struct Tokens {
    key: Es256Key,
    public: Jwk,
    key_id: String,
    issuer: String,
    lifetime: i64,
}

impl Tokens {
    pub(crate) fn new(key: Es256Key, issuer: &str, lifetime_seconds: u32) -> Tokens {
        let public = key.public();
        let key_id = thumbprint(&public);
        Tokens { key, public, key_id, issuer: issuer.to_owned(), lifetime: lifetime_seconds.into() }
    }

    /// Keys that tokens are checked with (RFC 7517, section 5).
    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": [self.jwk()]})
    }

    fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(&self.public).unwrap_or_default();
        jwk["kid"] = self.key_id.clone().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// Signs what is known of a guest, whose submodule is `cpu0`.
    pub(crate) fn issue(
        &self,
        cpu0: &Value,
        attestation: &str,
        now: OffsetDateTime,
    ) -> Result<(String, Attested), TokenError> {
        let now = now.unix_timestamp();
        let claims = json!({
            "eat_profile": PROFILE,
            "iss": self.issuer,
            "iat": now,
            "exp": now + self.lifetime,
            "jti": attestation,
            "ear.verifier-id": {
                "build": concat!("nacre-kbs ", env!("CARGO_PKG_VERSION")),
                "developer": "Nacre",
            },
            "submods": {"cpu0": cpu0},
        });
        let header = Header::from_iter([
            ("typ".to_owned(), "JWT".into()),
            ("kid".to_owned(), self.key_id.clone().into()),
            ("jwk".to_owned(), self.jwk()),
        ]);
        let payload = claims.to_string();
        let token = jws::sign_es256(header, payload.as_bytes(), &self.key)?;
        let attested = Attested::of_claims(&claims, payload)?;
        Ok((token, attested))
    }

    /// Believes a token that this broker signed and whose time is not over.
    pub(crate) fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Attested, TokenError> {
        let payload = jws::verify_es256(token, &self.public)?;
        let payload = String::from_utf8(payload).map_err(|_| TokenError::Claims("JSON"))?;
        let claims: Value =
            serde_json::from_str(&payload).map_err(|_| TokenError::Claims("JSON"))?;
        if claims["iss"] != *self.issuer {
            return Err(TokenError::Claims("iss"));
        }
        let attested = Attested::of_claims(&claims, payload)?;
        let issued = claims["iat"].as_i64().ok_or(TokenError::Claims("iat"))?;
        let now = now.unix_timestamp();
        if attested.expires <= now || issued > now + SKEW {
            return Err(TokenError::Expired);
        }
        Ok(attested)
    }
}

impl Attested {
    /// `text` is the text of `claims`.
    fn of_claims(claims: &Value, text: String) -> Result<Attested, TokenError> {
        let cpu0 = &claims["submods"]["cpu0"];
        if cpu0["ear.status"] != "affirming" {
            return Err(TokenError::Claims("ear.status"));
        }
        let annotated = &cpu0["ear.veraison.annotated-evidence"];
        let tee = [Tee::Snp, Tee::Tdx].into_iter().find(|tee| annotated[tee.name()].is_object());
        let key = &annotated["runtime_data_claims"]["tee-pubkey"];
        let tee_pubkey = serde_json::from_value(key.clone());
        let init_data = annotated["init_data"].as_str().and_then(|text| hex::decode(text).ok());
        Ok(Attested {
            tee_pubkey: tee_pubkey.map_err(|_| TokenError::Claims("tee-pubkey"))?,
            init_data: init_data.ok_or(TokenError::Claims("init_data"))?,
            tee: tee.ok_or(TokenError::Claims("annotated-evidence"))?,
            emulated: cpu0["nacre.emulated"]
                .as_bool()
                .ok_or(TokenError::Claims("nacre.emulated"))?,
            attestation: claims["jti"].as_str().ok_or(TokenError::Claims("jti"))?.to_owned(),
            expires: claims["exp"].as_i64().ok_or(TokenError::Claims("exp"))?,
            claims: text.into(),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Attested {
        let key = Es256Key::generate().unwrap();
        let tokens = Tokens::new(key, "nacre-kbs", 300);
        tokens.issue(&tests::cpu0(), "0123", OffsetDateTime::now_utc()).unwrap().1
    }
}

/// RFC 7638.
fn thumbprint(key: &Jwk) -> String {
    let text = match key {
        Jwk::Ec { crv, x, y, .. } => json!({"crv": crv, "kty": "EC", "x": x, "y": y}),
        Jwk::Rsa { n, e, .. } => json!({"e": e, "kty": "RSA", "n": n}),
    };
    let text = nacre_protocol::jcs::canonical(&text).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use nacre_jose::TeeKey;

    use super::*;

    pub(super) fn cpu0() -> Value {
        json!({
            "ear.status": "affirming",
            "ear.veraison.annotated-evidence": {
                "snp": {"measurement": "AAAA"},
                "report_data": "00",
                "runtime_data_claims": {"nonce": "AAAA", "tee-pubkey": TeeKey::generate().public()},
                "init_data": "01".repeat(32),
                "init_data_claims": null,
            },
            "nacre.emulated": true,
            "nacre.root": "test",
        })
    }

    fn tokens() -> Tokens {
        Tokens::new(Es256Key::generate().unwrap(), "nacre-kbs", 300)
    }

    #[test]
    fn a_token_says_what_was_attested() {
        let tokens = tokens();
        let now = OffsetDateTime::now_utc();
        let (token, attested) = tokens.issue(&cpu0(), "0123", now).unwrap();
        assert_eq!(attested.init_data, [1; 32]);
        assert_eq!((attested.tee, attested.emulated), (Tee::Snp, true));
        assert_eq!(tokens.verify(&token, now), Ok(attested));
        let later = |seconds| now + time::Duration::seconds(seconds);
        tokens.verify(&token, later(299)).unwrap();
        assert_eq!(tokens.verify(&token, later(300)), Err(TokenError::Expired));
        assert_eq!(tokens.verify(&token, later(-100)), Err(TokenError::Expired));
    }

    /// With the key from the JWKS, as a third party does it.
    #[test]
    fn third_parties_can_check_a_token() {
        let tokens = tokens();
        let (token, _) = tokens.issue(&cpu0(), "0123", OffsetDateTime::now_utc()).unwrap();
        let jwks = tokens.jwks();
        let mut key = jwks["keys"][0].clone();
        let parsed = jws::parse(&token).unwrap();
        assert_eq!(parsed.key_id(), key["kid"].as_str());
        assert_eq!(parsed.header()["jwk"], key);
        for member in ["kid", "use"] {
            key.as_object_mut().unwrap().remove(member);
        }
        let key: Jwk = serde_json::from_value(key).unwrap();
        jws::verify_es256(&token, &key).unwrap();
    }

    #[test]
    fn tokens_of_others_are_not_believed() {
        let (one, two) = (tokens(), tokens());
        let now = OffsetDateTime::now_utc();
        let (token, _) = one.issue(&cpu0(), "0123", now).unwrap();
        assert_eq!(two.verify(&token, now), Err(TokenError::Jose(JoseError::Signature)));
        assert!(matches!(two.verify("", now), Err(TokenError::Jose(_))));
        // Signed by our key, with other claims.
        let sign = |claims: Value| {
            jws::sign_es256(Header::new(), claims.to_string().as_bytes(), &one.key).unwrap()
        };
        let payload = jws::verify_es256(&token, &one.public).unwrap();
        let good: Value = serde_json::from_slice(&payload).unwrap();
        one.verify(&sign(good.clone()), now).unwrap();
        for (pointer, value, expected) in [
            ("/iss", json!("other"), "iss"),
            ("/exp", json!("later"), "exp"),
            ("/submods/cpu0/ear.status", json!("contraindicated"), "ear.status"),
            ("/submods/cpu0/nacre.emulated", json!(null), "nacre.emulated"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(one.verify(&sign(bad), now), Err(TokenError::Claims(expected)));
        }
    }

    /// RFC 7638, section 3.1.
    #[test]
    fn thumbprint_of_the_specification() {
        let key = Jwk::Rsa {
            alg: "RS256".into(),
            n: "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRX\
                jBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8\
                KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_x\
                BniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
                .into(),
            e: "AQAB".into(),
        };
        assert_eq!(thumbprint(&key), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }
}
