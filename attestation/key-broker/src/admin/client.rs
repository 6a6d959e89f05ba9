use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nacre_jose::jws::{self, Header};
use nacre_jose::{Ed25519Key, JoseError};
use nacre_protocol::kbs::{ErrorInformation, PREFIX, ResourceUri};
use nacre_verifier::ReferenceValues;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{AuditPage, PolicyText, References, RegistrationAnswer, ResourceInfo};
use crate::audit::Entry;
use crate::grants::Grant;

/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// How long a request's token is valid, in seconds.
const TOKEN_SECONDS: i64 = 60;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why an administrator's request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The key is none.
    #[error("the administrator's key: {0}; `nacre kbs init` makes one")]
    Key(#[from] JoseError),
    /// The certificate is none.
    #[error("the broker's CA certificate: {0}")]
    Certificate(reqwest::Error),
    /// The broker cannot be reached, or is another.
    #[error("the broker does not answer: {0}")]
    Connection(String),
    /// The broker says no.
    #[error("the broker refuses ({status}): {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why.
        detail: String,
    },
    /// The answer is none of a broker.
    #[error("the broker's answer is not understood: {0}")]
    Answer(String),
}

/// An administrator's connection to a broker.
pub struct Client {
    url: String,
    key: Ed25519Key,
    http: reqwest::Client,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Client {
    /// `ca` is the certificate (PEM) that an https broker's own is checked against, and no other;
    /// `key` the administrator's private key (PEM).
    ///
    /// # Errors
    /// If certificate or key are none.
    pub fn new(url: &str, ca: Option<&str>, key: &str) -> Result<Client, AdminError> {
        crate::use_ring();
        let key = Ed25519Key::from_pem(key)?;
        let authorities = ca.map(|pem| reqwest::Certificate::from_pem(pem.as_bytes())).transpose();
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only(authorities.map_err(AdminError::Certificate)?)
            .build()
            .map_err(AdminError::Certificate)?;
        Ok(Client { url: url.trim_end_matches('/').to_owned(), key, http })
    }

    /// Sets a resource.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_resource(&self, uri: &ResourceUri, content: &[u8]) -> Result<(), AdminError> {
        self.send(Method::POST, &uri.url_path(), Some(content.to_vec())).await.map(drop)
    }

