//! Secrets of the pod: where they come from, and the ways in which containers get them.
//!
//! They come from the owner's key broker, which the pod's initdata names, to a guest that has proved what
//! it is. Containers get them as environment variables and files that the owner wrote as sealed secrets,
//! as files that the initdata lists, and from the endpoint on 127.0.0.1:8006. The host carries sealed
//! text and encrypted answers only; what it says about a container has been judged by the policy before
//! anything is unsealed for it. No secret is ever in an error or a log.

mod caller;
mod config;
mod endpoint;
mod files;
mod unseal;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nacre_attester::Attester;
use nacre_kbs_client::seal::{self, SealError};
use nacre_kbs_client::{Client, ClientError, EvidenceSource, Options, Timeouts, Token};
use nacre_policy::{Denied, Gate, GuestApi, GuestApiRequest};
use nacre_protocol::initdata::Initdata;
use nacre_protocol::kbs::{INIT_DATA_TOML, InitData, ResourceUri};
use nacre_protocol::sealed::{SealedError, Secret, Signed};
use serde_json::Value;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::clock;

pub(crate) use caller::MODULE as ASKER_MODULE;
pub(crate) use endpoint::serve;
pub(crate) use files::{FilesError, Tree, credentials};
pub(crate) use unseal::UnsealedEnv;

use config::{BrokerConfig, Credential, SecretsConfig};

/// Certificates in the guest image: they speak for a broker whose own the initdata does not name.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What a broker without certificate needs.
const CONFIGURE: &str = "put aa.toml and cdh.toml with the broker's address into the pod's initdata \
                         (`nacre initdata create --kbs-url`)";

/// Why there is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretsError {
    /// Nobody to ask.
    #[error("no key broker is configured: {CONFIGURE}")]
    NoBroker,
    /// Nothing to prove with.
    #[error(
        "this guest runs without a TEE and cannot prove to the key broker what it is: run the pod on a \
         node whose runtime has tee in [vm] of its configuration"
    )]
    NoTee,
    /// The broker, or the way to it.
    #[error(transparent)]
    Broker(#[from] ClientError),
    /// A sealed secret that cannot be unsealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<SealedError> for SecretsError {
    fn from(error: SealedError) -> Self {
        Self::Seal(error.into())
    }
}

/// The pod's way to its secrets.
pub(crate) struct Secrets {
    broker: Option<Broker>,
    tee: Option<Arc<dyn Attester>>,
    gate: Arc<Gate>,
    credentials: Vec<Credential>,
    /// Public keys that sealed secrets were checked with.
    verification_keys: Mutex<HashMap<ResourceUri, Arc<Zeroizing<Vec<u8>>>>>,
}

impl Secrets {
    /// Reads what the initdata, to which the guest is bound, says about a key broker. Nothing is sent yet.
    pub(crate) fn new(
        initdata: Option<&Initdata>,
        tee: Option<Arc<dyn Attester>>,
        gate: Arc<Gate>,
    ) -> anyhow::Result<Self> {
        let SecretsConfig { broker, credentials } = SecretsConfig::read(initdata)?;
        let broker = broker.zip(initdata).map(|(config, initdata)| {
            let init_data =
                InitData { format: INIT_DATA_TOML.to_owned(), body: initdata.text().to_owned() };
            Broker::new(config, init_data, tee.clone())
        });
        Ok(Self { broker, tee, gate, credentials, verification_keys: Mutex::default() })
    }

    /// Makes what takes a while, before the first container needs it.
    pub(crate) async fn warm_up(&self) {
        // Whoever needs it is told what is wrong with it.
        let _ = self.client().await;
    }

