//! How fast uploads may go: a bucket that is paid for afterwards. Pure.
//!
//! A call may begin when nothing is owed, and then owes its bytes; the limit pays them back. So within any stretch of
//! time no more is begun than the limit allows in it, and [`CREDIT`], and one call. With segments of 2 to 3 MiB that is
//! within 5 % of any minute from 1.2 MiB/s on; below, a minute holds at most one segment too many.

use std::time::Duration;

use tokio::time::Instant;

/// What was not used in this time may be used later: calls begin a little late, and the line shall not idle for it.
const CREDIT: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Bucket {
    /// Bytes a second; 0: no limit.
    limit: u64,
    at: Instant,
    /// Bytes begun and not paid for at `at`; negative: credit.
    owed: f64,
}

impl Bucket {
    /// Without a limit.
    pub fn new(now: Instant) -> Self {
        Self { limit: 0, at: now, owed: 0.0 }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is owed stays owed, and is paid at the new rate.
    pub fn set_limit(&mut self, limit: u64, now: Instant) {
        self.settle(now);
        self.limit = limit;
        self.owed = if limit == 0 { 0.0 } else { self.owed.max(self.least()) };
    }

    /// How long until a call may begin.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.settle(now);
        if self.limit == 0 || self.owed <= 0.0 {
            return Duration::ZERO;
        }
        // Rounded up, or the last nanosecond would be waited for again and again.
        Duration::try_from_secs_f64(self.owed / self.limit as f64).unwrap_or(Duration::MAX)
            + Duration::from_nanos(1)
    }

    /// A call of so many bytes begins.
    pub fn charge(&mut self, bytes: u64, now: Instant) {
        self.settle(now);
        if self.limit > 0 {
            self.owed += bytes as f64;
        }
    }

    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.owed = (self.owed - passed * self.limit as f64).max(self.least());
    }

    fn least(&self) -> f64 {
        -(self.limit as f64 * CREDIT.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Begins calls as soon as they may; what began when.
    fn run(limit: u64, calls: &[(u64, u64)]) -> Vec<(Duration, u64)> {
        let start = Instant::now();
        let mut now = start;
        let mut bucket = Bucket::new(start);
        bucket.set_limit(limit, now);
        calls
            .iter()
            .map(|(idle_millis, bytes)| {
                now += Duration::from_millis(*idle_millis);
                now += bucket.wait(now);
                bucket.charge(*bytes, now);
                (now - start, *bytes)
            })
            .collect()
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let began = run(0, &[(0, 1 << 30), (0, 1 << 30)]);
        assert_eq!(began[1].0, Duration::ZERO);
    }

    #[test]
    fn a_lower_limit_pays_what_is_owed_more_slowly_and_none_forgets_it() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        bucket.set_limit(1000, start);
        bucket.charge(10_000, start);
        bucket.set_limit(100, start + Duration::from_secs(5));
        let wait = bucket.wait(start + Duration::from_secs(5)).as_secs_f64();
        assert!((wait - 50.0).abs() < 0.001, "{wait}");
        bucket.set_limit(0, start + Duration::from_secs(6));
        assert_eq!(bucket.wait(start + Duration::from_secs(6)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_holds_more_than_the_limit_the_credit_and_one_call(
            limit in 1_u64..10_000_000,
            calls in prop::collection::vec((prop_oneof![Just(0_u64), 0..5000_u64], 1_u64..3_000_000), 1..60),
        ) {
            let began = run(limit, &calls);
            for (first, (from, _)) in began.iter().enumerate() {
                let mut sum = 0;
                for (at, bytes) in &began[first..] {
                    let allowed = limit as f64 * ((*at - *from) + CREDIT).as_secs_f64();
                    prop_assert!(sum as f64 <= allowed + 1.0, "{sum} bytes before {at:?}, {allowed} allowed");
                    sum += bytes;
                }
            }
        }

        #[test]
        fn who_always_has_something_to_send_gets_the_whole_limit(
            limit in 1_u64..10_000_000, bytes in prop::collection::vec(1_u64..3_000_000, 2..60),
        ) {
            let calls: Vec<_> = bytes.iter().map(|bytes| (0, *bytes)).collect();
            let began = run(limit, &calls);
            let (last, _) = began[began.len() - 1];
            let before: u64 = bytes[..bytes.len() - 1].iter().sum();
            let due = before as f64 / limit as f64;
            prop_assert!(last.as_secs_f64() <= due + 0.001, "{last:?}, due after {due} s");
        }
    }
}
