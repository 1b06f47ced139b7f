//! The applier's book about a server: `catalogue/position.json` and `catalogue/points.json`.
//!
//! Both are replaced with If-Match. The position says up to where the log stands on the seed disks; it is written
//! after the pages. A point says which snapshots are the server's disks at a record; it is written after the
//! snapshots. Either may be behind what the applier has done, never ahead of it. A lost position costs a replay of
//! the log; lost points cost the snapshots' listing, not the journal's.
//!
//! ```text
//! {"format":1, … ,"mac":{"keyId":"<data key>","hmacSha256":"<64 hex digits>"}}\n
//! └── document ──┘ the MAC is of the document's bytes up to here, followed by the brace that closes it
//! ```
//! The MAC's key is HKDF(data key, "catalogue", "<server id>/<file>"). A listed point says which snapshots a machine is
//! booted from and where its log goes on: a flipped bit or a foreign hand there must not pass for the truth.

use std::collections::BTreeMap;

use ring::hmac;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    env::Micros,
    ids::{DiskSlot, Epoch, RecordId, RecordNumber, ServerId},
    keys::{DataKey, DataKeys, KeyId, derive},
    log::{LogState, PartName},
    store::{ETag, PutCondition, Refusal, StoreError},
    vault::{Vault, layout},
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
    /// Parts of the log before this one may be deleted: reading begins at the oldest base. Absent: none was deleted yet.
    /// It only ever moves on, and stands here before anything is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_begins: Option<PartName>,
}

impl Points {
    /// A list without points.
    pub fn none(server: &ServerId) -> Self {
        Self {
            format: FORMAT,
            server: server.to_string(),
            points: Vec::new(),
            collected: None,
            log_begins: None,
        }
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
    /// Id of the point of a consistency group of which it is this server's part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
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
    AppConsistent,
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
    #[error(
        "{name} is not what an applier wrote, its authentication fails: restore it from the store's versions, or delete it, the applier then starts again from the log"
    )]
    NotAuthentic { name: String },
    #[error(
        "{name} is authenticated with data key {key}, which is not among the keys given: restore that key's entry"
    )]
    UnknownKey { name: String, key: KeyId },
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
    vault: &Vault,
    server: &ServerId,
) -> Result<Option<(D, ETag)>, CatalogueError> {
    let name = layout::catalogue(server, D::FILE);
    let properties = match vault.store.properties(&name, None).await {
        Err(error) if error.is(Refusal::NotFound) => return Ok(None),
        properties => properties?,
    };
    if properties.length > MAX_BYTES || properties.length == 0 {
        return Err(CatalogueError::NotAuthentic { name });
    }
    let content = match vault.store.get(&name, None, Some(0..MAX_BYTES)).await {
        Err(error) if error.is(Refusal::NotFound) => return Ok(None),
        content => content?,
    };
    Ok(Some((decode(&vault.keys, server, &content)?, properties.etag)))
}

/// Replaces the document that was read with `etag`, or makes the first one. Refused with `Condition` or
/// `AlreadyExists` when somebody else was faster.
pub async fn write<D: Document>(
    vault: &Vault,
    server: &ServerId,
    document: &D,
    etag: Option<&ETag>,
) -> Result<ETag, StoreError> {
    let condition = etag.map_or(PutCondition::IfAbsent, |etag| PutCondition::IfMatch(etag.clone()));
    let content = encode(&vault.keys, server, document);
    vault.store.put(&layout::catalogue(server, D::FILE), content.into(), &condition).await
}

/// Bytes of a document, at most: bounds what a reader allocates for foreign bytes. 4,500 points (15 days, one each five
/// minutes) of a server with 64 disks have 45 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// Stands between the document and its MAC.
const MAC_MEMBER: &[u8] = b",\"mac\":";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mac {
    key_id: KeyId,
    hmac_sha256: String,
}

