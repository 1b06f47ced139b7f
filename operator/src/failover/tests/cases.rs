//! What a person relies on, case by case.

use std::collections::BTreeMap;

use lifeboat_crds::{
    FailoverRunSpec, FailoverRunStatus,
    approval::{Decision, VerdictReason},
    conditions::{self, ConditionType},
    plan::{Approvers, FailoverType, OnFailure, OnTimeout, When},
    run::{
        Consistency, RecoveryPointChoice, RecoveryPointKind, ResolvedPoint, ResolvedServer, RunPhase,
        ServerOverride, ServerState, StepState,
    },
    server::Target,
};

use super::rig::*;
use crate::failover::{
    outcome,
    own_points::{OwnPoint, OwnPoints, PointAnswer},
    resolve::{Lost, ServerFacts, check_plan, conclude, refuse, resolve},
    world::Resolution,
};

fn ended(status: &lifeboat_crds::FailoverRunStatus) -> bool {
    status.phase.is_some_and(RunPhase::has_ended)
}

#[test]
fn a_run_goes_through_groups_in_order_and_says_how_long_it_took() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![script("announce")];
    database.after = vec![check("postgres", "db-1"), script("query")];
    let mut rig = Rig::new(vec![database, group("web", &["web-1", "web-2"])]);
    rig.run_to_end();
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
    assert_eq!(
        rig.journal,
        [
            "job announce#1",
            "machine db-1",
            "job db-1/HealthCheck#1",
            "job postgres#1",
            "job query#1",
            "machine web-1",
            "machine web-2",
            "job web-1/HealthCheck#1",
            "job web-2/HealthCheck#1"
        ]
    );
    assert_eq!(rig.status.progress.as_deref(), Some("15/15"));
    assert!(rig.status.rto_seconds.is_some_and(|rto| rto > 5), "{:?}", rig.status.rto_seconds);
    assert_eq!(rig.status.rpo_seconds, Some(10));
    assert!(conditions::is_true(&rig.status.conditions, ConditionType::Ready));
}

#[test]
fn nothing_is_made_before_the_attempt_is_on_record() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![script("announce")];
    let mut rig = Rig::new(vec![database]);
    for _ in 0..5 {
        rig.pass(Crash::BeforePersist);
    }
    assert!(rig.journal.is_empty(), "{:?}", rig.journal);
}

#[test]
fn a_pause_waits_for_as_many_people_as_its_quorum_asks_and_says_so() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![pause("sign-off", 2)];
    let mut rig = Rig::new(vec![database]);
    rig.run_until(10, |status| status.phase == Some(RunPhase::Waiting));
    assert!(
        rig.status
            .waiting_for
            .as_deref()
            .is_some_and(|text| text.contains("kubectl lifeboat approve erp-1 sign-off"))
    );
    rig.answer("a", "sign-off", 1, Decision::Approve, "alice");
    rig.answer("a2", "sign-off", 1, Decision::Approve, "alice");
    for _ in 0..5 {
        rig.pass(Crash::Never);
    }
    assert_eq!(rig.state("sign-off"), StepState::Waiting);
    assert_eq!(rig.verdicts["a2"].reason, VerdictReason::AlreadyAnswered);
    rig.answer("b", "sign-off", 1, Decision::Approve, "bob");
    rig.run_to_end();
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
    assert_eq!(rig.message("sign-off"), "approved by alice, bob");
    assert_eq!(rig.verdicts["b"].reason, VerdictReason::Counted);
}

#[test]
fn an_answer_that_does_not_count_is_told_why() {
    let mut sign_off = pause("sign-off", 1);
    sign_off.pause.as_mut().unwrap().approvers =
        Some(Approvers { users: vec!["carol".into()], groups: vec![] });
    let mut database = group("database", &["db-1"]);
    database.before = vec![sign_off, script("announce")];
    let mut rig = Rig::new(vec![database]);
    rig.run_until(10, |status| status.phase == Some(RunPhase::Waiting));
    rig.answer("stranger", "sign-off", 1, Decision::Approve, "mallory");
    rig.answer("early", "announce", 1, Decision::Skip, "carol");
    rig.answer("later", "sign-off", 2, Decision::Approve, "carol");
    rig.answer("wrong", "sign-off", 1, Decision::Retry, "carol");
    rig.answer("nowhere", "sing-off", 1, Decision::Approve, "carol");
    for _ in 0..3 {
        rig.pass(Crash::Never);
    }
    let reasons: BTreeMap<&str, VerdictReason> =
        rig.verdicts.iter().map(|(name, verdict)| (name.as_str(), verdict.reason)).collect();
    let expected = [
        ("early", VerdictReason::NotWaiting),
        ("later", VerdictReason::WrongAttempt),
        ("nowhere", VerdictReason::StepNotFound),
        ("stranger", VerdictReason::NotAnApprover),
        ("wrong", VerdictReason::DecisionNotOffered),
    ];
    assert_eq!(reasons, BTreeMap::from(expected));
    assert_eq!(rig.state("sign-off"), StepState::Waiting);
}

