//! Any point through the block index against the plain truth of what a server's disks were.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::time::Duration;

use lifeboat_applier::core::{Applier, Limits, Options, Step};
use lifeboat_recovery::{BlockIndex, IndexError, IndexOptions, PointSelector, list};
use lifeboat_replication::{
    env::Micros,
    ids::{DiskSlot, Epoch, RecordNumber},
    store::{BlobStore, PutCondition},
    vault::{Vault, layout},
    wire::v1::RecordKind,
};
use proptest::prelude::*;
use support::{Images, Source, Write, disk_id};

const SIZES: [u64; 2] = [(1 << 20) + 512, 2 << 20];

async fn open(source: &Source, selector: PointSelector) -> Result<std::sync::Arc<BlockIndex>, IndexError> {
    // A cache of two segments, so that things are dropped and read again.
    let options = IndexOptions { cache_bytes: 64 << 10 };
    BlockIndex::open(&source.vault, &source.server, &source.env, selector, &options).await
}

async fn images(index: &std::sync::Arc<BlockIndex>) -> Images {
    let mut images = Images::new();
    for disk in index.disks() {
        let blocks = disk.size_bytes.div_ceil(4096) as u32;
        let mut image = Vec::new();
        for first in (0..blocks).step_by(70) {
            image.extend_from_slice(&index.read(disk.slot, first, (blocks - first).min(70)).await.unwrap());
        }
        images.insert(disk.slot.0, image);
    }
    images
}

fn applier(source: &Source) -> Applier {
    let limits = Limits { records: 3, ..Limits::default() };
    let options = Options { point_interval: Duration::from_secs(5), limits, ..Options::default() };
    Applier::new(source.vault.clone(), source.server.clone(), source.env.clone(), options)
}

fn one(disk: u32, first: u32, blocks: u32, byte: Option<u8>) -> Vec<Vec<Write>> {
    vec![vec![Write { disk, first, blocks, byte }]]
}

fn at(seconds: i64) -> PointSelector {
    PointSelector::At(Micros(seconds * 1_000_000))
}

fn write() -> impl Strategy<Value = Write> {
    (1_u32..=2, 0_u32..250, 1_u32..8, prop::option::weighted(0.8, 1_u8..))
        .prop_map(|(disk, first, blocks, byte)| Write { disk, first, blocks, byte })
}

type Round = (bool, Vec<Vec<Write>>, bool, bool);

