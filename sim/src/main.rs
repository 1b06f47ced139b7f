//! `sim run`: many schedules; `sim replay`: one, with its trace; `sim planted`: shows that planted faults are found.

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use lifeboat_replication::planted::Planted;
use lifeboat_sim::{
    campaign::{found, many, report},
    faults::Class,
    load::Simpler,
    seeds, trace,
    wire::Wire,
    world::Schedule,
};

#[derive(Parser)]
#[command(about = "Seeded simulation of Lifeboat's data plane")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs schedules on all cores; fails at the first that breaks a promise, or when a state was never reached.
    Run {
        /// How many; without it 2000, or as many as --for allows.
        schedules: Option<u64>,
        /// First seed; without it the commit's.
        #[arg(long)]
        first: Option<u64>,
        /// For so long: 90s, 10m, 2h.
        #[arg(long = "for", value_parser = duration)]
        time: Option<Duration>,
        /// What the agent and process servers talk over: messages, http2 or tls.
        #[arg(long, value_parser = wire, default_value = "messages")]
        wire: Wire,
    },
    /// Runs one schedule and prints its trace.
    Replay {
        seed: u64,
        #[arg(long, value_parser = planted)]
        planted: Option<Planted>,
        /// Without this fault class (may be repeated).
        #[arg(long, value_parser = class)]
        off: Vec<Class>,
        /// With the load made simpler in this way (may be repeated).
        #[arg(long, value_parser = simpler)]
        simpler: Vec<Simpler>,
        /// What the agent and process servers talk over: messages, http2 or tls.
        #[arg(long, value_parser = wire, default_value = "messages")]
        wire: Wire,
    },
    /// Prints the hash of each schedule's trace.
    Digests {
        first: u64,
        schedules: u64,
        /// Have everything logged meanwhile, to nowhere.
        #[arg(long)]
        logging: bool,
        /// What the agent and process servers talk over: messages, http2 or tls.
        #[arg(long, value_parser = wire, default_value = "messages")]
        wire: Wire,
    },
    /// Runs with each planted fault until it is found.
    Planted {
        /// Only this one.
        #[arg(long, value_parser = planted)]
        only: Option<Planted>,
        /// Schedules within which it must be found.
        #[arg(long, default_value_t = 1500)]
        within: u64,
    },
}

fn planted(name: &str) -> Result<Planted, String> {
    let names = || Planted::ALL.iter().map(|planted| planted.name()).collect::<Vec<_>>().join(", ");
    let found = Planted::ALL.iter().copied().find(|planted| planted.name() == name);
    found.ok_or_else(|| format!("there are: {}", names()))
}

fn wire(name: &str) -> Result<Wire, String> {
    let names = || Wire::ALL.iter().map(|wire| wire.name()).collect::<Vec<_>>().join(", ");
    let found = Wire::ALL.iter().copied().find(|wire| wire.name() == name);
    found.ok_or_else(|| format!("there are: {}", names()))
}

fn class(name: &str) -> Result<Class, String> {
    let names = || Class::ALL.iter().map(|class| class.name()).collect::<Vec<_>>().join(", ");
    let found = Class::ALL.iter().copied().find(|class| class.name() == name);
    found.ok_or_else(|| format!("there are: {}", names()))
}

fn simpler(name: &str) -> Result<Simpler, String> {
    let names = || Simpler::ALL.iter().map(|simpler| simpler.name()).collect::<Vec<_>>().join(", ");
    let found = Simpler::ALL.iter().copied().find(|simpler| simpler.name() == name);
    found.ok_or_else(|| format!("there are: {}", names()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is no time: write 90s, 10m or 2h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number * seconds))
}

fn main() -> ExitCode {
    let passed = match Arguments::parse().command {
        Command::Run { schedules, first, time, wire } => {
            let schedules = schedules.unwrap_or(if time.is_some() { u64::MAX } else { 2000 });
            many(first.unwrap_or_else(seeds::of_this_commit), schedules, time, wire)
        }
        Command::Replay { seed, planted, off, simpler, wire } => {
            trace::print();
            let schedule = Schedule { planted, off, simpler, trace: true, ..Schedule::over(wire, seed) };
            let outcome = schedule.run();
            println!("digest {:016x}, {} steps, {:?}", outcome.digest, outcome.steps, outcome.reached);
            if let Some(why) = &outcome.bad {
                report(&schedule, why);
            }
            outcome.bad.is_none()
        }
        Command::Digests { first, schedules, logging, wire } => {
            if logging {
                trace::discard();
            }
            for seed in first..first.saturating_add(schedules) {
                println!("{seed} {:016x}", Schedule::over(wire, seed).run().digest);
            }
            true
        }
        Command::Planted { only, within } => {
            let wanted = Planted::ALL.iter().filter(|planted| only.is_none_or(|only| only == **planted));
            // All of them, also after one was missed.
            wanted.filter(|planted| !found(**planted, within)).count() == 0
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
