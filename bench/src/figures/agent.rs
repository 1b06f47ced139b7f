//! What agent and process server take of the processor at a steady churn.

use std::{thread::sleep, time::Duration};

use lifeboat_tests::rig::{Site, SiteOptions, point};

use crate::{
    free_store::FreeStore,
    load::{Fio, zero_disk},
    processes::{cpu_time, memory_mib},
    report::{Figure, Goal},
    statistics::quantile,
};

const DISK_MIB: u64 = 1024;
/// Of all servers together: 50 MiB a second.
const CHURN_KIB: u32 = 50 << 10;
/// An agent has one server. What it takes among many is what it takes at its part of the churn.
const FLEETS: [u32; 3] = [1, 10, 100];
const TIME: Duration = Duration::from_secs(15);

pub fn measure(repeat: usize) -> Vec<Figure> {
    FLEETS.into_iter().flat_map(|servers| at(CHURN_KIB / servers, servers, repeat)).collect()
}

fn at(churn_kib: u32, servers: u32, repeat: usize) -> Vec<Figure> {
    let (mut agents, mut process_servers, mut memory, mut churn) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeat {
        let store = FreeStore::start();
        let options = SiteOptions {
            name: "agent",
            store: Some(store.address.clone()),
            spool_bytes: 1 << 30,
            applier: false,
            ..SiteOptions::default()
        };
        let site = Site::new(&options, vec![zero_disk(DISK_MIB)]);
        site.wait_for("the first copy ends", |records| point(records).is_some());
        let disk = &site.servers[0].disk;
        let writing = Fio {
            disk,
            block_kib: 16,
            depth: 8,
            kib_per_second: Some(churn_kib),
            skewed: false,
            time: TIME * 2,
        };
        let running = writing.start();
        sleep(Duration::from_secs(4));
        let records = site.records().len();
        let before = [&site.servers[0].agent, &site.process_server].map(cpu_time);
        sleep(TIME);
        let after = [&site.servers[0].agent, &site.process_server].map(cpu_time);
        drop(running);
        let changed: u64 = site.records()[records..].iter().map(|record| record.changed_bytes).sum();
        churn.push(changed as f64 / f64::from(1 << 20) / TIME.as_secs_f64());
        let fraction = |program: usize| (after[program] - before[program]).as_secs_f64() / TIME.as_secs_f64();
        agents.push(fraction(0));
        process_servers.push(fraction(1));
        memory.push(memory_mib(&site.servers[0].agent).1);
    }
    let median = |samples: &[f64]| quantile(samples, 0.5).unwrap();
    let shipped = format!(
        "blocks of {:.1} MiB/s went into records; the agent's memory at its highest {:.0} MiB",
        median(&churn),
        median(&memory)
    );
    if servers > 1 {
        let figure = Figure::new(
            format!("agent_core_fraction_{servers:03}_servers"),
            "processor time of the agent / time, for one of so many servers that change 50 MiB/s together",
            "",
            &agents,
        );
        return vec![figure.beside(shipped)];
    }
    vec![
        Figure::new(
            "agent_core_fraction_50mbps",
            "processor time of the agent / time, at 50 MiB/s of 16 KiB random writes and rounds of 1 s",
            "",
            &agents,
        )
        .goal(Goal::AtMost(0.10))
        .beside(shipped),
        Figure::new(
            "process_server_core_fraction_50mbps",
            "processor time of the process server / time, at the same churn of data that cannot be compressed",
            "",
            &process_servers,
        ),
    ]
}
