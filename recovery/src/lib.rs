//! Reads any point of the vault as a disk.
//!
//! ```text
//!   vault: catalogue, log ──► scan (which snapshot, which records after it)
//!          segments ─────────► index (block → segment, snapshot or zero) ──► overlay (local writes) ──► nbd
//!          seed disks' snapshots ─┘      └─ cache (bounded, verified)
//! ```
//! Nothing here ever writes to the vault: what a recovered machine changes stays in a local file.

pub mod cache;
pub mod device;
pub mod http;
pub mod index;
pub mod list;
pub mod nbd;
pub mod overlay;
pub mod scan;
pub mod select;
pub mod serve;

pub use index::{BlockIndex, IndexError, IndexFigures, IndexOptions};
pub use scan::ScanError;
pub use select::PointSelector;

/// An error with its causes on one line, for logs and messages.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Transparent errors repeat their cause's text.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
