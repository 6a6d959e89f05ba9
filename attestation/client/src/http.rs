//! Requests and answers over HTTP. One connection pool for all; nothing is followed, nothing is unbounded.

use std::sync::Arc;
use std::time::Duration;

use nacre_jose::{Jwe, jwe};
use nacre_protocol::kbs::{
    ANSWER_LIMIT, ATTEST_PATH, ATTESTATION_LIMIT, AUTH_PATH, Attestation, Challenge,
    RESOURCE_LIMIT, Request, ResourceUri, SESSION_COOKIE, TokenResponse,
};
use reqwest::header::{self, HeaderMap};
use reqwest::{RequestBuilder, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::Timeouts;
use crate::answer::{self, Step};
use crate::error::{ClientError, one_line};
use crate::session::Session;

/// Largest encrypted resource, in bytes: base64, and what stands around it.
const JWE_LIMIT: usize = RESOURCE_LIMIT / 3 * 4 + 16 * 1024;
/// Longest value of a broker's cookie, in bytes.
const COOKIE_LIMIT: usize = 256;
/// Connections that nobody uses are kept so long: what a pod needs at its start comes close together.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that nobody uses.
const MOST_IDLE: usize = 2;

pub(crate) struct Http {
    client: reqwest::Client,
    url: String,
}

impl Http {
    pub(crate) fn new(
        url: &str,
        ca_pem: Option<&str>,
        timeouts: Timeouts,
    ) -> Result<Http, ClientError> {
        let bad = |problem: String| ClientError::Config(problem);
        // A password in it, which is refused below, is not for a console.
        let shown = one_line(url.rsplit('@').next().unwrap_or_default(), 200);
        let parsed =
            Url::parse(url).map_err(|e| bad(format!("{shown:?} is not an address: {e}")))?;
        let secure = match parsed.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(bad(format!("{shown:?} begins with neither https:// nor http://"))),
        };
        let plain = parsed.has_host()
            && parsed.username().is_empty()
            && parsed.password().is_none()
            && parsed.query().is_none()
            && parsed.fragment().is_none();
        if !plain {
            return Err(bad(format!("{shown:?} must be https://HOST:PORT and nothing else")));
        }
        let mut builder = reqwest::Client::builder()
            // The environment of a guest's first process comes from its host.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.request)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .user_agent(concat!("nacre/", env!("CARGO_PKG_VERSION")));
        // By http no certificate is ever looked at, but the builder wants a configuration.
        let roots = match (ca_pem, secure) {
            (Some(pem), _) => roots(pem).map_err(bad)?,
            (None, false) => rustls::RootCertStore::empty(),
            (None, true) => {
                return Err(bad(format!(
                    "{shown} needs the broker's certificate or its authority's"
                )));
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(tls);
        let client = builder.build().map_err(|e| bad(innermost(&e)))?;
        Ok(Http { client, url: url.trim_end_matches('/').to_owned() })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn protocol(&self, step: &'static str, problem: &str) -> ClientError {
        ClientError::Protocol { url: self.url.clone(), step, problem: one_line(problem, 200) }
    }

    /// Asks for a challenge. The cookie names the session that it belongs to.
    pub(crate) async fn auth(
        &self,
        request: &Request,
    ) -> Result<(Challenge, Option<String>), ClientError> {
        let body = self.json("auth", request)?;
        let (headers, body) =
            self.ask(Step::Auth, self.post(AUTH_PATH, body), ANSWER_LIMIT).await?;
        Ok((self.read("auth", &body)?, cookie(&headers)))
    }

    /// Answers a challenge.
    pub(crate) async fn attest(
        &self,
        attestation: &Attestation,
        cookie: Option<&str>,
    ) -> Result<TokenResponse, ClientError> {
        let body = self.json("attest", attestation)?;
        if body.len() > ATTESTATION_LIMIT {
            let problem =
                format!("the evidence and initdata have more than {ATTESTATION_LIMIT} bytes");
            return Err(ClientError::Evidence(problem));
        }
        let request = with_cookie(self.post(ATTEST_PATH, body), cookie);
        let (_, body) = self.ask(Step::Attest, request, ANSWER_LIMIT).await?;
        self.read("attest", &body)
    }

    /// Fetches and decrypts a resource. Brokers of other makes look for the cookie first; the token is
    /// good when they have forgotten it.
    pub(crate) async fn resource(
        &self,
        uri: &ResourceUri,
        session: &Session,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let request = self.client.get(format!("{}{}", self.url, uri.url_path()));
        let request = with_cookie(request, session.cookie.as_deref()).bearer_auth(&*session.token);
        let (_, body) = self.ask(Step::Resource(uri), request, JWE_LIMIT).await?;
        let message: Jwe = self.read("a resource", &body)?;
        let opened = jwe::decrypt(&message, &session.key);
        opened.map_err(|e| self.protocol("a resource", &e.to_string()))
    }

    fn post(&self, path: &str, body: Vec<u8>) -> RequestBuilder {
        let request = self.client.post(format!("{}{path}", self.url));
        request.header(header::CONTENT_TYPE, "application/json").body(body)
    }

    fn json(
        &self,
        step: &'static str,
        value: &impl serde::Serialize,
    ) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(value).map_err(|e| self.protocol(step, &e.to_string()))
    }

    fn read<T: DeserializeOwned>(&self, step: &'static str, body: &[u8]) -> Result<T, ClientError> {
        // Where it is wrong, not what is there: it may be a token.
        serde_json::from_slice(body).map_err(|e| {
            let problem = format!("no such message (line {}, column {})", e.line(), e.column());
            self.protocol(step, &problem)
        })
    }

    /// Sends a request and reads its whole answer.
    async fn ask(
        &self,
        step: Step<'_>,
        request: RequestBuilder,
        limit: usize,
    ) -> Result<(HeaderMap, Zeroizing<Vec<u8>>), ClientError> {
        let failed = |e: reqwest::Error| self.failed(&e);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let limit = if status == StatusCode::OK { limit } else { ANSWER_LIMIT };
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > limit {
                return Err(self.protocol(step.name(), &format!("more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK {
            return Ok((response.headers().clone(), body));
        }
        Err(answer::refused(&self.url, step, status, &body))
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let (url, problem) = (self.url.clone(), innermost(error));
        if is_certificate_error(error) {
            return ClientError::Certificate { url, problem };
        }
        let problem = if error.is_timeout() { "no answer in time".to_owned() } else { problem };
        ClientError::Temporary { url, problem }
    }
}

fn roots(pem: &str) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("the certificates are not PEM: {e}"))?;
        // Bundles hold a few old certificates that no parser likes; the others count.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err("no usable certificate is in the given PEM text".into());
    }
    Ok(roots)
}

fn with_cookie(request: RequestBuilder, cookie: Option<&str>) -> RequestBuilder {
    match cookie {
        Some(cookie) => request.header(header::COOKIE, format!("{SESSION_COOKIE}={cookie}")),
        None => request,
    }
}

/// Value of the session's cookie, if it is one that can be sent back as it is (RFC 6265, 4.1.1).
fn cookie(headers: &HeaderMap) -> Option<String> {
    let set = headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut values = set.filter_map(|set| {
        let (name, value) = set.split(';').next()?.split_once('=')?;
        (name.trim() == SESSION_COOKIE).then(|| value.trim())
    });
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | ',' | ';' | '\\');
    let value = values.next()?;
    let sound = !value.is_empty() && value.len() <= COOKIE_LIMIT && value.chars().all(plain);
    sound.then(|| value.to_owned())
}

/// The cause at the bottom says what happened; those above it only repeat what was asked.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => one_line(&error.to_string(), 200),
    }
}

