//! Finds the wanted point: which snapshot to start from and which records come after it.
//!
//! The newest listed snapshot that is not later than the wanted point is the base. If it cannot serve (its log does
//! not go on from there because the store lost a history, or the snapshot is gone), the next older one is tried, at
//! last the log's beginning. The log's chain is verified from the base on.

use lifeboat_replication::{
    catalogue::{self, CatalogueError, Point, PointConsistency, Points, is_point},
    env::{Env, Micros},
    ids::{Epoch, ServerId},
    log::{LogDisk, LogReader, ReadError},
    store::{Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
    wire::v1::{self, log_record::Body},
};

use crate::select::{Fit, PointSelector, time_text};

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(
        "the vault holds no log of server {server}: check the id, and that the server has been replicated"
    )]
    NoLog { server: ServerId },
    #[error(
        "server {server} has no recovery point yet: its log has {records} records, {remaining_mib} MiB of the initial copy \
         remain; wait until the ProtectedServer is Protected"
    )]
    NoPoint { server: ServerId, records: u64, remaining_mib: u64 },
    #[error(
        "record {number} of server {server} is no recovery point: {why}; `lifeboat-recovery points` lists those that are"
    )]
    NotAPoint { server: ServerId, number: u64, why: &'static str },
    #[error(
        "server {server} has no record {number}: its log ends at {last}; `lifeboat-recovery points` lists its points"
    )]
    NoRecord { server: ServerId, number: u64, last: u64 },
    #[error("server {server} has no recovery point as old as {}: the oldest is {oldest}", time_text(*time))]
    TooOld { server: ServerId, time: Micros, oldest: String },
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The wanted point and what it is made of.
#[derive(Debug)]
pub struct Found {
    pub number: u64,
    pub epoch: Epoch,
    pub t0: Micros,
    pub consistency: PointConsistency,
    pub disks: Vec<LogDisk>,
    /// The snapshots to start from; `None`: from nothing.
    pub base: Option<Point>,
    /// After the base, up to the point, in order.
    pub records: Vec<v1::Data>,
}

/// Finds the point that `selector` wants.
///
/// # Errors
/// When there is no such point, or the vault cannot be read.
pub async fn find(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    selector: PointSelector,
) -> Result<Found, ScanError> {
    let points = points(vault, server).await?;
    let mut failed = None;
    for base in points.iter().rev().filter(|point| selector.may_start_at(point)) {
        let usable = async {
            check_snapshots(vault, server, base).await?;
            from_base(vault, server, env, selector, Some(base)).await
        };
        match usable.await {
            Err(error) if error.is_about_the_base() => {
                tracing::warn!(point = base.number, error = %lifeboat_replication::errors::chain(&error), "this snapshot cannot be the base, trying an older one");
                failed.get_or_insert(error);
            }
            result => return result,
        }
    }
    match (from_base(vault, server, env, selector, None).await, failed) {
        // What was wrong with the newest base says more than what is wrong at the beginning.
        (Err(ScanError::Log(_)), Some(first)) => Err(first),
        (result, _) => result,
    }
}

/// The points that stand in snapshots, oldest first.
///
/// # Errors
/// When the catalogue cannot be read.
pub async fn points(vault: &Vault, server: &ServerId) -> Result<Vec<Point>, ScanError> {
    let points = catalogue::read::<Points>(&*vault.store, server).await?;
    Ok(points.map(|(points, _)| points.points).unwrap_or_default())
}

impl ScanError {
    /// Another base may do.
    fn is_about_the_base(&self) -> bool {
        match self {
            Self::Log(ReadError::WentBack { .. } | ReadError::Damaged { .. }) => true,
            Self::Store(error) => error.is(Refusal::NotFound) || error.is(Refusal::Condition),
            _ => false,
        }
    }
}

