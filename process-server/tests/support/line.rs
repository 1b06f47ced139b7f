//! A store behind a line of so many bytes a second, on which all that is sent at a time gets the same share, as
//! connections of TCP do.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Result, SnapshotId,
};
use tokio::{sync::Mutex, time::sleep};

/// Sent in a turn.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
pub struct Line {
    bytes_per_second: u64,
    /// Its waiters take turns in order of arrival.
    turn: Arc<Mutex<()>>,
}

impl Line {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, turn: Arc::default() }
    }

    pub fn store(&self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        Arc::new(Behind { line: self.clone(), store })
    }

    async fn send(&self, content: &[u8]) {
        for piece in content.chunks(PIECE_BYTES) {
            let _turn = self.turn.lock().await;
            sleep(Duration::from_secs_f64(piece.len() as f64 / self.bytes_per_second as f64)).await;
        }
    }
}

#[derive(Debug)]
struct Behind {
    line: Line,
    store: Arc<dyn BlobStore>,
}

#[async_trait]
impl BlobStore for Behind {
    async fn ensure_container(&self) -> Result<()> {
        self.store.ensure_container().await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        self.store.properties(name, snapshot).await
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        self.store.get(name, snapshot, range).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        self.store.list(prefix, with_snapshots, after).await
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        self.line.send(&content).await;
        self.store.put(name, content, condition).await
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        self.store.delete(name, snapshot).await
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        self.store.delete_if_match(name, etag).await
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        self.store.create_append(name).await
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        self.line.send(&content).await;
        self.store.append(name, content, lease, position).await
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.store.seal(name, lease).await
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        self.store.create_page(name, length).await
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.store.write_pages(name, offset, content, lease, sequence_at_most).await
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.store.clear_pages(name, range, lease, sequence_at_most).await
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        self.store.page_ranges(name, snapshot).await
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        self.store.grow_page(name, length, if_match).await
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        self.store.raise_sequence(name, sequence, lease).await
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        self.store.snapshot(name, lease, if_match).await
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        self.store.acquire_lease(name, lease, term).await
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.store.renew_lease(name, lease).await
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.store.release_lease(name, lease).await
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        self.store.break_lease(name).await
    }
}
