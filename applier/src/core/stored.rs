//! How much of the vault a server takes up, and how fast that grows. Pure; the sweep counts while it lists.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What is stored of one server, as the last whole sweep has found it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Segments.
    pub journal_bytes: u64,
    /// The commit log, with the segments that small records carry in themselves.
    pub log_bytes: u64,
    /// Pages of the seed disks and their checksums that hold something. Snapshots share them; what only snapshots still
    /// hold the store does not tell.
    pub seed_disk_bytes: u64,
    /// Snapshots of all seed disks.
    pub snapshots: u64,
}

impl Stored {
    pub fn total(&self) -> u64 {
        self.journal_bytes + self.log_bytes + self.seed_disk_bytes
    }
}

/// Growth is a mean over the last day, or over less when it is not known for so long.
const WINDOW: Duration = Duration::from_secs(86_400);
/// Over less than this it would say more about the initial copy than about days to come.
const LEAST: Duration = Duration::from_secs(3600);
/// Samples are so far apart.
const APART: Duration = Duration::from_secs(1800);

/// By this program's monotonic clock, since it was started: a machine's date does not matter.
#[derive(Debug, Default)]
pub(super) struct Growth {
    samples: VecDeque<(Instant, u64)>,
}

impl Growth {
    /// Bytes a day with this newest figure; `None`: not known for long enough.
    pub(super) fn per_day(&mut self, total: u64, now: Instant) -> Option<i64> {
        // The youngest one that is a whole window old is the one to compare with.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= APART) {
            self.samples.push_back((now, total));
        }
        let (since, before) = *self.samples.front()?;
        let passed = now.saturating_duration_since(since);
        if passed < LEAST {
            return None;
        }
        let grown = total as f64 - before as f64;
        Some((grown * WINDOW.as_secs_f64() / passed.as_secs_f64()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const GIB: u64 = 1 << 30;

    #[test]
    fn growth_is_told_once_an_hour_is_known_and_over_the_last_day() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        assert_eq!(growth.per_day(GIB, start), None);
        assert_eq!(growth.per_day(2 * GIB, start + HOUR / 2), None);
        assert_eq!(growth.per_day(2 * GIB, start + HOUR), Some(24 * GIB as i64));
        // An initial copy is forgotten after a day.
        let mut last = None;
        for half_hour in 3..200 {
            last = growth.per_day(2 * GIB, start + HOUR / 2 * half_hour);
        }
        assert_eq!(last, Some(0));
        assert!(growth.samples.len() < 60, "{}", growth.samples.len());
    }

    #[test]
    fn what_retention_takes_away_counts() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        growth.per_day(3 * GIB, start);
        assert_eq!(growth.per_day(2 * GIB, start + 12 * HOUR), Some(-2 * GIB as i64));
    }
}
