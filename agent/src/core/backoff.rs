//! How long to wait before the next dial. Pure but for the jitter, which is given.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The last session did something useful.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Doubles with each failure, up to [`LONGEST`].
    pub fn next(&mut self, random: u64) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        jittered(wait, random)
    }
}

/// Between half of `wait` and `wait`, so that servers that lost the same process server do not return at once.
pub fn jittered(wait: Duration, random: u64) -> Duration {
    let half = wait / 2;
    let part = u32::try_from(random % 1024).unwrap_or(0);
    half + half * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_longest_and_starts_again_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(0)).collect();
        assert_eq!(waits[0], Duration::from_millis(125));
        assert_eq!(waits[1], Duration::from_millis(250));
        assert_eq!(waits[7], LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.next(1023), jittered(FIRST, 1023));
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        for random in [0, 1, 511, 1023, 1024, u64::MAX] {
            let wait = jittered(LONGEST, random);
            assert!(wait >= LONGEST / 2 && wait <= LONGEST, "{wait:?}");
        }
    }
}
