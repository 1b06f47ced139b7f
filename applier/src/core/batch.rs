//! Carries a batch out: its segments are fetched newest first, so each block is written once, with its last content.
//!
//! Bounds: [`FETCH`] segments on their way, [`WINDOW_BYTES`] collected for coalescing, [`PARALLEL_WRITES`] writes of
//! at most 4 MiB under way. What covers what is one compressed bitmap a disk. So memory does not grow with the batch.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    catalogue::Seed,
    ids::DiskSlot,
    journal::{self, JournalError, Source},
    planted::Planted,
    segment::ExtentData,
    sums::SumKeys,
    wire::v1,
};
use roaring::RoaringBitmap;
use tokio::task::JoinSet;

use super::{
    ApplyError, Figures,
    coalesce::{PageWrite, Window},
    seeds::{self, Seeds},
    sums::Pending,
};

/// Segments fetched ahead: 4 MiB each, to hide the store's latency.
const FETCH: usize = 3;
/// Data collected before it is written, so that small neighbours of several records become one write.
const WINDOW_BYTES: usize = 16 << 20;
/// Page writes under way for one server.
const PARALLEL_WRITES: usize = 6;

/// Writes all blocks of the records, tagged with `sequence`. When it returns `Ok`, all of them are durable; their
/// checksums are still to be written.
pub(super) async fn write(
    seeds: &Seeds,
    disks: &BTreeMap<u32, Seed>,
    keys: &BTreeMap<u32, SumKeys>,
    records: &[v1::Data],
    sequence: u64,
    figures: &mut Figures,
) -> Result<BTreeMap<DiskSlot, Pending>, ApplyError> {
    let mut writer = Writer {
        seeds: Arc::new(seeds.clone()),
        disks: disks.iter().map(|(slot, seed)| (DiskSlot(*slot), Arc::new(seed.clone()))).collect(),
        sequence,
        writes: JoinSet::new(),
        figures,
    };
    let mut covered: BTreeMap<DiskSlot, RoaringBitmap> = BTreeMap::new();
    let mut sums: BTreeMap<DiskSlot, Pending> =
        keys.iter().map(|(slot, keys)| (DiskSlot(*slot), Pending::new(keys.clone()))).collect();
    let mut window = Window::default();
    let mut sources = newest_first(records)?;
    if seeds.planted == Some(Planted::CopyAppliedLast) {
        let copy = |record: &v1::Data| record.kind() == v1::RecordKind::Copy;
        let copies: Vec<_> =
            records.iter().filter(|record| copy(record)).map(|record| record.number).collect();
        sources.sort_by_key(|source| !copies.contains(&source.record));
    }
    let fetch = |source: Source| async move {
        let extents = source.read(&seeds.vault, &seeds.patience).await;
        extents.map(|extents| (source.record, source.fetched_bytes(), extents))
    };
    let mut fetched = stream::iter(sources).map(fetch).buffered(FETCH);
    while let Some(segment) = fetched.next().await {
        let (record, bytes, extents) = segment?;
        writer.figures.fetched_bytes += bytes;
        for extent in extents.iter().rev() {
            writer.check(record, &extent.run)?;
            let covered = covered.entry(extent.run.disk).or_default();
            let mut sums = sums.get_mut(&extent.run.disk);
            let piece = |piece: ExtentData| {
                if let Some(sums) = &mut sums {
                    sums.take(&piece);
                }
                window.push(piece);
            };
            uncovered(extent, covered, piece, &mut writer.figures.superseded_bytes);
        }
        if window.bytes() >= WINDOW_BYTES {
            writer.start(window.drain()).await?;
        }
    }
    writer.start(window.drain()).await?;
    writer.finish().await?;
    Ok(sums)
}

fn newest_first(records: &[v1::Data]) -> Result<Vec<Source>, JournalError> {
    let mut all = Vec::new();
    for record in records.iter().rev() {
        all.extend(journal::sources(record)?.into_iter().rev());
    }
    Ok(all)
}

