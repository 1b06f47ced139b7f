//! What replication costs the production workload: fio saturates a disk alone, with tracking, and with rounds.

use std::time::Duration;

use lifeboat_tests::rig::{Site, SiteOptions, point};

use crate::{
    free_store::FreeStore,
    load::{Fio, Written, zero_disk},
    report::{Figure, Goal},
};

const DISK_MIB: u64 = 256;
const TIME: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Protection {
    Off,
    /// The agent tracks; there is nobody to send rounds to.
    Tracking,
    /// A round a second.
    Replicating,
}

pub fn measure(repeat: usize) -> Vec<Figure> {
    let mut ratios: [Vec<f64>; 4] = Default::default();
    let (mut alone, mut rounds) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        let (off, _) = run(Protection::Off);
        let (tracking, _) = run(Protection::Tracking);
        let (replicating, made) = run(Protection::Replicating);
        alone.push(off.iops);
        rounds.push(made as f64);
        for (place, value) in [
            tracking.iops / off.iops,
            tracking.p99_micros / off.p99_micros,
            replicating.iops / off.iops,
            replicating.p99_micros / off.p99_micros,
        ]
        .into_iter()
        .enumerate()
        {
            ratios[place].push(value);
        }
    }
    let [tracking, tracking_p99, replicating, replicating_p99] = ratios;
    let median = |samples: &[f64]| crate::statistics::quantile(samples, 0.5).unwrap();
    let beside = format!("alone {:.0} writes a second", median(&alone));
    let replicated = format!(
        "{beside}; {:.0} records in {TIME:?}, all programs and the store on the same cores",
        median(&rounds)
    );
    vec![
        Figure::new(
            "workload_ratio_tracking",
            "IOPS of fio (4 KiB random writes, depth 32, a disk in memory) with tracking / without",
            "",
            &tracking,
        )
        .goal(Goal::AtLeast(0.95))
        .beside(beside),
        Figure::new(
            "workload_p99_ratio_tracking",
            "its p99 latency with tracking / without",
            "",
            &tracking_p99,
        ),
        Figure::new("workload_ratio", "IOPS with tracking and rounds of 1 s / without", "", &replicating)
            .beside(replicated),
        Figure::new(
            "workload_p99_ratio",
            "p99 latency with tracking and rounds / without",
            "",
            &replicating_p99,
        ),
    ]
}

/// Returns what fio measured, and the records committed meanwhile.
fn run(protection: Protection) -> (Written, usize) {
    let disk = zero_disk(DISK_MIB);
    let fio =
        |disk| Fio { disk, block_kib: 4, depth: 32, kib_per_second: None, skewed: false, time: TIME }.run();
    if protection == Protection::Off {
        return (fio(&disk), 0);
    }
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "workload",
        store: Some(store.address.clone()),
        spool_bytes: 1 << 30,
        applier: false,
        ..SiteOptions::default()
    };
    let mut site = Site::new(&options, vec![disk]);
    let before = site.wait_for("the first copy ends", |records| point(records).is_some()).len();
    if protection == Protection::Tracking {
        site.process_server.kill();
    }
    let written = fio(&site.servers[0].disk);
    (written, site.records().len() - before)
}
