//! `sim run`: many schedules; `sim replay`: one, with its trace; `sim planted`: shows that planted faults are found.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lifeboat_replication::log::PlantedFaults;
use lifeboat_sim::{
    oracle::Reached,
    world::{Outcome, run},
};

#[derive(Parser)]
#[command(about = "Seeded simulation of Lifeboat's data plane")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs schedules; fails at the first that breaks a promise, or when a state was never reached.
    Run {
        #[arg(default_value_t = 2000)]
        schedules: u64,
        /// First seed.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Every so many seeds, run one twice and compare the traces.
        #[arg(long, default_value_t = 50)]
        twice_every: u64,
    },
    /// Runs one schedule and prints its trace.
    Replay {
        seed: u64,
        #[arg(long)]
        planted: Option<Planted>,
    },
    /// Runs with each planted fault until it is found.
    Planted {
        /// Only this one.
        #[arg(long)]
        only: Option<Planted>,
        /// Schedules within which it must be found.
        #[arg(long, default_value_t = 1500)]
        within: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Planted {
    AcknowledgeBeforeAppend,
    ForgetOnReceived,
    RetryAtNewEnd,
    LogReadBeforeFence,
    TakeoverIgnoresClosed,
}

impl Planted {
    fn faults(self) -> PlantedFaults {
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

fn main() -> ExitCode {
    let passed = match Arguments::parse().command {
        Command::Run { schedules, first, twice_every } => many(schedules, first, twice_every),
        Command::Replay { seed, planted } => {
            let outcome = run(seed, planted.map(Planted::faults).unwrap_or_default(), true);
            println!("digest {:016x}, {} steps, {:?}", outcome.digest, outcome.steps, outcome.reached);
            report(seed, &outcome)
        }
        Command::Planted { only, within } => Planted::value_variants()
            .iter()
            .filter(|planted| only.is_none_or(|only| only == **planted))
            .fold(true, |passed, planted| found(*planted, within) && passed),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(seed: u64, outcome: &Outcome) -> bool {
    if let Some(bad) = &outcome.bad {
        println!("sim: seed {seed} {bad}\nsim: replay with `cargo run -p lifeboat-sim -- replay {seed}`");
    }
    outcome.bad.is_none()
}

fn many(schedules: u64, first: u64, twice_every: u64) -> bool {
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
    let missing: Vec<_> = reached.counters().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect();
    if schedules >= 200 && !missing.is_empty() {
        println!("sim: never reached: {}; the simulation proves nothing about it", missing.join(", "));
        return false;
    }
    true
}

fn found(planted: Planted, within: u64) -> bool {
    for seed in 1..=within {
        if let Some(bad) = run(seed, planted.faults(), false).bad {
            println!("sim: {planted:?} found by seed {seed}: {bad}");
            return true;
        }
    }
    println!("sim: {planted:?} was not found within {within} schedules: the simulation has gone blind");
    false
}
