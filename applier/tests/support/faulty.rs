//! A store that fails at a chosen call, as a network or a crash would.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Result, SnapshotId, StoreError,
};
use tokio::time::Instant;

/// What happens at the chosen call and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done any more.
    Gone,
    /// It is done, but its answer and everything after it is lost: a crash right after the call.
    DoneThenGone,
    /// It is done, its answer is lost, and all goes on: a network that drops one answer.
    AnswerLost,
    /// It is not done, and all goes on.
    RequestLost,
    /// Nothing is done for so long; then all goes on.
    Away(Duration),
}

#[derive(Debug)]
pub struct Faulty {
    store: Arc<dyn BlobStore>,
    fault: Fault,
    left: AtomicI64,
    struck_at: OnceLock<Instant>,
}

impl Faulty {
    /// The first `calls` calls work.
    pub fn new(store: Arc<dyn BlobStore>, fault: Fault, calls: i64) -> Arc<Self> {
        Arc::new(Self { store, fault, left: AtomicI64::new(calls), struck_at: OnceLock::new() })
    }

    /// How many calls still work.
    pub fn left(&self) -> i64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Was the chosen call reached?
    pub fn struck(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        name: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        let lost = || StoreError::Unknown { operation, name: name.to_owned(), detail: "planted".to_owned() };
        match (left, self.fault) {
            (1.., _) => call.await,
            (0, Fault::DoneThenGone | Fault::AnswerLost) => {
                let _ = call.await;
                Err(lost())
            }
            (_, Fault::Gone | Fault::DoneThenGone) | (0, Fault::RequestLost) => Err(lost()),
            (_, Fault::Away(time)) if self.struck_at.get_or_init(Instant::now).elapsed() < time => {
                // As a network does it: the answer is missed only after a while.
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(lost())
            }
            (_, Fault::Away(_)) => call.await,
            (_, Fault::AnswerLost | Fault::RequestLost) => call.await,
        }
    }
}

#[async_trait]
impl BlobStore for Faulty {
    async fn ensure_container(&self) -> Result<()> {
        self.pass("ensure_container", "", self.store.ensure_container()).await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        self.pass("properties", name, self.store.properties(name, snapshot)).await
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        self.pass("get", name, self.store.get(name, snapshot, range)).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        self.pass("list", prefix, self.store.list(prefix, with_snapshots, after)).await
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        self.pass("put", name, self.store.put(name, content, condition)).await
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        self.pass("delete", name, self.store.delete(name, snapshot)).await
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        self.pass("delete if match", name, self.store.delete_if_match(name, etag)).await
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        self.pass("create_append", name, self.store.create_append(name)).await
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        self.pass("append", name, self.store.append(name, content, lease, position)).await
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("seal", name, self.store.seal(name, lease)).await
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        self.pass("create_page", name, self.store.create_page(name, length)).await
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.pass("write_pages", name, self.store.write_pages(name, offset, content, lease, sequence_at_most))
            .await
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.pass("clear_pages", name, self.store.clear_pages(name, range, lease, sequence_at_most)).await
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        self.pass("page_ranges", name, self.store.page_ranges(name, snapshot)).await
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        self.pass("grow_page", name, self.store.grow_page(name, length, if_match)).await
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        self.pass("raise_sequence", name, self.store.raise_sequence(name, sequence, lease)).await
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        self.pass("snapshot", name, self.store.snapshot(name, lease, if_match)).await
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        self.pass("acquire_lease", name, self.store.acquire_lease(name, lease, term)).await
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("renew_lease", name, self.store.renew_lease(name, lease)).await
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("release_lease", name, self.store.release_lease(name, lease)).await
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        self.pass("break_lease", name, self.store.break_lease(name)).await
    }
}
