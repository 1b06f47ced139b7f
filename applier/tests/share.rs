//! Appliers that share servers by leases: who has which, and that seed disks and points are right whenever one dies.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lifeboat_applier::{
    core::{
        Limits, Options,
        share::{ShareOptions, Sharer},
    },
    edge::{board::Board, fleet::Fleet},
};
use lifeboat_replication::{
    catalogue::{self, Points, Position},
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    store::{BlobStore, LeaseId, LeaseState, PutCondition, model::ModelStore},
    vault::{Vault, layout},
    wire::v1::RecordKind,
};
use support::{
    Source, Write,
    faulty::{Fault, Faulty},
    same_disk,
    sums::known_blocks,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

const MIB: u64 = 1 << 20;
const TERM: Duration = Duration::from_secs(60);
/// A round of every applier, and a bit.
const ROUND: Duration = Duration::from_secs(11);

fn vault(store: &ModelStore) -> Vault {
    let store = Arc::new(store.clone());
    let keys = Arc::new(DataKeys::generate(&*Env::system().entropy));
    Vault { store: store.clone(), cache: store, keys, id: "test".to_owned() }
}

fn share(number: u8) -> ShareOptions {
    let identity = LeaseId(ServerId::from_random([number; 16]).to_string());
    ShareOptions { name: format!("applier-{number}"), identity, term: TERM }
}

fn sharer(vault: &Vault, number: u8) -> Sharer {
    Sharer::new(vault.clone(), Env::system(), share(number))
}

fn servers(count: u8) -> BTreeSet<ServerId> {
    (100..100 + count).map(|number| ServerId::from_random([number; 16])).collect()
}

fn held(sharer: &Sharer) -> BTreeSet<ServerId> {
    sharer.held().map(|(server, _)| server.clone()).collect()
}

/// Rounds of these appliers, in turn.
async fn rounds(count: usize, appliers: &mut [&mut Sharer], wanted: &BTreeSet<ServerId>) {
    for _ in 0..count {
        for applier in &mut *appliers {
            applier.round(Some(wanted), &BTreeSet::new()).await.unwrap();
        }
        sleep(TERM / 6).await;
    }
}

fn counts(appliers: &[&Sharer]) -> Vec<usize> {
    appliers.iter().map(|applier| held(applier).len()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_its_share_and_what_one_leaves_goes_to_the_others_at_once() {
    let (store, wanted) = (ModelStore::new(), servers(5));
    let vault = vault(&store);
    let (mut first, mut second) = (sharer(&vault, 1), sharer(&vault, 2));
    rounds(1, &mut [&mut first], &wanted).await;
    assert_eq!(counts(&[&first]), [5], "nobody else is there");
    rounds(3, &mut [&mut first, &mut second], &wanted).await;
    assert_eq!(counts(&[&first, &second]), [3, 2]);
    let before = held(&second);
    rounds(20, &mut [&mut first, &mut second], &wanted).await;
    assert_eq!(held(&second), before, "nothing moves without need");
    first.leave().await;
    rounds(1, &mut [&mut second], &wanted).await;
    assert_eq!(counts(&[&second]), [5]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_ones_servers_are_taken_when_its_leases_have_run_out_and_its_announcement_goes() {
    let (store, wanted) = (ModelStore::new(), servers(4));
    let vault = vault(&store);
    let (mut first, mut second) = (sharer(&vault, 1), sharer(&vault, 2));
    rounds(3, &mut [&mut first, &mut second], &wanted).await;
    let died = Instant::now();
    drop(first);
    while counts(&[&second]) != [4] {
        rounds(1, &mut [&mut second], &wanted).await;
        assert!(died.elapsed() < TERM * 2, "{:?}", held(&second));
    }
    // It renewed them after half of their term, in rounds that are a sixth of it apart.
    assert!(died.elapsed() >= TERM / 3, "its leases had not run out");
    rounds(12, &mut [&mut second], &wanted).await;
    let announced = store.list(layout::APPLIERS_PREFIX, false, None).await.unwrap().blobs;
    assert_eq!(announced.len(), 1, "{announced:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_with_its_identity_goes_on_with_its_own_leases_at_once() {
    let (store, wanted) = (ModelStore::new(), servers(3));
    let vault = vault(&store);
    let mut first = sharer(&vault, 1);
    rounds(1, &mut [&mut first], &wanted).await;
    drop(first);
    let (mut again, mut stranger) = (sharer(&vault, 1), sharer(&vault, 2));
    rounds(1, &mut [&mut stranger], &wanted).await;
    assert_eq!(counts(&[&stranger]), [0]);
    rounds(1, &mut [&mut again], &wanted).await;
    assert!(!held(&again).is_empty());
}

/// A tenure ends by itself when its lease may have run out, even if nobody makes a round any more; and not before.
#[tokio::test(start_paused = true)]
async fn a_tenure_ends_when_its_lease_may_have_run_out() {
    let (store, wanted) = (ModelStore::new(), servers(1));
    let faulty = Faulty::before(Arc::new(store.clone()), Fault::Away(TERM * 4), 8);
    let vault = Vault { store: faulty.clone(), ..vault(&store) };
    let mut applier = sharer(&vault, 1);
    applier.round(Some(&wanted), &BTreeSet::new()).await.unwrap();
    let taken = Instant::now();
    let tenure = applier.held().next().unwrap().1;
    let over = tokio::spawn(tenure.over());
    while !over.is_finished() {
        sleep(Duration::from_secs(5)).await;
        let _ = applier.round(Some(&wanted), &BTreeSet::new()).await;
    }
    let lasted = taken.elapsed();
    assert!(faulty.struck() && lasted >= TERM && lasted < TERM + TERM, "{lasted:?}");
    assert!(held(&applier).is_empty());
    sleep(TERM * 4).await;
    applier.round(Some(&wanted), &BTreeSet::new()).await.unwrap();
    assert_eq!(counts(&[&applier]), [1], "the store is back");
}

/// Somebody breaks the lease and takes it, as a person with the store's tools may.
#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_has_taken_is_given_up_with_the_next_renewal() {
    let (store, wanted) = (ModelStore::new(), servers(1));
    let mut applier = sharer(&vault(&store), 1);
    rounds(1, &mut [&mut applier], &wanted).await;
    let blob = layout::apply_lease(wanted.first().unwrap());
    store.break_lease(&blob).await.unwrap();
    let other = LeaseId(ServerId::from_random([9; 16]).to_string());
    store.acquire_lease(&blob, &other, TERM).await.unwrap();
    sleep(TERM / 2).await;
    rounds(1, &mut [&mut applier], &wanted).await;
    assert_eq!(counts(&[&applier]), [0]);
}

/// The operator of one cluster asks for a server that the vault does not name yet.
#[tokio::test(start_paused = true)]
async fn what_only_one_of_them_is_asked_for_is_taken_by_that_one() {
    let (store, wanted) = (ModelStore::new(), servers(2));
    let vault = vault(&store);
    let (mut first, mut second) = (sharer(&vault, 1), sharer(&vault, 2));
    rounds(3, &mut [&mut first, &mut second], &wanted).await;
    let asked = BTreeSet::from([ServerId::from_random([200; 16])]);
    for _ in 0..3 {
        first.round(Some(&wanted), &BTreeSet::new()).await.unwrap();
        second.round(Some(&wanted), &asked).await.unwrap();
    }
    assert_eq!(counts(&[&first, &second]), [1, 2]);
}

/// Leases that are renewed cost what the module says: a server that nobody writes to included.
#[tokio::test(start_paused = true)]
async fn leases_cost_what_they_are_said_to() {
    let (store, wanted) = (ModelStore::new(), servers(10));
    let faulty = Faulty::before(Arc::new(store.clone()), Fault::Gone, 1 << 40);
    let vault = Vault { store: faulty.clone(), ..vault(&store) };
    let mut applier = sharer(&vault, 1);
    rounds(6, &mut [&mut applier], &wanted).await;
    let before = faulty.left();
    rounds(6 * 60, &mut [&mut applier], &wanted).await;
    let an_hour = before - faulty.left();
    // 10 leases and an announcement every 30 s, and a list, since nobody else is there.
    assert_eq!(an_hour, 11 * 120 + 120);
}

// Whole programs without their ports, with a log to apply.

fn fleet(vault: &Vault, number: u8) -> Fleet {
    let limits = Limits { records: 2, ..Limits::default() };
    let options = Options { point_interval: Duration::from_secs(3), limits, ..Options::default() };
    Fleet::new(vault.clone(), Env::system(), options, share(number), Board::default())
}

/// Dropped, it is as if it had been killed.
struct Running(JoinHandle<()>);

impl Running {
    fn start(vault: &Vault, number: u8) -> Self {
        let mut fleet = fleet(vault, number);
        Self(tokio::spawn(async move { fleet.run().await }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server that the vault names, with a copy in two records and some rounds.
async fn written() -> Source {
    let store = ModelStore::new();
    let vault = vault(&store);
    let server = vault.adopt_server("default", "db-1", &Env::system()).await.unwrap().id;
    let mut source = Source::of(store, vault, server, &[MIB + 512, 2 * MIB]).await;
    let write = |disk, first, blocks, byte| vec![Write { disk, first, blocks, byte: Some(byte) }];
    source.record(RecordKind::Copy, false, 0, &[write(1, 0, 200, 1), write(2, 0, 512, 2)]).await;
    source.record(RecordKind::Copy, false, 0, &[write(1, 200, 57, 3)]).await;
    for round in 0..5_u8 {
        if round == 3 {
            source.next_epoch().await;
        }
        let first = u32::from(round) * 3;
        let groups = [write(1, first, 5, 10 + round), write(2, 100, 3, 20 + round)];
        source.record(RecordKind::Exact, true, i64::from(round) * 2, &groups).await;
    }
    source
}

async fn applied(source: &Source) -> u64 {
    let read = catalogue::read::<Position>(&source.vault, &source.server).await.unwrap();
    read.map_or(0, |(position, _)| position.log.last_number.0)
}

async fn wait_for(source: &Source, number: u64) -> Duration {
    let began = Instant::now();
    while applied(source).await < number {
        sleep(Duration::from_millis(500)).await;
        assert!(began.elapsed() < TERM * 6, "it stands at {}", applied(source).await);
    }
    began.elapsed()
}

/// Every listed point is the server's disks at its instant, and the seed disks are what they are now.
async fn check(source: &Source) {
    let points = catalogue::read::<Points>(&source.vault, &source.server).await.unwrap().unwrap().0.points;
    assert!(!points.is_empty());
    for point in points {
        for disk in &point.disks {
            let seed = source.seed(disk.slot, Some(&disk.snapshot)).await;
            assert!(same_disk(&seed, &source.points[&point.number][&disk.slot]), "point {}", point.number);
        }
    }
    for (slot, image) in &source.images {
        assert!(same_disk(&source.seed(*slot, None).await, image), "seed disk {slot} differs");
        assert_eq!(known_blocks(source, *slot).await, source.written[slot].len(), "checksums of {slot}");
    }
}

/// Wherever among its calls an applier dies, or is cut off from the store until its leases have run out, another one
/// goes on, and all is bit for bit the same; the one that was cut off changes nothing when it is back.
#[tokio::test(start_paused = true)]
async fn hand_over_at_any_call() {
    // A killed program's last call is done or not: as if it had died one call later or earlier.
    for (fault, stride) in [(Fault::Gone, 1), (Fault::Away(TERM * 3 / 2), 3)] {
        let mut calls = 0;
        loop {
            let mut source = written().await;
            let faulty = Faulty::before(Arc::new(source.store.clone()), fault, calls);
            let broken = Vault { store: faulty.clone(), cache: faulty.clone(), ..source.vault.clone() };
            let first = Running::start(&broken, 1);
            sleep(Duration::from_secs(1)).await;
            let second = Running::start(&source.vault, 2);
            wait_for(&source, 7).await;
            let write = vec![Write { disk: 1, first: 0, blocks: 257, byte: Some(99) }];
            let last = source.record(RecordKind::Exact, true, 30, &[write]).await;
            wait_for(&source, last).await;
            check(&source).await;
            // What was sent late, and whoever is back.
            sleep(TERM * 2).await;
            check(&source).await;
            let struck = faulty.struck();
            drop((first, second));
            if !struck || calls > 400 {
                break;
            }
            calls += stride;
        }
        assert!(calls > 60, "{fault:?}: only {calls} calls were made");
    }
}

#[tokio::test(start_paused = true)]
async fn an_orderly_stop_hands_over_within_a_round() {
    let mut source = written().await;
    let mut first = fleet(&source.vault, 1);
    tokio::select! {
        () = first.run() => panic!("it ended"),
        _ = wait_for(&source, 7) => {}
    }
    let _second = Running::start(&source.vault, 2);
    sleep(ROUND).await;
    tokio::select! {
        () = first.run() => panic!("it ended"),
        () = sleep(ROUND) => {}
    }
    let write = vec![Write { disk: 2, first: 7, blocks: 9, byte: Some(99) }];
    let last = source.record(RecordKind::Exact, true, 30, &[write]).await;
    first.leave().await;
    let took = wait_for(&source, last).await;
    assert!(took < ROUND, "{took:?}");
    check(&source).await;
    let lease = source.store.properties(&layout::apply_lease(&source.server), None).await.unwrap().lease;
    assert_eq!(lease, LeaseState::Leased);
}

/// A damaged announcement must leave no server to nobody.
#[tokio::test(start_paused = true)]
async fn a_damaged_announcement_keeps_nothing_from_being_applied() {
    let source = written().await;
    let name = layout::applier("somebody");
    source.store.put(&name, "{".into(), &PutCondition::Always).await.unwrap();
    let _only = Running::start(&source.vault, 1);
    wait_for(&source, 7).await;
    check(&source).await;
}
