//! Points of consistency groups, with agents by hand: who is ordered what, and what the operator hears.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use lifeboat_process_server::{
    core::{space::Space, spool::MemSpool},
    directory::Directory,
    groups::{Coordinator, Reports},
    servers::{Members, Servers},
};
use lifeboat_replication::{
    ids::ServerId,
    log::LogReader,
    wire::v1::{self, GroupAnswer, GroupOrder, GroupReport, GroupState, GroupStep, log_record::Body},
};
use support::{Agent, World};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// A process server with two servers of the group `erp`.
struct Site {
    world: World,
    ids: [ServerId; 2],
    configure: watch::Sender<Option<Arc<Directory>>>,
    members: watch::Receiver<Arc<Members>>,
    reports: watch::Receiver<Reports>,
}

fn assignment(id: &ServerId, number: usize) -> v1::Assignment {
    v1::Assignment {
        server_id: id.to_string(),
        process_server: "ps-0".into(),
        display_name: format!("prod/db-{number}"),
        consistency_group: "erp".into(),
        group_members: 2,
        ..Default::default()
    }
}

impl Site {
    fn new() -> Self {
        let world = World::new();
        let ids = [world.server.clone(), ServerId::from_random([4; 16])];
        let shared = world.shared("ps-0", Arc::new(MemSpool::default()), Space::spool(64 << 20));
        let (configure, directories) = watch::channel(None);
        let (lists, members) = watch::channel(Arc::new(Members::new()));
        let (reported, reports) = watch::channel(Reports::new());
        let (env, board) = (world.env.clone(), shared.groups.clone());
        let coordinator = Coordinator::new("ps-0".into(), env, directories.clone(), board, reported);
        tokio::spawn(coordinator.run());
        tokio::spawn(Servers::new(shared, directories, lists).run(std::future::pending()));
        let site = Self { world, ids, configure, members, reports };
        site.configure(|_| {});
        site
    }

    fn configure(&self, change: impl FnOnce(&mut [v1::Assignment])) {
        let mut servers = vec![assignment(&self.ids[0], 1), assignment(&self.ids[1], 2)];
        change(&mut servers);
        let configuration = v1::Configuration { servers, ..Default::default() };
        self.configure.send_replace(Some(Arc::new(configuration.into())));
    }

    /// Asks through the first server.
    fn ask(&self, request: &str) {
        self.configure(|servers| servers[0].points = vec![asked(request)]);
    }

    /// Its first connection.
    async fn agent(&mut self, number: usize) -> Agent {
        let id = self.ids[number].to_string();
        let listed = self.members.wait_for(|members| members.contains_key(&id)).await.unwrap();
        let mut member = listed.get(&id).unwrap().clone();
        drop(listed);
        member.status.wait_for(|status| status.holds_log).await.unwrap();
        let mut agent = Agent::connect(&member.connections, &id).await;
        agent.hello(None).await;
        let Some(v1::down::Message::Welcome(welcome)) = agent.next().await else { panic!("not welcome") };
        assert_eq!(
            welcome.points.unwrap().requests,
            [],
            "what is asked of the group is not asked of a server"
        );
        agent
    }

    async fn agents(&mut self) -> [Agent; 2] {
        let agents = [self.agent(0).await, self.agent(1).await];
        sleep(Duration::from_millis(50)).await;
        agents
    }

    /// Waits until the group's report is as wanted.
    async fn report(&mut self, wanted: impl Fn(&GroupReport) -> bool) -> GroupReport {
        let found = timeout(
            Duration::from_secs(600),
            self.reports
                .wait_for(|reports| reports.iter().any(|report| report.name == "erp" && wanted(report))),
        );
        let found = found.await.expect("never reported").unwrap();
        found.iter().find(|report| report.name == "erp").unwrap().clone()
    }

    /// The group's points that the log of a server bears.
    async fn in_log(&self, number: usize) -> Vec<v1::GroupPoint> {
        let mut reader = LogReader::from_start(&self.world.vault, &self.ids[number], &self.world.env);
        let mut found = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            if let Body::Data(data) = entry.body {
                found.extend(data.group);
            }
        }
        found
    }
}

fn asked(id: &str) -> v1::PointRequest {
    v1::PointRequest { id: id.into(), consistency: v1::Consistency::FilesystemConsistent.into(), group: true }
}

async fn order(agent: &mut Agent) -> GroupOrder {
    loop {
        match agent.next().await {
            Some(v1::down::Message::Group(order)) => return order,
            Some(_) => {}
            None => panic!("no order"),
        }
    }
}

/// Both are ordered this; the id.
async fn ordered(agents: &mut [Agent; 2], step: GroupStep) -> GroupOrder {
    let mut last = GroupOrder::default();
    for agent in agents {
        last = order(agent).await;
        assert_eq!(last.step(), step);
    }
    last
}

