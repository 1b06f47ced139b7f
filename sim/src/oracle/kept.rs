//! What retention may not touch: the oracle's own view, asked at every delete that the store takes.

use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt as _;
use lifeboat_applier::core::retention::ages::{Aging, ages};
use lifeboat_replication::{
    catalogue::{self, Point, Points, Position},
    env::Micros,
    errors::chain,
    ids::RecordId,
    journal::Source,
    log::{LogReader, Patience, frame::RawFrame, part, state::Start},
    recoverable::journal_begins,
    store::{BlobStore as _, SnapshotId},
    vault::layout,
};
use tokio::time::Instant;

use super::{Oracle, points::compare};

/// What a reader relies on: its pin was renewed in time.
#[derive(Debug, Clone)]
pub struct Held {
    pub until: Instant,
    pub base: Option<Point>,
    /// First and last record.
    pub records: Option<(u64, u64)>,
}

pub(super) struct Kept {
    journal: Duration,
    /// Segments that committed records name, with the record's number.
    named: BTreeMap<String, u64>,
    /// Every point that was ever listed.
    ever_listed: BTreeMap<RecordId, Micros>,
    held: BTreeMap<String, Held>,
}

impl Kept {
    pub(super) fn new(journal: Duration) -> Self {
        Self { journal, named: BTreeMap::new(), ever_listed: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// The store was restored: pins and lists are those of the copy, which nobody has been promised anything of.
    pub(super) fn went_back(&mut self) {
        *self = Self::new(self.journal);
    }

    pub(super) fn names(&mut self, source: &Source) {
        if source.inline.is_none() {
            self.named.insert(source.name.clone(), source.record);
        }
    }

    fn live(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.held.iter().filter(|(_, held)| held.until >= Instant::now())
    }
}

impl Oracle {
    /// A reader's pin stands, or was renewed.
    pub fn holds(&mut self, run: &str, held: Held) {
        self.kept.held.insert(run.to_owned(), held);
    }

    /// A reader lets go, or is gone. True: something that it read was kept by its pin alone.
    pub fn lets_go(&mut self, run: &str) -> bool {
        let (Some(held), Ok(listed)) = (self.kept.held.remove(run), self.listed()) else { return false };
        let only_pinned =
            held.base.as_ref().is_some_and(|base| held.records.is_some() && !listed.is_base(base));
        self.reached.points_held_by_pins += u64::from(only_pinned);
        only_pinned
    }

    pub(super) fn listed(&self) -> Result<Points, String> {
        let read = catalogue::read::<Points>(&self.past_faults(), &self.server).now_or_never();
        let read = read.ok_or("the catalogue's read waits")?.map_err(|error| chain(&error))?;
        Ok(read.map_or_else(|| Points::none(&self.server), |(points, _)| points))
    }

    /// The store has taken a delete of this blob or of one of its snapshots.
    pub fn deleted(&mut self, name: &str) -> Result<(), String> {
        if name.starts_with(&layout::journal_prefix(&self.server)) {
            self.reached.segments_deleted += 1;
            return self.segment_may_go(name);
        }
        if name.starts_with(&layout::disks_prefix(&self.server)) {
            self.reached.snapshots_deleted += 1;
            return self.snapshots_stand();
        }
        if name.starts_with(&layout::log_prefix(&self.server)) {
            self.reached.log_parts_deleted += 1;
            return self.log_stands(name);
        }
        Ok(())
    }

    /// From the oldest base and from every pinned point on the log can be read to its end, and a takeover still finds
    /// what the newest part continues.
    fn log_stands(&self, deleted: &str) -> Result<(), String> {
        let listed = self.listed()?;
        let base =
            journal_begins(&listed).ok_or("a part of the log was deleted, and the journal has no base")?;
        // Who reads a snapshot alone needs no log: it may have pinned it when the log began after it already.
        let reads_on = |(_, held): (_, &'_ Held)| held.records.and(held.base.clone());
        let pinned: Vec<Point> = self.kept.live().filter_map(reads_on).collect();
        for point in pinned.iter().chain([base]) {
            let reader = LogReader::resume(&self.past_faults(), &self.server, &self.env, point.log.clone());
            let mut reader = reader.map_err(|error| chain(&error))?;
            let end = loop {
                let next = reader.next().now_or_never().ok_or("the log's reader waits for something")?;
                match next.map_err(|error| {
                    format!("{deleted} was deleted, which point {} needs: {}", point.number, chain(&error))
                })? {
                    Some(_) => {}
                    None => break reader.state(),
                }
            };
            if end.map(|end| end.last_number) < self.reader.state().map(|state| state.last_number) {
                return Err(format!(
                    "after {deleted} was deleted, the log ends early for point {}",
                    point.number
                ));
            }
        }
        if let Some((run, _)) =
            self.kept.live().find(|(_, held)| held.base.is_none() && held.records.is_some())
        {
            return Err(format!("{deleted} was deleted, and {run} reads the log from its first record"));
        }
        self.newest_continues(deleted)
    }

    fn newest_continues(&self, deleted: &str) -> Result<(), String> {
        let Some(state) = self.reader.state() else { return Ok(()) };
        let name = state.part_name();
        let vault = self.past_faults();
        let patience = Patience { env: self.env.clone(), tries: 1 };
        let read = part::read(&vault, &self.server, name, 0, &patience).now_or_never();
        let bytes = read.ok_or("a part's read waits")?.map_err(|error| chain(&error))?.unwrap_or_default();
        let Ok(Some(header)) = RawFrame::split(&bytes) else {
            return Err(format!("{deleted} was deleted, and part {name} has no header"));
        };
        let (start, _) =
            Start::read(&vault.keys, self.server.as_str(), &name, &header).map_err(|error| chain(&error))?;
        let Some(base) = start.base_part else { return Ok(()) };
        let base = layout::log_prefix(&self.server) + &base;
        match self.model.properties(&base, None).now_or_never() {
            Some(Ok(_)) => Ok(()),
            _ => Err(format!("{deleted} was deleted, and the newest part {name} continues {base}")),
        }
    }

    fn segment_may_go(&self, name: &str) -> Result<(), String> {
        // One that no record names, yet or ever, is nobody's loss.
        let Some(record) = self.kept.named.get(name).copied() else { return Ok(()) };
        let epoch = self.epochs.get(&record).copied().unwrap_or_default();
        let id = RecordId { epoch, number: lifeboat_replication::ids::RecordNumber(record) };
        if self.listed()?.collected.is_none_or(|collected| id > collected) {
            return Err(format!("a segment of record {record} was deleted, which the journal promises"));
        }
        let position = catalogue::read::<Position>(&self.past_faults(), &self.server).now_or_never();
        let position = position.ok_or("the catalogue's read waits")?.map_err(|error| chain(&error))?;
        if position.is_none_or(|(position, _)| position.log.last_number.0 < record) {
            return Err(format!("a segment of record {record} was deleted, which is not applied"));
        }
        let needs = |held: &Held| held.records.is_some_and(|(from, to)| (from..=to).contains(&record));
        match self.kept.live().find(|(_, held)| needs(held)) {
            Some((run, _)) => {
                Err(format!("a segment of record {record} was deleted, which {run} has pinned"))
            }
            None => Ok(()),
        }
    }

    /// Snapshots of every listed and every pinned point are there.
    fn snapshots_stand(&self) -> Result<(), String> {
        let listed = self.listed()?;
        let pinned = self.kept.live().filter_map(|(_, held)| held.base.as_ref());
        for point in listed.points.iter().chain(pinned) {
            for disk in &point.disks {
                let name = layout::seed_disk(&self.server, &disk.disk_id);
                let snapshot = SnapshotId(disk.snapshot.clone());
                let found = self.model.properties(&name, Some(&snapshot)).now_or_never();
                if found.ok_or("a snapshot's properties wait")?.is_err() {
                    return Err(format!("a snapshot of point {} was deleted", point.number));
                }
            }
        }
        Ok(())
    }

    /// The journal begins no later than the oldest instant that the policy promises needs, and where it begins is
    /// listed.
    pub(super) fn journal_keeps_its_promise(&mut self, listed: &Points) -> Result<(), String> {
        self.kept.ever_listed.extend(listed.points.iter().map(|point| (point.id(), point.t0())));
        let Some(collected) = listed.collected else { return Ok(()) };
        if !listed.points.iter().any(|point| point.id() == collected) {
            return Err(format!("the journal begins at record {collected}, which is not listed"));
        }
        let all: Vec<Aging> =
            self.kept.ever_listed.iter().map(|(id, t0)| Aging { id: *id, t0: *t0, worth: 0 }).collect();
        let journal = i64::try_from(self.kept.journal.as_micros()).unwrap_or(i64::MAX);
        let needed =
            all.iter().zip(ages(&all)).rev().find(|(_, age)| *age >= journal).map(|(point, _)| point.id);
        match needed {
            Some(needed) if collected <= needed => Ok(()),
            needed => Err(format!(
                "the journal begins at record {collected}, although its oldest instant needs record {needed:?}"
            )),
        }
    }

    /// What a reader has read of a disk at a record.
    pub fn was_read(
        &mut self,
        record: u64,
        slot: lifeboat_replication::ids::DiskSlot,
        content: &[u8],
        size: u64,
    ) -> Result<(), String> {
        let slot = self.machine_slot(slot)?;
        let image =
            self.images.get(&record).ok_or_else(|| format!("pinned point {record} is no exact record"))?;
        compare(image, slot, content, size, &format!("pinned point {record}"))
    }
}
