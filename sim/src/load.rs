//! What the servers do in a schedule, drawn from its seed. What is simpler than drawn can be asked for when shrinking.

use crate::rng::Rng;

/// Ways in which a load is made simpler, to see whether a failure needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simpler {
    OneServer,
    NoLeases,
    OneDisk,
    SmallDisks,
    TwoProcessServers,
    NoRotation,
    FewWrites,
    NoHotSpots,
    WritesLandAtOnce,
    Short,
}

impl Simpler {
    pub const ALL: &[Self] = &[
        Self::OneServer,
        Self::NoLeases,
        Self::OneDisk,
        Self::SmallDisks,
        Self::TwoProcessServers,
        Self::NoRotation,
        Self::FewWrites,
        Self::NoHotSpots,
        Self::WritesLandAtOnce,
        Self::Short,
    ];
}

#[derive(Debug, Clone)]
pub struct Load {
    /// Protected servers. The load of those after the first is drawn for each, but for what all share.
    pub servers: usize,
    /// Appliers share the servers by leases; else all of them work on all servers at once, which is harder for the data.
    pub leases: bool,
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
    pub point_interval_ms: u64,
    /// Names in one page of a list.
    pub list_page: usize,
    /// Faults happen for this long.
    pub hostile_ms: u64,
    /// Bytes on their way in one direction of a pipe before its writer waits.
    pub pipe_bytes: usize,
}

impl Simpler {
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

impl Load {
    pub fn draw(rng: &Rng, simpler: &[Simpler]) -> Self {
        let disks = 1 + rng.below(2);
        let shared = rng.named("shared");
        let mut load = Self {
            servers: shared.pick([1, 1, 1, 1, 1, 1, 2, 3]),
            leases: shared.below(2) == 0,
            disk_blocks: (0..disks).map(|_| 6 + rng.below(20) as u32).collect(),
            write_pause_ms: rng.pick([40, 200, 1500]),
            hot_percent: rng.below(90),
            write_takes_ms: rng.pick([1, 20, 400]),
            process_servers: 2 + rng.below(2) as usize,
            round_interval_ms: rng.pick([500, 1000, 3000]),
            rotate_after_appends: rng.pick([3, 12, 40_000]),
            point_interval_ms: rng.pick([4000, 8000, 20_000]),
            list_page: rng.pick([1, 3, 5000]),
            // Two lease terms or more: what goes wrong often begins with a lease that ran out.
            hostile_ms: rng.pick([40_000, 70_000, 120_000]),
            pipe_bytes: rng.pick([700, 8 << 10, 256 << 10]),
        };
        for simpler in simpler {
            match simpler {
                Simpler::OneServer => load.servers = 1,
                Simpler::NoLeases => load.leases = false,
                Simpler::OneDisk => load.disk_blocks.truncate(1),
                Simpler::SmallDisks => load.disk_blocks.iter_mut().for_each(|blocks| *blocks = 4),
                Simpler::TwoProcessServers => load.process_servers = 2,
                Simpler::NoRotation => load.rotate_after_appends = 40_000,
                Simpler::FewWrites => load.write_pause_ms = 1500,
                Simpler::NoHotSpots => load.hot_percent = 0,
                Simpler::WritesLandAtOnce => load.write_takes_ms = 1,
                Simpler::Short => load.hostile_ms = 30_000,
            }
        }
        load
    }
}
