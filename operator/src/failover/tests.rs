//! Tests of the engine: cases by name here, random plans with crashes in `tests/crashes.rs`.

mod cases;
mod crashes;
mod rig;
