//! Whether a round that does not become exact may be helped by freezing. Pure.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
/// Without an exact round for this long, and for [`PATIENCE_ROUNDS`] round intervals, a freeze is worth its price.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_ROUNDS: u32 = 3;

/// Counts freezes over sessions.
#[derive(Debug, Default)]
pub struct FreezeBudget {
    recent: VecDeque<Instant>,
    pub count: u64,
    pub worst: Duration,
}

#[derive(Debug, Clone, Copy)]
pub struct FreezeLimits {
    pub per_hour: u32,
    /// Nothing stays frozen longer than this.
    pub timeout: Duration,
    pub round_interval: Duration,
}

impl FreezeBudget {
    /// `without_exact`: how long there has been no exact round.
    pub fn allows(&mut self, limits: &FreezeLimits, without_exact: Duration, now: Instant) -> bool {
        while self.recent.front().is_some_and(|at| now.saturating_duration_since(*at) > HOUR) {
            self.recent.pop_front();
        }
        !limits.timeout.is_zero()
            && without_exact > PATIENCE.max(limits.round_interval * PATIENCE_ROUNDS)
            && self.recent.len() < limits.per_hour as usize
    }

    /// A freeze was tried; it counts even if it failed.
    pub fn spend(&mut self, now: Instant) {
        self.recent.push_back(now);
    }

    pub fn thawed(&mut self, longest: Duration) {
        self.count += 1;
        self.worst = self.worst.max(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FreezeLimits = FreezeLimits {
        per_hour: 2,
        timeout: Duration::from_secs(5),
        round_interval: Duration::from_secs(15),
    };
    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn waits_for_three_intervals_without_an_exact_round() {
        let mut budget = FreezeBudget::default();
        let now = Instant::now();
        assert!(!budget.allows(&LIMITS, Duration::from_secs(44), now));
        assert!(budget.allows(&LIMITS, Duration::from_secs(46), now));
    }

    #[tokio::test(start_paused = true)]
    async fn stops_at_the_limit_of_the_hour_and_goes_on_in_the_next() {
        let mut budget = FreezeBudget::default();
        let now = Instant::now();
        budget.spend(now);
        budget.spend(now + MINUTE);
        assert!(!budget.allows(&LIMITS, MINUTE, now + 2 * MINUTE));
        assert!(budget.allows(&LIMITS, MINUTE, now + 61 * MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_of_zero_switches_freezing_off() {
        let limits = FreezeLimits { timeout: Duration::ZERO, ..LIMITS };
        assert!(!FreezeBudget::default().allows(&limits, MINUTE, Instant::now()));
    }
}
