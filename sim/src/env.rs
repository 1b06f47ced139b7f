//! The date and randomness of a node: a wrong clock of its own that may jump, and a share of the seed.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use lifeboat_replication::env::{Entropy, Env, Micros, Wall};
use tokio::time::Instant;

use crate::rng::Rng;

/// A moment in 2026, so that dates look like dates.
const BASE_MICROS: i64 = 1_780_000_000_000_000;

#[derive(Debug, Clone)]
pub struct NodeClock {
    began: Instant,
    offset_micros: Arc<AtomicI64>,
}

impl NodeClock {
    pub fn new(began: Instant, offset_micros: i64) -> Self {
        Self { began, offset_micros: Arc::new(AtomicI64::new(offset_micros)) }
    }

    pub fn jump(&self, micros: i64) {
        self.offset_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Wall for NodeClock {
    fn now(&self) -> Micros {
        let elapsed = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX / 4);
        Micros(BASE_MICROS + elapsed + self.offset_micros.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct SeededEntropy(Rng);

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            for (to, from) in part.iter_mut().zip(self.0.next().to_le_bytes()) {
                *to = from;
            }
        }
    }
}

pub fn env(clock: &NodeClock, rng: Rng) -> Env {
    Env { wall: Arc::new(clock.clone()), entropy: Arc::new(SeededEntropy(rng)) }
}
