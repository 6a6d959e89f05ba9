//! Who is asked for the content of a repository: its mirrors in the owner's order, then the registry.

use crate::Registries;
use crate::reference::Reference;

/// One host that may have the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]` to speak to.
    pub(crate) host: String,
    /// Repository path at this host.
    pub(crate) path: String,
    /// Without TLS.
    pub(crate) plain: bool,
    pub(crate) is_mirror: bool,
}

impl Endpoint {
    /// All that may be asked, in order; the registry itself is the last.
    pub(crate) fn all(registries: &Registries, reference: &Reference) -> Vec<Self> {
        let mirrors = [reference.host(), reference.registry()]
            .into_iter()
            .find_map(|host| registries.mirrors.get(host))
            .into_iter()
            .flatten()
            .map(|mirror| {
                let (host, prefix) = mirror.host.split_once('/').unwrap_or((&mirror.host, ""));
                let prefix = prefix.trim_end_matches('/');
                let slash = if prefix.is_empty() { "" } else { "/" };
                Self {
                    host: host.to_owned(),
                    path: format!("{prefix}{slash}{}", reference.path()),
                    plain: mirror.danger_plain_http,
                    is_mirror: true,
                }
            });
        mirrors.chain([Self::origin(registries, reference)]).collect()
    }

    /// The registry itself.
    pub(crate) fn origin(registries: &Registries, reference: &Reference) -> Self {
        let host = reference.registry();
        Self {
            host: host.to_owned(),
            path: reference.path().to_owned(),
            plain: registries.danger_plain_http.iter().any(|plain| plain == host),
            is_mirror: false,
        }
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.plain { "http" } else { "https" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mirror;

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let mirror =
            |host: &str, danger_plain_http| Mirror { host: host.into(), danger_plain_http };
        let mirrors = vec![mirror("m.example:5000", true), mirror("h.example/hub/", false)];
        let registries = Registries {
            mirrors: [("docker.io".to_owned(), mirrors)].into(),
            danger_plain_http: vec!["r.example".into()],
            ..Registries::default()
        };
        let all = |reference: &str| -> Vec<String> {
            Endpoint::all(&registries, &reference.parse().unwrap())
                .into_iter()
                .map(|e| format!("{}://{} {} {}", e.scheme(), e.host, e.path, e.is_mirror))
                .collect()
        };
        assert_eq!(
            all("busybox"),
            [
                "http://m.example:5000 library/busybox true",
                "https://h.example hub/library/busybox true",
                "https://registry-1.docker.io library/busybox false"
            ]
        );
        assert_eq!(all("r.example/a/b"), ["http://r.example a/b false"]);
        assert_eq!(all("r.example:80/a"), ["https://r.example:80 a false"]);
    }
}
