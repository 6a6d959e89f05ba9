//! Bearer tokens for anonymous pulls (distribution-spec's token flow, RFC 6750 challenges).

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

/// What a registry asks for in `WWW-Authenticate: Bearer`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The first Bearer challenge, if there is one.
    pub(crate) fn bearer(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(Self::parse)
    }

    fn parse(challenge: &str) -> Option<Self> {
        let (scheme, mut rest) = challenge.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            rest = after;
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self { realm: realm?, service, scope })
    }

    /// Where to ask for a token to pull `path`.
    pub(crate) fn url(&self, path: &str) -> Option<Url> {
        let default = format!("repository:{path}:pull");
        let scope = self.scope.as_deref().unwrap_or(&default);
        let mut url = Url::parse(&self.realm).ok()?;
        url.host_str()?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("scope", scope);
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
        }
        Some(url)
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The header value a token service's answer leads to.
pub(crate) fn read_token(body: &[u8]) -> Option<HeaderValue> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty())?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let hub =
            r#"Bearer realm="https://auth.r.io/token",service="r.io",scope="repository:a,b:pull""#;
        let challenge = Challenge::parse(hub).unwrap();
        assert_eq!(challenge.scope.as_deref(), Some("repository:a,b:pull"));
        assert_eq!(
            challenge.url("a").unwrap().as_str(),
            "https://auth.r.io/token?scope=repository%3Aa%2Cb%3Apull&service=r.io"
        );
        let bare = Challenge::parse("bearer realm=https://r.io/t, error=x").unwrap();
        assert_eq!(
            bare.url("a/b").unwrap().as_str(),
            "https://r.io/t?scope=repository%3Aa%2Fb%3Apull"
        );
        for bad in [
            "",
            "Bearer",
            "Basic realm=\"x\"",
            "Bearer service=\"x\"",
            "Bearer realm=\"x",
            "Bearer x",
        ] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
        assert!(Challenge::parse("Bearer realm=\"not a url\"").unwrap().url("a").is_none());
    }

    #[test]
    fn tokens() {
        assert_eq!(read_token(br#"{"token":"abc"}"#).unwrap(), "Bearer abc");
        assert_eq!(read_token(br#"{"access_token":"abc"}"#).unwrap(), "Bearer abc");
        for bad in [&b"{}"[..], b"", br#"{"token":""}"#, br#"{"token":"a\nb"}"#, b"[]"] {
            assert!(read_token(bad).is_none());
        }
    }
}