fn round() -> impl Strategy<Value = Round> {
    let groups = prop::collection::vec(prop::collection::vec(write(), 1..4), 1..3);
    (prop::bool::weighted(0.7), groups, prop::bool::weighted(0.4), prop::bool::weighted(0.1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_exact_record_reads_as_the_disks_were_then(rounds in prop::collection::vec(round(), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut source = Source::new(&SIZES).await;
            let mut applier = applier(&source);
            for (second, (exact, groups, apply, new_epoch)) in (0..).zip(rounds) {
                if new_epoch {
                    source.next_epoch().await;
                }
                let kind = if exact { RecordKind::Exact } else { RecordKind::Inexact };
                source.record(kind, true, second, &groups).await;
                if apply {
                    applier.step().await.unwrap();
                }
            }
            for (number, wanted) in &source.points {
                let index = open(&source, PointSelector::Number(*number)).await.unwrap();
                assert!(images(&index).await == *wanted, "record {number} differs");
            }
            let listed = list::points(&source.vault, &source.server, &source.env).await.unwrap();
            let numbers: Vec<u64> = listed.iter().map(|point| point.number).collect();
            assert_eq!(numbers, source.points.keys().copied().collect::<Vec<_>>());
        });
    }
}

async fn ten_rounds() -> Source {
    let mut source = Source::new(&SIZES).await;
    source
        .record(
            RecordKind::Copy,
            false,
            0,
            &[one(1, 0, 257, Some(1))[0].clone(), one(2, 0, 500, Some(2))[0].clone()],
        )
        .await;
    for second in 2..12_u32 {
        let kind = if second == 7 { RecordKind::Inexact } else { RecordKind::Exact };
        source.record(kind, true, i64::from(second), &one(1, second * 4, 6, Some(second as u8))).await;
    }
    source
}

#[tokio::test(start_paused = true)]
async fn latest_and_a_time_take_the_newest_point_up_to_it() {
    let source = ten_rounds().await;
    assert_eq!(open(&source, PointSelector::Latest).await.unwrap().point().number, 11);
    assert_eq!(open(&source, at(7)).await.unwrap().point().number, 6);
    assert_eq!(open(&source, at(500)).await.unwrap().point().number, 11);
}

#[tokio::test(start_paused = true)]
async fn a_point_starts_from_the_newest_snapshot_before_it() {
    let source = ten_rounds().await;
    let mut applier = applier(&source);
    while applier.step().await.unwrap() != Step::CaughtUp {}
    let index = open(&source, PointSelector::Number(9)).await.unwrap();
    let base = index.point().base.as_ref().unwrap().number;
    assert_eq!((base, index.point().records.len()), (8, 1));
    assert!(images(&index).await == source.points[&9]);
    let snapshot_only = open(&source, PointSelector::Number(8)).await.unwrap();
    assert_eq!(snapshot_only.point().records.len(), 0);
    assert!(images(&snapshot_only).await == source.points[&8]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_point_is_refused_with_the_reason() {
    let source = ten_rounds().await;
    for (selector, said) in [
        (PointSelector::Number(7), "not proven to be one instant"),
        (PointSelector::Number(1), "part of a copy"),
        (PointSelector::Number(12), "its log ends at 11"),
        (at(1), "the oldest is 1970-01-01T00:00:02Z"),
    ] {
        let Err(error) = open(&source, selector).await else { panic!("{selector} was opened") };
        assert!(error.to_string().contains(said), "{error}");
    }
    let empty = Source::new(&SIZES).await;
    let error = open(&empty, PointSelector::Latest).await.unwrap_err().to_string();
    assert!(error.contains("no recovery point yet"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_a_log_is_named() {
    let mut source = Source::new(&SIZES).await;
    source.server = "00000000-0000-4000-8000-000000000000".parse().unwrap();
    let error = open(&source, PointSelector::Latest).await.unwrap_err().to_string();
    assert!(error.contains("holds no log of server 00000000"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_rotten_segment_is_named() {
    let source = ten_rounds().await;
    let name = layout::segment(&source.server, Epoch(1), RecordNumber(1), "writer", 1);
    let whole = source.store.get(&name, None, None).await.unwrap();
    let mut rotten = whole.to_vec();
    rotten[50] ^= 4;
    source.store.put(&name, rotten.into(), &PutCondition::Always).await.unwrap();
    let error = open(&source, PointSelector::Latest).await.unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("not what was written"), "{error}");
    source.store.delete(&name, None).await.unwrap();
    let error = open(&source, PointSelector::Latest).await.unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("missing"), "{error}");
    source.store.put(&name, whole, &PutCondition::IfAbsent).await.unwrap();
    open(&source, PointSelector::Latest).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn with_other_keys_nothing_opens() {
    let source = ten_rounds().await;
    let keys = lifeboat_replication::keys::DataKeys::generate(&*source.env.entropy);
    let other = Vault { keys: keys.into(), ..source.vault.clone() };
    let options = IndexOptions::default();
    let opened = BlockIndex::open(&other, &source.server, &source.env, PointSelector::Latest, &options).await;
    let error = lifeboat_replication::errors::chain(&opened.unwrap_err());
    assert!(error.contains("key"), "{error}");
}

/// A snapshot that is gone must not make younger points unreadable as long as the journal reaches back.
#[tokio::test(start_paused = true)]
async fn a_lost_seed_disk_is_replaced_by_the_journal() {
    let source = ten_rounds().await;
    let mut applier = applier(&source);
    while applier.step().await.unwrap() != Step::CaughtUp {}
    source.store.delete(&layout::seed_disk(&source.server, &disk_id(1)), None).await.unwrap();
    let index = open(&source, PointSelector::Latest).await.unwrap();
    assert!(index.point().base.is_none());
    assert!(images(&index).await == source.points[&11]);
}

#[tokio::test(start_paused = true)]
async fn reads_are_counted_and_kept() {
    let source = ten_rounds().await;
    let mut applier = applier(&source);
    while applier.step().await.unwrap() != Step::CaughtUp {}
    let options = IndexOptions::default();
    let index = BlockIndex::open(&source.vault, &source.server, &source.env, PointSelector::Latest, &options)
        .await
        .unwrap();
    index.read(DiskSlot(2), 3, 1).await.unwrap();
    let first = index.figures();
    index.read(DiskSlot(2), 4, 1).await.unwrap();
    let second = index.figures();
    assert!(first.fetched_bytes > 0);
    assert_eq!(second.fetched_bytes, first.fetched_bytes);
    assert!(second.cache.hits > first.cache.hits);
}
