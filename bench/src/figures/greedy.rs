//! What a server that sends as fast as it can does to the RPO of others on the same process server and uplink.

use std::{
    thread::{self, sleep},
    time::{Duration, Instant},
};

use futures::future::join_all;
use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    log::LogReader,
    wire::v1::{RecordKind, log_record::Body},
};
use lifeboat_tests::rig::{Site, SiteOptions, now};

use crate::{
    free_store::FreeStore,
    machines::Machines,
    report::{Figure, Goal},
    statistics::quantile,
};

/// The last one is greedy.
const SERVERS: usize = 9;
/// Bytes a second that may be uploaded.
const UPLINK: u64 = 16 << 20;
/// Of each modest server in a second: 1 MiB, so that half of the uplink is theirs.
const MODEST_BLOCKS: usize = 1 << 8;
/// Of the greedy one: four times the uplink.
const GREEDY_BLOCKS: usize = 64 << 8;
const TIME: Duration = Duration::from_secs(20);
/// So often the vault's age is looked at, and a greedy or modest server writes.
const TICK: Duration = Duration::from_millis(100);
const TICKS_A_SECOND: usize = 10;

pub fn measure(repeat: usize) -> Vec<Figure> {
    let store = FreeStore::start();
    let options = SiteOptions {
        name: "greedy",
        store: Some(store.address.clone()),
        spool_bytes: 1 << 30,
        upload_limit: UPLINK,
        applier: false,
        without_agent: SERVERS,
        ..SiteOptions::default()
    };
    let site = Site::new(&options, Vec::new());
    let machines = Machines::start(&site);
    let (mut ratios, mut alone, mut beside, mut greedy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let (without, _) = ages(&site, &machines, false);
        let (with, its) = ages(&site, &machines, true);
        ratios.push(with / without);
        alone.push(without);
        beside.push(with);
        greedy.push(its);
        // What the greedy one has left is sent before the next turn.
        sleep(TIME / 2);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    vec![
        Figure::new(
            "rpo_p99_greedy_ratio",
            "p99 of the age of the newest point of eight modest servers (1 MiB/s each, rounds of 1 s, an upload limit of 16 MiB/s) beside a ninth that changes 64 MiB/s / without it",
            "",
            &ratios,
        )
        .goal(Goal::AtMost(2.0))
        .beside(format!(
            "{:.2} s without, {:.2} s beside it, {:.1} s of the greedy one",
            median(&alone),
            median(&beside),
            median(&greedy)
        )),
    ]
}

/// p99 of the age of the modest servers' newest points, and of the greedy one's.
fn ages(site: &Site, machines: &Machines, greedy: bool) -> (f64, f64) {
    thread::scope(|scope| {
        scope.spawn(|| write(machines, greedy));
        let mut ages = look(site);
        let its = ages.pop().unwrap();
        (quantile(&ages.concat(), 0.99).unwrap(), quantile(&its, 0.99).unwrap())
    })
}

fn write(machines: &Machines, greedy: bool) {
    let began = Instant::now();
    for tick in 1.. {
        (0..SERVERS - 1).for_each(|server| machines.change(server, MODEST_BLOCKS / TICKS_A_SECOND));
        if greedy {
            machines.change(SERVERS - 1, GREEDY_BLOCKS / TICKS_A_SECOND);
        }
        if began.elapsed() > TIME {
            return;
        }
        sleep((TICK * tick).saturating_sub(began.elapsed()));
    }
}

/// The ages in seconds of each server's newest point, all the time.
fn look(site: &Site) -> Vec<Vec<f64>> {
    let servers: Vec<&ServerId> = site.enrolled.iter().map(|(server, _)| server).collect();
    let began = Instant::now();
    site.block_on(join_all(servers.into_iter().map(|server| async move {
        let mut reader = LogReader::from_start(&site.vault, server, &Env::system());
        let (mut newest, mut ages) = (None, Vec::new());
        while began.elapsed() < TIME {
            while let Some(entry) = reader.next().await.unwrap() {
                if let Body::Data(data) = entry.body
                    && data.kind() == RecordKind::Exact
                {
                    newest = Some(data.t0_micros);
                }
            }
            // What is written in the first seconds does not show yet what the turn is like.
            if began.elapsed() > TIME / 5 {
                ages.extend(newest.map(|t0| (now() - t0) as f64 / 1e6));
            }
            tokio::time::sleep(TICK).await;
        }
        ages
    })))
}
