//! A resynchronization after tracking was lost: what travels, and how long it takes beside reading the disk once.

use std::{
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use lifeboat_replication::{env::Env, wire::v1};
use lifeboat_tests::rig::{Loop, Site, SiteOptions, different_blocks, now, point};

use crate::{
    free_store::FreeStore,
    load::mixed_disk,
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 1024;
const BLOCK: u64 = 4096;
/// 1 % of the blocks.
const CHANGED: u64 = DISK_MIB * 256 / 100;

pub fn measure(repeat: usize) -> Vec<Figure> {
    let (mut sent, mut times, mut readings, mut tooks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let store = FreeStore::start();
        let options = SiteOptions {
            name: "resync",
            store: Some(store.address.clone()),
            spool_bytes: 1 << 30,
            // What is measured is the comparison, not the wait for a round.
            round_interval: Duration::from_millis(100),
            ..SiteOptions::default()
        };
        let mut site = Site::new(&options, vec![mixed_disk(DISK_MIB)]);
        let records = site.wait_for("the first copy ends", |records| point(records).is_some());
        // The checksums to compare with are the applier's.
        let last = records.last().unwrap().number;
        let before = site.seed_disk(last);
        site.servers[0].agent.kill();
        site.servers[0].forget_marks();
        change(&site.servers[0].disk);
        let began = Instant::now();
        let after = site.servers[0].disk.content();
        let reading = began.elapsed().as_secs_f64();
        let changed = different_blocks(&before, &after) as u64 * BLOCK;
        drop((before, after));

        let (started, began) = (now(), Instant::now());
        site.servers[0].agent.start();
        let compared = |records: &[v1::Data]| point(records).is_some_and(|point| point.t0_micros > started);
        let records = site.wait_for("a point after the comparison", compared);
        let took = began.elapsed().as_secs_f64();
        let travelled: u64 =
            records.iter().filter(|record| record.number > last).map(|record| record.changed_bytes).sum();
        sent.push(travelled as f64 / changed as f64);
        times.push(took / reading);
        readings.push(reading);
        tooks.push(took);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    vec![
        Figure::new(
            "resync_sent_over_changed",
            "bytes of blocks sent / bytes changed, after tracking of a 1 GiB disk was lost and 1 % of its 4 KiB blocks had changed",
            "",
            &sent,
        )
        .goal(Goal::AtMost(1.2)),
        Figure::new(
            "resync_time_over_reading",
            "time from the agent's start to the next point in the vault (its connecting and a round of 100 ms included) / time to read the disk once",
            "",
            &times,
        )
        .goal(Goal::AtMost(1.1))
        .beside(format!("{:.2} s until the point, {:.2} s to read the disk", median(&tooks), median(&readings))),
    ]
}

fn change(disk: &Loop) {
    let file = disk.open(0);
    let entropy = Env::system().entropy;
    let mut block = vec![0; 4096];
    for _ in 0..CHANGED {
        entropy.fill(&mut block);
        let at = entropy.next_u64() % (DISK_MIB * 256);
        file.write_all_at(&block, at * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
}