/// An `io::Error` does not name what it wraps as its source, so both ways are followed.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || wrapped.is_some_and(|wrapped| is_certificate_error(wrapped))
        || error.source().is_some_and(is_certificate_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_taken() {
        let made = |url: &str, pem| Http::new(url, pem, Timeouts::default()).map(|http| http.url);
        assert_eq!(made("http://10.0.0.1:8080/", None).unwrap(), "http://10.0.0.1:8080");
        for (url, word) in [
            ("broker:8080", "neither"),
            ("ftp://broker", "neither"),
            ("", "not an address"),
            ("http://user:pass@broker", "nothing else"),
            ("http://broker?x", "nothing else"),
            ("https://broker", "certificate"),
        ] {
            let error = made(url, None).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("pass"), "{url}: {error}");
        }
        let error = made("https://broker", Some("no PEM")).unwrap_err().to_string();
        assert!(error.contains("no usable certificate"), "{error}");
    }

    #[test]
    fn the_cookie_of_the_session() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::SET_COOKIE, value.parse().unwrap());
            }
            cookie(&headers)
        };
        let expected = Some("0af3".to_owned());
        assert_eq!(of(&["other=1", "kbs-session-id=0af3; Expires=x; Path=/"]), expected);
        let long = format!("kbs-session-id={}", "a".repeat(COOKIE_LIMIT + 1));
        for odd in ["", "kbs-session-id=", "kbs-session-id=a b", "kbs-session-id=\"a\"", &long] {
            assert_eq!(of(&[odd]), None, "{odd}");
        }
    }
}
