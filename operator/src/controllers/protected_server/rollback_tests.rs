//! What is kept of a log's end, what is noticed by it, and what people read of that.

use std::sync::Arc;

use lifeboat_crds::{
    Duration as Span, ReplicationPolicySpec, Time,
    appliance::Health,
    conditions::{self, ConditionType},
    names::ACKNOWLEDGE_ROLLBACK_ANNOTATION,
    server::{LogHead, Rollback, Severity},
};
use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{LogOptions, LogWriter, Order},
    store::model::ModelStore,
    vault::Vault,
    wire::v1::{self, log_record::Body},
};
use proptest::prelude::*;

use super::{
    figures::is_significant,
    rollback::{Next, Seen, follow, holds, is_over, judge},
    status::{Findings, status},
    status_tests::healthy,
    testing::server,
};

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Time {
    Time::from_second(second).unwrap()
}

/// The end of a log whose records are points, one a second.
fn head(writer: &str, epoch: u32, number: u64) -> v1::LogHead {
    v1::LogHead {
        epoch,
        part: 0,
        offset: 1000 + number,
        chain: vec![number as u8; 32],
        number,
        point_micros: (NOW - 1000 + number as i64) * 1_000_000,
        writer: writer.to_owned(),
        taken_number: 0,
        taken_point_micros: 0,
    }
}

fn after(head: &v1::LogHead) -> Seen {
    follow(Seen::default(), head, true, at(NOW))
}

#[test]
fn the_first_report_is_kept_as_it_is() {
    let first = head("ps-0 a", 3, 100);
    assert_eq!(judge(None, &first), Next::Follow);
    let kept = after(&first).head.unwrap();
    assert_eq!((kept.epoch, kept.part, kept.offset, kept.record), (3, 0, 1100, 100));
    assert_eq!(kept.chain, "64".repeat(32));
    assert_eq!(kept.point_time, Some(at(NOW - 900)));
}

#[test]
fn the_same_writer_is_believed_and_an_older_report_of_it_changes_nothing() {
    let seen = after(&head("ps-0 a", 3, 100)).head;
    assert_eq!(judge(seen.as_ref(), &head("ps-0 a", 3, 101)), Next::Follow);
    assert_eq!(judge(seen.as_ref(), &head("ps-0 a", 3, 100)), Next::Keep);
    assert_eq!(judge(seen.as_ref(), &head("ps-0 a", 3, 99)), Next::Keep);
}

/// Also when its numbers are beyond: nobody knows which history they belong to.
#[test]
fn another_writer_means_that_the_log_itself_is_asked() {
    let seen = after(&head("ps-0 a", 3, 100)).head;
    for other in [head("ps-0 b", 4, 100), head("ps-1 c", 3, 500), head("ps-0 b", 3, 50)] {
        assert_eq!(judge(seen.as_ref(), &other), Next::Ask);
    }
}

#[test]
fn a_late_report_of_a_fenced_writer_does_not_take_the_end_back() {
    let seen = after(&head("ps-1 b", 4, 100));
    assert_eq!(follow(seen.clone(), &head("ps-0 a", 3, 90), true, at(NOW + 5)), seen);
}

#[test]
fn a_writer_that_knows_of_no_point_yet_does_not_take_the_newest_one_away() {
    let seen = after(&head("ps-0 a", 3, 100));
    let resumed = v1::LogHead { point_micros: 0, ..head("ps-0 b", 4, 101) };
    let head = follow(seen, &resumed, true, at(NOW + 5)).head.unwrap();
    assert_eq!((head.record, head.point_time), (101, Some(at(NOW - 900))));
}

#[test]
fn what_the_log_does_not_hold_any_more_is_kept_until_somebody_has_seen_to_it() {
    let seen = after(&head("ps-0 a", 3, 100));
    let found = v1::LogHead {
        taken_number: 50,
        taken_point_micros: (NOW - 950) * 1_000_000,
        ..head("ps-0 b", 3, 53)
    };
    let noticed = follow(seen, &found, false, at(NOW));
    let rollback = noticed.rollback.clone().unwrap();
    assert_eq!(rollback.id, "3-100-64646464");
    assert_eq!((rollback.lost_record, rollback.lost_point_time), (100, Some(at(NOW - 900))));
    assert_eq!((rollback.found_record, rollback.found_point_time), (50, Some(at(NOW - 950))));
    assert_eq!(noticed.head.as_ref().map(|head| head.record), Some(53));

    // The new history is followed; a smaller loss in it does not hide the greater one, a later one replaces it.
    let gone_on = follow(noticed, &head("ps-0 b", 3, 60), true, at(NOW + 60));
    assert_eq!(gone_on.rollback.as_ref(), Some(&rollback));
    let again = follow(gone_on, &head("ps-0 c", 3, 40), false, at(NOW + 70));
    assert_eq!(again.rollback.as_ref(), Some(&rollback));
    let grown = follow(again, &head("ps-0 c", 3, 200), true, at(NOW + 200));
    let later = follow(grown, &head("ps-0 d", 3, 40), false, at(NOW + 210)).rollback.unwrap();
    assert_eq!(later.lost_record, 200);
}

