//! What was received outlives a restart of the process server, as far as the log allows it, and the agent too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use lifeboat_process_server::core::spool::{MemSpool, Spool as _};
use lifeboat_replication::wire::v1;
use support::{Agent, ProcessServer, Weather, World};
use tokio::time::{Instant, sleep, timeout};

const SPOOL_BYTES: u64 = 64 << 20;

/// A server with one record in the log and three received since, while the weather is bad; then all is killed.
async fn killed(world: &World, weather: Weather) -> Arc<MemSpool> {
    let process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    agent.durable(1).await;
    world.set(weather);
    agent.record(2, 1).await;
    // Small enough to travel inside the log.
    for number in 3..=4 {
        agent.send_chunk(Agent::chunk(number, 0, 7, 1)).await;
        agent.end(number, 1).await;
    }
    agent.received(4).await;
    let spool = Arc::clone(&process_server.spool);
    process_server.crash().await;
    drop(agent);
    world.set(Weather::Fair);
    spool
}

fn again(world: &World, spool: &Arc<MemSpool>) -> ProcessServer {
    world.process_server_over("ps-0", Arc::clone(spool), SPOOL_BYTES)
}

async fn files(world: &World, spool: &MemSpool, of: &str) -> Vec<String> {
    let names = spool.list(world.server.as_str()).await.unwrap();
    let names = names.into_iter().filter(|name| name.contains(of));
    names.map(|name| format!("{}/{name}", world.server)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_received_is_committed_after_a_restart_without_its_agent() {
    for weather in [Weather::Away, Weather::AppendsHang, Weather::SegmentsAway] {
        let world = World::new();
        let spool = killed(&world, weather).await;
        let mut process_server = again(&world, &spool);
        process_server.until("all in the log", |status| status.report.last_number == 4).await;
        let log = world.log().await;
        assert_eq!(log.iter().map(|record| record.0).collect::<Vec<_>>(), [1, 2, 3, 4], "{weather:?}");
        assert_eq!(log[1].1, [(1, 0, Some(2))]);
        assert_eq!(log[2].1, [(1, 7, Some(3))]);
        let instants: Vec<i64> = world.instants().await.into_iter().map(|(t0, _)| t0).collect();
        assert_eq!(instants, (1..=4).map(|number| 1_700_000_000_000_000 + number).collect::<Vec<_>>());
        sleep(Duration::from_secs(1)).await;
        assert_eq!((spool.bytes(), process_server.space.used_bytes()), (0, 0));

        // The agent, which has heard of the first one only, goes on behind.
        let (mut agent, welcome) = process_server.welcome(Some(&mark(1))).await;
        assert_eq!((welcome.last_number, welcome.full_copy_reason.as_str()), (4, ""));
        agent.record(5, 1).await;
        agent.durable(5).await;
    }
}

fn mark(number: u64) -> v1::Durable {
    v1::Durable { number, epoch: 1, chain: Vec::new() }
}

#[tokio::test(start_paused = true)]
async fn killed_again_while_it_brings_them_to_the_log_it_goes_on_with_the_rest() {
    for after in [0, 10, 30, 60, 100, 150, 250, 400] {
        let world = World::new();
        let spool = killed(&world, Weather::Away).await;
        let process_server = again(&world, &spool);
        sleep(Duration::from_millis(after)).await;
        process_server.crash().await;
        let mut process_server = again(&world, &spool);
        process_server.until("all in the log", |status| status.report.last_number == 4).await;
        assert_eq!(world.numbers().await, [1, 2, 3, 4], "killed after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_torn_or_gone_ends_it_and_the_agent_sends_the_rest_again() {
    let record = |number: u64| format!("record-0000000000000001-{number:016x}");
    for (of, committed) in [("journal".to_owned(), 1), (record(2), 1), (record(3), 2), (record(4), 3)] {
        let world = World::new();
        let spool = killed(&world, Weather::Away).await;
        let file = files(&world, &spool, &of).await.remove(0);
        let content = spool.read(&file).await.unwrap();
        spool.write(&file, content.slice(..content.len() / 2)).await.unwrap();
        let mut process_server = again(&world, &spool);
        process_server.until("the log is held", |status| status.holds_log).await;
        let (mut agent, welcome) = process_server.welcome(Some(&mark(1))).await;
        assert_eq!(welcome.last_number, committed, "{file}");
        assert_eq!(files(&world, &spool, "").await, Vec::<String>::new());
        agent.record(committed + 1, 1).await;
        agent.durable(committed + 1).await;
        assert_eq!(world.numbers().await, (1..=committed + 1).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_process_server_has_overtaken_is_forgotten() {
    let world = World::new();
    let spool = killed(&world, Weather::Away).await;
    let mut other = world.process_server("ps-1");
    other.lose(1);
    other.until("taken over", |status| status.holds_log).await;
    let (mut agent, welcome) = other.welcome(Some(&mark(1))).await;
    assert_eq!(welcome.last_number, 1);
    agent.record(2, 1).await;
    agent.durable(2).await;
    other.assign.send_replace(None);
    other.running.await.unwrap();

    let mut process_server = again(&world, &spool);
    process_server.until("the log is held", |status| status.holds_log).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.numbers().await, [1, 2], "records 3 and 4 of the spool are older than record 2");
    assert_eq!(spool.bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_waits_for_it_and_not_for_ever() {
    let world = World::new();
    let spool = killed(&world, Weather::Away).await;
    world.set(Weather::SegmentsAway);
    let process_server = again(&world, &spool);
    let begun = Instant::now();
    let mut refused = None;
    let welcome = timeout(Duration::from_secs(300), async {
        loop {
            let mut agent = process_server.connect().await;
            agent.hello(Some(&mark(1))).await;
            match agent.next().await {
                Some(v1::down::Message::Welcome(welcome)) => return welcome,
                Some(v1::down::Message::Refused(why)) => refused = Some(why),
                other => panic!("{other:?}"),
            }
            sleep(Duration::from_secs(2)).await;
        }
    });
    let welcome = welcome.await.expect("never served");
    assert_eq!(welcome.last_number, 1);
    assert!(refused.unwrap().reason.contains("received before a restart"));
    assert!((50..90).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_full_volume_keeps_nobody_from_replicating_while_uploads_begin_at_once() {
    let world = World::new();
    let process_server = world.process_server_over("ps-0", Arc::new(MemSpool::full()), SPOOL_BYTES);
    let (mut agent, _) = process_server.welcome(None).await;
    for number in 1..=3 {
        agent.record(number, 1).await;
        agent.durable(number).await;
    }
    assert_eq!(process_server.spool.bytes(), 0);
}
