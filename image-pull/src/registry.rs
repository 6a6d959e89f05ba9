//! Speaks the OCI distribution protocol (distribution-spec 1.1, "Pull") to a registry that may lie,
//! stall or never stop sending.
//!
//! `oci-client` is not used here: it reads manifests, tokens and error pages without a bound, panics
//! where the system has no CA bundle, drops the reason of a failed authentication, cannot resume and
//! hashes a blob up to twice. The tests push with it, so another implementation checks this one.

mod authorize;
pub(crate) mod challenge;
mod client;
pub(crate) mod endpoint;
pub(crate) mod retry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nacre_trust::{Algorithm, Digest, DigestMatch, Untrusted, Verified};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use self::authorize::Keychain;
use self::client::{Clients, innermost};
use self::endpoint::Endpoint;
use self::retry::{Failure, MAX_RETRY_AFTER, Patience};
use crate::error::Presented;
use crate::reference::{Reference, Target};
use crate::{Limits, PullError, Registries, Resources};

/// Manifests and indexes that are understood.
pub(crate) const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
const MAX_REDIRECTS: usize = 5;
/// How long a mirror is left alone that did not answer.
const AVOID: Duration = Duration::from_secs(60);
/// Longest error page that is read, in bytes.
const MAX_ERROR_PAGE: usize = 16 << 10;

/// A manifest or index that is what its digest names.
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) document: Verified<Vec<u8>, DigestMatch>,
    /// `Content-Type` without parameters.
    pub(crate) content_type: Option<String>,
}

/// All registries this guest pulls from.
pub(crate) struct Registry {
    limits: Limits,
    registries: Registries,
    clients: Clients,
    keychain: Keychain,
    /// Mirrors that cost time, and since when.
    avoided: Mutex<HashMap<String, Instant>>,
}

/// An answer, and how it came.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Credentials were presented for it.
    pub(crate) private: bool,
    /// It is from the host that was asked, not from one that this host redirected to.
    is_origin: bool,
}

