//! How content compresses, learned from a part of it. Pure.
//!
//! Samples are of the size of a segment ([`SAMPLE_BLOCKS`]), since larger ones compress better than the real thing.

use std::collections::BTreeSet;

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun, BlockSet},
    segment::{self, ExtentData, SegmentError},
    wire::v1,
};

use crate::core::chunk::Content;

/// A process server closes a segment once it holds 2 MiB.
pub const SAMPLE_BLOCKS: u32 = ((2 << 20) / BLOCK_BYTES) as u32;

/// The default of `ReplicationPolicy.spec.compression.level`.
pub const LEVEL: i32 = 1;

/// Steps that spread evenly however many are taken: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What samples have shown together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    pub samples: u64,
    pub bytes: u64,
    /// Of them not zero.
    pub data_bytes: u64,
    /// Sum of what the samples stand for, in bytes, and of what segments of that would have.
    stands_for: (f64, f64),
    /// Sums over the samples of the share that is not zero, and of its square.
    shares: (f64, f64),
}

impl Sample {
    /// `whole`: bytes that this content stands for, so that a large round counts more than a small one.
    pub fn add(&mut self, content: &Content, whole: u64) -> Result<(), SegmentError> {
        let bytes = content.blocks.bytes();
        if bytes == 0 {
            return Ok(());
        }
        let data_bytes = content.data.len() as u64;
        let sealed_bytes = segment::sealed_length(&extents(content), LEVEL)?;
        let (stands_for, sent) = self.stands_for;
        let whole = whole as f64;
        self.stands_for = (stands_for + whole, sent + whole * sealed_bytes as f64 / bytes as f64);
        self.samples += 1;
        self.bytes += bytes;
        self.data_bytes += data_bytes;
        let share = data_bytes as f64 / bytes as f64;
        self.shares = (self.shares.0 + share, self.shares.1 + share * share);
        Ok(())
    }

    /// Sent bytes for each byte of blocks; `None` without samples.
    pub fn ratio(&self) -> Option<f64> {
        let (stands_for, sent) = self.stands_for;
        (stands_for > 0.0).then(|| sent / stands_for)
    }

    /// The share that is not zero.
    pub fn used(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.data_bytes as f64 / self.bytes as f64)
    }

    /// Twice the standard error of [`Sample::used`]: 19 times of 20 it is not further off. `None` with fewer than two
    /// samples.
    pub fn used_error(&self) -> Option<f64> {
        let count = self.samples as f64;
        (self.samples > 1).then(|| {
            let mean = self.shares.0 / count;
            let variance = (self.shares.1 / count - mean * mean).max(0.0) * count / (count - 1.0);
            2.0 * (variance / count).sqrt()
        })
    }
}

fn extents(content: &Content) -> Vec<ExtentData> {
    let mut at = 0;
    let extent = |piece: &crate::core::chunk::Piece| {
        let length = if piece.zero { 0 } else { piece.run.blocks as usize * BLOCK_BYTES as usize };
        let data = (!piece.zero).then(|| content.data.slice(at..at + length));
        at += length;
        ExtentData { run: piece.run, data }
    };
    content.pieces.iter().map(extent).collect()
}

/// Places that spread evenly, without chance.
#[derive(Debug, Clone, Copy)]
pub struct Spread(u64);

impl Spread {
    pub fn new(start: u64) -> Self {
        Self(start)
    }

    /// The next place among `count`.
    pub fn next(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        ((u128::from(self.0) * u128::from(count)) >> 64) as u64
    }
}

/// [`SAMPLE_BLOCKS`] of these blocks, neighbours in the set, or all if there are no more: a sample of a few would show what
/// a segment itself takes, instead of how its content compresses.
pub fn some_of(blocks: &BlockSet, spread: &mut Spread) -> BlockSet {
    let first = spread.next(blocks.len().saturating_sub(u64::from(SAMPLE_BLOCKS)) + 1);
    let mut chosen = BlockSet::default();
    let (mut before, mut left) = (0, SAMPLE_BLOCKS as usize);
    for (disk, bitmap) in blocks.disks() {
        let skipped = u32::try_from(first.saturating_sub(before)).unwrap_or(u32::MAX);
        before += bitmap.len();
        if left > 0
            && let Some(block) = bitmap.select(skipped)
        {
            let mut rest = bitmap.iter();
            rest.advance_to(block);
            let part: lifeboat_replication::blocks::RoaringBitmap = rest.take(left).collect();
            left -= part.len() as usize;
            chosen.insert_disk(disk, part);
        }
    }
    chosen
}

/// Stretches of the disks, each looked at once at most.
#[derive(Debug)]
pub struct Areas {
    /// Disk, its blocks, its areas.
    disks: Vec<(BlockRun, u64)>,
    count: u64,
    seen: BTreeSet<u64>,
    most: usize,
    spread: Spread,
}

