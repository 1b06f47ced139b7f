//! Recovery points on real parts: disks under loads that know their own order, on ext4, xfs, btrfs, raw, and with
//! PostgreSQL; agents with their kernel tracker, process server and applier as programs, Azurite; every program killed
//! (-9) now and then. Of all points that the vault offers for each disk, some are drawn, served by `lifeboat-recovery
//! serve`, mounted read-write and judged: everything that was acknowledged by the point's instant is there, nothing
//! without what came before it, and the file system's own check finds nothing.
//!
//! The order check knows what every byte must be, so `fio --verify`, which knows only that a block is one that it has
//! written at some time, would add nothing.
//!
//! Choices are drawn from a seed, which is printed. `LIFEBOAT_POINTS_SEED` repeats them, `LIFEBOAT_POINTS_SECONDS`
//! makes the load longer and `LIFEBOAT_POINTS` draws more points of each disk.
//!
//! Needs root, loop devices, eBPF, /dev/fuse, qemu-storage-daemon and PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

mod points;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::Path,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use lifeboat_replication::{
    ids::ServerId,
    wire::v1::{self, RecordKind},
};
use lifeboat_tests::rig::{Loop, Offered, Random, Served, Site, SiteOptions, now, offered, point};
use points::{Workload, blocks, blocks::Blocks, files, files::Files, postgres, postgres::Postgres};

/// Up to so long a writer rests between two records.
const PAUSE: Duration = Duration::from_millis(40);
/// A lease can keep the next process server or applier waiting for up to 60 s, in which nothing is committed,
/// or no snapshot made: each of the two is killed once in this time.
const BETWEEN_KILLS_OF_HOLDERS: Duration = Duration::from_secs(60);

/// From the environment, or `default`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}: give a whole number"))
    })
}

/// Kills one program after the other for `long`, at random moments.
fn kill_now_and_then(site: &mut Site, random: &mut Random, long: Duration) {
    let began = Instant::now();
    let mut first = || Duration::from_millis(random.below(BETWEEN_KILLS_OF_HOLDERS.as_millis() as u64 / 2));
    let (mut process_server_due, mut applier_due) = (first(), first());
    let mut kills = BTreeMap::new();
    while began.elapsed() < long {
        sleep(Duration::from_millis(300 + random.below(2500)));
        let server = random.below(site.servers.len() as u64) as usize;
        let (name, program) = if began.elapsed() >= process_server_due {
            process_server_due += BETWEEN_KILLS_OF_HOLDERS;
            ("process server", &mut site.process_server)
        } else if began.elapsed() >= applier_due {
            applier_due += BETWEEN_KILLS_OF_HOLDERS;
            ("applier", site.applier.as_mut().unwrap())
        } else if random.below(4) == 0 {
            ("watchdog", &mut site.servers[server].watchdog)
        } else {
            ("agent", &mut site.servers[server].agent)
        };
        program.kill();
        sleep(Duration::from_millis(random.below(1500)));
        program.start();
        *kills.entry(name).or_insert(0) += 1;
    }
    println!("killed: {kills:?}");
}

/// The instants of a server's points, in its own clock, by their records' numbers.
fn instants(records: &[v1::Data]) -> BTreeMap<u64, i64> {
    let points = records.iter().filter(|record| record.complete && record.kind() == RecordKind::Exact);
    points.map(|record| (record.number, record.t0_micros - record.clock_offset_micros)).collect()
}

/// The newest record of the workload in a point of that number. All that was acknowledged by its instant must be
/// there. The instant is taken just before the true one, so something issued after it may be there as well, but nothing
/// that was issued after the next point's.
fn allowed(workload: &dyn Workload, instants: &BTreeMap<u64, i64>, number: u64) -> RangeInclusive<u64> {
    let next = instants.range(number + 1..).next().map_or(i64::MAX, |(_, instant)| *instant);
    let times = workload.times();
    times.acknowledged_by(instants[&number])..=times.issued_by(next)
}

/// Points with snapshots are fewer: up to a quarter is drawn from them, the others from those of the journal.
fn draw(random: &mut Random, offered: Vec<Offered>, wanted: usize) -> Vec<Offered> {
    let (snapshots, journal): (Vec<_>, Vec<_>) = offered.into_iter().partition(|point| point.snapshot);
    let mut drawn = random.draw(snapshots, wanted / 4);
    drawn.extend(random.draw(journal, wanted - drawn.len()));
    drawn.sort_by_key(|point| point.number);
    drawn
}

