//! Sets of blocks. A block is 4 KiB of a disk; a set is a compressed bitmap (crate `roaring`), so a disk of up to
//! 16 TiB can be named.

use std::collections::BTreeMap;

pub use roaring::RoaringBitmap;

use crate::ids::DiskSlot;

/// Bytes of a block. Disks are whole numbers of blocks; sectors of 512 bytes are tracked as the block they are in.
pub const BLOCK_BYTES: u64 = 4096;

/// Blocks of the disks of a server. Disks without blocks have no entry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlockSet {
    disks: BTreeMap<DiskSlot, RoaringBitmap>,
}

/// A run of neighbouring blocks of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRun {
    pub disk: DiskSlot,
    pub first: u32,
    pub blocks: u32,
}

impl BlockSet {
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.disks.values().map(RoaringBitmap::len).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.len() * BLOCK_BYTES
    }

    pub fn disk(&self, disk: DiskSlot) -> Option<&RoaringBitmap> {
        self.disks.get(&disk)
    }

    pub fn disks(&self) -> impl Iterator<Item = (DiskSlot, &RoaringBitmap)> {
        self.disks.iter().map(|(slot, blocks)| (*slot, blocks))
    }

    pub fn contains(&self, disk: DiskSlot, block: u32) -> bool {
        self.disks.get(&disk).is_some_and(|blocks| blocks.contains(block))
    }

    pub fn insert_run(&mut self, run: BlockRun) {
        if run.blocks > 0 {
            let end = u64::from(run.first) + u64::from(run.blocks) - 1;
            let end = u32::try_from(end).unwrap_or(u32::MAX);
            self.disks.entry(run.disk).or_default().insert_range(run.first..=end);
        }
    }

    pub fn insert_disk(&mut self, disk: DiskSlot, blocks: RoaringBitmap) {
        if !blocks.is_empty() {
            *self.disks.entry(disk).or_default() |= blocks;
        }
    }

    pub fn union(&mut self, other: &Self) {
        for (disk, blocks) in &other.disks {
            *self.disks.entry(*disk).or_default() |= blocks;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        for (disk, blocks) in &other.disks {
            if let Some(mine) = self.disks.get_mut(disk) {
                *mine -= blocks;
            }
        }
        self.disks.retain(|_, blocks| !blocks.is_empty());
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut result = Self::default();
        for (disk, blocks) in &self.disks {
            if let Some(theirs) = other.disks.get(disk) {
                result.insert_disk(*disk, blocks & theirs);
            }
        }
        result
    }

    pub fn intersects(&self, other: &Self) -> bool {
        self.disks
            .iter()
            .any(|(disk, blocks)| other.disks.get(disk).is_some_and(|theirs| !blocks.is_disjoint(theirs)))
    }

    /// Runs in order of disk and block, none longer than `longest` blocks (at least 1).
    pub fn runs(&self, longest: u32) -> impl Iterator<Item = BlockRun> + '_ {
        let longest = longest.max(1);
        self.disks.iter().flat_map(move |(disk, blocks)| Runs {
            disk: *disk,
            blocks: blocks.iter().peekable(),
            longest,
        })
    }
}

struct Runs<'a> {
    disk: DiskSlot,
    blocks: std::iter::Peekable<roaring::bitmap::Iter<'a>>,
    longest: u32,
}

