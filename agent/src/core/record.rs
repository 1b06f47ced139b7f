//! Makes the records of a session: plans the next one, sends it chunk by chunk, decides what it is at its end.
//!
//! ```text
//!   plan ─┬─ Copy    part of what awaits its copy          ── End(COPY)
//!         ├─ Batch   part of a backlog too large for a round ── End(INEXACT)
//!         └─ Round   flip, take, all that is unsent ── pass ─┬─ undisturbed ── End(EXACT)
//!                                        ▲                   ├─ again: flip, take
//!                                        └───────────────────┤
//!                                          frozen pass ◄─────┴─ given up ── End(INEXACT)
//! ```
//!
//! While something awaits its copy, rounds are inexact and leave those blocks to the copy.

use std::collections::VecDeque;

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockSet},
    env::Micros,
    errors::chain,
    ids::RecordNumber,
    planted::Planted,
    wire::v1,
};
use tokio::time::Instant;

use super::{
    chunk::{self, Content, ReadError},
    issue,
    round::{Passes, Verdict},
    session::{Session, SessionError, up},
};
use crate::edge::{FreezeError, TrackError};

/// Issue codes of status.
const FREEZE_FAILED: &str = "FreezeFailed";
const DISK_READ_FAILED: &str = "DiskReadFailed";

pub(super) struct Record {
    number: RecordNumber,
    job: Job,
    chunks: u32,
    rest: BlockSet,
    /// Read under a freeze and not sent yet.
    ready: VecDeque<Content>,
    data_bytes: u64,
}

enum Job {
    Copy,
    Batch,
    Round(Round),
}

struct Round {
    passes: Passes,
    flip: Flip,
    pass_blocks: u64,
    disturbed: bool,
    /// False while the copy is not complete.
    may_be_exact: bool,
    freeze: Option<v1::Consistency>,
}

/// The instant of a flip: by this machine's date and by the process server's time.
#[derive(Debug, Clone, Copy)]
struct Flip {
    date: Micros,
    theirs: Micros,
}

