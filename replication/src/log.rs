//! The commit log of a server: the truth of what the vault holds.
//!
//! ```text
//!   frame (bytes ⇄ authenticated record) ─► state (the fold: what the records add up to)
//!                                              │
//!        decide (what an outcome means)        ├─► writer   (append, settle, rotate; holds the lease)
//!                    └─────────────────────────┤      ▲
//!                                              ├─► takeover (fence the old writer, open an epoch)
//!                                              └─► reader   (follow the log from a place in it)
//! ```
//! - **Consistency.** A record is committed when its frame stands in an alive part. One append carries one frame, or
//!   a header and the `Closed`/`Release` that belongs to it. The store takes it whole, in order, from the holder of
//!   the lease, at the expected position, or not at all.
//! - **Retries.** A call without an answer is settled by reading the blob's tail; the same bytes are sent again to
//!   the same position, so a late copy of the first try is refused by its position.
//! - **Parts.** `<epoch>-<part>`. Part 0 of an epoch is alive if it has a header; a later part is alive if its base's
//!   last frame is `Rotate` to it. A part whose maker died before the header is dead: it is sealed and passed over.
//! - **Length.** Retention deletes the first parts, see [`beginning`]; what is left is always a suffix.
//! - **Takeover.** Break the lease, acquire it, seal, and only then read: whatever the old writer had committed
//!   stays, and the store refuses it from then on.
//! - **Closed.** A log closed by a failover opens no epoch but for that run's own.

pub mod beginning;
pub mod decide;
pub mod frame;
pub mod head;
pub mod part;
mod reader;
mod retry;
pub mod state;
mod takeover;
#[cfg(test)]
mod tests;
mod writer;

pub use head::Head;
pub use part::PartName;
pub use reader::{Entry, LogReader, ReadError, history};
pub use retry::Patience;
pub use state::{LogDisk, LogState};
pub use takeover::{Order, TakeOverError};
pub use writer::{Base, Committed, LogWriter, WriteError};

use std::time::Duration;

use crate::{planted::Planted, store::LEASE_TERM};

/// Appends to a part before the writer goes on in another one: the store ends at 50,000.
const ROTATE_AFTER_APPENDS: u32 = 40_000;
/// Bytes of a part, likewise: a takeover reads the newest part whole.
const ROTATE_AFTER_BYTES: u64 = 32 << 20;
/// So old a part is continued in another one, if it has [`LogOptions::worth_bytes`]: retention deletes whole parts, and
/// should not have to keep much longer than its policy says.
const ROTATE_AFTER: Duration = Duration::from_secs(6 * 3600);
/// A rotation costs four operations of the store: not worth it for less.
const WORTH_BYTES: u64 = 1 << 20;

/// How a log is written. Whichever comes first ends a part.
#[derive(Debug, Clone)]
pub struct LogOptions {
    pub rotate_after_appends: u32,
    pub rotate_after_bytes: u64,
    /// By this program's monotonic clock, since it began the part.
    pub rotate_after: Duration,
    /// Smaller parts do not end by their age.
    pub worth_bytes: u64,
    /// Of the writer's lease, which is renewed when half of it has passed: the store allows 15 to 60 seconds. Each
    /// renewal is paid for, idle or not. Who fences by order does not wait for it, nor does a restarted process server
    /// that finds its own log; anybody else waits for as long.
    pub lease_term: Duration,
    /// Set by the simulation only.
    pub planted: Option<Planted>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            rotate_after_appends: ROTATE_AFTER_APPENDS,
            rotate_after_bytes: ROTATE_AFTER_BYTES,
            rotate_after: ROTATE_AFTER,
            worth_bytes: WORTH_BYTES,
            lease_term: LEASE_TERM,
            planted: None,
        }
    }
}