impl Registry {
    pub(crate) fn new(
        limits: Limits,
        registries: Registries,
        resources: Arc<dyn Resources>,
    ) -> Self {
        let (credentials, uris) =
            (registries.credentials.clone(), registries.credential_uris.clone());
        Self {
            clients: Clients::new(&limits, &registries),
            keychain: Keychain::new(credentials, uris, resources),
            avoided: Mutex::default(),
            limits,
            registries,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Who may be asked, in order. The registry itself is the last.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let mut endpoints = Endpoint::all(&self.registries, reference);
        let avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |host: &String| avoided.get(host).is_none_or(|since| since.elapsed() > AVOID);
        endpoints.retain(|endpoint| !endpoint.is_mirror || is_good(&endpoint.host));
        endpoints
    }

    /// Why a mirror has no answer is logged, and the next is asked; the registry's own reason counts. A
    /// mirror that cost time is left alone for a while.
    pub(crate) fn pass_over(&self, endpoint: &Endpoint, error: PullError) -> Result<(), PullError> {
        if !endpoint.is_mirror {
            return Err(error);
        }
        tracing::warn!(mirror = endpoint.host, %error, "a mirror is passed over");
        if matches!(
            error,
            PullError::Stalled { .. }
                | PullError::Unreachable { .. }
                | PullError::NameNotResolved { .. }
        ) {
            let mut avoided = self.avoided.lock().unwrap_or_else(PoisonError::into_inner);
            avoided.insert(endpoint.host.clone(), Instant::now());
        }
        Ok(())
    }

    /// The registry itself.
    pub(crate) fn origin(&self, reference: &Reference) -> Endpoint {
        Endpoint::origin(&self.registries, reference)
    }

    /// Fetches a manifest or index and verifies it: against the digest that names it, or, for a tag,
    /// against the one that is claimed, if any is. A mirror that does not have it or lies is left.
    pub(crate) async fn fetch_manifest(
        &self,
        reference: &Reference,
        target: Target<'_>,
        what: &str,
    ) -> Result<Fetched, PullError> {
        for endpoint in self.endpoints(reference) {
            match self.manifest_of(&endpoint, target, what).await {
                Err(error) => self.pass_over(&endpoint, error)?,
                fetched => return fetched,
            }
        }
        Err(PullError::Abandoned)
    }

    async fn manifest_of(
        &self,
        endpoint: &Endpoint,
        target: Target<'_>,
        what: &str,
    ) -> Result<Fetched, PullError> {
        let (resource, limit) = (format!("manifests/{target}"), self.limits.manifest_bytes);
        let (body, headers) =
            self.document(endpoint, &resource, what, ACCEPT_MANIFEST, limit).await?;
        let claimed = || text(&headers, "docker-content-digest")?.parse().ok();
        let body = Untrusted::new(body);
        let digest = match target {
            Target::Digest(digest) => digest,
            Target::Tag(_) => claimed().unwrap_or_else(|| body.digest(Algorithm::Sha256)),
        };
        let document = body.verify_digest(&digest).map_err(|e| PullError::digest(what, e))?;
        Ok(Fetched { digest, document, content_type: content_type(&headers) })
    }

    /// A whole answer of one endpoint in memory, after as many attempts as make sense.
    pub(crate) async fn document(
        &self,
        endpoint: &Endpoint,
        resource: &str,
        what: &str,
        accept: &'static str,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), PullError> {
        let request = Request { endpoint, resource, what, accept: Some(accept), offset: 0 };
        let mut patience = Patience::with(endpoint);
        loop {
            let response = self.get(&request, &mut patience).await?.response;
            let headers = response.headers().clone();
            match self.read(response, &endpoint.host, what, limit).await {
                Ok(body) => return Ok((body, headers)),
                Err(failure) => patience.wait(failure).await?,
            }
        }
    }

    /// A successful answer, after as many attempts as make sense.
    pub(crate) async fn get(
        &self,
        request: &Request<'_>,
        patience: &mut Patience,
    ) -> Result<Answer, PullError> {
        loop {
            match self.authorized(request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => patience.wait(failure).await?,
            }
        }
    }

    /// Something that is no registry's, without credentials. None if it is not there.
    pub(crate) async fn page(&self, url: &str, limit: u64) -> Result<Option<Vec<u8>>, PullError> {
        let what = "signature store";
        let unusable = |problem: &str| PullError::Registry {
            registry: url.chars().filter(|c| !c.is_control()).take(200).collect(),
            what: what.into(),
            problem: problem.into(),
        };
        let url = Url::parse(url).map_err(|_| unusable("this is not a URL"))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let host = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
        let plain = match url.scheme() {
            "https" => false,
            "http" if self.registries.danger_plain_http.contains(&host) => true,
            _ => return Err(unusable("only https is read")),
        };
        let endpoint = Endpoint { host, path: String::new(), plain, is_mirror: false };
        let outgoing = Outgoing { url, accept: None, offset: 0, authorization: None };
        let mut patience = Patience::new();
        loop {
            let page = async {
                let (response, _) = self.follow(&endpoint, what, &outgoing).await?;
                match response.status() {
                    StatusCode::OK => {
                        self.read(response, &endpoint.host, what, limit).await.map(Some)
                    }
                    StatusCode::NOT_FOUND => Ok(None),
                    status => Err(Failure {
                        error: unusable(&format!("status {status}")),
                        retry: is_temporary(status).then(|| retry_after(response.headers())),
                    }),
                }
            };
            match page.await {
                Ok(page) => return Ok(page),
                Err(failure) => patience.wait(failure).await?,
            }
        }
    }

    /// Sends a request and follows where it leads: within its scheme, and without its authorization as
    /// soon as the host is another. Whether the host that was asked has answered itself.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        what: &str,
        outgoing: &Outgoing<'_>,
    ) -> Result<(Response, bool), Failure> {
        let problem = |problem: String| PullError::Registry {
            registry: endpoint.host.clone(),
            what: what.to_owned(),
            problem,
        };
        let client = self.clients.get(endpoint.plain)?;
        let mut url = outgoing.url.clone();
        let mut is_origin = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut get = client.get(url.clone());
            if let Some(accept) = outgoing.accept {
                get = get.header(header::ACCEPT, accept);
            }
            if outgoing.offset > 0 {
                get = get.header(header::RANGE, format!("bytes={}-", outgoing.offset));
            }
            if let Some(authorization) = outgoing.authorization.filter(|_| is_origin) {
                get = get.header(header::AUTHORIZATION, authorization);
            }
            let response = self.bounded(&endpoint.host, what, get.send()).await?;
            if !response.status().is_redirection() {
                return Ok((response, is_origin));
            }
            let next = text(response.headers(), header::LOCATION.as_str())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| problem(format!("status {} to nowhere", response.status())))?;
            match (url.scheme(), next.scheme()) {
                ("https", "https") | ("http", "http") => {}
                ("https", _) => {
                    return Err(
                        problem("redirected from https to an insecure address".into()).into()
                    );
                }
                _ => {
                    let words =
                        "a registry over plain HTTP redirected to https; name the https one";
                    return Err(problem(words.into()).into());
                }
            }
            // Once elsewhere, always elsewhere: a way back would be somebody else's idea.
            is_origin &= url.origin() == next.origin();
            url = next;
        }
        Err(problem(format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    /// Waits for an answer's headers, not for ever.
    async fn bounded(
        &self,
        registry: &str,
        what: &str,
        answer: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, Failure> {
        let begin = Instant::now();
        match tokio::time::timeout(self.limits.connect + self.limits.stall, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(self.clients.transport(registry, what, &e, begin)),
            Err(_) => Err(self.stalled(registry, what)),
        }
    }

    /// Tells success, absence, refusal and trouble apart.
    async fn successful(
        &self,
        request: &Request<'_>,
        answer: Answer,
        presented: Presented,
    ) -> Result<Answer, Failure> {
        let status = answer.response.status();
        match status {
            StatusCode::OK => Ok(answer),
            StatusCode::PARTIAL_CONTENT if request.offset > 0 => Ok(answer),
            StatusCode::NOT_FOUND => Err(PullError::NotFound {
                registry: request.endpoint.host.clone(),
                what: request.what.to_owned(),
            }
            .into()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(request.unauthorized(status, presented).into())
            }
            _ => {
                let retry = is_temporary(status).then(|| retry_after(answer.response.headers()));
                // An error page that repeats a password would carry it into events that the host reads.
                let said = match self.keychain.has_told(request.endpoint) {
                    true => String::new(),
                    false => error_page(answer.response).await,
                };
                Err(Failure { error: request.problem(format!("status {status}{said}")), retry })
            }
        }
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
            Err(_) => Err(self.stalled(registry, what)),
        }
    }

    fn stalled(&self, registry: &str, what: &str) -> Failure {
        let (registry, what) = (registry.to_owned(), what.to_owned());
        let seconds = self.limits.stall.as_secs();
        let error = PullError::Stalled { registry, what, seconds };
        Failure { error, retry: Some(Duration::ZERO) }
    }
}

/// One `GET` beneath a repository.
pub(crate) struct Request<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// Below `/v2/<path>/`.
    pub(crate) resource: &'a str,
    /// For people.
    pub(crate) what: &'a str,
    pub(crate) accept: Option<&'static str>,
    /// First byte that is wanted.
    pub(crate) offset: u64,
}

