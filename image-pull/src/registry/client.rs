//! HTTP clients: whose certificates they believe, which way they go, and what their errors mean.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reqwest::{Client, redirect};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::retry::Failure;
use crate::{Limits, Proxy, PullError, Registries};

/// Where Debian and this project's guest image keep the CA certificates.
const DEFAULT_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// A name or connection that took longer than this to fail is not tried again.
const QUICK: Duration = Duration::from_secs(2);

/// Makes clients when they are first needed: reading the authorities takes a while.
pub(crate) struct Clients {
    connect: Duration,
    ca_file: Option<PathBuf>,
    extra_ca_pem: Vec<String>,
    proxy: Option<Proxy>,
    plain: OnceLock<Client>,
    tls: OnceLock<Client>,
}

impl Clients {
    pub(crate) fn new(limits: &Limits, registries: &Registries) -> Self {
        Self {
            connect: limits.connect,
            ca_file: registries.ca_file.clone(),
            extra_ca_pem: registries.extra_ca_pem.clone(),
            proxy: registries.proxy.clone(),
            plain: OnceLock::new(),
            tls: OnceLock::new(),
        }
    }

    /// For `http` or `https`.
    pub(crate) fn get(&self, plain: bool) -> Result<&Client, PullError> {
        let slot = if plain { &self.plain } else { &self.tls };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        // Without TLS no authority is needed, and so no file is read. A proxy may be spoken to in TLS.
        let proxy_needs_tls =
            self.proxy.as_ref().is_some_and(|proxy| proxy.url.starts_with("https:"));
        let roots = match plain && !proxy_needs_tls {
            true => rustls::RootCertStore::empty(),
            false => self.roots()?,
        };
        let client = self.make(roots)?;
        Ok(slot.get_or_init(|| client))
    }

    fn roots(&self) -> Result<rustls::RootCertStore, PullError> {
        let bad = |field, problem: String| PullError::Config { field, problem };
        let mut roots = rustls::RootCertStore::empty();
        for pem in &self.extra_ca_pem {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate =
                    certificate.map_err(|e| bad("extra_ca_pem", format!("is not PEM: {e}")))?;
                roots.add(certificate).map_err(|e| {
                    bad("extra_ca_pem", format!("holds a certificate that cannot be used: {e}"))
                })?;
            }
            if roots.len() == before {
                return Err(bad("extra_ca_pem", "holds no certificate".into()));
            }
        }
        let file = match &self.ca_file {
            Some(file) => file.clone(),
            // The owner's own authorities may be all there are.
            None if !roots.is_empty() && !PathBuf::from(DEFAULT_CA_FILE).exists() => {
                return Ok(roots);
            }
            None => DEFAULT_CA_FILE.into(),
        };
        let shown = file.display();
        let certificates = CertificateDer::pem_file_iter(&file).map_err(|e| {
            let problem =
                format!("{shown} cannot be read ({e}); https registries need CA certificates");
            bad("ca_file", problem)
        })?;
        let before = roots.len();
        for certificate in certificates {
            let certificate = certificate
                .map_err(|e| bad("ca_file", format!("{shown} is not a PEM file: {e}")))?;
            // Bundles hold a few old certificates that no parser likes; the others count.
            let _ = roots.add(certificate);
        }
        if roots.len() == before {
            return Err(bad("ca_file", format!("{shown} holds no usable certificate")));
        }
        Ok(roots)
    }

    fn make(&self, roots: rustls::RootCertStore) -> Result<Client, PullError> {
        let bad = |field, problem: String| PullError::Config { field, problem };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("ca_file", e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(self.connect)
            // The environment of PID 1 comes from the kernel command line, and that from the host.
            .no_proxy()
            // Redirects are followed where it is known what may go along.
            .redirect(redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(15))
            .user_agent(concat!("nacre/", env!("CARGO_PKG_VERSION")));
        let builder = match &self.proxy {
            Some(proxy) => builder.proxy(read_proxy(proxy)?),
            None => builder,
        };
        builder.build().map_err(|e| bad("ca_file", innermost(&e)))
    }

    /// What kept an answer from coming.
    pub(crate) fn transport(
        &self,
        registry: &str,
        what: &str,
        error: &reqwest::Error,
        begin: Instant,
    ) -> Failure {
        let problem = innermost(error);
        let registry = registry.to_owned();
        let quick = (begin.elapsed() < QUICK).then_some(Duration::ZERO);
        if is_name_error(error) {
            return Failure {
                error: PullError::NameNotResolved { registry, problem },
                retry: quick,
            };
        }
        if error.is_connect() || error.is_timeout() {
            let certificate = is_certificate_error(error);
            let mut problem = if certificate {
                let file = self.ca_file.clone().unwrap_or_else(|| DEFAULT_CA_FILE.into());
                let file = file.display();
                format!(
                    "{problem}; the registry's certificate must be signed by an authority in {file} \
                     or one that is configured"
                )
            } else if error.is_timeout() {
                format!("no answer within {} s", self.connect.as_secs())
            } else {
                problem
            };
            if self.proxy.is_some() {
                problem.push_str(" (by way of the configured proxy)");
            }
            let retry = quick.filter(|_| !certificate);
            return Failure { error: PullError::Unreachable { registry, problem }, retry };
        }
        Failure {
            error: PullError::Registry { registry, what: what.to_owned(), problem },
            retry: quick,
        }
    }
}

fn read_proxy(proxy: &Proxy) -> Result<reqwest::Proxy, PullError> {
    // Neither the URL nor an error about it may be shown: there may be a password in it.
    let bad = |problem: &str| PullError::Config { field: "proxy", problem: problem.to_owned() };
    let form = "is not a URL such as http://proxy.example:3128";
    let url = reqwest::Url::parse(&proxy.url).map_err(|_| bad(form))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        return Err(bad(form));
    }
    let made = reqwest::Proxy::all(url).map_err(|_| bad(form))?;
    let direct = proxy.no_proxy.join(",");
    Ok(made.no_proxy(reqwest::NoProxy::from_string(&direct)))
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The cause at the bottom: what lies above repeats URLs and library names.
pub(super) fn innermost(error: &reqwest::Error) -> String {
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
