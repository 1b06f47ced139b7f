//! One server's retention, step by step: plan, take off the catalogue, look at the pins, delete.

use std::time::Duration;

use lifeboat_replication::{
    catalogue::{self, Point, Points},
    ids::RecordId,
    log::{LogState, PartName, beginning},
    pins::{self, Pin, PinError},
    planted::Planted,
    store::{ETag, Refusal, StoreError},
    vault::{RetentionPolicy, layout},
};
use tokio::{sync::watch, time::Instant};

use super::{
    PinWatch, Swept,
    ages::Keep,
    plan::{log_floor, plan},
    sweep,
};
use crate::core::{
    ApplyError,
    point::{is_reached, stands},
    seeds::Seeds,
};

/// What keeps something from being deleted. Applying goes on.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// What the catalogue says now is not known: it has to be read again.
    #[error(transparent)]
    Catalogue(ApplyError),
    #[error("a pin keeps everything from being deleted")]
    Pins(#[from] PinError),
    #[error(
        "nothing is deleted: the snapshots of record {point}, on which the journal is to begin, are not in the store any more; \
         restore them from its soft-delete"
    )]
    BaseLost { point: RecordId },
    #[error("what retention has given up cannot be deleted")]
    Store(#[from] StoreError),
}

/// What another applier has left behind is found although nothing is written.
const QUIET_INTERVAL: Duration = Duration::from_secs(6 * 3600);

#[derive(Debug)]
pub(in crate::core) struct Collector {
    interval: Duration,
    policy: watch::Receiver<Option<RetentionPolicy>>,
    planted: Option<Planted>,
    watch: PinWatch,
    next: Option<Instant>,
    /// After what there was nothing more to delete: policy and position. Age is time that passes in the log, so a server
    /// that writes nothing need not be looked at.
    settled: Option<(Keep, LogState)>,
    looked: Instant,
    /// Where the log was found to be needed from; looked at again when that moves on.
    floor: Option<(PartName, u64)>,
}

impl Collector {
    pub(in crate::core) fn new(
        interval: Duration,
        policy: watch::Receiver<Option<RetentionPolicy>>,
        planted: Option<Planted>,
    ) -> Self {
        let looked = Instant::now();
        let watch = PinWatch::default();
        Self { interval, policy, planted, watch, next: None, settled: None, looked, floor: None }
    }

    pub(in crate::core) fn policy(&self) -> Option<RetentionPolicy> {
        *self.policy.borrow()
    }

    /// The policy, when it is time; without one nothing is ever deleted.
    pub(in crate::core) fn due(&self, position: &LogState) -> Option<Keep> {
        let now = Instant::now();
        let policy = self.policy().filter(|_| self.next.is_none_or(|next| next <= now))?;
        let keep = Keep {
            retention: Duration::from_secs(policy.retention_seconds),
            journal: Duration::from_secs(policy.journal_seconds),
        };
        let same = |(of, after): &(Keep, LogState)| *of == keep && after == position;
        let quiet = self.settled.as_ref().is_some_and(same);
        (!quiet || now.saturating_duration_since(self.looked) >= QUIET_INTERVAL).then_some(keep)
    }

    /// `points` is replaced when it was written.
    pub(in crate::core) async fn run(
        &mut self,
        seeds: &Seeds,
        keep: Keep,
        position: &LogState,
        points: &mut (Points, Option<ETag>),
        swept: &mut Swept,
    ) -> Result<(), CollectError> {
        self.looked = Instant::now();
        self.next = Some(self.looked + self.interval);
        self.settled = None;
        let applied = RecordId { epoch: position.epoch, number: position.last_number };
        self.is_current(seeds, points.1.as_ref()).await?;
        let pins = self.pins(seeds).await?;
        let mut planned = plan(&points.0, applied, &pins, keep);
        if self.planted == Some(Planted::JournalBeginsAtNewest) {
            planned.collected = planned.points.last().map(Point::id).filter(|newest| *newest <= applied);
        }
        if planned.collected != points.0.collected {
            self.stands(seeds, &planned).await?;
        }
        planned.log_begins = self.log_begins(seeds, &planned, position, &pins).await?;
        if self.planted == Some(Planted::DeleteBeforeDelisting) {
            sweep(seeds, &planned, position, &pins, swept).await?;
        }
        let pins = if planned == points.0 {
            pins
        } else {
            let Seeds { vault, server, .. } = seeds;
            let written = catalogue::write(vault, server, &planned, points.1.as_ref()).await;
            let etag = written.map_err(|error| CollectError::Catalogue(unsettled(error, seeds)))?;
            *points = (planned, Some(etag));
            self.pins(seeds).await?
        };
        let done = sweep(seeds, &points.0, position, &pins, swept).await;
        if swept.unfinished {
            self.next = None;
        }
        done?;
        if pins.is_empty() && !swept.unfinished && !swept.later {
            self.settled = Some((keep, position.clone()));
        }
        Ok(())
    }

