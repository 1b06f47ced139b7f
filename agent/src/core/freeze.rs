//! Whether file systems may be frozen now: to help a round that does not become exact, or for a point that was asked
//! for. Pure.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::points::Obstacle;

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
    /// For a round that nobody has asked for. `without_exact`: how long there has been no exact one.
    pub fn helps(&mut self, limits: &FreezeLimits, without_exact: Duration, now: Instant) -> bool {
        without_exact > PATIENCE.max(limits.round_interval * PATIENCE_ROUNDS)
            && self.allows(limits, now).is_ok()
    }

    pub fn allows(&mut self, limits: &FreezeLimits, now: Instant) -> Result<(), Obstacle> {
        while self.recent.front().is_some_and(|at| now.saturating_duration_since(*at) > HOUR) {
            self.recent.pop_front();
        }
        if limits.timeout.is_zero() || limits.per_hour == 0 {
            let message =
                "freezing is forbidden by the policy: raise maxFreezesPerHour of the ReplicationPolicy";
            return Err(Obstacle::new("FreezingForbidden", message));
        }
        if self.recent.len() >= limits.per_hour as usize {
            let message = format!(
                "the file systems were frozen {} times within the last hour, which is all that the policy allows: ask \
                 later, or raise maxFreezesPerHour of the ReplicationPolicy",
                self.recent.len()
            );
            return Err(Obstacle::new("FreezesSpent", message));
        }
        Ok(())
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
        assert!(!budget.helps(&LIMITS, Duration::from_secs(44), now));
        assert!(budget.helps(&LIMITS, Duration::from_secs(46), now));
    }

    #[tokio::test(start_paused = true)]
    async fn stops_at_the_limit_of_the_hour_and_goes_on_in_the_next() {
        let mut budget = FreezeBudget::default();
        let now = Instant::now();
        budget.spend(now);
        budget.spend(now + MINUTE);
        let refused = budget.allows(&LIMITS, now + 2 * MINUTE).unwrap_err();
        assert!(refused.message.contains("2 times"), "{refused:?}");
        assert!(!budget.helps(&LIMITS, MINUTE, now + 2 * MINUTE));
        assert!(budget.allows(&LIMITS, now + 61 * MINUTE).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_of_zero_switches_freezing_off() {
        let limits = FreezeLimits { timeout: Duration::ZERO, ..LIMITS };
        let refused = FreezeBudget::default().allows(&limits, Instant::now()).unwrap_err();
        assert_eq!(refused.code, "FreezingForbidden");
    }
}
