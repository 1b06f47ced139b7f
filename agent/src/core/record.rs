//! Makes the records of a session: plans the next one, sends it chunk by chunk, decides what it is at its end.
//!
//! ```text
//!   plan ─┬─ Copy    part of what awaits its copy          ── End(COPY)
//!         ├─ Batch   part of a backlog too large for a round ── End(INEXACT)
//!         └─ Round   flip, take, all that is unsent ── pass ─┬─ undisturbed ── End(EXACT)
//!                                        ▲                   ├─ again: flip, take
//!                                        └───────────────────┤
//!                                          frozen pass ◄─────┴─ given up ── End(INEXACT)
//!         └─ Standing round   freeze, flip, take, read what fits, thaw, read the rest (standing.rs)
//! ```
//!
//! While something awaits its copy, rounds are inexact and leave those blocks to the copy.

use std::{collections::VecDeque, time::Duration};

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockSet},
    env::Micros,
    ids::RecordNumber,
    planted::Planted,
    wire::v1,
};
use tokio::time::Instant;

use super::{
    chunk::{self, Content, ReadError},
    issue,
    points::{self, Taken},
    round::{Passes, Verdict},
    session::{Session, SessionError, up},
    standing::{Stage, Stood},
};
use crate::edge::TrackError;

/// Issue code of status.
const DISK_READ_FAILED: &str = "DiskReadFailed";

pub(super) struct Record {
    number: RecordNumber,
    job: Job,
    chunks: u32,
    pub(super) rest: BlockSet,
    /// Read under a freeze and not sent yet.
    pub(super) ready: VecDeque<Content>,
    pub(super) data_bytes: u64,
}

enum Job {
    Copy,
    Batch,
    Round(Round),
}

pub(super) struct Round {
    passes: Passes,
    flip: Flip,
    pass_blocks: u64,
    disturbed: bool,
    /// False while the copy is not complete.
    may_be_exact: bool,
    /// The freeze of the last pass.
    pub(super) stood: Option<Stood>,
    /// The group's point that the record is this server's part of.
    pub(super) group: Option<v1::GroupPoint>,
}

impl Round {
    pub(super) fn new(flip: Flip, pass_blocks: u64, may_be_exact: bool) -> Self {
        Self {
            passes: Passes::default(),
            flip,
            pass_blocks,
            disturbed: false,
            may_be_exact,
            stood: None,
            group: None,
        }
    }

    /// Everything stood still from `t0` (in the process server's time) to the flip: the flip shows that instant.
    pub(super) fn bear(&mut self, group: v1::GroupPoint, t0: Micros) {
        self.flip.theirs = t0;
        self.group = Some(group);
    }

    pub(super) fn another(&mut self, flip: Flip, pass_blocks: u64) {
        (self.flip, self.pass_blocks, self.disturbed) = (flip, pass_blocks, false);
    }
}

impl Record {
    pub(super) fn round(&mut self) -> Option<&mut Round> {
        match &mut self.job {
            Job::Round(round) => Some(round),
            Job::Copy | Job::Batch => None,
        }
    }

    /// Everything of this pass is read and sent.
    pub(super) fn is_read(&self) -> bool {
        self.rest.is_empty() && self.ready.is_empty()
    }

    /// Nothing more is read for it: replication was paused. What is left stays marked.
    pub(super) fn stop_short(&mut self) {
        if !self.rest.is_empty() {
            self.rest = BlockSet::default();
            if let Some(round) = self.round() {
                round.may_be_exact = false;
            }
        }
    }
}

/// The instant of a flip: by this machine's date and by the process server's time.
#[derive(Debug, Clone)]
pub(super) struct Flip {
    date: Micros,
    theirs: Micros,
    /// Requests for points that were heard before it.
    serves: Vec<String>,
}

