//! Which users the images of a container's layers name, as containerd has their configurations. Only reads.
//!
//! containerd marks a configuration with the layers that it was unpacked to. Different images may have the same
//! layers: then all of them answer. What cannot be found out in a second is left out: containerd then fails at
//! the name by itself, and a number needs none of this.

use std::time::Duration;

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::accounts::{Accounts, LARGEST_CONFIGURATION};
use crate::api::containerd::services::content::v1 as api;
use crate::api::containerd::services::content::v1::content_client::ContentClient;

/// What containerd asks for waits for this.
const LONGEST: Duration = Duration::from_secs(1);
/// Most images of the same layers that are asked about their users.
const MOST_IMAGES: usize = 64;
/// The label, with this snapshotter's name in containerd's configuration.
const LABEL: &str = "containerd.io/gc.ref.snapshot.nacre";
/// Divides what containerd has: nothing of another namespace is seen.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// Why a containerd did not say.
#[derive(Debug, thiserror::Error)]
enum ImagesError {
    #[error("failed to connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{0}")]
    Refused(#[from] tonic::Status),
    #[error("no answer within {} s", LONGEST.as_secs())]
    Slow(#[from] tokio::time::error::Elapsed),
}

/// The containerds of this node.
#[derive(Debug)]
pub(crate) struct Images {
    sockets: Vec<String>,
}

/// A container's snapshot, as containerd names it.
#[derive(Debug, PartialEq, Eq)]
struct Container {
    namespace: MetadataValue<Ascii>,
    /// Identifier of all its layers.
    chain: String,
}

impl Container {
    /// `None` for what is no container of an image: a snapshot without layers, or names of another form than
    /// containerd's, `<namespace>/<number>/<key>` on `<digest>` or `<namespace>/<number>/<digest>`.
    fn parse(key: &str, parent: &str) -> Option<Container> {
        let (namespace, _) = key.split_once('/')?;
        let chain = parent.rsplit('/').next()?;
        let (algorithm, hex) = chain.split_once(':')?;
        let is_digest = matches!((algorithm, hex.len()), ("sha256", 64) | ("sha512", 128))
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let namespace = Some(namespace).filter(|name| !name.is_empty() && is_digest)?;
        Some(Container { namespace: namespace.parse().ok()?, chain: chain.to_owned() })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE_HEADER, self.namespace.clone());
        request
    }
}

impl Images {
    /// `sockets` are where containerd may be.
    pub(crate) fn new(sockets: Vec<String>) -> Images {
        Images { sockets }
    }

