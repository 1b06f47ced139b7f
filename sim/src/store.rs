//! The store as a program sees it: the model behind a way that requests take. A node's way is a network that loses,
//! delays and doubles; tests of their own have others.
//!
//! A request travels in a task of its own, so it may arrive after its caller gave up, or died. Every request that
//! reaches the model is shown to the oracle in the order in which the model takes it.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use lifeboat_replication::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Result, SnapshotId, StoreError,
    model::ModelStore,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{faults::Class, net::Net};

/// As in production, so that a call is given up well before a lease ends.
const CALL_TIMEOUT: Duration = lifeboat_replication::store::CALL_TIMEOUT;

/// A request that takes longer than this may arrive after its caller has changed its mind.
const PROMPT_MS: u64 = 4_500;

/// What becomes of a request on its way to the model, and of the answer on its way back.
pub trait Way: std::fmt::Debug + Send + Sync + 'static {
    fn call<T, F>(
        &self,
        operation: &'static str,
        name: &str,
        request: F,
    ) -> impl Future<Output = Result<T>> + Send
    where
        T: Send + 'static,
        F: Fn(ModelStore) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static;
}

/// One container, at the end of a way.
#[derive(Debug, Clone)]
pub struct Behind<W>(pub W);

/// The way from one node.
#[derive(Debug, Clone)]
pub struct NodeWay {
    pub model: ModelStore,
    pub net: Arc<Net>,
    /// Number of the node, for cuts.
    pub node: usize,
    /// Tasks of the node run on while it stands still, but none of their requests leaves it.
    pub tasks: bool,
}

impl Way for NodeWay {
    async fn call<T, F>(&self, operation: &'static str, name: &str, request: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(ModelStore) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    {
        let unknown = |detail: &str| StoreError::Unknown {
            operation,
            name: name.to_owned(),
            detail: detail.to_owned(),
        };
        if self.tasks {
            self.net.goes_on(self.node).await;
        }
        let fate = self.net.fate();
        if operation == "release lease" && (fate.again_ms.is_some() || fate.there_ms > PROMPT_MS) {
            self.net.tenures.muddle();
        }
        let (answer, answered) = oneshot::channel();
        let request = Arc::new(request);
        if fate.busy {
            sleep(Duration::from_millis(fate.back_ms)).await;
            return Err(unknown("503 server busy"));
        }
        if !fate.lost && !self.net.store_cut(self.node) {
            let (me, name, request) = (self.clone(), name.to_owned(), request.clone());
            if let Some(delay) = fate.again_ms {
                let (me, name, request) = (me.clone(), name.clone(), request.clone());
                tokio::spawn(async move {
                    sleep(Duration::from_millis(delay)).await;
                    let _ = request(me.model.clone()).await;
                    me.net.applied(me.node, operation, &name);
                });
            }
            tokio::spawn(async move {
                sleep(Duration::from_millis(fate.there_ms)).await;
                let result = request(me.model.clone()).await;
                me.net.applied(me.node, operation, &name);
                match &result {
                    Ok(_) => me.net.tenures.granted(&me.net, me.node, operation, &name),
                    Err(_) => me.net.count(|reached| reached.refused_requests += 1),
                }
                if fate.answered && !me.net.store_cut(me.node) {
                    sleep(Duration::from_millis(fate.back_ms)).await;
                    let _ = answer.send(result);
                }
            });
        }
        let answer = timeout(CALL_TIMEOUT, answered).await;
        if self.tasks {
            self.net.goes_on(self.node).await;
        }
        match answer {
            Ok(Ok(_)) if operation == "get" && self.net.dice.roll(Class::BodyCut) => {
                Err(unknown("the body ended early"))
            }
            Ok(Ok(result)) => result,
            // The connection broke, or nothing came: the caller cannot tell.
            Ok(Err(_)) => {
                sleep(Duration::from_millis(fate.back_ms)).await;
                Err(unknown("connection reset"))
            }
            Err(_) => Err(unknown("timed out")),
        }
    }
}

/// One trait method as one request.
macro_rules! forward {
    ($self:ident, $operation:literal, $name:ident, |$store:ident| ($($own:ident = $value:expr),*) $call:expr) => {{
        let blob = $name.to_owned();
        $(let $own = $value;)*
        $self.0.call($operation, $name, move |$store| {
            let $name = blob.clone();
            $(let $own = $own.clone();)*
            Box::pin(async move { $call.await })
        }).await
    }};
}

#[async_trait]
impl<W: Way> BlobStore for Behind<W> {
    async fn ensure_container(&self) -> Result<()> {
        self.0
            .call("ensure container", "", |store| Box::pin(async move { store.ensure_container().await }))
            .await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        forward!(self, "get properties", name, |store| (snapshot = snapshot.cloned())
            store.properties(&name, snapshot.as_ref()))
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        forward!(self, "get", name, |store| (snapshot = snapshot.cloned(), range = range.clone())
            store.get(&name, snapshot.as_ref(), range))
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        forward!(self, "list", prefix, |store| (after = after.map(str::to_owned))
            store.list(&prefix, with_snapshots, after.as_deref()))
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        forward!(self, "put", name, |store| (content = content.clone(), condition = condition.clone())
            store.put(&name, content, &condition))
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        forward!(self, "delete", name, |store| (snapshot = snapshot.cloned())
            store.delete(&name, snapshot.as_ref()))
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        forward!(self, "delete if match", name, |store| (etag = etag.clone())
            store.delete_if_match(&name, &etag))
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        forward!(self, "create append", name, |store| () store.create_append(&name))
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        forward!(self, "append", name, |store| (content = content.clone(), lease = lease.clone())
            store.append(&name, content, &lease, position))
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        forward!(self, "seal", name, |store| (lease = lease.clone()) store.seal(&name, &lease))
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        forward!(self, "create page", name, |store| () store.create_page(&name, length))
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        forward!(self, "write pages", name, |store| (content = content.clone(), lease = lease.cloned())
            store.write_pages(&name, offset, content, lease.as_ref(), sequence_at_most))
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        forward!(self, "clear pages", name, |store| (range = range.clone(), lease = lease.cloned())
            store.clear_pages(&name, range, lease.as_ref(), sequence_at_most))
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        forward!(self, "page ranges", name, |store| (snapshot = snapshot.cloned())
            store.page_ranges(&name, snapshot.as_ref()))
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        forward!(self, "grow page", name, |store| (if_match = if_match.clone())
            store.grow_page(&name, length, &if_match))
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        forward!(self, "raise sequence", name, |store| (lease = lease.cloned())
            store.raise_sequence(&name, sequence, lease.as_ref()))
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        forward!(self, "snapshot", name, |store| (lease = lease.cloned(), if_match = if_match.cloned())
            store.snapshot(&name, lease.as_ref(), if_match.as_ref()))
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        forward!(self, "acquire lease", name, |store| (lease = lease.clone())
            store.acquire_lease(&name, &lease, term))
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        forward!(self, "renew lease", name, |store| (lease = lease.clone()) store.renew_lease(&name, &lease))
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        forward!(self, "release lease", name, |store| (lease = lease.clone()) store.release_lease(&name, &lease))
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        forward!(self, "break lease", name, |store| () store.break_lease(&name))
    }
}
