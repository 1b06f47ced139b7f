//! Which faults a schedule has, and how often: drawn from its seed, each class often absent.

use crate::rng::Rng;

/// Chances are per mille of a request, a message or a tick of the world (about 150 ms).
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A request never arrives.
    pub request_lost: u64,
    /// It is done, and the answer never arrives.
    pub answer_lost: u64,
    /// It arrives seconds later, after its caller gave up, tried again or died.
    pub late: u64,
    /// It arrives twice.
    pub twice: u64,
    pub slow: u64,
    /// The store answers with an error that says nothing (429, 500, 503).
    pub store_busy: u64,
    /// A connection breaks at a message.
    pub broken: u64,
    /// A message stalls.
    pub stalled: u64,
    pub process_server_crash: u64,
    pub agent_crash: u64,
    pub applier_crash: u64,
    /// A process server is cut off from the store, the agent, or both.
    pub cut: u64,
    /// The server is assigned to another process server.
    pub handover: u64,
    /// The server reboots: marks are gone.
    pub reboot: u64,
    /// A node's date jumps.
    pub clock_jump: u64,
    /// A failover fences and closes the log, and is taken back later.
    pub failover: u64,
}

/// What the servers do.
#[derive(Debug, Clone)]
pub struct Load {
    pub disk_blocks: Vec<u32>,
    /// Mean pause between writes in milliseconds.
    pub write_pause_ms: u64,
    /// Per cent of writes that go to one of three blocks.
    pub hot_percent: u64,
    /// Longest time that a write is in flight in milliseconds.
    pub write_takes_ms: u64,
    pub process_servers: usize,
    pub round_interval_ms: u64,
    pub rotate_after_appends: u32,
}

impl Faults {
    pub fn draw(rng: &Rng) -> Self {
        let chance = |most: u64| match rng.below(3) {
            0 => 0,
            1 => 1 + rng.below(most / 4 + 1),
            _ => 1 + rng.below(most),
        };
        Self {
            request_lost: chance(60),
            answer_lost: chance(60),
            late: chance(60),
            twice: chance(40),
            slow: chance(100),
            store_busy: chance(60),
            broken: chance(20),
            stalled: chance(40),
            process_server_crash: chance(12),
            agent_crash: chance(8),
            applier_crash: chance(12),
            cut: chance(12),
            handover: chance(8),
            reboot: if rng.below(4) == 0 { chance(3) } else { 0 },
            clock_jump: chance(6),
            failover: if rng.below(2) == 0 { chance(6) } else { 0 },
        }
    }
}

impl Load {
    pub fn draw(rng: &Rng) -> Self {
        let disks = 1 + rng.below(2);
        Self {
            disk_blocks: (0..disks).map(|_| 8 + rng.below(24) as u32).collect(),
            write_pause_ms: [40, 200, 1500][rng.below(3) as usize],
            hot_percent: rng.below(90),
            write_takes_ms: [1, 20, 400][rng.below(3) as usize],
            process_servers: 2 + rng.below(2) as usize,
            round_interval_ms: [500, 1000, 3000][rng.below(3) as usize],
            rotate_after_appends: [7, 40, 40_000][rng.below(3) as usize],
        }
    }
}
