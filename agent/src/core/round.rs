//! When a round is exact, when it needs another pass, and when it is given up. Pure.
//!
//! A pass is: flip, take, read everything unsent. A block that is issued again between the flip and the end of its
//! read disturbs the pass: what was read may be newer than the instant. Another pass then takes what was marked
//! meanwhile with a new flip, and that flip is the round's instant: blocks of earlier passes that were not marked
//! again have not changed until it. Each pass should be shorter than the one before; when it is not, the load
//! writes faster than we read and more passes do not help.

/// Passes of one round. The prototype's loads became exact in at most three, or not at all.
pub const MAX_PASSES: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The record is all disks at the last flip.
    Exact,
    Again,
    /// Ship it as inexact (or freeze).
    GiveUp,
}

#[derive(Debug, Default)]
pub struct Passes {
    done: u32,
    previous_blocks: Option<u64>,
}

impl Passes {
    /// A pass over `blocks` blocks has been read.
    pub fn finished(&mut self, blocks: u64, disturbed: bool) -> Verdict {
        self.done += 1;
        let grows = self.previous_blocks.is_some_and(|previous| blocks >= previous);
        self.previous_blocks = Some(blocks);
        match disturbed {
            false => Verdict::Exact,
            true if self.done >= MAX_PASSES || grows => Verdict::GiveUp,
            true => Verdict::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undisturbed_pass_is_exact_at_any_time() {
        let mut passes = Passes::default();
        assert_eq!(passes.finished(100, true), Verdict::Again);
        assert_eq!(passes.finished(200, false), Verdict::Exact);
    }

    #[test]
    fn gives_up_when_passes_do_not_shrink() {
        let mut passes = Passes::default();
        assert_eq!(passes.finished(100, true), Verdict::Again);
        assert_eq!(passes.finished(100, true), Verdict::GiveUp);
    }

    #[test]
    fn gives_up_after_the_last_pass() {
        let mut passes = Passes::default();
        let verdicts: Vec<_> = (0..4).map(|pass| passes.finished(100 - pass, true)).collect();
        assert_eq!(verdicts, [Verdict::Again, Verdict::Again, Verdict::Again, Verdict::GiveUp]);
    }
}