/// The parts of `extent` that nothing newer covers; afterwards they are covered.
fn uncovered(
    extent: &ExtentData,
    covered: &mut RoaringBitmap,
    mut piece: impl FnMut(ExtentData),
    superseded: &mut u64,
) {
    let BlockRun { disk, first, blocks } = extent.run;
    if blocks == 0 {
        return;
    }
    let end = first + blocks;
    let mut free = RoaringBitmap::new();
    free.insert_range(first..end);
    free -= &*covered;
    *superseded += (u64::from(blocks) - free.len()) * BLOCK_BYTES;
    let mut at = free.iter().peekable();
    while let Some(start) = at.next() {
        let mut length = 1;
        while at.next_if(|next| *next == start + length).is_some() {
            length += 1;
        }
        let data = extent.data.as_ref().map(|data: &Bytes| {
            let from = (start - first) as usize * BLOCK_BYTES as usize;
            data.slice(from..from + length as usize * BLOCK_BYTES as usize)
        });
        piece(ExtentData { run: BlockRun { disk, first: start, blocks: length }, data });
    }
    covered.insert_range(first..end);
}

struct Writer<'a> {
    seeds: Arc<Seeds>,
    disks: BTreeMap<DiskSlot, Arc<Seed>>,
    sequence: u64,
    writes: JoinSet<Result<(), ApplyError>>,
    figures: &'a mut Figures,
}

impl Writer<'_> {
    /// Does the disk exist, and are the blocks on it?
    fn check(&self, record: u64, run: &BlockRun) -> Result<(), ApplyError> {
        let blocks = self.disks.get(&run.disk).map(|seed| seeds::blocks(seed));
        match (blocks, run.first.checked_add(run.blocks)) {
            (Some(blocks), Some(end)) if u64::from(end) <= blocks => Ok(()),
            _ => Err(ApplyError::OffDisk { record, disk: run.disk, block: run.first }),
        }
    }

    async fn start(&mut self, writes: Vec<PageWrite>) -> Result<(), ApplyError> {
        for write in writes {
            while self.writes.len() >= PARALLEL_WRITES {
                self.settle_one().await?;
            }
            let (seeds, sequence) = (Arc::clone(&self.seeds), self.sequence);
            let (PageWrite::Write { disk, .. } | PageWrite::Clear { disk, .. }) = &write;
            let Some(seed) = self.disks.get(disk).cloned() else { continue };
            self.figures.page_writes += 1;
            match write {
                PageWrite::Write { offset, content, .. } => {
                    self.figures.written_bytes += content.len() as u64;
                    self.writes.spawn(async move { seeds.write(&seed, offset, content, sequence).await });
                }
                PageWrite::Clear { offset, length, .. } => {
                    self.figures.cleared_bytes += length;
                    self.writes.spawn(async move { seeds.clear(&seed, offset, length, sequence).await });
                }
            }
        }
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), ApplyError> {
        match self.writes.join_next().await {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(stopped)) => Err(ApplyError::Stopped(stopped)),
        }
    }

    async fn finish(mut self) -> Result<(), ApplyError> {
        while !self.writes.is_empty() {
            self.settle_one().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_newer_covers_is_written() {
        let data: Vec<u8> = (0..10).flat_map(|block| vec![block; 4096]).collect();
        let run = BlockRun { disk: DiskSlot(1), first: 10, blocks: 10 };
        let extent = ExtentData { run, data: Some(data.into()) };
        let mut covered = RoaringBitmap::from_iter([12, 13, 19, 25]);
        let (mut pieces, mut superseded) = (Vec::new(), 0);
        uncovered(&extent, &mut covered, |piece| pieces.push(piece), &mut superseded);
        let seen: Vec<_> = pieces
            .iter()
            .map(|piece| {
                (piece.run.first, piece.run.blocks, piece.data.as_ref().map(|data| (data[0], data.len())))
            })
            .collect();
        assert_eq!(seen, [(10, 2, Some((0, 8192))), (14, 5, Some((4, 5 * 4096)))]);
        assert_eq!(superseded, 3 * 4096);
        assert_eq!(covered.len(), 11);
    }
}
