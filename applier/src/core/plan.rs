//! What is applied as one batch. Pure.
//!
//! A batch is a run of records applied together: blocks that a later one replaces are not written. It ends where a
//! recovery point is due, or where it is large enough. When a seed disk already carries a higher sequence number
//! (an applier before us has begun a larger batch), the batch has to reach that record: only then is what stands on
//! the disk the same as what we write.

use std::time::Duration;

use lifeboat_replication::{
    catalogue::{Point, is_point},
    env::Micros,
    ids::{Epoch, RecordNumber, sequence_number},
    log::{LogDisk, LogState},
    wire::v1::{self, log_record::Body},
};

/// When a batch is large enough.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Changed bytes: what has to be done again after a crash.
    pub bytes: u64,
    /// Bytes of segments that travel inside their records: they stay in memory until the batch is done.
    pub inline_bytes: u64,
    pub records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 256 << 20, inline_bytes: 8 << 20, records: 2000 }
    }
}

/// When the next recovery point is due.
#[derive(Debug, Clone)]
pub(super) struct PointRule {
    pub interval: Duration,
    /// Epoch, number and instant of the newest point.
    pub newest: Option<(Epoch, RecordNumber, Micros)>,
}

impl PointRule {
    pub(super) fn new(interval: Duration, newest: Option<&Point>) -> Self {
        Self { interval, newest: newest.map(|point| (Epoch(point.epoch), point.record(), point.t0())) }
    }

    /// The first exact and complete record is due at once; after that one each interval. A date that jumped back
    /// must not stop points for hours, so it makes the next one due. A part of a group's point is always due: the other
    /// members cut theirs, and it shall outlive the journal.
    fn due(&self, epoch: Epoch, record: &v1::Data) -> bool {
        if !is_point(record) {
            return false;
        }
        self.newest.is_none_or(|(newest, number, t0)| {
            let interval = i64::try_from(self.interval.as_micros()).unwrap_or(i64::MAX);
            let later = (epoch, RecordNumber(record.number)) > (newest, number);
            let in_time = record.t0_micros < t0.0 || record.t0_micros.saturating_sub(t0.0) >= interval;
            later && (in_time || record.group.is_some())
        })
    }
}