#[test]
fn a_rejection_stops_the_run() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![pause("sign-off", 1)];
    let mut rig = Rig::new(vec![database]);
    rig.answers.insert(("sign-off".into(), 1), Decision::Reject);
    rig.run_to_end();
    assert_eq!(rig.status.phase, Some(RunPhase::Failed));
    assert!(rig.machines_made.is_empty());
    assert!(
        rig.message("db-1/CreateMachine").contains("step sign-off has failed"),
        "{}",
        rig.message("db-1/CreateMachine")
    );
}

#[test]
fn people_have_a_clock_of_their_own() {
    let mut sign_off = pause("sign-off", 1);
    sign_off.timeout = Some(lifeboat_crds::Duration::from_mins(60));
    sign_off.pause.as_mut().unwrap().on_timeout = OnTimeout::Continue;
    let mut database = group("database", &["db-1"]);
    database.before = vec![sign_off];
    let mut rig = Rig::new(vec![database]);
    rig.run_to_end();
    assert_eq!(rig.state("sign-off"), StepState::TimedOut);
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
    assert!(rig.status.rto_seconds.is_some_and(|rto| rto > 3600));
}

#[test]
fn a_failing_script_is_tried_again_after_its_backoff_and_then_stops_the_run() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![retried(script("announce"), 2)];
    let mut rig = Rig::new(vec![database]);
    for attempt in 1..=3 {
        rig.endings.insert(("announce".into(), attempt), Ending::Fails);
    }
    let start = rig.second;
    rig.run_to_end();
    assert_eq!(rig.journal, ["job announce#1", "job announce#2", "job announce#3"]);
    assert!(rig.second - start >= 10 + 20, "the backoff doubles: {}", rig.second - start);
    assert_eq!(rig.status.phase, Some(RunPhase::Failed));
    let ready = conditions::find(&rig.status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("attempt 3: exit code 1; no server is up"), "{}", ready.message);
}

#[test]
fn a_script_that_hangs_is_stopped_when_its_time_is_over() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![on_failure(script("announce"), OnFailure::Continue)];
    let mut rig = Rig::new(vec![database]);
    rig.endings.insert(("announce".into(), 1), Ending::Hangs);
    rig.run_to_end();
    assert_eq!(rig.state("announce"), StepState::TimedOut);
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
    assert!(rig.message("announce").contains("no end within 600s"), "{}", rig.message("announce"));
}

#[test]
fn a_job_that_somebody_deletes_counts_as_failed_and_is_not_made_again() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![script("announce")];
    let mut rig = Rig::new(vec![database]);
    rig.endings.insert(("announce".into(), 1), Ending::Deleted);
    rig.run_to_end();
    assert_eq!(rig.made[&("announce".to_owned(), 1)], 1);
    assert!(rig.message("announce").contains("was deleted by somebody"), "{}", rig.message("announce"));
}

#[test]
fn a_failed_step_that_asks_goes_on_as_people_say() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![on_failure(script("announce"), OnFailure::Ask)];
    let mut rig = Rig::new(vec![database]);
    rig.endings.insert(("announce".into(), 1), Ending::Fails);
    rig.endings.insert(("announce".into(), 2), Ending::Fails);
    rig.answers.insert(("announce".into(), 1), Decision::Retry);
    rig.answers.insert(("announce".into(), 2), Decision::Skip);
    rig.run_to_end();
    assert_eq!(rig.state("announce"), StepState::Skipped);
    assert_eq!(rig.made.keys().filter(|(step, _)| step == "announce").count(), 2);
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
}

#[test]
fn a_failed_server_stops_those_that_depend_on_it_and_the_next_group_but_not_its_neighbours() {
    let mut database = group("database", &["db-1", "db-2", "db-3"]);
    database.servers[1].depends_on = vec!["db-1".into()];
    let mut rig = Rig::new(vec![database, group("web", &["web-1"])]);
    rig.broken_machines = vec!["db-1".into()];
    rig.run_to_end();
    let states: Vec<ServerState> = rig.status.servers.iter().map(|server| server.state).collect();
    assert_eq!(states, [ServerState::Failed, ServerState::Failed, ServerState::Up, ServerState::NotStarted]);
    assert!(rig.message("db-1/CreateMachine").contains("wrong key"));
    assert!(rig.message("db-2/CreateMachine").contains("depends on db-1"));
    let ready = conditions::find(&rig.status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.ends_with("up: db-3"), "{}", ready.message);
}

