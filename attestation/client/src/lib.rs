//! Gets secrets from a key broker: proves what this guest is, and keeps the proof while it lasts.
//!
//! [`Client::resource`] is all that most callers need. The first call attests: a challenge, evidence over
//! a fresh key and the challenge, a token. The token and the key serve every later call until most of the
//! token's life is over; then the next call attests anew. Callers that come at once share one
//! conversation. Trouble on the way (no connection, a broker that restarts or is busy) is tried again,
//! with pauses that grow, until a deadline; a refusal is told at once, in the broker's words and with the
//! number under which its audit log has the whole story.
//!
//! It distrusts the network and everything that comes from it: what is read is bounded before it is
//! parsed, a resource is decrypted by a key that never leaves this process, and TLS trusts the given
//! certificates only. It does not trust this machine's clock, which may be the host's: the life of a token
//! is measured from the moment at which it came. It never logs a secret, a token or a key, and never
//! follows a redirect.
//!
//! [`seal`] has the cryptography of sealed secrets, for both ends.

#![forbid(unsafe_code)]

mod answer;
mod error;
mod handshake;
mod http;
mod retry;
pub mod seal;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nacre_protocol::kbs::{InitData, ResourceUri};
use serde_json::Value;
use zeroize::Zeroizing;

pub use error::{ClientError, Refusal};
pub use session::Token;

use http::Http;
use retry::Patience;
use session::Sessions;

/// Whoever can prove what this machine is.
#[async_trait]
pub trait EvidenceSource: Send + Sync {
    /// Kind of hardware, as the protocol has it: `snp`, `tdx`.
    fn tee(&self) -> &str;

    /// Evidence that carries `report_data`, in the protocol's form of that kind of hardware.
    ///
    /// # Errors
    /// Words that say what failed and what to do.
    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, String>;
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// A connection, TLS included.
    pub connect: Duration,
    /// One request and its answer.
    pub request: Duration,
    /// One call of [`Client::resource`] or [`Client::token`], attempts and pauses included.
    pub deadline: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
        }
    }
}

/// What a client needs to know.
pub struct Options {
    /// Where the broker is, without a path: `https://broker.example:8080`.
    pub url: String,
    /// Certificates, in PEM, of which TLS trusts any: authorities, or the broker's own. Needed for
    /// `https`. By `http` nobody can read the secrets, but whoever sits between can answer with others.
    pub ca_pem: Option<String>,
    /// The initdata that this guest is bound to.
    pub init_data: Option<InitData>,
    /// Who proves what this guest is.
    pub evidence: Arc<dyn EvidenceSource>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Told the broker's time with each new token: `iat`, seconds since 1970 (UTC). It is as good as the way
    /// on which the token came: by `http` anybody may have made it up.
    pub told_time: Option<fn(i64)>,
}

/// A broker, as this guest sees it. Share it: there is one session for all.
pub struct Client {
    http: Http,
    own: Sessions,
    handed_out: Sessions,
    deadline: Duration,
}

impl Client {
    /// Reads the options. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Config`] if the address or the certificates cannot be used.
    pub fn new(options: Options) -> Result<Client, ClientError> {
        let Options { url, ca_pem, init_data, evidence, timeouts, told_time } = options;
        let http = Http::new(&url, ca_pem.as_deref(), timeouts)?;
        let own = Sessions::new(Arc::clone(&evidence), init_data.clone(), told_time);
        let handed_out = Sessions::new(evidence, init_data, told_time);
        Ok(Client { http, own, handed_out, deadline: timeouts.deadline })
    }

    /// The broker's address, as it was given.
    #[must_use]
    pub fn url(&self) -> &str {
        self.http.url()
    }

    /// Fetches a resource.
    ///
    /// # Errors
    /// [`ClientError`]: a refusal at once, trouble of the network after the deadline.
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let mut patience = Patience::new(self.deadline);
        let mut attested_anew = false;
        loop {
            let session = self.own.current(&self.http, &mut patience).await?;
            match self.http.resource(uri, &session).await {
                Ok(resource) => return Ok(resource),
                Err(ClientError::Session(refusal)) if attested_anew => {
                    return Err(ClientError::Denied { uri: uri.to_string(), refusal });
                }
                Err(ClientError::Session(refusal)) => {
                    // The broker has forgotten the session, or its own keys.
                    tracing::info!("the key broker says {refusal}: attesting anew");
                    self.own.forget(&session).await;
                    attested_anew = true;
                }
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// An attestation token with a key of its own, to be handed out: this client's own key stays here.
    ///
    /// # Errors
    /// As [`Client::resource`].
    pub async fn token(&self) -> Result<Token, ClientError> {
        let mut patience = Patience::new(self.deadline);
        self.handed_out.current(&self.http, &mut patience).await.map(Token::of)
    }
}