    /// Names of the users of the images that a snapshot `key` on `parent` may be of.
    pub(crate) async fn accounts(&self, key: &str, parent: &str) -> Accounts {
        let mut accounts = Accounts::default();
        let Some(container) = Container::parse(key, parent) else { return accounts };
        for socket in &self.sockets {
            if !std::path::Path::new(socket).exists() {
                continue;
            }
            let answer = tokio::time::timeout(LONGEST, ask(socket, &container)).await;
            match answer.map_err(ImagesError::from).flatten() {
                Ok(found) => accounts.extend(found),
                Err(error) => {
                    tracing::warn!(key, socket, "cannot read which user the image names: {error}");
                }
            }
        }
        accounts
    }
}

async fn ask(socket: &str, container: &Container) -> Result<Accounts, ImagesError> {
    let channel = Endpoint::from_shared(format!("unix://{socket}"))?.connect().await?;
    let mut content = ContentClient::new(channel);
    let filters = vec![format!("labels.{LABEL:?}=={:?}", container.chain)];
    let list = container.request(api::ListContentRequest { filters });
    let mut pages = content.list(list).await?.into_inner();
    let mut accounts = Accounts::default();
    let mut left = MOST_IMAGES;
    while let Some(page) = pages.message().await? {
        for info in page.info.into_iter().filter(|info| is_configuration(info, container)) {
            let Some(rest) = left.checked_sub(1) else { return Ok(accounts) };
            left = rest;
            let Some(bytes) = read(&mut content, container, &info.digest).await? else { continue };
            if let Err(error) = accounts.add(&bytes) {
                tracing::warn!(digest = info.digest, "not an image's configuration: {error}");
            }
        }
    }
    Ok(accounts)
}

/// A containerd that knows no such filter would list everything.
fn is_configuration(info: &api::Info, container: &Container) -> bool {
    let small = usize::try_from(info.size).is_ok_and(|size| size <= LARGEST_CONFIGURATION);
    small && info.labels.get(LABEL) == Some(&container.chain)
}

/// `None` if it is larger than it was said to be, or gone.
async fn read(
    content: &mut ContentClient<Channel>,
    container: &Container,
    digest: &str,
) -> Result<Option<Vec<u8>>, ImagesError> {
    let read = api::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut pieces = match content.read(container.request(read)).await {
        Ok(pieces) => pieces.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend_from_slice(&piece.data);
        if bytes.len() > LARGEST_CONFIGURATION {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use futures_util::stream::{self, BoxStream, StreamExt as _};
    use tokio::net::UnixListener;
    use tonic::{Response, Status};

    use super::*;
    use crate::api::containerd::services::content::v1::content_server::{Content, ContentServer};

    /// A containerd that has these blobs, each with its label, and says of them what it likes.
    #[derive(Default)]
    struct Containerd {
        blobs: Vec<(String, Vec<u8>)>,
        hangs: bool,
        /// Lists all, whatever the filter.
        unfiltered: bool,
        /// What each blob is said to have.
        size: Option<i64>,
        asked: Arc<Mutex<Vec<(String, String)>>>,
    }

    impl Containerd {
        fn with(blobs: &[(&str, &str)]) -> Containerd {
            let blob = |(chain, user): &(&str, &str)| {
                let text = serde_json::json!({ "config": { "User": user } }).to_string();
                ((*chain).to_owned(), text.into_bytes())
            };
            Containerd { blobs: blobs.iter().map(blob).collect(), ..Containerd::default() }
        }

        fn note<T>(&self, request: &Request<T>, what: &str) {
            let namespace = request.metadata().get(NAMESPACE_HEADER).unwrap().to_str().unwrap();
            self.asked.lock().unwrap().push((namespace.to_owned(), what.to_owned()));
        }
    }

    #[tonic::async_trait]
    impl Content for Containerd {
        type ListStream = BoxStream<'static, Result<api::ListContentResponse, Status>>;
        type ReadStream = BoxStream<'static, Result<api::ReadContentResponse, Status>>;

        async fn list(
            &self,
            request: Request<api::ListContentRequest>,
        ) -> Result<Response<Self::ListStream>, Status> {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            let filter = request.get_ref().filters.join(" or ");
            self.note(&request, &filter);
            let info = |(index, (chain, bytes)): (usize, &(String, Vec<u8>))| api::Info {
                digest: index.to_string(),
                size: self.size.unwrap_or_else(|| i64::try_from(bytes.len()).unwrap()),
                labels: HashMap::from([(LABEL.to_owned(), chain.clone())]),
            };
            let all = self.blobs.iter().enumerate().map(info);
            let fits = |info: &api::Info| self.unfiltered || filter.contains(&info.labels[LABEL]);
            let info = all.filter(fits).collect();
            Ok(Response::new(stream::iter([Ok(api::ListContentResponse { info })]).boxed()))
        }

        async fn read(
            &self,
            request: Request<api::ReadContentRequest>,
        ) -> Result<Response<Self::ReadStream>, Status> {
            self.note(&request, "read");
            let index: usize = request.get_ref().digest.parse().unwrap();
            let bytes = self.blobs[index].1.clone();
            let pieces: Vec<_> = bytes
                .chunks(1 << 16)
                .map(|data| Ok(api::ReadContentResponse { offset: 0, data: data.to_vec() }))
                .collect();
            Ok(Response::new(stream::iter(pieces).boxed()))
        }
    }

    fn chain(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn serve(directory: &Path, name: &str, containerd: Containerd) -> String {
        let socket = directory.join(name);
        let listener = Arc::new(UnixListener::bind(&socket).unwrap());
        let connections = stream::unfold(listener, |listener| async move {
            let connection = listener.accept().await.map(|(stream, _)| stream);
            Some((connection, listener))
        });
        let service = ContentServer::new(containerd);
        let server = tonic::transport::Server::builder();
        tokio::spawn(server.serve_with_incoming(service, connections));
        socket.to_str().unwrap().to_owned()
    }

    async fn passwd(containerd: Containerd) -> String {
        let directory = tempfile::tempdir().unwrap();
        let socket = serve(directory.path(), "c.sock", containerd);
        let images = Images::new(vec![socket]);
        images.accounts("k8s.io/12/container", &chain("a")).await.passwd()
    }

    fn names(passwd: &str) -> Vec<&str> {
        passwd.lines().filter_map(|line| line.split(':').next()).collect()
    }

    #[tokio::test]
    async fn the_images_of_a_containers_layers_say_who_they_run_as() {
        let (ours, other) = (chain("a"), chain("b"));
        let blobs = [(&*ours, "app"), (&*other, "other"), (&*ours, "web:www"), (&*ours, "5")];
        let containerd = Containerd::with(&blobs);
        let asked = Arc::clone(&containerd.asked);
        assert_eq!(names(&passwd(containerd).await), ["app", "web"]);
        let asked = asked.lock().unwrap().clone();
        assert!(asked.iter().all(|(namespace, _)| namespace == "k8s.io"), "{asked:?}");
        let filter = format!("labels.\"{LABEL}\"==\"{ours}\"");
        assert_eq!(asked[0].1, filter);
        assert_eq!(asked.len(), 4, "other images' configurations are not read");
    }

    #[tokio::test]
    async fn what_containerd_lists_beside_it_is_not_read() {
        let (ours, other) = (chain("a"), chain("b"));
        let blobs = [(&*other, "other"), (&*ours, "app")];
        let containerd = Containerd { unfiltered: true, ..Containerd::with(&blobs) };
        assert_eq!(names(&passwd(containerd).await), ["app"]);
    }

    #[tokio::test]
    async fn hostile_configurations_are_left_out_one_by_one() {
        let ours = chain("a");
        let large = vec![b' '; LARGEST_CONFIGURATION + 1];
        let mut containerd = Containerd::with(&[(&ours, "a\nroot:x:0:0"), (&ours, "app")]);
        containerd.blobs.push((ours.clone(), b"{\"config\":".to_vec()));
        containerd.blobs.push((ours.clone(), large));
        // Nor is believed what is said of their sizes.
        for size in [None, Some(1), Some(0)] {
            let blobs = containerd.blobs.clone();
            let containerd = Containerd { blobs, size, ..Containerd::default() };
            assert_eq!(names(&passwd(containerd).await), ["app"], "{size:?}");
        }
        for size in [Some(-1), Some(i64::MAX)] {
            let blobs = containerd.blobs.clone();
            let containerd = Containerd { blobs, size, ..Containerd::default() };
            assert_eq!(passwd(containerd).await, "", "{size:?}");
        }
    }

    #[tokio::test]
    async fn more_images_than_anybody_has_are_not_all_read() {
        let ours = chain("a");
        let users: Vec<String> = (0..2 * MOST_IMAGES).map(|n| format!("user{n}")).collect();
        let blobs: Vec<(&str, &str)> = users.iter().map(|user| (&*ours, &**user)).collect();
        assert_eq!(names(&passwd(Containerd::with(&blobs)).await).len(), MOST_IMAGES);
    }

    #[tokio::test]
    async fn a_containerd_that_does_not_answer_costs_its_second_and_no_other_answer() {
        let directory = tempfile::tempdir().unwrap();
        let ours = chain("a");
        let hanging = Containerd { hangs: true, ..Containerd::default() };
        let hanging = serve(directory.path(), "hanging.sock", hanging);
        let stale = directory.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        let absent = directory.path().join("absent.sock").to_str().unwrap().to_owned();
        let good = serve(directory.path(), "good.sock", Containerd::with(&[(&ours, "app")]));
        let sockets = vec![hanging, stale.to_str().unwrap().to_owned(), absent, good];
        let accounts = Images::new(sockets).accounts("k8s.io/1/c", &ours).await;
        assert_eq!(names(&accounts.passwd()), ["app"]);
    }

    #[test]
    fn only_containers_of_images_are_asked_about() {
        let hex = "0f".repeat(32);
        let parsed = Container::parse("k8s.io/12/abc", &format!("sha256:{hex}")).unwrap();
        assert_eq!(parsed.namespace, "k8s.io");
        // What `ctr` of containerd 1.6 unpacks by itself.
        let unpacked = Container::parse("default/3/abc", &format!("default/2/sha256:{hex}"));
        assert_eq!(unpacked.unwrap().chain, format!("sha256:{hex}"));
        for (key, parent) in [
            ("k8s.io/12/abc", String::new()),
            ("abc", format!("sha256:{hex}")),
            ("/12/abc", format!("sha256:{hex}")),
            ("a\nb/12/abc", format!("sha256:{hex}")),
            ("k8s.io/12/abc", format!("sha256:{hex}0")),
            ("k8s.io/12/abc", format!("sha256:{}", "\"g".repeat(32))),
            ("k8s.io/12/abc", format!("md5:{hex}")),
            ("k8s.io/12/abc", "layer".into()),
        ] {
            assert_eq!(Container::parse(key, &parent), None, "{key} {parent}");
        }
    }
}
