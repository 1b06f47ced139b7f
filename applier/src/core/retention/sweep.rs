//! Deletes what neither the catalogue nor a pin names: snapshots of seed disks, and segments of the journal.
//!
//! **Snapshots.** One that is not listed, and whose sequence number is at most that of the newest listed point, can
//! never be listed any more: a point enters the list only behind the newest, with If-Match. A higher one may be that of
//! an applier that is about to list it, so it stays until a later point is listed.
//! **Segments.** A name says epoch and record. Up to where the journal begins, nothing needs one but pins; a segment
//! that no record names (its writer died, or was fenced) has the number of a record that others have committed, so it
//! goes in the same way. Both the epoch and the number must lie behind the beginning: after a store has lost the end
//! of a log, numbers are given again in a later epoch.
//! **Bounds**: [`DELETES`] a sweep, [`PARALLEL`] at a time; the next sweep goes on.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    catalogue::Points,
    ids::RecordId,
    pins::Pin,
    store::{BlobKind, BlobStore, Listed, Refusal, SnapshotId, StoreError},
    vault::layout,
};

use crate::core::{Figures, seeds::Seeds};

/// Blobs deleted before records are applied again.
const DELETES: usize = 1000;
const PARALLEL: usize = 8;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::core) struct Swept {
    pub segments: u64,
    pub segment_bytes: u64,
    pub snapshots: u64,
    /// Blobs that only a pin keeps.
    pub pinned: u64,
    /// There may be more to delete.
    pub unfinished: bool,
}

impl Swept {
    pub(in crate::core) fn count(&self, figures: &mut Figures) {
        figures.deleted_segments += self.segments;
        figures.deleted_segment_bytes += self.segment_bytes;
        figures.deleted_snapshots += self.snapshots;
        figures.pinned_blobs = self.pinned;
    }
}

/// Deletes what it can; `listed` is what the catalogue says, `pins` was read after that.
///
/// # Errors
/// When the store does not list or delete; what is left is found again.
pub(in crate::core) async fn sweep(
    seeds: &Seeds,
    listed: &Points,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    snapshots(seeds, listed, pins, swept).await?;
    match listed.collected {
        Some(collected) => segments(seeds, collected, pins, swept).await,
        None => Ok(()),
    }
}

async fn snapshots(
    seeds: &Seeds,
    listed: &Points,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let Some(newest) = listed.points.last().map(|point| point.sequence()) else { return Ok(()) };
    let store = &*seeds.vault.store;
    let prefix = layout::disks_prefix(&seeds.server);
    let mut after = None;
    loop {
        let page = seeds.patience.sure(|| store.list(&prefix, true, after.as_deref())).await?;
        for blob in &page.blobs {
            let (Some(snapshot), BlobKind::Page) = (&blob.snapshot, blob.kind) else { continue };
            if is_listed(listed, &seeds.server, blob, snapshot) {
                continue;
            }
            let found = seeds.patience.sure(|| store.properties(&blob.name, Some(snapshot))).await;
            let sequence = match found {
                Err(error) if error.is(Refusal::NotFound) => continue,
                found => found?.sequence_number,
            };
            if pins.iter().any(|pin| pin.holds_snapshot(sequence)) {
                swept.pinned += 1;
            } else if sequence <= newest {
                delete(seeds, store, &blob.name, Some(snapshot)).await?;
                swept.snapshots += 1;
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

fn is_listed(
    listed: &Points,
    server: &lifeboat_replication::ids::ServerId,
    blob: &Listed,
    snapshot: &SnapshotId,
) -> bool {
    let mut disks = listed.points.iter().flat_map(|point| &point.disks);
    disks.any(|disk| disk.snapshot == snapshot.0 && layout::seed_disk(server, &disk.disk_id) == blob.name)
}

async fn segments(
    seeds: &Seeds,
    collected: RecordId,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let cache = &*seeds.vault.cache;
    let prefix = layout::journal_prefix(&seeds.server);
    let mut after = None;
    loop {
        let page = seeds.patience.sure(|| cache.list(&prefix, false, after.as_deref())).await?;
        let (mut doomed, mut over) = (Vec::new(), false);
        for blob in page.blobs {
            // Names are in order of epoch, then record.
            let Some((epoch, record)) = layout::parse_segment(&seeds.server, &blob.name) else { continue };
            over |= (RecordId { epoch, number: record }) > collected;
            if epoch > collected.epoch || record > collected.number {
                continue;
            }
            if pins.iter().any(|pin| pin.holds_record(record)) {
                swept.pinned += 1;
            } else {
                doomed.push(blob);
            }
        }
        let room = DELETES.saturating_sub(usize::try_from(swept.segments).unwrap_or(usize::MAX));
        if doomed.len() > room {
            doomed.truncate(room);
            swept.unfinished = true;
        }
        let deleted = stream::iter(doomed)
            .map(|blob| async move { delete(seeds, cache, &blob.name, None).await.map(|()| blob.length) })
            .buffered(PARALLEL)
            .try_for_each(|bytes| {
                swept.segments += 1;
                swept.segment_bytes += bytes;
                std::future::ready(Ok(()))
            });
        deleted.await?;
        after = page.next;
        if after.is_none() || over || swept.unfinished {
            return Ok(());
        }
    }
}

/// Gone before is done.
async fn delete(
    seeds: &Seeds,
    store: &dyn BlobStore,
    name: &str,
    snapshot: Option<&SnapshotId>,
) -> Result<(), StoreError> {
    match seeds.patience.sure(|| store.delete(name, snapshot)).await {
        Err(error) if !error.is(Refusal::NotFound) => Err(error),
        _ => Ok(()),
    }
}
