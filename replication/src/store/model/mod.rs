//! A blob store in memory that keeps every promise of [`BlobStore`]: what the simulation stands on.
//!
//! Deterministic: no clock but tokio's (leases expire by it), no randomness, ETags and snapshot names are counted.
//! It neither delays nor loses anything; faults are put around it. `conformance` holds it to the real store; where
//! Azurite and Azure differ it does what Azure documents:
//!
//! - a page write that ends beyond the blob is refused (Azurite: accepted);
//! - a blob is not replaced by one of another kind (Azurite: replaced);
//! - an expired lease is renewed only for the id that held it (Azurite: for any);
//! - sealing with an expired lease is refused (Azurite: accepted);
//! - sealing is allowed with an account SAS (Azurite: 500, so a log cannot be taken over with a SAS there);
//! - a list goes on where its page ended (Azurite: leaves out the other snapshots of the page's last name).
//!
//! Where one call breaks several rules, it names the one that Azurite names.

mod blob;
mod lease;
mod pages;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use self::blob::{Blob, Content, Version};
use super::{
    BlobKind, BlobStore, ETag, LeaseId, ListPage, Listed, Properties, PutCondition, Refusal, Result,
    SnapshotId, StoreError, limits,
};

/// Names in one page of a list, as on Azure.
const LIST_PAGE: usize = 5000;
/// Appends that an append blob takes, as on Azure.
const MAX_APPENDS: u32 = 50_000;

/// Clones share their content.
#[derive(Debug, Clone)]
pub struct ModelStore {
    state: Arc<Mutex<State>>,
    list_page: usize,
}

#[derive(Debug, Clone, Default)]
struct State {
    container: bool,
    blobs: BTreeMap<String, Blob>,
    /// The newest ETag and the newest snapshot.
    etag: u64,
    snapshot: u64,
}

