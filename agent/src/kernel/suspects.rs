//! Blocks that were taken while a write to them may still have been under way.
//!
//! Such a block may have been read before the write landed. As a rule the mark at completion brings it again. Where
//! that mark does not come (the kernel leaves out a run of the program, or completions escape it altogether), the
//! suspects are read again. Pure: what was seen goes in, what is to be read again comes out.
//!
//! ```text
//!   taken ──► open ──(nothing under way)──► landed ──(two seconds without a missed completion)──► forgotten
//!               └───────────────────────────────┴──(completion missed, or issue-only)──► read again
//!   of an earlier run ──(nothing under way)──► read again
//! ```
//! Between "nothing under way" and forgetting some time passes, since the kernel stops counting a write a moment
//! before it runs the program for its completion.

use std::time::Duration;

use lifeboat_replication::blocks::BlockSet;
use tokio::time::Instant;

/// Far longer than a completion takes from the device's interrupt to the tracepoint.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Suspects {
    open: BlockSet,
    landed: Option<(Instant, BlockSet)>,
    /// Of an earlier run, which alone knew what it awaited.
    resumed: BlockSet,
    /// Issued and not seen to complete.
    awaited: BlockSet,
    /// Awaited since a moment at which the kernel had nothing under way.
    overdue: Option<(Instant, BlockSet)>,
}

/// What a take has seen.
pub(super) struct Seen<'a> {
    pub(super) issued: &'a BlockSet,
    pub(super) completed: &'a BlockSet,
    /// At a moment after the flip, the kernel counted nothing under way on any disk.
    pub(super) quiet: bool,
    /// Since the last take, the kernel left out runs of the program for completions.
    pub(super) missed: bool,
    pub(super) issue_only: bool,
    pub(super) now: Instant,
}

/// What follows from it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) read_again: BlockSet,
    pub(super) forgotten: BlockSet,
    /// Completions were proven to escape the program: issue-only from now on.
    pub(super) escaped: bool,
}

impl Suspects {
    /// Those of an earlier run of the agent. Whether their completions were seen or have escaped is not known any more,
    /// so they are read again once they have landed.
    pub(super) fn resumed(open: BlockSet) -> Self {
        Self { resumed: open.clone(), open, ..Self::default() }
    }

    /// From before a restart of the machine.
    pub(super) fn add(&mut self, open: &BlockSet) {
        self.open.union(open);
    }

    /// All that are not yet certain to have been read after they landed.
    pub(super) fn len(&self) -> u64 {
        self.open.len() + self.landed.as_ref().map_or(0, |(_, landed)| landed.len())
    }

    pub(super) fn see(&mut self, seen: Seen<'_>) -> Verdict {
        let mut verdict = Verdict { escaped: self.judge_completions(&seen), ..Verdict::default() };
        if seen.quiet {
            verdict.read_again = std::mem::take(&mut self.resumed);
        }
        self.open.union(seen.issued);
        self.open.union(seen.completed);
        if seen.issue_only || seen.missed || verdict.escaped {
            // Whatever landed until now is read after now.
            if let Some((_, landed)) = self.landed.take() {
                self.open.union(&landed);
            }
            verdict.read_again.union(&self.open);
            if seen.quiet {
                verdict.forgotten = std::mem::take(&mut self.open);
            }
            return verdict;
        }
        if let Some((_, landed)) = self.landed.take_if(|(since, _)| seen.now - *since >= SETTLED) {
            verdict.forgotten = landed;
            verdict.forgotten.subtract(&self.open);
        }
        if seen.quiet && self.landed.is_none() && !self.open.is_empty() {
            self.landed = Some((seen.now, std::mem::take(&mut self.open)));
        }
        verdict
    }