/// Its health check would only time out.
#[test]
fn damage_that_a_machine_reads_while_it_boots_fails_the_health_check_at_once() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    rig.endings.insert(("db-1/HealthCheck".to_owned(), 1), Ending::Hangs);
    rig.rotten_machines = BTreeMap::from([("db-1".to_owned(), 5)]);
    let began = rig.second;
    rig.run_to_end();
    assert!(rig.second - began < 10, "after {} s", rig.second - began);
    assert_eq!(rig.status.phase, Some(RunPhase::Failed));
    assert_eq!(rig.state("db-1/HealthCheck"), StepState::Failed);
    assert!(rig.message("db-1/HealthCheck").contains("segment s/1 is not what was written"));
    assert_eq!(rig.machines_made["db-1"], 1, "damage does not heal by trying again");
    let ready = conditions::find(&rig.status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("segment s/1 is not what was written"), "{}", ready.message);
}

#[test]
fn damage_that_a_machine_reads_after_it_was_up_is_told_where_its_recovery_ended() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    rig.rotten_machines = BTreeMap::from([("db-1".to_owned(), 60)]);
    rig.run_to_end();
    assert_eq!(rig.status.servers[0].state, ServerState::Up);
    rig.run_until(100, |status| status.servers[0].state == ServerState::Failed);
    assert_eq!(rig.state("db-1/HealthCheck"), StepState::Completed);
    let message = rig.message("db-1/HealthCheck");
    assert!(message.contains("was up, but later") && message.contains("segment s/1"), "{message}");
}

#[test]
fn servers_come_up_no_more_at_a_time_than_parallelism_allows() {
    let mut database = group("database", &["db-1", "db-2", "db-3"]);
    database.parallelism = 1;
    let mut rig = Rig::new(vec![database]);
    rig.run_to_end();
    assert_eq!(
        rig.journal,
        [
            "machine db-1",
            "job db-1/HealthCheck#1",
            "machine db-2",
            "job db-2/HealthCheck#1",
            "machine db-3",
            "job db-3/HealthCheck#1"
        ]
    );
}

#[test]
fn a_step_for_other_types_of_runs_is_skipped_and_says_so() {
    let mut dns = script("repoint-dns");
    dns.when = Some(When { types: vec![FailoverType::Planned, FailoverType::Unplanned] });
    let mut database = group("database", &["db-1"]);
    database.after = vec![dns];
    let mut rig = Rig::new(vec![database]);
    rig.run_to_end();
    assert_eq!(rig.state("repoint-dns"), StepState::Skipped);
    assert_eq!(rig.message("repoint-dns"), "not done in runs of type Test");
}

#[test]
fn a_drill_is_done_only_when_it_is_cleaned_up_and_keeps_its_result() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    rig.spec.clean_up_after = Some(lifeboat_crds::Duration::from_mins(60));
    rig.run_to_end();
    let finished = rig.second;
    rig.run_until(4000, |status| status.phase == Some(RunPhase::CleanedUp));
    assert!(rig.second - finished >= 3600);
    assert!(rig.nothing_is_left());
    assert_eq!(rig.state("db-1/RemoveMachine"), StepState::Completed);
    assert_eq!(outcome(RunPhase::CleanedUp, &rig.status.conditions), RunPhase::Completed);
    assert_eq!(rig.status.servers[0].state, ServerState::CleanedUp);
}

#[test]
fn a_run_that_failed_before_it_made_a_machine_needs_no_clean_up() {
    let mut database = group("database", &["db-1"]);
    database.before = vec![script("announce")];
    let mut rig = Rig::new(vec![database]);
    rig.endings.insert(("announce".into(), 1), Ending::Fails);
    rig.run_until(100, |status| status.phase == Some(RunPhase::CleanedUp));
    assert_eq!(outcome(RunPhase::CleanedUp, &rig.status.conditions), RunPhase::Failed);
}