    /// The part that the log can begin with. It never moves back.
    async fn log_begins(
        &mut self,
        seeds: &Seeds,
        planned: &Points,
        position: &LogState,
        pins: &[Pin],
    ) -> Result<Option<PartName>, CollectError> {
        let floor = match self.planted {
            Some(Planted::LogBeginsAtPosition) => planned.collected.map(|_| position),
            _ => log_floor(planned, position, pins),
        };
        let Some(floor) = floor else { return Ok(planned.log_begins) };
        let place = Some((floor.part_name(), floor.offset));
        if place == self.floor {
            return Ok(planned.log_begins);
        }
        let Seeds { vault, server, patience, .. } = seeds;
        let first = beginning::first_part(vault, server, floor, patience).await?;
        self.floor = place;
        Ok(planned.log_begins.max(first))
    }

    /// An applier that had nothing to apply for long may have an old list.
    async fn is_current(&self, seeds: &Seeds, etag: Option<&ETag>) -> Result<(), CollectError> {
        let name = layout::catalogue(&seeds.server, "points.json");
        let found = match seeds.patience.sure(|| seeds.vault.store.properties(&name, None)).await {
            Err(error) if error.is(Refusal::NotFound) => None,
            found => Some(found?.etag),
        };
        match found.as_ref() == etag {
            true => Ok(()),
            false => Err(CollectError::Catalogue(ApplyError::Superseded { name })),
        }
    }

    /// The pins that count; those that are over are taken away.
    async fn pins(&mut self, seeds: &Seeds) -> Result<Vec<Pin>, CollectError> {
        if self.planted == Some(Planted::CollectIgnoresPins) {
            return Ok(Vec::new());
        }
        let Seeds { vault, server, .. } = seeds;
        let began = Instant::now();
        let standing = pins::all(&*vault.store, server).await?;
        let (live, over) = self.watch.judge(standing, began..Instant::now());
        for gone in over {
            tracing::info!(%server, run = gone.pin.run, "the pin of a reader that is gone is taken away");
            pins::remove_seen(&*vault.store, &gone).await?;
        }
        Ok(live)
    }

    /// What the journal is to begin with is really there, and the seed disks have not fallen behind it.
    async fn stands(&self, seeds: &Seeds, planned: &Points) -> Result<(), CollectError> {
        let Some(point) = planned.points.iter().find(|point| planned.is_base(point)) else { return Ok(()) };
        let stands = stands(seeds, point).await.map_err(CollectError::Catalogue)?
            && is_reached(seeds, point).await.map_err(CollectError::Catalogue)?;
        if stands { Ok(()) } else { Err(CollectError::BaseLost { point: point.id() }) }
    }
}

