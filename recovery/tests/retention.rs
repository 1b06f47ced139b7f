//! Retention against the plain truth: whatever is still offered reads bit for bit, whatever crashes in between.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use lifeboat_applier::core::{Applier, Options, Step};
use lifeboat_recovery::{
    BlockIndex, IndexError, IndexOptions, PointSelector,
    book::{ServerReport, Severity, inventory, verify},
    hold::Hold,
};
use lifeboat_replication::{
    catalogue::{self, Points},
    ids::{Epoch, RecordNumber},
    log::{LogReader, Patience, ReadError, part},
    recoverable,
    store::{BlobStore as _, LEASE_TERM, PutCondition},
    vault::{RetentionPolicy, Vault, layout},
    wire::v1::RecordKind,
};
use support::{
    Images, Source, Write,
    faulty::{Fault, Faulty},
};
use tokio::sync::watch;

const MIB: u64 = 1 << 20;
const SIZES: [u64; 2] = [MIB, 2 * MIB];

/// A point every 10 s, kept for 100 s; a journal of 30 s.
const POLICY: RetentionPolicy =
    RetentionPolicy { point_interval_seconds: 10, retention_seconds: 100, journal_seconds: 30 };

fn applier(source: &Source, vault: &Vault) -> Applier {
    let (policy, followed) = watch::channel(Some(POLICY));
    std::mem::forget(policy);
    let options = Options { collect_interval: Duration::from_millis(1), ..Options::default() };
    Applier::new(vault.clone(), source.server.clone(), source.env.clone(), options).with_policy(followed)
}

/// Records as a server makes them: the copy, then a round every 5 s whose segments are blobs.
async fn rounds(source: &mut Source, from: i64, until: i64) {
    for second in (from..until).step_by(5) {
        let block = (second % 200) as u32;
        let write = |disk, byte| vec![Write { disk, first: block, blocks: 3, byte: Some(byte) }];
        let groups = [write(1, second as u8 | 1), write(2, second as u8 | 2)];
        source.record(RecordKind::Exact, true, second, &groups).await;
    }
}

async fn catch_up(applier: &mut Applier) {
    while applier.step().await.unwrap() != Step::CaughtUp {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What is left to delete.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        applier.step().await.unwrap();
    }
}

async fn follow(source: &mut Source, applier: &mut Applier, from: i64, until: i64) {
    for second in (from..until).step_by(5) {
        rounds(source, second, second + 5).await;
        catch_up(applier).await;
    }
}

async fn segments(source: &Source) -> Vec<u64> {
    let page = source.vault.cache.list(&layout::journal_prefix(&source.server), false, None).await.unwrap();
    let records =
        page.blobs.iter().map(|blob| layout::parse_segment(&source.server, &blob.name).unwrap().1.0);
    let mut records: Vec<u64> = records.collect();
    records.dedup();
    records
}

async fn snapshots(source: &Source) -> usize {
    let page = source.vault.store.list(&layout::disks_prefix(&source.server), true, None).await.unwrap();
    page.blobs.iter().filter(|blob| blob.snapshot.is_some()).count()
}

async fn listed(source: &Source) -> Points {
    catalogue::read::<Points>(&source.vault, &source.server).await.unwrap().unwrap().0
}

async fn open(source: &Source, selector: PointSelector) -> Result<Arc<BlockIndex>, IndexError> {
    let options = IndexOptions { cache_bytes: 64 << 10 };
    BlockIndex::open(&source.vault, &source.server, &source.env, selector, &options).await
}

async fn read(index: &Arc<BlockIndex>) -> Images {
    let mut images = Images::new();
    for disk in index.disks() {
        let blocks = disk.size_bytes.div_ceil(4096) as u32;
        images.insert(disk.slot.0, index.read(disk.slot, 0, blocks).await.unwrap().to_vec());
    }
    images
}

