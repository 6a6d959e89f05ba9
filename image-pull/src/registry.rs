//! Speaks the OCI distribution protocol (distribution-spec 1.1, "Pull") to a registry that may lie,
//! stall or never stop sending.
//!
//! `oci-client` is not used here: it reads manifests, tokens and error pages without a bound, panics
//! where the system has no CA bundle, drops the reason of a failed authentication, cannot resume and
//! hashes a blob up to twice. The tests push with it, so another implementation checks this one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nacre_trust::{Digest, Untrusted};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};

use crate::authentication::{Challenge, read_token};
use crate::reference::{Reference, Target};
use crate::{Limits, PullError};

/// Where Debian and this project's guest image keep the CA certificates.
const DEFAULT_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";
const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
const ATTEMPTS: u32 = 3;
/// Wait before the second attempt; the next waits three times as long.
const BACK_OFF: Duration = Duration::from_millis(300);
/// Longest wait a registry can ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);
/// A name that took longer than this to fail is not tried again.
const QUICK: Duration = Duration::from_secs(2);
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN: u64 = 64 << 10;
const MAX_ERROR_PAGE: u64 = 16 << 10;

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) body: Untrusted<Vec<u8>>,
    /// `Content-Type` without parameters.
    pub(crate) content_type: Option<String>,
    /// `Docker-Content-Digest`, as a claim to be compared.
    pub(crate) claimed: Option<Digest>,
}

/// All registries this guest pulls from.
pub(crate) struct Registry {
    limits: Limits,
    plain_http: Vec<String>,
    ca_file: PathBuf,
    plain: OnceLock<Client>,
    tls: OnceLock<Client>,
    /// Anonymous bearer tokens by registry and path.
    tokens: Mutex<HashMap<(String, String), HeaderValue>>,
}

/// A failed attempt, and whether another one makes sense.
pub(crate) struct Failure {
    pub(crate) error: PullError,
    retry: Option<Duration>,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self { error, retry: None }
    }
}

