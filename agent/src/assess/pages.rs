//! What the vault's page blobs would be asked for, disk by disk. Pure.
//!
//! In: the blocks of each round. Out: page writes and bytes a second. The applier writes a batch of rounds at a time,
//! each block once and neighbours in one request; a batch here is a minute, or what is as large as the largest one of the
//! applier. One that lags behind makes larger ones and so needs fewer requests, down to this.

use std::{collections::BTreeMap, time::Duration};

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockSet},
    ids::DiskSlot,
    store::MAX_WRITE_BYTES,
};
use tokio::time::Instant;

/// Azure's targets for one page blob of a standard account (*Scale targets for Blob storage*, of 2026).
pub const TARGET_REQUESTS: u64 = 500;
pub const TARGET_BYTES: u64 = 60 << 20;

const BATCH_TIME: Duration = Duration::from_secs(60);
/// As the applier's limit.
const BATCH_BYTES: u64 = 256 << 20;
/// Blocks of one page write.
const WRITE_BLOCKS: u32 = (MAX_WRITE_BYTES as u64 / BLOCK_BYTES) as u32;

/// Of one disk, over whole batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PageWrites {
    pub seconds: f64,
    pub requests: u64,
    pub bytes: u64,
    /// A second, in the batch with the most.
    pub peak_requests: f64,
    pub peak_bytes: f64,
}

impl PageWrites {
    /// A second; `None`: no whole batch was measured.
    pub fn average_requests(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.requests as f64 / self.seconds)
    }

    /// A second.
    pub fn average_bytes(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.bytes as f64 / self.seconds)
    }

    fn add(&mut self, seconds: f64, requests: u64, bytes: u64) {
        self.seconds += seconds;
        self.requests += requests;
        self.bytes += bytes;
        self.peak_requests = self.peak_requests.max(requests as f64 / seconds);
        self.peak_bytes = self.peak_bytes.max(bytes as f64 / seconds);
    }
}

/// Gathers rounds into batches.
#[derive(Debug, Clone)]
pub struct Batches {
    set: BlockSet,
    since: Instant,
    disks: BTreeMap<DiskSlot, PageWrites>,
}

impl Batches {
    pub fn new(slots: impl IntoIterator<Item = DiskSlot>, now: Instant) -> Self {
        let disks = slots.into_iter().map(|slot| (slot, PageWrites::default())).collect();
        Self { set: BlockSet::default(), since: now, disks }
    }

    /// A round that ended now.
    pub fn add(&mut self, taken: &BlockSet, now: Instant) {
        self.set.union(taken);
        let took = now - self.since;
        if took.is_zero() || (took < BATCH_TIME && self.set.bytes() < BATCH_BYTES) {
            return;
        }
        let batch = std::mem::take(&mut self.set);
        self.since = now;
        let mut requests: BTreeMap<DiskSlot, u64> = BTreeMap::new();
        for run in batch.runs(WRITE_BLOCKS) {
            *requests.entry(run.disk).or_default() += 1;
        }
        for (slot, disk) in &mut self.disks {
            let bytes = batch.disk(*slot).map_or(0, |blocks| blocks.len() * BLOCK_BYTES);
            disk.add(took.as_secs_f64(), requests.get(slot).copied().unwrap_or(0), bytes);
        }
    }

    pub fn of(&self, slot: DiskSlot) -> PageWrites {
        self.disks.get(&slot).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::blocks::BlockRun;

    use super::*;

    const DISK: DiskSlot = DiskSlot(1);

    fn blocks(runs: impl IntoIterator<Item = (u32, u32)>) -> BlockSet {
        let mut set = BlockSet::default();
        for (first, blocks) in runs {
            set.insert_run(BlockRun { disk: DISK, first, blocks });
        }
        set
    }

    /// Rounds of a second.
    fn rounds(rounds: impl IntoIterator<Item = BlockSet>) -> PageWrites {
        let mut now = Instant::now();
        let mut batches = Batches::new([DISK, DiskSlot(2)], now);
        for round in rounds {
            now += Duration::from_secs(1);
            batches.add(&round, now);
        }
        assert_eq!(batches.of(DiskSlot(2)).requests, 0, "of another disk");
        batches.of(DISK)
    }

    #[test]
    fn what_is_written_again_in_a_minute_is_one_request() {
        let found = rounds((0..120).map(|_| blocks([(7, 4)])));
        assert_eq!((found.requests, found.bytes, found.seconds), (2, 8 * BLOCK_BYTES, 120.0));
    }

    #[test]
    fn neighbours_of_several_rounds_are_one_request_up_to_its_size() {
        // 60 rounds of 40 blocks, one after the other: 2400 blocks in writes of 1024.
        let found = rounds((0..60).map(|round| blocks([(round * 40, 40)])));
        assert_eq!((found.requests, found.bytes), (3, 2400 * BLOCK_BYTES));
    }

    #[test]
    fn scattered_writes_are_a_request_each() {
        // 16 KiB at random, 20 MiB a second.
        let found =
            rounds((0..60).map(|round| blocks((0..1280).map(|write| ((round * 1280 + write) * 9, 4)))));
        assert!(found.average_requests().unwrap() > 1279.0, "{found:?}");
        assert!(found.peak_requests >= found.average_requests().unwrap(), "{found:?}");
        assert!(found.average_bytes().unwrap() < 21_000_000.0, "{found:?}");
    }

    #[test]
    fn a_batch_ends_at_the_appliers_size_and_less_than_one_says_nothing() {
        let found = rounds((0..2).map(|round| blocks([(round << 16, 1 << 15)])));
        assert_eq!((found.requests, found.seconds), (64, 2.0), "two of 128 MiB");
        assert_eq!(rounds((0..59).map(|_| blocks([(7, 4)]))).average_requests(), None);
    }
}