/// Everything offered opens and is what the disks were; the number of points offered.
async fn offered_is_right(source: &Source) -> usize {
    let offered = recoverable::points(&source.vault, &source.server, &source.env).await.unwrap();
    for point in &offered {
        let number = point.id.number.0;
        let index = open(source, PointSelector::Number(number)).await.unwrap();
        assert!(read(&index).await == source.points[&number], "record {number} differs");
    }
    offered.len()
}

/// The parts of the log that stand are those that the catalogue lets it begin with, and it is as long as its journal.
async fn log_is_short(source: &Source, applier: &mut Applier) -> usize {
    // Until the leases of parts that were just written have run out.
    tokio::time::sleep(LEASE_TERM).await;
    catch_up(applier).await;
    let parts = part::list(&source.vault, &source.server, &Patience::new(source.env.clone())).await.unwrap();
    let listed = listed(source).await;
    let base = recoverable::journal_begins(&listed).unwrap();
    assert_eq!(parts.first().copied(), listed.log_begins);
    // The part that the base's continues stays, for takeovers.
    let before = parts.iter().filter(|part| **part < base.log.part_name()).count();
    assert_eq!(before, 1, "{parts:?}, the base is in {}", base.log.part_name());
    parts.len()
}

/// Small rounds, which travel inside the log.
async fn small_rounds(source: &mut Source, from: i64, until: i64) {
    for second in (from..until).step_by(5) {
        let write = Write { disk: 1, first: (second % 200) as u32, blocks: 1, byte: Some(second as u8 | 1) };
        source.record(RecordKind::Exact, true, second, &[vec![write]]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_shortened_to_the_oldest_base_and_what_is_offered_reads_bit_for_bit() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    rounds(&mut source, 5, 20).await;
    let mut parts = Vec::new();
    for second in (20..600).step_by(5) {
        // Several process servers, one after the other.
        if second % 100 == 20 {
            source.next_epoch_with_parts_of(4).await;
        }
        small_rounds(&mut source, second, second + 5).await;
        catch_up(&mut applier).await;
        if second >= 100 {
            parts.push(log_is_short(&source, &mut applier).await);
        }
    }
    assert!(parts.iter().all(|parts| *parts <= 6), "{parts:?}");
    let figures = applier.status().borrow().figures;
    assert!(figures.deleted_log_parts > 20 && figures.deleted_log_bytes > 0, "{figures:?}");
    assert!(offered_is_right(&source).await > 12);
    // Whoever reads it from its first record is told, and not that there is nothing.
    let mut reader = LogReader::from_start(&vault, &source.server, &source.env);
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::Shortened { .. }), "{error}");
    // The next process server finds its end.
    let before = source.log.state().last_number;
    source.next_epoch_with_parts_of(4).await;
    assert_eq!(source.log.state().last_number, before);
    let mut summary = inventory_of(&source).await;
    // This server's name is not in the vault, and its older snapshots are compared with nothing.
    let damage = summary.findings.iter().filter(|finding| finding.severity != Severity::Note);
    let damage: Vec<_> = damage.filter(|finding| !finding.blob.ends_with("server.json")).collect();
    assert!(damage.is_empty(), "{damage:?}");
    assert!(summary.snapshots.compared >= 3, "{:?}", summary.snapshots);
    // The part that says which one is alive is missed, although no reader needs it.
    let begins = listed(&source).await.log_begins.unwrap();
    source.store.delete(&begins.blob(&source.server), None).await.unwrap();
    summary = inventory_of(&source).await;
    assert!(summary.findings.iter().any(|finding| finding.to_string().contains("log begins with this part")));
}

