//! What a registry asks for in `WWW-Authenticate` (RFC 9110, 11.6.1), and the tokens that follow from it
//! (distribution-spec's token flow, RFC 6750).

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Longest header that is looked at, in bytes.
const MAX_HEADER: usize = 8 << 10;

/// One way of authentication that the registry takes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from a token service.
    Bearer(TokenService),
    /// User and password with each request.
    Basic,
}

/// Where tokens come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenService {
    realm: String,
    pub(crate) service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The first that can be answered: tokens before passwords.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut offered: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(8)
            .filter_map(|value| value.to_str().ok())
            .filter(|value| value.len() <= MAX_HEADER)
            .flat_map(parse)
            .collect();
        let token = offered.iter().position(|one| matches!(one, Self::Bearer(_)));
        (!offered.is_empty()).then(|| offered.swap_remove(token.unwrap_or(0)))
    }
}

/// The known challenges of one header. What is malformed, or says something twice, is left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    split(header)
        .into_iter()
        .filter_map(|(scheme, parameters)| {
            let mut known = [("realm", None), ("service", None), ("scope", None)];
            for (name, value) in parameters? {
                if let Some((_, slot)) = known.iter_mut().find(|(known, _)| *known == name)
                    && slot.replace(value).is_some()
                {
                    return None;
                }
            }
            let [(_, realm), (_, service), (_, scope)] = known;
            match scheme.as_str() {
                "bearer" => Some(Challenge::Bearer(TokenService { realm: realm?, service, scope })),
                "basic" => Some(Challenge::Basic),
                _ => None,
            }
        })
        .collect()
}

type Parameters = Vec<(String, String)>;

/// Schemes in lower case with their parameters; none where they are malformed.
fn split(header: &str) -> Vec<(String, Option<Parameters>)> {
    let mut found: Vec<(String, Option<Parameters>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            // Nothing is left, or nothing that can be read.
            if let (false, Some((_, parameters))) = (rest.is_empty(), found.last_mut()) {
                *parameters = None;
            }
            return found;
        }
        let (word, after) = rest.split_at(end);
        let word = word.to_ascii_lowercase();
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word, Some(Vec::new())));
            rest = after;
            continue;
        };
        let Some((_, parameters)) = found.last_mut() else { return found };
        let Some((value, after)) = read_value(value.trim_start()) else {
            *parameters = None;
            return found;
        };
        if let Some(parameters) = parameters {
            parameters.push((word, value));
        }
        rest = after;
    }
}

fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (!value.is_empty() && !value.contains('"')).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

impl TokenService {
    /// The realm's address. It may have no user and password of its own.
    pub(crate) fn url(&self) -> Option<Url> {
        let url = Url::parse(&self.realm).ok()?;
        let bare = url.username().is_empty() && url.password().is_none();
        (url.host_str().is_some() && bare).then_some(url)
    }

    /// What the token is to allow: by default, to pull `path`.
    pub(crate) fn scope(&self, path: &str) -> String {
        self.scope.clone().unwrap_or_else(|| format!("repository:{path}:pull"))
    }

    /// Where to ask for a token to pull `path` with `GET`.
    pub(crate) fn get_url(&self, path: &str) -> Option<Url> {
        let mut url = self.url()?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("scope", &self.scope(path));
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
        }
        Some(url)
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

/// The header value a token service's answer leads to.
pub(crate) fn read_token(body: &[u8]) -> Option<HeaderValue> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty())?;
    secret_header(&Zeroizing::new(format!("Bearer {}", *token)))
}

/// A header value that no log shows.
pub(crate) fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(header: &str) -> Option<TokenService> {
        parse(header).into_iter().find_map(|one| match one {
            Challenge::Bearer(service) => Some(service),
            Challenge::Basic => None,
        })
    }

    #[test]
    fn challenges() {
        let hub =
            r#"Bearer realm="https://auth.r.io/token",service="r.io",scope="repository:a,b:pull""#;
        let service = bearer(hub).unwrap();
        assert_eq!(service.scope("x"), "repository:a,b:pull");
        assert_eq!(
            service.get_url("a").unwrap().as_str(),
            "https://auth.r.io/token?scope=repository%3Aa%2Cb%3Apull&service=r.io"
        );
        let bare = bearer("bearer realm=https://r.io/t, error=x").unwrap();
        assert_eq!(
            bare.get_url("a/b").unwrap().as_str(),
            "https://r.io/t?scope=repository%3Aa%2Fb%3Apull"
        );
        for both in [
            r#"Basic realm="a, b", Bearer realm="https://r.io/t\"",service=s"#,
            r#"Bearer realm="https://r.io/t\"" , service = "s",Basic realm="x""#,
            r#"Negotiate, Basic, bearer service=s,REALM="https://r.io/t\"""#,
        ] {
            let found = parse(both);
            assert_eq!(found.len(), 2, "{both}");
            assert!(found.contains(&Challenge::Basic), "{both}");
            let service = bearer(both).unwrap();
            assert_eq!(
                (&*service.realm, service.service.as_deref()),
                ("https://r.io/t\"", Some("s"))
            );
        }
        for bad in [
            "",
            "Bearer",
            "Digest realm=\"x\"",
            "Bearer service=\"x\"",
            "Bearer realm=\"x",
            "Bearer realm=",
            "Bearer x",
            "Bearer realm=a, realm=b",
            "realm=x",
            "Bearer realm=x;y\"z",
            "Bearer realm=x, (",
        ] {
            assert_eq!(parse(bad), [], "{bad}");
        }
        for bad in ["not a url", "https://u:p@r.io/t", "data:x"] {
            let service = bearer(&format!("Bearer realm=\"{bad}\"")).unwrap();
            assert!(service.get_url("a").is_none(), "{bad}");
        }
    }

    #[test]
    fn tokens_come_before_passwords() {
        let mut headers = HeaderMap::new();
        assert_eq!(Challenge::read(&headers), None);
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        assert_eq!(Challenge::read(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=x"));
        assert!(matches!(Challenge::read(&headers), Some(Challenge::Bearer(_))));
    }

    #[test]
    fn tokens() {
        assert_eq!(read_token(br#"{"token":"abc"}"#).unwrap(), "Bearer abc");
        assert_eq!(read_token(br#"{"access_token":"abc"}"#).unwrap(), "Bearer abc");
        for bad in [&b"{}"[..], b"", br#"{"token":""}"#, br#"{"token":"a\nb"}"#, b"[]"] {
            assert!(read_token(bad).is_none());
        }
        assert!(!format!("{:?}", read_token(br#"{"token":"abc"}"#)).contains("abc"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_left_out(header in "[a-zA-Z=\", \\\\]{0,60}") {
            for challenge in parse(&header) {
                if let Challenge::Bearer(service) = challenge {
                    let _ = service.get_url("a/b");
                }
            }
        }
    }
}
