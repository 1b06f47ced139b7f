//! The network between the nodes, and everything that several nodes see: who is cut off, who listens, the trace, and
//! the oracle's verdict.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use lifeboat_replication::wire::{
    Accepted,
    v1::{self, down},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    faults::{Class, Dice},
    oracle::Oracle,
    reached::Reached,
    rng::{Rng, fnv},
    tenures::Tenures,
    trace,
    wire::Doors,
};

/// The agent's node.
pub(crate) const AGENT: usize = usize::MAX;

/// What a request meets on its way.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    pub busy: bool,
    pub lost: bool,
    pub there_ms: u64,
    pub answered: bool,
    pub back_ms: u64,
    pub again_ms: Option<u64>,
}

/// What a message meets on its way.
#[derive(Debug, Clone, Copy)]
pub struct Hop {
    pub delay_ms: u64,
    pub breaks: bool,
}

/// A set of nodes that several tasks look at.
#[derive(Debug, Default)]
pub struct Nodes(AtomicU32);

impl Nodes {
    pub fn has(&self, node: usize) -> bool {
        self.0.load(Ordering::Relaxed) >> node & 1 == 1
    }

    pub(crate) fn add(&self, node: usize) {
        self.0.fetch_or(1 << node, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, node: usize) {
        self.0.fetch_and(!(1 << node), Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The network, and everything that several nodes see.
pub struct Net {
    pub(crate) began: Instant,
    /// Latencies.
    rng: Rng,
    /// Of everything but the servers after the first, which have their own.
    pub dice: Arc<Dice>,
    /// Nodes that do not reach the store.
    pub store_cuts: Nodes,
    /// Nobody reaches the store.
    pub(crate) outage: AtomicBool,
    /// Process servers that hear nothing from the agent.
    pub up_cuts: Nodes,
    /// Process servers from which the agent hears nothing.
    pub down_cuts: Nodes,
    /// Of each server: the process server that its agent dials, and who listens for it.
    assigned: Vec<AtomicUsize>,
    listeners: Mutex<Vec<Vec<Option<mpsc::Sender<Accepted>>>>>,
    pub(crate) doors: Doors,
    /// Nodes that stand still, until when; the agent's is [`AGENT`].
    still: Mutex<BTreeMap<usize, Instant>>,
    /// One for each server.
    oracles: Mutex<Vec<Oracle>>,
    pub(crate) tenures: Tenures,
    reached: Mutex<Reached>,
    bad: Mutex<Option<String>>,
    digest: AtomicU64,
    steps: AtomicU64,
    trace: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of a schedule.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was broken, when and at which step.
    pub bad: Option<String>,
    /// Hash of the trace: equal for equal seeds.
    pub digest: u64,
    pub steps: u64,
    pub reached: Reached,
    /// How often each fault class struck.
    pub struck: Vec<u64>,
}

impl Net {
    pub(crate) fn new(
        rng: Rng,
        dice: Dice,
        process_servers: usize,
        servers: usize,
        trace: bool,
    ) -> Arc<Self> {
        let began = Instant::now();
        trace::begins(began);
        Arc::new(Self {
            began,
            rng,
            dice: Arc::new(dice),
            store_cuts: Nodes::default(),
            outage: AtomicBool::new(false),
            up_cuts: Nodes::default(),
            down_cuts: Nodes::default(),
            assigned: (0..servers).map(|_| AtomicUsize::new(0)).collect(),
            listeners: Mutex::new(vec![vec![None; process_servers]; servers]),
            doors: Doors::default(),
            still: Mutex::default(),
            oracles: Mutex::default(),
            tenures: Tenures::default(),
            reached: Mutex::default(),
            bad: Mutex::new(None),
            digest: AtomicU64::new(0xcbf2_9ce4_8422_2325),
            steps: AtomicU64::new(0),
            trace,
        })
    }

    /// Nothing comes from or to a node that stands still.
    pub(crate) fn stand_still(&self, node: usize, until: Instant) {
        lock(&self.still).insert(node, until);
    }

    pub(crate) fn stands_still(&self, node: usize) -> bool {
        lock(&self.still).get(&node).is_some_and(|until| *until > Instant::now())
    }

    pub fn store_cut(&self, node: usize) -> bool {
        self.store_cuts.has(node) || self.outage.load(Ordering::Relaxed)
    }

    /// A node that stands still does not look at what comes either.
    pub(crate) async fn goes_on(&self, node: usize) {
        let until = || lock(&self.still).get(&node).copied().filter(|until| *until > Instant::now());
        while let Some(until) = until() {
            sleep_until(until).await;
        }
    }

    /// Oracles come in the order of the servers.
    pub(crate) fn watched_by(&self, oracle: Oracle) {
        lock(&self.oracles).push(oracle);
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let mut reached = *lock(&self.reached);
        lock(&self.oracles).iter().for_each(|oracle| reached.add(&oracle.reached));
        Outcome {
            bad: lock(&self.bad).clone(),
            digest: self.digest.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            reached,
            struck: self.dice.struck(),
        }
    }

    /// A line of the trace, which is hashed: with the virtual time only.
    pub(crate) fn mark(&self, what: &str, detail: fmt::Arguments<'_>) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let now = self.began.elapsed();
        let mut hash = fnv(self.digest.load(Ordering::Relaxed), &now.as_micros().to_le_bytes());
        hash = fnv(hash, what.as_bytes());
        let mut hash = Hash(hash);
        // It takes everything.
        let _ = fmt::write(&mut hash, detail);
        self.digest.store(hash.0, Ordering::Relaxed);
        if self.trace {
            println!("{:>9.3} {what} {detail}", now.as_secs_f64());
        }
    }

    pub(crate) fn fail(&self, why: String) {
        let step = self.steps.load(Ordering::Relaxed);
        let at = self.began.elapsed().as_secs_f64();
        lock(&self.bad).get_or_insert_with(|| format!("t={at:.3}s step {step}: {why}"));
    }

    pub(crate) fn failed(&self) -> bool {
        lock(&self.bad).is_some()
    }

    /// Asks the oracle of one server.
    fn ask_of<T: Default>(
        &self,
        server: usize,
        question: impl FnOnce(&mut Oracle) -> Result<T, String>,
    ) -> T {
        let answer = lock(&self.oracles).get_mut(server).map_or(Ok(T::default()), question);
        answer.unwrap_or_else(|why| {
            self.fail(why);
            T::default()
        })
    }

    /// Asks the oracle of the server whose blob this is.
    fn ask_owner(&self, name: &str, question: impl FnOnce(&mut Oracle) -> Result<(), String>) {
        let owner = lock(&self.oracles).iter().position(|oracle| oracle.owns(name));
        match owner {
            Some(owner) => self.ask_of(owner, question),
            None => self.fail(format!("{name} is no server's")),
        }
    }

    pub(crate) fn count(&self, counter: impl FnOnce(&mut Reached)) {
        counter(&mut lock(&self.reached));
    }

    pub fn fate(&self) -> Fate {
        let (rng, dice) = (&self.rng, &self.dice);
        let mut there_ms = 1 + rng.below(10);
        if dice.roll(Class::Slow) {
            there_ms += dice.below(Class::Slow, 4000);
        }
        if dice.roll(Class::Late) {
            there_ms += 8000 + dice.below(Class::Late, 40_000);
        }
        Fate {
            busy: dice.roll(Class::StoreBusy),
            lost: dice.roll(Class::RequestLost),
            there_ms,
            answered: !dice.roll(Class::AnswerLost),
            back_ms: 1 + rng.below(10),
            again_ms: dice.roll(Class::Twice).then(|| there_ms + dice.below(Class::Twice, 5000)),
        }
    }

    pub fn hop(&self) -> Hop {
        let stall = if self.dice.roll(Class::Stalled) { self.dice.below(Class::Stalled, 8000) } else { 0 };
        Hop { delay_ms: 1 + self.rng.below(6) + stall, breaks: self.dice.roll(Class::Broken) }
    }

    /// The model has taken a request (or refused it).
    pub fn applied(&self, node: usize, operation: &'static str, name: &str) {
        self.mark(operation, format_args!("{node} {name}"));
        match operation {
            "append" | "seal" | "create append" if name.contains("/log/") => {
                self.ask_owner(name, Oracle::log_changed);
            }
            "put" if name.ends_with("points.json") => self.ask_owner(name, Oracle::points_changed),
            "delete" if (name.starts_with("servers/") || name.starts_with("journal/")) => {
                self.ask_owner(name, |oracle| oracle.deleted(name))
            }
            "put" if name.starts_with("journal/") => self.count(|reached| reached.segments_uploaded += 1),
            _ => {}
        }
    }

    pub fn saw_end(&self) {
        self.mark("end", format_args!(""));
    }
}

/// The network as one server has it.
#[derive(Debug, Clone)]
pub struct Line {
    pub(crate) net: Arc<Net>,
    pub(crate) server: usize,
}

impl Deref for Line {
    type Target = Net;

    fn deref(&self) -> &Net {
        &self.net
    }
}

impl Line {
    pub(crate) fn ask<T: Default>(&self, question: impl FnOnce(&mut Oracle) -> Result<T, String>) -> T {
        self.net.ask_of(self.server, question)
    }

    /// The process server that the agent dials.
    pub fn assigned(&self) -> usize {
        self.net.assigned.get(self.server).map_or(0, |node| node.load(Ordering::Relaxed))
    }

    pub(crate) fn assign(&self, node: usize) {
        if let Some(assigned) = self.net.assigned.get(self.server) {
            assigned.store(node, Ordering::Relaxed);
        }
    }

    pub fn listener(&self, node: usize) -> Option<mpsc::Sender<Accepted>> {
        lock(&self.net.listeners).get(self.server)?.get(node)?.clone()
    }

    pub(crate) fn listen(&self, node: usize, listener: Option<mpsc::Sender<Accepted>>) {
        let mut listeners = lock(&self.net.listeners);
        if let Some(entry) = listeners.get_mut(self.server).and_then(|nodes| nodes.get_mut(node)) {
            *entry = listener;
        }
    }

    /// A process server sends this.
    pub fn saw(&self, message: &v1::Down) {
        match &message.message {
            Some(down::Message::Durable(durable)) => {
                self.mark("durable", format_args!("{}", durable.number));
                self.ask(|oracle| oracle.acknowledged(durable));
            }
            Some(down::Message::Welcome(welcome))
                if welcome.sums.as_ref().is_some_and(|sums| !sums.disks.is_empty()) =>
            {
                self.count(|reached| reached.checksums_offered += 1);
            }
            Some(down::Message::Sums(sums)) if sums.unusable.is_empty() => {
                self.count(|reached| reached.checksums_answered += 1);
            }
            _ => {}
        }
    }
}

struct Hash(u64);

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = fnv(self.0, text.as_bytes());
        Ok(())
    }
}