#[test]
fn a_run_waits_while_another_one_has_its_server_and_starts_by_itself_afterwards() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    let ready = rig.resolution.clone();
    rig.resolution =
        Resolution::Taken { run: "erp-0".into(), server: "db-1".into(), state: "Running".into() };
    rig.pass(Crash::Never);
    assert_eq!(rig.status.phase, Some(RunPhase::Pending));
    assert_eq!(rig.status.waiting_for.as_deref(), Some("run erp-0 has server db-1 and is Running"));
    rig.resolution = Resolution::Problems(vec!["server db-1 does not exist: create it".into()]);
    rig.pass(Crash::Never);
    assert_eq!(rig.status.phase, Some(RunPhase::Validating));
    assert!(conditions::is_true(&rig.status.conditions, ConditionType::Stalled));
    rig.resolution = ready;
    rig.run_to_end();
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
}

#[test]
fn a_later_edit_of_the_plan_does_not_touch_a_running_run() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    rig.run_until(5, |status| status.phase == Some(RunPhase::Running));
    let hash = rig.status.plan_hash.clone();
    rig.resolution = Resolution::Problems(vec!["the plan is gone".into()]);
    rig.run_to_end();
    assert_eq!(rig.status.phase, Some(RunPhase::Completed));
    assert_eq!(rig.status.plan_hash, hash);
}

#[test]
fn cancelling_before_the_start_makes_nothing() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    rig.spec.cancel = true;
    rig.run_until(5, ended);
    assert_eq!(rig.status.phase, Some(RunPhase::Cancelled));
    assert!(rig.journal.is_empty());
}

fn facts(points: &[i64]) -> ServerFacts {
    ServerFacts {
        lost: None,
        id: "id".into(),
        appliance: "berlin".into(),
        consistency_group: None,
        target: Target { virtual_machine_pod: serde_json::from_value(serde_json::json!({})).unwrap() },
        health_check: None,
        points: Ok(points.iter().map(|second| point(*second)).collect()),
        vault_silent: false,
        latest_processed: points.first().map(|second| point(*second).time),
    }
}

#[rstest::rstest]
#[case(RecoveryPointKind::Latest, None, 30)]
#[case(RecoveryPointKind::LatestProcessed, None, 10)]
#[case(RecoveryPointKind::At, Some(25), 20)]
#[case(RecoveryPointKind::At, Some(20), 20)]
fn the_point_is_chosen_as_asked(
    #[case] kind: RecoveryPointKind,
    #[case] at: Option<i64>,
    #[case] expected: i64,
) {
    let mut spec = Rig::new(vec![]).spec;
    spec.recovery_point = RecoveryPointChoice { kind, time: at.map(|second| point(second).time) };
    let servers = BTreeMap::from([("db-1".to_owned(), facts(&[10, 20, 30]))]);
    let resolved = resolve(&spec, Some(&[group("database", &["db-1"])]), &servers).unwrap();
    assert_eq!(resolved.servers[0].recovery_point, point(expected));
}

/// Points of these seconds; those with an id are a part of a group's point.
fn member(points: &[(i64, Option<&str>)]) -> ServerFacts {
    let of = |(second, id): &(i64, Option<&str>)| ResolvedPoint {
        group_point: id.map(str::to_owned),
        ..point(*second)
    };
    ServerFacts {
        consistency_group: Some("erp".into()),
        points: Ok(points.iter().map(of).collect()),
        ..facts(&[])
    }
}

fn resolve_group(servers: &BTreeMap<String, ServerFacts>) -> Result<Vec<i64>, String> {
    let mut spec = Rig::new(vec![]).spec;
    spec.recovery_point = RecoveryPointChoice { kind: RecoveryPointKind::LatestGroup, time: None };
    let names: Vec<&str> = servers.keys().map(String::as_str).collect();
    let resolved = resolve(&spec, Some(&[group("all", &names)]), servers);
    let resolved = resolved.map_err(|problems| problems.join("\n"))?;
    let second = |server: &ResolvedServer| {
        (0..100).find(|second| point(*second).time == server.recovery_point.time).unwrap()
    };
    Ok(resolved.servers.iter().map(second).collect())
}

#[test]
fn the_newest_point_that_all_members_have_is_taken_and_others_take_their_latest() {
    let servers = BTreeMap::from([
        // "c" was not finished: db-2's log has no record of it. The agent of db-2 is a second behind, too.
        ("db-1".to_owned(), member(&[(10, Some("a")), (20, Some("b")), (30, Some("c")), (40, None)])),
        ("db-2".to_owned(), member(&[(11, Some("a")), (21, Some("b")), (41, None)])),
        ("web".to_owned(), facts(&[5, 50])),
    ]);
    assert_eq!(resolve_group(&servers), Ok(vec![20, 21, 50]));
    // A group of its own, on another appliance.
    let mut apart = servers;
    apart.get_mut("db-2").unwrap().appliance = "paris".into();
    assert_eq!(resolve_group(&apart), Ok(vec![30, 21, 50]));
}

