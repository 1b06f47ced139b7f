//! What can be recovered: the catalogue's snapshots, and the journal as far back as it reaches.
//!
//! A snapshot is a point by itself. A point of the journal needs a base (a listed snapshot after which no record was
//! deleted) and every record from there on. So what a person may choose are all listed snapshots, and all exact and
//! complete records after the oldest base; as long as nothing was deleted, the log's beginning is a base too.

use std::collections::BTreeMap;

use crate::{
    catalogue::{self, CatalogueError, PointConsistency, Points, is_point},
    env::{Env, Micros},
    ids::{RecordId, RecordNumber, ServerId},
    log::{LogReader, ReadError},
    vault::Vault,
    wire::v1::log_record::Body,
};

/// A point that a person may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recoverable {
    pub id: RecordId,
    pub t0: Micros,
    pub consistency: PointConsistency,
    /// Id of the point of a consistency group of which it is this server's part.
    pub group: Option<String>,
    /// Snapshots of all disks stand at it.
    pub snapshot: bool,
    /// It is read from a base and the records after it, or is a base itself.
    pub journal: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverableError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// All of them, in order of the log.
///
/// # Errors
/// When log or catalogue cannot be read.
pub async fn points(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
) -> Result<Vec<Recoverable>, RecoverableError> {
    let listed = catalogue::read::<Points>(vault, server).await?;
    let listed = listed.map_or_else(|| Points::none(server), |(points, _)| points);
    let mut all = BTreeMap::new();
    for point in &listed.points {
        let journal = listed.is_base(point);
        let (t0, consistency) = (point.t0(), point.consistency);
        let (id, group) = (point.id(), point.group.clone());
        all.insert(id, Recoverable { id, t0, consistency, group, snapshot: true, journal });
    }
    let mut bases = listed.points.iter().filter(|point| listed.is_base(point));
    let journal = loop {
        let reader = match (listed.collected, bases.next()) {
            (None, _) => LogReader::from_start(vault, server, env),
            (Some(_), Some(base)) => LogReader::resume(vault, server, env, base.log.clone())?,
            // Only after the store lost every base: what is listed stands by itself.
            (Some(_), None) => break Vec::new(),
        };
        match read(reader).await {
            // A base of a history that the store has lost; a younger one may be of the one that it has.
            Err(ReadError::WentBack { .. } | ReadError::Damaged { .. })
                if listed.collected.is_some() && bases.clone().next().is_some() => {}
            journal => break journal?,
        }
    };
    for point in journal {
        all.entry(point.id).and_modify(|found| found.journal = true).or_insert(point);
    }
    Ok(all.into_values().collect())
}

/// The points that the log holds from here on.
async fn read(mut reader: LogReader) -> Result<Vec<Recoverable>, ReadError> {
    let mut points = Vec::new();
    while let Some(entry) = reader.next().await? {
        let Body::Data(record) = entry.body else { continue };
        if !is_point(&record) {
            continue;
        }
        points.push(Recoverable {
            id: RecordId { epoch: entry.epoch, number: RecordNumber(record.number) },
            t0: Micros(record.t0_micros),
            consistency: PointConsistency::of(&record),
            group: record.group.map(|group| group.id),
            snapshot: false,
            journal: true,
        });
    }
    Ok(points)
}

/// The oldest base: the journal is whole from there on. `None`: nothing was deleted, or there is no base any more.
pub fn journal_begins(listed: &Points) -> Option<&catalogue::Point> {
    listed.collected?;
    listed.points.iter().find(|point| listed.is_base(point))
}
