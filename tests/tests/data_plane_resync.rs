//! A resynchronization on real parts: agent with its kernel tracker, process server and applier as programs, Azurite, a
//! loop device. The agent is killed, its marks are removed, the disk changes; what travels then is measured, and every
//! sector compared.
//!
//! Needs root, loop devices and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{
    Loop, Random, Site, SiteOptions, assert_same, different_blocks, now, point, settled,
};

const DISK_BYTES: u64 = 512 << 20;
const BLOCK: usize = 4096;
/// One in a hundred blocks, all over the disk.
const CHANGES: usize = (DISK_BYTES as usize / BLOCK) / 100;

/// Data that cannot be compressed in the first half, zeros in the second.
fn fill(disk: &File, random: &mut Random) {
    for offset in (0..DISK_BYTES / 2).step_by(1 << 20) {
        disk.write_all_at(&random.bytes(1 << 20), offset).unwrap();
    }
    disk.sync_all().unwrap();
}

fn change(disk: &File, random: &mut Random, changes: usize) {
    for _ in 0..changes {
        let block = random.below(DISK_BYTES / BLOCK as u64);
        disk.write_all_at(&random.bytes(BLOCK), block * BLOCK as u64).unwrap();
    }
    disk.sync_all().unwrap();
}

fn sent(records: &[v1::Data], after: u64) -> u64 {
    records.iter().filter(|record| record.number > after).map(|record| record.changed_bytes).sum()
}

#[test]
fn after_marks_were_lost_only_what_differs_is_sent() {
    let mut random = Random::new(7);
    let disk = Loop::new(DISK_BYTES);
    fill(&disk.open(libc::O_RDWR), &mut random);
    let options = SiteOptions { name: "resync", ..SiteOptions::default() };
    let mut site = Site::new(&options, vec![disk]);
    let records = settled(&site);
    assert_same(&site, &records);

    // The disk changes while nobody looks.
    let last = records.last().unwrap().number;
    let before = site.servers[0].disk.content();
    site.servers[0].agent.kill();
    site.servers[0].forget_marks();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random, CHANGES);
    let after = site.servers[0].disk.content();
    let began = Instant::now();
    let _ = site.servers[0].disk.content();
    let reading = began.elapsed();
    let (started, began) = (now(), Instant::now());
    site.servers[0].agent.start();
    let records = site.wait_for("a point after the comparison", |records| {
        point(records).is_some_and(|point| point.t0_micros > started)
    });
    let took = began.elapsed();
    let changed = different_blocks(&before, &after) as u64 * BLOCK as u64;
    let sent_bytes = sent(&records, last);
    println!(
        "resynchronization: {changed} bytes changed, {sent_bytes} sent ({:.3}), {took:?} until a point; reading the disk \
         takes {reading:?}",
        sent_bytes as f64 / changed as f64
    );
    assert!(sent_bytes as f64 <= changed as f64 * 1.2, "{sent_bytes} bytes sent, {changed} changed");
    assert!(sent_bytes >= changed);
    assert_same(&site, &records);
    let log = site.servers[0].agent.log();
    assert!(log.contains("TrackingLost: the pinned tracking maps were removed"), "{log}");

    // Again, with the applier behind, writes going on, and the agent and the process server killed in the middle.
    site.applier.as_mut().unwrap().kill();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random, 200);
    settled(&site);
    site.servers[0].agent.kill();
    site.servers[0].forget_marks();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random, 300);
    for round in 0..4 {
        site.servers[0].agent.start();
        change(&site.servers[0].disk.open(libc::O_RDWR), &mut random, 40);
        std::thread::sleep(Duration::from_millis(300 + round * 500));
        if round == 2 {
            site.process_server.kill();
            site.process_server.start();
        }
        site.servers[0].agent.kill();
    }
    site.applier.as_mut().unwrap().start();
    site.servers[0].agent.start();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random, 40);
    let records = settled(&site);
    assert_same(&site, &records);
}
