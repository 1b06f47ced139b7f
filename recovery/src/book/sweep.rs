//! Which points stand: pure. Fed with the log's records in order, with what is wrong with their segments, and with
//! the listed points and whether their snapshots stand.
//!
//! A point can be recovered when its own snapshots stand, or when every record between some base before it (standing
//! snapshots, or the log's first record) and itself is whole.

use std::collections::BTreeMap;

use lifeboat_replication::{
    catalogue::{Point, is_point},
    env::Micros,
    ids::Epoch,
    wire::v1,
};
use serde::Serialize;

use crate::select::time_text;

/// A listed point and why its snapshots do not stand: the number of the finding.
#[derive(Debug, Clone)]
pub struct Standing {
    pub point: Point,
    pub broken_by: Option<usize>,
}

/// A point as people name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PointName {
    pub number: u64,
    pub epoch: u32,
    pub t0: String,
    pub t0_micros: i64,
}

/// Points that follow each other without an unread record between them, all recoverable or all not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub recoverable: bool,
    pub count: u64,
    pub first: PointName,
    pub last: PointName,
}

#[derive(Debug)]
pub struct Sweep {
    /// From a base up to here every record is whole.
    whole: bool,
    /// Finding that broke it.
    broken_by: Option<usize>,
    /// Not passed yet.
    listed: BTreeMap<(u32, u64), Standing>,
    runs: Vec<Run>,
    /// The next point does not follow the last one.
    apart: bool,
    hurts: Vec<(usize, u64)>,
}

impl Sweep {
    /// `listed` may be in any order.
    pub fn new(listed: impl IntoIterator<Item = Standing>) -> Self {
        let listed = listed.into_iter().map(|standing| {
            let Point { epoch, number, .. } = standing.point;
            ((epoch, number), standing)
        });
        Self {
            whole: true,
            broken_by: None,
            listed: listed.collect(),
            runs: Vec::new(),
            apart: false,
            hurts: Vec::new(),
        }
    }

    /// What is listed about this point is not true: its snapshots do not count.
    pub fn disqualify(&mut self, point: &Point, finding: usize) {
        if let Some(listed) = self.listed.get_mut(&(point.epoch, point.number)) {
            listed.broken_by.get_or_insert(finding);
        }
    }

    /// The next record; `broken_by`: a finding about its segments. Gives the listed point that stands at it.
    pub fn record(&mut self, epoch: Epoch, record: &v1::Data, broken_by: Option<usize>) -> Option<Standing> {
        if broken_by.is_some() && self.whole {
            self.whole = false;
            self.broken_by = broken_by;
        }
        let listed = self.listed.remove(&(epoch.0, record.number));
        let stands = listed.as_ref().is_some_and(|listed| listed.broken_by.is_none());
        if is_point(record) {
            let name = PointName::new(record.number, epoch.0, Micros(record.t0_micros));
            let why = self.broken_by.or_else(|| listed.as_ref().and_then(|listed| listed.broken_by));
            self.point(name, self.whole || stands, why);
        }
        if stands {
            self.whole = true;
            self.broken_by = None;
        }
        listed
    }

    /// A record that retention may have taken: no point any more, unless its own snapshots stand. `base`: the journal
    /// begins right after it.
    pub fn collected(&mut self, epoch: Epoch, record: &v1::Data, base: bool) {
        let listed = self.listed.remove(&(epoch.0, record.number));
        if let Some(listed) = &listed {
            self.unread(listed);
        }
        self.whole = base && listed.is_some_and(|listed| listed.broken_by.is_none());
        self.broken_by = None;
        self.apart = true;
    }

    /// The log is read from this listed point on.
    pub fn begin(&mut self, base: (u32, u64)) {
        self.whole = false;
        self.go_on(base);
    }

    /// The log cannot be followed here; it goes on after the listed point `resumed`, if it does.
    pub fn gap(&mut self, finding: usize, resumed: Option<(u32, u64)>) {
        self.whole = false;
        self.broken_by = Some(finding);
        if let Some(resumed) = resumed {
            self.go_on(resumed);
        }
    }

    fn go_on(&mut self, from: (u32, u64)) {
        let rest = self.listed.split_off(&(from.0, from.1.saturating_add(1)));
        for (_, standing) in std::mem::replace(&mut self.listed, rest) {
            self.unread(&standing);
            if (standing.point.epoch, standing.point.number) != from {
                continue;
            }
            self.whole = standing.broken_by.is_none();
            self.broken_by = standing.broken_by.or(self.broken_by).filter(|_| !self.whole);
        }
    }

    /// The log has ended: points that are listed and were not met stand in their snapshots alone.
    pub fn end(mut self) -> (Vec<Run>, Vec<(usize, u64)>) {
        for (_, standing) in std::mem::take(&mut self.listed) {
            self.unread(&standing);
        }
        (self.runs, self.hurts)
    }

