//! The core over a vault in memory, with the agent's end scripted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::Duration;

use lifeboat_process_server::core::Ended;
use lifeboat_replication::{
    ids::{Epoch, RecordNumber},
    log::{Head, LogOptions, LogWriter, Order, PartName, Patience, head},
    wire::{MAX_ON_THE_WAY_BYTES, v1},
};
use support::{Agent, Weather, World};
use tokio::time::{Instant, sleep, timeout};

#[tokio::test(start_paused = true)]
async fn records_become_durable_in_order_and_stand_in_the_log_as_they_were_sent() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut agent, welcome) = process_server.welcome(None).await;
    assert_eq!((welcome.last_number, welcome.disks[0].slot, welcome.full_copy_reason.as_str()), (0, 1, ""));
    agent.record(1, 3).await;
    agent.send_chunk(Agent::chunk(2, 0, 7, 1)).await;
    agent.end(2, 1).await;
    agent.record(3, 1).await;
    for number in 1..=3 {
        assert_eq!(agent.durable(number).await.epoch, 1);
    }
    let log = world.log().await;
    assert_eq!(log[1], (2, vec![(1, 7, Some(2))]));
    assert_eq!(log[0], (1, vec![(1, 0, Some(1)), (1, 512, Some(1)), (1, 1024, Some(1))]));
    assert_eq!(log.iter().map(|record| record.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(process_server.spool.bytes(), 0);
    assert_eq!(process_server.space.used_bytes(), 0);
    let status = process_server.status.borrow().clone();
    assert_eq!((status.report.last_number, status.report.records, status.report.connected), (3, 3, true));
    assert_eq!(status.report.last_point_micros, 1_700_000_000_000_003);
    assert_eq!(status.report.error, "");
}

#[tokio::test(start_paused = true)]
async fn points_bear_later_and_later_instants_whatever_the_clocks_say() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    let first = world.env.wall.now().0;
    for (number, t0) in [(1, first), (2, first - 3_600_000_000), (3, i64::MIN), (4, i64::MAX)] {
        agent.send_chunk(Agent::chunk(number, 0, number, 1)).await;
        agent.end_at(number, 1, t0).await;
        agent.durable(number).await;
    }
    let (instants, offsets): (Vec<_>, Vec<_>) = world.instants().await.into_iter().unzip();
    assert_eq!(instants[..3], [first, first + 1, first + 2]);
    assert!(first + 2 < instants[3] && instants[3] <= world.env.wall.now().0.max(first + 3), "{instants:?}");
    assert_eq!(offsets[..2], [0, 3_600_000_001], "the date that the server itself had can still be told");
}

#[tokio::test(start_paused = true)]
async fn what_came_whole_before_the_connection_broke_is_committed_and_nothing_else() {
    let world = World::new();
    let mut process_server = world.process_server("ps-0");
    let (agent, _) = process_server.welcome(None).await;
    agent.record(1, 2).await;
    agent.send_chunk(Agent::chunk(2, 0, 0, 512)).await;
    drop(agent);
    process_server.until("record 1 durable", |status| status.report.last_number == 1).await;
    process_server.until("seen as gone", |status| !status.report.connected).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.numbers().await, [1]);
    assert_eq!(process_server.space.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_chunk_and_a_number_out_of_order_end_the_connection_with_the_reason() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    agent.durable(1).await;
    let mut damaged = Agent::chunk(2, 0, 0, 4);
    damaged.crc32c ^= 1;
    agent.send_chunk(damaged).await;
    let refused = agent.refusal().await;
    assert!(refused.reason.contains("arrived damaged"), "{refused:?}");
    assert!(refused.retry_after_micros > 0, "worth trying again");

    let (mut agent, welcome) = process_server.welcome(None).await;
    assert_eq!(welcome.last_number, 1, "what was whole before is kept");
    agent.record(1, 1).await;
    let refused = agent.refusal().await;
    assert!(refused.reason.contains("record 2 was due"), "{refused:?}");
    assert_eq!(world.numbers().await, [1]);
    assert_eq!(process_server.status.borrow().violations, 2);
}