/// Bytes of all blobs under a prefix, as they are.
async fn listed_bytes(source: &Source, prefix: &str) -> u64 {
    let page = source.store.list(prefix, false, None).await.unwrap();
    page.blobs.iter().map(|blob| blob.length).sum()
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_counted_and_a_server_that_writes_nothing_is_not_looked_at() {
    let mut source = Source::new(&SIZES).await;
    let counted = Faulty::before(Arc::new(source.store.clone()), Fault::RequestLost, 1 << 40);
    let vault = Vault { store: counted.clone(), cache: counted.clone(), ..source.vault.clone() };
    let mut applier = applier(&source, &vault);
    follow(&mut source, &mut applier, 5, 200).await;
    let status = applier.status();
    let stored = async |source: &Source| {
        let stored = status.borrow().storage.unwrap().stored;
        let journal = listed_bytes(source, &layout::journal_prefix(&source.server)).await;
        let log = listed_bytes(source, &layout::log_prefix(&source.server)).await;
        assert_eq!((stored.journal_bytes, stored.log_bytes), (journal, log));
        assert_eq!(stored.snapshots, snapshots(source).await as u64);
        // Of two disks of 3 MiB only what was written, and the footers.
        assert!((1 << 19..3 << 20).contains(&stored.seed_disk_bytes), "{stored:?}");
        stored
    };
    let before = stored(&source).await;
    let left = counted.left();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(applier.step().await.unwrap(), Step::CaughtUp);
    }
    assert_eq!(left - counted.left(), 100, "one look at the log each time, and nothing else");
    rounds(&mut source, 200, 205).await;
    catch_up(&mut applier).await;
    assert_ne!(stored(&source).await, before);
}

async fn inventory_of(source: &Source) -> ServerReport {
    let servers = inventory::servers(&source.vault, &Patience::new(source.env.clone())).await.unwrap();
    let held = servers.into_iter().find(|held| held.id == source.server).unwrap();
    verify::server(&source.vault, &held, &source.env, true, |_| {}).await.unwrap()
}

/// An applier that had nothing but the catalogue and a log that begins later.
#[tokio::test(start_paused = true)]
async fn a_shortened_log_is_applied_again_from_a_listed_point() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut first = applier(&source, &vault);
    rounds(&mut source, 5, 20).await;
    source.next_epoch_with_parts_of(4).await;
    for second in (20..200).step_by(5) {
        small_rounds(&mut source, second, second + 5).await;
        catch_up(&mut first).await;
    }
    log_is_short(&source, &mut first).await;
    source.store.delete(&layout::catalogue(&source.server, "position.json"), None).await.unwrap();
    small_rounds(&mut source, 200, 230).await;
    catch_up(&mut applier(&source, &vault)).await;
    offered_is_right(&source).await;
    for slot in 1..=2 {
        assert!(support::same_disk(&source.seed(slot, None).await, &source.images[&slot]));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_goes_and_what_is_offered_reads_bit_for_bit() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    follow(&mut source, &mut applier, 5, 400).await;
    let listed = listed(&source).await;
    let newest = listed.points.last().unwrap().t0_micros / 1_000_000;
    let collected = listed.collected.unwrap();
    let begins = listed.points.iter().find(|point| point.id() == collected).unwrap();
    assert_eq!(newest - begins.t0_micros / 1_000_000, 30);
    assert!(listed.points.iter().all(|point| newest - point.t0_micros / 1_000_000 <= 100));
    assert_eq!(snapshots(&source).await, listed.points.len() * 2);
    assert_eq!(segments(&source).await.first(), Some(&(collected.number.0 + 1)));
    assert!(offered_is_right(&source).await > 12);
    let status = applier.status().borrow().clone();
    assert_eq!(status.collect_error, "");
    assert!(status.figures.deleted_segments > 100 && status.figures.deleted_snapshots > 40, "{status:?}");
    assert_eq!(status.journal_begins_micros, begins.t0_micros);
}

