//! What agent, process server, applier and recovery share.
//!
//! ```text
//!   ids ── blocks ── wire (proto, generated) ── keys
//!                      │                         │
//!              agent ◄─┴─► process server    segment ──┐
//!                                  │                   ▼
//!                                  └────► log ──► vault (layout) ──► store (BlobStore: azure, model)
//! ```
//!
//! No module here owns a task, a clock or a source of randomness: they are given by `env`.

pub mod appliers;
pub mod blocks;
pub mod catalogue;
pub mod env;
pub mod errors;
pub mod heap;
pub mod ids;
pub mod journal;
pub mod keys;
pub mod log;
pub mod pins;
pub mod planted;
pub mod recoverable;
pub mod resync;
pub mod segment;
pub mod store;
pub mod sums;
pub mod vault;
pub mod vhd;
pub mod wire;