impl Registry {
    pub(crate) fn new(
        limits: Limits,
        registries: crate::Registries,
        _resources: Arc<dyn crate::Resources>,
    ) -> Self {
        Self {
            limits,
            plain_http: registries.danger_plain_http,
            ca_file: registries.ca_file.unwrap_or_else(|| DEFAULT_CA_FILE.into()),
            plain: OnceLock::new(),
            tls: OnceLock::new(),
            tokens: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Fetches a manifest or index.
    pub(crate) async fn fetch_manifest(
        &self,
        reference: &Reference,
        target: Target<'_>,
        what: &str,
    ) -> Result<Fetched, PullError> {
        let resource = format!("manifests/{target}");
        let request = Request { reference, resource: &resource, what, offset: 0 };
        let mut attempt = 1;
        loop {
            let response = self.get(&request).await?;
            let headers = response.headers().clone();
            match self.read(response, reference.registry(), what, self.limits.manifest_bytes).await
            {
                Ok(body) => {
                    return Ok(Fetched {
                        body: Untrusted::new(body),
                        content_type: content_type(&headers),
                        claimed: text(&headers, "docker-content-digest")
                            .and_then(|digest| digest.parse().ok()),
                    });
                }
                Err(failure) => {
                    self.pause(&failure, &mut attempt).await.map_err(|()| failure.error)?;
                }
            }
        }
    }

    /// A successful answer, after as many attempts as make sense.
    pub(crate) async fn get(&self, request: &Request<'_>) -> Result<Response, PullError> {
        let mut attempt = 1;
        loop {
            match self.authenticated(request).await {
                Ok(response) => return Ok(response),
                Err(failure) => {
                    self.pause(&failure, &mut attempt).await.map_err(|()| failure.error)?;
                }
            }
        }
    }

    /// Waits before the next attempt; an error if there is to be none.
    pub(crate) async fn pause(&self, failure: &Failure, attempt: &mut u32) -> Result<(), ()> {
        let Some(wait) = failure.retry.filter(|_| *attempt < ATTEMPTS) else {
            return Err(());
        };
        let wait = wait.max(BACK_OFF * 3_u32.pow(*attempt - 1));
        tracing::info!(error = %failure.error, attempt, "registry request failed, trying again");
        tokio::time::sleep(wait).await;
        *attempt += 1;
        Ok(())
    }

    /// One attempt, with a token if the registry asks for one.
    async fn authenticated(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let key = (request.reference.registry().to_owned(), request.reference.path().to_owned());
        let token = self.tokens.lock().expect("no panic under lock").get(&key).cloned();
        let response = self.send(request, token.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.successful(request, response).await;
        }
        let Some(challenge) = Challenge::bearer(response.headers()) else {
            return Err(request.unauthorized(response.status()).into());
        };
        // A token that was cached may have expired: one new one, then the answer stands.
        let token = self.token(request, &challenge).await?;
        self.tokens.lock().expect("no panic under lock").insert(key, token.clone());
        let response = self.send(request, Some(token)).await?;
        self.successful(request, response).await
    }

    /// Gets an anonymous token from where the registry says.
    async fn token(
        &self,
        request: &Request<'_>,
        challenge: &Challenge,
    ) -> Result<HeaderValue, Failure> {
        let registry = request.reference.registry();
        let problem = |problem: String| request.problem(problem);
        let url = challenge
            .url(request.reference.path())
            .ok_or_else(|| problem("its authentication challenge has no valid realm".into()))?;
        let client = match url.scheme() {
            "https" => self.tls_client()?,
            "http" if self.is_plain(registry) => self.plain_client()?,
            _ => return Err(problem("its token service is not https".into()).into()),
        };
        let response = self.bounded(request, client.get(url).send()).await?;
        if !response.status().is_success() {
            return Err(match response.status() {
                status if is_temporary(status) => Failure {
                    error: problem(format!("its token service answers {status}")),
                    retry: Some(retry_after(response.headers())),
                },
                status => request.unauthorized(status).into(),
            });
        }
        let body = self.read(response, registry, "token", MAX_TOKEN).await?;
        read_token(&body).ok_or_else(|| problem("its token service gave no token".into()).into())
    }

    async fn send(
        &self,
        request: &Request<'_>,
        token: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        let registry = request.reference.registry();
        let (scheme, client) = if self.is_plain(registry) {
            ("http", self.plain_client()?)
        } else {
            ("https", self.tls_client()?)
        };
        let path = request.reference.path();
        let url = format!("{scheme}://{registry}/v2/{path}/{}", request.resource);
        let mut get = client.get(url);
        if request.resource.starts_with("manifests/") {
            get = get.header(header::ACCEPT, ACCEPT_MANIFEST);
        }
        if request.offset > 0 {
            get = get.header(header::RANGE, format!("bytes={}-", request.offset));
        }
        if let Some(token) = token {
            get = get.header(header::AUTHORIZATION, token);
        }
        self.bounded(request, get.send()).await
    }

    /// Waits for an answer's headers, not for ever.
    async fn bounded(
        &self,
        request: &Request<'_>,
        answer: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, Failure> {
        let begin = Instant::now();
        match tokio::time::timeout(self.limits.connect + self.limits.stall, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => {
                Err(self.transport(request.reference.registry(), request.what, &e, begin))
            }
            Err(_) => Err(self.stalled(request.reference.registry(), request.what).into()),
        }
    }

    /// Tells success, absence, refusal and trouble apart.
    async fn successful(
        &self,
        request: &Request<'_>,
        response: Response,
    ) -> Result<Response, Failure> {
        let status = response.status();
        match status {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if request.offset > 0 => Ok(response),
            StatusCode::NOT_FOUND => Err(PullError::NotFound {
                registry: request.reference.registry().to_owned(),
                what: request.what.to_owned(),
            }
            .into()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(request.unauthorized(status).into())
            }
            _ => {
                let retry = is_temporary(status).then(|| retry_after(response.headers()));
                let said = self.error_page(response).await;
                Err(Failure { error: request.problem(format!("status {status}{said}")), retry })
            }
        }
    }

    /// The beginning of what a registry says to people, made safe to print.
    async fn error_page(&self, mut response: Response) -> String {
        let mut page = Vec::new();
        while let Ok(Ok(Some(chunk))) =
            tokio::time::timeout(Duration::from_secs(1), response.chunk()).await
        {
            page.extend_from_slice(&chunk);
            if page.len() as u64 > MAX_ERROR_PAGE {
                break;
            }
        }
        let page = String::from_utf8_lossy(&page);
        let said: String = page.chars().filter(|c| !c.is_control()).take(200).collect();
        if said.is_empty() { said } else { format!(": {said}") }
    }

    /// A whole body in memory.
    async fn read(
        &self,
        mut response: Response,
        registry: &str,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let too_large = || PullError::Limit {
            what: format!("registry {registry}: {what}"),
            limit,
            unit: "bytes",
        };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large().into());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, registry, what).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large().into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
        registry: &str,
        what: &str,
    ) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.limits.stall, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(e)) => Err(Failure {
                error: PullError::Registry {
                    registry: registry.to_owned(),
                    what: what.to_owned(),
                    problem: format!("the connection was cut: {}", innermost(&e)),
                },
                retry: Some(Duration::ZERO),
            }),
            Err(_) => Err(self.stalled(registry, what).into()),
        }
    }

    fn stalled(&self, registry: &str, what: &str) -> PullError {
        PullError::Stalled {
            registry: registry.to_owned(),
            what: what.to_owned(),
            seconds: self.limits.stall.as_secs(),
        }
    }

    /// What kept an answer from coming.
    fn transport(
        &self,
        registry: &str,
        what: &str,
        error: &reqwest::Error,
        begin: Instant,
    ) -> Failure {
        let problem = innermost(error);
        let registry = registry.to_owned();
        let quick = (begin.elapsed() < QUICK).then_some(Duration::ZERO);
        if error.is_redirect() {
            return PullError::Registry { registry, what: what.to_owned(), problem }.into();
        }
        if is_name_error(error) {
            return Failure {
                error: PullError::NameNotResolved { registry, problem },
                retry: quick,
            };
        }
        if error.is_connect() || error.is_timeout() {
            let certificate = is_certificate_error(error);
            let problem = if certificate {
                format!(
                    "{problem}; the registry's certificate must be signed by an authority in {}",
                    self.ca_file.display()
                )
            } else if error.is_timeout() {
                format!("no answer within {} s", self.limits.connect.as_secs())
            } else {
                problem
            };
            let retry = quick.filter(|_| !certificate);
            return Failure { error: PullError::Unreachable { registry, problem }, retry };
        }
        Failure {
            error: PullError::Registry { registry, what: what.to_owned(), problem },
            retry: quick,
        }
    }

    fn is_plain(&self, registry: &str) -> bool {
        self.plain_http.iter().any(|plain| plain == registry)
    }

    /// Client of registries that were named for plain HTTP. It trusts no CA, so that no file is read
    /// and parsed for it.
    fn plain_client(&self) -> Result<&Client, PullError> {
        match self.plain.get() {
            Some(client) => Ok(client),
            None => {
                let client = self.client(rustls::RootCertStore::empty())?;
                Ok(self.plain.get_or_init(|| client))
            }
        }
    }

    fn tls_client(&self) -> Result<&Client, PullError> {
        match self.tls.get() {
            Some(client) => Ok(client),
            None => {
                let client = self.client(self.read_ca_file()?)?;
                Ok(self.tls.get_or_init(|| client))
            }
        }
    }

    fn read_ca_file(&self) -> Result<rustls::RootCertStore, PullError> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let shown = self.ca_file.display();
        let bad = |problem: String| PullError::Config { field: "ca_file", problem };
        let certificates = CertificateDer::pem_file_iter(&self.ca_file).map_err(|e| {
            bad(format!("{shown} cannot be read ({e}); https registries need CA certificates"))
        })?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates {
            let certificate =
                certificate.map_err(|e| bad(format!("{shown} is not a PEM file: {e}")))?;
            // Bundles hold a few old certificates that no parser likes; the others count.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            return Err(bad(format!("{shown} holds no usable certificate")));
        }
        Ok(roots)
    }

    fn client(&self, roots: rustls::RootCertStore) -> Result<Client, PullError> {
        let bad = |problem: String| PullError::Config { field: "ca_file", problem };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(self.limits.connect)
            // The environment of PID 1 comes from the kernel command line, and that from the host.
            .no_proxy()
            .redirect(redirect::Policy::custom(follow))
            .pool_idle_timeout(Duration::from_secs(15))
            .user_agent(concat!("nacre/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| bad(innermost(&e)))
    }
}

/// Content behind a redirect is checked by its digest, but a tag is not content: whoever answers for
/// it must be the registry.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(format!("more than {MAX_REDIRECTS} redirects"));
    }
    let from = attempt.previous().last().map(reqwest::Url::scheme);
    match (from, attempt.url().scheme()) {
        (Some("https"), "https") | (Some("http"), "http") => attempt.follow(),
        (Some("https"), _) => attempt.error("redirected from https to an insecure address"),
        _ => attempt.error("a registry over plain HTTP redirected to https; name the https one"),
    }
}

