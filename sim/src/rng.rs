//! The generator: splitmix64, our own, so that a seed means the same after an upgrade of any library.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Clones share their state.
#[derive(Debug, Clone)]
pub struct Rng(Arc<AtomicU64>);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(mix(seed ^ 0x6c69_6665_626f_6174))))
    }

    /// A generator of its own, so that a change in one part does not shift the draws of all others.
    pub fn fork(&self, purpose: u64) -> Self {
        Self::new(self.next() ^ mix(purpose))
    }

    pub fn next(&self) -> u64 {
        // One thread: the order of calls is the schedule's own.
        mix(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// 0 to `bound` - 1 (0 when `bound` is 0).
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn permille(&self, chance: u64) -> bool {
        chance > 0 && self.below(1000) < chance
    }
}

fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
