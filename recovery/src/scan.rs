//! Finds the wanted point: which snapshot to start from and which records come after it.
//!
//! The newest listed snapshot that is not later than the wanted point is the base. If it cannot serve (its log does
//! not go on from there because the store lost a history, or the snapshot is gone), the next older one is tried, at
//! last the log's beginning. The log's chain is verified from the base on.
//!
//! Retention deletes the journal from its beginning on. A snapshot from before that is a point by itself and no base
//! any more, unless a pin holds the records after it.

use lifeboat_replication::{
    catalogue::{self, CatalogueError, Point, PointConsistency, Points, Position, is_point},
    env::{Env, Micros},
    ids::{Epoch, RecordId, ServerId},
    log::{LogDisk, LogReader, ReadError},
    pins::{self, Pin, PinError},
    recoverable::{RecoverableError, journal_begins},
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
    #[error(
        "{selector} of server {server} cannot be recovered any more: retention has deleted the journal up to record {collected}{}; \
         choose one that `lifeboat-recovery points` lists, and for the future set spec.journalRetention of the ReplicationPolicy higher",
        begins.as_ref().map(|begins| format!(", every instant from {begins} on is still there")).unwrap_or_default()
    )]
    Collected { server: ServerId, selector: PointSelector, collected: RecordId, begins: Option<String> },
    #[error(
        "what is read changes faster than it can be pinned: retention took the chosen point away each time; choose a younger one"
    )]
    Restless,
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(
        "the vault of server {server} is damaged: {listed} was there, but the newest point that can be read is record \
         {found} of {found_t0}; see `kubectl lifeboat vault verify {server}`, and to take the older one, ask for it by its number"
    )]
    Older {
        server: ServerId,
        listed: String,
        found: u64,
        found_t0: String,
        #[source]
        source: Option<Box<ScanError>>,
    },
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
    /// Only a pin holds the records after the base.
    pub under_pin: bool,
    /// The last record that was read to find it.
    pub log_end: u64,
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
    find_under(vault, server, env, selector, None).await
}

/// The same for a reader that has had a confirmed pin without a break: what it names can be read still.
pub(crate) async fn find_under(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    selector: PointSelector,
    own: Option<&Pin>,
) -> Result<Found, ScanError> {
    // Before the log, so that it cannot be ahead of it for another reason than damage.
    let position = position(vault, server).await?;
    let (listed, mut failed) = match listed(vault, server).await {
        Ok(listed) => (listed, None),
        // The log is the truth: without the list everything is only slower.
        Err(ScanError::Catalogue(error)) => {
            tracing::warn!(error = %lifeboat_replication::errors::chain(&error), "the listed points cannot be used, reading the log from its beginning");
            (Points::none(server), Some((None, ScanError::Catalogue(error))))
        }
        Err(error) => return Err(error),
    };
    for base in listed.points.iter().rev().filter(|point| selector.may_start_at(point)) {
        let reach = Reach::of(base, &listed, own);
        // A younger base that failed would have given a younger point: an older one must not stand in for it.
        if failed.is_some() && reach == Reach::Itself {
            break;
        }
        let usable = async {
            check_snapshots(vault, server, base).await?;
            from_base(vault, server, env, selector, Some((base, reach))).await
        };
        match usable.await {
            Err(error) if error.is_about_the_base() => {
                tracing::warn!(point = base.number, error = %lifeboat_replication::errors::chain(&error), "this snapshot cannot be the base, trying an older one");
                failed.get_or_insert((Some(base), error));
            }
            Err(ScanError::NoRecord { .. } | ScanError::TooOld { .. } | ScanError::NoPoint { .. })
                if reach != Reach::Journal =>
            {
                break;
            }
            result => return not_older(server, selector, result?, failed, position.as_ref()),
        }
    }
    if let Some(collected) = listed.collected {
        let begins = journal_begins(&listed).map(|point| time_text(point.t0()));
        let gone = ScanError::Collected { server: server.clone(), selector, collected, begins };
        return Err(failed.map_or(gone, |(_, error)| error));
    }
    match (from_base(vault, server, env, selector, None).await, failed) {
        // What was wrong with the newest base says more than what is wrong at the beginning.
        (Err(ScanError::Log(_)), Some((_, first))) => Err(first),
        (result, failed) => not_older(server, selector, result?, failed, position.as_ref()),
    }
}