/// One `GET` beneath a repository.
pub(crate) struct Request<'a> {
    pub(crate) reference: &'a Reference,
    /// Below `/v2/<path>/`.
    pub(crate) resource: &'a str,
    /// For people.
    pub(crate) what: &'a str,
    /// First byte that is wanted.
    pub(crate) offset: u64,
}

impl Request<'_> {
    pub(crate) fn problem(&self, problem: String) -> PullError {
        PullError::Registry {
            registry: self.reference.registry().to_owned(),
            what: self.what.to_owned(),
            problem,
        }
    }

    fn unauthorized(&self, status: StatusCode) -> PullError {
        PullError::Unauthorized {
            registry: self.reference.registry().to_owned(),
            what: self.what.to_owned(),
            status: status.as_u16(),
        }
    }
}

fn is_temporary(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn retry_after(headers: &HeaderMap) -> Duration {
    text(headers, "retry-after")
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs)
        .min(MAX_RETRY_AFTER)
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = text(headers, header::CONTENT_TYPE.as_str())?;
    value.split(';').next().map(|kind| kind.trim().to_ascii_lowercase())
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The cause at the bottom: what lies above repeats URLs and library names.
fn innermost(error: &reqwest::Error) -> String {
    let text = chain(error).last().map_or_else(String::new, ToString::to_string);
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// An `io::Error` does not name what it wraps as its source, so both ways are followed.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || wrapped.is_some_and(|wrapped| is_certificate_error(wrapped))
        || error.source().is_some_and(is_certificate_error)
}

fn is_name_error(error: &reqwest::Error) -> bool {
    chain(error).any(|e| e.to_string().starts_with("dns error"))
}
