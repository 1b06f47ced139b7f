//! How long it takes to open a point, by how much journal lies between it and the newest snapshot before it.

use std::time::{Duration, Instant};

use lifeboat_recovery::{IndexFigures, PointSelector};
use lifeboat_tests::rig::{Site, SiteOptions, point};

use crate::{
    load::{Fio, zero_disk},
    report::Figure,
};

const DISK_MIB: u64 = 256;
const JOURNALS: [usize; 3] = [10, 100, 300];

pub fn measure(repeat: usize) -> Vec<Figure> {
    let options = SiteOptions {
        name: "open",
        // As quick as rounds get, for a journal of many records in a short time.
        round_interval: Duration::from_millis(100),
        point_interval: Duration::from_secs(3600),
        ..SiteOptions::default()
    };
    let site = Site::new(&options, vec![zero_disk(DISK_MIB)]);
    let first = site.wait_for("the first copy ends", |records| point(records).is_some()).len();
    let fio = Fio {
        disk: &site.servers[0].disk,
        block_kib: 16,
        depth: 4,
        kib_per_second: Some(4 << 10),
        skewed: false,
        time: Duration::from_secs(300),
    };
    let churn = fio.start();
    let records = site.wait_for("a long journal", |records| {
        records.len() > first + JOURNALS[2] && point(records).is_some()
    });
    drop(churn);
    JOURNALS
        .into_iter()
        .filter_map(|journal| {
            let reached = &records[..records.len().min(first + journal)];
            let newest = (0..reached.len()).rev().find_map(|end| point(&reached[..=end]))?;
            let mut fetched = IndexFigures::default();
            let samples: Vec<f64> = (0..repeat)
                .map(|_| {
                    let began = Instant::now();
                    let index = site.open(PointSelector::Number(newest.number));
                    let elapsed = began.elapsed().as_secs_f64();
                    fetched = index.figures();
                    elapsed
                })
                .collect();
            let name = format!("open_seconds_journal_{journal:03}");
            let what = "time to open a point over Azurite so many records after its base snapshot (4 MiB/s of 16 KiB random writes)";
            let kib = fetched.fetched_bytes / 1024;
            let beside = format!("{} tables of segments fetched, {kib} KiB", fetched.fetches);
            Some(Figure::new(name, what, "s", &samples).beside(beside))
        })
        .collect()
}
