//! Seeded simulation of the data plane: the real agent, process server, applier and recovery code over the model
//! store, an in-memory wire and a paused clock, with faults, and an oracle that checks after every step.
//!
//! ```text
//!   seed ─► rng ─► faults (which exist, how often) ─► world (starts, crashes, cuts, writes)
//!                                                       │
//!        agent ◄── wire (delays, breaks) ──► process servers ──► store (lost, late, doubled) ──► model
//!                                                                    │                            ▲
//!                                                                    └──► oracle (its own truth) ─┘
//! ```
//! Everything follows from the seed: one thread, tokio's paused clock, ordered maps, no other randomness.

pub mod campaign;
pub mod env;
pub mod faults;
pub mod net;
pub mod oracle;
pub mod rng;
pub mod store;
pub mod wire;
pub mod world;