/// The blob's content.
pub fn encode<D: Document>(keys: &DataKeys, server: &ServerId, document: &D) -> Vec<u8> {
    // Plain structs with string keys cannot fail to be written.
    let mut content = serde_json::to_vec(document).unwrap_or_default();
    let (key_id, key) = keys.current();
    let tag = hmac::sign(&mac_key(key, server, D::FILE), &content);
    let mac = Mac { key_id: key_id.clone(), hmac_sha256: hex::encode(tag.as_ref()) };
    content.pop();
    content.extend_from_slice(MAC_MEMBER);
    content.extend_from_slice(&serde_json::to_vec(&mac).unwrap_or_default());
    content.extend_from_slice(b"}\n");
    content
}

/// What [`encode`] has made, if nobody has changed it.
pub fn decode<D: Document>(keys: &DataKeys, server: &ServerId, content: &[u8]) -> Result<D, CatalogueError> {
    let name = || layout::catalogue(server, D::FILE);
    let not_authentic = || CatalogueError::NotAuthentic { name: name() };
    let parts = content.windows(MAC_MEMBER.len()).rposition(|window| window == MAC_MEMBER).and_then(|at| {
        let (document, mac) = content.split_at_checked(at)?;
        Some((document, mac.get(MAC_MEMBER.len()..)?.strip_suffix(b"}\n")?))
    });
    let (document, mac) = parts.ok_or_else(not_authentic)?;
    let document = [document, b"}"].concat();
    let mac: Mac = serde_json::from_slice(mac).map_err(|_| not_authentic())?;
    let key = keys
        .get(&mac.key_id)
        .ok_or_else(|| CatalogueError::UnknownKey { name: name(), key: mac.key_id.clone() })?;
    let tag = hex::decode(&mac.hmac_sha256).map_err(|_| not_authentic())?;
    // One spelling only, so that every changed byte is noticed.
    if hex::encode(&tag) != mac.hmac_sha256 {
        return Err(not_authentic());
    }
    hmac::verify(&mac_key(key, server, D::FILE), &document, &tag).map_err(|_| not_authentic())?;
    let document: D = serde_json::from_slice(&document)
        .map_err(|source| CatalogueError::Damaged { name: name(), source })?;
    match document.format() {
        FORMAT => Ok(document),
        found => Err(CatalogueError::Format { name: name(), found }),
    }
}

fn mac_key(key: &DataKey, server: &ServerId, file: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(key, "catalogue", format!("{server}/{file}").as_bytes()))
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
            v1::Consistency::AppConsistent => Self::AppConsistent,
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
            PointConsistency::AppConsistent => Self::AppConsistent,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    fn points(server: &ServerId) -> Points {
        Points::none(server)
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let keys = DataKeys::generate(&*Env::system().entropy);
        let server = ServerId::from_random([7; 16]);
        let content = encode(&keys, &server, &points(&server));
        assert_eq!(decode::<Points>(&keys, &server, &content).unwrap(), points(&server));
        for at in 0..content.len() {
            for bit in 0..8 {
                let mut changed = content.clone();
                changed[at] ^= 1 << bit;
                assert!(decode::<Points>(&keys, &server, &changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(decode::<Points>(&keys, &server, &content[..at]).is_err());
        }
    }

    #[test]
    fn a_document_of_another_server_is_refused() {
        let keys = DataKeys::generate(&*Env::system().entropy);
        let (one, two) = (ServerId::from_random([1; 16]), ServerId::from_random([2; 16]));
        let error = decode::<Points>(&keys, &two, &encode(&keys, &one, &points(&one))).unwrap_err();
        assert!(error.to_string().contains("authentication fails"), "{error}");
    }

    #[test]
    fn it_is_json_that_any_tool_reads() {
        let keys = DataKeys::generate(&*Env::system().entropy);
        let server = ServerId::from_random([7; 16]);
        let content = encode(&keys, &server, &points(&server));
        let value: serde_json::Value = serde_json::from_slice(&content).unwrap();
        assert_eq!(value["server"], server.as_str());
        assert_eq!(value["mac"]["keyId"], keys.current().0.0);
    }
}