fn rolled_back() -> Rollback {
    Rollback {
        id: "3-100-64646464".into(),
        noticed_at: at(NOW - 60),
        lost_record: 100,
        lost_point_time: Some(at(NOW - 100)),
        found_record: 50,
        found_point_time: Some(at(NOW - 950)),
    }
}

/// Found by the pass, with the newest point so many seconds old.
fn findings(point_age: i64) -> Findings {
    let mut findings = healthy();
    let figures = findings.figures.as_mut().unwrap();
    figures.report.last_point_micros = (NOW - point_age) * 1_000_000;
    figures.report.recoverable_until_micros = figures.report.last_point_micros;
    findings.seen = Some(Seen { head: after(&head("ps-0 b", 3, 53)).head, rollback: Some(rolled_back()) });
    findings
}

#[test]
fn a_rollback_is_a_condition_and_a_critical_issue_with_what_was_lost_and_what_to_do() {
    let shown = status(&server("db-1"), &findings(950), at(NOW));
    let condition = conditions::find(&shown.conditions, ConditionType::VaultRolledBack).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "VaultRolledBack"));
    for text in [
        "record 100 (newest point 2027-01-15T07:58:20Z)",
        "ended at record 50 (newest point 2027-01-15T07:44:10Z)",
        "only with recoveryPoint kind At and time 2027-01-15T07:44:10Z",
        "kubectl annotate pserver db-1 -n prod --overwrite lifeboat.dev/acknowledge-rollback=3-100-64646464",
    ] {
        assert!(condition.message.contains(text), "{text} is missing in {}", condition.message);
    }
    let ready = conditions::find(&shown.conditions, ConditionType::Ready).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "VaultRolledBack"));
    let issue = shown.issues.iter().find(|issue| issue.code == "VaultRolledBack").unwrap();
    assert_eq!((issue.severity, shown.replication_health), (Severity::Critical, Some(Health::Critical)));
    assert_eq!(shown.rollback, Some(rolled_back()));
}

#[test]
fn with_a_newer_point_the_server_is_ready_again_and_the_loss_stays_a_warning() {
    let shown = status(&server("db-1"), &findings(10), at(NOW));
    assert!(conditions::is_true(&shown.conditions, ConditionType::VaultRolledBack));
    assert!(conditions::is_true(&shown.conditions, ConditionType::Ready), "{:?}", shown.conditions);
    let issue = shown.issues.iter().find(|issue| issue.code == "VaultRolledBack").unwrap();
    assert_eq!((issue.severity, shown.replication_health), (Severity::Warning, Some(Health::Warning)));
}

#[test]
fn an_acknowledgement_of_this_rollback_ends_it_and_one_of_another_does_not() {
    for (id, ends) in [("3-100-64646464", true), ("3-99-00000000", false)] {
        let mut server = server("db-1");
        server.metadata.annotations =
            Some([(ACKNOWLEDGE_ROLLBACK_ANNOTATION.to_owned(), id.to_owned())].into());
        let shown = status(&server, &findings(10), at(NOW));
        assert_eq!(shown.rollback.is_none(), ends, "{id}");
        assert_eq!(conditions::is_true(&shown.conditions, ConditionType::VaultRolledBack), !ends);
    }
}

#[test]
fn without_an_acknowledgement_it_stays_until_retention_had_deleted_what_was_lost() {
    let policy = |hours: u64| {
        let mut policy = ReplicationPolicySpec::default();
        policy.recovery_points.retention = Span::from_mins(60 * hours);
        policy
    };
    let after = |hours: i64| at(NOW - 60 + hours * 3600 + 1);
    assert!(!is_over(&rolled_back(), Some(&policy(72)), after(71)));
    assert!(is_over(&rolled_back(), Some(&policy(72)), after(72)));
    assert!(!is_over(&rolled_back(), Some(&policy(1)), after(23)), "a night must not hide it");
    assert!(!is_over(&rolled_back(), None, after(1000)));
}

#[test]
fn a_pass_that_hears_nothing_keeps_what_is_known() {
    let mut known = server("db-1");
    known.status = Some(status(&server("db-1"), &findings(950), at(NOW)));
    let silent = Findings { figures: None, seen: None, ..findings(950) };
    let shown = status(&known, &silent, at(NOW + 60));
    assert_eq!(shown.rollback, Some(rolled_back()));
    assert_eq!(shown.last_seen_head, known.status.unwrap().last_seen_head);
}

#[test]
fn a_log_that_grows_is_a_figure_and_another_writer_is_worth_a_write_at_once() {
    let of = |head: &v1::LogHead| {
        let seen = Some(after(head));
        status(&server("db-1"), &Findings { seen, ..healthy() }, at(NOW))
    };
    let before = of(&head("ps-0 a", 3, 100));
    assert!(!is_significant(Some(&before), &of(&head("ps-0 a", 3, 140))));
    assert!(is_significant(Some(&before), &of(&head("ps-0 b", 4, 100))));
}

