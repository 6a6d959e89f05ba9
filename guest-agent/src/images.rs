//! The pod's images: pulled by rules that the owner wrote into the initdata, verified, and kept until no
//! container uses them.
//!
//! The host names the image of a container, and the policy judges that name. Everything else about it is
//! decided here: which signatures it must have, who holds the credentials and keys, which registry or mirror
//! is asked. The node's cache is asked for bytes whose digests are known, and for nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use nacre_image_pull::{
    Credentials, Image, Limits, Login, Mirror, NodeCache, Progress, Proxy, PullConfig, PullError,
    Puller, Registries, Resources, Settings, SettingsError, Source,
};
use nacre_image_security::ImagePolicy;
use nacre_protocol::initdata::Initdata;
use nacre_protocol::kbs::ResourceUri;
use nacre_protocol::pull_progress::PullProgress;
use nacre_protocol::start_report::Failure;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::error::RpcError;
use crate::node_cache;
use crate::secrets::Secrets;
use crate::storage::GuestStorage;

/// Certificates in the guest image, for registries.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The pod's way to its images.
pub(crate) struct Images {
    settings: Settings,
    /// By the measured kernel command line.
    plain_http: Vec<String>,
    secrets: Arc<Secrets>,
    storage: GuestStorage,
    puller: OnceCell<Puller>,
    pulls: Mutex<BTreeMap<String, PullProgress>>,
}

impl Images {
    /// Reads what the initdata, to which the guest is bound, says about images. Nothing is asked for yet.
    pub(crate) fn new(
        initdata: Option<&Initdata>,
        plain_http: Vec<String>,
        secrets: Arc<Secrets>,
        storage: GuestStorage,
    ) -> Result<Self, SettingsError> {
        let settings = initdata.map(|initdata| Settings::read(initdata.files()));
        let settings = settings.transpose()?.unwrap_or_default();
        if settings.policy.is_none() {
            tracing::info!("no image policy: any image may run that the agent's policy names");
        }
        let (puller, pulls) = (OnceCell::new(), Mutex::default());
        Ok(Self { settings, plain_http, secrets, storage, puller, pulls })
    }

