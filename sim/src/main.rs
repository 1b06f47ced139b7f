//! `sim run`: many schedules; `sim replay`: one, with its trace; `sim planted`: shows that planted faults are found.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lifeboat_sim::{
    campaign::{Planted, found, many, report},
    world::run,
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

fn main() -> ExitCode {
    let passed = match Arguments::parse().command {
        Command::Run { schedules, first, twice_every } => many(schedules, first, twice_every),
        Command::Replay { seed, planted } => {
            let outcome = run(seed, planted.map(Planted::faults).unwrap_or_default(), true);
            println!("digest {:016x}, {} steps, {:?}", outcome.digest, outcome.steps, outcome.reached);
            report(seed, &outcome)
        }
        Command::Planted { only, within } => {
            let wanted =
                Planted::value_variants().iter().filter(|planted| only.is_none_or(|only| only == **planted));
            // All of them, also after one was missed.
            wanted.filter(|planted| !found(**planted, within)).count() == 0
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
