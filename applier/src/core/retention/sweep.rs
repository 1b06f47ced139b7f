//! Deletes what neither the catalogue nor a pin names: snapshots of seed disks, segments of the journal, parts of the log.
//!
//! **Snapshots.** One that is not listed, and whose sequence number is at most that of the newest listed point, can
//! never be listed any more: a point enters the list only behind the newest, with If-Match. A higher one may be that of
//! an applier that is about to list it, so it stays until a later point is listed.
//! **Segments.** A name says epoch and record. Up to where the journal begins, nothing needs one but pins; a segment
//! that no record names (its writer died, or was fenced) has the number of a record that others have committed, so it
//! goes in the same way. Both the epoch and the number must lie behind the beginning: after a store has lost the end
//! of a log, numbers are given again in a later epoch.
//! **Parts of the log.** Those before the part that the catalogue lets the log begin with, unless a pin that has come
//! meanwhile needs an earlier place. In order, one after the other, so that what is left is a suffix after a crash too.
//! What is listed is counted as well: that is how it is known what a server takes up.
//! **Bounds**: [`DELETES`] a sweep, [`PARALLEL`] at a time; the next sweep goes on.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    catalogue::Points,
    ids::RecordId,
    log::{LogState, PartName, part},
    pins::Pin,
    planted::Planted,
    store::{BlobKind, BlobStore, Listed, Refusal, SnapshotId, StoreError},
    vault::layout,
};

use super::plan::log_floor;
use crate::core::{Figures, Stored, seeds::Seeds};

/// Blobs deleted before records are applied again.
const DELETES: usize = 1000;
const PARALLEL: usize = 8;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::core) struct Swept {
    pub segments: u64,
    pub segment_bytes: u64,
    pub snapshots: u64,
    pub log_parts: u64,
    pub log_bytes: u64,
    /// Blobs that only a pin keeps.
    pub pinned: u64,
    /// There may be more to delete.
    pub unfinished: bool,
    /// Something can only be deleted when a lease has run out.
    pub later: bool,
    /// What is left; whole only if the sweep was.
    pub left: Stored,
}

