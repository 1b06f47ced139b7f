//! Seed disks and recovery points against the plain truth of what a server's disks were.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::{sync::Arc, time::Duration};

use lifeboat_applier::core::{Applier, Limits, Options, Step};
use lifeboat_replication::{
    catalogue::{self, Points},
    store::BlobStore,
    vault::{Vault, layout},
    wire::v1::RecordKind,
};
use proptest::prelude::*;
use support::{
    Source, Write, disk_id,
    faulty::{Fault, Faulty},
    same_disk,
    sums::{known_blocks, plausible},
};

const MIB: u64 = 1 << 20;
/// One disk of odd size and one of whole mebibytes.
const SIZES: [u64; 2] = [MIB + 512, 2 * MIB];

fn options() -> Options {
    // Points every 3 seconds of the server's time, batches of a few records.
    let limits = Limits { records: 4, ..Limits::default() };
    Options { point_interval: Duration::from_secs(3), limits, ..Options::default() }
}

fn applier(source: &Source, vault: &Vault) -> Applier {
    Applier::new(vault.clone(), source.server.clone(), source.env.clone(), options())
}

async fn catch_up(applier: &mut Applier) {
    for _ in 0..1000 {
        if let Step::CaughtUp = applier.step().await.unwrap() {
            return;
        }
    }
    panic!("it does not catch up");
}

async fn points(source: &Source) -> Points {
    let found = catalogue::read::<Points>(&source.vault, &source.server).await.unwrap();
    found.map_or_else(|| Points::none(&source.server), |(points, _)| points)
}

/// Every listed point's snapshots are what the disks were; with `caught_up`, the seed disks are what they are.
async fn check(source: &Source, caught_up: bool) {
    for point in points(source).await.points {
        for disk in &point.disks {
            let seed = source.seed(disk.slot, Some(&disk.snapshot)).await;
            assert!(
                same_disk(&seed, &source.points[&point.number][&disk.slot]),
                "point {} disk {}",
                point.number,
                disk.slot
            );
        }
    }
    for (slot, image) in &source.images {
        let known = known_blocks(source, *slot).await;
        if caught_up {
            assert!(same_disk(&source.seed(*slot, None).await, image), "seed disk {slot} differs");
            let written = source.written.get(slot).map_or(0, |blocks| blocks.len());
            assert!(known == written, "{known} of {written} checksums of disk {slot} are known");
        }
    }
}

fn one(disk: u32, first: u32, blocks: u32, byte: Option<u8>) -> Vec<Vec<Write>> {
    vec![vec![Write { disk, first, blocks, byte }]]
}

/// A copy in two records and ten rounds, some overlapping, over two epochs.
async fn written() -> Source {
    let mut source = Source::new(&SIZES).await;
    source
        .record(
            RecordKind::Copy,
            false,
            0,
            &[one(1, 0, 200, Some(1))[0].clone(), one(2, 0, 512, Some(2))[0].clone()],
        )
        .await;
    source.record(RecordKind::Copy, false, 0, &one(1, 200, 57, Some(3))).await;
    for round in 0..10_u32 {
        if round == 6 {
            source.next_epoch().await;
        }
        let byte = u8::try_from(10 + round).unwrap();
        let groups = [
            vec![Write { disk: 1, first: round * 3, blocks: 5, byte: Some(byte) }],
            vec![Write { disk: 2, first: 100, blocks: 3, byte: (round % 3 > 0).then_some(byte) }],
        ];
        let kind = if round == 4 { RecordKind::Inexact } else { RecordKind::Exact };
        source.record(kind, true, i64::from(round), &groups).await;
    }
    source
}

