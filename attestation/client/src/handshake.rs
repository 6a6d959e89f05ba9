//! The conversation in which a guest proves what it is: request, challenge, attestation, token.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nacre_jose::TeeKey;
use nacre_protocol::kbs::{
    Attestation, CompositeEvidence, InitData, Request, RuntimeData, report_data,
};
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::EvidenceSource;
use crate::error::ClientError;
use crate::http::Http;
use crate::session::Session;

/// Longest nonce that is taken, in bytes of its text; Nacre's and Trustee's have 44.
const NONCE_LIMIT: usize = 256;
/// The only hash of report data that is used here; a broker that names none means it.
const HASH: &str = "sha384";
/// Time for evidence about this machine. Real firmware takes milliseconds, seconds where it throttles.
const EVIDENCE_TIME: Duration = Duration::from_secs(20);
/// Life of a token that does not say how long it lives.
const SHORT_LIFE: Duration = Duration::from_secs(60);
/// The longest life that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Proves what this machine is, with a key made for this conversation.
pub(crate) async fn attest(
    http: &Http,
    source: &dyn EvidenceSource,
    init_data: Option<&InitData>,
) -> Result<Session, ClientError> {
    let (challenge, cookie) = http.auth(&Request::new(source.tee())).await?;
    let sound = !challenge.nonce.is_empty() && challenge.nonce.len() <= NONCE_LIMIT;
    if !sound {
        return Err(http.protocol("auth", "the nonce is empty or too long"));
    }
    if let Some(hash) = challenge.hash_algorithm().filter(|hash| !hash.eq_ignore_ascii_case(HASH)) {
        let problem = format!("it chooses the hash {hash:?}, and this guest knows {HASH} only");
        return Err(http.protocol("auth", &problem));
    }
    let key = TeeKey::generate();
    let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: key.public() };
    let bound = report_data(&runtime_data.nonce, &runtime_data.tee_pubkey, "");
    // On its way it may pass the host, which can keep it for ever.
    let primary_evidence = tokio::time::timeout(EVIDENCE_TIME, source.evidence(bound))
        .await
        .unwrap_or_else(|_| Err(format!("none came in {} s", EVIDENCE_TIME.as_secs())))
        .map_err(ClientError::Evidence)?;
    let attestation = Attestation {
        init_data: init_data.cloned(),
        runtime_data,
        tee_evidence: CompositeEvidence { primary_evidence, additional_evidence: String::new() },
    };
    // The token is made after this moment: its life, counted from here, ends too early rather than too late.
    let begun = Instant::now();
    let answer = http.attest(&attestation, cookie.as_deref()).await?;
    let token = Zeroizing::new(answer.token);
    let times = Times::of(&token);
    Ok(Session { token, key, cookie, begun, life: times.life(), issued: times.iat })
}

/// What the token says about itself.
#[derive(Default, Deserialize)]
struct Times {
    iat: Option<i64>,
    exp: Option<i64>,
}

impl Times {
    fn of(token: &str) -> Self {
        let times = token.split('.').nth(1).and_then(|part| {
            let payload = URL_SAFE_NO_PAD.decode(part).ok()?;
            serde_json::from_slice(&payload).ok()
        });
        times.unwrap_or_default()
    }

    /// How long the token says it lives. Nothing is believed on its word: this says only when to ask for the
    /// next one. The clock of this machine has no part in it.
    fn life(&self) -> Duration {
        let seconds = self.exp.zip(self.iat).and_then(|(exp, iat)| exp.checked_sub(iat));
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(SHORT_LIFE, Duration::from_secs).min(LONGEST_LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_token() {
        let times = |claims: &str| Times::of(&format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims)));
        let life = |claims: &str| times(claims).life();
        assert_eq!(life(r#"{"iat":1000,"exp":1300,"x":{}}"#), Duration::from_secs(300));
        assert_eq!(life(r#"{"iat":1300,"exp":1000}"#), SHORT_LIFE);
        assert_eq!(life(r#"{"exp":1000}"#), SHORT_LIFE);
        assert_eq!(life(r#"{"iat":-9223372036854775808,"exp":9223372036854775807}"#), SHORT_LIFE);
        assert_eq!(life(r#"{"iat":0,"exp":9223372036854775807}"#), LONGEST_LIFE);
        for odd in ["", "a", "a.%.b", "a.e30.b"] {
            assert_eq!((Times::of(odd).life(), Times::of(odd).iat), (SHORT_LIFE, None));
        }
        assert_eq!(times(r#"{"iat":1300}"#).iat, Some(1300));
    }
}
