//! Retention: which recovery points stay, how far back the journal reaches, and the deletion of everything else.
//!
//! ```text
//!   ages ─► plan (points that stay, where the journal begins) ─► points.json ─► pins ─► sweep (snapshots, segments)
//! ```
//! **Order.** What is to go is first taken off the catalogue, with If-Match; then the pins are read; then blobs are
//! deleted that neither the catalogue nor a pin names. Nothing that was taken off is ever listed again.
//! **Crash** anywhere: what is left over is found again by the next sweep, which looks at what stands in the store and
//! not at what somebody meant to delete.
//! **Two appliers** plan from the same list; one of them writes it. A delete that arrives late or twice hits a blob that
//! nobody lists any more.
//! **Time** is that of the points (T0 in the log), never this machine's date.

pub mod ages;
mod collector;
#[cfg(test)]
mod fixture;
pub mod plan;
#[cfg(test)]
mod refused_tests;
mod sweep;
mod watch;

pub(super) use self::{
    collector::Collector,
    sweep::{Swept, sweep},
    watch::PinWatch,
};
pub use collector::CollectError;