    fn judge_completions(&mut self, seen: &Seen<'_>) -> bool {
        // What the kernel left out it admits, and is read again; only a completion that nobody admits to has escaped.
        if seen.missed {
            self.awaited = BlockSet::default();
            self.overdue = None;
            return false;
        }
        self.awaited.union(seen.issued);
        self.awaited.subtract(seen.completed);
        if let Some((since, overdue)) = &mut self.overdue {
            overdue.subtract(seen.completed);
            let proven = !overdue.is_empty() && seen.now - *since >= SETTLED;
            if overdue.is_empty() || proven {
                self.overdue = None;
            }
            if proven {
                return !seen.issue_only;
            }
        }
        if self.overdue.is_none() && seen.quiet && !self.awaited.is_empty() {
            self.overdue = Some((seen.now, self.awaited.clone()));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{blocks::BlockRun, ids::DiskSlot};

    use super::*;

    fn set(blocks: &[u32]) -> BlockSet {
        let mut set = BlockSet::default();
        for first in blocks {
            set.insert_run(BlockRun { disk: DiskSlot(1), first: *first, blocks: 1 });
        }
        set
    }

    struct Case {
        suspects: Suspects,
        now: Instant,
        issue_only: bool,
    }

    impl Case {
        fn new() -> Self {
            Self { suspects: Suspects::default(), now: Instant::now(), issue_only: false }
        }

        /// A second later: what was issued and completed, whether it is quiet, whether a completion was missed.
        fn see(&mut self, issued: &[u32], completed: &[u32], quiet: bool, missed: bool) -> Verdict {
            self.now += Duration::from_secs(1);
            self.suspects.see(Seen {
                issued: &set(issued),
                completed: &set(completed),
                quiet,
                missed,
                issue_only: self.issue_only,
                now: self.now,
            })
        }
    }

    #[test]
    fn a_missed_completion_brings_back_all_that_was_under_way() {
        let mut case = Case::new();
        assert_eq!(case.see(&[1, 2], &[2], false, false), Verdict::default());
        assert_eq!(case.see(&[], &[], true, true).read_again, set(&[1, 2]));
        assert_eq!(case.suspects.len(), 0);
    }

    #[test]
    fn a_completion_missed_just_after_the_count_reached_zero_is_not_overlooked() {
        let mut case = Case::new();
        case.see(&[1], &[], true, false);
        assert_eq!(case.see(&[], &[], true, true).read_again, set(&[1]));
    }

    #[test]
    fn what_an_earlier_run_awaited_is_read_again_once_it_has_landed() {
        let mut case = Case { suspects: Suspects::resumed(set(&[1])), ..Case::new() };
        assert_eq!(case.see(&[], &[], false, false).read_again, set(&[]));
        assert_eq!(case.see(&[], &[], true, false).read_again, set(&[1]));
        assert_eq!(case.see(&[], &[], true, false).read_again, set(&[]));
    }

    #[test]
    fn settled_blocks_are_forgotten_without_another_read() {
        let mut case = Case::new();
        case.see(&[1], &[1], true, false);
        case.see(&[], &[], true, false);
        let verdict = case.see(&[], &[], true, false);
        assert_eq!((verdict.read_again, verdict.forgotten), (set(&[]), set(&[1])));
    }

    #[test]
    fn issue_only_reads_again_until_nothing_is_under_way() {
        let mut case = Case::new();
        case.issue_only = true;
        assert_eq!(case.see(&[1], &[], false, false).read_again, set(&[1]));
        assert_eq!(case.see(&[2], &[], false, false).read_again, set(&[1, 2]));
        let last = case.see(&[], &[], true, false);
        assert_eq!((last.read_again, last.forgotten), (set(&[1, 2]), set(&[1, 2])));
        assert_eq!(case.see(&[], &[], true, false), Verdict::default());
    }

    #[test]
    fn completions_that_never_come_although_it_is_quiet_prove_that_they_escape() {
        let mut case = Case::new();
        assert!(!case.see(&[1, 2], &[2], true, false).escaped);
        assert!(!case.see(&[], &[], true, false).escaped);
        let verdict = case.see(&[], &[], true, false);
        assert!(verdict.escaped);
        assert_eq!(verdict.read_again, set(&[1, 2]));
    }

    #[test]
    fn a_completion_that_the_kernel_admits_to_have_left_out_has_not_escaped() {
        let mut case = Case::new();
        case.see(&[1], &[], true, false);
        assert_eq!(case.see(&[], &[], true, true).read_again, set(&[1]));
        for _ in 0..3 {
            assert!(!case.see(&[], &[], true, false).escaped);
        }
    }

    #[test]
    fn a_late_completion_proves_nothing() {
        let mut case = Case::new();
        case.see(&[1], &[], true, false);
        case.see(&[], &[1], false, false);
        for _ in 0..5 {
            assert!(!case.see(&[], &[], true, false).escaped);
        }
    }
}
