//! Which blocks of the disks differ from the vault: the course of a comparison by checksums. Pure.
//!
//! ```text
//!   awaits its copy ──► ask for the sums of rows (1 MiB each, 16 GiB at a time)
//!                    ──► read each row: its sum is the same ──► same
//!                                       else doubtful ──► ask for the sums of its blocks ─┬─► same
//!                                                                                         └─► to be copied
//! ```
//! - It goes through what awaits its copy in order of disk and row; behind its place are blocks that differ, before it
//!   unverified ones. A block that is the same leaves the pinned marks, and one that differs stays there until its
//!   copy is durable. So a comparison that breaks off goes on where it was, but for what is not copied yet.
//! - A block that is written after it was read here is marked by the tracker, whatever comes out for it.
//! - Memory: the sums of 16 GiB of rows (256 KiB), and of the blocks of [`DOUBTFUL_ROWS`] rows (1 MiB).

use std::{collections::BTreeMap, ops::Range};

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun, BlockSet},
    ids::DiskSlot,
    sums::{self, GROUP_ROWS, ROW_BLOCKS, ROW_BYTES, Row, SUM_BYTES, Sum, SumKeys, UNKNOWN},
    wire::v1,
};

/// Rows that wait for the sums of their blocks; one question asks for them all.
const DOUBTFUL_ROWS: usize = 256;

/// The process server sent something else than was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("checksums came that were not asked for; agent and appliance may be at most one minor version apart")]
pub struct Unexpected;

/// What has to be done next.
#[derive(Debug, PartialEq)]
pub enum Step {
    Ask(v1::SumsAsk),
    /// Read these rows and give them to [`Compare::read`].
    Read(Vec<BlockRun>),
    /// An answer is on its way.
    Wait,
    Done,
}

#[derive(Debug)]
struct Disk {
    /// By the vault.
    slot: u32,
    blocks: u32,
    keys: SumKeys,
}

/// A stretch of rows whose own sums are known.
#[derive(Debug)]
struct Stretch {
    disk: DiskSlot,
    /// Still to be read.
    rows: Range<u32>,
    first: u32,
    sums: Vec<u8>,
    doubtful: Vec<(u32, Box<Row>)>,
}

#[derive(Debug)]
enum State {
    /// Between two stretches.
    Idle,
    AskedRows {
        id: u64,
        disk: DiskSlot,
        rows: Range<u32>,
    },
    Reading(Stretch),
    AskedBlocks {
        id: u64,
        stretch: Stretch,
    },
}

#[derive(Debug)]
pub struct Compare {
    disks: BTreeMap<DiskSlot, Disk>,
    /// Everything from this row on is unverified.
    place: (DiskSlot, u32),
    state: State,
    next_id: u64,
    differing: BlockSet,
    /// Blocks found the same, and found different.
    pub same: u64,
    pub different: u64,
}

impl Compare {
    /// `awaiting` its copy, by the tracker's numbers. Blocks of disks without checksums count as different.
    pub fn new(
        offer: &v1::SumsOffer,
        disks: &[v1::Disk],
        vault_slot: impl Fn(DiskSlot) -> Option<u32>,
        awaiting: &BlockSet,
    ) -> Self {
        let mut compare = Self {
            disks: BTreeMap::new(),
            place: (DiskSlot(0), 0),
            state: State::Idle,
            next_id: 0,
            differing: BlockSet::default(),
            same: 0,
            different: 0,
        };
        for disk in disks {
            let local = DiskSlot(disk.slot);
            let slot = vault_slot(local).unwrap_or(0);
            let secret =
                offer.disks.iter().find(|key| key.disk_slot == slot).map(|key| key.secret.as_slice());
            if let Some(Ok(secret)) = secret.map(<&[u8; 32]>::try_from) {
                let blocks = u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
                compare.disks.insert(local, Disk { slot, blocks, keys: SumKeys::new(secret) });
            } else if let Some(all) = awaiting.disk(local) {
                compare.differing.insert_disk(local, all.clone());
            }
        }
        compare
    }

