//! How often a state was reached. A campaign in which one of them stays zero proves nothing about it, and fails.
//!
//! To add a counter: one line in the list below, and `net.count(|reached| reached.NAME += 1)` where it is reached (in the
//! oracle: `self.reached.NAME += 1`). Fault classes count themselves.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Reached {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Reached {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Records in the log.
    records,
    exact_records,
    /// Records that a process server had received before a restart and committed after it.
    resumed_records,
    /// Exact and complete records.
    points,
    /// Points that are called more than crash-consistent.
    consistent_points,
    app_consistent_points,
    epochs,
    /// Parts of the log, the first of each epoch included.
    parts,
    closed,
    released,
    /// Listed points whose snapshots were compared with the disks.
    snapshots_compared,
    /// Points read through the block index and compared.
    index_compared,
    /// `Durable` seen on the wire.
    durable,
    /// Sessions that were offered the vault's checksums.
    checksums_offered,
    /// Answers to an agent that compares its disks with the vault.
    checksums_answered,
    /// Requests that the store refused.
    refused_requests,
    segments_deleted,
    snapshots_deleted,
    /// Parts of the log that retention deleted.
    log_parts_deleted,
    /// Readers that ended with something that only their pin kept.
    points_held_by_pins,
    /// Segments that went to cache storage.
    segments_uploaded,
    /// Handovers while one was under way.
    double_handovers,
    /// Handovers by which the operator gave the log's writer up.
    ordered_handovers,
    /// Programs that crashed between two awaits, not at a tick of the world.
    crashes_at_an_await,
    /// A process server of the old side found the log closed.
    kept_out_by_closed,
    /// A process server found another one's lease on the log.
    kept_out_by_lease,
    /// A writer was told that it is fenced.
    fenced_writers,
    /// An applier gave a batch up because another one was ahead.
    superseded_batches,
    /// The store lost records, and the agent copied everything again.
    losses_noticed,
    /// Schedules in which several servers had records and a point that was read back.
    servers_side_by_side,
    /// Another applier took a server whose lease had run out.
    tenures_run_out,
    /// One gave a server up so that the work is shared.
    tenures_given,
    /// One was stopped in order, and another one took its server.
    tenures_stopped,
    // Where there are bytes (`wire`).
    /// Pipes that were opened.
    pipes,
    /// Pipes that broke within a piece of bytes.
    pipes_cut,
    /// Streams that a data port passed to the server's ingest.
    streams,
    /// Of them, those that came while another server had one at the same port.
    streams_side_by_side,
}

/// Counters that only a wire of bytes reaches.
pub const OF_BYTES: &[&str] = &["pipes", "pipes_cut", "streams", "streams_side_by_side"];
