//! A store that goes back in time, on real parts: agent with its kernel tracker, process server and applier as
//! programs, Azurite. It is put back to a copy, or killed (-9) again and again under load, after which Azurite has
//! forgotten seconds of what it had acknowledged. The agent had forgotten those blocks, so nobody sends them again by
//! himself: it has to be noticed, said with its reason, and mended by a resynchronization, until every sector is the
//! same. What was decided by chance comes from a printed seed (LIFEBOAT_FORGETFUL_SEED repeats it).
//!
//! Needs root, loop devices, fio and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{
    thread::sleep,
    time::{Duration, SystemTime},
};

use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{
    Load, Loop, Mounted, Random, Site, SiteOptions, assert_same, fill, now, point, run, sessions, settled,
};

const DISK_BYTES: u64 = 256 << 20;
const FILLED_BYTES: u64 = 48 << 20;
const KILLS: u64 = 3;

struct World {
    site: Site,
    load: Load,
    mounted: Mounted,
}

fn world(name: &'static str) -> World {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, "ext4");
    fill(&mounted.path().join("filled"), FILLED_BYTES);
    let load = Load::start(&mounted.path().join("written"));
    let site = Site::new(&SiteOptions { name, ..SiteOptions::default() }, vec![disk]);
    site.wait_for("the first copy ends", |records| point(records).is_some());
    World { site, load, mounted }
}

/// Waits for a point newer than now.
fn newer_point(site: &Site, what: &str) -> Vec<v1::Data> {
    let after = now();
    site.wait_for(what, |records| point(records).is_some_and(|point| point.t0_micros > after))
}

fn ends_right(World { site, load, mounted }: World) {
    load.stop();
    mounted.unmount();
    run("blockdev", &["--flushbufs", site.servers[0].disk.name()]);
    let records = settled(&site);
    assert_same(&site, &records);
}

/// Why sessions of the agent had to copy or to compare, one for each that had to.
fn reasons(site: &Site) -> Vec<String> {
    let log = site.servers[0].agent.log();
    sessions(&log).filter(|line| !line.contains(r#""full_copy":"""#)).map(str::to_owned).collect()
}

#[test]
fn a_store_that_is_put_back_is_noticed_and_mended() {
    let world = world("put-back");
    let site = &world.site;
    let store = site.store.as_ref().unwrap();
    store.back_up().unwrap();
    let records = newer_point(site, "a point after the copy was taken");
    let acknowledged = point(&records).unwrap().number;
    assert!(reasons(site).is_empty(), "{:?}", reasons(site));
    store.restore().unwrap();
    newer_point(site, "a point after the store was put back");
    println!("acknowledged up to record {acknowledged}; then {:?}", reasons(site));
    assert!(reasons(site).iter().any(|line| line.contains("JournalDamaged")), "{:?}", reasons(site));
    ends_right(world);
}

#[test]
fn a_store_that_is_killed_and_forgets_costs_nothing_that_is_not_mended() {
    let seed = std::env::var("LIFEBOAT_FORGETFUL_SEED").map_or(20_261_122, |seed| seed.parse().unwrap());
    println!("LIFEBOAT_FORGETFUL_SEED={seed}");
    let mut random = Random::new(seed);
    let world = world("killed-store");
    let store = world.site.store.as_ref().unwrap();
    let begun = SystemTime::now();
    world.site.wait("the store has saved its containers", || store.has_saved(begun).then_some(()));
    for kill in 1..=KILLS {
        sleep(Duration::from_millis(random.below(9000)));
        let last = world.site.records().last().map_or(0, |record| record.number);
        store.kill().unwrap();
        sleep(Duration::from_millis(random.below(2000)));
        store.resume().unwrap();
        let found = world.site.records().last().map_or(0, |record| record.number);
        println!("kill {kill}: record {last} was there, {found} is there after it");
        newer_point(&world.site, "a point after the kill");
    }
    println!("{} sessions had to compare or to copy", reasons(&world.site).len());
    ends_right(world);
}