/// What is not data is kept somewhere: it has to be short, or all servers' report to the operator would be too long.
#[tokio::test(start_paused = true)]
async fn a_message_beside_the_data_that_is_too_long_ends_the_connection() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let long = "x".repeat(65 << 10);
    let notes = [
        v1::up::Message::Heartbeat(v1::Heartbeat { tracking: long.clone(), ..Default::default() }),
        v1::up::Message::Group(v1::GroupAnswer { message: long.clone(), ..Default::default() }),
        v1::up::Message::End(v1::End {
            number: 1,
            group: Some(v1::GroupPoint { id: long, ..Default::default() }),
            ..Default::default()
        }),
        v1::up::Message::SumsAsk(v1::SumsAsk {
            rows: vec![v1::RowRun { first: 1 << 30, count: 1 }; 60_000],
            ..Default::default()
        }),
    ];
    for note in notes {
        let (mut agent, _) = process_server.welcome(None).await;
        agent.send(note).await;
        assert!(agent.refusal().await.reason.contains("too long"));
    }
    assert_eq!(process_server.status.borrow().report.heartbeat, None);
    assert_eq!(process_server.status.borrow().violations, 4);
}

/// An agent that takes nothing of what comes down holds up neither the log's lease nor the commits of what it sends.
#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_no_acknowledgements_is_served_and_holds_nothing() {
    let world = World::new();
    let mut process_server = world.process_server("ps-0");
    let (agent, _) = process_server.welcome(None).await;
    for number in 1..=200 {
        let sent = timeout(Duration::from_secs(60), async {
            agent.send_chunk(Agent::chunk(number, 0, 0, 1)).await;
            agent.end(number, 1).await;
        });
        if sent.await.is_err() {
            break;
        }
    }
    sleep(Duration::from_secs(120)).await;
    let held = process_server.status.borrow().holds_log;
    assert!(held, "the lease is renewed");
    let (mut agent, welcome) = process_server.welcome(None).await;
    agent.record(welcome.last_number + 1, 1).await;
    agent.durable(welcome.last_number + 1).await;
    process_server.until("durable", |status| status.report.last_number == welcome.last_number + 1).await;
    assert_eq!(process_server.space.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_commit_each_record_once() {
    let world = World::new();
    // From the takeover on.
    world.set(Weather::LosesAnswers);
    let process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    for number in 1..=20 {
        agent.record(number, 2).await;
        agent.durable(number).await;
    }
    world.set(Weather::Fair);
    assert_eq!(world.numbers().await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_holds_the_agent_back_until_the_vault_takes_data_again() {
    let world = World::new();
    let mut process_server = world.process_server_with_spool("ps-0", 12 << 20);
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    let believes = agent.durable(1).await;
    world.set(Weather::Away);
    let up = agent.up.clone();
    let sending = tokio::spawn(async move {
        for sequence in 0..30 {
            let message = Some(v1::up::Message::Chunk(Agent::chunk(2, sequence, 0, 512)));
            up.send(v1::Up { message }).await.unwrap();
        }
    });
    process_server.until("waiting for room", |status| status.waiting_for_room).await;
    process_server.until("in trouble", |status| status.report.error.contains("connection refused")).await;
    // The agent hears from it meanwhile, and the spool stays within its bounds.
    assert!(timeout(Duration::from_secs(10), agent.down.recv()).await.unwrap().is_some());
    sleep(Duration::from_secs(300)).await;
    assert!(!sending.is_finished());
    assert!(process_server.spool.bytes() <= 12 << 20, "{}", process_server.spool.bytes());

    world.set(Weather::Fair);
    timeout(Duration::from_secs(60), sending).await.unwrap().unwrap();
    agent.end(2, 30).await;
    agent.durable(2).await;
    assert_eq!(process_server.status.borrow().report.error, "");
    assert_eq!(world.numbers().await, [1, 2]);
    let (_, welcome) = process_server.welcome(Some(&believes)).await;
    assert_eq!(welcome.full_copy_reason, "", "no resynchronization");
}

/// `lifeboat-agent assess` sizes spools by it.
#[tokio::test(start_paused = true)]
async fn what_one_server_has_on_its_way_stays_below_its_part_of_the_spool() {
    let world = World::new();
    let mut process_server = world.process_server_with_spool("ps-0", 1 << 30);
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    agent.durable(1).await;
    world.set(Weather::Away);
    let up = agent.up.clone();
    let sending = tokio::spawn(async move {
        for sequence in 0..100 {
            // The largest batches: one of nearly 2 MiB is closed by a chunk of 4 MiB.
            let blocks = if sequence % 2 == 0 { 511 } else { 1024 };
            let message = Some(v1::up::Message::Chunk(Agent::chunk(2, sequence, 0, blocks)));
            up.send(v1::Up { message }).await.unwrap();
        }
    });
    process_server.until("waiting for room", |status| status.waiting_for_room).await;
    sleep(Duration::from_secs(300)).await;
    assert!(!sending.is_finished());
    let taken = process_server.space.used_bytes();
    assert!((16 << 20..=MAX_ON_THE_WAY_BYTES).contains(&taken), "{taken}");
    sending.abort();
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_upload_and_append_leaves_the_record_to_the_agent() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    let believes = agent.durable(1).await;
    world.set(Weather::AppendsHang);
    agent.record(2, 1).await;
    assert!(matches!(agent.next().await, Some(v1::down::Message::Received(_))));
    sleep(Duration::from_secs(2)).await;
    process_server.crash().await;
    world.set(Weather::Fair);
    assert_eq!(agent.next().await, None, "nothing was acknowledged");

    let process_server = world.process_server("ps-0");
    let (mut agent, welcome) = process_server.welcome(Some(&believes)).await;
    assert_eq!((welcome.last_number, welcome.epoch, welcome.full_copy_reason.as_str()), (1, 2, ""));
    agent.record(2, 1).await;
    agent.durable(2).await;
    assert_eq!(world.numbers().await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_second_process_server_waits_for_the_lease_and_tells_the_agent_so() {
    let world = World::new();
    let first = world.process_server("ps-0");
    let (mut agent, _) = first.welcome(None).await;
    agent.record(1, 1).await;
    let believes = agent.durable(1).await;

    let mut second = world.process_server("ps-1");
    second.until("busy", |status| status.report.error.contains("another process server holds the log")).await;
    sleep(Duration::from_secs(120)).await;
    assert!(!second.status.borrow().holds_log, "the first one renews its lease");
    let mut early = second.connect().await;
    early.hello(Some(&believes)).await;
    let refused = early.refusal().await;
    assert!(refused.reason.contains("another process server"), "{refused:?}");
    assert!(refused.retry_after_micros > 0);

    let crashed = Instant::now();
    first.crash().await;
    second.until("taken over", |status| status.holds_log).await;
    assert!(crashed.elapsed() < Duration::from_secs(45), "{:?}", crashed.elapsed());
    let (mut agent, welcome) = second.welcome(Some(&believes)).await;
    assert_eq!((welcome.last_number, welcome.full_copy_reason.as_str()), (1, ""));
    agent.record(2, 1).await;
    agent.durable(2).await;
    assert_eq!(world.numbers().await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_server_takes_its_own_log_over_without_waiting_for_the_lease() {
    let world = World::new();
    let first = world.process_server("ps-0");
    let (mut agent, _) = first.welcome(None).await;
    agent.record(1, 1).await;
    let believes = agent.durable(1).await;
    first.crash().await;
    let mut again = world.process_server("ps-0");
    let started = Instant::now();
    again.until("taken over", |status| status.holds_log).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let (mut agent, welcome) = again.welcome(Some(&believes)).await;
    assert_eq!((welcome.last_number, welcome.full_copy_reason.as_str()), (1, ""));
    agent.record(2, 1).await;
    agent.durable(2).await;
    assert_eq!(world.numbers().await, [1, 2]);
}

/// A copied spool: the newer one has the log, and the older one does not take it back for ever.
#[tokio::test(start_paused = true)]
async fn of_two_runs_of_one_writer_the_newer_one_keeps_the_log() {
    let world = World::new();
    let mut older = world.process_server("ps-0");
    older.until("taken over", |status| status.holds_log).await;
    let mut newer = world.process_server("ps-0");
    newer.until("taken over", |status| status.holds_log).await;
    let epoch = newer.status.borrow().report.epoch;
    older.until("busy", |status| status.report.error.contains("another process server holds the log")).await;
    sleep(Duration::from_secs(300)).await;
    assert!(newer.status.borrow().holds_log && !older.status.borrow().holds_log);
    assert_eq!(newer.status.borrow().report.epoch, epoch);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_hand_over_commits_what_came_and_takes_seconds() {
    let world = World::new();
    let first = world.process_server("ps-0");
    let (mut agent, _) = first.welcome(None).await;
    agent.record(1, 2).await;
    agent.durable(1).await;
    agent.record(2, 2).await;
    assert!(matches!(agent.next().await, Some(v1::down::Message::Received(_))));
    first.assign.send_replace(None);
    let believes = agent.durable(2).await;
    assert_eq!(first.running.await.unwrap(), Ended::Released);

    let mut second = world.process_server("ps-1");
    let started = Instant::now();
    second.until("taken over", |status| status.holds_log).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let (_, welcome) = second.welcome(Some(&believes)).await;
    assert_eq!((welcome.last_number, welcome.full_copy_reason.as_str()), (2, ""));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_process_server_stops_and_says_so() {
    let world = World::new();
    let mut process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    agent.durable(1).await;
    let order = Order::Failover { run: "run-1".into() };
    LogWriter::take_over(&world.vault, &world.server, "failover", &world.env, order, LogOptions::default())
        .await
        .unwrap();
    agent.record(2, 1).await;
    process_server.until("fenced", |status| !status.holds_log).await;
    while let Some(message) = agent.next().await {
        assert!(!matches!(message, v1::down::Message::Durable(_)), "{message:?}");
    }
    process_server
        .until("closed", |status| status.report.error.contains("closed by failover run run-1"))
        .await;
    let refused = {
        let mut agent = process_server.connect().await;
        agent.hello(None).await;
        agent.refusal().await
    };
    assert!(refused.reason.contains("run-1"), "{refused:?}");
    assert_eq!(world.numbers().await, [1]);
}

/// Once the operator has given the first one up, nobody waits for its lease, though it renews it.
#[tokio::test(start_paused = true)]
async fn by_order_a_log_is_taken_from_a_process_server_that_lives_and_not_from_a_later_one() {
    let world = World::new();
    let mut first = world.process_server("ps-0");
    let (mut agent, _) = first.welcome(None).await;
    agent.record(1, 1).await;
    let believes = agent.durable(1).await;

    let mut second = world.process_server("ps-1");
    second.until("busy", |status| status.report.error.contains("another process server holds")).await;
    sleep(Duration::from_secs(120)).await;
    assert!(first.status.borrow().holds_log, "it renews its lease");
    second.lose(1);
    second.until("taken over by order", |status| status.holds_log).await;
    agent.record(2, 1).await;
    first.until("fenced", |status| !status.holds_log).await;

    // The same order, read again by whoever restarts: the second one's epoch is a later one.
    let mut third = world.process_server("ps-2");
    third.lose(1);
    third.until("busy", |status| status.report.error.contains("another process server holds")).await;
    sleep(Duration::from_secs(120)).await;
    assert!(second.status.borrow().holds_log && !third.status.borrow().holds_log);
    let (_, welcome) = second.welcome(Some(&believes)).await;
    assert_eq!((welcome.last_number, welcome.full_copy_reason.as_str()), (1, ""));
}

#[tokio::test(start_paused = true)]
async fn a_newer_hello_takes_the_place_of_the_older_connection() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut old, _) = process_server.welcome(None).await;
    old.record(1, 1).await;
    let believes = old.durable(1).await;
    // One that says nothing takes nobody's place.
    let _silent = process_server.connect().await;
    old.heartbeat().await;
    assert!(matches!(old.next().await, Some(v1::down::Message::HeartbeatAnswer(_))));
    let (mut new, _) = process_server.welcome(Some(&believes)).await;
    assert_eq!(old.next().await, None);
    new.record(2, 1).await;
    new.durable(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_away_at_the_start_is_waited_for() {
    let world = World::new();
    world.set(Weather::Away);
    let mut process_server = world.process_server("ps-0");
    process_server.until("in trouble", |status| status.report.error.contains("connection refused")).await;
    let mut agent = process_server.connect().await;
    agent.hello(None).await;
    assert!(agent.refusal().await.reason.contains("connection refused"));
    world.set(Weather::Fair);
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    agent.durable(1).await;
}

#[tokio::test(start_paused = true)]
async fn settings_reach_the_agent_while_it_is_connected() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let (mut agent, welcome) = process_server.welcome(None).await;
    assert_eq!(welcome.settings.unwrap().round_interval_micros, 1_000_000);
    process_server.assign.send_modify(|assigned| {
        assigned.as_mut().unwrap().settings.round_interval_micros = 5;
    });
    let message = timeout(Duration::from_secs(5), agent.down.recv()).await.unwrap().unwrap().message;
    let Some(v1::down::Message::Settings(settings)) = message else { panic!("{message:?}") };
    assert_eq!(settings.round_interval_micros, 5);
}

#[tokio::test(start_paused = true)]
async fn requests_for_points_reach_an_agent_that_connects_and_one_that_is_connected() {
    let world = World::new();
    let process_server = world.process_server("ps-0");
    let request = |id: &str| v1::PointRequest { id: id.into(), ..Default::default() };
    process_server.assign.send_modify(|assigned| assigned.as_mut().unwrap().points = vec![request("a")]);
    let (mut agent, welcome) = process_server.welcome(None).await;
    assert_eq!(welcome.points.unwrap().requests, [request("a")]);
    process_server.assign.send_modify(|assigned| assigned.as_mut().unwrap().points.push(request("b")));
    let requests = loop {
        let message = timeout(Duration::from_secs(5), agent.down.recv()).await.unwrap().unwrap().message;
        if let Some(v1::down::Message::Points(points)) = message {
            break points.requests;
        }
    };
    assert_eq!(requests, [request("a"), request("b")]);
}

/// Both containers put back to a copy of an earlier moment while everything runs on. What the cluster keeps is the end of
/// the log; by it the log of today and any later one are known not to hold what was acknowledged.
#[tokio::test(start_paused = true)]
async fn a_store_that_was_put_back_as_a_whole_shows_by_the_end_of_the_log_that_was_reported() {
    let world = World::new();
    let mut process_server = world.process_server("ps-0");
    let (mut agent, _) = process_server.welcome(None).await;
    agent.record(1, 1).await;
    let first = agent.durable(1).await;
    let backup = world.stores.each_ref().map(|store| store.fork());
    agent.record(2, 1).await;
    let believes = agent.durable(2).await;
    let seen = process_server.status.borrow().report.head.clone().unwrap();
    assert_eq!((seen.number, seen.taken_number, &seen.chain), (2, 0, &believes.chain));
    assert_eq!(seen.point_micros, process_server.status.borrow().report.last_point_micros);
    assert!(holds(&world, &seen).await);

    for (store, backup) in world.stores.iter().zip(&backup) {
        store.restore(backup);
    }
    agent.record(3, 1).await;
    let another = |status: &lifeboat_process_server::core::status::Status| {
        status.report.head.as_ref().is_some_and(|head| head.writer != seen.writer)
    };
    process_server.until("taken over anew", another).await;
    let found = process_server.status.borrow().report.head.clone().unwrap();
    assert_eq!((found.number, found.taken_number), (1, 1), "{found:?}");
    assert!(holds(&world, &found).await);
    assert!(!holds(&world, &seen).await);
    let status = process_server.status.borrow().clone();
    assert_eq!(status.report.recoverable_until_micros, found.point_micros, "what is lost is not recoverable");

    // The agent copies everything again; also when the numbers have passed what was seen, it is known to be lost.
    let (mut agent, welcome) = process_server.welcome(Some(&believes)).await;
    assert!(welcome.full_copy_reason.starts_with("JournalDamaged: "), "{}", welcome.full_copy_reason);
    for number in 2..5 {
        agent.record(number, 1).await;
        agent.durable(number).await;
    }
    assert!(!holds(&world, &seen).await);
    let before = v1::LogHead { chain: first.chain, ..seen.clone() };
    assert_eq!(before.chain.len(), 32);
    assert!(!holds(&world, &before).await, "a chain value stands at its own place only");
}

async fn holds(world: &World, reported: &v1::LogHead) -> bool {
    let head = Head {
        part: PartName { epoch: Epoch(reported.epoch), part: reported.part },
        offset: reported.offset,
        chain: reported.chain.as_slice().try_into().unwrap(),
        number: RecordNumber(reported.number),
    };
    head::holds(&world.vault, &world.server, &head, &Patience::new(world.env.clone())).await.unwrap()
}
