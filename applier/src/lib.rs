//! Turns the commit log into seed disks and recovery points.
//!
//! ```text
//!   log ─► plan (what is one batch, where is a point) ─► batch (segments, newest first) ─► coalesce ─► seeds (pages)
//!                                                                                     point: snapshots ─┘
//!   catalogue: position and points, written last
//! ```
//! `core` decides and knows only the vault, so that the simulation runs it; `edge` is the program around it:
//! configuration, discovery of servers, metrics, the operator's service.
//!
//! **The log is the truth; seed disks are a view of it.** Everything here can be repeated: an applier that dies
//! anywhere is followed by one that reads the position and does the last batch again.

pub mod core;
pub mod edge;
