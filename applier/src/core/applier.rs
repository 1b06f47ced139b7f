//! One server's applier: reads where it is, applies one batch at a time, writes down how far it came.
//!
//! **Order of a batch**: seed disks created; sequence numbers raised and checked; pages written, then checksums; if the
//! batch ends in a point: snapshots, then `points.json`; at last `position.json`.
//! **Crash** anywhere: the next applier starts at the position and does the batch again, to the same or a later
//! record; pages are written with the same content, a point that is listed already is not cut again.
//! **Another applier** that works on the same server raises the sequence numbers further; our writes are refused, we
//! read the position again. Both may go on like that; neither can spoil a seed disk or a point.
//! **A store that went back in time** (seed disk or log behind the position): everything is applied again from the
//! newest listed point that all seed disks have reached, or from the log's first record; a seed disk that is ahead of
//! the log waits until the log has a newer epoch.
//! **Retention** runs between two batches, see [`super::retention`].

mod load;
mod retain;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lifeboat_replication::{
    catalogue::{self, FORMAT, Point, Points, Position, Seed},
    env::Env,
    errors::chain,
    ids::{RecordNumber, ServerId},
    log::{LogReader, LogState, Patience},
    planted::Planted,
    recoverable::journal_begins,
    store::{ETag, Refusal, StoreError},
    sums::SumKeys,
    vault::{RetentionPolicy, Vault, layout},
    vhd,
};
use tokio::sync::{Semaphore, watch};

use super::{
    ApplyError, Options, Status, batch,
    plan::{Batch, PointRule},
    point,
    retention::Collector,
    seeds::Seeds,
    stored::Growth,
};

/// So many looks at a log find nothing new before they become rarer.
const QUIET_LOOKS: u32 = 8;
/// And by so much at most: with 2 s a minute.
const RARER: u32 = 32;

/// Each look is paid for, and a server that writes nothing should cost next to nothing. What a log holds can be
/// recovered before it is applied, so nobody waits for it.
fn between_looks(poll_interval: Duration, quiet: u32) -> Duration {
    let doublings = quiet.saturating_sub(QUIET_LOOKS).min(RARER.ilog2());
    poll_interval.saturating_mul(1 << doublings)
}

/// Longest pause between tries of a server that cannot go on.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Everything that the log holds stands on the seed disks.
    CaughtUp,
    Applied {
        number: RecordNumber,
        point: bool,
    },
}

/// What was read from the vault; dropped after every error, so that going on is the same as starting.
#[derive(Debug)]
struct Loaded {
    position: Option<Position>,
    position_etag: Option<ETag>,
    points: Points,
    points_etag: Option<ETag>,
    reader: LogReader,
    /// Keys of the checksum files, by slot, as far as they were needed.
    sums: BTreeMap<u32, SumKeys>,
}

impl Loaded {
    fn seeds(&self) -> BTreeMap<u32, Seed> {
        self.position.as_ref().map(|position| position.seeds.clone()).unwrap_or_default()
    }

    fn has_seed(&self, slot: u32) -> bool {
        self.position.as_ref().is_some_and(|position| position.seeds.contains_key(&slot))
    }

    /// Does the position know it smaller?
    fn is_smaller(&self, slot: u32, seed: &Seed) -> bool {
        let known = self.position.as_ref().and_then(|position| position.seeds.get(&slot));
        known.is_some_and(|known| known.size_bytes < seed.size_bytes)
    }

    fn tell(&self, status: &mut Status) {
        let log = self.position.as_ref().map(|position| &position.log);
        status.epoch = log.map_or(0, |log| log.epoch.0);
        status.applied_number = log.map_or(0, |log| log.last_number.0);
        status.log_number = status.log_number.max(status.applied_number);
        status.applied_t0_micros = log.map_or(0, |log| log.last_t0.0);
        status.points = self.points.points.iter().map(Into::into).collect();
        status.journal_begins_micros = journal_begins(&self.points).map_or(0, |point| point.t0_micros);
    }
}

#[derive(Debug)]
pub struct Applier {
    seeds: Seeds,
    env: Env,
    options: Options,
    loaded: Option<Loaded>,
    /// The position cannot be trusted: start at a listed point. So many of them were tried already, newest first.
    rebuild: Option<usize>,
    collector: Collector,
    growth: Growth,
    /// Shared by all servers of the program: bounds memory.
    turns: Option<Arc<Semaphore>>,
    status: watch::Sender<Status>,
}

impl Applier {
    pub fn new(vault: Vault, server: ServerId, env: Env, options: Options) -> Self {
        let patience = Patience { env: env.clone(), tries: 4 };
        let no_policy = watch::Sender::new(None).subscribe();
        Self {
            seeds: Seeds { vault, server, patience, planted: options.planted },
            env,
            collector: Collector::new(options.collect_interval, no_policy, options.planted),
            growth: Growth::default(),
            options,
            loaded: None,
            rebuild: None,
            turns: None,
            status: watch::Sender::new(Status::default()),
        }
    }