    /// A listed point whose record was not read.
    fn unread(&mut self, standing: &Standing) {
        let Point { number, epoch, .. } = standing.point;
        let why = standing.broken_by.or(self.broken_by);
        let name = PointName::new(number, epoch, standing.point.t0());
        self.apart = true;
        self.point(name, standing.broken_by.is_none(), why);
        self.apart = true;
    }

    fn point(&mut self, name: PointName, recoverable: bool, why: Option<usize>) {
        if let (false, Some(finding)) = (recoverable, why) {
            self.hurts.push((finding, name.number));
        }
        match self.runs.last_mut() {
            Some(run) if run.recoverable == recoverable && !std::mem::take(&mut self.apart) => {
                run.count += 1;
                run.last = name;
            }
            _ => {
                self.apart = false;
                self.runs.push(Run { recoverable, count: 1, first: name.clone(), last: name });
            }
        }
    }
}

impl PointName {
    pub fn new(number: u64, epoch: u32, t0: Micros) -> Self {
        Self { number, epoch, t0: time_text(t0), t0_micros: t0.0 }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{catalogue::PointConsistency, keys::KeyId, log::LogState};

    use super::*;

    fn listed(number: u64, broken_by: Option<usize>) -> Standing {
        let point = Point {
            number,
            epoch: 1,
            t0_micros: number as i64,
            consistency: PointConsistency::CrashConsistent,
            group: None,
            disks: Vec::new(),
            log: LogState::empty(KeyId("k".into())),
        };
        Standing { point, broken_by }
    }

    fn feed(sweep: &mut Sweep, numbers: std::ops::RangeInclusive<u64>, broken: &[u64]) {
        for number in numbers {
            let record = v1::Data {
                number,
                complete: true,
                kind: v1::RecordKind::Exact.into(),
                t0_micros: number as i64,
                ..Default::default()
            };
            sweep.record(Epoch(1), &record, broken.contains(&number).then_some(7));
        }
    }

    type Shown = (Vec<(bool, u64, u64)>, Vec<(usize, u64)>);

    fn shown(sweep: Sweep) -> Shown {
        let (runs, hurts) = sweep.end();
        (runs.iter().map(|run| (run.recoverable, run.first.number, run.last.number)).collect(), hurts)
    }

    #[test]
    fn a_broken_record_hurts_every_point_up_to_the_next_snapshots() {
        let mut sweep = Sweep::new([listed(5, None), listed(8, Some(3))]);
        feed(&mut sweep, 1..=9, &[3, 7]);
        let (runs, hurts) = shown(sweep);
        assert_eq!(runs, [(true, 1, 2), (false, 3, 4), (true, 5, 6), (false, 7, 9)]);
        assert_eq!(hurts, [(7, 3), (7, 4), (7, 7), (7, 8), (7, 9)]);
    }

    #[test]
    fn snapshots_that_are_gone_hurt_nothing_that_the_journal_still_gives() {
        let mut sweep = Sweep::new([listed(5, Some(3))]);
        feed(&mut sweep, 1..=9, &[]);
        assert_eq!(shown(sweep), (vec![(true, 1, 9)], Vec::new()));
    }

    #[test]
    fn a_log_that_begins_at_a_base_gives_what_follows_it_and_the_snapshots_before() {
        let mut sweep = Sweep::new([listed(3, None), listed(5, None), listed(8, None)]);
        sweep.begin((1, 5));
        feed(&mut sweep, 6..=9, &[]);
        assert_eq!(shown(sweep), (vec![(true, 3, 3), (true, 5, 5), (true, 6, 9)], Vec::new()));
        let mut sweep = Sweep::new([listed(5, Some(2)), listed(8, None)]);
        sweep.begin((1, 5));
        feed(&mut sweep, 6..=9, &[]);
        let (runs, hurts) = shown(sweep);
        assert_eq!(runs, [(false, 5, 5), (false, 6, 7), (true, 8, 9)]);
        assert_eq!(hurts, [(2, 5), (2, 6), (2, 7)]);
    }

    #[test]
    fn after_a_gap_only_snapshots_help() {
        let mut sweep = Sweep::new([listed(3, None), listed(4, Some(2)), listed(6, None), listed(9, None)]);
        feed(&mut sweep, 1..=2, &[]);
        sweep.gap(0, Some((1, 6)));
        feed(&mut sweep, 7..=8, &[]);
        let (runs, hurts) = shown(sweep);
        assert_eq!(
            runs,
            [(true, 1, 2), (true, 3, 3), (false, 4, 4), (true, 6, 6), (true, 7, 8), (true, 9, 9)]
        );
        assert_eq!(hurts, [(2, 4)]);
    }
}
