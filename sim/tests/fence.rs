//! The fence of the log in every order of requests within bounds: old writers, takers, lost and late requests, `Closed`
//! and `Rotate`, with the product's own writer and takeover (level 1 of the ladder).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::sync::{Arc, Mutex};

use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{LogOptions, LogReader, LogWriter, Order},
    planted::Planted,
    store::model::ModelStore,
    vault::Vault,
    wire::v1::{self, log_record::Body},
};
use lifeboat_sim::{
    env::{NodeClock, env},
    exhaustive::{Bounds, Choices, TurnWay, Turns},
    rng::Rng,
    store::Behind,
};
use tokio::time::Instant;

/// Runs that a scenario must not exceed: a bound that grew by mistake is seen at once.
const MOST_RUNS: u64 = 150_000;

/// What each record of a program bears, beside its number.
type Acknowledged = Arc<Mutex<Vec<(u64, i64)>>>;

#[derive(Clone)]
struct Site {
    model: ModelStore,
    turns: Turns,
    keys: Arc<DataKeys>,
    server: ServerId,
    env: Env,
    acknowledged: Acknowledged,
    /// Who opened an epoch in a closed log without a right to.
    intruder: Arc<Mutex<Option<usize>>>,
    options: LogOptions,
}

impl Site {
    fn new(options: LogOptions) -> Self {
        let env = env(&NodeClock::new(Instant::now(), 0), Rng::new(1));
        Self {
            model: ModelStore::new(),
            turns: Turns::default(),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            server: ServerId::from_random([7; 16]),
            env,
            acknowledged: Acknowledged::default(),
            intruder: Arc::default(),
            options,
        }
    }

    /// Straight to the model.
    fn vault(&self) -> Vault {
        Vault {
            store: Arc::new(self.model.clone()),
            cache: Arc::new(ModelStore::new()),
            keys: self.keys.clone(),
            id: "vault".to_owned(),
        }
    }

    fn vault_of(&self, program: usize) -> Vault {
        let way = TurnWay { model: self.model.clone(), turns: self.turns.clone(), program };
        Vault { store: Arc::new(Behind(way)), ..self.vault() }
    }

    async fn take_over(&self, program: usize, order: Order) -> Option<LogWriter> {
        let (vault, who) = (self.vault_of(program), format!("ps-{program}"));
        let fails_over = matches!(order, Order::Failover { .. });
        let taken =
            LogWriter::take_over(&vault, &self.server, &who, &self.env, order, self.options.clone()).await;
        self.turns.tell(match &taken {
            Ok(writer) => format!("{program} opened epoch {}", writer.state().epoch),
            Err(error) => format!("{program} did not take over: {error}"),
        });
        if taken.as_ref().is_ok_and(|writer| writer.state().closed_run.is_some() && !fails_over) {
            *self.intruder.lock().unwrap() = Some(program);
        }
        taken.ok()
    }

    /// Appends so many records, as long as the writer may.
    async fn append(&self, program: usize, writer: &mut LogWriter, records: i64) {
        for record in 0..records {
            let number = writer.state().last_number.0 + 1;
            let id = program as i64 * 10 + record;
            let data = v1::Data { first_number: number, number, t0_micros: id, ..Default::default() };
            match writer.append(Body::Data(data)).await {
                Ok(committed) => {
                    self.turns.tell(format!("{program} has record {number} committed"));
                    self.acknowledged.lock().unwrap().push((committed.number.0, id));
                }
                Err(error) => return self.turns.tell(format!("{program} stops: {error}")),
            }
        }
    }

