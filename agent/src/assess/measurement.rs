//! One measurement: round after round, with samples of content in the time between.
//!
//! In: rounds of [`Churn`], blocks of the disks. Out: [`Figures`], at any moment. Reading and compressing samples takes
//! at most a given share of one processor's time, and waits its turn: one segment a time, so that what production
//! notices is a read of 2 MiB now and then.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockSet},
    ids::DiskSlot,
    wire::v1,
};
use tokio::time::{Instant, sleep_until};

use super::{
    pages::{Batches, PageWrites},
    sample::{Areas, SAMPLE_BLOCKS, Sample, Spread, some_of},
    series::{Series, Span},
};
use crate::{
    core::{Limits, chunk},
    edge::{BlockSource, TrackError},
};

/// Places of the disks that are looked at: one in a thousand off is enough.
const MOST_AREAS: usize = 2048;
/// At least this long between two samples, however fast they are.
const SAMPLE_PAUSE: Duration = Duration::from_millis(50);
/// Read speed until samples have shown one.
const READ_BYTES_PER_SECOND: f64 = 200e6;
/// Longer intervals that are counted beside the round's own.
const WIDER: [u64; 4] = [60, 300, 3600, 8 * 3600];
/// A record whose only segment is at most this large travels in its commit record.
const INLINE_BYTES: f64 = 65536.0;

/// Rounds of the kernel's marks, without anything that is kept.
pub trait Churn: Send {
    /// Ends a round at one instant for all disks: the blocks that were written or discarded in it.
    fn round(&mut self) -> Result<BlockSet, TrackError>;

    /// Which of these have been written since.
    fn again(&mut self, blocks: &BlockSet) -> Result<BlockSet, TrackError>;

    /// Bytes of requests so far, by disk in the order of the source's.
    fn written(&self) -> Vec<u64>;

    /// Why marks are missing since the last call.
    fn lost(&mut self) -> Option<String>;
}

/// What goes over a line if rounds were this long.
#[derive(Debug, Clone, PartialEq)]
pub struct Wider {
    pub interval: Duration,
    /// Of whole intervals.
    pub total: Span,
    /// Of the interval with the most, in bytes.
    pub most: u64,
    set: BlockSet,
    since: Instant,
}

