//! The figures, one a file. Each sets up sites of its own and measures what it divides in turns.

mod agent;
mod apply;
mod copy;
mod cost;
mod fleet;
mod greedy;
mod open;
mod peers;
mod resync;
mod rpo;
mod workload;

use crate::report::Figure;

/// Measures with so many repetitions.
type Measure = fn(usize) -> Vec<Figure>;

/// In the order in which they run: the quick ones first.
pub fn all() -> [(&'static str, Measure); 11] {
    [
        ("agent", agent::measure),
        ("fleet", fleet::measure),
        ("greedy", greedy::measure),
        ("cost", cost::measure),
        ("open", open::measure),
        ("peers", peers::measure),
        ("resync", resync::measure),
        ("copy", copy::measure),
        ("apply", apply::measure),
        ("workload", workload::measure),
        ("rpo", rpo::measure),
    ]
}
