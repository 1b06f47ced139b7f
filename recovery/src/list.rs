//! Lists a server's recovery points: every exact and complete record of the log, and which of them stand in
//! snapshots.

use std::collections::BTreeMap;

use lifeboat_replication::{
    catalogue::{PointConsistency, is_point},
    env::{Env, Micros},
    ids::ServerId,
    log,
    vault::Vault,
};
use serde::Serialize;

use crate::{
    scan::{self, ScanError},
    select::time_text,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedPoint {
    pub number: u64,
    pub epoch: u32,
    /// RFC 3339.
    pub t0: String,
    pub t0_micros: i64,
    pub consistency: PointConsistency,
    /// The log holds its record.
    pub journal: bool,
    /// Snapshots of all disks stand at it.
    pub snapshot: bool,
}

/// All points, oldest first.
///
/// # Errors
/// When log or catalogue cannot be read.
pub async fn points(vault: &Vault, server: &ServerId, env: &Env) -> Result<Vec<ListedPoint>, ScanError> {
    let mut all = BTreeMap::new();
    for point in scan::points(vault, server).await? {
        let listed = ListedPoint {
            number: point.number,
            epoch: point.epoch,
            t0: time_text(point.t0()),
            t0_micros: point.t0_micros,
            consistency: point.consistency,
            journal: false,
            snapshot: true,
        };
        all.insert((point.epoch, point.number), listed);
    }
    for (epoch, record) in log::history(vault, server, env).await? {
        if !is_point(&record) {
            continue;
        }
        let listed = all.entry((epoch.0, record.number)).or_insert_with(|| ListedPoint {
            number: record.number,
            epoch: epoch.0,
            t0: time_text(Micros(record.t0_micros)),
            t0_micros: record.t0_micros,
            consistency: PointConsistency::of(&record),
            journal: true,
            snapshot: false,
        });
        listed.journal = true;
    }
    Ok(all.into_values().collect())
}