#[tokio::test(start_paused = true)]
async fn seed_disks_and_points_are_the_servers_disks() {
    let source = written().await;
    let mut applier = applier(&source, &source.vault);
    catch_up(&mut applier).await;
    check(&source, true).await;
    let numbers: Vec<u64> = points(&source).await.points.iter().map(|point| point.number).collect();
    assert_eq!(numbers, [3, 6, 9, 12], "the first exact record at once, then each interval");
    let status = applier.status().borrow().clone();
    assert_eq!((status.applied_number, status.log_number, status.epoch), (12, 12, 2));
    assert!(status.figures.superseded_bytes > 0, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_exact_and_complete_record_gets_a_point_at_once() {
    let mut source = Source::new(&[MIB]).await;
    source.record(RecordKind::Copy, false, 0, &one(1, 0, 2, Some(1))).await;
    source.record(RecordKind::Exact, false, 1, &one(1, 2, 2, Some(1))).await;
    let mut applier = applier(&source, &source.vault);
    catch_up(&mut applier).await;
    assert!(points(&source).await.points.is_empty(), "the copy is not complete");
    source.record(RecordKind::Exact, true, 2, &one(1, 4, 2, Some(1))).await;
    assert!(matches!(applier.step().await.unwrap(), Step::Applied { point: true, .. }));
}

/// Whatever call a crash hits, the next applier ends with the same disks, and no wrong point was ever listed.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_call_is_made_good_by_the_next_applier() {
    for fault in [Fault::Gone, Fault::DoneThenGone, Fault::AnswerLost, Fault::RequestLost] {
        let mut calls = 0;
        loop {
            let source = written().await;
            let faulty = Faulty::before(Arc::new(source.store.clone()), fault, calls);
            let broken = Vault { store: faulty.clone(), cache: faulty.clone(), ..source.vault.clone() };
            let mut first = applier(&source, &broken);
            for _ in 0..20 {
                let _ = first.step().await;
            }
            drop(first);
            check(&source, false).await;
            catch_up(&mut applier(&source, &source.vault)).await;
            check(&source, true).await;
            if !faulty.struck() {
                break;
            }
            calls += 7;
        }
        assert!(calls > 50, "only {calls} calls were made");
    }
}

/// An applier that stopped between raising the sequence number and writing is overtaken; when it wakes up, its
/// writes must not land.
#[tokio::test(start_paused = true)]
async fn a_slow_applier_of_an_older_batch_changes_nothing() {
    let mut source = written().await;
    let mut slow = applier(&source, &source.vault);
    assert!(matches!(slow.step().await.unwrap(), Step::Applied { .. }));
    // The slow one has read its position; another one goes on to the end.
    catch_up(&mut applier(&source, &source.vault)).await;
    source.record(RecordKind::Exact, true, 20, &one(1, 0, 257, Some(99))).await;
    catch_up(&mut applier(&source, &source.vault)).await;
    for _ in 0..10 {
        let _ = slow.step().await;
        check(&source, true).await;
    }
    catch_up(&mut slow).await;
    check(&source, true).await;
}

/// A batch that another applier has begun (the number raised, some pages written) is finished to the same record,
/// even past a point that would be due: what stands on the disk is newer than that point.
#[tokio::test(start_paused = true)]
async fn a_begun_batch_is_reached_before_a_point_is_cut() {
    let source = written().await;
    let name = layout::seed_disk(&source.server, &disk_id(1));
    // Somebody had begun a batch up to record 5 with other limits.
    source.store.create_page(&name, 2 * MIB + 512).await.unwrap();
    let sequence = (1 << 32) | 5;
    source.store.raise_sequence(&name, sequence, None).await.unwrap();
    let round = vec![12; 5 * 4096];
    source.store.write_pages(&name, 6 * 4096, round.into(), None, sequence).await.unwrap();
    catch_up(&mut applier(&source, &source.vault)).await;
    check(&source, true).await;
    let numbers: Vec<u64> = points(&source).await.points.iter().map(|point| point.number).collect();
    assert_eq!(numbers.first(), Some(&5), "records 3 and 4 cannot be points any more: {numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_seed_disk_is_made_again_from_the_log() {
    let mut source = written().await;
    let mut applier = applier(&source, &source.vault);
    catch_up(&mut applier).await;
    source.store.delete(&layout::seed_disk(&source.server, &disk_id(2)), None).await.unwrap();
    source.record(RecordKind::Exact, true, 11, &one(1, 7, 1, Some(77))).await;
    let error = applier.step().await.unwrap_err().to_string();
    assert!(error.contains("disk-2.vhd is missing"), "{error}");
    catch_up(&mut applier).await;
    // Its snapshots went with it: only what is there is listed, and a new point stands where the log is reached.
    check(&source, true).await;
    let numbers: Vec<u64> = points(&source).await.points.iter().map(|point| point.number).collect();
    assert_eq!(numbers, [13]);
}

/// The seed disk grows with its disk, wherever a crash hits; points made before keep their size.
#[tokio::test(start_paused = true)]
async fn a_seed_disk_grows_with_its_disk() {
    for fault in [Fault::DoneThenGone, Fault::AnswerLost] {
        let mut calls = 0;
        loop {
            let mut source = written().await;
            catch_up(&mut applier(&source, &source.vault)).await;
            source.grow(1, 3 * MIB).await;
            // What was added is copied, and what stands in the way of it: the old footer.
            source.record(RecordKind::Copy, false, 20, &one(1, 257, 511, Some(5))).await;
            source.record(RecordKind::Exact, true, 30, &one(1, 300, 3, Some(6))).await;
            let faulty = Faulty::before(Arc::new(source.store.clone()), fault, calls);
            let broken = Vault { store: faulty.clone(), cache: faulty.clone(), ..source.vault.clone() };
            let mut first = applier(&source, &broken);
            for _ in 0..8 {
                let _ = first.step().await;
            }
            catch_up(&mut applier(&source, &source.vault)).await;
            check(&source, true).await;
            let last = points(&source).await.points.pop().unwrap();
            assert_eq!((last.number, last.disks[0].size_bytes), (14, 3 * MIB));
            if !faulty.struck() {
                break;
            }
            calls += 1;
        }
        assert!(calls > 10, "only {calls} calls were made");
    }
}

/// A checksum file that the store put back to an older state, or lost, must not be believed: blocks are unknown until
/// they are written again.
#[tokio::test(start_paused = true)]
async fn checksums_that_went_back_in_time_are_forgotten() {
    let mut source = written().await;
    catch_up(&mut applier(&source, &source.vault)).await;
    let name = layout::seed_sum(&source.server, &disk_id(1));
    let old = source.store.get(&name, None, None).await.unwrap();
    source.record(RecordKind::Exact, true, 20, &one(1, 30, 2, Some(99))).await;
    catch_up(&mut applier(&source, &source.vault)).await;
    source.store.delete(&name, None).await.unwrap();
    source.store.create_page(&name, old.len() as u64).await.unwrap();
    source.store.write_pages(&name, 0, old, None, 12).await.unwrap();
    source.store.raise_sequence(&name, (2 << 32) | 12, None).await.unwrap();
    source.record(RecordKind::Exact, true, 21, &one(1, 0, 1, Some(98))).await;
    catch_up(&mut applier(&source, &source.vault)).await;
    assert_eq!(plausible(&source, 1).await, 1, "only what was written since is known");
    source.store.delete(&name, None).await.unwrap();
    source.record(RecordKind::Exact, true, 22, &one(1, 0, 3, Some(97))).await;
    catch_up(&mut applier(&source, &source.vault)).await;
    assert_eq!(known_blocks(&source, 1).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_rotten_segment_is_named_and_stops_only_what_needs_it() {
    let source = written().await;
    let name = layout::segment(
        &source.server,
        lifeboat_replication::ids::Epoch(1),
        lifeboat_replication::ids::RecordNumber(1),
        "writer",
        0,
    );
    let mut sealed = source.store.get(&name, None, None).await.unwrap().to_vec();
    sealed[40] ^= 1;
    source.store.put(&name, sealed.into(), &lifeboat_replication::store::PutCondition::Always).await.unwrap();
    let mut applier = applier(&source, &source.vault);
    let error = applier.step().await.unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("restore it"), "{error}");
    assert_eq!(applier.status().borrow().error, error);
    assert!(points(&source).await.points.is_empty());
}

#[derive(Debug, Clone)]
struct Round {
    exact: bool,
    seconds: i64,
    writes: Vec<Write>,
    split: bool,
    new_epoch: bool,
}

fn write() -> impl Strategy<Value = Write> {
    (1_u32..=2, 0_u32..250, 1_u32..8, prop::option::weighted(0.8, 1_u8..))
        .prop_map(|(disk, first, blocks, byte)| Write { disk, first, blocks, byte })
}

fn round() -> impl Strategy<Value = Round> {
    (
        prop::bool::weighted(0.7),
        0_i64..4,
        prop::collection::vec(write(), 1..6),
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(exact, seconds, writes, split, new_epoch)| Round {
            exact,
            seconds,
            writes,
            split,
            new_epoch,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_history_gives_exact_seed_disks_and_points(
        rounds in prop::collection::vec(round(), 1..25), crash_at in 0_i64..400, lost_answer in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut source = Source::new(&SIZES).await;
            let fault = if lost_answer { Fault::AnswerLost } else { Fault::DoneThenGone };
            let faulty = Faulty::before(Arc::new(source.store.clone()), fault, crash_at);
            let broken = Vault { store: faulty.clone(), cache: faulty, ..source.vault.clone() };
            let mut first = applier(&source, &broken);
            let mut time = 0;
            for round in rounds {
                time += round.seconds;
                if round.new_epoch {
                    source.next_epoch().await;
                }
                let kind = if round.exact { RecordKind::Exact } else { RecordKind::Inexact };
                let groups = match (round.split, round.writes.split_at(round.writes.len() / 2)) {
                    (true, (head, tail)) => vec![head.to_vec(), tail.to_vec()],
                    (false, _) => vec![round.writes.clone()],
                };
                source.record(kind, true, time, &groups).await;
                let _ = first.step().await;
            }
            check(&source, false).await;
            let mut second = applier(&source, &source.vault);
            catch_up(&mut second).await;
            check(&source, true).await;
        });
    }
}
