//! The engine of failover runs: a pure function over plain data.
//!
//! ```text
//!   (run, status, observed world, now) ──tick──► (new status, effects, when to look again)
//! ```
//!
//! It has no client, no clock and no randomness. Whoever drives it
//! 1. reads the world *after* the status it passes in (a Job recorded in the status and not in the world has vanished),
//! 2. persists the new status with the old one's `resourceVersion`, and does nothing when that fails,
//! 3. performs the effects, all of which are safe to repeat, and starts again.
//!
//! **Crash between any two of these:** effects follow from the persisted status and the world alone, so the next tick
//! finds what is still to be done. What an effect makes has a name derived from run UID, step and attempt; "already
//! exists" means adopt.
//!
//! **At most one Job an attempt:** an attempt is persisted as `Executing` before its Job is made. A Job carries a
//! finalizer until the end of its attempt is persisted, so that it cannot be made, deleted by somebody and made again
//! between two looks. A Job that is gone all the same, or being deleted by somebody else, counts as failed.
//!
//! **Nothing is skipped silently:** a step that is not executed is `Skipped` with the reason in its message.

mod answers;
mod cleanup;
pub mod effect;
pub mod own_points;
mod report;
pub mod resolve;
mod servers;
mod steps;
#[cfg(test)]
mod tests;
mod tick;
pub mod world;

pub use effect::Effect;
pub use report::outcome;
pub use tick::{Outcome, Run, tick};
pub use world::World;