async fn say(agent: &Agent, id: &str, state: GroupState) {
    let answer = GroupAnswer {
        id: id.into(),
        state: state.into(),
        longest_freeze_micros: 25_000,
        ..Default::default()
    };
    agent.send(v1::up::Message::Group(answer)).await;
}

/// Leads both to where they stand still.
async fn frozen(agents: &mut [Agent; 2]) -> String {
    let id = ordered(agents, GroupStep::Prepare).await.id;
    for (state, step) in [(GroupState::Ready, GroupStep::Freeze)] {
        say(&agents[0], &id, state).await;
        let early = timeout(Duration::from_secs(5), order(&mut agents[0])).await;
        assert!(early.is_err(), "{step:?} before the other one is {state:?}");
        say(&agents[1], &id, state).await;
        ordered(agents, step).await;
    }
    id
}

async fn record(agent: &Agent, order: &GroupOrder) {
    agent.send_chunk(Agent::chunk(1, 0, 0, 8)).await;
    agent
        .send(v1::up::Message::End(v1::End {
            number: 1,
            chunks: 1,
            kind: v1::RecordKind::Exact.into(),
            consistency: v1::Consistency::FilesystemConsistent.into(),
            t0_micros: order.t0_micros,
            complete: true,
            group: Some(v1::GroupPoint { id: order.id.clone(), members: order.members.clone() }),
            ..Default::default()
        }))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_groups_point_counts_when_every_member_has_it_in_the_vault() {
    let mut site = Site::new();
    let mut agents = site.agents().await;
    site.ask("group/db-1/a/1");
    let id = frozen(&mut agents).await;
    say(&agents[0], &id, GroupState::Frozen).await;
    assert!(
        timeout(Duration::from_secs(1), order(&mut agents[0])).await.is_err(),
        "flips before both stand still"
    );
    say(&agents[1], &id, GroupState::Frozen).await;
    let flip = ordered(&mut agents, GroupStep::Flip).await;
    assert_eq!(flip.members.len(), 2);
    for agent in &agents {
        say(agent, &id, GroupState::Flipped).await;
    }
    record(&agents[0], &flip).await;
    agents[0].durable(1).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(site.reports.borrow()[0].taken, None, "the other one's part is missing");
    record(&agents[1], &flip).await;
    let report = site.report(|report| report.taken.is_some()).await;
    let taken = report.taken.unwrap();
    assert_eq!((taken.id.as_str(), taken.longest_freeze_micros, report.missed), (id.as_str(), 25_000, None));
    assert!(taken.members.iter().all(|member| member.t0_micros == flip.t0_micros && member.number == 1));
    let answered = &report.answered[0];
    assert_eq!((answered.request.as_str(), answered.outcome.as_ref()), ("group/db-1/a/1", Some(&taken)));
    for number in 0..2 {
        let [point] = &site.in_log(number).await[..] else { panic!("one record bears it") };
        assert_eq!((&point.id, &point.members), (&id, &flip.members));
    }
    // The same request is told again and again, and asks for nothing more.
    site.configure(|_| {});
    site.ask("group/db-1/a/1");
    assert!(timeout(Duration::from_secs(30), order(&mut agents[0])).await.is_err());
}

/// Or an agent that lies, or is late, would give its record the name of a point that there is not.
#[tokio::test(start_paused = true)]
async fn a_record_that_names_a_point_nobody_waits_for_bears_none() {
    let mut site = Site::new();
    let mut agents = site.agents().await;
    let invented = GroupOrder { id: "erp/1-0".into(), members: vec!["x".into(); 3], ..Default::default() };
    record(&agents[0], &GroupOrder { t0_micros: 1_700_000_000_000_000, ..invented }).await;
    agents[0].durable(1).await;
    assert_eq!(site.in_log(0).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_refuses_or_breaks_lets_the_others_go_on() {
    let mut site = Site::new();
    let mut agents = site.agents().await;
    site.ask("a");
    let id = ordered(&mut agents, GroupStep::Prepare).await.id;
    let refused = GroupAnswer {
        id,
        state: GroupState::Refused.into(),
        reason: "FreezesSpent".into(),
        message: "ask later".into(),
        ..Default::default()
    };
    agents[1].send(v1::up::Message::Group(refused)).await;
    ordered(&mut agents, GroupStep::Cancel).await;
    let missed = site.report(|report| report.missed.is_some()).await.missed.unwrap();
    assert_eq!((missed.reason.as_str(), missed.message.as_str()), ("FreezesSpent", "prod/db-2: ask later"));

    site.ask("b");
    let id = frozen(&mut agents).await;
    say(&agents[0], &id, GroupState::Frozen).await;
    let [mut first, second] = agents;
    drop(second);
    assert_eq!(order(&mut first).await.step(), GroupStep::Cancel);
    let report = site.report(|report| report.answered.len() == 2).await;
    assert_eq!(report.answered[1].outcome.as_ref().unwrap().reason, "ConnectionLost");
    assert_eq!(report.taken, None);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_says_nothing_is_not_waited_for_for_ever() {
    let mut site = Site::new();
    let mut agents = site.agents().await;
    site.ask("a");
    let id = frozen(&mut agents).await;
    say(&agents[0], &id, GroupState::Frozen).await;
    let [first, second] = &mut agents;
    let alive = async {
        loop {
            first.heartbeat().await;
            second.heartbeat().await;
            sleep(Duration::from_secs(1)).await;
        }
    };
    let missed = tokio::select! {
        report = site.report(|report| report.missed.is_some()) => report.missed.unwrap(),
        () = alive => panic!(),
    };
    assert_eq!(missed.reason, "NotFrozen");
    assert!(missed.message.starts_with("prod/db-2 "), "{}", missed.message);
    assert_eq!(order(&mut agents[0]).await.step(), GroupStep::Cancel);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_before_anybody_is_ordered_anything() {
    let mut site = Site::new();
    let mut first = site.agent(0).await;
    sleep(Duration::from_millis(50)).await;
    let mut reasons = Vec::new();
    site.ask("a");
    reasons.push(site.report(|report| report.answered.len() == 1).await);
    site.configure(|servers| {
        servers[0].points = vec![asked("b")];
        servers[1].process_server = "ps-1".into();
    });
    reasons.push(site.report(|report| report.answered.len() == 2).await);
    site.configure(|servers| {
        servers[0].points = vec![asked("c")];
        servers.iter_mut().for_each(|server| server.group_members = 3);
    });
    reasons.push(site.report(|report| report.answered.len() == 3).await);
    site.configure(|servers| {
        servers[0].points = vec![asked("d")];
        servers[1].settings = Some(v1::Settings { paused: true, ..Default::default() });
    });
    reasons.push(site.report(|report| report.answered.len() == 4).await);
    let reasons: Vec<String> = reasons.into_iter().map(|report| report.missed.unwrap().reason).collect();
    assert_eq!(reasons, ["NotConnected", "MembersApart", "MembersMissing", "Paused"]);
    assert!(timeout(Duration::from_secs(5), order(&mut first)).await.is_err());
}

/// A policy that wants a point an hour.
fn hourly() -> Option<v1::Settings> {
    Some(v1::Settings { app_consistent_interval_micros: 3_600_000_000, ..Default::default() })
}

/// How long until the members are ordered the next point; both say meanwhile that they are there.
async fn next_prepare(agents: &mut [Agent; 2]) -> (Duration, GroupOrder) {
    let began = tokio::time::Instant::now();
    let [one, two] = agents;
    let alive = async {
        loop {
            one.heartbeat().await;
            sleep(Duration::from_secs(5)).await;
        }
    };
    let again = async {
        loop {
            two.heartbeat().await;
            if let Ok(order) = timeout(Duration::from_secs(5), order(two)).await
                && order.step() == GroupStep::Prepare
            {
                return order;
            }
        }
    };
    let order = tokio::select! { order = again => order, () = alive => panic!() };
    (began.elapsed(), order)
}

#[tokio::test(start_paused = true)]
async fn the_policys_points_are_taken_by_themselves_and_again_when_one_was_missed_whose_members_are_back() {
    let mut site = Site::new();
    site.configure(|servers| servers[1].settings = hourly());
    let first = site.report(|report| report.missed.is_some()).await.missed.unwrap();
    assert_eq!(first.reason, "NotConnected");
    let mut agents = site.agents().await;
    let (waited, again) = next_prepare(&mut agents).await;
    assert!(waited < Duration::from_secs(70), "its members are there, and it waited for {waited:?}");
    assert_ne!(again.id, first.id);
}

/// What does not go away by itself is not tried every minute: each attempt freezes the members.
#[tokio::test(start_paused = true)]
async fn a_policys_point_that_a_member_refused_is_tried_again_after_its_time() {
    let mut site = Site::new();
    site.configure(|servers| servers[1].settings = hourly());
    let mut agents = site.agents().await;
    let (_, order) = next_prepare(&mut agents).await;
    let refused = GroupAnswer {
        id: order.id,
        state: GroupState::Refused.into(),
        reason: "FreezesSpent".into(),
        ..Default::default()
    };
    agents[1].send(v1::up::Message::Group(refused)).await;
    let (waited, _) = next_prepare(&mut agents).await;
    assert!(Duration::from_secs(590) < waited && waited < Duration::from_secs(620), "{waited:?}");
}