#[test]
fn members_without_a_common_point_are_refused_with_what_to_do() {
    let servers = BTreeMap::from([
        ("db-1".to_owned(), member(&[(10, Some("a")), (40, None)])),
        ("db-2".to_owned(), member(&[(11, Some("b")), (41, None)])),
    ]);
    let refused = resolve_group(&servers).unwrap_err();
    for text in ["db-1, db-2", "group erp", "kubectl lifeboat point db-1", "choose Latest"] {
        assert!(refused.contains(text), "{text} is missing in {refused}");
    }
    // One problem, not one for each of them.
    assert_eq!(refused.lines().count(), 1, "{refused}");
}

#[test]
fn why_a_members_points_are_not_known_is_told_and_not_that_there_is_no_common_one() {
    let unknown = ServerFacts { points: Err("the vault is away".into()), ..member(&[]) };
    let servers =
        BTreeMap::from([("db-1".to_owned(), member(&[(10, Some("a"))])), ("db-2".to_owned(), unknown)]);
    assert_eq!(resolve_group(&servers).unwrap_err(), "server db-2: the vault is away");
}

#[rstest::rstest]
#[case(RecoveryPointKind::LatestAppConsistent, 10)]
#[case(RecoveryPointKind::LatestFilesystemConsistent, 20)]
#[case(RecoveryPointKind::LatestCrashConsistent, 30)]
fn a_consistency_is_met_by_itself_and_by_more(#[case] kind: RecoveryPointKind, #[case] expected: i64) {
    let mut spec = Rig::new(vec![]).spec;
    spec.recovery_point = RecoveryPointChoice { kind, time: None };
    let mut db = facts(&[10, 20, 30]);
    let points = db.points.as_mut().unwrap();
    points[0].consistency = Consistency::AppConsistent;
    points[1].consistency = Consistency::FilesystemConsistent;
    let plan = [group("database", &["db-1"])];
    let mut servers = BTreeMap::from([("db-1".to_owned(), db)]);
    let chosen = resolve(&spec, Some(&plan), &servers).unwrap().servers[0].recovery_point.time;
    assert_eq!(chosen, point(expected).time);
    servers.insert("db-1".to_owned(), facts(&[30]));
    let refused = resolve(&spec, Some(&plan), &servers).err();
    let missing = kind != RecoveryPointKind::LatestCrashConsistent;
    assert_eq!(refused.is_some_and(|why| why[0].contains("kubectl lifeboat point db-1")), missing);
}

/// The vault was put back to second 20; there had been a point of second 30.
fn choose_after_a_rollback(points: &[i64], kind: RecoveryPointKind, at: Option<i64>) -> Result<i64, String> {
    let mut spec = Rig::new(vec![]).spec;
    spec.recovery_point = RecoveryPointChoice { kind, time: at.map(|second| point(second).time) };
    let lost = Some(Lost { record: 30, point_time: point(30).time });
    let servers = BTreeMap::from([("db-1".to_owned(), ServerFacts { lost, ..facts(points) })]);
    let resolved = resolve(&spec, Some(&[group("database", &["db-1"])]), &servers);
    resolved.map_err(|problems| problems.join("\n")).map(|resolved| {
        let chosen = &resolved.servers[0].recovery_point;
        (10..100).find(|second| point(*second) == *chosen).unwrap()
    })
}

#[rstest::rstest]
#[case(RecoveryPointKind::Latest, None)]
#[case(RecoveryPointKind::LatestProcessed, None)]
#[case(RecoveryPointKind::LatestCrashConsistent, None)]
#[case(RecoveryPointKind::At, Some(29))]
#[case(RecoveryPointKind::At, Some(1000))]
fn an_older_point_is_never_taken_for_a_lost_one(#[case] kind: RecoveryPointKind, #[case] at: Option<i64>) {
    let refused = choose_after_a_rollback(&[10, 20], kind, at).unwrap_err();
    for text in [
        format!("it had a point of {} (up to record 30)", point(30).time),
        format!("holds now is {}", point(20).time),
        "start another run with recoveryPoint {kind: At, time: ".to_owned(),
    ] {
        assert!(refused.contains(&text), "{text} is missing in {refused}");
    }
}