fn unsettled(error: StoreError, seeds: &Seeds) -> ApplyError {
    match error {
        error if error.is(Refusal::Condition) || error.is(Refusal::AlreadyExists) => {
            ApplyError::Superseded { name: layout::catalogue(&seeds.server, "points.json") }
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::ids::{Epoch, RecordNumber};
    use tokio::time::sleep;

    use super::{
        super::fixture::{point, seeds},
        *,
    };

    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: RetentionPolicy =
        RetentionPolicy { point_interval_seconds: 300, retention_seconds: 86_400, journal_seconds: 3600 };

    /// Each look is paid for, and nothing grows older while nothing is written.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_writes_is_looked_at_once_an_interval_and_an_idle_one_each_six_hours() {
        let seeds = seeds();
        let (policy, followed) = watch::channel(None);
        let mut collector = Collector::new(60 * SECOND, followed, None);
        let mut position = LogState::empty(seeds.vault.keys.current().0.clone());
        let mut points = (Points::none(&seeds.server), None);
        assert_eq!(collector.due(&position), None, "nothing is deleted without a policy");
        policy.send_replace(Some(POLICY));
        let keep = collector.due(&position).unwrap();
        assert_eq!(keep, Keep { retention: Duration::from_secs(86_400), journal: Duration::from_secs(3600) });
        let mut look = async |collector: &mut Collector, position: &LogState| {
            collector.run(&seeds, keep, position, &mut points, &mut Swept::default()).await.unwrap();
            let looked = Instant::now();
            let mut next = position.clone();
            next.offset += 1;
            while collector.due(&next).is_none() {
                sleep(SECOND).await;
            }
            looked.elapsed()
        };
        assert_eq!(look(&mut collector, &position).await, 60 * SECOND);

        // Nothing is written any more.
        position.offset += 1;
        look(&mut collector, &position).await;
        let looked = Instant::now() - 60 * SECOND;
        while collector.due(&position).is_none() {
            sleep(60 * SECOND).await;
        }
        assert_eq!(looked.elapsed(), Duration::from_secs(6 * 3600));

        // A pin may go at any time, and what it kept with it.
        let pin = Pin {
            format: 1,
            server: seeds.server.to_string(),
            run: "run".to_owned(),
            base: None,
            records: None,
            held_for_seconds: 3600,
            renewed_at_micros: 0,
            confirmed: true,
        };
        pins::write(&*seeds.vault.store, &seeds.server, &pin, &seeds.patience).await.unwrap();
        look(&mut collector, &position).await;
        assert!(collector.due(&position).is_some());
        pins::remove(&*seeds.vault.store, &seeds.server, "run").await.unwrap();

        // Another policy may have something to delete.
        look(&mut collector, &position).await;
        assert_eq!(collector.due(&position), None);
        policy.send_replace(Some(RetentionPolicy { journal_seconds: 60, ..POLICY }));
        assert!(collector.due(&position).is_some());
    }

    /// A point an hour; the fourth of six is the base of a journal of two hours.
    async fn collected(base_stands: bool) -> (Result<(), CollectError>, Option<RecordId>) {
        let seeds = seeds();
        let store = &seeds.vault.store;
        let disk = seeds.name("disk");
        store.create_page(&disk, 1 << 20).await.unwrap();
        let mut log = LogState::empty(seeds.vault.keys.current().0.clone());
        log.epoch = Epoch(1);
        let mut listed = Points::none(&seeds.server);
        for number in 1..=6 {
            log.last_number = RecordNumber(number);
            let sequence = RecordId { epoch: log.epoch, number: log.last_number }.sequence();
            store.raise_sequence(&disk, sequence, None).await.unwrap();
            let snapshot = store.snapshot(&disk, None, None).await.unwrap();
            if number == 4 && !base_stands {
                store.delete(&disk, Some(&snapshot)).await.unwrap();
            }
            listed.points.push(point(&log, &snapshot));
        }
        let etag = catalogue::write(&seeds.vault, &seeds.server, &listed, None).await.unwrap();
        let mut points = (listed, Some(etag));
        let (_policy, followed) = watch::channel(Some(POLICY));
        let mut collector = Collector::new(SECOND, followed, None);
        let keep = Keep { retention: Duration::from_secs(86_400), journal: Duration::from_secs(7200) };
        let done = collector.run(&seeds, keep, &log, &mut points, &mut Swept::default()).await;
        let kept = catalogue::read::<Points>(&seeds.vault, &seeds.server).await.unwrap().unwrap().0;
        assert_eq!(kept.collected, points.0.collected);
        (done, kept.collected)
    }

    /// The journal before a base is deleted for good: not on the word of a list alone.
    #[tokio::test(start_paused = true)]
    async fn the_journal_begins_only_at_a_point_whose_snapshots_are_there() {
        let fourth = RecordId { epoch: Epoch(1), number: RecordNumber(4) };
        let (done, begins) = collected(true).await;
        done.unwrap();
        assert_eq!(begins, Some(fourth));
        let (done, begins) = collected(false).await;
        let lost = done.unwrap_err();
        assert!(matches!(lost, CollectError::BaseLost { point } if point == fourth), "{lost}");
        assert_eq!(begins, None, "nothing was given up");
    }

    /// Two appliers at one server: the one with the older list deletes nothing by it.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_another_applier_has_replaced_is_read_again_before_anything_is_deleted() {
        let seeds = seeds();
        let position = LogState::empty(seeds.vault.keys.current().0.clone());
        let listed = Points::none(&seeds.server);
        let old = catalogue::write(&seeds.vault, &seeds.server, &listed, None).await.unwrap();
        catalogue::write(&seeds.vault, &seeds.server, &listed, Some(&old)).await.unwrap();
        let keep = Keep { retention: SECOND, journal: SECOND };
        for seen in [None, Some(old)] {
            let (_policy, followed) = watch::channel(Some(POLICY));
            let mut collector = Collector::new(SECOND, followed, None);
            let mut points = (listed.clone(), seen);
            let done = collector.run(&seeds, keep, &position, &mut points, &mut Swept::default()).await;
            let refused = done.unwrap_err();
            assert!(matches!(refused, CollectError::Catalogue(ApplyError::Superseded { .. })), "{refused}");
        }
    }

    #[test]
    fn a_write_that_lost_a_race_is_told_from_one_that_the_store_refuses() {
        let seeds = seeds();
        let refused = |why| {
            let (name, detail) = ("points.json".to_owned(), String::new());
            unsettled(StoreError::Refused { operation: "put", name, why, detail }, &seeds)
        };
        for why in [Refusal::Condition, Refusal::AlreadyExists] {
            assert!(matches!(refused(why), ApplyError::Superseded { .. }), "{why}");
        }
        assert!(!matches!(refused(Refusal::Denied), ApplyError::Superseded { .. }));
    }
}
