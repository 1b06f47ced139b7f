//! Lists a server's recovery points: the snapshots, and every exact and complete record as far back as the journal
//! reaches.

use lifeboat_replication::{catalogue::PointConsistency, env::Env, ids::ServerId, recoverable, vault::Vault};
use serde::Serialize;

use crate::{scan::ScanError, select::time_text};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedPoint {
    pub number: u64,
    pub epoch: u32,
    /// RFC 3339.
    pub t0: String,
    pub t0_micros: i64,
    pub consistency: PointConsistency,
    /// The journal holds its record.
    pub journal: bool,
    /// Snapshots of all disks stand at it.
    pub snapshot: bool,
}

/// All points that can be recovered, oldest first.
///
/// # Errors
/// When log or catalogue cannot be read.
pub async fn points(vault: &Vault, server: &ServerId, env: &Env) -> Result<Vec<ListedPoint>, ScanError> {
    let all = recoverable::points(vault, server, env).await?;
    let listed = all.into_iter().map(|point| ListedPoint {
        number: point.id.number.0,
        epoch: point.id.epoch.0,
        t0: time_text(point.t0),
        t0_micros: point.t0.0,
        consistency: point.consistency,
        journal: point.journal,
        snapshot: point.snapshot,
    });
    Ok(listed.collect())
}