impl Session<'_> {
    /// Does one thing: begins a record, or yields its next message.
    pub(super) async fn step(&mut self) -> Result<Option<v1::Up>, SessionError> {
        let Some(mut record) = self.work.take() else {
            if let Some(message) = self.compare(Instant::now()).await? {
                return Ok(message);
            }
            self.work = self.plan(Instant::now())?;
            return Ok(None);
        };
        if let Some(content) = record.ready.pop_front() {
            return self.send_chunk(record, content).map(Some);
        }
        if !record.rest.is_empty() {
            let content = self.read(&mut record).await?;
            return self.send_chunk(record, content).map(Some);
        }
        let another = match self.judge(&mut record)? {
            Judged::End(kind) => return Ok(Some(self.end(&record, kind))),
            Judged::Another => true,
            Judged::Freeze => self.frozen_pass(&mut record).await?,
        };
        if !another {
            return Ok(Some(self.end(&record, v1::RecordKind::Inexact)));
        }
        self.work = Some(record);
        Ok(None)
    }

    fn plan(&mut self, now: Instant) -> Result<Option<Record>, SessionError> {
        self.check_lost()?;
        let copying = !self.tracker.complete();
        let due = now >= self.next_round() || self.catching_up;
        let covers = self.options.limits.batch_covers_bytes / BLOCK_BYTES;
        if copying && (self.owe_copy || !due) {
            self.owe_copy = false;
            let rest = first(self.to_be_copied(), covers);
            if !rest.is_empty() {
                return Ok(Some(self.begin_record(Job::Copy, rest)));
            }
            if !due {
                return Ok(None);
            }
        }
        let limit = self.options.limits.catch_up_bytes;
        let mut sendable = self.tracker.sendable();
        let mut flip = None;
        if !(self.catching_up && sendable.bytes() > limit) {
            self.last_round = Some(now);
            flip = Some(self.flip_and_take()?);
            sendable = self.tracker.sendable();
        }
        self.catching_up = sendable.bytes() > limit;
        self.owe_copy = copying;
        let Some(flip) = flip.filter(|_| !self.catching_up) else {
            let rest = first(&sendable, self.options.limits.batch_blocks());
            return Ok(Some(self.begin_record(Job::Batch, rest)));
        };
        if sendable.is_empty() && (copying || !self.need_point) {
            return Ok(None);
        }
        let round = Round {
            passes: Passes::default(),
            flip,
            pass_blocks: sendable.len(),
            disturbed: false,
            may_be_exact: !copying,
            freeze: None,
        };
        Ok(Some(self.begin_record(Job::Round(round), sendable)))
    }

    fn begin_record(&mut self, job: Job, rest: BlockSet) -> Record {
        let number = self.tracker.begin();
        Record { number, job, chunks: 0, rest, ready: VecDeque::new(), data_bytes: 0 }
    }

    fn flip_and_take(&mut self) -> Result<Flip, TrackError> {
        // Before the flip, so that the instant told is never later than the true one.
        let at = Instant::now();
        let date = self.parts.map.flip()?;
        let taken = self.parts.map.take()?;
        self.tracker.took(&taken);
        Ok(Flip { date, theirs: self.clock.at(at) })
    }

    /// Reads the next blocks of the record, and sees whether they were issued again meanwhile.
    async fn read(&mut self, record: &mut Record) -> Result<Content, SessionError> {
        let content = match chunk::read(&*self.parts.source, &record.rest, &self.options.limits).await {
            Ok(content) => content,
            Err(error) => return Err(self.unreadable(error)),
        };
        self.kept.issues.remove(DISK_READ_FAILED);
        let copy = matches!(record.job, Job::Copy);
        self.tracker.read(&content.blocks, content.data.len() as u64, copy);
        if let (true, Some(compare)) = (copy, &mut self.compare) {
            compare.copied(&content.blocks);
        }
        if let Job::Round(round) = &mut record.job
            && round.may_be_exact
            && !round.disturbed
            && self.options.planted != Some(Planted::DisturbedIsExact)
        {
            round.disturbed = !self.parts.map.issued_now(&content.blocks)?.is_empty();
        }
        record.rest.subtract(&content.blocks);
        record.data_bytes += content.data.len() as u64;
        // A round that is due does not wait for a whole copy record.
        let batch = self.options.limits.batch_bytes;
        let enough = if Instant::now() >= self.next_round() { batch / 4 } else { batch };
        if copy && record.data_bytes >= enough {
            record.rest = BlockSet::default();
        }
        Ok(content)
    }

    pub(super) fn unreadable(&mut self, error: ReadError) -> SessionError {
        let path =
            self.disks.iter().find(|disk| disk.slot == error.disk.0).map_or("", |disk| disk.path.as_str());
        let message = format!("{path}: {error}: {}", error.source);
        let remedy = "check the disk with smartctl and dmesg; replication goes on when it can be read";
        self.kept
            .issues
            .insert(DISK_READ_FAILED.to_owned(), issue(DISK_READ_FAILED, "Error", message, remedy));
        SessionError::Read(error)
    }

    fn send_chunk(&mut self, mut record: Record, content: Content) -> Result<v1::Up, SessionError> {
        let mut extents = Vec::with_capacity(content.pieces.len());
        for piece in &content.pieces {
            let Some(slot) = self.slots.vault(piece.run.disk) else {
                return Err(SessionError::Protocol { what: format!("disk {} has no slot", piece.run.disk) });
            };
            let (first_block, blocks) = (u64::from(piece.run.first), piece.run.blocks);
            extents.push(v1::Extent { disk_slot: slot, first_block, blocks, zero: piece.zero });
        }
        let chunk = v1::Chunk {
            number: record.number.0,
            sequence: record.chunks,
            extents,
            crc32c: crc32c::crc32c(&content.data),
            data: content.data,
        };
        record.chunks += 1;
        self.work = Some(record);
        Ok(up(v1::up::Message::Chunk(chunk)))
    }

    /// Everything of this pass is read: what now?
    fn judge(&mut self, record: &mut Record) -> Result<Judged, SessionError> {
        let round = match &mut record.job {
            Job::Copy => return Ok(Judged::End(v1::RecordKind::Copy)),
            Job::Batch => return Ok(Judged::End(v1::RecordKind::Inexact)),
            Job::Round(round) => round,
        };
        if !round.may_be_exact {
            return Ok(Judged::End(v1::RecordKind::Inexact));
        }
        // Looked at after the last read: marks that were lost would have disturbed the pass unseen.
        self.check_lost()?;
        let now = Instant::now();
        match round.passes.finished(round.pass_blocks, round.disturbed) {
            Verdict::Exact => Ok(Judged::End(v1::RecordKind::Exact)),
            _ if round.freeze.is_some() => Ok(Judged::End(v1::RecordKind::Inexact)),
            Verdict::Again => Ok(match self.next_pass(record)? {
                true => Judged::Another,
                false => Judged::End(v1::RecordKind::Inexact),
            }),
            Verdict::GiveUp => {
                let without = now.saturating_duration_since(self.last_exact);
                let allowed = self.kept.freezes.allows(&self.policy.freeze, without, now);
                Ok(if allowed { Judged::Freeze } else { Judged::End(v1::RecordKind::Inexact) })
            }
        }
    }

    /// Flips and takes for another pass. False: too much was written meanwhile to be worth it; the next round
    /// carries it.
    fn next_pass(&mut self, record: &mut Record) -> Result<bool, TrackError> {
        let flip = self.flip_and_take()?;
        let rest = self.tracker.sendable();
        if rest.bytes() > self.options.limits.catch_up_bytes {
            return Ok(false);
        }
        if let Job::Round(round) = &mut record.job {
            round.flip = flip;
            round.pass_blocks = rest.len();
            round.disturbed = false;
        }
        record.rest = rest;
        Ok(true)
    }

    /// Freezes, flips, reads what fits, thaws. False: no freeze came about.
    /// Nothing between freeze and thaw may return without thawing, or log.
    async fn frozen_pass(&mut self, record: &mut Record) -> Result<bool, SessionError> {
        let limit = self.policy.freeze.timeout;
        match self.parts.freezer.estimate().await {
            Some(estimate) if estimate <= limit / 2 => {}
            _ => return Ok(false),
        }
        self.kept.freezes.spend(Instant::now());
        let began = Instant::now();
        if let Err(error) = self.parts.freezer.freeze(limit).await {
            self.freeze_failed(&error);
            return Ok(false);
        }
        let read = self.read_frozen(record, began).await;
        let thawed = self.parts.freezer.thaw().await;
        self.kept.freezes.thawed(thawed.longest);
        self.kept.issues.remove(FREEZE_FAILED);
        tracing::info!(
            longest_ms = u64::try_from(thawed.longest.as_millis()).unwrap_or(u64::MAX),
            held_until_thaw = thawed.held_until_now,
            "froze the file systems for a round"
        );
        if let Job::Round(round) = &mut record.job {
            round.freeze = Some(match thawed.held_until_now {
                true => v1::Consistency::FilesystemConsistent,
                false => v1::Consistency::CrashConsistent,
            });
        }
        read
    }

    async fn read_frozen(&mut self, record: &mut Record, began: Instant) -> Result<bool, SessionError> {
        if !self.next_pass(record)? {
            return Ok(false);
        }
        let half = self.policy.freeze.timeout / 2;
        let before = record.data_bytes;
        while !record.rest.is_empty()
            && began.elapsed() < half
            && record.data_bytes - before < self.options.limits.frozen_bytes
        {
            let content = self.read(record).await?;
            record.ready.push_back(content);
        }
        Ok(true)
    }

    fn freeze_failed(&mut self, error: &FreezeError) {
        let remedy = "look at `systemctl status lifeboat-thaw` and the file system named; rounds go on without freezing";
        let message = chain(error);
        tracing::warn!(error = message, "could not freeze");
        self.kept.issues.insert(FREEZE_FAILED.to_owned(), issue(FREEZE_FAILED, "Warning", message, remedy));
    }

    fn end(&mut self, record: &Record, kind: v1::RecordKind) -> v1::Up {
        let mut end = v1::End {
            number: record.number.0,
            chunks: record.chunks,
            kind: kind.into(),
            complete: self.tracker.complete(),
            copy_remaining_blocks: self.tracker.awaiting_copy().len(),
            ..v1::End::default()
        };
        let exact = kind == v1::RecordKind::Exact;
        if exact && let Job::Round(round) = &record.job {
            end.t0_micros = round.flip.theirs.0;
            end.clock_offset_micros = round.flip.theirs.0 - round.flip.date.0;
            end.consistency = round.freeze.unwrap_or(v1::Consistency::CrashConsistent).into();
            self.last_exact = Instant::now();
        }
        self.need_point = !exact;
        self.tracker.end();
        up(v1::up::Message::End(end))
    }
}

enum Judged {
    End(v1::RecordKind),
    Another,
    Freeze,
}

/// The first `blocks` blocks of a set.
fn first(set: &BlockSet, blocks: u64) -> BlockSet {
    let mut part = BlockSet::default();
    let mut left = blocks;
    for mut run in set.runs(u32::try_from(blocks).unwrap_or(u32::MAX)) {
        run.blocks = run.blocks.min(u32::try_from(left).unwrap_or(u32::MAX));
        left -= u64::from(run.blocks);
        part.insert_run(run);
        if left == 0 {
            break;
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{blocks::BlockRun, ids::DiskSlot};

    use super::*;

    #[test]
    fn the_first_blocks_of_a_set_are_cut_within_a_run() {
        let mut set = BlockSet::default();
        set.insert_run(BlockRun { disk: DiskSlot(1), first: 5, blocks: 10 });
        set.insert_run(BlockRun { disk: DiskSlot(2), first: 0, blocks: 10 });
        let part = first(&set, 12);
        assert_eq!(part.len(), 12);
        assert!(part.contains(DiskSlot(2), 1) && !part.contains(DiskSlot(2), 2));
        assert_eq!(first(&set, 100), set);
    }
}
