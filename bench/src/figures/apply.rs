//! Applying a prepared log against ingesting the same, on the same Azurite.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_replication::catalogue::{self, Position};
use lifeboat_tests::rig::{Loop, Site, SiteOptions, run};

use crate::{
    load::mixed_disk,
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 512;
const LONGEST: Duration = Duration::from_secs(300);
/// Rare enough that looking costs the store nothing worth mentioning.
const LOOK: Duration = Duration::from_millis(100);

pub fn measure(repeat: usize) -> Vec<Figure> {
    let mut disk = mixed_disk(DISK_MIB);
    let (mut ratios, mut ingests, mut applies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let (ingest, apply);
        (disk, ingest, apply) = once(disk);
        ratios.push(apply.as_secs_f64() / ingest.as_secs_f64());
        ingests.push(DISK_MIB as f64 / ingest.as_secs_f64());
        applies.push(DISK_MIB as f64 / apply.as_secs_f64());
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    vec![
        Figure::new(
            "apply_over_ingest",
            "time to apply the log of a first copy of 512 MiB to a new seed disk, from the applier's start / time of that first copy, both with Azurite",
            "",
            &ratios,
        )
        .goal(Goal::AtMost(0.5))
        .beside(format!("ingest {:.0} MiB/s, apply {:.0} MiB/s of the disk", median(&ingests), median(&applies))),
    ]
}

/// The disk for the next time, the time of the first copy and that of applying it.
fn once(disk: Loop) -> (Loop, Duration, Duration) {
    let mut site =
        Site::new(&SiteOptions { name: "apply", spool_bytes: 1 << 30, ..SiteOptions::default() }, vec![disk]);
    // Nothing is applied while the log is made.
    site.applier.as_mut().unwrap().kill();
    let began = Instant::now();
    let last = loop {
        let records = site.records();
        if let Some(last) = records.last().filter(|record| record.complete) {
            break last.number;
        }
        assert!(began.elapsed() < LONGEST, "the copy does not end");
        sleep(LOOK);
    };
    let ingest = began.elapsed();
    let began = Instant::now();
    site.applier.as_mut().unwrap().start();
    let server = site.servers[0].id.clone();
    loop {
        let position = site.block_on(catalogue::read::<Position>(&site.vault, &server)).unwrap();
        if position.is_some_and(|(position, _)| position.log.last_number.0 >= last) {
            break;
        }
        assert!(began.elapsed() < LONGEST, "it is not applied");
        sleep(LOOK);
    }
    let apply = began.elapsed();
    let disk = site.into_disks().remove(0);
    run("blockdev", &["--flushbufs", disk.name()]);
    (disk, ingest, apply)
}
