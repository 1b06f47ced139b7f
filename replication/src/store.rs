//! Blob storage as the data plane sees it: one method a store operation, every condition explicit.
//!
//! A call ends in one of three ways, and the caller must look at each: done (`Ok`), refused (nothing happened, and
//! why), or unknown (it may have happened, happen later, or never). Unknown is settled by reading.
//! No implementation repeats a mutating call by itself, and every call has a time-out well below the lease term.

pub mod azure;
pub mod conformance;
pub mod gated;
mod limits;
pub mod model;

use std::{fmt, ops::Range, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// Lease term that writers ask for, the longest that the store allows (15 to 60 seconds): renewals are paid for.
pub const LEASE_TERM: Duration = Duration::from_secs(60);
/// A call without an answer is given up after this time: well below the lease term.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Page blobs are written in whole pages.
pub const PAGE_BYTES: u64 = 512;
/// Most bytes of one page write and of one append.
pub const MAX_WRITE_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// Id that the writer proposed when it acquired the lease (UUID).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(pub String);

impl LeaseId {
    /// `None`: the text is not a UUID as the store takes it.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed = uuid::Uuid::try_parse(text).ok()?;
        (parsed.hyphenated().to_string() == text).then(|| Self(text.to_owned()))
    }
}

/// Opaque name of a snapshot (on Azure its time).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobKind {
    Block,
    Append,
    Page,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody holds it: never acquired, released, expired or broken.
    Free,
    Leased,
    /// Broken, the break period is still running.
    Breaking,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub kind: BlobKind,
    pub length: u64,
    pub etag: ETag,
    pub lease: LeaseState,
    /// Append blobs.
    pub sealed: bool,
    /// Append blobs: number of appends so far (at most 50,000).
    pub appends: u32,
    /// Page blobs.
    pub sequence_number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub snapshot: Option<SnapshotId>,
    pub kind: BlobKind,
    pub length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// In order of name; snapshots of a blob stand before it, oldest first.
    pub blobs: Vec<Listed>,
    /// Pass it on to get the next page; `None`: that was all.
    pub next: Option<String>,
}

/// When a block blob may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutCondition {
    IfAbsent,
    IfMatch(ETag),
    Always,
}

/// The store said no, and nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    AlreadyExists,
    /// ETag or sequence number do not allow it.
    Condition,
    /// An append at another position than the end.
    Position,
    /// An append to, or a change of, a sealed blob.
    Sealed,
    /// The lease given is missing, another one, broken, expired, or somebody else holds it.
    Lease,
    /// Range outside of the blob, wrong alignment, too large.
    Range,
    /// The blob has snapshots that have to be deleted with it.
    HasSnapshots,
    /// Another kind of blob stands under this name.
    Kind,
    /// Credentials are wrong or lack the right.
    Denied,
    /// Container missing.
    NoContainer,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the store refused {operation} of {name}: {why} ({detail})")]
    Refused { operation: &'static str, name: String, why: Refusal, detail: String },
    #[error("no certain answer to {operation} of {name}: {detail}")]
    Unknown { operation: &'static str, name: String, detail: String },
}

impl StoreError {
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { why, .. } => Some(*why),
            Self::Unknown { .. } => None,
        }
    }

    pub fn is(&self, why: Refusal) -> bool {
        self.refusal() == Some(why)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "there is no such blob",
            Self::AlreadyExists => "it exists already",
            Self::Condition => "ETag or sequence number has moved on",
            Self::Position => "the blob does not end at the expected position",
            Self::Sealed => "the blob is sealed",
            Self::Lease => "the lease is not held",
            Self::Range => "the range is not valid",
            Self::HasSnapshots => "the blob has snapshots",
            Self::Kind => "the blob is of another kind",
            Self::Denied => {
                "the credentials do not allow it: check what spec.vault.azure.authentication says"
            }
            Self::NoContainer => "the container does not exist",
        })
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One container. Names are relative to it.
#[async_trait]
pub trait BlobStore: fmt::Debug + Send + Sync + 'static {
    /// Makes the container when it is missing. Safe to repeat.
    async fn ensure_container(&self) -> Result<()>;

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties>;

    /// Content of `range` (the whole blob when `None`). A range that ends beyond the blob is cut; one that starts at
    /// or beyond its end is refused with [`Refusal::Range`].
    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes>;

    /// Names that start with `prefix`, in order; `with_snapshots` lists those too. `after` is `ListPage::next`.
    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage>;

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag>;

    /// Deletes the blob and its snapshots, or only the given snapshot. With a lease held by somebody: refused.
    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()>;

    /// Deletes the blob (it has no snapshots) if it is the version that was seen; else [`Refusal::Condition`].
    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()>;

    /// An empty append blob; refused with [`Refusal::AlreadyExists`] when the name is taken.
    async fn create_append(&self, name: &str) -> Result<ETag>;

    /// Appends if the lease is held and the blob ends at `position`.
    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()>;

    /// No append is possible afterwards. Needs the lease. Sealing a sealed blob is done.
    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()>;

    /// A page blob of zeros (`length` a multiple of 512); refused when the name is taken.
    async fn create_page(&self, name: &str, length: u64) -> Result<ETag>;

    /// Makes a page blob longer, if its ETag is still `if_match`; what is added reads as zeros. The caller has seen
    /// with this ETag that it is shorter: the store would cut it otherwise.
    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag>;

    /// Writes whole pages if the blob's sequence number is at most `sequence_at_most`.
    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag>;

    /// Clears whole pages (they read as zero) under the same condition.
    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag>;

    /// Ranges that may hold something else than zero, in order.
    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>>;

    /// Raises the sequence number to `sequence` if it is lower, and returns what it is then: look at it, since a
    /// higher one means that somebody newer is at work.
    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64>;

    /// A snapshot of the blob as it is, if its ETag is still `if_match`.
    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId>;

    /// Refused with [`Refusal::Lease`] when somebody else holds it. Acquiring again with the same id prolongs it.
    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()>;

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()>;

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()>;

    /// Ends whoever's lease at once. Done, too, when there is none.
    async fn break_lease(&self, name: &str) -> Result<()>;
}