/// Whoever names the instant, or one before the loss, or finds a newer point, is not held up.
#[rstest::rstest]
#[case(&[10, 20], RecoveryPointKind::At, Some(20), 20)]
#[case(&[10, 20], RecoveryPointKind::At, Some(15), 10)]
#[case(&[10, 20, 40], RecoveryPointKind::Latest, None, 40)]
#[case(&[10, 20, 40], RecoveryPointKind::At, Some(45), 40)]
#[case(&[10, 20, 30], RecoveryPointKind::Latest, None, 30)]
#[case(&[40], RecoveryPointKind::Latest, None, 40)]
fn what_was_not_lost_is_taken_as_ever(
    #[case] points: &[i64],
    #[case] kind: RecoveryPointKind,
    #[case] at: Option<i64>,
    #[case] expected: i64,
) {
    assert_eq!(choose_after_a_rollback(points, kind, at), Ok(expected));
}

#[test]
fn a_vault_that_was_put_back_to_before_its_first_point_is_not_called_one_that_has_none_yet() {
    let refused = choose_after_a_rollback(&[], RecoveryPointKind::Latest, None).unwrap_err();
    assert!(refused.contains("holds none of that time any more"), "{refused}");
}

#[test]
fn a_run_that_waits_for_what_comes_by_itself_does_not_ask_for_anybody() {
    let mut rig = Rig::new(vec![group("database", &["db-1"])]);
    let ready = std::mem::replace(
        &mut rig.resolution,
        Resolution::NotYet {
            problems: vec!["server db-1: the vault gives no answer".to_owned()],
            vault_silent: true,
        },
    );
    rig.run_until(5, |status| status.phase == Some(RunPhase::Validating));
    assert_eq!(rig.status.waiting_for.as_deref(), Some("server db-1: the vault gives no answer"));
    assert!(conditions::is_true(&rig.status.conditions, ConditionType::Reconciling), "{:?}", rig.status);
    assert!(conditions::find(&rig.status.conditions, ConditionType::Stalled).is_none(), "{:?}", rig.status);
    rig.resolution = ready;
    rig.run_until(5, |status| status.phase == Some(RunPhase::Running));
    let unknown = ServerFacts { points: Err("the vault gives no answer".into()), ..facts(&[]) };
    assert!(unknown.is_to_come() && facts(&[]).is_to_come());
    assert!(!facts(&[1]).is_to_come());
}

#[test]
fn only_the_latest_point_of_a_connected_server_is_waited_for() {
    let connected = OwnPoint { recoverable_until: Some(point(30).time), answer: None };
    let mut servers =
        BTreeMap::from([("db-1".to_owned(), connected), ("db-2".to_owned(), OwnPoint::default())]);
    let mut spec = Rig::new(vec![]).spec;
    let awaited = |spec: &FailoverRunSpec, servers: &BTreeMap<String, OwnPoint>, created: i64| {
        OwnPoints::new(spec, point(created).time, &FailoverRunStatus::default()).awaited(servers)
    };
    assert_eq!(awaited(&spec, &servers, 30), ["db-1"]);
    assert!(awaited(&spec, &servers, 29).is_empty(), "the vault holds that moment");
    servers.get_mut("db-1").unwrap().answer = Some(PointAnswer::Taken);
    assert!(awaited(&spec, &servers, 30).is_empty(), "its agent has answered");
    servers.get_mut("db-1").unwrap().answer = None;
    spec.recovery_point = RecoveryPointChoice { kind: RecoveryPointKind::LatestProcessed, time: None };
    assert!(awaited(&spec, &servers, 30).is_empty());
}

/// A run of second 100 over one server. The newest point in the vault is of second 90; what is heard of the server, and
/// whether the vault answers, is the case's.
struct Latest {
    rig: Rig,
    heard: OwnPoint,
    points: Result<Vec<i64>, &'static str>,
    /// An operator that has just started has not opened the vault yet.
    fresh: bool,
}

impl Latest {
    fn new() -> Self {
        let mut rig = Rig::new(vec![group("database", &["db-1"])]);
        rig.second = 100;
        let heard = OwnPoint { recoverable_until: Some(point(90).time), answer: None };
        Self { rig, heard, points: Ok(vec![90]), fresh: false }
    }

    fn pass(&mut self) {
        let heard = BTreeMap::from([("db-1".to_owned(), self.heard.clone())]);
        let points = self.points.clone().map_err(str::to_owned);
        let points = points.map(|points| points.into_iter().map(point).collect());
        let vault_silent = points.is_err() && !self.fresh;
        let facts = ServerFacts { points, vault_silent, ..facts(&[]) };
        let servers = BTreeMap::from([("db-1".to_owned(), facts)]);
        let (spec, now) = (self.rig.spec.clone(), self.rig.now());
        let run = OwnPoints::new(&spec, point(100).time, &self.rig.status);
        let awaited = run.awaited(&heard);
        self.rig.resolution = if let Some(refused) = refuse(&spec, point(100).time) {
            refused
        } else if !awaited.is_empty() && run.waits_unasked(now) {
            Resolution::Awaiting(awaited)
        } else {
            conclude(Some(&[group("database", &["db-1"])]), true, &servers, &run, &heard, now)
        };
        self.rig.pass(Crash::Never);
    }

