//! The deciding part: no clock but tokio's, no thread, nothing between two steps but what the vault holds.

mod applier;
mod batch;
mod coalesce;
mod error;
mod plan;
mod point;
pub mod retention;
mod seeds;
pub mod share;
mod stored;
mod sums;

pub use self::{
    applier::{Applier, Step},
    error::ApplyError,
    plan::Limits,
    stored::Stored,
};

use std::time::Duration;

use lifeboat_replication::planted::Planted;

/// How a server's log is applied.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time between recovery points (snapshots) of a server whose policy the vault does not name.
    pub point_interval: Duration,
    /// Pause before the log is looked at again when everything is applied.
    pub poll_interval: Duration,
    pub limits: Limits,
    /// Time between two looks at what can be deleted, while the server writes.
    pub collect_interval: Duration,
    /// Set by the simulation only.
    pub planted: Option<Planted>,
}

impl Default for Options {
    /// The defaults of ReplicationPolicy.
    fn default() -> Self {
        Self {
            point_interval: Duration::from_secs(300),
            poll_interval: Duration::from_secs(2),
            limits: Limits::default(),
            collect_interval: Duration::from_secs(60),
            planted: None,
        }
    }
}

/// What is known about a server, for metrics and the operator.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    pub epoch: u32,
    /// Last record that stands on the seed disks.
    pub applied_number: u64,
    /// Last record seen in the log.
    pub log_number: u64,
    /// Instant of the last exact record that stands on the seed disks; 0: none.
    pub applied_t0_micros: i64,
    pub points: Vec<lifeboat_replication::wire::v1::Point>,
    /// Every instant from here on can be recovered; 0: no part of the journal was deleted yet.
    pub journal_begins_micros: i64,
    /// Why nothing goes on, with the remedy; empty: all is well.
    pub error: String,
    /// Why what retention has given up is not deleted, with the remedy; empty: all is well.
    pub collect_error: String,
    /// What the server takes up in the vault, when that was counted, and by how much it grows; `None`: not yet.
    pub storage: Option<Storage>,
    /// Since this applier was started.
    pub figures: Figures,
}

/// What a server takes up in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    pub stored: Stored,
    pub growth_bytes_per_day: Option<i64>,
    pub observed_at_micros: i64,
}

/// What was done since the applier was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub batches: u64,
    pub records: u64,
    pub page_writes: u64,
    pub written_bytes: u64,
    pub cleared_bytes: u64,
    /// Blocks that a later record of the same batch replaced, so that they were not written.
    pub superseded_bytes: u64,
    pub fetched_bytes: u64,
    pub snapshots: u64,
    /// Reads and writes of checksum files.
    pub sum_calls: u64,
    /// Batches given up because another applier was ahead.
    pub superseded_batches: u64,
    pub deleted_segments: u64,
    pub deleted_segment_bytes: u64,
    pub deleted_snapshots: u64,
    pub deleted_log_parts: u64,
    pub deleted_log_bytes: u64,
    /// Blobs that only a pin kept at the last look.
    pub pinned_blobs: u64,
}
