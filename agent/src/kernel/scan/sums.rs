//! Checksums of the disks' content as it was last read for the vault: one of 128 bits for each 64 KiB. Pure.
//!
//! A sum that is not known counts as different from everything.

use std::ops::Range;

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun, BlockSet},
    ids::DiskSlot,
    sums::{Sum, SumKeys, UNKNOWN},
};

use super::super::disks::Disk;

/// Blocks of one sum: what one change makes travel, against the memory of sums.
pub(super) const GRANULE_BLOCKS: u32 = 16;
pub(super) const GRANULE_BYTES: usize = GRANULE_BLOCKS as usize * BLOCK_BYTES as usize;

pub(super) struct Sums {
    keys: SumKeys,
    disks: Vec<OfDisk>,
}

struct OfDisk {
    blocks: u32,
    granules: Vec<Sum>,
}

impl Sums {
    /// None is known. `secret`: nobody may find two contents with one sum.
    pub(super) fn new(disks: &[Disk], secret: &[u8; 32]) -> Self {
        let of = |disk: &Disk| {
            let blocks = u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
            OfDisk { blocks, granules: vec![UNKNOWN; blocks.div_ceil(GRANULE_BLOCKS) as usize] }
        };
        Self { keys: SumKeys::new(secret), disks: disks.iter().map(of).collect() }
    }

    pub(super) fn forget_all(&mut self) {
        self.disks.iter_mut().for_each(|disk| disk.granules.fill(UNKNOWN));
    }

    /// Every block of every disk.
    pub(super) fn all(&self) -> BlockSet {
        let mut all = BlockSet::default();
        for (number, disk) in (1..).zip(&self.disks) {
            all.insert_run(BlockRun { disk: DiskSlot(number), first: 0, blocks: disk.blocks });
        }
        all
    }

    pub(super) fn keys(&self) -> SumKeys {
        self.keys.clone()
    }

    fn of(&self, disk: DiskSlot) -> Option<&OfDisk> {
        self.disks.get((disk.0 as usize).checked_sub(1)?)
    }

    /// This was read for the vault. What is owed to it has this content there before it is forgotten, so its sum is
    /// known; of a granule that is not owed (or not read) as a whole, only part of this content gets there.
    pub(super) fn read(
        &mut self,
        run: BlockRun,
        content: &[u8],
        owed: impl Fn(DiskSlot, Range<u32>) -> bool,
    ) {
        let keys = self.keys.clone();
        let Some(disk) = (run.disk.0 as usize).checked_sub(1).and_then(|disk| self.disks.get_mut(disk))
        else {
            return;
        };
        let end = run.first.saturating_add(run.blocks).min(disk.blocks);
        for number in run.first / GRANULE_BLOCKS..end.div_ceil(GRANULE_BLOCKS) {
            let blocks = granule(number, disk.blocks);
            let whole = blocks.start >= run.first && blocks.end <= end && owed(run.disk, blocks.clone());
            let known = whole.then(|| {
                let start = (blocks.start - run.first) as usize * BLOCK_BYTES as usize;
                let length = blocks.len() * BLOCK_BYTES as usize;
                content.get(start..start + length).map(|content| keys.block(content))
            });
            if let Some(sum) = disk.granules.get_mut(number as usize) {
                *sum = known.flatten().unwrap_or(UNKNOWN);
            }
        }
    }

    /// Of granules from `first` on with these sums: those that differ, as blocks.
    pub(super) fn differing(&self, disk: DiskSlot, first: u32, sums: &[Sum]) -> BlockSet {
        let mut differing = BlockSet::default();
        let Some(known) = self.of(disk) else { return differing };
        for (number, sum) in (first..).zip(sums) {
            let stored = known.granules.get(number as usize).unwrap_or(&UNKNOWN);
            if *stored == UNKNOWN || stored != sum {
                let blocks = granule(number, known.blocks);
                differing.insert_run(BlockRun { disk, first: blocks.start, blocks: blocks.len() as u32 });
            }
        }
        differing
    }
}

fn granule(number: u32, blocks: u32) -> Range<u32> {
    let start = number.saturating_mul(GRANULE_BLOCKS);
    start..start.saturating_add(GRANULE_BLOCKS).min(blocks)
}

/// Sums of content that begins with a granule.
pub(super) fn of_content(keys: &SumKeys, content: &[u8]) -> Vec<Sum> {
    content.chunks(GRANULE_BYTES).map(|granule| keys.block(granule)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskSlot = DiskSlot(1);

    fn sums(blocks: u64) -> Sums {
        let disk = Disk {
            name: "x".into(),
            id: "x".into(),
            size_bytes: blocks * BLOCK_BYTES,
            device: 0,
            sequence: 0,
            bio_based: false,
        };
        Sums::new(&[disk], &[7; 32])
    }

    fn content(blocks: u32, byte: u8) -> Vec<u8> {
        vec![byte; blocks as usize * BLOCK_BYTES as usize]
    }

    fn run(first: u32, blocks: u32) -> BlockRun {
        BlockRun { disk: DISK, first, blocks }
    }

    fn differing(sums: &Sums, first: u32, content: &[u8]) -> Vec<u32> {
        let own = of_content(&sums.keys(), content);
        sums.differing(DISK, first, &own).disk(DISK).map(|set| set.iter().collect()).unwrap_or_default()
    }

    #[test]
    fn what_was_never_read_differs_and_what_was_read_does_not() {
        let mut sums = sums(40);
        assert_eq!(differing(&sums, 0, &content(40, 1)).len(), 40);
        sums.read(run(0, 40), &content(40, 1), |_, _| true);
        assert_eq!(differing(&sums, 0, &content(40, 1)), [] as [u32; 0]);
        let mut changed = content(40, 1);
        changed[17 * 4096] = 2;
        assert_eq!(differing(&sums, 0, &changed), (16..32).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_granule_may_be_shorter() {
        let mut sums = sums(18);
        sums.read(run(16, 2), &content(2, 3), |_, _| true);
        assert_eq!(differing(&sums, 1, &content(2, 3)), [] as [u32; 0]);
        assert_eq!(differing(&sums, 1, &content(2, 4)), [16, 17]);
    }

    #[test]
    fn a_granule_of_which_only_a_part_gets_to_the_vault_is_not_known() {
        let mut sums = sums(32);
        sums.read(run(0, 32), &content(32, 1), |_, blocks| blocks.start != 0);
        assert_eq!(differing(&sums, 0, &content(32, 1)), (0..16).collect::<Vec<_>>());
        sums.read(run(20, 4), &content(4, 1), |_, _| true);
        assert_eq!(differing(&sums, 0, &content(32, 1)).len(), 32, "read in part");
    }
}
