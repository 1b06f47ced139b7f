//! The applier's book about a server: `catalogue/position.json` and `catalogue/points.json`.
//!
//! Both are replaced with If-Match. The position says up to where the log stands on the seed disks; it is written
//! after the pages. A point says which snapshots are the server's disks at a record; it is written after the
//! snapshots. Either may be behind what the applier has done, never ahead of it. A lost position costs a replay of
//! the log; lost points cost the snapshots' listing, not the journal's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    env::Micros,
    ids::{DiskSlot, Epoch, RecordId, RecordNumber, ServerId},
    log::LogState,
    store::{BlobStore, ETag, PutCondition, Refusal, StoreError},
    vault::layout,
    wire::v1,
};

/// The only version of these documents so far.
pub const FORMAT: u32 = 1;

/// Up to where the seed disks hold the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    pub format: u32,
    pub server: String,
    /// State of the log after the last applied record.
    pub log: LogState,
    /// Every disk that ever was, by slot.
    pub seeds: BTreeMap<u32, Seed>,
}

/// A seed disk: a fixed VHD in a page blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    pub disk_id: String,
    /// True size of the disk.
    pub size_bytes: u64,
}

/// The recovery points that stand in snapshots, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Points {
    pub format: u32,
    pub server: String,
    pub points: Vec<Point>,
    /// The journal begins after this record: segments of records up to it may be deleted. Absent: nothing was deleted
    /// yet. It only ever moves on, and stands here before anything is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected: Option<RecordId>,
}

impl Points {
    /// A list without points.
    pub fn none(server: &ServerId) -> Self {
        Self { format: FORMAT, server: server.to_string(), points: Vec::new(), collected: None }
    }

    /// Is every record after `point` still in the journal?
    pub fn is_base(&self, point: &Point) -> bool {
        self.collected.is_none_or(|collected| point.id() >= collected)
    }
}

/// All disks of a server at one exact record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    pub number: u64,
    pub epoch: u32,
    pub t0_micros: i64,
    pub consistency: PointConsistency,
    pub disks: Vec<PointDisk>,
    /// State of the log after the point's record: reading goes on there.
    pub log: LogState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PointDisk {
    pub slot: u32,
    pub disk_id: String,
    pub size_bytes: u64,
    /// Name of the seed disk's snapshot.
    pub snapshot: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointConsistency {
    CrashConsistent,
    FilesystemConsistent,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error(
        "{name} cannot be read as what it should be: delete it, the applier then starts again from the log"
    )]
    Damaged {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{name} has format {found}, this build knows {FORMAT}: use the release that wrote it")]
    Format { name: String, found: u32 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A document of the catalogue.
pub trait Document: Serialize + DeserializeOwned {
    const FILE: &'static str;
    fn format(&self) -> u32;
}

impl Document for Position {
    const FILE: &'static str = "position.json";
    fn format(&self) -> u32 {
        self.format
    }
}

impl Document for Points {
    const FILE: &'static str = "points.json";
    fn format(&self) -> u32 {
        self.format
    }
}

/// `None` when there is none yet. The ETag is taken before the content, so a write in between makes the next
/// replacement fail instead of being lost.
pub async fn read<D: Document>(
    store: &dyn BlobStore,
    server: &ServerId,
) -> Result<Option<(D, ETag)>, CatalogueError> {
    let name = layout::catalogue(server, D::FILE);
    let read = async {
        let etag = store.properties(&name, None).await?.etag;
        Ok::<_, StoreError>((store.get(&name, None, None).await?, etag))
    };
    let (content, etag) = match read.await {
        Err(error) if error.is(Refusal::NotFound) => return Ok(None),
        read => read?,
    };
    let document: D = serde_json::from_slice(&content)
        .map_err(|source| CatalogueError::Damaged { name: name.clone(), source })?;
    match document.format() {
        FORMAT => Ok(Some((document, etag))),
        found => Err(CatalogueError::Format { name, found }),
    }
}

/// Replaces the document that was read with `etag`, or makes the first one. Refused with `Condition` or
/// `AlreadyExists` when somebody else was faster.
pub async fn write<D: Document>(
    store: &dyn BlobStore,
    server: &ServerId,
    document: &D,
    etag: Option<&ETag>,
) -> Result<ETag, StoreError> {
    let condition = etag.map_or(PutCondition::IfAbsent, |etag| PutCondition::IfMatch(etag.clone()));
    // Plain structs with string keys cannot fail to be written.
    let mut content = serde_json::to_vec(document).unwrap_or_default();
    content.push(b'\n');
    store.put(&layout::catalogue(server, D::FILE), content.into(), &condition).await
}

impl Point {
    pub fn record(&self) -> RecordNumber {
        RecordNumber(self.number)
    }

    pub fn id(&self) -> RecordId {
        RecordId { epoch: Epoch(self.epoch), number: self.record() }
    }

    /// Sequence number that its snapshots carry.
    pub fn sequence(&self) -> u64 {
        self.id().sequence()
    }

    pub fn t0(&self) -> Micros {
        Micros(self.t0_micros)
    }

    pub fn disk(&self, slot: DiskSlot) -> Option<&PointDisk> {
        self.disks.iter().find(|disk| disk.slot == slot.0)
    }
}

impl PointConsistency {
    pub fn of(record: &v1::Data) -> Self {
        match record.consistency() {
            v1::Consistency::FilesystemConsistent => Self::FilesystemConsistent,
            v1::Consistency::CrashConsistent | v1::Consistency::Unspecified => Self::CrashConsistent,
        }
    }
}

impl From<PointConsistency> for v1::Consistency {
    fn from(consistency: PointConsistency) -> Self {
        match consistency {
            PointConsistency::CrashConsistent => Self::CrashConsistent,
            PointConsistency::FilesystemConsistent => Self::FilesystemConsistent,
        }
    }
}

impl From<&Point> for v1::Point {
    fn from(point: &Point) -> Self {
        Self {
            number: point.number,
            epoch: point.epoch,
            t0_micros: point.t0_micros,
            consistency: v1::Consistency::from(point.consistency).into(),
        }
    }
}

/// Whether replay up to this record gives all disks of the server at one instant.
pub fn is_point(record: &v1::Data) -> bool {
    record.complete && record.kind() == v1::RecordKind::Exact
}