    /// Batches are only applied while a permit of `turns` is held.
    #[must_use]
    pub fn with_turns(self, turns: Arc<Semaphore>) -> Self {
        Self { turns: Some(turns), ..self }
    }

    /// Follows the server's policy; without one nothing is deleted.
    #[must_use]
    pub fn with_policy(self, policy: watch::Receiver<Option<RetentionPolicy>>) -> Self {
        let collector = Collector::new(self.options.collect_interval, policy, self.options.planted);
        Self { collector, ..self }
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Applies for ever; errors go into the status and are tried again with growing pauses.
    pub async fn run(mut self) {
        let (mut failed, mut quiet): (u32, u32) = (0, 0);
        loop {
            let done = self.step().await;
            if done.is_ok() && failed > 0 {
                tracing::info!(server = %self.seeds.server, tries = failed, "applying goes on");
                failed = 0;
            }
            match done {
                Ok(Step::Applied { .. }) => quiet = 0,
                Ok(Step::CaughtUp) => {
                    tokio::time::sleep(between_looks(self.options.poll_interval, quiet)).await;
                    quiet = quiet.saturating_add(1);
                }
                Err(error) => {
                    let pause =
                        self.options.poll_interval.saturating_mul(1 << failed.min(5)).min(LONGEST_PAUSE);
                    tracing::warn!(server = %self.seeds.server, error = %chain(&error), ?pause, "applying stopped, trying again");
                    failed += 1;
                    let jitter = self.env.entropy.next_u64() % 1000;
                    tokio::time::sleep(pause + Duration::from_millis(jitter)).await;
                }
            }
        }
    }

    /// Applies one batch, if there is something to apply.
    ///
    /// # Errors
    /// Nothing is lost by one; the next step starts from what the vault holds.
    pub async fn step(&mut self) -> Result<Step, ApplyError> {
        let result = self.try_step().await;
        let superseded = matches!(result, Err(ApplyError::Superseded { .. }));
        let text = match &result {
            Err(error) if !superseded => chain(error),
            _ => String::new(),
        };
        if let Err(error) = &result {
            self.loaded = None;
            if error.needs_rebuild() {
                self.rebuild = Some(self.rebuild.map_or(0, |tried| tried + 1));
            }
        }
        self.status.send_if_modified(|status| {
            let changed = superseded || status.error != text;
            status.figures.superseded_batches += u64::from(superseded);
            status.error = text;
            changed
        });
        result
    }

    async fn try_step(&mut self) -> Result<Step, ApplyError> {
        let mut loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => self.load().await?,
        };
        self.retain(&mut loaded).await?;
        let interval =
            self.collector.policy().map(|policy| Duration::from_secs(policy.point_interval_seconds));
        let interval = interval.unwrap_or(self.options.point_interval);
        let rule = PointRule::new(interval, loaded.points.points.last());
        let mut batch = Batch::new();
        self.collect(&mut loaded.reader, &mut batch, &rule).await?;
        if batch.is_empty() {
            self.loaded = Some(loaded);
            return Ok(Step::CaughtUp);
        }
        let turns = self.turns.clone();
        let _turn = match &turns {
            // Never closed; without a permit the batch would only take more memory.
            Some(turns) => turns.acquire().await.ok(),
            None => None,
        };
        let step = self.apply(&mut loaded, &mut batch, &rule).await?;
        self.loaded = Some(loaded);
        Ok(step)
    }

    async fn collect(
        &self,
        reader: &mut LogReader,
        batch: &mut Batch,
        rule: &PointRule,
    ) -> Result<(), ApplyError> {
        while !batch.ended() {
            let Some(entry) = reader.next().await? else { break };
            let Some(after) = reader.state() else { break };
            batch.take(entry.body, after, rule, &self.options.limits);
        }
        if let Some(record) = batch.records.last() {
            self.status.send_if_modified(|status| {
                let before = status.log_number;
                status.log_number = before.max(record.number);
                before != status.log_number
            });
        }
        Ok(())
    }