    /// Known to differ, and not copied yet.
    pub fn differing(&self) -> &BlockSet {
        &self.differing
    }

    /// These were read for a copy record.
    pub fn copied(&mut self, blocks: &BlockSet) {
        self.differing.subtract(blocks);
    }

    /// Nothing can be done before the answer has come.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::AskedRows { .. } | State::AskedBlocks { .. })
    }

    /// What has to be done next; at most `rows` rows are to be read.
    pub fn step(&mut self, awaiting: &BlockSet, rows: usize) -> Step {
        loop {
            match std::mem::replace(&mut self.state, State::Idle) {
                State::Idle => {
                    let Some((disk, first)) = self.first_unverified(awaiting) else { return Step::Done };
                    let end = self.disks.get(&disk).map_or(0, |disk| disk.blocks.div_ceil(ROW_BLOCKS));
                    let end = (first / GROUP_ROWS + 1).saturating_mul(GROUP_ROWS).min(end);
                    self.place = (disk, end);
                    let ask = self.ask(disk, 1, std::iter::once(first..end));
                    self.state = State::AskedRows { id: ask.id, disk, rows: first..end };
                    return Step::Ask(ask);
                }
                State::Reading(mut stretch) => {
                    let next = self.rows_to_read(awaiting, &mut stretch, rows);
                    if !next.is_empty() {
                        self.state = State::Reading(stretch);
                        return Step::Read(next);
                    }
                    if stretch.doubtful.is_empty() {
                        continue;
                    }
                    let rows = stretch.doubtful.iter().map(|(row, _)| *row..*row + 1);
                    let ask = self.ask(stretch.disk, 2, rows);
                    self.state = State::AskedBlocks { id: ask.id, stretch };
                    return Step::Ask(ask);
                }
                asked => {
                    self.state = asked;
                    return Step::Wait;
                }
            }
        }
    }

    fn first_unverified(&self, awaiting: &BlockSet) -> Option<(DiskSlot, u32)> {
        let (disk, row) = self.place;
        self.disks.range(disk..).find_map(|(slot, _)| {
            let from = if *slot == disk { row.checked_mul(ROW_BLOCKS)? } else { 0 };
            let block = awaiting.disk(*slot)?.range(from..).next()?;
            Some((*slot, block / ROW_BLOCKS))
        })
    }

    fn ask(&mut self, disk: DiskSlot, level: u32, rows: impl Iterator<Item = Range<u32>>) -> v1::SumsAsk {
        self.next_id += 1;
        let slot = self.disks.get(&disk).map_or(0, |disk| disk.slot);
        let mut runs: Vec<v1::RowRun> = Vec::new();
        for range in rows {
            match runs.last_mut() {
                Some(last) if last.first + last.count == range.start => last.count += range.end - range.start,
                _ => runs.push(v1::RowRun { first: range.start, count: range.end - range.start }),
            }
        }
        v1::SumsAsk { id: self.next_id, disk_slot: slot, level, rows: runs }
    }

    /// The next rows of the stretch that hold something unverified; none when it is at its end, or when enough of
    /// them are doubtful.
    fn rows_to_read(&self, awaiting: &BlockSet, stretch: &mut Stretch, most: usize) -> Vec<BlockRun> {
        let room = DOUBTFUL_ROWS.saturating_sub(stretch.doubtful.len()).min(most);
        let blocks = self.disks.get(&stretch.disk).map_or(0, |disk| disk.blocks);
        let mut runs = Vec::new();
        while runs.len() < room {
            let from = stretch.rows.start.saturating_mul(ROW_BLOCKS);
            let left = awaiting.disk(stretch.disk).and_then(|left| left.range(from..).next());
            let row = match left.map(|block| block / ROW_BLOCKS) {
                Some(row) if stretch.rows.contains(&row) => row,
                _ => {
                    stretch.rows.start = stretch.rows.end;
                    break;
                }
            };
            let first = row * ROW_BLOCKS;
            let run =
                BlockRun { disk: stretch.disk, first, blocks: ROW_BLOCKS.min(blocks.saturating_sub(first)) };
            runs.push(run);
            stretch.rows.start = row + 1;
        }
        runs
    }

    /// Content of a row that [`Compare::step`] named. Returns which of its blocks are known to be the same.
    pub fn read(&mut self, awaiting: &BlockSet, run: BlockRun, content: &[u8]) -> BlockSet {
        let mut same = BlockSet::default();
        let (State::Reading(stretch), Some(disk)) = (&mut self.state, self.disks.get(&run.disk)) else {
            return same;
        };
        let row = run.first / ROW_BLOCKS;
        let mut own = Box::new([UNKNOWN; ROW_BLOCKS as usize]);
        for (sum, block) in own.iter_mut().zip(content.chunks_exact(BLOCK_BYTES as usize)) {
            *sum = disk.keys.block(block);
        }
        let at = row.saturating_sub(stretch.first) as usize * SUM_BYTES;
        let stored = stretch.sums.get(at..at + SUM_BYTES).unwrap_or(&UNKNOWN);
        if *stored == UNKNOWN || *stored != disk.keys.mask_row(row, disk.keys.row(&own)) {
            stretch.doubtful.push((row, own));
            return same;
        }
        if let Some(left) = awaiting.disk(run.disk) {
            let blocks = run.first..run.first.saturating_add(run.blocks);
            same.insert_disk(run.disk, left.range(blocks).collect());
        }
        self.same += same.len();
        same
    }

    /// An answer of the process server. Returns which blocks are known to be the same.
    pub fn answered(&mut self, awaiting: &BlockSet, sums: &v1::Sums) -> Result<BlockSet, Unexpected> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::AskedRows { id, disk, rows } if id == sums.id => {
                if sums.sums.len() != rows.len() * SUM_BYTES {
                    return Err(Unexpected);
                }
                let (first, stored) = (rows.start, sums.sums.to_vec());
                self.state =
                    State::Reading(Stretch { disk, rows, first, sums: stored, doubtful: Vec::new() });
                Ok(BlockSet::default())
            }
            State::AskedBlocks { id, mut stretch } if id == sums.id => {
                let doubtful = std::mem::take(&mut stretch.doubtful);
                if sums.sums.len() != doubtful.len() * ROW_BYTES as usize {
                    return Err(Unexpected);
                }
                let mut all = BlockSet::default();
                for ((row, own), stored) in doubtful.iter().zip(sums.sums.chunks_exact(ROW_BYTES as usize)) {
                    all.union(&self.judge(awaiting, stretch.disk, *row, own, stored));
                }
                self.state = State::Reading(stretch);
                Ok(all)
            }
            _ => Err(Unexpected),
        }
    }

    fn judge(&mut self, awaiting: &BlockSet, disk: DiskSlot, row: u32, own: &Row, stored: &[u8]) -> BlockSet {
        let mut same = BlockSet::default();
        let (Some(known), Some(left)) = (self.disks.get(&disk), awaiting.disk(disk)) else { return same };
        let mut theirs = sums::row_from(stored);
        known.keys.mask_blocks(row, &mut theirs);
        let first = row.saturating_mul(ROW_BLOCKS);
        let of = |sums: &Row, block: u32| -> Sum {
            sums.get((block - first) as usize).copied().unwrap_or(UNKNOWN)
        };
        let equal = |block: &u32| of(&theirs, *block) != UNKNOWN && of(&theirs, *block) == of(own, *block);
        let (equal, other): (Vec<u32>, Vec<u32>) =
            left.range(first..first.saturating_add(ROW_BLOCKS)).partition(equal);
        self.same += equal.len() as u64;
        self.different += other.len() as u64;
        self.differing.insert_disk(disk, other.into_iter().collect());
        same.insert_disk(disk, equal.into_iter().collect());
        same
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
