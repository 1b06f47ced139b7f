//! How far the copy of each disk is, and how fast it goes. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    ids::DiskSlot,
    wire::v1::{Disk, DiskProgress},
};
use tokio::time::Instant;

use super::{session::Slots, tracker::Tracker};

/// Rates are means over this time: long enough to be calm, short enough to show a stall.
const RATE_OVER: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(super) struct Progress {
    history: BTreeMap<DiskSlot, VecDeque<(Instant, u64)>>,
}

impl Progress {
    /// `copy`: the state of a disk of which something is left to copy.
    pub(super) fn of(
        &mut self,
        disks: &[Disk],
        slots: &Slots,
        tracker: &Tracker,
        paused: bool,
        copy: &str,
        now: Instant,
    ) -> Vec<DiskProgress> {
        let mut all = Vec::with_capacity(disks.len());
        for disk in disks {
            let local = DiskSlot(disk.slot);
            let left = (tracker.copy_left(local) * BLOCK_BYTES).min(disk.size_bytes);
            let replicated = disk.size_bytes - left;
            let state = match (paused, left > 0) {
                (true, _) => "Paused",
                (false, true) => copy,
                (false, false) => "Replicating",
            };
            all.push(DiskProgress {
                slot: slots.vault(local).unwrap_or(0),
                id: disk.id.clone(),
                path: disk.path.clone(),
                size_bytes: disk.size_bytes,
                replicated_bytes: replicated,
                total_bytes: disk.size_bytes,
                dirty_bytes: tracker.dirty(local) * BLOCK_BYTES,
                bytes_per_second: self.rate(local, replicated, now),
                state: state.to_owned(),
            });
        }
        all
    }

    fn rate(&mut self, disk: DiskSlot, replicated: u64, now: Instant) -> u64 {
        let history = self.history.entry(disk).or_default();
        if history.back().is_some_and(|(_, last)| *last > replicated) {
            history.clear(); // a full copy has begun
        }
        history.push_back((now, replicated));
        while history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_OVER) {
            history.pop_front();
        }
        let Some((since, then)) = history.front() else { return 0 };
        let millis = u64::try_from(now.saturating_duration_since(*since).as_millis()).unwrap_or(u64::MAX);
        (replicated - then).saturating_mul(1000).checked_div(millis).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_the_mean_of_the_last_seconds_and_begins_anew_with_a_full_copy() {
        let mut progress = Progress::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(progress.rate(DiskSlot(1), 0, start), 0);
        assert_eq!(progress.rate(DiskSlot(1), 1000, start + second), 1000);
        assert_eq!(progress.rate(DiskSlot(1), 4000, start + 2 * second), 2000);
        assert_eq!(progress.rate(DiskSlot(1), 0, start + 3 * second), 0);
    }
}