impl Wider {
    /// With this total so far, of equal intervals.
    pub fn of(interval: Duration, total: Span) -> Self {
        let most = if total.seconds > 0.0 {
            (total.bytes as f64 * interval.as_secs_f64() / total.seconds).ceil() as u64
        } else {
            0
        };
        Self { interval, total, most, set: BlockSet::default(), since: Instant::now() }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DiskFigures {
    pub disk: v1::Disk,
    pub changed_bytes: u64,
    pub written_bytes: u64,
    /// Asked of its seed disk.
    pub pages: PageWrites,
}

/// Everything measured so far.
#[derive(Debug, Clone)]
pub struct Figures {
    pub rounds: u64,
    /// Distinct blocks of each round, in bytes: what would be sent, before compression.
    pub changed: Series,
    pub wider: Vec<Wider>,
    pub disks: Vec<DiskFigures>,
    /// Of changed blocks.
    pub churn: Sample,
    /// Of all blocks of the disks.
    pub content: Sample,
    /// `content` is of every block.
    pub content_complete: bool,
    /// Rounds of which it is known whether they would have been exact at their first pass, and those that would.
    pub judged: u64,
    pub exact: u64,
    /// Calls of the store: appends to the log, and segments put.
    pub appends: u64,
    pub puts: u64,
    pub losses: BTreeSet<String>,
    pub unreadable: Option<String>,
}

pub struct Measurement {
    churn: Box<dyn Churn>,
    source: Arc<dyn BlockSource>,
    share: f64,
    started: Instant,
    round_began: Instant,
    busy: Duration,
    read: Span,
    spread: Spread,
    areas: Areas,
    batches: Batches,
    written_before: Vec<u64>,
    figures: Figures,
}

impl Measurement {
    /// `interval`: of the rounds. `share`: of one processor, for samples; 0: none. `start`: where samples begin.
    pub fn new(
        churn: Box<dyn Churn>,
        source: Arc<dyn BlockSource>,
        interval: Duration,
        share: f64,
        start: u64,
    ) -> Self {
        let now = Instant::now();
        let disks = source.disks();
        let wider = WIDER.map(Duration::from_secs).into_iter().filter(|wide| *wide > interval);
        let figures = Figures {
            rounds: 0,
            changed: Series::default(),
            wider: wider.map(|interval| Wider::of(interval, Span::default())).collect(),
            disks: disks
                .iter()
                .map(|disk| DiskFigures {
                    disk: disk.clone(),
                    changed_bytes: 0,
                    written_bytes: 0,
                    pages: PageWrites::default(),
                })
                .collect(),
            churn: Sample::default(),
            content: Sample::default(),
            content_complete: false,
            judged: 0,
            exact: 0,
            appends: 0,
            puts: 0,
            losses: BTreeSet::new(),
            unreadable: None,
        };
        Self {
            written_before: churn.written(),
            batches: Batches::new(disks.iter().map(|disk| DiskSlot(disk.slot)), now),
            areas: Areas::new(&disks, MOST_AREAS, Spread::new(start)),
            churn,
            source,
            share,
            started: now,
            round_began: now,
            busy: Duration::ZERO,
            read: Span::default(),
            spread: Spread::new(start),
            figures,
        }
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// How long the round under way lasts by now.
    pub fn in_round(&self) -> Duration {
        self.round_began.elapsed()
    }

    /// Ends a round, counts it, and looks at some of it. Returns what it has changed, in bytes.
    pub async fn round(&mut self) -> Result<u64, TrackError> {
        let began = self.round_began;
        let taken = self.churn.round()?;
        let now = Instant::now();
        self.round_began = now;
        self.count(&taken, now - began);
        self.figures.losses.extend(self.churn.lost());
        if !taken.is_empty() {
            if self.may_sample() {
                let some = some_of(&taken, &mut self.spread);
                self.sample(&some, taken.bytes(), false).await;
            }
            self.judge(&taken, now, now - began).await?;
        }
        Ok(taken.bytes())
    }

    /// Looks at the disks as far as the share allows, until the next round is due.
    pub async fn rest(&mut self, until: Instant) {
        while self.share > 0.0 && self.figures.unreadable.is_none() {
            let allowed = self.started + self.busy.div_f64(self.share);
            let next = allowed.max(Instant::now() + SAMPLE_PAUSE);
            if next >= until {
                break;
            }
            let Some(area) = self.areas.another() else { break };
            sleep_until(next).await;
            self.sample(&area, area.bytes(), true).await;
            self.figures.content_complete = self.areas.is_complete();
        }
        sleep_until(until).await;
    }

    fn count(&mut self, taken: &BlockSet, took: Duration) {
        let figures = &mut self.figures;
        figures.rounds += 1;
        figures.changed.push(Span { seconds: took.as_secs_f64(), bytes: taken.bytes() });
        self.batches.add(taken, self.round_began);
        let written = self.churn.written();
        for (index, disk) in figures.disks.iter_mut().enumerate() {
            let changed = taken.disk(DiskSlot(disk.disk.slot)).map_or(0, |blocks| blocks.len());
            disk.changed_bytes += changed * BLOCK_BYTES;
            disk.pages = self.batches.of(DiskSlot(disk.disk.slot));
            let of = |all: &[u64]| all.get(index).copied().unwrap_or(0);
            disk.written_bytes += of(&written).saturating_sub(of(&self.written_before));
        }
        self.written_before = written;
        let now = self.round_began;
        for wider in &mut figures.wider {
            wider.set.union(taken);
            if now - wider.since >= wider.interval {
                wider.total.seconds += (now - wider.since).as_secs_f64();
                let bytes = std::mem::take(&mut wider.set).bytes();
                wider.total.bytes += bytes;
                wider.most = wider.most.max(bytes);
                wider.since = now;
            }
        }
        if !taken.is_empty() {
            figures.appends += 1;
            let segments = taken.len().div_ceil(u64::from(SAMPLE_BLOCKS));
            let sent = taken.bytes() as f64 * figures.churn.ratio().unwrap_or(1.0);
            figures.puts += if segments == 1 && sent <= INLINE_BYTES { 0 } else { segments };
        }
    }

    fn may_sample(&self) -> bool {
        self.share > 0.0
            && self.figures.unreadable.is_none()
            && self.busy.as_secs_f64() <= self.share * self.started.elapsed().as_secs_f64()
    }

    /// These blocks stand for `whole` bytes. Trouble with a disk ends the sampling, not the measurement.
    async fn sample(&mut self, blocks: &BlockSet, whole: u64, of_disks: bool) {
        let began = Instant::now();
        let limits = Limits { chunk_bytes: u64::from(SAMPLE_BLOCKS) * BLOCK_BYTES, ..Limits::default() };
        let sample = if of_disks { &mut self.figures.content } else { &mut self.figures.churn };
        let result = match chunk::read(&*self.source, blocks, &limits).await {
            Ok(content) => {
                self.read.seconds += began.elapsed().as_secs_f64();
                self.read.bytes += content.blocks.bytes();
                sample.add(&content, whole).map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("{error} ({})", error.source)),
        };
        self.figures.unreadable = result.err();
        self.busy += began.elapsed();
    }

    /// Would the round be exact at its first pass? If it is read at the speed of the samples, nothing of it may be
    /// written until then.
    async fn judge(&mut self, taken: &BlockSet, flip: Instant, interval: Duration) -> Result<(), TrackError> {
        let speed = if self.read.bytes > 0 && self.read.seconds > 0.0 {
            self.read.bytes as f64 / self.read.seconds
        } else {
            READ_BYTES_PER_SECOND
        };
        let reading = Duration::try_from_secs_f64(taken.bytes() as f64 / speed).unwrap_or(Duration::MAX);
        // A round that takes longer to read is not judged to its end, so it is not called exact.
        let whole = reading <= interval / 2;
        sleep_until(flip + reading.min(interval / 2)).await;
        let again = self.churn.again(taken)?;
        self.figures.judged += 1;
        self.figures.exact += u64::from(whole && again.is_empty());
        Ok(())
    }
}

#[cfg(test)]
#[path = "measurement_tests.rs"]
mod tests;
