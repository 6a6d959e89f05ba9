//! Answers a registry that wants to know who asks.
//!
//! Credentials belong to one host. They are sent to it over https only, and to a token service only if
//! that is reached over https and the host itself has named it over https (not a page that it redirected
//! to). Redirects never take them along.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use reqwest::header::{self, HeaderValue};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::challenge::{Challenge, TokenService, read_token, secret_header};
use super::endpoint::Endpoint;
use super::retry::Failure;
use super::{Answer, Outgoing, Registry, Request, is_temporary, retry_after};
use crate::credentials::Credential;
use crate::error::Presented;
use crate::{Credentials, PullError, Resources};

/// Longest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// An `Authorization` header.
#[derive(Clone)]
pub(super) struct Authorization {
    header: HeaderValue,
    /// It stands for credentials; otherwise anybody could have it.
    private: bool,
}

/// Credentials, and what came of them.
pub(crate) struct Keychain {
    credentials: Credentials,
    uris: Vec<String>,
    resources: Arc<dyn Resources>,
    /// Both, once they were needed.
    all: OnceCell<Credentials>,
    /// By host and path.
    authorizations: Mutex<HashMap<(String, String), Authorization>>,
}

impl Keychain {
    pub(super) fn new(
        credentials: Credentials,
        uris: Vec<String>,
        resources: Arc<dyn Resources>,
    ) -> Self {
        Self {
            credentials,
            uris,
            resources,
            all: OnceCell::new(),
            authorizations: Mutex::default(),
        }
    }

    async fn find(&self, endpoint: &Endpoint) -> Result<Option<Credential>, PullError> {
        let all = self
            .all
            .get_or_try_init(|| async {
                let mut all = self.credentials.clone();
                for uri in &self.uris {
                    let document = self.resources.resource(uri).await;
                    let document = document.map_err(|problem| PullError::Resource {
                        purpose: "credentials of registries",
                        problem,
                    })?;
                    all.merge(Credentials::parse_docker_config(&document)?);
                }
                Ok::<_, PullError>(all)
            })
            .await?;
        Ok(all.find(&endpoint.host, &endpoint.path).cloned())
    }

    fn known(&self, key: &(String, String)) -> Option<Authorization> {
        self.authorizations.lock().expect("no panic under lock").get(key).cloned()
    }

    /// This endpoint has seen credentials, and may show them to whoever reads its words.
    pub(super) fn has_told(&self, endpoint: &Endpoint) -> bool {
        let known = self.known(&(endpoint.host.clone(), endpoint.path.clone()));
        known.is_some_and(|authorization| authorization.private)
    }

    fn keep(&self, key: (String, String), authorization: Authorization) {
        self.authorizations.lock().expect("no panic under lock").insert(key, authorization);
    }
}

impl Registry {
    /// One attempt, with a token or password if the registry asks for one.
    pub(super) async fn authorized(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let endpoint = request.endpoint;
        let key = (endpoint.host.clone(), endpoint.path.clone());
        let known = self.keychain.known(&key);
        let answer = self.ask(request, known.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            let presented = presented(known.as_ref());
            return self.successful(request, answer, presented).await;
        }
        // A token that was known may have expired: one new one, then the answer stands.
        let authorization = self.authorize(request, &answer).await?;
        self.keychain.keep(key, authorization.clone());
        let answer = self.ask(request, Some(&authorization)).await?;
        self.successful(request, answer, presented(Some(&authorization))).await
    }