impl Iterator for Runs<'_> {
    type Item = BlockRun;

    fn next(&mut self) -> Option<BlockRun> {
        let first = self.blocks.next()?;
        let mut blocks = 1;
        while blocks < self.longest
            && self.blocks.next_if(|next| next.checked_sub(blocks) == Some(first)).is_some()
        {
            blocks += 1;
        }
        Some(BlockRun { disk: self.disk, first, blocks })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(runs: &[(u32, u32, u32)]) -> BlockSet {
        let mut set = BlockSet::default();
        for (disk, first, blocks) in runs {
            set.insert_run(BlockRun { disk: DiskSlot(*disk), first: *first, blocks: *blocks });
        }
        set
    }

    #[test]
    fn runs_cover_the_set_once_and_respect_the_longest() {
        let set = set(&[(1, 0, 5), (1, 7, 1), (2, 100, 3)]);
        let runs: Vec<_> = set.runs(4).map(|run| (run.disk.0, run.first, run.blocks)).collect();
        assert_eq!(runs, [(1, 0, 4), (1, 4, 1), (1, 7, 1), (2, 100, 3)]);
    }

    #[test]
    fn subtracting_everything_leaves_an_empty_set() {
        let mut all = set(&[(1, 0, 5)]);
        all.subtract(&set(&[(1, 0, 9)]));
        assert!(all.is_empty());
    }

    #[test]
    fn a_run_of_nothing_is_nothing_and_one_past_the_last_block_ends_there() {
        assert!(set(&[(1, 0, 0), (1, 7, 0)]).is_empty());
        let mut none = BlockSet::default();
        none.insert_disk(DiskSlot(1), RoaringBitmap::new());
        assert_eq!(none, BlockSet::default());
        let end = set(&[(1, u32::MAX - 1, 5)]);
        assert_eq!((end.len(), end.contains(DiskSlot(1), u32::MAX)), (2, true));
    }

    /// The same set, as plain as can be.
    type Plain = BTreeSet<(u32, u32)>;

    fn plain(set: &BlockSet) -> Plain {
        set.disks().flat_map(|(disk, blocks)| blocks.iter().map(move |block| (disk.0, block))).collect()
    }

    fn runs() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
        prop::collection::vec((1_u32..4, 0_u32..30, 0_u32..6), 0..6)
    }

    proptest! {
        #[test]
        fn sets_do_what_sets_of_disk_and_block_do(one in runs(), other in runs(), longest in 0_u32..5) {
            let of = |runs: &[(u32, u32, u32)]| -> Plain {
                let blocks = |(disk, first, blocks): &(u32, u32, u32)| {
                    let disk = *disk;
                    (*first..first + blocks).map(move |block| (disk, block))
                };
                runs.iter().flat_map(blocks).collect()
            };
            let (plain_one, plain_other) = (of(&one), of(&other));
            let (one, other) = (set(&one), set(&other));
            prop_assert_eq!(plain(&one), plain_one.clone());
            prop_assert_eq!(one.is_empty(), plain_one.is_empty());
            prop_assert_eq!(one.len(), plain_one.len() as u64);
            prop_assert_eq!(one.bytes(), plain_one.len() as u64 * BLOCK_BYTES);
            for (disk, block) in (1..4).flat_map(|disk| (0..40).map(move |block| (disk, block))) {
                let contained = plain_one.contains(&(disk, block));
                prop_assert_eq!(one.contains(DiskSlot(disk), block), contained);
                prop_assert_eq!(one.disk(DiskSlot(disk)).is_some_and(|blocks| blocks.contains(block)), contained);
            }

            let mut both = one.clone();
            both.union(&other);
            prop_assert_eq!(plain(&both), &plain_one | &plain_other);
            let mut disk_by_disk = one.clone();
            other.disks().for_each(|(disk, blocks)| disk_by_disk.insert_disk(disk, blocks.clone()));
            prop_assert_eq!(&disk_by_disk, &both);
            let mut rest = one.clone();
            rest.subtract(&other);
            prop_assert_eq!(plain(&rest), &plain_one - &plain_other);
            prop_assert_eq!(rest.is_empty(), plain_one.is_subset(&plain_other));
            let common = one.intersection(&other);
            prop_assert_eq!(plain(&common), &plain_one & &plain_other);
            prop_assert_eq!(common.is_empty(), plain_one.is_disjoint(&plain_other));
            prop_assert_eq!(one.intersects(&other), !plain_one.is_disjoint(&plain_other));

            let mut again = Vec::new();
            for run in one.runs(longest) {
                prop_assert!(run.blocks >= 1 && run.blocks <= longest.max(1));
                again.extend((run.first..run.first + run.blocks).map(|block| (run.disk.0, block)));
            }
            prop_assert_eq!(again, plain_one.into_iter().collect::<Vec<_>>());
        }
    }
}
