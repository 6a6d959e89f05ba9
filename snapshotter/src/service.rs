//! containerd's snapshots API on top of the store.
//!
//! Names are taken as they come: containerd makes them unique over its namespaces (`k8s.io/12/...`)
//! and its garbage collector calls without a namespace, so the `containerd-namespace` header must not
//! divide them.

use std::sync::{Mutex, MutexGuard};

use tonic::{Request, Response, Status};

use crate::api::containerd::services::snapshots::v1 as api;
use crate::api::containerd::types::Mount;
use crate::filter::Filter;
use crate::images::Images;
use crate::store::{Kind, Labels, SNAPSHOT_REF_LABEL, Snapshot, Store, StoreError};
use crate::usage::Usages;

/// Snapshots in one message of a list, as containerd's own service sends them.
const LIST_PAGE: usize = 100;

/// Serves one store.
#[derive(Debug)]
pub(crate) struct Service {
    store: Mutex<Store>,
    usages: Mutex<Usages>,
    images: Images,
}

impl Service {
    pub(crate) fn new(store: Store, usages: Usages, images: Images) -> Service {
        Service { store: Mutex::new(store), usages: Mutex::new(usages), images }
    }

    /// Bytes and inodes: a container's as its guest says, or else what little is on this host.
    fn usage_of(&self, key: &str) -> Result<(u64, u64), StoreError> {
        let store = self.store();
        if store.get(key)?.kind == Kind::Active
            && let Some(usage) = self.usages.lock().expect("no holder of this lock panics").of(key)
        {
            return Ok((usage.bytes, usage.inodes));
        }
        store.usage(key)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no holder of this lock panics")
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels: Labels = labels.into_iter().collect();
        if let Some(layer) = labels.get(SNAPSHOT_REF_LABEL).cloned() {
            // containerd is about to fetch and unpack a layer. It does neither if the layer is there.
            self.store().record_layer(&layer, &parent, labels)?;
            tracing::info!(layer, parent, "layer recorded; the guest pulls it");
            return Err(StoreError::AlreadyExists(layer).into());
        }
        // The store is free meanwhile: containerd may want something of it before it answers.
        let accounts = self.images.accounts(&key, &parent).await;
        let mut store = self.store();
        store.create_with(Kind::Active, &key, &parent, labels, &accounts)?;
        tracing::info!(key, parent, "prepared");
        let mounts = mounts(&store, &key)?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mut store = self.store();
        store.create(Kind::View, &key, &parent, labels.into_iter().collect())?;
        tracing::info!(key, parent, "view prepared");
        let mounts = mounts(&store, &key)?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let mounts = mounts(&self.store(), &request.into_inner().key)?;
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        self.store().commit(&name, &key, labels.into_iter().collect())?;
        tracing::info!(name, key, "committed");
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.store().remove(&key)?;
        tracing::info!(key, "removed");
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Answer<api::StatSnapshotResponse> {
        let info = info(self.store().get(&request.into_inner().key)?);
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info: wanted, update_mask, .. } = request.into_inner();
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("info is missing"))?;
        let mut store = self.store();
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels = changed_labels(store.get(&wanted.name)?, &wanted, &paths)?;
        let info = info(store.set_labels(&wanted.name, labels)?);
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info) }))
    }

    type ListStream =
        futures_util::stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request
            .into_inner()
            .filters
            .iter()
            .map(|text| Filter::parse(text).map_err(|e| Status::invalid_argument(e.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        let store = self.store();
        let found: Vec<_> = store
            .all()
            .into_iter()
            .filter(|s| filters.is_empty() || filters.iter().any(|f| f.matches(s)))
            .map(info)
            .collect();
        let pages: Vec<_> = found
            .chunks(LIST_PAGE)
            .map(|page| Ok(api::ListSnapshotsResponse { info: page.to_vec() }))
            .collect();
        Ok(Response::new(futures_util::stream::iter(pages)))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        let (bytes, inodes) = self.usage_of(&key)?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: number(bytes), inodes: number(inodes) }))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> Answer<()> {
        self.store().sweep()?;
        Ok(Response::new(()))
    }
}

/// An empty directory, bound; there is nothing else to see on the host.
fn mounts(store: &Store, key: &str) -> Result<Vec<Mount>, StoreError> {
    let source = store.mount_source(key)?;
    let access = if store.get(key)?.kind == Kind::View { "ro" } else { "rw" };
    Ok(vec![Mount {
        r#type: "bind".to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec!["rbind".to_owned(), access.to_owned()],
    }])
}

/// The labels after an update of `paths` (none: all of them) to what `wanted` says.
fn changed_labels(
    present: &Snapshot,
    wanted: &api::Info,
    paths: &[String],
) -> Result<Labels, Status> {
    let all = || wanted.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    if paths.is_empty() {
        return Ok(all());
    }
    let mut labels = present.labels.clone();
    for path in paths {
        if path == "labels" {
            labels = all();
        } else if let Some(key) = path.strip_prefix("labels.") {
            match wanted.labels.get(key) {
                Some(value) if !value.is_empty() => labels.insert(key.to_owned(), value.clone()),
                _ => labels.remove(key),
            };
        } else {
            return Err(Status::invalid_argument(format!(
                "update_mask: {path:?} of snapshot {:?} cannot be changed; only labels can",
                wanted.name
            )));
        }
    }
    Ok(labels)
}

fn info(snapshot: &Snapshot) -> api::Info {
    let kind = match snapshot.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    let at = |t: crate::store::Timestamp| prost_types::Timestamp {
        seconds: t.seconds,
        nanos: i32::try_from(t.nanos).unwrap_or_default(),
    };
    api::Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(at(snapshot.created)),
        updated_at: Some(at(snapshot.updated)),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Status {
        let text = error.to_string();
        match error {
            StoreError::NotFound(_) | StoreError::NoParent { .. } => Status::not_found(text),
            StoreError::AlreadyExists(_) => Status::already_exists(text),
            StoreError::HasChild { .. }
            | StoreError::NoMounts(_)
            | StoreError::NotActive(_)
            | StoreError::NotThatLayer(_) => Status::failed_precondition(text),
            StoreError::ParentNotCommitted(_) | StoreError::Invalid(_) => {
                Status::invalid_argument(text)
            }
            StoreError::Io { .. } => {
                tracing::error!("{text}");
                Status::internal(text)
            }
        }
    }
}
