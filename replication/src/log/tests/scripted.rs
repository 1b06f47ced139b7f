//! The model store behind a script: which calls fail, how, and for how long, and what others do just before a call. It
//! counts the calls as well.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Refusal, Result, SnapshotId, StoreError,
    model::ModelStore,
};

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// None: it is the next one that fails.
    Passes,
    Refused(Refusal),
    /// Nothing is done, and nobody knows.
    RequestLost,
    /// It is done, and nobody knows.
    AnswerLost,
}

/// When a fault is over.
#[derive(Debug)]
enum Lasts {
    Calls(u32),
    Until(Instant),
}

#[derive(Debug)]
struct Rule {
    operation: &'static str,
    /// Of this blob; `None`: of any.
    blob: Option<String>,
    fault: Fault,
    lasts: Lasts,
}

/// What somebody else does just before a call.
struct Meanwhile {
    operation: &'static str,
    blob: String,
    work: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "before {} of {}", self.operation, self.blob)
    }
}

#[derive(Debug, Default)]
pub(super) struct Scripted {
    pub(super) model: ModelStore,
    meanwhile: Mutex<Option<Meanwhile>>,
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<BTreeMap<&'static str, u32>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scripted {
    /// The next call of `operation` fails; called again, the one after it as well.
    pub(super) fn fails(&self, operation: &'static str, fault: Fault) {
        lock(&self.rules).push(Rule { operation, blob: None, fault, lasts: Lasts::Calls(1) });
    }

    /// As [`Scripted::fails`], of one blob.
    pub(super) fn fails_on(&self, operation: &'static str, blob: &str, fault: Fault) {
        let blob = Some(blob.to_owned());
        lock(&self.rules).push(Rule { operation, blob, fault, lasts: Lasts::Calls(1) });
    }

    /// Every call of `operation` fails from now on, for so long.
    pub(super) fn fails_for(&self, time: Duration, operation: &'static str, fault: Fault) {
        let lasts = Lasts::Until(Instant::now() + time);
        lock(&self.rules).push(Rule { operation, blob: None, fault, lasts });
    }

    /// Just before the next call of `operation` for this blob reaches the store, somebody else does this.
    pub(super) fn meanwhile(
        &self,
        operation: &'static str,
        blob: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let work: BoxFuture<'static, ()> = Box::pin(work);
        *lock(&self.meanwhile) = Some(Meanwhile { operation, blob: blob.to_owned(), work });
    }

    /// Calls of `operation` since this was asked last.
    pub(super) fn calls(&self, operation: &'static str) -> u32 {
        lock(&self.calls).remove(operation).unwrap_or_default()
    }

    /// Everything that was asked for has happened.
    pub(super) fn all_struck(&self) -> bool {
        lock(&self.rules).is_empty() && lock(&self.meanwhile).is_none()
    }

    fn fault(&self, operation: &'static str, name: &str) -> Option<Fault> {
        *lock(&self.calls).entry(operation).or_default() += 1;
        let mut rules = lock(&self.rules);
        rules.retain(|rule| match rule.lasts {
            Lasts::Calls(left) => left > 0,
            Lasts::Until(end) => Instant::now() < end,
        });
        let of_this = |rule: &&mut Rule| {
            rule.operation == operation && rule.blob.as_ref().is_none_or(|blob| blob == name)
        };
        let rule = rules.iter_mut().find(of_this)?;
        let fault = rule.fault;
        if let Lasts::Calls(left) = &mut rule.lasts {
            *left -= 1;
        }
        rules.retain(|rule| !matches!(rule.lasts, Lasts::Calls(0)));
        Some(fault)
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        name: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let due = lock(&self.meanwhile).take_if(|due| due.operation == operation && due.blob == name);
        if let Some(due) = due {
            due.work.await;
        }
        let unknown =
            || StoreError::Unknown { operation, name: name.to_owned(), detail: "planted".to_owned() };
        match self.fault(operation, name) {
            None | Some(Fault::Passes) => call.await,
            Some(Fault::Refused(why)) => {
                let (name, detail) = (name.to_owned(), "planted".to_owned());
                Err(StoreError::Refused { operation, name, why, detail })
            }
            Some(Fault::RequestLost) => Err(unknown()),
            Some(Fault::AnswerLost) => {
                let _ = call.await;
                Err(unknown())
            }
        }
    }
}

#[async_trait]
impl BlobStore for Scripted {
    async fn ensure_container(&self) -> Result<()> {
        self.model.ensure_container().await
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        self.pass("properties", name, self.model.properties(name, snapshot)).await
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        self.pass("get", name, self.model.get(name, snapshot, range)).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        self.pass("list", prefix, self.model.list(prefix, with_snapshots, after)).await
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        self.pass("put", name, self.model.put(name, content, condition)).await
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        self.pass("delete", name, self.model.delete(name, snapshot)).await
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        self.model.delete_if_match(name, etag).await
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        self.pass("create_append", name, self.model.create_append(name)).await
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        self.pass("append", name, self.model.append(name, content, lease, position)).await
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("seal", name, self.model.seal(name, lease)).await
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        self.model.create_page(name, length).await
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.model.write_pages(name, offset, content, lease, sequence_at_most).await
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        self.model.clear_pages(name, range, lease, sequence_at_most).await
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        self.model.page_ranges(name, snapshot).await
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        self.model.grow_page(name, length, if_match).await
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        self.model.raise_sequence(name, sequence, lease).await
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        self.model.snapshot(name, lease, if_match).await
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        self.pass("acquire_lease", name, self.model.acquire_lease(name, lease, term)).await
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("renew_lease", name, self.model.renew_lease(name, lease)).await
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.pass("release_lease", name, self.model.release_lease(name, lease)).await
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        self.pass("break_lease", name, self.model.break_lease(name)).await
    }
}
