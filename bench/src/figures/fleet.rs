//! Memory and processor time of a process server with many servers: the agent's core over disks in memory, on the real
//! wire.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_tests::rig::{Site, SiteOptions};

use crate::{
    free_store::FreeStore,
    machines::Machines,
    processes::{cpu_time, memory_mib},
    report::{Figure, Goal},
};

const FLEETS: [usize; 3] = [1, 10, 100];
/// Changed over all servers in each second: 50 MiB.
const BLOCKS_A_SECOND: usize = 50 << 8;
const TIME: Duration = Duration::from_secs(15);

pub fn measure(_repeat: usize) -> Vec<Figure> {
    FLEETS.into_iter().flat_map(of).collect()
}

fn of(servers: usize) -> [Figure; 2] {
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "fleet",
        store: Some(store.address.clone()),
        spool_bytes: 2 << 30,
        applier: false,
        without_agent: servers,
        ..SiteOptions::default()
    };
    let site = Site::new(&options, Vec::new());
    let machines = Machines::start(&site);
    let (began, before) = (Instant::now(), cpu_time(&site.process_server));
    for second in 1..=u32::try_from(TIME.as_secs()).unwrap() {
        for server in 0..servers {
            machines.change(server, BLOCKS_A_SECOND / servers);
        }
        sleep((Duration::from_secs(1) * second).saturating_sub(began.elapsed()));
    }
    let cores = (cpu_time(&site.process_server) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let mib = memory_mib(&site.process_server).1;
    let records = site.records_by(&site.enrolled[0].0).len();
    let memory = Figure::new(
        format!("process_server_mib_{servers:03}_servers"),
        "resident memory of one process server at its highest, first copies of 64 MiB each and then a churn of 50 MiB/s over all servers",
        "MiB",
        &[mib],
    )
    .goal(Goal::AtMost(64.0 + 4.0 * servers as f64))
    .beside(format!("{:.2} MiB a server; {records} records of the first server", mib / servers as f64));
    let cores = Figure::new(
        format!("process_server_core_fraction_{servers:03}_servers"),
        "its processor time / time, at that churn of data that cannot be compressed and rounds of 1 s",
        "",
        &[cores],
    );
    [memory, cores]
}
