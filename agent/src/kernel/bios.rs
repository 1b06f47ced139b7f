//! Writes under way on disks without a request queue: by the program's own count, held against the kernel's.
//!
//! The program counts a bio when it is queued, before anybody could see it under way, and takes it off when it has
//! ended. So zero proves that nothing is under way, which the kernel's own count does not: it begins later.
//!
//! Two things keep the count above zero for ever. Completions that the kernel admits to have left out: of them only the
//! idle server's proof suffers, and that is mended by subtracting them. Completions that escape unseen: that is found
//! out here, and then such disks cannot be tracked on this machine. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// For this long the kernel has nothing under way, the program has, and no write ends: far longer than an array or a
/// multipath map is suspended for.
const STUCK: Duration = Duration::from_secs(60);

/// What is seen at one moment, summed over these disks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Bios queued, and ended: `ended` is read first, so that the difference is never too small.
    pub(super) queued: u64,
    pub(super) ended: u64,
    /// Completions that the kernel has admitted to have left out since tracking began.
    pub(super) missed: u64,
    /// The kernel's own count of writes under way is zero.
    pub(super) kernel_quiet: bool,
}

impl Counts {
    /// Proves, when zero, that nothing is under way.
    pub(super) fn under_way(&self) -> u64 {
        self.queued.saturating_sub(self.ended)
    }

    /// The same for an idle server's proof, without those whose end was left out: their blocks are read again.
    pub(super) fn not_known_to_have_ended(&self) -> u64 {
        match self.kernel_quiet {
            true => self.under_way().saturating_sub(self.missed),
            false => self.under_way(),
        }
    }
}

/// Since when nothing has moved.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<(Instant, u64)>);

impl Watch {
    /// True: completions escape.
    pub(super) fn see(&mut self, counts: Counts, now: Instant) -> bool {
        if counts.not_known_to_have_ended() == 0 || !counts.kernel_quiet {
            self.0 = None;
            return false;
        }
        match self.0 {
            Some((since, ended)) if ended == counts.ended => now.saturating_duration_since(since) >= STUCK,
            _ => {
                self.0 = Some((now, counts.ended));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Counts = Counts { queued: 10, ended: 7, missed: 0, kernel_quiet: true };

    #[test]
    fn writes_that_never_end_although_the_kernel_has_none_have_escaped() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        assert!(!watch.see(QUIET, now));
        assert!(!watch.see(QUIET, now + STUCK / 2));
        assert!(watch.see(QUIET, now + STUCK));
    }

    #[test]
    fn nothing_is_proven_while_the_kernel_counts_some_or_others_end() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.see(QUIET, now);
        assert!(!watch.see(Counts { kernel_quiet: false, ..QUIET }, now + STUCK));
        assert!(!watch.see(QUIET, now + STUCK));
        assert!(!watch.see(Counts { ended: 8, ..QUIET }, now + 2 * STUCK));
    }

    #[test]
    fn completions_that_were_left_out_count_as_ended_for_the_idle_proof_alone() {
        let counts = Counts { missed: 3, ..QUIET };
        assert_eq!((counts.under_way(), counts.not_known_to_have_ended()), (3, 0));
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.see(counts, now);
        assert!(!watch.see(counts, now + STUCK));
        assert_eq!(Counts { kernel_quiet: false, ..counts }.not_known_to_have_ended(), 3);
    }
}
