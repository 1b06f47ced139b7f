//! What one server that sends as fast as it can does to others on the same process server, in virtual time, over an
//! uplink that is slower than it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use lifeboat_process_server::{
    core::{Assigned, Ingest, space::Space, spool::MemSpool},
    edge::throttled::{Throttle, Throttled},
};
use lifeboat_replication::{
    ids::ServerId,
    store::{BlobStore, gated::Gated},
    wire::v1,
};
use support::{Agent, World, line::Line};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

/// Bytes a second.
const UPLINK: u64 = 8 << 20;
const MODEST: u8 = 8;
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: u64 = 12;

/// How the uplink is narrow.
#[derive(Clone, Copy)]
enum Narrow {
    /// The operator's limit of the bandwidth.
    Limited,
    /// A line on which all connections get the same.
    Line,
}

/// Servers that write one after the other through one process server.
struct Site {
    servers: Vec<mpsc::Sender<lifeboat_replication::wire::Accepted>>,
    _assigned: Vec<watch::Sender<Option<Assigned>>>,
}

impl Site {
    fn new(narrow: Narrow, servers: u8) -> Self {
        let mut world = World::new();
        let throttle = Arc::new(Throttle::default());
        throttle.set_limit(UPLINK);
        let line = Line::new(UPLINK);
        let narrowed = |store: Arc<dyn BlobStore>| -> Arc<dyn BlobStore> {
            match narrow {
                Narrow::Limited => Gated::new(store, Throttled(Arc::clone(&throttle))),
                Narrow::Line => line.store(store),
            }
        };
        world.vault.store = narrowed(world.vault.store);
        world.vault.cache = narrowed(world.vault.cache);
        let shared = world.shared("ps-0", Arc::new(MemSpool::default()), Space::spool(64 << 20));
        let (mut connections, mut assignments) = (Vec::new(), Vec::new());
        for server in 0..servers {
            let settings = v1::Settings { round_interval_micros: 1_000_000, ..Default::default() };
            let assigned = Assigned {
                display_name: format!("default/{server}"),
                settings,
                compression_level: 1,
                points: vec![],
                lost: None,
            };
            let (assign, assigned) = watch::channel(Some(assigned));
            let ingest = Ingest::new(shared.clone(), server_id(server), assigned);
            let (to_ingest, accepted) = mpsc::channel(2);
            tokio::spawn(ingest.run(accepted));
            connections.push(to_ingest);
            assignments.push(assign);
        }
        Self { servers: connections, _assigned: assignments }
    }

    async fn welcome(&self, server: u8) -> Agent {
        let connections = &self.servers[usize::from(server)];
        loop {
            let mut agent = Agent::connect(connections, server_id(server).as_str()).await;
            agent.hello(None).await;
            if let Some(v1::down::Message::Welcome(_)) = agent.next().await {
                return agent;
            }
            tokio::time::sleep(ROUND).await;
        }
    }
}

fn server_id(server: u8) -> ServerId {
    ServerId::from_random([server + 1; 16])
}

/// A round of 256 KiB each second. The RPO of each of them as its record becomes durable: the age of the point before.
async fn modest(mut agent: Agent, server: u8) -> Vec<Duration> {
    // Not all at the same instant.
    let begin = Instant::now() + ROUND.mul_f64(f64::from(server) / f64::from(MODEST));
    let (mut last, mut rpos) = (begin, Vec::new());
    for number in 1..=ROUNDS {
        // An agent that waits takes its next round when the one before is durable.
        let due = begin + ROUND * u32::try_from(number).unwrap();
        sleep_until(due).await;
        let t0 = Instant::now();
        agent.send_chunk(Agent::chunk(number, 0, 0, 64)).await;
        agent.end(number, 1).await;
        agent.durable(number).await;
        rpos.push(last.elapsed());
        last = t0;
    }
    rpos
}

/// Records without a pause, a few of them under way.
async fn greedy(mut agent: Agent) {
    for number in 1.. {
        for sequence in 0..8 {
            agent.send_chunk(Agent::chunk(number, sequence, u64::from(sequence) * 512, 512)).await;
        }
        agent.end(number, 8).await;
        // What comes down is taken, so that nothing stands still for that.
        while timeout(Duration::ZERO, agent.down.recv()).await.is_ok() {}
    }
}

/// RPO that 99 of 100 rounds of the modest servers stay below, with so many greedy ones beside them.
async fn p99(narrow: Narrow, greedy_servers: u8) -> Duration {
    let site = Site::new(narrow, MODEST + greedy_servers);
    let mut agents = Vec::new();
    for server in 0..MODEST {
        agents.push(site.welcome(server).await);
    }
    let mut floods = tokio::task::JoinSet::new();
    for server in MODEST..MODEST + greedy_servers {
        floods.spawn(greedy(site.welcome(server).await));
    }
    let measured = (0_u8..).zip(agents).map(|(server, agent)| tokio::spawn(modest(agent, server)));
    let measured = futures::future::join_all(measured).await;
    let mut rpos: Vec<Duration> = measured.into_iter().flat_map(Result::unwrap).collect();
    rpos.sort();
    rpos[rpos.len() * 99 / 100]
}

#[tokio::test(start_paused = true)]
async fn a_greedy_server_at_most_doubles_the_rpo_of_others_under_a_limit_of_the_bandwidth() {
    let (without, with) = (p99(Narrow::Limited, 0).await, p99(Narrow::Limited, 1).await);
    println!("p99 RPO: {without:?} without, {with:?} with a greedy server");
    assert!(with <= without * 2, "{without:?} without, {with:?} with");
}

#[tokio::test(start_paused = true)]
async fn a_greedy_server_at_most_doubles_the_rpo_of_others_on_a_slow_line() {
    let (without, with) = (p99(Narrow::Line, 0).await, p99(Narrow::Line, 1).await);
    println!("p99 RPO: {without:?} without, {with:?} with a greedy server");
    assert!(with <= without * 2, "{without:?} without, {with:?} with");
}

#[tokio::test(start_paused = true)]
async fn several_greedy_servers_neither_use_up_the_memory_nor_the_turns_of_others() {
    let (without, with) = (p99(Narrow::Limited, 0).await, p99(Narrow::Limited, 6).await);
    println!("p99 RPO: {without:?} without, {with:?} with six greedy servers");
    assert!(with <= without * 2, "{without:?} without, {with:?} with");
}
