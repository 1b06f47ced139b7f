//! The process server's time, measured from here. Pure.
//!
//! Each answered heartbeat is a sample: the answer's time stands for the middle between sending and hearing. The
//! sample with the shortest way there and back is the best one. Between samples the monotonic clock counts, so a
//! jump of the machine's date changes nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use lifeboat_replication::env::Micros;
use tokio::time::Instant;

/// Samples kept: the best of the last minute or so, so that drift stays below a millisecond.
const SAMPLES: usize = 64;
/// Heartbeats without an answer that are remembered; more are given up, oldest first.
const PENDING: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    theirs: i64,
    round_trip: Duration,
}

#[derive(Debug, Default)]
pub struct Clock {
    samples: VecDeque<Sample>,
    pending: BTreeMap<i64, Instant>,
}

impl Clock {
    /// Starts with the time in a Welcome, heard at `at` after waiting `waited`. It was written just before it was
    /// heard, but the wait may hide anything up to its length, so any heartbeat is better.
    pub fn new(welcome: Micros, at: Instant, waited: Duration) -> Self {
        let first = Sample { at, theirs: welcome.0, round_trip: waited };
        Self { samples: VecDeque::from([first]), pending: BTreeMap::new() }
    }

    /// A heartbeat goes out at `at`; returns the time to write into it, which names it in the answer.
    pub fn sending(&mut self, date: Micros, at: Instant) -> Micros {
        let mut name = date.0;
        while self.pending.contains_key(&name) {
            name += 1;
        }
        if self.pending.len() >= PENDING {
            let oldest = self.pending.iter().min_by_key(|(_, sent)| **sent).map(|(name, _)| *name);
            oldest.map(|oldest| self.pending.remove(&oldest));
        }
        self.pending.insert(name, at);
        Micros(name)
    }

    pub fn answered(&mut self, name: Micros, theirs: Micros, at: Instant) {
        let Some(sent) = self.pending.remove(&name.0) else { return };
        let round_trip = at.saturating_duration_since(sent);
        self.samples.push_back(Sample { at: sent + round_trip / 2, theirs: theirs.0, round_trip });
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// The process server's time at an instant of ours.
    pub fn at(&self, instant: Instant) -> Micros {
        let best = self.samples.iter().min_by_key(|sample| sample.round_trip);
        Micros(best.map_or(0, |best| {
            let after = instant.saturating_duration_since(best.at).as_micros();
            let before = best.at.saturating_duration_since(instant).as_micros();
            best.theirs + i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn the_sample_with_the_shortest_way_wins_and_the_monotonic_clock_counts_on() {
        let start = Instant::now();
        let mut clock = Clock::new(Micros(500_000), start, 900 * MS);
        let name = clock.sending(Micros(77), start);
        clock.answered(name, Micros(2_000_000), start + 10 * MS);
        assert_eq!(clock.at(start + 5 * MS), Micros(2_000_000));
        assert_eq!(clock.at(start + 1005 * MS), Micros(3_000_000));
        assert_eq!(clock.at(start), Micros(1_995_000));
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_of_the_same_date_are_told_apart() {
        let start = Instant::now();
        let mut clock = Clock::new(Micros(0), start, 1000 * MS);
        let first = clock.sending(Micros(5), start);
        let second = clock.sending(Micros(5), start + 100 * MS);
        assert_ne!(first, second);
        clock.answered(first, Micros(60_000), start + 120 * MS);
        assert_eq!(clock.at(start + 60 * MS), Micros(60_000));
    }
}
