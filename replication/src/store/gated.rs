//! A store behind a [`Gate`] that sees every call: to measure it, to let it wait, to make it fail.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Refusal, Result, SnapshotId, StoreError,
};

/// A call on its way to the store.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Name of the method of [`BlobStore`].
    pub operation: &'static str,
    /// Of the blob; what names begin with that are listed; empty: the container is meant.
    pub name: &'a str,
    /// What is sent; empty unless it is a `put`, `append` or `write_pages`.
    pub content: &'a [u8],
}

impl Call<'_> {
    /// Can it change something in the store?
    pub fn changes(&self) -> bool {
        !matches!(self.operation, "properties" | "get" | "list" | "page_ranges")
    }
}

/// What a gate answers instead of the store.
impl Call<'_> {
    /// The store says no.
    pub fn refused(&self, why: Refusal, detail: &str) -> StoreError {
        let (operation, name) = (self.operation, self.name.to_owned());
        StoreError::Refused { operation, name, why, detail: detail.to_owned() }
    }

    /// Nobody knows what became of it.
    pub fn unknown(&self, detail: &str) -> StoreError {
        let (operation, name) = (self.operation, self.name.to_owned());
        StoreError::Unknown { operation, name, detail: detail.to_owned() }
    }
}

/// What happens around each call.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// `request` is the call itself: it is done when awaited, and not at all when dropped before.
    fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A store and its gate, to which it derefs.
#[derive(Debug)]
pub struct Gated<G> {
    store: RwLock<Arc<dyn BlobStore>>,
    gate: G,
}

impl<G: Gate> Gated<G> {
    pub fn new(store: Arc<dyn BlobStore>, gate: G) -> Arc<Self> {
        Arc::new(Self { store: RwLock::new(store), gate })
    }

    /// Calls that begin from now on go there.
    pub fn replace(&self, store: Arc<dyn BlobStore>) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store;
    }

    fn store(&self) -> Arc<dyn BlobStore> {
        Arc::clone(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<G> Deref for Gated<G> {
    type Target = G;

    fn deref(&self) -> &G {
        &self.gate
    }
}

#[async_trait]
impl<G: Gate> BlobStore for Gated<G> {
    async fn ensure_container(&self) -> Result<()> {
        let call = Call { operation: "ensure_container", name: "", content: &[] };
        self.gate.pass(call, self.store().ensure_container()).await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        let call = Call { operation: "properties", name, content: &[] };
        self.gate.pass(call, self.store().properties(name, snapshot)).await
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        let call = Call { operation: "get", name, content: &[] };
        self.gate.pass(call, self.store().get(name, snapshot, range)).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        let call = Call { operation: "list", name: prefix, content: &[] };
        self.gate.pass(call, self.store().list(prefix, with_snapshots, after)).await
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        let sent = content.clone();
        let call = Call { operation: "put", name, content: &sent };
        self.gate.pass(call, self.store().put(name, content, condition)).await
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        let call = Call { operation: "delete", name, content: &[] };
        self.gate.pass(call, self.store().delete(name, snapshot)).await
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        let call = Call { operation: "delete_if_match", name, content: &[] };
        self.gate.pass(call, self.store().delete_if_match(name, etag)).await
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        let call = Call { operation: "create_append", name, content: &[] };
        self.gate.pass(call, self.store().create_append(name)).await
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        let sent = content.clone();
        let call = Call { operation: "append", name, content: &sent };
        self.gate.pass(call, self.store().append(name, content, lease, position)).await
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        let call = Call { operation: "seal", name, content: &[] };
        self.gate.pass(call, self.store().seal(name, lease)).await
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        let call = Call { operation: "create_page", name, content: &[] };
        self.gate.pass(call, self.store().create_page(name, length)).await
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        let sent = content.clone();
        let call = Call { operation: "write_pages", name, content: &sent };
        self.gate.pass(call, self.store().write_pages(name, offset, content, lease, sequence_at_most)).await
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        let call = Call { operation: "clear_pages", name, content: &[] };
        self.gate.pass(call, self.store().clear_pages(name, range, lease, sequence_at_most)).await
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        let call = Call { operation: "page_ranges", name, content: &[] };
        self.gate.pass(call, self.store().page_ranges(name, snapshot)).await
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        let call = Call { operation: "grow_page", name, content: &[] };
        self.gate.pass(call, self.store().grow_page(name, length, if_match)).await
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        let call = Call { operation: "raise_sequence", name, content: &[] };
        self.gate.pass(call, self.store().raise_sequence(name, sequence, lease)).await
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        let call = Call { operation: "snapshot", name, content: &[] };
        self.gate.pass(call, self.store().snapshot(name, lease, if_match)).await
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        let call = Call { operation: "acquire_lease", name, content: &[] };
        self.gate.pass(call, self.store().acquire_lease(name, lease, term)).await
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        let call = Call { operation: "renew_lease", name, content: &[] };
        self.gate.pass(call, self.store().renew_lease(name, lease)).await
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        let call = Call { operation: "release_lease", name, content: &[] };
        self.gate.pass(call, self.store().release_lease(name, lease)).await
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        let call = Call { operation: "break_lease", name, content: &[] };
        self.gate.pass(call, self.store().break_lease(name)).await
    }
}
