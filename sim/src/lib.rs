//! Seeded simulation of the data plane: the real agent, process server, applier and recovery code over the model
//! store, a wire in memory (messages, or the product's own HTTP/2 and TLS over pipes of bytes) and a paused clock, with
//! faults, and an oracle that checks after every step.
//!
//! ```text
//!   seed ─► rng ─► faults (which exist, how often) ─► world (starts, crashes, cuts, writes)
//!                                                       │
//!        agent ◄── wire (delays, breaks) ──► process servers ──► store (lost, late, doubled) ──► model
//!                                                                    │                            ▲
//!                                                                    └──► oracle (its own truth) ─┘
//! ```
//! One to three servers share all but their agents, oracles and dice; appliers share the servers by leases, or all work on all
//! of them. Over bytes they share the ports too, which know them by their certificates (without TLS: by whose pipe it is).
//!
//! | to add | where |
//! |---|---|
//! | a fault class | a line in `faults`, and where it strikes |
//! | a counter of a state that must be reached | a line in `reached`, and where it is reached |
//! | a planted fault | a line in `lifeboat_replication::planted`, and a branch beside the rule that it breaks |
//! | a check | `oracle` (the log: `mod`, points: `points`, deletions: `kept`, at the end: `rest`) |
//! | a seed that failed | `sim/seeds.toml` |
//!
//! Everything follows from the seed: one thread, tokio's paused clock, ordered maps, no other randomness but that of
//! TLS, which changes what is sent and neither how much nor when.

pub mod campaign;
pub mod env;
pub mod exhaustive;
pub mod faults;
pub mod load;
pub mod net;
pub mod oracle;
mod program;
pub mod reached;
pub mod retention;
pub mod rng;
pub mod seeds;
mod shrink;
mod spool;
pub mod store;
pub mod tenures;
pub mod trace;
pub mod wire;
pub mod world;
