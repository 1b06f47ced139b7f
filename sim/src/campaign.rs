//! Many schedules: with the right code all of them must pass, with a planted fault one of them must fail.

use clap::ValueEnum;
use lifeboat_replication::log::PlantedFaults;

use crate::{
    oracle::Reached,
    world::{Outcome, run},
};

/// Mistakes on purpose. A simulation that stops finding one of them has gone blind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Planted {
    AcknowledgeBeforeAppend,
    ForgetOnReceived,
    RetryAtNewEnd,
    LogReadBeforeFence,
    TakeoverIgnoresClosed,
}

impl Planted {
    pub fn faults(self) -> PlantedFaults {
        let mut faults = PlantedFaults::default();
        match self {
            Self::AcknowledgeBeforeAppend => faults.acknowledge_before_append = true,
            Self::ForgetOnReceived => faults.forget_on_received = true,
            Self::RetryAtNewEnd => faults.retry_at_new_end = true,
            Self::LogReadBeforeFence => faults.log_read_before_fence = true,
            Self::TakeoverIgnoresClosed => faults.takeover_ignores_closed = true,
        }
        faults
    }
}

/// Prints what broke and how to see it again; true: nothing did.
pub fn report(seed: u64, outcome: &Outcome) -> bool {
    if let Some(bad) = &outcome.bad {
        println!("sim: seed {seed} {bad}\nsim: replay with `cargo run -p lifeboat-sim -- replay {seed}`");
    }
    outcome.bad.is_none()
}

/// Runs `schedules` from seed `first` on; every `twice_every`th twice, to see that it is the same.
pub fn many(schedules: u64, first: u64, twice_every: u64) -> bool {
    let mut reached = Reached::default();
    let mut steps = 0;
    for seed in first..first + schedules {
        let outcome = run(seed, PlantedFaults::default(), false);
        if !report(seed, &outcome) {
            return false;
        }
        if twice_every > 0 && seed % twice_every == 0 {
            let again = run(seed, PlantedFaults::default(), false);
            if again.digest != outcome.digest {
                println!("sim: seed {seed} ran differently the second time: something is not deterministic");
                return false;
            }
        }
        steps += outcome.steps;
        reached.add(&outcome.reached);
    }
    println!("sim: {schedules} schedules from seed {first}, {steps} steps, all promises kept; reached:");
    for (name, count) in reached.counters() {
        println!("  {count:>9} {name}");
    }
    let missing: Vec<_> =
        reached.counters().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect();
    if schedules >= 200 && !missing.is_empty() {
        println!("sim: never reached: {}; the simulation proves nothing about it", missing.join(", "));
        return false;
    }
    true
}

/// Is the fault found within so many schedules?
pub fn found(planted: Planted, within: u64) -> bool {
    for seed in 1..=within {
        if let Some(bad) = run(seed, planted.faults(), false).bad {
            println!("sim: {planted:?} found by seed {seed}: {bad}");
            return true;
        }
    }
    println!("sim: {planted:?} was not found within {within} schedules: the simulation has gone blind");
    false
}