/// Why a call is refused, and the detail.
type Denied = (Refusal, &'static str);

impl Default for ModelStore {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelStore {
    /// With an empty container.
    pub fn new() -> Self {
        let store = Self::without_container();
        store.lock().container = true;
        store
    }

    pub fn without_container() -> Self {
        Self { state: Arc::default(), list_page: LIST_PAGE }
    }

    /// The same content, listed in pages of `names`.
    #[must_use]
    pub fn list_in_pages_of(self, names: usize) -> Self {
        Self { list_page: names.max(1), ..self }
    }

    /// A store of its own with the content as it is now: what a backup would hold.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.lock().clone();
        Self { state: Arc::new(Mutex::new(state)), list_page: self.list_page }
    }

    /// Becomes what `backup` is, as after a restore: nobody holds a lease, and no ETag that anybody has is valid.
    pub fn restore(&self, backup: &Self) {
        let mut restored = backup.lock().clone();
        let mut state = self.lock();
        (restored.etag, restored.snapshot) = (state.etag, state.snapshot);
        let State { blobs, etag, .. } = &mut restored;
        for blob in blobs.values_mut() {
            *etag += 1;
            blob.version.etag = *etag;
            blob.lease = Default::default();
        }
        *state = restored;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one call on the state if there is a container, and names it in its refusal.
    fn call<T>(
        &self,
        operation: &'static str,
        name: &str,
        call: impl FnOnce(&mut State) -> Result<T, Denied>,
    ) -> Result<T> {
        let mut state = self.lock();
        let done =
            if state.container { call(&mut state) } else { Err((Refusal::NoContainer, "ContainerNotFound")) };
        done.map_err(|(why, detail)| StoreError::Refused {
            operation,
            name: name.to_owned(),
            why,
            detail: detail.to_owned(),
        })
    }
}

impl State {
    fn blob(&mut self, name: &str) -> Result<&mut Blob, Denied> {
        self.blobs.get_mut(name).ok_or((Refusal::NotFound, "BlobNotFound"))
    }

    fn version(&mut self, name: &str, snapshot: Option<&SnapshotId>) -> Result<&Version, Denied> {
        let blob = self.blob(name)?;
        match snapshot {
            None => Ok(&blob.version),
            Some(snapshot) => blob.snapshots.get(snapshot).ok_or((Refusal::NotFound, "BlobNotFound")),
        }
    }

    fn next_etag(&mut self) -> u64 {
        self.etag += 1;
        self.etag
    }

    fn create(&mut self, name: &str, content: Content) -> Result<ETag, Denied> {
        if self.blobs.contains_key(name) {
            return Err((Refusal::AlreadyExists, "BlobAlreadyExists"));
        }
        let version = Version::new(content, self.next_etag());
        let etag = version.etag();
        self.blobs.insert(name.to_owned(), Blob::new(version));
        Ok(etag)
    }

    /// Marks an allowed change.
    fn changed(&mut self, name: &str) -> Result<ETag, Denied> {
        let etag = self.next_etag();
        let blob = self.blob(name)?;
        blob.version.etag = etag;
        blob.lease.written();
        Ok(blob.version.etag())
    }
}

fn lease(denied: &'static str) -> Denied {
    (Refusal::Lease, denied)
}

#[async_trait]
impl BlobStore for ModelStore {
    async fn ensure_container(&self) -> Result<()> {
        self.lock().container = true;
        Ok(())
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        self.call("read properties", name, |state| {
            let lease = state.blob(name)?.lease.state();
            Ok(state.version(name, snapshot)?.properties(if snapshot.is_some() {
                super::LeaseState::Free
            } else {
                lease
            }))
        })
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        limits::get(name, range.as_ref())?;
        self.call("get", name, |state| {
            let content = &state.version(name, snapshot)?.content;
            let length = content.length();
            match range {
                Some(range) if range.start >= length => Err((Refusal::Range, "InvalidRange")),
                Some(range) => Ok(content.read(range.start..range.end.min(length))),
                None => Ok(content.read(0..length)),
            }
        })
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        self.call("list", prefix, |state| {
            let mut listed = Vec::new();
            for (name, blob) in
                state.blobs.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix))
            {
                if with_snapshots {
                    listed.extend(
                        blob.snapshots.iter().map(|(id, version)| version.listed(name, Some(id.clone()))),
                    );
                }
                listed.push(blob.version.listed(name, None));
            }
            let mut left = listed
                .into_iter()
                .filter(|blob| after.is_none_or(|after| place(blob).as_str() > after))
                .peekable();
            let blobs: Vec<_> = left.by_ref().take(self.list_page).collect();
            let next = left.peek().and_then(|_| blobs.last().map(place));
            Ok(ListPage { blobs, next })
        })
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        self.call("put", name, |state| {
            if let Some(blob) = state.blobs.get(name) {
                match condition {
                    PutCondition::IfAbsent => return Err((Refusal::AlreadyExists, "BlobAlreadyExists")),
                    PutCondition::IfMatch(etag) if *etag != blob.version.etag() => {
                        return Err((Refusal::Condition, "ConditionNotMet"));
                    }
                    PutCondition::IfMatch(_) | PutCondition::Always => {}
                }
                blob.lease.allows_write(None).map_err(lease)?;
                blob.version.content.must_be(BlobKind::Block)?;
                state.blob(name)?.version.content = Content::Block(content);
                state.changed(name)
            } else if matches!(condition, PutCondition::IfMatch(_)) {
                Err((Refusal::Condition, "ConditionNotMet"))
            } else {
                state.create(name, Content::Block(content))
            }
        })
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        self.call("delete", name, |state| {
            let blob = state.blob(name)?;
            if let Some(snapshot) = snapshot {
                return blob
                    .snapshots
                    .remove(snapshot)
                    .map(|_| ())
                    .ok_or((Refusal::NotFound, "BlobNotFound"));
            }
            blob.lease.allows_write(None).map_err(lease)?;
            state.blobs.remove(name);
            Ok(())
        })
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        self.call("delete if match", name, |state| {
            let blob = state.blob(name)?;
            if blob.version.etag() != *etag {
                return Err((Refusal::Condition, "ConditionNotMet"));
            }
            blob.lease.allows_write(None).map_err(lease)?;
            state.blobs.remove(name);
            Ok(())
        })
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        self.call("create append blob", name, |state| state.create(name, Content::Append(Arc::default())))
    }

    async fn append(&self, name: &str, content: Bytes, lease_id: &LeaseId, position: u64) -> Result<()> {
        limits::append(name, content.len())?;
        self.call("append", name, |state| {
            let blob = state.blob(name)?;
            blob.version.content.must_be(BlobKind::Append)?;
            blob.lease.allows_write(Some(lease_id)).map_err(lease)?;
            if blob.version.sealed {
                return Err((Refusal::Sealed, "BlobIsSealed"));
            }
            if blob.version.appends >= MAX_APPENDS {
                return Err((Refusal::Range, "BlockCountExceedsLimit"));
            }
            if blob.version.content.length() != position {
                return Err((Refusal::Position, "AppendPositionConditionNotMet"));
            }
            blob.version.content.append(&content);
            blob.version.appends += 1;
            state.changed(name).map(|_| ())
        })
    }

    async fn seal(&self, name: &str, lease_id: &LeaseId) -> Result<()> {
        self.call("seal", name, |state| {
            let blob = state.blob(name)?;
            blob.version.content.must_be(BlobKind::Append)?;
            blob.lease.allows_write(Some(lease_id)).map_err(lease)?;
            blob.version.sealed = true;
            state.changed(name).map(|_| ())
        })
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        limits::create_page(name, length)?;
        self.call("create page blob", name, |state| state.create(name, Content::zeros(length)))
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        limits::grow_page(name, length)?;
        self.call("grow page blob", name, |state| {
            let blob = state.blob(name)?;
            if blob.version.etag() != *if_match {
                return Err((Refusal::Condition, "ConditionNotMet"));
            }
            blob.lease.allows_write(None).map_err(lease)?;
            blob.version.content.resize(length)?;
            state.changed(name)
        })
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease_id: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        limits::write_pages(name, offset, content.len())?;
        self.call("write pages", name, |state| {
            let blob = state.blob(name)?;
            blob.lease.allows_read(lease_id).map_err(lease)?;
            blob.version.content.must_be(BlobKind::Page)?;
            blob.lease.allows_write(lease_id).map_err(lease)?;
            let pages = blob.version.pages_within(offset..offset.saturating_add(content.len() as u64))?;
            pages.sequence_at_most(sequence_at_most)?.write(offset, &content);
            state.changed(name)
        })
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease_id: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        limits::clear_pages(name, &range)?;
        self.call("clear pages", name, |state| {
            let blob = state.blob(name)?;
            blob.lease.allows_read(lease_id).map_err(lease)?;
            blob.version.content.must_be(BlobKind::Page)?;
            let pages = blob.version.pages_within(range.clone())?.sequence_at_most(sequence_at_most)?;
            blob.lease.allows_write(lease_id).map_err(lease)?;
            pages.clear(range);
            state.changed(name)
        })
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        self.call("list pages", name, |state| state.version(name, snapshot)?.content.page_ranges())
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease_id: Option<&LeaseId>) -> Result<u64> {
        self.call("raise sequence number", name, |state| {
            let blob = state.blob(name)?;
            blob.version.content.must_be(BlobKind::Page)?;
            blob.lease.allows_write(lease_id).map_err(lease)?;
            let raised = blob.version.sequence.max(sequence);
            blob.version.sequence = raised;
            state.changed(name)?;
            Ok(raised)
        })
    }

    async fn snapshot(
        &self,
        name: &str,
        lease_id: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        self.call("snapshot", name, |state| {
            let next = state.snapshot + 1;
            if if_match.is_some() && !state.blobs.contains_key(name) {
                return Err((Refusal::Condition, "ConditionNotMet"));
            }
            let blob = state.blob(name)?;
            if if_match.is_some_and(|etag| *etag != blob.version.etag()) {
                return Err((Refusal::Condition, "ConditionNotMet"));
            }
            blob.lease.allows_read(lease_id).map_err(lease)?;
            let id = SnapshotId(format!("{next:016}"));
            blob.snapshots.insert(id.clone(), blob.version.clone());
            state.snapshot = next;
            Ok(id)
        })
    }

    async fn acquire_lease(&self, name: &str, lease_id: &LeaseId, term: Duration) -> Result<()> {
        limits::lease_term(name, term)?;
        self.call("acquire lease", name, |state| {
            state.blob(name)?.lease.acquire(lease_id, term).map_err(lease)
        })
    }

    async fn renew_lease(&self, name: &str, lease_id: &LeaseId) -> Result<()> {
        self.call("renew lease", name, |state| state.blob(name)?.lease.renew(lease_id).map_err(lease))
    }

    async fn release_lease(&self, name: &str, lease_id: &LeaseId) -> Result<()> {
        self.call("release lease", name, |state| state.blob(name)?.lease.release(lease_id).map_err(lease))
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        self.call("break lease", name, |state| {
            state.blob(name)?.lease.end();
            Ok(())
        })
    }
}

/// Where an entry stands in a list: by name, its snapshots before the blob itself.
fn place(blob: &Listed) -> String {
    let snapshot = blob.snapshot.as_ref().map_or("\u{10ffff}", |id| id.0.as_str());
    format!("{}\u{0}{snapshot}", blob.name)
}
