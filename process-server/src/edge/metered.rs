//! A blob store that notes how long each call takes, how it ends, and whether the store can be used at all.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Refusal, Result, SnapshotId, StoreError,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use tokio::{sync::watch, time::Instant};

/// From a millisecond to the time-out of a call.
const BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    operation: &'static str,
    outcome: &'static str,
}

/// Figures of all stores of a program.
#[derive(Debug, Clone)]
pub struct StoreFigures {
    seconds: Family<Operation, Histogram, fn() -> Histogram>,
    calls: Family<Outcome, Counter>,
    /// Why the store cannot be used at the moment; empty: it can.
    trouble: Arc<watch::Sender<String>>,
}

impl StoreFigures {
    pub fn register(registry: &mut Registry) -> Self {
        let figures = Self {
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            calls: Family::default(),
            trouble: Arc::new(watch::Sender::new(String::new())),
        };
        registry.register(
            "store_call_seconds",
            "Time that calls of the blob store took",
            figures.seconds.clone(),
        );
        registry.register("store_calls", "Calls of the blob store by how they ended", figures.calls.clone());
        figures
    }

    pub fn trouble(&self) -> watch::Receiver<String> {
        self.trouble.subscribe()
    }

    async fn note<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let result = call.await;
        self.ended(operation, started.elapsed(), result.as_ref().err());
        result
    }

    fn ended(&self, operation: &'static str, took: Duration, error: Option<&StoreError>) {
        self.seconds.get_or_create(&Operation { operation }).observe(took.as_secs_f64());
        let outcome = match error {
            None => "done",
            Some(StoreError::Refused { .. }) => "refused",
            Some(StoreError::Unknown { .. }) => "unknown",
        };
        self.calls.get_or_create(&Outcome { operation, outcome }).inc();
        // Other refusals are answers: the store works.
        let useless = error
            .filter(|error| matches!(error.refusal(), None | Some(Refusal::Denied | Refusal::NoContainer)));
        let trouble = useless.map(ToString::to_string).unwrap_or_default();
        self.trouble.send_if_modified(|before| {
            let changed = *before != trouble;
            if changed {
                *before = trouble;
            }
            changed
        });
    }
}

#[derive(Debug)]
pub struct Metered {
    store: Arc<dyn BlobStore>,
    figures: StoreFigures,
}

impl Metered {
    pub fn new(store: Arc<dyn BlobStore>, figures: StoreFigures) -> Arc<Self> {
        Arc::new(Self { store, figures })
    }
}

#[async_trait]
impl BlobStore for Metered {
    async fn ensure_container(&self) -> Result<()> {
        self.figures.note("ensure_container", self.store.ensure_container()).await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        self.figures.note("properties", self.store.properties(name, snapshot)).await
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        self.figures.note("get", self.store.get(name, snapshot, range)).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        self.figures.note("list", self.store.list(prefix, with_snapshots, after)).await
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        self.figures.note("put", self.store.put(name, content, condition)).await
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        self.figures.note("delete", self.store.delete(name, snapshot)).await
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        self.figures.note("delete_if_match", self.store.delete_if_match(name, etag)).await
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        self.figures.note("create_append", self.store.create_append(name)).await
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        self.figures.note("append", self.store.append(name, content, lease, position)).await
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.figures.note("seal", self.store.seal(name, lease)).await
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        self.figures.note("create_page", self.store.create_page(name, length)).await
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        let call = self.store.write_pages(name, offset, content, lease, sequence_at_most);
        self.figures.note("write_pages", call).await
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.figures.note("clear_pages", self.store.clear_pages(name, range, lease, sequence_at_most)).await
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        self.figures.note("page_ranges", self.store.page_ranges(name, snapshot)).await
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        self.figures.note("grow_page", self.store.grow_page(name, length, if_match)).await
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        self.figures.note("raise_sequence", self.store.raise_sequence(name, sequence, lease)).await
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        self.figures.note("snapshot", self.store.snapshot(name, lease, if_match)).await
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        self.figures.note("acquire_lease", self.store.acquire_lease(name, lease, term)).await
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.figures.note("renew_lease", self.store.renew_lease(name, lease)).await
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.figures.note("release_lease", self.store.release_lease(name, lease)).await
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        self.figures.note("break_lease", self.store.break_lease(name)).await
    }
}
