//! A server whose kernel tells of no change: agent, process server and applier as programs on a real blob store, the
//! agent made to find changes by reading. Every sector is compared.
//!
//! Needs root and loop devices.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{fs::File, os::unix::fs::FileExt as _};

use lifeboat_tests::rig::{Loop, Random, Site, SiteOptions, assert_same, now, point};

const DISK_BYTES: u64 = 384 << 20;
const BLOCK: u64 = 4096;

fn change(disk: &File, random: &mut Random) {
    for _ in 0..500 {
        disk.write_all_at(&random.bytes(4096), random.below(DISK_BYTES / BLOCK) * BLOCK).unwrap();
    }
    disk.sync_all().unwrap();
}

fn point_after(site: &Site, what: &str, instant: i64) {
    let records =
        site.wait_for(what, |records| point(records).is_some_and(|point| point.t0_micros > instant));
    assert_same(site, &records);
}

#[test]
fn a_quiet_server_has_points_and_loses_nothing_over_a_kill() {
    let mut random = Random::new(21);
    let disk = Loop::new(DISK_BYTES);
    change(&disk.open(libc::O_RDWR), &mut random);
    let options = SiteOptions { name: "scan", tracking: "scan", ..SiteOptions::default() };
    let mut site = Site::new(&options, vec![disk]);
    point_after(&site, "a point after the copy", 0);

    let changed = now();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random);
    point_after(&site, "a point with what was found", changed);

    // What changes while nobody looks is found by a comparison with the vault.
    site.servers[0].agent.kill();
    let changed = now();
    change(&site.servers[0].disk.open(libc::O_RDWR), &mut random);
    site.servers[0].agent.start();
    point_after(&site, "a point after the comparison", changed);
    let log = site.servers[0].agent.log();
    assert!(log.contains("changes are found by reading the disks"), "{log}");
    assert!(log.contains("every disk is compared with the vault"), "{log}");
}
