//! Where images come from: registries, their mirrors, the way to them.
//!
//! All of it is the owner's word. Nothing is taken from the environment, which a guest has from its
//! kernel command line and so from the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::Credentials;

/// How registries are reached. By default over https, with the system's authorities, without
/// credentials, mirrors and proxy.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// For private images.
    pub credentials: Credentials,
    /// `kbs:///` URIs of further credentials, in the form of docker's `config.json`. Fetched when a
    /// registry first asks for credentials; what they say counts before [`Registries::credentials`].
    pub credential_uris: Vec<String>,
    /// By `host[:port]` as in references (`docker.io` for Docker Hub): asked in this order, then the
    /// registry itself. A mirror's content is verified by digest, but what a tag means is its word.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Registries, as `host[:port]` exactly as in references, that are asked over plain HTTP. Whoever
    /// sits between can then choose what a tag means. They never get credentials.
    pub danger_plain_http: Vec<String>,
    /// PEM file with the CA certificates for https; by default the system's
    /// `/etc/ssl/certs/ca-certificates.crt`. Read at the first https request.
    pub ca_file: Option<PathBuf>,
    /// Further CA certificates, in PEM.
    pub extra_ca_pem: Vec<String>,
    /// The way to all registries but some.
    pub proxy: Option<Proxy>,
}

/// A host that answers for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `host[:port]`, or `host[:port]/prefix` if the mirror keeps the registry's repositories beneath a
    /// path of its own.
    pub host: String,
    /// It is asked over plain HTTP. It never gets credentials then.
    pub danger_plain_http: bool,
}

/// An HTTP proxy. For https it only sees which host is spoken to.
#[derive(Clone)]
pub struct Proxy {
    /// `http://[user:password@]host:port`, or `https://` for TLS to the proxy itself.
    pub url: Zeroizing<String>,
    /// Hosts that are asked directly: names, names with a leading dot for all below, addresses,
    /// networks as `10.0.0.0/8`.
    pub no_proxy: Vec<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Proxy").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}