    /// Until the run starts: when it does, the second of its point, and the note on it.
    fn start(&mut self) -> (i64, u64, Option<String>) {
        for _ in 0..200 {
            self.pass();
            if let Some(server) = self.rig.status.servers.first() {
                let point = server.recovery_point.clone().unwrap();
                return (self.rig.second, point.record, server.recovery_point_note.clone());
            }
            assert_eq!(self.rig.status.phase, Some(RunPhase::Validating));
            // Nobody has to do anything.
            let conditions = &self.rig.status.conditions;
            assert!(conditions::is_true(conditions, ConditionType::Reconciling), "{conditions:?}");
            assert!(conditions::find(conditions, ConditionType::Stalled).is_none(), "{conditions:?}");
            self.rig.second_passes();
        }
        panic!("not started: {:?}", self.rig.status);
    }

    fn seconds_pass(&mut self, seconds: usize) {
        for _ in 0..seconds {
            self.pass();
            assert!(self.rig.status.servers.is_empty(), "started at {}", self.rig.second);
            self.rig.second_passes();
        }
    }
}

/// The newest point is ten seconds older than the run, and all that the server wrote is in it until the instant that was heard:
/// an idle server, or one that was shut down.
#[test]
fn what_a_run_loses_is_not_counted_from_a_point_behind_which_nothing_was_written() {
    let lost = |until: Option<i64>, kind: RecoveryPointKind, at: Option<i64>| {
        let mut run = Latest::new();
        run.rig.spec.recovery_point = RecoveryPointChoice { kind, time: at.map(|second| point(second).time) };
        run.heard.recoverable_until = until.map(|second| point(second).time);
        run.start();
        let status = &run.rig.status;
        (status.rpo_seconds, status.resolved.as_ref().unwrap().servers[0].complete_until.is_some())
    };
    let latest = RecoveryPointKind::Latest;
    assert_eq!(lost(None, latest, None), (Some(10), false));
    assert_eq!(lost(Some(101), latest, None), (Some(0), true));
    // Older by choice.
    assert_eq!(lost(Some(101), RecoveryPointKind::At, Some(95)), (Some(10), false));
}

#[test]
fn a_run_waits_for_a_point_of_its_own_moment_but_not_for_ever_and_says_that_it_took_an_older_one() {
    let mut run = Latest::new();
    run.seconds_pass(1);
    assert!(
        run.rig.status.waiting_for.as_deref().unwrap().contains("a point of db-1"),
        "{:?}",
        run.rig.status
    );
    let (second, record, note) = run.start();
    assert_eq!((second, record), (130, 90));
    let note = note.unwrap();
    assert!(note.contains("did not reach the vault within 30 s") && note.contains("10 s older"), "{note}");
}

#[test]
fn a_point_of_the_runs_moment_is_taken_as_soon_as_it_is_there_without_a_note() {
    let mut run = Latest::new();
    run.seconds_pass(7);
    (run.heard.answer, run.points) = (Some(PointAnswer::Taken), Ok(vec![90, 101]));
    assert_eq!(run.start(), (107, 101, None));
}

#[test]
fn a_vault_that_was_away_gives_a_point_its_whole_time_once_it_is_back() {
    let mut run = Latest::new();
    run.points = Err("the vault gives no answer");
    run.seconds_pass(60);
    // It is back with the older point; the run's own comes seconds later.
    run.points = Ok(vec![90]);
    run.seconds_pass(20);
    (run.heard.answer, run.points) = (Some(PointAnswer::Taken), Ok(vec![90, 101]));
    assert_eq!(run.start(), (180, 101, None));

    // The same where nothing is heard of the agent: it connects anew.
    let mut run = Latest::new();
    run.points = Err("the vault gives no answer");
    run.seconds_pass(60);
    (run.heard.recoverable_until, run.points) = (None, Ok(vec![90]));
    run.seconds_pass(10);
    // Away again: the time goes on, and is over in the end.
    run.points = Err("the vault gives no answer");
    run.seconds_pass(10);
    run.points = Ok(vec![90]);
    let (second, record, note) = run.start();
    assert_eq!((second, record), (190, 90));
    assert!(note.unwrap().contains("its agent is not connected"));
}