/// Nobody who asks for the newest point gets an older one without being told.
fn not_older(
    server: &ServerId,
    selector: PointSelector,
    found: Found,
    failed: Option<(Option<&Point>, ScanError)>,
    position: Option<&Position>,
) -> Result<Found, ScanError> {
    if matches!(selector, PointSelector::Number(_)) {
        return Ok(found);
    }
    let older = |listed: String, source: Option<ScanError>| ScanError::Older {
        server: server.clone(),
        listed,
        found: found.number,
        found_t0: time_text(found.t0),
        source: source.map(Box::new),
    };
    match failed {
        Some((Some(base), error)) if base.number > found.number => {
            let listed = format!("a point at record {} of {}", base.number, time_text(base.t0()));
            return Err(older(listed, Some(error)));
        }
        _ => {}
    }
    let applied = position.map(|position| &position.log).filter(|_| selector == PointSelector::Latest);
    match applied {
        // A point may be older than the last record; the log that was read may not.
        Some(applied) if applied.last_number.0 > found.log_end => {
            Err(older(format!("record {} of the log", applied.last_number), None))
        }
        _ => Ok(found),
    }
}

/// How far the applier came; a document that cannot be read says nothing.
async fn position(vault: &Vault, server: &ServerId) -> Result<Option<Position>, ScanError> {
    match catalogue::read::<Position>(vault, server).await {
        Ok(found) => Ok(found.map(|(position, _)| position)),
        Err(CatalogueError::Store(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// How far one can read on from a listed snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the end of the log.
    Journal,
    /// To this record, which a pin holds.
    Pinned(u64),
    /// The records after it may be gone.
    Itself,
}

impl Reach {
    fn of(base: &Point, listed: &Points, own: Option<&Pin>) -> Self {
        if listed.is_base(base) {
            return Self::Journal;
        }
        let held = own.filter(|pin| pin.base == Some(base.id())).and_then(|pin| pin.records);
        held.map_or(Self::Itself, |records| Self::Pinned(records.to))
    }

    fn ends_before(self, number: u64) -> bool {
        match self {
            Self::Journal => false,
            Self::Pinned(to) => number > to,
            Self::Itself => true,
        }
    }
}

/// What the catalogue lists.
///
/// # Errors
/// When the catalogue cannot be read.
pub async fn listed(vault: &Vault, server: &ServerId) -> Result<Points, ScanError> {
    let points = catalogue::read::<Points>(vault, server).await?;
    Ok(points.map_or_else(|| Points::none(server), |(points, _)| points))
}

impl Found {
    /// Does the catalogue, read after the pin was written, still promise what this is made of?
    pub(crate) fn is_promised(&self, listed: &Points) -> bool {
        match &self.base {
            None => listed.collected.is_none(),
            Some(base) => {
                let same = |point: &&Point| point.id() == base.id() && point.disks == base.disks;
                listed.points.iter().any(|point| same(&point))
                    && (self.records.is_empty() || self.under_pin || listed.is_base(base))
            }
        }
    }

    /// What has to be pinned for it.
    pub(crate) fn needs(&self) -> (Option<RecordId>, Option<pins::Records>) {
        let first = self.records.first().map(|record| record.first_number);
        let last = self.records.last().map(|record| record.number);
        let records = first.zip(last).map(|(from, to)| pins::Records { from, to });
        (self.base.as_ref().map(Point::id), records)
    }
}

impl From<RecoverableError> for ScanError {
    fn from(error: RecoverableError) -> Self {
        match error {
            RecoverableError::Log(error) => Self::Log(error),
            RecoverableError::Catalogue(error) => Self::Catalogue(error),
        }
    }
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

pub(crate) async fn from_base(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    selector: PointSelector,
    base: Option<(&Point, Reach)>,
) -> Result<Found, ScanError> {
    let reach = base.map_or(Reach::Journal, |(_, reach)| reach);
    let base = base.map(|(point, _)| point);
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
        under_pin: false,
        log_end: point.number,
    });
    let mut after = Vec::new();
    let mut seen = Seen::default();
    // A base that is the wanted record itself needs no more of the log.
    let mut done = reach == Reach::Itself
        || matches!((selector, base), (PointSelector::Number(number), Some(point)) if point.number == number);
    while !done {
        let Some(entry) = reader.next().await? else {
            reader.check_end().await?;
            break;
        };
        let Body::Data(record) = entry.body else { continue };
        seen.note(&record);
        if reach.ends_before(record.number) {
            break;
        }
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
                under_pin: reach != Reach::Journal,
                log_end: record.number,
            });
        }
        done = fit == Fit::Found;
    }
    if let Some(found) = &mut found {
        found.log_end = found.log_end.max(seen.last);
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
