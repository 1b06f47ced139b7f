//! The network between the nodes, with what happens to requests and messages on it, and everything that several nodes
//! see: who is cut off, who listens, the trace, and the oracle's verdict.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use lifeboat_replication::wire::{Accepted, v1};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    faults::Faults,
    oracle::{Oracle, Reached},
    rng::Rng,
};

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

/// The network, and everything that several nodes see.
pub struct Net {
    pub(crate) began: Instant,
    pub(crate) rng: Rng,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) store_cuts: AtomicU32,
    pub(crate) agent_cuts: AtomicU32,
    pub(crate) assigned: AtomicUsize,
    pub(crate) listeners: Mutex<Vec<Option<mpsc::Sender<Accepted>>>>,
    pub(crate) oracle: Mutex<Option<Oracle>>,
    pub(crate) bad: Mutex<Option<String>>,
    pub(crate) digest: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) verbose: bool,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Net")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub(crate) fn mark(&self, what: &str, detail: &str) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let now = self.began.elapsed();
        let mut hash = self.digest.load(Ordering::Relaxed);
        for byte in now.as_micros().to_le_bytes().iter().chain(what.as_bytes()).chain(detail.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.digest.store(hash, Ordering::Relaxed);
        if self.verbose {
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

    pub(crate) fn ask(&self, question: impl FnOnce(&mut Oracle) -> Result<(), String>) {
        let answer = lock(&self.oracle).as_mut().map_or(Ok(()), question);
        if let Err(why) = answer {
            self.fail(why);
        }
    }

    pub(crate) fn count(&self, counter: impl FnOnce(&mut Reached)) {
        if let Some(oracle) = lock(&self.oracle).as_mut() {
            counter(&mut oracle.reached);
        }
    }

    pub fn fate(&self) -> Fate {
        let faults = lock(&self.faults).clone();
        let rng = &self.rng;
        let mut there_ms = 1 + rng.below(10);
        if rng.permille(faults.slow) {
            there_ms += rng.below(4000);
        }
        if rng.permille(faults.late) {
            there_ms += 8000 + rng.below(40_000);
        }
        let fate = Fate {
            busy: rng.permille(faults.store_busy),
            lost: rng.permille(faults.request_lost),
            there_ms,
            answered: !rng.permille(faults.answer_lost),
            back_ms: 1 + rng.below(10),
            again_ms: rng.permille(faults.twice).then(|| there_ms + rng.below(5000)),
        };
        if fate.busy || fate.lost || !fate.answered {
            self.count(|reached| reached.unanswered += 1);
        }
        fate
    }

    /// Delay of a message in milliseconds, and whether the connection breaks at it.
    pub fn hop(&self) -> (u64, bool) {
        let faults = lock(&self.faults).clone();
        let stall = if self.rng.permille(faults.stalled) { self.rng.below(8000) } else { 0 };
        (1 + self.rng.below(6) + stall, self.rng.permille(faults.broken))
    }

    pub fn store_cut(&self, node: usize) -> bool {
        self.store_cuts.load(Ordering::Relaxed) >> node & 1 == 1
    }

    pub fn agent_cut(&self, node: usize) -> bool {
        self.agent_cuts.load(Ordering::Relaxed) >> node & 1 == 1
    }

    pub fn assigned(&self) -> usize {
        self.assigned.load(Ordering::Relaxed)
    }

    pub fn listener(&self, node: usize) -> Option<mpsc::Sender<Accepted>> {
        lock(&self.listeners).get(node).cloned().flatten()
    }

    pub(crate) fn listen(&self, node: usize, listener: Option<mpsc::Sender<Accepted>>) {
        if let Some(entry) = lock(&self.listeners).get_mut(node) {
            *entry = listener;
        }
    }

    /// The model has taken a request (or refused it).
    pub fn applied(&self, node: usize, operation: &'static str, name: &str) {
        self.mark(operation, &format!("{node} {name}"));
        match operation {
            "append" | "seal" | "create append" if name.contains("/log/") => self.ask(Oracle::log_changed),
            "put" if name.ends_with("points.json") => self.ask(Oracle::points_changed),
            _ => {}
        }
    }

    /// The model has refused a request.
    pub fn refused(&self) {
        self.count(|reached| reached.refused += 1);
    }

    pub fn saw_durable(&self, durable: &v1::Durable) {
        self.mark("durable", &durable.number.to_string());
        self.ask(|oracle| oracle.acknowledged(durable));
    }

    pub fn saw_up(&self, end: bool) {
        if end {
            self.mark("end", "");
        }
    }
}