impl Request<'_> {
    fn url(&self) -> Result<Url, PullError> {
        let Endpoint { host, path, .. } = self.endpoint;
        let url = format!("{}://{host}/v2/{path}/{}", self.endpoint.scheme(), self.resource);
        Url::parse(&url).map_err(|e| self.problem(format!("its address is not valid: {e}")))
    }

    pub(crate) fn problem(&self, problem: String) -> PullError {
        PullError::Registry {
            registry: self.endpoint.host.clone(),
            what: self.what.to_owned(),
            problem,
        }
    }

    fn unauthorized(&self, status: StatusCode, presented: Presented) -> PullError {
        PullError::Unauthorized {
            registry: self.endpoint.host.clone(),
            what: self.what.to_owned(),
            status: status.as_u16(),
            presented,
        }
    }
}

/// What goes to the first host.
struct Outgoing<'a> {
    url: Url,
    accept: Option<&'static str>,
    offset: u64,
    authorization: Option<&'a HeaderValue>,
}

/// The beginning of what a registry says to people, made safe to print.
async fn error_page(mut response: Response) -> String {
    let mut page = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            page.extend_from_slice(&chunk);
            if page.len() > MAX_ERROR_PAGE {
                break;
            }
        }
    };
    // However much came until then.
    let _ = tokio::time::timeout(Duration::from_secs(1), read).await;
    let page = String::from_utf8_lossy(&page);
    let said: String = page.chars().filter(|c| !c.is_control()).take(200).collect();
    if said.is_empty() { said } else { format!(": {said}") }
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