impl Swept {
    pub(in crate::core) fn count(&self, figures: &mut Figures) {
        figures.deleted_segments += self.segments;
        figures.deleted_segment_bytes += self.segment_bytes;
        figures.deleted_snapshots += self.snapshots;
        figures.deleted_log_parts += self.log_parts;
        figures.deleted_log_bytes += self.log_bytes;
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
    position: &LogState,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    swept.left = Stored::default();
    snapshots(seeds, listed, pins, swept).await?;
    log_parts(seeds, listed, position, pins, swept).await?;
    segments(seeds, listed.collected, pins, swept).await
}

async fn snapshots(
    seeds: &Seeds,
    listed: &Points,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    // Without a listed point every snapshot may be one that is about to be listed.
    let newest = listed.points.last().map(|point| point.sequence());
    let store = &*seeds.vault.store;
    let prefix = layout::disks_prefix(&seeds.server);
    let mut after = None;
    loop {
        let page = seeds.patience.sure(|| store.list(&prefix, true, after.as_deref())).await?;
        for blob in &page.blobs {
            let Some(snapshot) = &blob.snapshot else {
                swept.left.seed_disk_bytes += bytes(seeds, blob).await?;
                continue;
            };
            if blob.kind != BlobKind::Page {
                continue;
            }
            swept.left.snapshots += 1;
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
            } else if newest.is_some_and(|newest| sequence <= newest) {
                delete(seeds, store, &blob.name, Some(snapshot)).await?;
                swept.snapshots += 1;
                swept.left.snapshots -= 1;
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// What a blob takes up: of a page blob the pages that hold something.
async fn bytes(seeds: &Seeds, blob: &Listed) -> Result<u64, StoreError> {
    if blob.kind != BlobKind::Page {
        return Ok(blob.length);
    }
    match seeds.patience.sure(|| seeds.vault.store.page_ranges(&blob.name, None)).await {
        Ok(ranges) => Ok(ranges.iter().map(|range| range.end - range.start).sum()),
        Err(error) if error.is(Refusal::NotFound) => Ok(0),
        Err(error) => Err(error),
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

async fn log_parts(
    seeds: &Seeds,
    listed: &Points,
    position: &LogState,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let Seeds { vault, server, patience, planted } = seeds;
    let begins = listed.log_begins.unwrap_or(PartName::FIRST);
    let floor = log_floor(listed, position, pins).map(LogState::part_name);
    let needed = match planted {
        Some(Planted::LogBeginsAtPosition) => begins,
        _ => floor.map_or(PartName::FIRST, |floor| floor.min(begins)),
    };
    // From there on nothing goes: what is left is a suffix.
    let mut refused = false;
    for (name, length) in part::lengths(vault, server, patience).await? {
        if name >= begins || name >= needed || refused {
            swept.pinned += u64::from(name < begins && !refused);
            swept.left.log_bytes += length;
            continue;
        }
        match delete(seeds, &*vault.store, &name.blob(server), None).await {
            // Its writer has gone on in another part less than a lease's term ago: the next sweep.
            Err(error) if error.is(Refusal::Lease) => {
                swept.later = true;
                refused = true;
                swept.left.log_bytes += length;
                continue;
            }
            done => done?,
        }
        swept.log_parts += 1;
        swept.log_bytes += length;
    }
    Ok(())
}

async fn segments(
    seeds: &Seeds,
    collected: Option<RecordId>,
    pins: &[Pin],
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let cache = &*seeds.vault.cache;
    let prefix = layout::journal_prefix(&seeds.server);
    let mut after = None;
    loop {
        let page = seeds.patience.sure(|| cache.list(&prefix, false, after.as_deref())).await?;
        let mut doomed = Vec::new();
        for blob in page.blobs {
            let Some((epoch, record)) = layout::parse_segment(&seeds.server, &blob.name) else { continue };
            swept.left.journal_bytes += blob.length;
            let goes = collected.is_some_and(|begins| epoch <= begins.epoch && record <= begins.number);
            if !goes {
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
                swept.left.journal_bytes = swept.left.journal_bytes.saturating_sub(bytes);
                std::future::ready(Ok(()))
            });
        deleted.await?;
        after = page.next;
        if after.is_none() || swept.unfinished {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lifeboat_replication::{
        ids::{Epoch, RecordNumber},
        store::{LeaseId, PutCondition},
    };

    use super::{
        super::fixture::{point, seeds},
        *,
    };

    /// Of a reader that reads from the point of this record.
    fn pin(number: u64) -> Pin {
        Pin {
            format: 1,
            server: String::new(),
            run: "run".to_owned(),
            base: Some(RecordId { epoch: Epoch(1), number: RecordNumber(number) }),
            records: None,
            held_for_seconds: 3600,
            renewed_at_micros: 0,
            confirmed: true,
        }
    }

    const LEASE: Duration = Duration::from_secs(60);

    /// A log of five parts, the later the longer, that may begin with part 3; record 1 stands in part 1.
    async fn shortened() -> (Seeds, Points, LogState) {
        let seeds = seeds();
        let lease = LeaseId("writer".into());
        for part in 0..5 {
            let (store, blob) = (&seeds.vault.store, PartName { epoch: Epoch(1), part }.blob(&seeds.server));
            store.create_append(&blob).await.unwrap();
            store.acquire_lease(&blob, &lease, LEASE).await.unwrap();
            store.append(&blob, vec![0; 10_usize.pow(part)].into(), &lease, 0).await.unwrap();
            if part > 0 {
                store.release_lease(&blob, &lease).await.unwrap();
            }
        }
        let mut log = LogState::empty(seeds.vault.keys.current().0.clone());
        log.epoch = Epoch(1);
        let mut listed = Points::none(&seeds.server);
        for (number, part) in [(1, 1), (2, 3)] {
            (log.last_number, log.part) = (RecordNumber(number), part);
            listed.points.push(point(&log, &SnapshotId(String::new())));
        }
        listed.collected = listed.points.last().map(lifeboat_replication::catalogue::Point::id);
        listed.log_begins = Some(PartName { epoch: Epoch(1), part: 3 });
        log.part = 4;
        (seeds, listed, log)
    }

    async fn parts(seeds: &Seeds) -> Vec<u32> {
        let parts = part::list(&seeds.vault, &seeds.server, &seeds.patience).await.unwrap();
        parts.into_iter().map(|name| name.part).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn parts_go_up_to_where_the_log_begins_or_a_pin_still_reads() {
        let (seeds, listed, position) = shortened().await;
        tokio::time::sleep(LEASE).await;
        let mut swept = Swept::default();
        sweep(&seeds, &listed, &position, &[pin(1)], &mut swept).await.unwrap();
        assert_eq!(parts(&seeds).await, [1, 2, 3, 4]);
        assert_eq!((swept.log_parts, swept.log_bytes, swept.pinned), (1, 1, 2));
        assert_eq!(swept.left.log_bytes, 11_110);

        let mut swept = Swept::default();
        sweep(&seeds, &listed, &position, &[], &mut swept).await.unwrap();
        assert_eq!(parts(&seeds).await, [3, 4]);
        assert_eq!((swept.log_parts, swept.log_bytes, swept.pinned, swept.later), (2, 110, 0, false));
        assert_eq!(swept.left.log_bytes, 11_000);
    }

    /// So that what is left is always a suffix, which readers and takeovers rely on.
    #[tokio::test(start_paused = true)]
    async fn a_part_that_cannot_be_deleted_yet_keeps_all_later_ones() {
        let (seeds, listed, position) = shortened().await;
        let mut swept = Swept::default();
        sweep(&seeds, &listed, &position, &[], &mut swept).await.unwrap();
        assert_eq!(parts(&seeds).await, [0, 1, 2, 3, 4]);
        assert_eq!((swept.log_parts, swept.pinned, swept.later), (0, 0, true));
        assert_eq!(swept.left.log_bytes, 11_111);
        tokio::time::sleep(LEASE).await;
        let mut swept = Swept::default();
        sweep(&seeds, &listed, &position, &[], &mut swept).await.unwrap();
        assert_eq!((parts(&seeds).await, swept.later), (vec![3, 4], false));
    }

    /// Records are applied between two sweeps.
    #[tokio::test(start_paused = true)]
    async fn a_sweep_deletes_a_thousand_segments_and_says_that_there_are_more() {
        for (there, unfinished) in [(DELETES, false), (DELETES + 1, true)] {
            let seeds = seeds();
            for number in 0..there {
                let of = RecordNumber(5);
                let name = layout::segment(&seeds.server, Epoch(1), of, "writer", number as u32);
                seeds.vault.cache.put(&name, "xy".into(), &PutCondition::IfAbsent).await.unwrap();
            }
            let collected = Some(RecordId { epoch: Epoch(1), number: RecordNumber(5) });
            let listed = Points { collected, ..Points::none(&seeds.server) };
            let position = LogState::empty(seeds.vault.keys.current().0.clone());
            let mut swept = Swept::default();
            sweep(&seeds, &listed, &position, &[], &mut swept).await.unwrap();
            assert_eq!((swept.segments, swept.segment_bytes), (1000, 2000));
            assert_eq!(swept.unfinished, unfinished);
            let left = seeds.vault.cache.list("", false, None).await.unwrap().blobs.len();
            assert_eq!(left, there - DELETES);
            assert_eq!(swept.left.journal_bytes, 2 * left as u64);
        }
    }

    /// Record 3 is the newest listed point. A reader has pinned 1, which nobody lists any more; an applier may be about
    /// to list 4.
    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_nobody_lists_goes_unless_a_pin_holds_it_or_it_is_newer_than_the_list() {
        let seeds = seeds();
        let store = &seeds.vault.store;
        let disk = seeds.name("disk");
        store.create_page(&disk, 1 << 20).await.unwrap();
        let mut log = LogState::empty(seeds.vault.keys.current().0.clone());
        log.epoch = Epoch(1);
        let mut listed = Points::none(&seeds.server);
        let mut taken = Vec::new();
        for number in 1..=4 {
            log.last_number = RecordNumber(number);
            let id = RecordId { epoch: log.epoch, number: log.last_number };
            store.raise_sequence(&disk, id.sequence(), None).await.unwrap();
            let snapshot = store.snapshot(&disk, None, None).await.unwrap();
            if number == 3 {
                listed.points.push(point(&log, &snapshot));
            }
            taken.push(snapshot);
        }
        let pin = pin(1);
        let mut swept = Swept::default();
        sweep(&seeds, &listed, &log, &[pin], &mut swept).await.unwrap();
        let page = store.list(&disk, true, None).await.unwrap();
        let left: Vec<_> = page.blobs.into_iter().filter_map(|blob| blob.snapshot).collect();
        assert_eq!(left, [taken[0].clone(), taken[2].clone(), taken[3].clone()]);
        assert_eq!((swept.snapshots, swept.pinned, swept.left.snapshots), (1, 1, 3));
    }

    #[test]
    fn what_sweeps_delete_adds_up_and_what_pins_keep_is_that_of_the_last() {
        let sweep = |pinned| Swept {
            segments: 1,
            segment_bytes: 20,
            snapshots: 300,
            log_parts: 4000,
            log_bytes: 50_000,
            pinned,
            ..Swept::default()
        };
        let mut figures = Figures::default();
        sweep(7).count(&mut figures);
        sweep(3).count(&mut figures);
        let expected = Figures {
            deleted_segments: 2,
            deleted_segment_bytes: 40,
            deleted_snapshots: 600,
            deleted_log_parts: 8000,
            deleted_log_bytes: 100_000,
            pinned_blobs: 3,
            ..Figures::default()
        };
        assert_eq!(figures, expected);
    }
}
