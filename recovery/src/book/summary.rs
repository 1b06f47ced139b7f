//! What `vault ls` says about a server: from the catalogue, the two ends of the log and listings; no segment is read.

use lifeboat_replication::{
    catalogue::{Points, is_point},
    env::{Env, Micros},
    errors::chain,
    ids::ServerId,
    log::{self, LogDisk, LogReader, LogState, Patience, ReadError},
    recoverable::journal_begins,
    store::{BlobKind, BlobStore, Refusal, StoreError},
    vault::{Vault, layout},
    wire::v1::log_record::Body,
};
use serde::Serialize;

use super::{inventory::Held, sweep::PointName};
use crate::scan;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSummary {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub disks: Vec<DiskSummary>,
    /// Points that stand in snapshots.
    pub snapshots: usize,
    /// Any point between these two can be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<Window>,
    /// Number of the log's last record.
    pub last_record: u64,
    /// Instant of the last exact round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<String>,
    pub last_activity_micros: i64,
    /// The failover run that has closed the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_by: Option<String>,
    pub stored: Stored,
    /// What could not be read; `vault verify` says more.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSummary {
    pub slot: u32,
    pub id: String,
    pub path: String,
    pub size_bytes: u64,
    /// Excluded or gone: newer points do not have it, older ones may.
    pub left_out: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub oldest: PointName,
    pub newest: PointName,
}

/// Bytes in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    pub log_bytes: u64,
    pub journal_bytes: u64,
    /// Pages of the seed disks that hold something; what only snapshots hold is not counted.
    pub seed_bytes: u64,
}

impl From<&LogDisk> for DiskSummary {
    fn from(disk: &LogDisk) -> Self {
        let LogDisk { slot, id, size_bytes, path, left_out } = disk.clone();
        Self { slot: slot.0, id, path, size_bytes, left_out }
    }
}

/// # Errors
/// When the store cannot be read; damage stands in `problems`.
pub async fn of(
    vault: &Vault,
    held: &Held,
    env: &Env,
    patience: &Patience,
) -> Result<ServerSummary, StoreError> {
    let mut problems: Vec<String> = held.findings.iter().map(ToString::to_string).collect();
    let listed = match scan::listed(vault, &held.id).await {
        Ok(listed) => listed,
        Err(scan::ScanError::Store(error)) => return Err(error),
        Err(error) => {
            problems.push(chain(&error));
            Points::none(&held.id)
        }
    };
    let points = &listed.points;
    let newest_listed = points.last().map(|point| PointName::new(point.number, point.epoch, point.t0()));
    let mut ends = Ends::default();
    // From its first record, or where retention lets it begin.
    let beginning = listed.log_begins.and_then(|_| journal_begins(&listed)).map(|base| base.log.clone());
    for start in [points.last().map(|point| point.log.clone()), beginning] {
        match ends.read_to_the_end(vault, &held.id, env, start.clone()).await {
            Ok(()) => break,
            Err(ReadError::Store(error)) if error.refusal().is_none() => return Err(error),
            Err(error) => problems.push(chain(&error)),
        }
    }
    let oldest = points.first().map(|point| PointName::new(point.number, point.epoch, point.t0()));
    let first = match listed.collected {
        // Retention has taken the journal's beginning; the oldest point is a listed one.
        Some(_) => None,
        None => match first_point(vault, &held.id, env).await {
            Ok(first) => first,
            Err(ReadError::Store(error)) if error.refusal().is_none() => return Err(error),
            // Said already when the log was read to its end.
            Err(_) => None,
        },
    };
    let oldest = match (first, oldest) {
        (Some(first), Some(oldest)) if oldest.number < first.number => Some(oldest),
        (first, oldest) => first.or(oldest),
    };
    let newest = ends.newest.or(newest_listed);
    let state = ends.state;
    let disks = state.as_ref().map(|state| state.disks.iter().map(Into::into).collect()).unwrap_or_default();
    let last_t0 = state.as_ref().map_or(Micros(0), |state| state.last_t0);
    Ok(ServerSummary {
        id: held.id.to_string(),
        namespace: held.description.as_ref().map(|server| server.namespace.clone()),
        name: held.description.as_ref().map(|server| server.name.clone()),
        disks,
        snapshots: points.len(),
        journal: oldest.zip(newest).map(|(oldest, newest)| Window { oldest, newest }),
        last_record: state.as_ref().map_or(0, |state| state.last_number.0),
        last_activity: (last_t0.0 > 0).then(|| crate::select::time_text(last_t0)),
        last_activity_micros: last_t0.0,
        closed_by: state.and_then(|state| state.closed_run),
        stored: stored(vault, &held.id, patience).await?,
        problems,
    })
}

#[derive(Debug, Default)]
struct Ends {
    newest: Option<PointName>,
    state: Option<LogState>,
}

impl Ends {
    async fn read_to_the_end(
        &mut self,
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        start: Option<LogState>,
    ) -> Result<(), ReadError> {
        let mut reader = match start {
            Some(state) => LogReader::resume(vault, server, env, state)?,
            None => LogReader::from_start(vault, server, env),
        };
        loop {
            let entry = reader.next().await?;
            self.state = reader.state().cloned().or(self.state.take());
            let Some(entry) = entry else { return reader.check_end().await };
            if let Body::Data(record) = entry.body
                && is_point(&record)
            {
                let t0 = Micros(record.t0_micros);
                self.newest = Some(PointName::new(record.number, entry.epoch.0, t0));
            }
        }
    }
}

/// The first point of the journal.
async fn first_point(vault: &Vault, server: &ServerId, env: &Env) -> Result<Option<PointName>, ReadError> {
    let mut reader = LogReader::from_start(vault, server, env);
    while let Some(entry) = reader.next().await? {
        if let Body::Data(record) = entry.body
            && is_point(&record)
        {
            return Ok(Some(PointName::new(record.number, entry.epoch.0, Micros(record.t0_micros))));
        }
    }
    Ok(None)
}

async fn stored(vault: &Vault, server: &ServerId, patience: &Patience) -> Result<Stored, StoreError> {
    let mut stored = Stored::default();
    let parts = log::part::lengths(vault, server, patience).await?;
    stored.log_bytes = parts.iter().map(|(_, length)| length).sum();
    let journal = layout::journal_prefix(server);
    each(&*vault.cache, &journal, patience, |blob| stored.journal_bytes += blob.length).await?;
    let mut seeds = Vec::new();
    each(&*vault.store, &layout::disks_prefix(server), patience, |blob| {
        if blob.kind == BlobKind::Page {
            seeds.push(blob.name.clone());
        }
    })
    .await?;
    for seed in seeds {
        match patience.sure(|| vault.store.page_ranges(&seed, None)).await {
            Ok(ranges) => {
                stored.seed_bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
            }
            Err(error) if error.is(Refusal::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stored)
}

/// Every blob under a prefix.
pub(super) async fn each(
    store: &dyn BlobStore,
    prefix: &str,
    patience: &Patience,
    mut look: impl FnMut(&lifeboat_replication::store::Listed),
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = patience.sure(|| store.list(prefix, false, after.as_deref())).await?;
        page.blobs.iter().for_each(&mut look);
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}