impl Session<'_> {
    /// Does one thing: begins a record, or yields its next message.
    pub(super) async fn step(&mut self) -> Result<Option<v1::Up>, SessionError> {
        let Some(mut record) = self.work.take() else {
            let now = Instant::now();
            if let Some(message) = self.compare(now).await? {
                return Ok(message);
            }
            self.prepare(now);
            let only_standing_helps = self.only_standing_helps(now);
            self.work = match self.stage {
                Stage::Bulked if !self.catching_up => {
                    self.hold();
                    None
                }
                Stage::Ready if !self.catching_up && self.tracker.complete() => self.standing_round().await?,
                _ if only_standing_helps => self.standing_round().await?,
                _ => self.plan(now)?,
            };
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
        let due = self.is_asked() || now >= self.next_round() || self.catching_up;
        let covers = self.options.limits.batch_covers_bytes / BLOCK_BYTES;
        if copying && !self.waits && (self.owe_copy || !due) {
            self.owe_copy = false;
            let rest = first(self.to_be_copied(), covers);
            if !rest.is_empty() {
                return Ok(Some(self.begin_record(Job::Copy, rest)?));
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
        if !self.catching_up && matches!(self.stage, Stage::Bulk) {
            self.stage = Stage::Bulked;
        }
        if !self.catching_up {
            self.group.round_began();
        }
        let Some(flip) = flip.filter(|_| !self.catching_up) else {
            let rest = first(&sendable, self.options.limits.batch_blocks());
            return Ok(Some(self.begin_record(Job::Batch, rest)?));
        };
        let may_be_exact = !copying && self.parts.map.stood();
        let wanted = self.need_point || self.kept.requests.any_round_will_do();
        if sendable.is_empty() && !(may_be_exact && wanted) {
            return Ok(None);
        }
        let round = Round::new(flip, sendable.len(), may_be_exact);
        Ok(Some(self.begin_round(round, sendable)?))
    }

    pub(super) fn begin_round(&mut self, round: Round, rest: BlockSet) -> Result<Record, TrackError> {
        self.begin_record(Job::Round(round), rest)
    }

    fn begin_record(&mut self, job: Job, rest: BlockSet) -> Result<Record, TrackError> {
        let number = self.tracker.begin();
        if self.parts.map.sent().is_none_or(|sent| sent < number.0) {
            self.parts.map.set_sent(number.0)?;
        }
        Ok(Record { number, job, chunks: 0, rest, ready: VecDeque::new(), data_bytes: 0 })
    }

    pub(super) fn flip_and_take(&mut self) -> Result<Flip, TrackError> {
        // Before the flip, so that the instant told is never later than the true one.
        let at = Instant::now();
        let date = self.parts.map.flip()?;
        let serves = self.kept.requests.at_flip();
        let taken = self.parts.map.take()?;
        self.tracker.took(&taken);
        Ok(Flip { date, theirs: self.clock.at(at), serves })
    }

    /// Reads the next blocks of the record, and sees whether they were issued again meanwhile.
    pub(super) async fn read(&mut self, record: &mut Record) -> Result<Content, SessionError> {
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
        self.end_of_pass(record);
        record.data_bytes += content.data.len() as u64;
        // A round that is due does not wait for a whole copy record.
        let batch = self.options.limits.batch_bytes;
        let enough = if Instant::now() >= self.next_round() { batch / 4 } else { batch };
        if copy && record.data_bytes >= enough {
            record.rest = BlockSet::default();
        }
        Ok(content)
    }

    /// Everything may have been read: does it show the instant of the flip? Asked before anything that stands still goes
    /// on.
    pub(super) fn end_of_pass(&mut self, record: &mut Record) {
        if let (true, Job::Round(round)) = (record.rest.is_empty(), &mut record.job) {
            round.disturbed |= !self.parts.map.stood();
        }
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
            _ if round.stood.is_some() => Ok(Judged::End(v1::RecordKind::Inexact)),
            Verdict::Again => Ok(match self.next_pass(record)? {
                true => Judged::Another,
                false => Judged::End(v1::RecordKind::Inexact),
            }),
            Verdict::GiveUp => {
                let without = now.saturating_duration_since(self.last_exact);
                let allowed = self.kept.freezes.helps(&self.policy.freeze, without, now)
                    || self.kept.requests.frozen_round_will_do();
                Ok(if allowed { Judged::Freeze } else { Judged::End(v1::RecordKind::Inexact) })
            }
        }
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
            let consistency = round.stood.map_or(v1::Consistency::CrashConsistent, |stood| stood.consistency);
            end.t0_micros = round.flip.theirs.0;
            end.clock_offset_micros = round.flip.theirs.0 - round.flip.date.0;
            end.consistency = consistency.into();
            self.last_exact = Instant::now();
            let taken = Taken {
                number: end.number,
                t0_micros: end.t0_micros,
                consistency,
                longest_freeze: round.stood.map_or(Duration::ZERO, |stood| stood.longest),
            };
            self.kept.requests.carried(&round.flip.serves, &taken);
            end.group = round.group.clone();
        } else if let Job::Round(Round { stood: Some(_), flip, .. }) = &record.job {
            self.kept.requests.disturbed(&flip.serves);
        }
        if !exact && let Job::Round(Round { group: Some(group), .. }) = &record.job {
            self.group.refuse(&group.id, points::disturbed());
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