impl Areas {
    pub fn new(disks: &[v1::Disk], most: usize, spread: Spread) -> Self {
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| {
                let blocks = u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
                let whole =
                    BlockRun { disk: lifeboat_replication::ids::DiskSlot(disk.slot), first: 0, blocks };
                (whole, u64::from(blocks.div_ceil(SAMPLE_BLOCKS)))
            })
            .collect();
        let count = disks.iter().map(|(_, areas)| areas).sum();
        Self { disks, count, seen: BTreeSet::new(), most, spread }
    }

    /// Everything was looked at: what was found is not an estimate.
    pub fn is_complete(&self) -> bool {
        self.seen.len() as u64 == self.count
    }

    pub fn another(&mut self) -> Option<BlockSet> {
        if self.is_complete() || self.seen.len() >= self.most {
            return None;
        }
        let mut area = self.spread.next(self.count);
        while !self.seen.insert(area) {
            area = (area + 1) % self.count;
        }
        for (whole, areas) in &self.disks {
            if area < *areas {
                let first = u32::try_from(area).unwrap_or(u32::MAX).saturating_mul(SAMPLE_BLOCKS);
                let blocks = SAMPLE_BLOCKS.min(whole.blocks.saturating_sub(first));
                let mut set = BlockSet::default();
                set.insert_run(BlockRun { first, blocks, ..*whole });
                return Some(set);
            }
            area -= areas;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lifeboat_replication::ids::DiskSlot;
    use proptest::prelude::*;

    use super::*;
    use crate::core::chunk::Piece;

    fn run(disk: u32, first: u32, blocks: u32) -> BlockRun {
        BlockRun { disk: DiskSlot(disk), first, blocks }
    }

    fn content(runs: &[(BlockRun, bool)]) -> Content {
        let mut blocks = BlockSet::default();
        runs.iter().for_each(|(run, _)| blocks.insert_run(*run));
        let data: u32 = runs.iter().filter(|(_, zero)| !zero).map(|(run, _)| run.blocks).sum();
        let pieces = runs.iter().map(|(run, zero)| Piece { run: *run, zero: *zero }).collect();
        Content { pieces, data: Bytes::from(vec![7; data as usize * 4096]), blocks }
    }

    #[test]
    fn zeros_cost_nothing_and_what_repeats_costs_little() {
        let mut sample = Sample::default();
        assert_eq!((sample.ratio(), sample.used(), sample.used_error()), (None, None, None));
        sample.add(&content(&[(run(1, 0, 100), true), (run(1, 100, 100), false)]), 200 * 4096).unwrap();
        sample.add(&content(&[(run(1, 500, 200), true)]), 200 * 4096).unwrap();
        assert_eq!(sample.used(), Some(0.25));
        assert!(sample.ratio().unwrap() < 0.01, "{sample:?}");
        let error = sample.used_error().unwrap();
        assert!((error - 0.5).abs() < 1e-9, "two samples of a half and of nothing: {error}");
    }

    #[test]
    fn a_sample_weighs_what_it_stands_for() {
        let mut sample = Sample::default();
        sample.add(&content(&[(run(1, 0, 256), true)]), 1 << 20).unwrap();
        let zeros = sample.ratio().unwrap();
        sample.add(&content(&[(run(1, 0, 1), false)]), 3 << 20).unwrap();
        let mut alone = Sample::default();
        alone.add(&content(&[(run(1, 0, 1), false)]), 1).unwrap();
        let expected = (zeros + 3.0 * alone.ratio().unwrap()) / 4.0;
        assert!((sample.ratio().unwrap() - expected).abs() < 1e-9, "{sample:?}");
    }

    #[test]
    fn every_area_is_looked_at_once_and_together_they_are_the_disks() {
        let disk = |slot, size_bytes| v1::Disk { slot, size_bytes, ..Default::default() };
        let mut areas = Areas::new(&[disk(1, 5 << 20), disk(2, 4096)], 100, Spread::new(3));
        let mut all = BlockSet::default();
        while let Some(area) = areas.another() {
            assert!(!all.intersects(&area));
            all.union(&area);
        }
        assert!(areas.is_complete());
        let mut whole = BlockSet::default();
        [run(1, 0, 1280), run(2, 0, 1)].into_iter().for_each(|run| whole.insert_run(run));
        assert_eq!(all, whole);
    }

    #[test]
    fn a_large_disk_is_looked_at_in_a_bounded_number_of_places_all_over_it() {
        let disk = v1::Disk { slot: 1, size_bytes: 1 << 40, ..Default::default() };
        let mut areas = Areas::new(&[disk], 64, Spread::new(5));
        let mut firsts: Vec<u32> = std::iter::from_fn(|| areas.another())
            .map(|area| area.runs(u32::MAX).next().unwrap().first)
            .collect();
        assert_eq!(firsts.len(), 64);
        assert!(!areas.is_complete());
        firsts.sort_unstable();
        let widest = firsts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(widest < (1 << 28) / 20, "no large part is passed over: {widest}");
    }

    proptest! {
        #[test]
        fn a_part_is_of_the_set_and_as_large_as_it_may_be(
            runs in prop::collection::vec((1_u32..4, 0_u32..5000, 1_u32..900), 1..8), start in any::<u64>(),
        ) {
            let mut set = BlockSet::default();
            runs.iter().for_each(|(disk, first, blocks)| set.insert_run(run(*disk, *first, *blocks)));
            let some = some_of(&set, &mut Spread::new(start));
            prop_assert_eq!(&some.intersection(&set), &some);
            prop_assert!(!some.is_empty() && some.len() <= u64::from(SAMPLE_BLOCKS));
        }
    }
}