    /// What the log holds is in order and has each acknowledged record once.
    async fn check(&self) -> Result<(), String> {
        if let Some(program) = *self.intruder.lock().unwrap() {
            return Err(format!("{program} opened an epoch after Closed"));
        }
        let mut reader = LogReader::from_start(&self.vault(), &self.server, &self.env);
        let mut found = Vec::new();
        let mut closed = false;
        while let Some(entry) = reader.next().await.map_err(|error| error.to_string())? {
            match entry.body {
                Body::Closed(_) => closed = true,
                Body::Data(_) if closed => return Err("a record stands after Closed".to_owned()),
                Body::Data(data) => found.push((data.number, data.t0_micros)),
                _ => {}
            }
        }
        reader.check_end().await.map_err(|error| error.to_string())?;
        for (position, record) in found.iter().enumerate() {
            if found.iter().skip(position + 1).any(|other| other.1 == record.1) {
                return Err(format!("record {record:?} stands twice in {found:?}"));
            }
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        match acknowledged.iter().find(|record| !found.contains(record)) {
            Some(lost) => Err(format!("{lost:?} was acknowledged and is not among {found:?}")),
            None => Ok(()),
        }
    }
}

/// Runs an old writer, and a taker for each order, in every way; returns how many there were, or the first that breaks a
/// promise.
fn every_way(orders: &[Order], bounds: Bounds, options: &LogOptions) -> Result<u64, String> {
    let mut choices = Choices::default();
    for runs in 1.. {
        assert!(runs <= MOST_RUNS, "more runs than were meant");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let outcome = runtime.block_on(async {
            let site = Site::new(options.clone());
            // Before turns are taken.
            let mut old = site.take_over(0, Order::Forced).await.unwrap();
            let mut programs = Vec::new();
            let here = site.clone();
            programs.push(tokio::spawn(async move { here.append(0, &mut old, 2).await }));
            for (order, program) in orders.iter().cloned().zip(1..) {
                let here = site.clone();
                programs.push(tokio::spawn(async move {
                    let fails_over = matches!(order, Order::Failover { .. });
                    if let Some(mut writer) = here.take_over(program, order).await
                        && !fails_over
                    {
                        here.append(program, &mut writer, 1).await;
                    }
                }));
            }
            site.turns.play(&mut choices, bounds, &programs).await;
            for program in programs {
                program.await.map_err(|error| error.to_string())?;
            }
            site.check().await.map_err(|why| format!("{why}\n{}", site.turns.story()))
        });
        outcome?;
        if !choices.advance() {
            return Ok(runs);
        }
    }
    Ok(0)
}

fn options(planted: Option<Planted>, rotate_after_appends: u32) -> LogOptions {
    LogOptions { planted, rotate_after_appends, ..LogOptions::default() }
}

/// Nothing rotates.
const SELDOM: u32 = 40_000;

fn holds(what: &str, orders: &[Order], bounds: Bounds, options: &LogOptions) {
    let runs = every_way(orders, bounds, options).unwrap_or_else(|why| panic!("{what}: {why}"));
    println!("fence: {what}: all {runs} ways within {bounds:?} keep the promises");
}

#[test]
fn a_taker_and_an_old_writer_lose_and_double_nothing() {
    let bounds = Bounds { preemptions: 3, faults: 1 };
    holds("one taker", &[Order::Forced], bounds, &options(None, SELDOM));
    let bounds = Bounds { preemptions: 1, faults: 2 };
    holds("one taker, two faults", &[Order::Forced], bounds, &options(None, SELDOM));
}

#[test]
fn an_old_writer_that_rotates_is_followed() {
    let bounds = Bounds { preemptions: 1, faults: 1 };
    holds("one taker, rotation", &[Order::Forced], bounds, &options(None, 1));
}

#[test]
fn two_takers_leave_one_log() {
    let bounds = Bounds { preemptions: 1, faults: 1 };
    holds("two takers", &[Order::Forced, Order::Forced], bounds, &options(None, SELDOM));
}

#[test]
fn nobody_opens_an_epoch_after_a_failover_closed_the_log() {
    let orders = [Order::Failover { run: "run".to_owned() }, Order::Forced];
    holds("a failover and a taker", &orders, Bounds { preemptions: 1, faults: 1 }, &options(None, SELDOM));
}

/// What is wrong on purpose is found: else the search would prove nothing.
#[test]
fn what_would_break_the_fence_is_found() {
    let bounds = Bounds { preemptions: 1, faults: 1 };
    let failover = [Order::Failover { run: "run".to_owned() }, Order::Forced];
    for (planted, orders, rotate) in [
        (Planted::UnknownIsDone, &[Order::Forced][..], SELDOM),
        (Planted::RetryAtNewEnd, &[Order::Forced], SELDOM),
        (Planted::LogReadBeforeFence, &[Order::Forced], SELDOM),
        (Planted::RotateNotFollowed, &[Order::Forced], 1),
        (Planted::TakeoverIgnoresClosed, &failover, SELDOM),
    ] {
        let found = every_way(orders, bounds, &options(Some(planted), rotate));
        let why = found.expect_err(planted.name());
        println!("fence: {} found: {}", planted.name(), why.lines().next().unwrap_or_default());
    }
}
