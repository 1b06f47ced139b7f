//! Memory of a process server with many servers: the real agent over disks in memory and the real wire.

use std::{sync::Arc, thread::sleep, time::Duration};

use lifeboat_agent::{
    core::{Options, Parts, Replicator},
    edge::{NoFreezer, NoHooks},
    memory::Machine,
    net::dialler::Dialler,
    state::StateDir,
};
use lifeboat_replication::{env::Env, ids::DiskSlot};
use lifeboat_tests::rig::{Site, SiteOptions};
use tokio::sync::watch;

use crate::{
    free_store::FreeStore,
    processes::memory_mib,
    report::{Figure, Goal},
};

const FLEETS: [usize; 3] = [1, 10, 100];
/// Of each server: 64 MiB.
const DISK_BLOCKS: u32 = 16 << 10;
/// Changed over all servers in each second: 20 MiB.
const BLOCKS_A_SECOND: usize = 5 << 10;
const TIME: Duration = Duration::from_secs(15);

pub fn measure(_repeat: usize) -> Vec<Figure> {
    FLEETS
        .into_iter()
        .map(|servers| {
            let (mib, records) = highest(servers);
            let allowed = 64.0 + 4.0 * servers as f64;
            Figure::new(
                format!("process_server_mib_{servers:03}_servers"),
                "resident memory of one process server at its highest, first copies of 64 MiB each and then a churn of 20 MiB/s over all servers",
                "MiB",
                &[mib],
            )
            .goal(Goal::AtMost(allowed))
            .beside(format!("{:.2} MiB a server; {records} records of the first server", mib / servers as f64))
        })
        .collect()
}

/// MiB, and how many records the first server got through.
fn highest(servers: usize) -> (f64, usize) {
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let env = Env::system();
    let machines: Vec<Machine> = site
        .enrolled
        .iter()
        .map(|(_, state)| {
            let machine = Machine::new(env.wall.clone(), &[DISK_BLOCKS], 0);
            for block in 0..DISK_BLOCKS {
                machine.write((DiskSlot(1), block), u64::from(block) + 1);
            }
            let identity = StateDir::new(state).load().unwrap();
            let server = identity.server.clone();
            let (sender, identity) = watch::channel(identity);
            let parts = Parts {
                server,
                dial: Arc::new(Dialler::new(identity)),
                map: machine.map(),
                source: machine.source(),
                freezer: Box::new(NoFreezer),
                hooks: Box::new(NoHooks),
                env: env.clone(),
            };
            runtime.spawn(async move {
                // The identity of the day, for as long as the agent runs.
                let _sender = sender;
                Replicator::new(parts, Options::default()).run().await
            });
            machine
        })
        .collect();
    let (first, _) = &site.enrolled[0];
    site.wait("the first copy of the first server ends", || {
        site.records_by(first).last().is_some_and(|record| record.complete).then_some(())
    });
    let seconds = TIME.as_secs();
    for second in 0..seconds {
        for change in 0..BLOCKS_A_SECOND {
            let block = env.entropy.next_u64() % u64::from(DISK_BLOCKS);
            let address = (DiskSlot(1), u32::try_from(block).unwrap());
            machines[change % machines.len()].write(address, second << 32 | change as u64 | 1 << 63);
        }
        sleep(Duration::from_secs(1));
    }
    let records = site.records_by(first).len();
    (memory_mib(&site.process_server).1, records)
}