struct Judged {
    drawn: usize,
    snapshots: usize,
    kills: usize,
    /// Records at most that were issued after a point's instant and are in it.
    late: u64,
    took: Duration,
}

fn judge_some(
    workload: &dyn Workload,
    (vault, server): (&Path, &ServerId),
    records: &[v1::Data],
    drawn: Vec<Offered>,
    random: &mut Random,
) -> Judged {
    let began = Instant::now();
    let instants = instants(records);
    let mut judged = Judged {
        drawn: drawn.len(),
        snapshots: drawn.iter().filter(|point| point.snapshot).count(),
        kills: 0,
        late: 0,
        took: Duration::ZERO,
    };
    for Offered { number, .. } in drawn {
        let kill = random.below(3) == 0;
        let allowed = allowed(workload, &instants, number);
        // What a failure below is about.
        println!("{}: point {number}, records {allowed:?}, kill {kill}", workload.name());
        let mut served = Served::open(vault, server, number);
        let newest = workload.judge(&mut served, allowed, kill);
        let issued = workload.times().issued_by(instants[&number]);
        judged.late = judged.late.max(newest.saturating_sub(issued));
        judged.kills += usize::from(kill);
    }
    judged.took = began.elapsed();
    judged
}

#[test]
fn points_are_what_a_power_cut_at_their_instant_would_have_left() {
    let seed = setting("LIFEBOAT_POINTS_SEED", now().cast_unsigned());
    let load = Duration::from_secs(setting("LIFEBOAT_POINTS_SECONDS", 60));
    let wanted = setting("LIFEBOAT_POINTS", 20) as usize;
    println!("the choices of this run are repeated by LIFEBOAT_POINTS_SEED={seed}");
    let mut random = Random::part(seed, 1);

    let sizes =
        [files::DISK_BYTES, files::DISK_BYTES, files::DISK_BYTES, blocks::DISK_BYTES, postgres::DISK_BYTES];
    let disks: Vec<Loop> = sizes.into_iter().map(Loop::new).collect();
    let mut workloads: Vec<Box<dyn Workload>> = vec![
        Box::new(Files::start(&disks[0], "ext4", seed, PAUSE)),
        Box::new(Files::start(&disks[1], "xfs", seed, PAUSE)),
        Box::new(Files::start(&disks[2], "btrfs", seed, PAUSE)),
        Box::new(Blocks::start(&disks[3], seed, PAUSE)),
        Box::new(Postgres::start(&disks[4], seed, PAUSE)),
    ];
    let options =
        SiteOptions { name: "points", point_interval: Duration::from_secs(4), ..SiteOptions::default() };
    let mut site = Site::new(&options, disks);
    let servers: Vec<ServerId> = site.servers.iter().map(|server| server.id.clone()).collect();
    for server in &servers {
        site.wait("the first points", || point(&site.records_by(server)).map(|_| ()));
    }

    kill_now_and_then(&mut site, &mut random, load);
    for server in &servers {
        let enough = || instants(&site.records_by(server)).len() >= wanted * 5 / 4;
        site.wait("enough points to draw from", || enough().then_some(()));
    }
    for workload in &mut workloads {
        workload.stop();
    }

    let vault = site.vault_config();
    let jobs: Vec<_> = workloads
        .iter()
        .zip(&servers)
        .map(|(workload, server)| {
            let all = offered(&vault, server);
            let records = site.records_by(server);
            println!(
                "{}: {} records issued; {} points offered, {} with snapshots; {} rounds were not exact",
                workload.name(),
                workload.times().issued(),
                all.len(),
                all.iter().filter(|point| point.snapshot).count(),
                records
                    .iter()
                    .filter(|record| record.complete && record.kind() == RecordKind::Inexact)
                    .count(),
            );
            let drawn = draw(&mut random, all, wanted);
            assert_eq!(drawn.len(), wanted, "{}: too few points are offered", workload.name());
            (workload, server, records, drawn)
        })
        .collect();

    thread::scope(|scope| {
        for (number, (workload, server, records, drawn)) in jobs.into_iter().enumerate() {
            let mut random = Random::part(seed, 100 + number as u64);
            let vault = &vault;
            scope.spawn(move || {
                let judged = judge_some(&**workload, (vault, server), &records, drawn, &mut random);
                println!(
                    "{}: {} points, {} of them with snapshots, served, mounted and found right in {:?}; recovery \
                     killed {} times; at most {} records after a point's instant",
                    workload.name(),
                    judged.drawn,
                    judged.snapshots,
                    judged.took,
                    judged.kills,
                    judged.late,
                );
            });
        }
    });
}