/// From a writer's report into the status, and from there to the log.
#[tokio::test]
async fn the_log_is_asked_for_what_the_status_keeps() {
    let (env, store) = (Env::system(), ModelStore::new());
    let vault = Vault {
        store: Arc::new(store.clone()),
        cache: Arc::new(store.clone()),
        keys: Arc::new(DataKeys::generate(&*env.entropy)),
        id: "v".into(),
    };
    let id = ServerId::from_random([5; 16]);
    let take = || LogWriter::take_over(&vault, &id, "ps-0", &env, Order::Forced, LogOptions::default());
    let reported = |log: &LogWriter| {
        let state = log.state();
        v1::LogHead {
            epoch: state.epoch.0,
            part: state.part,
            offset: state.offset,
            chain: state.chain.to_vec(),
            number: state.last_number.0,
            writer: log.id().to_owned(),
            ..v1::LogHead::default()
        }
    };
    let mut log = take().await.unwrap();
    let backup = store.fork();
    let data = v1::Data { first_number: 1, number: 1, ..v1::Data::default() };
    log.append(Body::Data(data)).await.unwrap();
    let kept = after(&reported(&log)).head.unwrap();
    assert!(holds(&vault, &id, &kept, &env).await.unwrap());
    let next = take().await.unwrap();
    assert_ne!(reported(&next).writer, kept.writer);
    assert!(holds(&vault, &id, &kept, &env).await.unwrap());
    store.restore(&backup);
    assert!(!holds(&vault, &id, &kept, &env).await.unwrap());
}

/// What happens to a log between two looks.
#[derive(Debug, Clone)]
enum Event {
    Grow,
    TakeOver,
    Backup,
    Restore(prop::sample::Index),
    Look,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Grow),
        2 => Just(Event::TakeOver),
        1 => Just(Event::Backup),
        1 => any::<prop::sample::Index>().prop_map(Event::Restore),
        4 => Just(Event::Look),
    ]
}

/// A log as its frames: who wrote each, and a value that no other frame has.
type Log = Vec<(u32, u8, u64)>;

fn end(log: &Log, frames: u64) -> v1::LogHead {
    let (epoch, writer, value) = log[log.len() - 1];
    v1::LogHead {
        epoch,
        // Parts begin with their epoch's first frame.
        offset: log.iter().filter(|frame| frame.0 == epoch).count() as u64 * 100,
        chain: [value.to_be_bytes(); 4].concat(),
        number: frames,
        point_micros: value as i64,
        writer: format!("ps {writer}"),
        ..v1::LogHead::default()
    }
}

fn stands(log: &Log, seen: &LogHead) -> bool {
    let of_epoch: Vec<_> = log.iter().filter(|frame| frame.0 == seen.epoch).collect();
    let frame = of_epoch.get((seen.offset / 100) as usize - 1);
    frame.is_some_and(|frame| hex::encode([frame.2.to_be_bytes(); 4].concat()) == seen.chain)
}

proptest! {
    /// Whenever somebody looks, a loss of what was seen is noticed, nothing is noticed without a loss, and the end that is
    /// kept is the log's own.
    #[test]
    fn a_loss_is_noticed_at_the_next_look_and_nothing_else_is(events in prop::collection::vec(event(), 1..80)) {
        let (mut log, mut values, mut writers): (Log, u64, u8) = (vec![(1, 0, 0)], 0, 0);
        let mut backups = vec![log.clone()];
        let mut seen = Seen::default();
        for event in events {
            let mut frame = |log: &mut Log, epoch, writer| {
                values += 1;
                log.push((epoch, writer, values));
            };
            let (epoch, writer, _) = log[log.len() - 1];
            match event {
                Event::Grow => frame(&mut log, epoch, writer),
                Event::Backup => backups.push(log.clone()),
                // A writer whose store went back takes the log over anew.
                Event::TakeOver | Event::Restore(_) => {
                    if let Event::Restore(index) = event {
                        log = index.get(&backups).clone();
                    }
                    writers = writers.wrapping_add(1);
                    let epoch = log[log.len() - 1].0 + 1;
                    frame(&mut log, epoch, writers);
                }
                Event::Look => {
                    let reported = end(&log, log.len() as u64);
                    let lost = seen.head.as_ref().is_some_and(|head| !stands(&log, head));
                    let before = Seen { rollback: None, ..seen.clone() };
                    let next = judge(before.head.as_ref(), &reported);
                    prop_assert!(!lost || next == Next::Ask, "a loss that nobody asks for: {next:?}");
                    if next != Next::Keep {
                        seen = follow(before, &reported, !lost, at(NOW));
                        prop_assert_eq!(seen.rollback.is_some(), lost);
                    }
                    let kept = seen.head.as_ref().unwrap();
                    prop_assert!(stands(&log, kept));
                    prop_assert_eq!(&kept.chain, &hex::encode(&reported.chain));
                }
            }
        }
    }
}
