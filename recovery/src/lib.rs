//! Reads any point of the vault as a disk.
//!
//! ```text
//!   vault: catalogue, log ──► scan (which snapshot, which records after it)
//!          segments ─────────► index (block → segment, snapshot or zero) ──► overlay (local writes) ──► nbd
//!          seed disks' snapshots ─┘      └─ cache (bounded, verified)
//! ```
//! All that is ever written to the vault is a pin ([`hold`]): what a recovered machine changes stays in a local file.

pub mod book;
pub mod cache;
pub mod credentials;
pub mod damage;
pub mod device;
pub mod exit;
pub mod hold;
pub mod http;
pub mod index;
pub mod list;
pub mod nbd;
pub mod overlay;
pub mod scan;
pub mod select;
pub mod serve;

pub use hold::Hold;
pub use index::{BlockIndex, IndexError, IndexFigures, IndexOptions};
pub use scan::ScanError;
pub use select::PointSelector;