/// A batch as it grows.
#[derive(Debug)]
pub(super) struct Batch {
    /// In order of the log.
    pub records: Vec<v1::Data>,
    /// State of the log after the last entry, data or not.
    pub end: Option<LogState>,
    /// The last record is a recovery point.
    pub point: bool,
    /// Disks that the log has named, to be created where they are new.
    pub disks: Vec<LogDisk>,
    /// Of the last data record.
    pub epoch: Epoch,
    full: bool,
    bytes: u64,
    inline_bytes: u64,
    at_least: u64,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            records: Vec::new(),
            end: None,
            point: false,
            disks: Vec::new(),
            epoch: Epoch(0),
            full: false,
            bytes: 0,
            inline_bytes: 0,
            at_least: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end.is_none()
    }

    /// Nothing more belongs into it.
    pub(super) fn ended(&self) -> bool {
        self.full
    }

    /// Sequence number of its last record; `None` without one.
    pub(super) fn sequence(&self) -> Option<u64> {
        Some(sequence_number(self.epoch, RecordNumber(self.records.last()?.number)))
    }

    /// It has to reach at least this sequence number before it may end.
    pub(super) fn extend_to(&mut self, sequence: u64) {
        self.at_least = self.at_least.max(sequence);
        self.point = false;
        self.full = false;
    }

    pub(super) fn reaches(&self, sequence: u64) -> bool {
        self.sequence().is_some_and(|own| own >= sequence)
    }

    /// The next entry of the log and the state after it.
    pub(super) fn take(&mut self, body: Body, after: &LogState, rule: &PointRule, limits: &Limits) {
        self.end = Some(after.clone());
        for disk in &after.disks {
            if !self.disks.contains(disk) {
                self.disks.push(disk.clone());
            }
        }
        let Body::Data(data) = body else { return };
        self.bytes += data.changed_bytes;
        self.inline_bytes += data.inline_segment.len() as u64;
        self.epoch = after.epoch;
        let due = rule.due(after.epoch, &data);
        self.records.push(data);
        if self.reaches(self.at_least) {
            self.point = due;
            self.full = due
                || self.bytes >= limits.bytes
                || self.inline_bytes >= limits.inline_bytes
                || self.records.len() >= limits.records;
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::keys::KeyId;

    use super::*;

    fn data(number: u64, kind: v1::RecordKind, t0_seconds: i64) -> Body {
        Body::Data(v1::Data {
            first_number: number,
            number,
            kind: kind.into(),
            t0_micros: t0_seconds * 1_000_000,
            complete: true,
            changed_bytes: 10,
            ..Default::default()
        })
    }

    fn exact(number: u64, t0_seconds: i64) -> Body {
        data(number, v1::RecordKind::Exact, t0_seconds)
    }

    fn state(epoch: u32) -> LogState {
        LogState { epoch: Epoch(epoch), ..LogState::empty(KeyId("k".into())) }
    }

    fn rule(newest: Option<(u64, i64)>) -> PointRule {
        let newest =
            newest.map(|(number, seconds)| (Epoch(1), RecordNumber(number), Micros(seconds * 1_000_000)));
        PointRule { interval: Duration::from_secs(300), newest }
    }

    fn batch(rule: &PointRule, bodies: impl IntoIterator<Item = Body>) -> Batch {
        let mut batch = Batch::new();
        for body in bodies {
            if !batch.ended() {
                batch.take(body, &state(1), rule, &Limits::default());
            }
        }
        batch
    }

    #[test]
    fn ends_at_the_first_exact_record_which_is_a_point() {
        let batch = batch(&rule(None), [data(1, v1::RecordKind::Copy, 0), exact(2, 5), exact(3, 6)]);
        assert!(batch.point && batch.ended());
        assert_eq!(batch.sequence(), Some(sequence_number(Epoch(1), RecordNumber(2))));
    }

    #[test]
    fn the_next_point_comes_after_the_interval_and_never_twice() {
        let rule = rule(Some((2, 100)));
        assert!(!batch(&rule, [exact(2, 900), exact(3, 399)]).ended());
        assert!(batch(&rule, [exact(3, 399), exact(4, 400)]).point);
    }

    #[test]
    fn a_date_that_jumped_back_makes_a_point_due() {
        assert!(batch(&rule(Some((2, 100_000))), [exact(3, 5)]).point);
    }

    #[test]
    fn an_incomplete_or_inexact_record_is_no_point() {
        let Body::Data(incomplete) = exact(1, 5) else { panic!("not data") };
        let incomplete = Body::Data(v1::Data { complete: false, ..incomplete });
        assert!(!batch(&rule(None), [incomplete, data(2, v1::RecordKind::Inexact, 6)]).ended());
    }

    #[test]
    fn reaches_what_another_applier_has_begun_even_past_a_due_point() {
        let target = sequence_number(Epoch(1), RecordNumber(3));
        let mut batch = batch(&rule(None), [exact(1, 5)]);
        assert!(batch.point && !batch.reaches(target));
        batch.extend_to(target);
        for body in [exact(2, 6), data(3, v1::RecordKind::Inexact, 7)] {
            assert!(!batch.ended());
            batch.take(body, &state(1), &rule(None), &Limits::default());
        }
        assert!(batch.reaches(target) && !batch.point);
    }

    #[test]
    fn ends_when_it_is_large() {
        let mut batch = Batch::new();
        let limits = Limits { records: 2, ..Limits::default() };
        for number in 1..=2 {
            batch.take(data(number, v1::RecordKind::Copy, 0), &state(1), &rule(None), &limits);
        }
        assert!(batch.ended() && !batch.point);
    }
}
