//! What every push must show: two thousand schedules keep all promises, and each planted fault is found.

use lifeboat_sim::campaign::{Planted, found, many};

/// Split in two, so that both cores have work.
#[test]
fn a_thousand_schedules_keep_all_promises() {
    assert!(many(1000, 1, 50));
}

#[test]
fn another_thousand_schedules_keep_all_promises() {
    assert!(many(1000, 100_001, 50));
}

/// More than enough for each: they are found within a few dozen.
const WITHIN: u64 = 1500;

#[test]
fn finds_an_acknowledgement_before_the_append() {
    assert!(found(Planted::AcknowledgeBeforeAppend, WITHIN));
}

#[test]
fn finds_blocks_forgotten_on_received() {
    assert!(found(Planted::ForgetOnReceived, WITHIN));
}

#[test]
fn finds_an_append_sent_again_to_the_new_end() {
    assert!(found(Planted::RetryAtNewEnd, WITHIN));
}

#[test]
fn finds_a_takeover_that_reads_before_it_fences() {
    assert!(found(Planted::LogReadBeforeFence, WITHIN));
}

#[test]
fn finds_a_takeover_of_a_closed_log() {
    assert!(found(Planted::TakeoverIgnoresClosed, WITHIN));
}