    async fn apply(
        &mut self,
        loaded: &mut Loaded,
        batch: &mut Batch,
        rule: &PointRule,
    ) -> Result<Step, ApplyError> {
        let mut figures = self.status.borrow().figures;
        let mut seeds = loaded.seeds();
        if !batch.records.is_empty() {
            let sequence = self.fence(loaded, batch, rule, &mut seeds).await?;
            // The footer of a disk that grew stays where it was until what was added is copied, as all of it is.
            let footed =
                |(slot, seed): &(&u32, &Seed)| !loaded.has_seed(**slot) || loaded.is_smaller(**slot, seed);
            for (_, seed) in seeds.iter().filter(footed) {
                self.seeds.write_footer(seed, sequence).await?;
            }
            if let (Some(Planted::PositionBeforePages), Some(log)) = (self.options.planted, &batch.end) {
                self.advance(loaded, log.clone(), seeds.clone()).await?;
            }
            for (slot, seed) in &seeds {
                if !loaded.sums.contains_key(slot) {
                    let keys = self.seeds.sum_keys(seed, sequence, &*self.env.entropy).await?;
                    loaded.sums.insert(*slot, keys);
                }
            }
            let pending =
                batch::write(&self.seeds, &seeds, &loaded.sums, &batch.records, sequence, &mut figures)
                    .await?;
            for (slot, pending) in pending {
                if let Some(seed) = seeds.get(&slot.0) {
                    self.seeds.write_sums(seed, pending, sequence, &mut figures).await?;
                }
            }
            if let (true, Some(record), Some(log)) = (batch.point, batch.records.last(), &batch.end) {
                let point = point::cut(&self.seeds, log, record, sequence).await?;
                figures.snapshots += point.disks.len() as u64;
                self.list(loaded, point).await?;
            }
        }
        let Some(log) = batch.end.take() else { return Ok(Step::CaughtUp) };
        let number = log.last_number;
        self.advance(loaded, log, seeds).await?;
        figures.batches += 1;
        figures.records += batch.records.len() as u64;
        self.status.send_modify(|status| {
            status.figures = figures;
            loaded.tell(status);
        });
        Ok(Step::Applied { number, point: batch.point })
    }

    /// Makes the seed disks that the batch needs and raises the sequence numbers of all to the batch's. When one is
    /// higher already, the batch grows until it reaches that record.
    async fn fence(
        &self,
        loaded: &mut Loaded,
        batch: &mut Batch,
        rule: &PointRule,
        seeds: &mut BTreeMap<u32, Seed>,
    ) -> Result<u64, ApplyError> {
        loop {
            *seeds = point::seeds_with(&loaded.seeds(), &batch.disks)?;
            for disk in batch.disks.iter().filter(|disk| !loaded.has_seed(disk.slot.0)) {
                self.seeds.create(disk).await?;
            }
            for seed in
                seeds.iter().filter(|(slot, seed)| loaded.is_smaller(**slot, seed)).map(|(_, seed)| seed)
            {
                self.seeds.grow(&self.seeds.name(&seed.disk_id), vhd::blob_bytes(seed.size_bytes)).await?;
                self.seeds.grow_sums(seed).await?;
            }
            let sequence = batch.sequence().unwrap_or(0);
            let mut highest = (sequence, None);
            for seed in seeds.values() {
                let disk = self.seeds.raise(seed, sequence).await?;
                let raised = disk.max(self.seeds.raise_sums(seed, sequence).await?);
                if raised > highest.0 {
                    highest = (raised, Some(seed));
                }
            }
            let (raised, Some(seed)) = highest else { return Ok(sequence) };
            batch.extend_to(raised);
            self.collect(&mut loaded.reader, batch, rule).await?;
            if !batch.reaches(raised) {
                let name = self.seeds.name(&seed.disk_id);
                return Err(ApplyError::SeedAhead {
                    name,
                    epoch: raised >> 32,
                    record: raised & 0xffff_ffff,
                });
            }
        }
    }

    /// Puts a point into `points.json`.
    async fn list(&self, loaded: &mut Loaded, point: Point) -> Result<(), ApplyError> {
        let mut points = loaded.points.clone();
        // Later numbers are of a history that the store has lost.
        points.points.retain(|listed| listed.number < point.number);
        points.points.push(point);
        let Seeds { vault, server, .. } = &self.seeds;
        let name = || layout::catalogue(server, "points.json");
        let written = catalogue::write(vault, server, &points, loaded.points_etag.as_ref()).await;
        loaded.points_etag = Some(replaced(written, name)?);
        loaded.points = points;
        Ok(())
    }

    /// Writes down that everything up to `log` stands on the seed disks.
    async fn advance(
        &mut self,
        loaded: &mut Loaded,
        log: LogState,
        seeds: BTreeMap<u32, Seed>,
    ) -> Result<(), ApplyError> {
        let Seeds { vault, server, .. } = &self.seeds;
        let position = Position { format: FORMAT, server: server.to_string(), log, seeds };
        let name = || layout::catalogue(server, "position.json");
        let written = catalogue::write(vault, server, &position, loaded.position_etag.as_ref()).await;
        loaded.position_etag = Some(replaced(written, name)?);
        loaded.position = Some(position);
        self.rebuild = None;
        Ok(())
    }
}

/// Somebody else was faster, or our own answer was lost: either way the vault is read again.
fn replaced(written: Result<ETag, StoreError>, name: impl Fn() -> String) -> Result<ETag, ApplyError> {
    match written {
        Err(error) if error.is(Refusal::Condition) || error.is(Refusal::AlreadyExists) => {
            Err(ApplyError::Superseded { name: name() })
        }
        written => Ok(written?),
    }
}