    /// Makes the image of a container available.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        container: &str,
        reference: &str,
    ) -> Result<Image, RpcError> {
        let puller = self.puller().await?;
        let running = Running::new(self, container);
        let (images, id) = (Arc::clone(self), container.to_owned());
        let progress = move |progress| images.note(&id, &progress);
        let pulled = puller.pull(reference, progress).await;
        drop(running);
        match pulled {
            Ok(image) => Ok(image),
            Err(error) => {
                let store = self.storage.ready().await?;
                let pulling = format!("failed to pull image {reference:?} in the guest");
                let why = format!("{pulling}: {}", store.explain(&error));
                Err(RpcError::Failed(failure_of(&error), why))
            }
        }
    }

    /// How far the pulls have come that run, in the form of [`nacre_protocol::pull_progress`].
    pub(crate) fn progress_text(&self) -> String {
        self.pulls().values().map(|pull| format!("{pull}\n")).collect()
    }

    /// Made when the first image is wanted. What could not be had then is asked for again by the next pull.
    async fn puller(&self) -> Result<&Puller, RpcError> {
        let make = async || {
            let config = self.config().await?;
            Puller::new(config)
                .map_err(|error| RpcError::internal("failed to prepare image pulling", error))
        };
        self.puller.get_or_try_init(make).await
    }

    async fn config(&self) -> Result<PullConfig, RpcError> {
        let settings = &self.settings;
        let certificates = PathBuf::from(CERTIFICATES);
        let store = self.storage.ready().await?;
        let mut config = PullConfig::new(store.layers());
        let (credentials, credential_uris) = self.login().await?;
        config.registries = Registries {
            credentials,
            credential_uris,
            mirrors: mirrors(settings),
            danger_plain_http: [&self.plain_http[..], &settings.danger_plain_http].concat(),
            ca_file: certificates.exists().then_some(certificates),
            extra_ca_pem: settings.ca.clone(),
            proxy: settings
                .proxy
                .clone()
                .map(|url| Proxy { url: Zeroizing::new(url), no_proxy: settings.no_proxy.clone() }),
        };
        config.limits =
            Limits { total: settings.timeout.unwrap_or(config.limits.total), ..config.limits };
        config.resources = Arc::clone(&self.secrets) as Arc<dyn Resources>;
        config.policy = Arc::new(self.policy().await?);
        config.layer_keys = settings.layer_keys.iter().map(ToString::to_string).collect();
        config.cache = match settings.node_cache {
            NodeCache::Share | NodeCache::Use => node_cache::open(),
            NodeCache::Off => None,
        };
        config.share = settings.node_cache == NodeCache::Share;
        Ok(config)
    }

    /// Credentials, and the names of those that are fetched when a registry asks for some.
    async fn login(&self) -> Result<(Credentials, Vec<String>), RpcError> {
        match &self.settings.credentials {
            None => Ok((Credentials::default(), Vec::new())),
            Some(Login::Resource(uri)) => Ok((Credentials::default(), vec![uri.to_string()])),
            Some(Login::Sealed(text)) => {
                let doing = "failed to unseal the credentials of registries";
                let opened = self.secrets.unseal(text).await;
                let opened = opened.map_err(|error| RpcError::internal(doing, error))?;
                let credentials = Credentials::parse_docker_config(&opened);
                Ok((credentials.map_err(|error| RpcError::internal(doing, error))?, Vec::new()))
            }
        }
    }

    async fn policy(&self) -> Result<ImagePolicy, RpcError> {
        let document = match &self.settings.policy {
            None => return Ok(ImagePolicy::accept_any()),
            Some(Source::Text(text)) => Zeroizing::new(text.clone().into_bytes()),
            Some(Source::Resource(uri)) => {
                let fetched = self.secrets.resource(uri).await;
                let doing = format!("failed to fetch the image policy {uri}");
                fetched.map_err(|error| RpcError::internal(doing, error))?
            }
        };
        ImagePolicy::parse(&document)
            .map_err(|error| RpcError::internal("the pod's image policy cannot be used", error))
    }

    fn note(&self, container: &str, progress: &Progress) {
        if let Some(pull) = self.pulls().get_mut(container) {
            let Progress { layers_done, layers, bytes_done, bytes } = *progress;
            *pull = PullProgress {
                container: container.to_owned(),
                layers_done,
                layers,
                bytes_done,
                bytes,
            };
        }
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<String, PullProgress>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Under which code a failed pull is told.
fn failure_of(error: &PullError) -> Failure {
    match error {
        PullError::NameNotResolved { .. }
        | PullError::Unreachable { .. }
        | PullError::Stalled { .. } => Failure::Registry,
        PullError::NotFound { .. } => Failure::NoImage,
        PullError::Unauthorized { .. } => Failure::Login,
        PullError::Resource { .. } => Failure::Broker,
        PullError::Policy(_) => Failure::ImagePolicy,
        PullError::Encrypted { .. } => Failure::Decryption,
        PullError::DigestMismatch { .. } | PullError::SizeMismatch { .. } => Failure::Tampered,
        PullError::TooLarge { .. } | PullError::NoSpace { .. } => Failure::TooLarge,
        PullError::Reference { .. }
        | PullError::Config { .. }
        | PullError::Registry { .. }
        | PullError::Document { .. }
        | PullError::Limit { .. }
        | PullError::Layer { .. }
        | PullError::Deadline { .. }
        | PullError::Io { .. }
        | PullError::Mount { .. }
        | PullError::Process { .. }
        | PullError::Abandoned => Failure::Pull,
    }
}

/// A pull that is told of for as long as it runs, however it ends.
struct Running<'a> {
    images: &'a Images,
    container: String,
}

impl<'a> Running<'a> {
    fn new(images: &'a Images, container: &str) -> Self {
        let (container, rest) = (container.to_owned(), PullProgress::default());
        let pull = PullProgress { container: container.clone(), ..rest };
        images.pulls().insert(container.clone(), pull);
        Self { images, container }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.images.pulls().remove(&self.container);
    }
}

/// A mirror is asked over plain HTTP where the owner names it for that.
fn mirrors(settings: &Settings) -> BTreeMap<String, Vec<Mirror>> {
    let mirror = |host: &String| {
        let name = host.split('/').next().unwrap_or_default();
        let danger_plain_http = settings.danger_plain_http.iter().any(|plain| plain == name);
        Mirror { host: host.clone(), danger_plain_http }
    };
    let of = |(registry, hosts): (&String, &Vec<String>)| {
        (registry.clone(), hosts.iter().map(mirror).collect())
    };
    settings.mirrors.iter().map(of).collect()
}

#[async_trait]
impl Resources for Secrets {
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let uri: ResourceUri = uri.parse().map_err(|error| format!("{uri:?}: {error}"))?;
        Secrets::resource(self, &uri).await.map_err(|error| error.to_string())
    }
}