/// The snapshots exist and stand at the point's record.
async fn check_snapshots(vault: &Vault, server: &ServerId, point: &Point) -> Result<(), ScanError> {
    for disk in &point.disks {
        let name = layout::seed_disk(server, &disk.disk_id);
        let snapshot = SnapshotId(disk.snapshot.clone());
        let properties = vault.store.properties(&name, Some(&snapshot)).await?;
        if properties.sequence_number != point.sequence() || properties.length < disk.size_bytes {
            let detail = format!("snapshot {} is not the one of record {}", disk.snapshot, point.number);
            return Err(StoreError::Refused {
                operation: "check snapshot",
                name,
                why: Refusal::Condition,
                detail,
            }
            .into());
        }
    }
    Ok(())
}

async fn from_base(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    selector: PointSelector,
    base: Option<&Point>,
) -> Result<Found, ScanError> {
    let mut reader = match base {
        Some(point) => LogReader::resume(vault, server, env, point.log.clone())?,
        None => LogReader::from_start(vault, server, env),
    };
    let mut found = base.map(|point| Found {
        number: point.number,
        epoch: Epoch(point.epoch),
        t0: point.t0(),
        consistency: point.consistency,
        disks: point.log.disks.clone(),
        base: Some(point.clone()),
        records: Vec::new(),
    });
    let mut after = Vec::new();
    let mut seen = Seen::default();
    // A base that is the wanted record itself needs no more of the log.
    let mut done =
        matches!((selector, base), (PointSelector::Number(number), Some(point)) if point.number == number);
    while !done {
        let Some(entry) = reader.next().await? else { break };
        let Body::Data(record) = entry.body else { continue };
        seen.note(&record);
        let fit = selector.judge(&record);
        if fit == Fit::Beyond {
            break;
        }
        if fit == Fit::Found && !is_point(&record) {
            return Err(ScanError::NotAPoint {
                server: server.clone(),
                number: record.number,
                why: why_not(&record),
            });
        }
        after.push(record.clone());
        if fit != Fit::Before {
            let disks = reader.state().map(|state| state.disks.clone()).unwrap_or_default();
            let mut records = found.take().map(|found| found.records).unwrap_or_default();
            records.append(&mut after);
            found = Some(Found {
                number: record.number,
                epoch: entry.epoch,
                t0: Micros(record.t0_micros),
                consistency: PointConsistency::of(&record),
                disks,
                base: base.cloned(),
                records,
            });
        }
        done = fit == Fit::Found;
    }
    let right = |found: &Found| !matches!(selector, PointSelector::Number(number) if found.number != number);
    found.filter(right).ok_or_else(|| seen.why_nothing(server, selector, reader.state().is_some()))
}

fn why_not(record: &v1::Data) -> &'static str {
    match (record.kind(), record.complete) {
        (v1::RecordKind::Exact, false) => "the copy of the disks was not complete then",
        (v1::RecordKind::Inexact, _) => "it was not proven to be one instant of all disks",
        _ => "it is a part of a copy of the disks",
    }
}

/// What the log held, to say why nothing fits.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    last: u64,
    remaining_blocks: u64,
    oldest_point: Option<Micros>,
}

impl Seen {
    fn note(&mut self, record: &v1::Data) {
        self.records += 1;
        self.last = record.number;
        self.remaining_blocks = record.copy_remaining_blocks;
        if is_point(record) {
            self.oldest_point.get_or_insert(Micros(record.t0_micros));
        }
    }

    fn why_nothing(&self, server: &ServerId, selector: PointSelector, log: bool) -> ScanError {
        let server = server.clone();
        match (selector, self.oldest_point) {
            _ if !log => ScanError::NoLog { server },
            (PointSelector::Number(number), _) => ScanError::NoRecord { server, number, last: self.last },
            (PointSelector::At(time), Some(oldest)) => {
                ScanError::TooOld { server, time, oldest: time_text(oldest) }
            }
            _ => ScanError::NoPoint {
                server,
                records: self.records,
                remaining_mib: self.remaining_blocks.div_ceil(256),
            },
        }
    }
}
