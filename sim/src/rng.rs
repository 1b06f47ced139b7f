//! The generator: splitmix64, our own, so that a seed means the same after an upgrade of any library.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Clones share their state.
#[derive(Debug, Clone)]
pub struct Rng {
    seed: u64,
    state: Arc<AtomicU64>,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        let seed = mix(seed ^ 0x6c69_6665_626f_6174);
        Self { seed, state: Arc::new(AtomicU64::new(seed)) }
    }

    /// A generator of its own by name, whatever was drawn before: what is added elsewhere, or switched off, does not
    /// shift its draws.
    pub fn named(&self, purpose: &str) -> Self {
        Self::new(self.seed ^ fnv(0xcbf2_9ce4_8422_2325, purpose.as_bytes()))
    }

    /// A generator of its own, another one at each call.
    pub fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub fn next(&self) -> u64 {
        // One thread: the order of calls is the schedule's own.
        mix(self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// 0 to `bound` - 1 (0 when `bound` is 0).
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn pick<T: Copy, const N: usize>(&self, from: [T; N]) -> T {
        from[self.below(N as u64) as usize]
    }
}

fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a over `bytes`, going on from `hash`.
pub(crate) fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}