#[tokio::test(start_paused = true)]
async fn a_point_that_was_collected_is_refused_with_what_is_still_there() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    follow(&mut source, &mut applier, 5, 300).await;
    let error = open(&source, PointSelector::Number(4)).await.unwrap_err().to_string();
    assert!(
        error.contains("record 4 of server") && error.contains("retention has deleted the journal"),
        "{error}"
    );
    assert!(error.contains("every instant from 1970") && error.contains("journalRetention"), "{error}");
    let at = PointSelector::At(lifeboat_replication::env::Micros(1));
    let error = open(&source, at).await.unwrap_err().to_string();
    assert!(error.contains("cannot be recovered any more"), "{error}");
    // Between two snapshots from before the journal: the older one.
    let listed = listed(&source).await;
    let old = listed.points.iter().rfind(|point| !listed.is_base(point)).unwrap();
    let after = PointSelector::At(lifeboat_replication::env::Micros(old.t0_micros + 6_000_000));
    assert_eq!(open(&source, after).await.unwrap().point().number, old.number);
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_nothing_is_ever_deleted() {
    let mut source = Source::new(&SIZES).await;
    let options = Options { point_interval: Duration::from_secs(10), ..Options::default() };
    let mut applier = Applier::new(source.vault.clone(), source.server.clone(), source.env.clone(), options);
    follow(&mut source, &mut applier, 5, 400).await;
    assert_eq!(offered_is_right(&source).await, source.points.len());
    assert_eq!(segments(&source).await.len(), source.points.len());
}

#[tokio::test(start_paused = true)]
async fn a_pinned_point_is_kept_until_its_reader_is_gone() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    source.next_epoch_with_parts_of(3).await;
    follow(&mut source, &mut applier, 5, 100).await;
    let held_for = Duration::from_secs(60);
    let wanted = source.points.keys().rev().nth(5).copied().unwrap();
    let take = |run: &'static str| {
        Hold::take(&vault, &source.server, &source.env, PointSelector::Number(wanted), run, held_for)
    };
    let (found, hold) = take("run-1").await.unwrap();
    let base = found.base.as_ref().unwrap().number;
    assert!(base < wanted);
    let options = IndexOptions { cache_bytes: 1 };
    let index = BlockIndex::of(&vault, &source.server, &source.env, found, &options).await.unwrap();
    follow(&mut source, &mut applier, 100, 500).await;
    assert!(listed(&source).await.collected.unwrap().number.0 > wanted);
    assert!(read(&index).await == source.points[&wanted], "the pin did not hold");
    assert!(applier.status().borrow().figures.pinned_blobs > 0);

    // A restart of the reader finds its base again, although the journal begins later by now.
    let take =
        Hold::take(&vault, &source.server, &source.env, PointSelector::Number(wanted), "run-1", held_for);
    let (found, _again) = take.await.unwrap();
    assert!(found.under_pin && found.base.as_ref().unwrap().number == base);

    tokio::time::sleep(LEASE_TERM).await;
    catch_up(&mut applier).await;
    let part = found.base.as_ref().unwrap().log.part_name().blob(&source.server);
    source.store.properties(&part, None).await.unwrap();
    hold.release().await;
    follow(&mut source, &mut applier, 500, 520).await;
    source.store.properties(&part, None).await.unwrap_err();
    log_is_short(&source, &mut applier).await;
    let error = open(&source, PointSelector::Number(wanted)).await.unwrap_err().to_string();
    assert!(error.contains("cannot be recovered any more"), "{error}");
    assert_eq!(
        segments(&source).await.first().copied(),
        Some(listed(&source).await.collected.unwrap().number.0 + 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_nobody_renews_expires_and_goes() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    follow(&mut source, &mut applier, 5, 100).await;
    let held_for = Duration::from_secs(60);
    let between_points = PointSelector::Number(source.points.keys().rev().nth(5).copied().unwrap());
    let taken = Hold::take(&vault, &source.server, &source.env, between_points, "run", held_for).await;
    drop(taken.unwrap());
    follow(&mut source, &mut applier, 100, 400).await;
    assert!(applier.status().borrow().figures.pinned_blobs > 0);
    tokio::time::sleep(held_for).await;
    follow(&mut source, &mut applier, 400, 420).await;
    assert_eq!(applier.status().borrow().figures.pinned_blobs, 0);
    tokio::time::sleep(held_for).await;
    follow(&mut source, &mut applier, 420, 430).await;
    let left = source.store.list(&layout::pins_prefix(&source.server), false, None).await.unwrap();
    assert!(left.blobs.is_empty(), "{left:?}");
}

/// An upload whose record was never committed, because its writer was fenced.
#[tokio::test(start_paused = true)]
async fn a_segment_that_no_record_names_goes_with_its_number() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut applier = applier(&source, &vault);
    let orphan = |record| layout::segment(&source.server, Epoch(1), RecordNumber(record), "dead", 7);
    let (old, young) = (orphan(5), orphan(1000));
    for name in [&old, &young] {
        source.vault.cache.put(name, "x".into(), &PutCondition::IfAbsent).await.unwrap();
    }
    follow(&mut source, &mut applier, 5, 200).await;
    source.vault.cache.get(&old, None, None).await.unwrap_err();
    source.vault.cache.get(&young, None, None).await.unwrap();
}

