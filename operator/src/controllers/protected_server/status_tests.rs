//! What people read of a server, situation by situation.

use std::time::Duration;

use lifeboat_crds::{
    ProtectedServerStatus, ReplicationPolicySpec,
    appliance::Health,
    conditions::{self, ConditionType},
    server::{DiskState, FailoverState, Move, Replication, ServerPhase, Severity, Shutdown, ShutdownState},
};
use lifeboat_replication::{env::Micros, wire::v1};

use super::{
    figures::{is_significant, rpo_seconds},
    places::Placed,
    status::{Findings, is_quiet, status},
    testing::server,
};
use crate::control::{Figures, enrol::Enrolment};

const NOW: i64 = 1_800_000_000_000_000;

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(NOW).unwrap()
}

/// A protected server whose newest point is three seconds old.
pub(super) fn healthy() -> Findings {
    let disk = v1::DiskProgress {
        id: "sda".into(),
        path: "/dev/sda".into(),
        size_bytes: 1000,
        replicated_bytes: 1000,
        total_bytes: 1000,
        ..Default::default()
    };
    let report = v1::ServerReport {
        connected: true,
        last_seen_micros: NOW - 1_000_000,
        last_point_micros: NOW - 3_000_000,
        recoverable_until_micros: NOW - 3_000_000,
        complete: true,
        epoch: 1,
        heartbeat: Some(v1::Heartbeat {
            disks: vec![disk],
            agent_version: "0.1.0".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Findings {
        id: Some("id-db-1".into()),
        placed: Placed { process_server: Some("berlin-process-server-0".into()), last_move: None },
        policy: Some(ReplicationPolicySpec::default()),
        enrolment: Some(Enrolment { public_key_sha256: vec![1], ..Enrolment::default() }),
        figures: Some(Figures {
            process_server: "berlin-process-server-0".into(),
            time: Micros(NOW),
            age: Duration::ZERO,
            since: Duration::from_secs(3600),
            report,
        }),
        ..Findings::default()
    }
}

fn report(findings: &mut Findings) -> &mut v1::ServerReport {
    &mut findings.figures.as_mut().unwrap().report
}

fn message(status: &ProtectedServerStatus, kind: ConditionType) -> String {
    conditions::find(&status.conditions, kind).map(|condition| condition.message.clone()).unwrap_or_default()
}

#[test]
fn a_protected_server_is_ready_with_its_rpo() {
    let status = status(&server("db-1"), &healthy(), now());
    assert_eq!(
        (status.phase, status.replication_health),
        (Some(ServerPhase::Protected), Some(Health::Healthy))
    );
    assert!(conditions::is_true(&status.conditions, ConditionType::Ready), "{:?}", status.conditions);
    assert_eq!(status.rpo.unwrap().seconds, 3);
    assert_eq!(status.progress, None);
}

#[test]
fn another_agent_than_the_appliances_is_told_at_once_and_changes_nothing_else() {
    let server = server("db-1");
    let of = |program: v1::AgentProgram| {
        let mut findings = healthy();
        report(&mut findings).set_agent_program(program);
        status(&server, &findings, now())
    };
    let available =
        |status: &ProtectedServerStatus| status.agent.as_ref().and_then(|agent| agent.upgrade_available);
    let (unknown, same, other) =
        (of(v1::AgentProgram::Unspecified), of(v1::AgentProgram::Served), of(v1::AgentProgram::Other));
    assert_eq!([&unknown, &same, &other].map(available), [None, Some(false), Some(true)]);
    assert!(is_significant(Some(&same), &other), "written at once");
    assert_eq!(other.replication_health, Some(Health::Healthy));
    assert!(conditions::is_true(&other.conditions, ConditionType::Ready) && other.issues.is_empty());
}

#[test]
fn what_an_agent_tells_of_several_disks_is_one_issue_a_code_that_names_them_all() {
    let mut findings = healthy();
    let told = |code: &str, severity: &str, message: &str| v1::AgentIssue {
        code: code.into(),
        severity: severity.into(),
        message: message.into(),
        remedy: "give it a serial number".into(),
    };
    report(&mut findings).heartbeat.as_mut().unwrap().issues = vec![
        told("DiskWithoutSerial", "Warning", "/dev/sda has none"),
        told("DiskTooLarge", "Error", "/dev/sdb is too large"),
        told("DiskWithoutSerial", "Error", "/dev/sdc has none"),
    ];
    let issues = status(&server("db-1"), &findings, now()).issues;
    // A list with one code twice would be refused by the API server, and with it the whole status.
    let codes: Vec<&str> = issues.iter().map(|issue| issue.code.as_str()).collect();
    assert_eq!(codes, ["DiskWithoutSerial", "DiskTooLarge"]);
    assert_eq!(
        (issues[0].message.as_str(), issues[0].remedy.as_str(), issues[0].severity),
        ("/dev/sda has none; /dev/sdc has none", "give it a serial number", Severity::Critical)
    );
}

#[test]
fn an_agent_is_not_blamed_for_its_process_server() {
    let mut db = server("db-1");
    db.status = Some(status(&db, &healthy(), now()));
    let told = |findings: &Findings, seconds: i64| {
        let at = now() + jiff::SignedDuration::from_secs(seconds);
        let told = status(&db, findings, at);
        let connected =
            conditions::find(&told.conditions, ConditionType::AgentConnected).unwrap().status.clone();
        (connected, told.issues.iter().any(|issue| issue.code == "AgentSilent"), told.replication_health)
    };
    // It ends its connections and says so.
    let mut ends = healthy();
    report(&mut ends).connected = false;
    assert_eq!(told(&ends, 0), ("True".into(), false, Some(Health::Healthy)));
    // Nothing is heard of it.
    let mut unheard = ends.clone();
    unheard.figures.as_mut().unwrap().age = Duration::from_secs(18);
    assert_eq!(told(&unheard, 18), ("Unknown".into(), false, Some(Health::Unknown)));
    // It has started anew, and no agent has found it yet.
    let mut anew = ends.clone();
    (report(&mut anew).last_seen_micros, report(&mut anew).heartbeat) = (0, None);
    anew.figures.as_mut().unwrap().time = Micros(NOW + 40_000_000);
    assert_eq!(told(&anew, 40), ("Unknown".into(), false, Some(Health::Healthy)));
    anew.figures.as_mut().unwrap().time = Micros(NOW + 60_000_000);
    assert_eq!(told(&anew, 60), ("False".into(), true, Some(Health::Warning)));
    // Much later: what counts is how long it could have been found.
    anew.figures.as_mut().unwrap().since = Duration::from_secs(5);
    assert!(!told(&anew, 3600).1);
}

#[test]
fn rpo_grows_while_nothing_is_heard() {
    let mut findings = healthy();
    findings.figures.as_mut().unwrap().age = Duration::from_secs(10);
    assert_eq!(findings.figures.as_ref().and_then(rpo_seconds), Some(13));
}

#[test]
fn rpo_grows_while_a_process_server_waits_for_the_log() {
    let (server, findings) = moved(61);
    let told = status(&server, &findings, now() + jiff::SignedDuration::from_secs(100));
    assert_eq!(told.rpo.unwrap().seconds, 103);
}

#[test]
fn an_idle_server_that_proves_it_is_clean_has_no_growing_rpo() {
    let mut findings = healthy();
    report(&mut findings).last_point_micros = NOW - 3_600_000_000;
    report(&mut findings).recoverable_until_micros = NOW - 1_000_000;
    assert_eq!(findings.figures.as_ref().and_then(rpo_seconds), Some(1));
}

#[test]
fn the_initial_replication_shows_how_far_it_is_and_when_it_ends() {
    let mut findings = healthy();
    let report = report(&mut findings);
    (report.complete, report.last_point_micros, report.recoverable_until_micros) = (false, 0, 0);
    let disk = &mut report.heartbeat.as_mut().unwrap().disks[0];
    (disk.replicated_bytes, disk.bytes_per_second) = (250, 75);
    let status = status(&server("db-1"), &findings, now());
    assert_eq!(
        (status.phase, status.progress.as_deref()),
        (Some(ServerPhase::InitialReplication), Some("25%"))
    );
    assert_eq!(status.disks[0].state, DiskState::InitialReplication);
    assert_eq!(status.disks[0].estimated_completion.map(|time| time.as_second() - NOW / 1_000_000), Some(10));
    assert!(!conditions::is_true(&status.conditions, ConditionType::Ready));
}

#[test]
fn an_expired_token_is_told_with_its_remedy() {
    let enrolment = Enrolment { expires_at: Some(now()), ..Enrolment::default() };
    let findings = Findings { enrolment: Some(enrolment), figures: None, ..healthy() };
    let status = status(&server("db-1"), &findings, now());
    assert_eq!(status.phase, Some(ServerPhase::Enrolling));
    assert!(
        message(&status, ConditionType::Enrolled).contains("expired: delete Secret db-1-enrollment"),
        "{:?}",
        status.conditions
    );
}

#[test]
fn a_silent_agent_is_a_warning_and_after_a_quarter_of_an_hour_critical() {
    let mut findings = healthy();
    report(&mut findings).connected = false;
    report(&mut findings).last_seen_micros = NOW - 5_000_000;
    assert_eq!(
        status(&server("db-1"), &findings, now()).replication_health,
        Some(Health::Healthy),
        "a reconnection"
    );
    report(&mut findings).last_seen_micros = NOW - 60_000_000;
    assert_eq!(status(&server("db-1"), &findings, now()).replication_health, Some(Health::Warning));
    report(&mut findings).last_seen_micros = NOW - 16 * 60_000_000;
    let status = status(&server("db-1"), &findings, now());
    assert_eq!(status.replication_health, Some(Health::Critical));
    assert!(message(&status, ConditionType::AgentConnected).contains("systemctl status lifeboat-agent"));
}

#[test]
fn an_exceeded_threshold_is_an_issue_that_keeps_its_time() {
    let mut findings = healthy();
    findings.policy.as_mut().unwrap().rpo_threshold = lifeboat_crds::Duration::from_secs(2);
    let mut db = server("db-1");
    let first = status(&db, &findings, now());
    assert_eq!((first.issues[0].code.as_str(), first.issues[0].severity), ("RPOExceeded", Severity::Warning));
    db.status = Some(first.clone());
    let second = status(&db, &findings, now() + jiff::SignedDuration::from_secs(60));
    assert_eq!(second.issues[0].since, first.issues[0].since);
}

#[test]
fn a_log_that_cannot_be_written_is_a_failure_with_the_process_servers_words() {
    let mut findings = healthy();
    report(&mut findings).error = "the log was closed by run erp-1: release it".into();
    report(&mut findings).set_hindrance(v1::Hindrance::Closed);
    let status = status(&server("db-1"), &findings, now());
    assert_eq!(
        (status.phase, status.replication_health),
        (Some(ServerPhase::Failed), Some(Health::Critical))
    );
    assert!(message(&status, ConditionType::Ready).contains("release it"));
}

#[test]
fn a_vault_that_is_away_is_waited_for_and_no_failure_of_the_server() {
    let mut findings = healthy();
    report(&mut findings).error = "no certain answer to append of log".into();
    report(&mut findings).set_hindrance(v1::Hindrance::Store);
    let waiting = status(&server("db-1"), &findings, now());
    assert_eq!(
        (waiting.phase, waiting.replication_health),
        (Some(ServerPhase::Protected), Some(Health::Warning))
    );
    assert!(message(&waiting, ConditionType::Ready).contains("waits for the vault"));
    assert!(waiting.issues[0].remedy.contains("nothing is lost"), "{:?}", waiting.issues);

    // Its lease has run out, so agents are refused: nobody is sent to the machine for that.
    report(&mut findings).connected = false;
    report(&mut findings).last_seen_micros = NOW - 60_000_000;
    let refused = status(&server("db-1"), &findings, now());
    assert_eq!(
        refused.issues.iter().map(|issue| issue.code.as_str()).collect::<Vec<_>>(),
        ["VaultUnreachable"]
    );
    assert!(message(&refused, ConditionType::AgentConnected).contains("waits for the vault"));

    findings.policy.as_mut().unwrap().rpo_threshold = lifeboat_crds::Duration::from_secs(2);
    let late = status(&server("db-1"), &findings, now());
    assert_eq!((late.phase, late.replication_health), (Some(ServerPhase::Protected), Some(Health::Critical)));
}

#[test]
fn an_agent_that_waits_for_a_slow_line_is_worth_a_word_when_the_vault_gets_old() {
    let mut findings = healthy();
    report(&mut findings).error = "the agent waits".into();
    report(&mut findings).set_hindrance(v1::Hindrance::Uplink);
    let burst = status(&server("db-1"), &findings, now());
    assert_eq!((burst.issues.len(), burst.replication_health), (0, Some(Health::Healthy)));
    findings.policy.as_mut().unwrap().rpo_threshold = lifeboat_crds::Duration::from_secs(2);
    findings.upload_limit = 1 << 20;
    let late = status(&server("db-1"), &findings, now());
    let backlog = late.issues.iter().find(|issue| issue.code == "UploadBacklog").cloned().unwrap();
    assert!(backlog.remedy.contains("spec.bandwidth limits uploads to 1024 KiB/s now"), "{}", backlog.remedy);
    // Between two waits nothing is told in other words; when the vault is up to date, it is over.
    let mut db = server("db-1");
    db.status = Some(late.clone());
    (report(&mut findings).error, report(&mut findings).hindrance) = (String::new(), 0);
    let between = status(&db, &findings, now());
    assert_eq!((&between.issues, &between.conditions), (&late.issues, &late.conditions));
    report(&mut findings).recoverable_until_micros = NOW;
    assert_eq!(status(&db, &findings, now()).issues, []);
}

#[test]
fn a_restart_of_the_operator_changes_no_phase() {
    let mut db = server("db-1");
    db.status = Some(status(&db, &healthy(), now()));
    let findings = Findings { figures: None, applied: None, ..healthy() };
    let after = status(&db, &findings, now());
    assert_eq!(after.phase, Some(ServerPhase::Protected));
    assert_eq!(after.replication_health, Some(Health::Unknown));
    assert!(conditions::is_true(&after.conditions, ConditionType::InitialReplicationComplete));
}

#[test]
fn the_applier_is_whoever_holds_the_server_and_stays_while_none_is_heard() {
    let mut db = server("db-1");
    let applied = crate::control::Applied { applier: "berlin-applier-1".into(), report: Default::default() };
    let findings = Findings { applied: Some(applied), appliers_heard: true, ..healthy() };
    db.status = Some(status(&db, &findings, now()));
    let silent = Findings { applied: None, appliers_heard: false, ..healthy() };
    assert_eq!(status(&db, &silent, now()).applier.as_deref(), Some("berlin-applier-1"));
    let given_up = Findings { applied: None, appliers_heard: true, ..healthy() };
    assert_eq!(status(&db, &given_up, now()).applier, None);
}

#[test]
fn pausing_takes_effect_whatever_is_reported() {
    let mut db = server("db-1");
    db.spec.replication = Replication::Paused;
    let status = status(&db, &healthy(), now());
    assert_eq!(status.phase, Some(ServerPhase::Paused));
    assert!(message(&status, ConditionType::Ready).contains("set it to Enabled"));
}

#[test]
fn figures_alone_are_not_significant_and_states_are() {
    let db = server("db-1");
    let first = status(&db, &healthy(), now());
    let mut later = healthy();
    report(&mut later).last_point_micros += 1_000_000;
    report(&mut later).last_seen_micros += 1_000_000;
    assert!(!is_significant(Some(&first), &status(&db, &later, now())));
    report(&mut later).error = "closed".into();
    assert!(is_significant(Some(&first), &status(&db, &later, now())));
}

#[test]
fn a_resynchronization_that_has_to_wait_is_a_condition_with_its_reason_and_remedy() {
    let mut findings = healthy();
    report(&mut findings).heartbeat.as_mut().unwrap().resynchronization = "UncleanShutdown".into();
    let seen = status(&server("db-1"), &findings, now());
    assert_eq!(seen.phase, Some(ServerPhase::Resynchronizing), "it runs");
    assert!(conditions::find(&seen.conditions, ConditionType::ResynchronizationRequired).is_none());
    report(&mut findings).heartbeat.as_mut().unwrap().issues.push(v1::AgentIssue {
        code: "ResynchronizationRequired".into(),
        severity: "Warning".into(),
        message: "the server was restarted".into(),
        remedy: "wait for the window".into(),
    });
    let seen = status(&server("db-1"), &findings, now());
    let condition = conditions::find(&seen.conditions, ConditionType::ResynchronizationRequired).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "UncleanShutdown"));
    assert_eq!(condition.message, "the server was restarted; wait for the window");
    assert_eq!(seen.issues[0].code, "ResynchronizationRequired");
}

/// A protected server that was moved some seconds ago, and whose new process server has not got the log yet.
fn moved(seconds: i64) -> (lifeboat_crds::ProtectedServer, Findings) {
    let mut server = server("db-1");
    server.status = Some(status(&server, &healthy(), now()));
    let mut findings = healthy();
    findings.placed = Placed {
        process_server: Some("berlin-process-server-1".into()),
        last_move: Some(Move {
            from: "berlin-process-server-0".into(),
            to: "berlin-process-server-1".into(),
            time: jiff::Timestamp::from_microsecond(NOW - seconds * 1_000_000).unwrap(),
            reason: "ProcessServerLost".into(),
            message: "nothing was heard of it for 20 s".into(),
            lost_epoch: Some(1),
        }),
    };
    *report(&mut findings) = v1::ServerReport {
        error: "another process server holds the log".into(),
        hindrance: v1::Hindrance::Held.into(),
        ..Default::default()
    };
    (server, findings)
}

#[test]
fn a_server_that_was_just_moved_is_told_of_with_the_reason_and_wakes_nobody() {
    let (server, findings) = moved(10);
    let told = status(&server, &findings, now());
    assert_eq!((told.phase, told.issues.len()), (Some(ServerPhase::Protected), 0));
    let message = message(&told, ConditionType::AgentConnected);
    assert!(message.contains("moved from berlin-process-server-0 to berlin-process-server-1"), "{message}");
    assert!(message.contains("nothing was heard of it"), "{message}");
    assert_eq!(told.process_server.as_deref(), Some("berlin-process-server-1"));
    assert_eq!(told.last_move.as_ref().and_then(|last| last.lost_epoch), Some(1));
    // Who has the log is remembered until the new one has it.
    assert_eq!(told.epoch, Some(1));
}

#[test]
fn a_move_that_does_not_come_to_an_end_is_told_as_what_hinders_it() {
    let (server, findings) = moved(61);
    let told = status(&server, &findings, now());
    assert_eq!((told.phase, told.replication_health), (Some(ServerPhase::Protected), Some(Health::Warning)));
    assert!(told.issues.iter().any(|issue| issue.message.contains("another process server holds")));
}

#[test]
fn only_a_server_with_nothing_under_way_may_be_moved_by_choice() {
    let mut server = server("db-1");
    server.status = Some(status(&server, &healthy(), now()));
    assert!(is_quiet(&server, &healthy()));
    type Change = fn(&mut Findings);
    let restless: [(&str, Change); 6] = [
        ("compares", |findings| {
            report(findings).heartbeat.as_mut().unwrap().resynchronization = "TrackingLost".into();
        }),
        ("copies", |findings| report(findings).complete = false),
        ("not connected", |findings| report(findings).connected = false),
        ("its log is closed by a failover", |findings| report(findings).error = "closed by run-1".into()),
        ("a run has it", |findings| {
            findings.failover = Some(FailoverState { run: "run-1".into(), state: Default::default() });
        }),
        ("nobody reports it", |findings| findings.figures = None),
    ];
    for (what, change) in restless {
        let mut findings = healthy();
        change(&mut findings);
        assert!(!is_quiet(&server, &findings), "{what}");
    }
    server.spec.replication = Replication::Paused;
    assert!(!is_quiet(&server, &healthy()), "paused");
}

#[test]
fn a_server_that_was_shut_down_by_order_alarms_nobody() {
    let mut off = server("db-1");
    off.spec.request_shutdown = Some(now());
    off.status.as_mut().unwrap().shutdown = Some(Shutdown {
        requested_at: now(),
        state: ShutdownState::PoweredOff,
        complete_at: Some(now()),
        reason: None,
        message: None,
    });
    let mut findings = healthy();
    if let Some(figures) = &mut findings.figures {
        figures.report.connected = false;
        let then = NOW - 7_200_000_000;
        (figures.report.last_seen_micros, figures.report.recoverable_until_micros) = (then, then);
        figures.report.last_point_micros = then;
    }
    let told = status(&off, &findings, now());
    assert_eq!(told.issues, []);
    assert_eq!(told.rpo.map(|rpo| rpo.seconds), Some(0));
    let connected = conditions::find(&told.conditions, ConditionType::AgentConnected).unwrap();
    assert_eq!((connected.status.as_str(), connected.reason.as_str()), ("False", "SwitchedOff"));
    // The same without the order.
    off.spec.request_shutdown = None;
    let codes: Vec<_> = status(&off, &findings, now()).issues.into_iter().map(|issue| issue.code).collect();
    assert_eq!(codes, ["AgentSilent", "RPOExceeded"]);
}
