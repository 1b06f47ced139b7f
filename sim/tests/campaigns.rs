//! What every push must show: many schedules keep all promises over each wire, each planted fault is found, old failures
//! stay mended, and a schedule runs the same in every process.
//!
//! Each test takes all cores, so they run one after the other.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lifeboat_replication::planted::Planted;
use lifeboat_sim::{
    campaign::{found, many},
    seeds,
    wire::Wire,
    world::Schedule,
};

/// Schedules without `LIFEBOAT_SIM_SCHEDULES`; `make test` asks for 10,000. Over HTTP/2 a tenth of them, over TLS a
/// fiftieth.
const SCHEDULES: u64 = 2000;
/// Schedules within which a planted fault must be found: more than enough for each.
const WITHIN: u64 = 1500;
/// Seeds that are run in two processes.
const TWICE: u64 = 40;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn schedules_of_this_commit(wire: Wire, share: u64) {
    let _alone = alone();
    let schedules =
        std::env::var("LIFEBOAT_SIM_SCHEDULES").map_or(SCHEDULES, |number| number.parse().unwrap());
    assert!(many(seeds::of_this_commit(), schedules / share, None, wire));
}

#[test]
fn schedules_of_this_commit_keep_all_promises() {
    schedules_of_this_commit(Wire::Messages, 1);
}

#[test]
fn schedules_of_this_commit_keep_all_promises_over_http2() {
    schedules_of_this_commit(Wire::Http2, 10);
}

#[test]
fn schedules_of_this_commit_keep_all_promises_over_tls() {
    schedules_of_this_commit(Wire::Tls, 50);
}

#[test]
fn seeds_that_once_failed_keep_all_promises() {
    let _alone = alone();
    for seeds::Regression { seed, commit, found, simpler } in seeds::regressions().unwrap() {
        let outcome = Schedule { simpler, ..Schedule::of(seed) }.run();
        assert_eq!(outcome.bad, None, "seed {seed} of {commit}, which found: {found}");
    }
}

#[test]
fn every_planted_fault_is_found() {
    let _alone = alone();
    let missed: Vec<_> = Planted::ALL.iter().filter(|planted| !found(**planted, WITHIN)).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_schedule_runs_the_same_in_every_process() {
    let _alone = alone();
    let first = seeds::of_this_commit().to_string();
    for wire in Wire::ALL {
        let digests = |logging: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_sim"))
                .args(["digests", &first, &TWICE.to_string(), "--wire", wire.name()])
                .args(logging)
                .output()
                .unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let (one, two) = (digests(&[]), digests(&["--logging"]));
        assert_eq!(one.lines().count() as u64, TWICE);
        assert_eq!(one, two, "over {}", wire.name());
    }
}