    async fn ask(
        &self,
        request: &Request<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, Failure> {
        let outgoing = Outgoing {
            url: request.url()?,
            accept: request.accept,
            offset: request.offset,
            authorization: authorization.map(|authorization| &authorization.header),
        };
        let private = authorization.is_some_and(|authorization| authorization.private);
        let (response, is_origin) = self.follow(request.endpoint, request.what, &outgoing).await?;
        Ok(Answer { response, private, is_origin })
    }

    /// What to say to the challenge of a refusal.
    async fn authorize(
        &self,
        request: &Request<'_>,
        refusal: &Answer,
    ) -> Result<Authorization, Failure> {
        let endpoint = request.endpoint;
        let refused = |presented| request.unauthorized(StatusCode::UNAUTHORIZED, presented);
        // Somebody that the registry redirected to asks: that is not who credentials are for.
        let challenge = Challenge::read(refusal.response.headers()).filter(|_| refusal.is_origin);
        let Some(challenge) = challenge else { return Err(refused(Presented::Nothing).into()) };
        let credential = self.keychain.find(endpoint).await?;
        let withheld = credential.is_some() && endpoint.plain;
        let credential = credential.filter(|_| !withheld);
        match challenge {
            Challenge::Bearer(service) => {
                match self.token(request, &service, credential.as_ref()).await {
                    Err(Failure { error: PullError::Unauthorized { .. }, .. }) if withheld => {
                        Err(refused(Presented::Withheld).into())
                    }
                    other => other,
                }
            }
            Challenge::Basic => match credential.as_ref().and_then(Credential::basic) {
                Some(basic) => Ok(Authorization {
                    header: secret_header(&basic).ok_or_else(|| refused(Presented::Credentials))?,
                    private: true,
                }),
                None if withheld => Err(refused(Presented::Withheld).into()),
                None => Err(refused(Presented::Nothing).into()),
            },
        }
    }

    /// Gets a token from where the registry says.
    async fn token(
        &self,
        request: &Request<'_>,
        service: &TokenService,
        credential: Option<&Credential>,
    ) -> Result<Authorization, Failure> {
        let (endpoint, path) = (request.endpoint, &request.endpoint.path);
        let no_realm = || request.problem("its challenge names no valid token service".into());
        let bare = service.url().ok_or_else(no_realm)?;
        let client = match bare.scheme() {
            "https" => self.clients.get(false)?,
            "http" if endpoint.plain => self.clients.get(true)?,
            _ => return Err(request.problem("its token service is not https".into()).into()),
        };
        // The endpoint of a credential is never plain, so its word came over https and is https here.
        let response = match credential {
            None => {
                let url = service.get_url(path).ok_or_else(no_realm)?;
                self.ask_token_service(request, client, Method::GET, url, None, None).await?
            }
            Some(credential @ Credential::Password { .. }) => {
                let url = service.get_url(path).ok_or_else(no_realm)?;
                let basic = credential.basic().and_then(|basic| secret_header(&basic));
                self.ask_token_service(request, client, Method::GET, url, basic, None).await?
            }
            Some(Credential::Identity(token)) => {
                let form = refresh_form(service, path, token);
                self.ask_token_service(request, client, Method::POST, bare, None, Some(form))
                    .await?
            }
        };
        let status = response.status();
        if is_temporary(status) {
            return Err(Failure {
                error: request.problem(format!("its token service answers {status}")),
                retry: Some(retry_after(response.headers())),
            });
        }
        if !status.is_success() {
            let presented = credential.map_or(Presented::Nothing, |_| Presented::Credentials);
            return Err(request.unauthorized(status, presented).into());
        }
        let body = self.read(response, &endpoint.host, "token", MAX_TOKEN).await?;
        let header = read_token(&Zeroizing::new(body))
            .ok_or_else(|| request.problem("its token service gave no token".into()))?;
        Ok(Authorization { header, private: credential.is_some() })
    }

    /// No redirect is followed: what is sent is for the token service only.
    async fn ask_token_service(
        &self,
        request: &Request<'_>,
        client: &Client,
        method: Method,
        url: Url,
        basic: Option<HeaderValue>,
        form: Option<String>,
    ) -> Result<reqwest::Response, Failure> {
        let mut outgoing = client.request(method, url);
        if let Some(basic) = basic {
            outgoing = outgoing.header(header::AUTHORIZATION, basic);
        }
        if let Some(form) = form {
            let kind = "application/x-www-form-urlencoded";
            outgoing = outgoing.header(header::CONTENT_TYPE, kind).body(form);
        }
        self.bounded(&request.endpoint.host, request.what, outgoing.send()).await
    }
}

fn presented(authorization: Option<&Authorization>) -> Presented {
    match authorization {
        Some(Authorization { private: true, .. }) => Presented::Credentials,
        _ => Presented::Nothing,
    }
}

/// The body that turns an identity token into one for pulling (distribution-spec's OAuth 2.0 flow).
fn refresh_form(service: &TokenService, path: &str, token: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "nacre")
        .append_pair("scope", &service.scope(path))
        .append_pair("refresh_token", token);
    if let Some(service) = &service.service {
        form.append_pair("service", service);
    }
    form.finish()
}
