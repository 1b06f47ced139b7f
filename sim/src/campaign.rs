//! Many schedules on all cores: with the right code all of them must pass, with a planted fault one of them must fail.
//!
//! Threads take the next seed each; one that fails stops only the seeds above it. So the result does not depend on how
//! many threads there are, or which was faster.

use std::{
    num::NonZero,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use lifeboat_replication::planted::Planted;

use crate::{
    faults::Class,
    net::{Outcome, lock},
    reached::{OF_BYTES, Reached},
    shrink,
    wire::Wire,
    world::Schedule,
};

/// From this many schedules on each counter and each fault class must have been reached.
const ENOUGH: u64 = 1000;

/// What a range of seeds came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// The lowest seed that failed, and how.
    pub bad: Option<(u64, String)>,
    pub schedules: u64,
    steps: u64,
    reached: Reached,
    struck: Vec<u64>,
}

impl Tally {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.schedules += 1;
        self.steps += outcome.steps;
        self.reached.add(&outcome.reached);
        self.struck.resize(Class::ALL.len(), 0);
        self.struck.iter_mut().zip(&outcome.struck).for_each(|(mine, more)| *mine += more);
        if let Some(bad) = &outcome.bad
            && self.bad.as_ref().is_none_or(|(lowest, _)| seed < *lowest)
        {
            self.bad = Some((seed, bad.clone()));
        }
    }

    fn merge(&mut self, other: Self) {
        let Self { bad, schedules, steps, reached, struck } = other;
        self.schedules += schedules;
        self.steps += steps;
        self.reached.add(&reached);
        self.struck.resize(Class::ALL.len(), 0);
        self.struck.iter_mut().zip(&struck).for_each(|(mine, more)| *mine += more);
        if let Some((seed, why)) = bad
            && self.bad.as_ref().is_none_or(|(lowest, _)| seed < *lowest)
        {
            self.bad = Some((seed, why));
        }
    }

    /// Everything that was counted, states and faults, and whether this wire is there to reach it.
    pub fn counters(&self, wire: Wire) -> Vec<(String, u64, bool)> {
        let bytes = wire != Wire::Messages;
        let reached = self.reached.list().into_iter().map(|(name, count)| {
            let wanted = OF_BYTES.contains(&name) == bytes;
            (name.replace('_', " "), count, wanted)
        });
        let struck = Class::ALL.iter().zip(&self.struck).map(|(class, count)| {
            let wanted = class.needs_bytes() == bytes;
            (class.name().to_owned(), *count, wanted)
        });
        reached.chain(struck).collect()
    }
}

/// Runs the seeds from `first` on, `schedules` of them or for as long as `time`, and stops at the first that fails.
pub fn sweep(
    first: u64,
    schedules: u64,
    time: Option<Duration>,
    wire: Wire,
    planted: Option<Planted>,
) -> Tally {
    let next = AtomicU64::new(0);
    let lowest_bad = AtomicU64::new(u64::MAX);
    let tally = Mutex::new(Tally::default());
    #[allow(
        clippy::disallowed_methods,
        reason = "how long a person wants to wait is no part of any schedule"
    )]
    let until = time.map(|time| std::time::Instant::now() + time);
    let worker = || {
        let mut mine = Tally::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            #[allow(clippy::disallowed_methods, reason = "as above")]
            let over = until.is_some_and(|until| std::time::Instant::now() > until);
            if over || number >= schedules || number > lowest_bad.load(Ordering::Relaxed) {
                break;
            }
            let seed = first.wrapping_add(number);
            let outcome = Schedule { planted, ..Schedule::over(wire, seed) }.run();
            if outcome.bad.is_some() {
                lowest_bad.fetch_min(number, Ordering::Relaxed);
            }
            mine.add(seed, &outcome);
        }
        lock(&tally).merge(mine);
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(worker);
        }
    });
    tally.into_inner().unwrap_or_default()
}

/// The right code over many schedules; prints what was reached. True: all promises were kept, and enough was reached.
pub fn many(first: u64, schedules: u64, time: Option<Duration>, wire: Wire) -> bool {
    let tally = sweep(first, schedules, time, wire, None);
    if let Some((seed, why)) = &tally.bad {
        report(&Schedule::over(wire, *seed), why);
        return false;
    }
    let counters = tally.counters(wire);
    println!(
        "sim: {} schedules over {} from seed {first}, {} steps, all promises kept; reached:",
        tally.schedules,
        wire.name(),
        tally.steps
    );
    for (name, count, _) in &counters {
        println!("  {count:>9} {name}");
    }
    let missing = counters.iter().filter(|(_, count, wanted)| *count == 0 && *wanted);
    let missing: Vec<_> = missing.map(|(name, _, _)| &**name).collect();
    if tally.schedules >= ENOUGH && !missing.is_empty() {
        println!("sim: never reached: {}; the simulation proves nothing about it", missing.join(", "));
        return false;
    }
    true
}

/// The line of a failure: what broke, how to see it again, and what it needs.
pub fn report(schedule: &Schedule, why: &str) {
    let seed = schedule.seed;
    println!(
        "sim: seed {seed} {why}; replay: cargo run -p lifeboat-sim -- replay {seed}{}{}",
        over(schedule),
        planted(schedule)
    );
    println!("sim: {}", shrink::smallest(schedule));
}

fn planted(schedule: &Schedule) -> String {
    schedule.planted.map_or_else(String::new, |planted| format!(" --planted {}", planted.name()))
}

fn over(schedule: &Schedule) -> String {
    match schedule.wire {
        Wire::Messages => String::new(),
        wire => format!(" --wire {}", wire.name()),
    }
}

/// The fastest wire that can show the fault.
pub fn shown_by(planted: Planted) -> Wire {
    match planted {
        Planted::SilenceIsPatience | Planted::StreamsCountedForEver | Planted::StreamsMixed => Wire::Http2,
        Planted::DialWithoutTimeOut | Planted::HandshakesOneByOne => Wire::Tls,
        _ => Wire::Messages,
    }
}

/// Is the fault found within so many schedules?
pub fn found(planted: Planted, within: u64) -> bool {
    let wire = shown_by(planted);
    match sweep(1, within, None, wire, Some(planted)).bad {
        Some((seed, why)) => {
            // The fault itself must be what was found.
            let without = Schedule::over(wire, seed).run().bad;
            match &without {
                None => println!("sim: {} found by seed {seed}: {why}", planted.name()),
                Some(why) => report(&Schedule::over(wire, seed), why),
            }
            without.is_none()
        }
        None => {
            println!(
                "sim: {} was not found within {within} schedules: the simulation has gone blind",
                planted.name()
            );
            false
        }
    }
}
