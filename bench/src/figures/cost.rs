//! What the store would bill: operations and bytes a server-day, idle and busy, with one server on its own.

use std::{thread::sleep, time::Duration};

use lifeboat_tests::rig::{Site, SiteOptions, point};

use crate::{
    free_store::FreeStore,
    load::{Fio, zero_disk},
    report::Figure,
};

const DISK_MIB: u64 = 256;
const DAY: f64 = 86_400.0;
/// Looks at a log that stands still become rarer for some two minutes; leases and lists have periods of up to a minute.
const IDLE: Phase = Phase { settle: Duration::from_secs(150), measure: Duration::from_secs(180) };
/// As many rounds as show what one costs.
const BUSY: Phase = Phase { settle: Duration::from_secs(30), measure: Duration::from_secs(90) };

struct Phase {
    settle: Duration,
    measure: Duration,
}

pub fn measure(_repeat: usize) -> Vec<Figure> {
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "cost",
        store: Some(store.address.clone()),
        round_interval: Duration::from_secs(15),
        point_interval: Duration::from_secs(300),
        default_pace: true,
        ..SiteOptions::default()
    };
    let site = Site::new(&options, vec![zero_disk(DISK_MIB)]);
    site.wait_for("the first copy ends", |records| point(records).is_some());
    let idle = a_day(&store, &IDLE);
    let disk = &site.servers[0].disk;
    let time = BUSY.settle + BUSY.measure * 2;
    let churn =
        Fio { disk, block_kib: 16, depth: 4, kib_per_second: Some(1 << 10), skewed: false, time }.start();
    let busy = a_day(&store, &BUSY);
    drop(churn);
    let what = "requests to the store a server-day (process server and applier with one server, rounds of 15 s, points of 5 min), from three minutes idle or a minute and a half busy";
    vec![
        Figure::new("store_operations_day_idle", what, "", &[idle.0])
            .beside(format!("{:.1} MiB sent a day", idle.1)),
        Figure::new("store_operations_day_busy", what, "", &[busy.0])
            .beside(format!("1 MiB/s of 16 KiB random writes; {:.0} GiB sent a day", busy.1 / 1024.0)),
    ]
}

/// Requests and MiB sent in a day.
fn a_day(store: &FreeStore, phase: &Phase) -> (f64, f64) {
    sleep(phase.settle);
    let before = store.requests();
    sleep(phase.measure);
    let after = store.requests();
    let scale = DAY / phase.measure.as_secs_f64();
    let mib = (after.1 - before.1) as f64 / f64::from(1 << 20);
    ((after.0 - before.0) as f64 * scale, mib * scale)
}