/// Whoever takes over from an operator that died must not make a server that burnt wait.
#[test]
fn an_operator_that_has_just_started_gives_no_server_more_time() {
    let mut run = Latest::new();
    (run.heard.recoverable_until, run.points, run.fresh) = (None, Err("the vault is not open"), true);
    run.seconds_pass(3);
    run.points = Ok(vec![90]);
    let (second, record, _) = run.start();
    assert_eq!((second, record), (103, 90));
}

#[test]
fn an_agent_that_cannot_take_the_point_or_is_gone_is_told_and_not_waited_for() {
    let mut run = Latest::new();
    run.heard.answer = Some(PointAnswer::Refused("its disks are compared".into()));
    let (second, record, note) = run.start();
    assert_eq!((second, record), (100, 90));
    assert!(note.unwrap().contains("its disks are compared"));
    let mut run = Latest::new();
    run.heard.recoverable_until = None;
    let (second, _, note) = run.start();
    assert_eq!(second, 100);
    assert!(note.unwrap().contains("its agent is not connected"));
    // Nothing was written since its last point.
    let mut run = Latest::new();
    run.heard.recoverable_until = Some(point(101).time);
    assert_eq!(run.start(), (100, 90, None));
}

/// A run of second 100 whose point is of another second.
fn run_of_an_instant(time: i64) -> Latest {
    let mut run = Latest::new();
    run.rig.spec.recovery_point =
        RecoveryPointChoice { kind: RecoveryPointKind::At, time: Some(point(time).time) };
    run
}

#[test]
fn an_instant_that_is_still_to_come_is_refused_for_good() {
    let mut run = run_of_an_instant(161);
    run.pass();
    // It is looked up once, and the reason stays.
    run.rig.resolution = Resolution::Problems(vec![]);
    run.rig.run_until(5, |status| status.phase == Some(RunPhase::CleanedUp));
    let ready = conditions::find(&run.rig.status.conditions, ConditionType::Ready).unwrap().clone();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "PointInFuture"));
    for text in [&format!("spec.recoveryPoint.time is {}", point(161).time), "start another run"] {
        assert!(ready.message.contains(text), "{text} is missing in {}", ready.message);
    }
    assert_eq!(outcome(RunPhase::CleanedUp, &run.rig.status.conditions), RunPhase::Failed);
    // Nor does it start by itself when the instant has come, and it had waited until then for another run.
    let mut run = run_of_an_instant(161);
    (run.rig.second, run.points) = (500, Ok(vec![90, 160]));
    run.pass();
    assert_eq!((run.rig.status.phase, run.rig.status.started_at), (Some(RunPhase::Failed), None));

    let mut run = run_of_an_instant(100);
    run.rig.spec.servers = vec![ServerOverride {
        name: "db-1".into(),
        recovery_point: RecoveryPointChoice { kind: RecoveryPointKind::At, time: Some(point(161).time) },
    }];
    run.pass();
    let ready = conditions::find(&run.rig.status.conditions, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("spec.servers[db-1].recoveryPoint.time"), "{}", ready.message);
}

#[test]
fn an_instant_of_now_is_no_future_though_clocks_differ() {
    assert_eq!(run_of_an_instant(160).start(), (100, 90, None));
}

#[test]
fn everything_that_stands_in_the_way_is_told_at_once_with_its_remedy() {
    let mut database = group("database", &["db-1", "db-2"]);
    database.servers[0].depends_on = vec!["db-2".into()];
    database.servers[1].depends_on = vec!["db-1".into()];
    database.before = vec![check("early", "db-1"), script("twice"), script("twice")];
    let servers = BTreeMap::from([("db-1".to_owned(), facts(&[]))]);
    let problems = resolve(&Rig::new(vec![]).spec, Some(&[database, group("web", &["db-1"])]), &servers)
        .unwrap_err()
        .join("\n");
    for text in [
        "server db-1 is named twice",
        "in a circle",
        "checks server db-1, which is not up by then",
        "step twice is named twice",
        "db-1 has no recovery point yet: wait",
        "create ProtectedServer db-2",
    ] {
        assert!(problems.contains(text), "{text} is missing in:\n{problems}");
    }
}

#[test]
fn a_plan_in_order_has_no_problem() {
    let mut database = group("database", &["db-1", "db-2"]);
    database.servers[1].depends_on = vec!["db-1".into()];
    database.after = vec![check("postgres", "db-2")];
    let mut web = group("web", &["web-1"]);
    web.before = vec![check("again", "db-1")];
    assert_eq!(check_plan(&[database, web]), Vec::<String>::new());
}
