//! What the store would bill: operations and bytes a server-day, idle and busy.

use std::{thread::sleep, time::Duration};

use lifeboat_tests::rig::{Site, SiteOptions, point};

use crate::{
    free_store::FreeStore,
    load::{Fio, Running, zero_disk},
    report::Figure,
};

const DISK_MIB: u64 = 256;
const TIME: Duration = Duration::from_secs(60);
const DAY: f64 = 86_400.0;

pub fn measure(_repeat: usize) -> Vec<Figure> {
    let [idle, busy] = [None, Some(1)].map(a_day);
    let what = "requests to the store a server-day (process server and applier, rounds of 15 s, points of 5 min), from one minute";
    vec![
        Figure::new("store_operations_day_idle", what, "", &[idle.0])
            .beside(format!("{:.1} MiB sent a day", idle.1)),
        Figure::new("store_operations_day_busy", what, "", &[busy.0])
            .beside(format!("1 MiB/s of 16 KiB random writes; {:.0} GiB sent a day", busy.1 / 1024.0)),
    ]
}

/// Requests and MiB sent in a day.
fn a_day(mib_per_second: Option<u32>) -> (f64, f64) {
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "cost",
        store: Some(store.address.clone()),
        round_interval: Duration::from_secs(15),
        point_interval: Duration::from_secs(300),
        ..SiteOptions::default()
    };
    let site = Site::new(&options, vec![zero_disk(DISK_MIB)]);
    site.wait_for("the first copy ends", |records| point(records).is_some());
    let disk = &site.servers[0].disk;
    let _churn: Option<Running> = mib_per_second.map(|rate| {
        Fio { disk, block_kib: 16, depth: 4, mib_per_second: Some(rate), time: TIME * 2 }.start()
    });
    sleep(Duration::from_secs(20));
    let before = store.requests();
    sleep(TIME);
    let after = store.requests();
    let scale = DAY / TIME.as_secs_f64();
    let mib = (after.1 - before.1) as f64 / f64::from(1 << 20);
    ((after.0 - before.0) as f64 * scale, mib * scale)
}