    /// Fetches a resource from the key broker. The agent's own needs (credentials of registries, keys of
    /// layers and volumes) come this way, too.
    pub(crate) async fn resource(
        &self,
        uri: &ResourceUri,
    ) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        Ok(self.client().await?.resource(uri).await?)
    }

    /// Turns a sealed secret into what it stands for.
    pub(crate) async fn unseal(&self, text: &str) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        let signed = Signed::parse(text)?;
        match self.verify(&signed).await? {
            Secret::Vault(name) => self.resource(&name).await,
            Secret::Envelope(envelope) => {
                let key = self.resource(&envelope.key).await?;
                Ok(seal::open(&envelope, &key)?)
            }
        }
    }

    /// Checks a signature. A key that was fetched before and does not fit may have been replaced since.
    async fn verify(&self, signed: &Signed<'_>) -> Result<Secret, SecretsError> {
        let cached = self.verification_keys().get(signed.key()).cloned();
        if let Some(key) = cached
            && let Ok(secret) = seal::verify(signed, &key)
        {
            return Ok(secret);
        }
        let key = Arc::new(self.resource(signed.key()).await?);
        let secret = seal::verify(signed, &key)?;
        self.verification_keys().insert(signed.key().clone(), key);
        Ok(secret)
    }

    /// A token with its key, for a container that may have both.
    async fn token(&self) -> Result<Token, SecretsError> {
        Ok(self.client().await?.token().await?)
    }

    /// Asks the policy what a container may have.
    fn judge(&self, container_id: &str, api: GuestApi) -> Result<(), Box<Denied<GuestApiRequest>>> {
        let request = GuestApiRequest { container_id: container_id.to_owned(), api };
        let allowed = self.gate.judge(request)?;
        // It changes nothing of the pod: whatever comes of it, the policy has nothing to undo.
        let _ = allowed.witness().settle(Ok::<_, std::convert::Infallible>(()));
        Ok(())
    }

    async fn client(&self) -> Result<&Client, SecretsError> {
        let broker = self.broker.as_ref().ok_or(SecretsError::NoBroker)?;
        if self.tee.is_none() {
            return Err(SecretsError::NoTee);
        }
        broker.client().await
    }

    fn verification_keys(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<ResourceUri, Arc<Zeroizing<Vec<u8>>>>> {
        self.verification_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest reason, in bytes, that is told in the pod's events: names of resources can be long.
const LONGEST_REASON: usize = 800;

/// A reason that leaves room for where it comes from.
fn short(why: &dyn std::fmt::Display) -> String {
    let why = why.to_string();
    if why.len() <= LONGEST_REASON {
        return why;
    }
    let end = (0..=LONGEST_REASON).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &why[..end])
}

/// How the policy names a resource.
fn name_for_policy(uri: &ResourceUri) -> String {
    match uri.plugin() {
        ResourceUri::RESOURCE => uri.path(),
        plugin => format!("{plugin}+{}", uri.path()),
    }
}

/// The key broker that the initdata names. Its client is made once, off the runtime's thread: that takes
/// longer than the rest of a boot.
struct Broker {
    config: BrokerConfig,
    init_data: InitData,
    tee: Option<Arc<dyn Attester>>,
    client: OnceCell<Result<Client, ClientError>>,
}

impl Broker {
    fn new(config: BrokerConfig, init_data: InitData, tee: Option<Arc<dyn Attester>>) -> Self {
        let url = &config.url;
        if config.is_secure() {
            tracing::info!(url, "the pod has a key broker");
        } else {
            tracing::warn!(url, "the key broker has no TLS: the host may answer in its place");
        }
        Self { config, init_data, tee, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&Client, SecretsError> {
        let make = async || {
            let (config, init_data) = (self.config.clone(), Some(self.init_data.clone()));
            let evidence = Arc::new(Evidence(self.tee.clone()));
            let make = move || {
                let ca_pem = config.certificates()?;
                let told_time = config.tells_time().then_some(clock::told_by_broker as fn(i64));
                let (url, timeouts) = (config.url, Timeouts::default());
                Client::new(Options { url, ca_pem, init_data, evidence, timeouts, told_time })
            };
            let made = tokio::task::spawn_blocking(make).await;
            made.unwrap_or_else(|error| Err(ClientError::Config(error.to_string())))
        };
        self.client.get_or_init(make).await.as_ref().map_err(|error| error.clone().into())
    }
}

impl BrokerConfig {
    fn is_secure(&self) -> bool {
        self.url.starts_with("https:")
    }

    /// Whether its word on the time counts: nobody can answer in its place who has not the key of the
    /// certificate in the initdata. A public authority's certificate would be checked against the very
    /// clock that is in doubt, and any of them could speak for the broker.
    fn tells_time(&self) -> bool {
        self.is_secure() && self.certificate.is_some()
    }

    /// What TLS is to trust: what the owner named, else the public authorities.
    fn certificates(&self) -> Result<Option<String>, ClientError> {
        if self.certificate.is_some() || !self.is_secure() || !Path::new(CERTIFICATES).exists() {
            return Ok(self.certificate.clone());
        }
        let read = std::fs::read_to_string(CERTIFICATES);
        read.map(Some).map_err(|error| ClientError::Config(format!("{CERTIFICATES}: {error}")))
    }
}

/// The guest's TEE, as the key broker's protocol wants it.
struct Evidence(Option<Arc<dyn Attester>>);

#[async_trait]
impl EvidenceSource for Evidence {
    fn tee(&self) -> &str {
        self.0.as_ref().map_or("", |attester| attester.tee().name())
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, String> {
        let attester = self.0.as_ref().ok_or_else(|| SecretsError::NoTee.to_string())?;
        let evidence = attester.evidence(report_data).await;
        evidence.map(|evidence| evidence.to_wire()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_broker() -> Secrets {
        Secrets::new(None, None, Gate::without_policy()).unwrap()
    }

    #[tokio::test]
    async fn without_a_broker_it_is_said_how_to_name_one() {
        let secrets = without_broker();
        let error = secrets.resource(&"kbs:///a/b/c".parse().unwrap()).await.unwrap_err();
        assert_eq!(error, SecretsError::NoBroker);
        assert!(error.to_string().contains("--kbs-url"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_signed_never_gets_as_far_as_the_broker() {
        let error = without_broker().unseal("sealed.fakejwsheader.e30.fakesignature").await;
        assert_eq!(error.unwrap_err(), SealedError::Unsigned.into());
    }

    #[test]
    fn only_a_broker_whose_certificate_the_owner_names_tells_the_time() {
        for (url, certificate, tells) in [
            ("https://kbs.example", Some("PEM"), true),
            ("https://kbs.example", None, false),
            ("http://kbs.example", Some("PEM"), false),
            ("http://kbs.example", None, false),
        ] {
            let certificate = certificate.map(str::to_owned);
            let config = BrokerConfig { url: url.to_owned(), certificate };
            assert_eq!(config.tells_time(), tells, "{config:?}");
        }
    }

    #[test]
    fn reasons_fit_an_event() {
        assert_eq!(short(&"why"), "why");
        assert!(short(&"ü".repeat(LONGEST_REASON)).len() <= LONGEST_REASON + 3);
    }

    #[test]
    fn plugins_are_told_apart_for_the_policy() {
        let name = |text: &str| name_for_policy(&text.parse().unwrap());
        assert_eq!(name("kbs:///a/b/c"), "a/b/c");
        assert_eq!(name("kbs+pkcs11:///a/b/c"), "pkcs11+a/b/c");
    }
}