    /// Reads a resource. The audit log has it.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, AdminError> {
        let path = format!("{PREFIX}/admin/resource/{}", uri.path());
        self.send(Method::GET, &path, None).await.map(Zeroizing::new)
    }

    /// Deletes a resource.
    ///
    /// # Errors
    /// [`AdminError`]; also if there was none.
    pub async fn delete_resource(&self, uri: &ResourceUri) -> Result<(), AdminError> {
        self.send(Method::DELETE, &uri.url_path(), None).await.map(drop)
    }

    /// Lists the resources.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn resources(&self) -> Result<Vec<ResourceInfo>, AdminError> {
        self.get("/admin/resources").await
    }

    /// Sets the resource policy: Rego, package `policy`, rule `allow`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn set_policy(&self, rego: &str) -> Result<(), AdminError> {
        let body = json!({"policy": URL_SAFE_NO_PAD.encode(rego)});
        self.post("/resource-policy", &body).await.map(drop)
    }

    /// The resource policy, if one is set.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn policy(&self) -> Result<Option<String>, AdminError> {
        let answer: Option<PolicyText> = found(self.get("/resource-policy").await)?;
        let Some(PolicyText { policy }) = answer else { return Ok(None) };
        let text =
            URL_SAFE_NO_PAD.decode(policy).ok().and_then(|text| String::from_utf8(text).ok());
        text.map(Some).ok_or_else(|| AdminError::Answer("a policy that is no text".to_owned()))
    }

    /// Deletes the resource policy: grants decide again. Whether there was one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn delete_policy(&self) -> Result<bool, AdminError> {
        let deleted = self.delete("/resource-policy").await;
        found(deleted).map(|deleted| deleted.is_some())
    }

    /// Registers a document of reference values; one of the same identifier is replaced.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn add_reference_values(
        &self,
        document: &ReferenceValues,
    ) -> Result<RegistrationAnswer, AdminError> {
        self.register(&json!({"reference-values": document})).await
    }

    /// Registers values in Trustee's form: `{"version", "type": "sample", "payload"}`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn add_trustee_reference_values(
        &self,
        message: &Value,
    ) -> Result<RegistrationAnswer, AdminError> {
        self.register(message).await
    }

    async fn register(&self, message: &Value) -> Result<RegistrationAnswer, AdminError> {
        parse(&self.post("/reference-value", message).await?)
    }

    /// All reference values.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn reference_values(&self) -> Result<References, AdminError> {
        self.get("/reference-value").await
    }

    /// Deletes a document of reference values.
    ///
    /// # Errors
    /// [`AdminError`]; also if there was none.
    pub async fn delete_reference_values(&self, id: &str) -> Result<(), AdminError> {
        self.delete(&format!("/reference-value/{}", segment(id))).await
    }

    /// Adds a grant; one of the same identifier is replaced.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn add_grant(&self, grant: &Grant) -> Result<(), AdminError> {
        let grant = serde_json::to_value(grant);
        let grant = grant.map_err(|error| AdminError::Answer(error.to_string()))?;
        self.post("/admin/grant", &grant).await.map(drop)
    }

    /// Lists the grants.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn grants(&self) -> Result<Vec<Grant>, AdminError> {
        self.get("/admin/grant").await
    }

    /// Deletes a grant.
    ///
    /// # Errors
    /// [`AdminError`]; also if there was none.
    pub async fn delete_grant(&self, id: &str) -> Result<(), AdminError> {
        self.delete(&format!("/admin/grant/{}", segment(id))).await
    }

    /// Entries of the audit log after number `after`, at most `limit` (1,000 is the most).
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn audit(&self, after: u64, limit: usize) -> Result<Vec<Entry>, AdminError> {
        let page: AuditPage =
            self.get(&format!("/admin/audit?after={after}&limit={limit}")).await?;
        Ok(page.entries)
    }

    /// What the audit log has of a request: the identifier stands in the error that the guest got.
    ///
    /// # Errors
    /// [`AdminError`]; also if there is nothing.
    pub async fn explain(&self, request: &str) -> Result<Vec<Entry>, AdminError> {
        let page: AuditPage = self.get(&format!("/admin/explain/{}", segment(request))).await?;
        Ok(page.entries)
    }

    /// The keys that tokens are checked with.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn jwks(&self) -> Result<Value, AdminError> {
        self.get("/jwks").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        parse(&self.send(Method::GET, &format!("{PREFIX}{path}"), None).await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Vec<u8>, AdminError> {
        let body = body.to_string().into_bytes();
        self.send(Method::POST, &format!("{PREFIX}{path}"), Some(body)).await
    }

    async fn delete(&self, path: &str) -> Result<(), AdminError> {
        self.send(Method::DELETE, &format!("{PREFIX}{path}"), None).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, AdminError> {
        let mut request =
            self.http.request(method, format!("{}{path}", self.url)).bearer_auth(self.token()?);
        if let Some(body) = body {
            request = request.body(body);
        }
        let mut response = request.send().await.map_err(|error| connection(&error))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| connection(&error))? {
            if bytes.len() + chunk.len() > ANSWER_LIMIT {
                return Err(AdminError::Answer(format!("it has more than {ANSWER_LIMIT} bytes")));
            }
            bytes.extend(chunk);
        }
        let status = response.status();
        if status.is_success() {
            return Ok(bytes);
        }
        let detail = serde_json::from_slice::<ErrorInformation>(&bytes).map_or_else(
            |_| String::from_utf8_lossy(&bytes).chars().take(500).collect(),
            |information| information.detail,
        );
        Err(AdminError::Refused { status: status.as_u16(), detail })
    }

    fn token(&self) -> Result<String, JoseError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = json!({"iat": now, "exp": now + TOKEN_SECONDS, "role": "admin"});
        let header = Header::from_iter([("typ".to_owned(), "JWT".into())]);
        jws::sign_eddsa(header, claims.to_string().as_bytes(), &self.key)
    }
}

/// Identifiers have letters, digits, `.`, `_` and `-`; anything else would be another path.
fn segment(id: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    id.chars().map(|c| if plain(&c) { c } else { '_' }).collect()
}

fn found<T>(answer: Result<T, AdminError>) -> Result<Option<T>, AdminError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(AdminError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(bytes).map_err(|error| AdminError::Answer(error.to_string()))
}

/// The error with its causes: the outermost alone says little.
fn connection(error: &reqwest::Error) -> AdminError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    AdminError::Connection(text)
}
