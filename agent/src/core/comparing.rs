//! Carries a comparison out: asks, reads, and takes what is the same off the copy.
//!
//! It runs between rounds, a few rows at a time. A block that is the same as in the vault leaves the pinned marks at
//! once; whatever is written after its read is marked by the tracker.
//!
//! Tracking that is lost within a session ends it: the process server's answers hold for the log as the session found
//! it, and only while marks say what was written since.

use futures::{StreamExt as _, stream};
use lifeboat_replication::{blocks::BlockSet, wire::v1};
use tokio::time::Instant;

use super::{
    chunk::ReadError,
    compare::{Compare, Step},
    session::{Session, SessionError, up},
};
use crate::edge::TrackError;

/// Rows of 1 MiB that are read in one go: what a round or an answer waits for.
const ROWS: usize = 16;
/// Reads under way: enough to keep a disk busy while sums are made.
const READS: usize = 8;

impl Session<'_> {
    /// Something of the copy can be done now.
    pub(super) fn copy_can_go_on(&self) -> bool {
        match &self.compare {
            _ if self.waits => false,
            Some(compare) => !compare.differing().is_empty() || !compare.is_waiting(),
            None => !self.tracker.awaiting_copy().is_empty(),
        }
    }

    /// What a copy record may carry.
    pub(super) fn to_be_copied(&self) -> &BlockSet {
        self.compare.as_ref().map_or(self.tracker.awaiting_copy(), Compare::differing)
    }

    /// Does the next thing of the comparison, if it is its turn. `None`: it is not; a record may be planned.
    pub(super) async fn compare(&mut self, now: Instant) -> Result<Option<Option<v1::Up>>, SessionError> {
        let due = now >= self.next_round() || self.catching_up;
        let Some(compare) = self.compare.as_mut().filter(|_| !self.waits && (self.owe_copy || !due)) else {
            return Ok(None);
        };
        // A whole record's worth of what differs goes first: so memory and what a break costs stay small.
        if compare.differing().bytes() >= self.options.limits.batch_bytes {
            return Ok(None);
        }
        match compare.step(self.tracker.awaiting_copy(), ROWS) {
            Step::Ask(ask) => Ok(Some(Some(up(v1::up::Message::SumsAsk(ask))))),
            Step::Wait => Ok(None),
            Step::Done => {
                tracing::info!(
                    same_blocks = compare.same,
                    different_blocks = compare.different,
                    "every disk is compared with the vault"
                );
                self.compare = None;
                Ok(None)
            }
            Step::Read(runs) => {
                self.owe_copy = false;
                let source = &self.parts.source;
                let reads = runs.into_iter().map(|run| async move { (run, source.read(run).await) });
                let mut reads = stream::iter(reads).buffered(READS);
                let mut failed = None;
                let mut same = BlockSet::default();
                while let Some((run, read)) = reads.next().await {
                    match read {
                        Ok(content) => {
                            same.union(&compare.read(self.tracker.awaiting_copy(), run, &content));
                        }
                        Err(source) => {
                            failed = Some(ReadError {
                                disk: run.disk,
                                first: run.first,
                                blocks: run.blocks,
                                source,
                            });
                            break;
                        }
                    }
                }
                drop(reads);
                self.proven(&same)?;
                match failed {
                    Some(error) => Err(self.unreadable(error)),
                    None => Ok(Some(None)),
                }
            }
        }
    }

    /// The process server's answer.
    pub(super) fn compared(&mut self, sums: &v1::Sums) -> Result<(), TrackError> {
        let Some(compare) = &mut self.compare else { return Ok(()) };
        if !sums.unusable.is_empty() {
            self.compare_not(&sums.unusable);
            return Ok(());
        }
        match compare.answered(self.tracker.awaiting_copy(), sums) {
            Ok(same) => self.proven(&same),
            Err(error) => {
                self.compare_not(&error.to_string());
                Ok(())
            }
        }
    }

    /// Everything that is left is copied without being compared.
    fn compare_not(&mut self, why: &str) {
        tracing::warn!(why, "checksums cannot be used: everything that is left is copied");
        self.compare = None;
        self.kept.not_compared = Some(why.to_owned());
    }

    /// These blocks are in the vault as they were when they were read.
    fn proven(&mut self, same: &BlockSet) -> Result<(), TrackError> {
        if same.is_empty() {
            return Ok(());
        }
        self.tracker.proven(same);
        self.parts.map.copied(same)
    }
}