/// A crash at any call, then another applier: what is offered stays right, and everything that is to go goes.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_call_of_retention_is_made_good() {
    let faults = [Fault::Gone, Fault::DoneThenGone, Fault::AnswerLost, Fault::RequestLost];
    // Every fault at every eighth call, each beginning at another one.
    for (first, fault) in (0..).zip(faults) {
        for calls in (2 * first..).step_by(8) {
            let mut source = Source::new(&SIZES).await;
            let vault = source.vault.clone();
            // Everything applied, with points, and nothing collected yet.
            let options = Options { point_interval: Duration::from_secs(10), ..Options::default() };
            let plain = Applier::new(vault.clone(), source.server.clone(), source.env.clone(), options);
            source.next_epoch_with_parts_of(3).await;
            follow(&mut source, &mut { plain }, 5, 80).await;
            let faulty = Faulty::before(Arc::new(source.store.clone()), fault, calls);
            let broken = Vault { store: faulty.clone(), cache: faulty.clone(), ..vault.clone() };
            let mut first = applier(&source, &broken);
            for _ in 0..4 {
                let _ = first.step().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            offered_is_right(&source).await;
            let struck = faulty.struck();
            // Whatever was deleted, the log's end is found.
            let before = source.log.state().last_number;
            source.next_epoch_with_parts_of(3).await;
            assert_eq!(source.log.state().last_number, before, "{fault:?} at call {calls}");
            catch_up(&mut applier(&source, &vault)).await;
            let listed = listed(&source).await;
            assert_eq!(snapshots(&source).await, listed.points.len() * 2, "{fault:?} at call {calls}");
            assert_eq!(segments(&source).await.first(), Some(&(listed.collected.unwrap().number.0 + 1)));
            log_is_short(&source, &mut applier(&source, &vault)).await;
            offered_is_right(&source).await;
            if !struck {
                break;
            }
        }
    }
}

/// Seed disks that fell behind are brought up to date from a listed point, since the log's beginning is collected.
#[tokio::test(start_paused = true)]
async fn without_a_position_it_goes_on_from_the_newest_point() {
    let mut source = Source::new(&SIZES).await;
    let vault = source.vault.clone();
    let mut first = applier(&source, &vault);
    follow(&mut source, &mut first, 5, 200).await;
    source.store.delete(&layout::catalogue(&source.server, "position.json"), None).await.unwrap();
    rounds(&mut source, 200, 230).await;
    catch_up(&mut applier(&source, &vault)).await;
    offered_is_right(&source).await;
    for slot in 1..=2 {
        assert!(support::same_disk(&source.seed(slot, None).await, &source.images[&slot]));
        let name = layout::seed_disk(&source.server, &support::disk_id(slot));
        source.store.delete(&name, None).await.unwrap();
    }
    // The seed disks themselves are gone, with their snapshots: that cannot be made good, and is said.
    rounds(&mut source, 230, 240).await;
    let mut last = applier(&source, &vault);
    for _ in 0..4 {
        let _ = last.step().await;
    }
    let error = last.status().borrow().error.clone();
    assert!(error.contains("restore them from the store's soft-delete"), "{error}");
}
