//! What becomes of a record when the store loses requests and answers, refuses, or is away for long.

use std::{future::Future, time::Duration};

use tokio::{
    join,
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{super::WriteError, scripted::Fault, *};
use crate::store::{LEASE_TERM, Refusal};

const MINUTE: Duration = Duration::from_secs(60);

/// With an end, so that a writer that waits for ever fails its test.
async fn within_a_day<T>(work: impl Future<Output = T>) -> T {
    timeout(24 * 60 * MINUTE, work).await.expect("it is still waiting")
}

/// What a writer says while it waits.
async fn told(trouble: &mut watch::Receiver<Option<String>>) -> String {
    trouble.wait_for(Option::is_some).await.unwrap().clone().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_record_stands_once_whatever_is_lost_of_its_append() {
    for fault in [Fault::RequestLost, Fault::AnswerLost] {
        let site = Site::new();
        let mut writer = site.take("ps", Order::Forced).await.unwrap();
        writer.append(data(1)).await.unwrap();
        site.store.fails("append", fault);
        // Reading what became of it works at the third try only.
        for _ in 0..2 {
            site.store.fails("get", Fault::RequestLost);
        }
        within_a_day(writer.append(data(2))).await.unwrap();
        assert!(site.store.all_struck());
        within_a_day(writer.append(data(3))).await.unwrap();
        assert_eq!(site.numbers().await, [1, 2, 3], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_is_told_until_it_does() {
    let faults = [
        ("append", Fault::RequestLost),
        ("append", Fault::Refused(Refusal::Denied)),
        ("append", Fault::Refused(Refusal::NoContainer)),
        ("append", Fault::Refused(Refusal::Lease)),
    ];
    for (operation, fault) in faults {
        let site = Site::new();
        let mut writer = site.take("ps", Order::Forced).await.unwrap();
        let mut trouble = writer.trouble();
        assert_eq!(*trouble.borrow(), None);
        site.store.fails_for(2 * MINUTE, operation, fault);
        let (appended, told) =
            within_a_day(async { join!(writer.append(data(1)), told(&mut trouble)) }).await;
        appended.unwrap();
        assert!(told.contains("planted"), "{fault:?}: {told}");
        assert_eq!(*writer.trouble().borrow(), None);
        assert_eq!(site.numbers().await, [1]);
    }
}

/// Every operation is paid for, and many servers wait for the same store.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_asked_ever_more_seldom() {
    let away: [&[(&'static str, Fault)]; 4] = [
        &[("append", Fault::RequestLost), ("get", Fault::RequestLost)],
        // It answers reads, and takes nothing.
        &[("append", Fault::RequestLost)],
        &[("append", Fault::Refused(Refusal::Denied))],
        &[("append", Fault::Refused(Refusal::Lease)), ("renew_lease", Fault::RequestLost)],
    ];
    for faults in away {
        let site = Site::new();
        let mut writer = site.take("ps", Order::Forced).await.unwrap();
        site.store.calls("append");
        site.store.calls("get");
        site.store.calls("renew_lease");
        for (operation, fault) in faults {
            site.store.fails_for(60 * MINUTE, operation, *fault);
        }
        within_a_day(writer.append(data(1))).await.unwrap();
        let calls = ["append", "get", "renew_lease"].map(|operation| site.store.calls(operation));
        // Every five seconds or more seldom, two operations each time.
        assert!(calls.iter().sum::<u32>() < 2000, "{faults:?}: {calls:?}");
        assert_eq!(site.numbers().await, [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_is_gone_or_refused_is_told_apart() {
    let site = Site::new();
    let mut writer = site.take("ps", Order::Forced).await.unwrap();
    site.store.fails("append", Fault::RequestLost);
    site.store.fails("get", Fault::Refused(Refusal::Denied));
    within_a_day(writer.append(data(1))).await.expect("a right that was missing for a moment");

    site.store.fails("append", Fault::RequestLost);
    site.store.break_lease(&writer.blob()).await.unwrap();
    site.store.delete(&writer.blob(), None).await.unwrap();
    let lost = within_a_day(writer.append(data(2))).await.unwrap_err();
    assert!(matches!(lost, WriteError::WentBack { .. }), "{lost}");
}

/// Its record stands, and something behind it that it has not written: somebody else holds the lease.
#[tokio::test(start_paused = true)]
async fn a_tail_that_goes_on_behind_the_record_belongs_to_another_writer() {
    let site = Site::new();
    let mut writer = site.take("ps", Order::Forced).await.unwrap();
    let part = writer.state().part_name();
    site.store.fails("append", Fault::AnswerLost);
    for _ in 0..2 {
        site.store.fails("get", Fault::RequestLost);
    }
    let (written, ()) = join!(writer.append(data(1)), site.append_foreign(part, b"x"));
    assert!(matches!(written, Err(WriteError::Fenced { .. })), "{written:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writer_stops_at_its_next_record() {
    let site = Site::new();
    let mut old = site.take("ps", Order::Forced).await.unwrap();
    let mut new = site.take("ps", Order::Forced).await.unwrap();
    let refused = within_a_day(old.append(data(1))).await.unwrap_err();
    assert!(matches!(refused, WriteError::Fenced { epoch: Epoch(1), .. }), "{refused}");
    new.append(data(1)).await.unwrap();
    assert_eq!(site.numbers().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_renewed_now_and_then_is_never_lost_and_costs_two_calls_a_term() {
    let site = Site::new();
    let mut writer = site.take("ps", Order::WhenFree).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < 10 * LEASE_TERM {
        writer.renew_if_due().await.unwrap();
        assert!(site.take("ps-2", Order::WhenFree).await.is_err());
        sleep(Duration::from_secs(3)).await;
    }
    assert_eq!(site.store.calls("renew_lease"), 19, "each 30 seconds, first after 30");
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn only_a_lease_that_somebody_else_has_stops_a_writer_that_renews_it() {
    let renewed = async |fault: Fault| {
        let site = Site::new();
        let mut writer = site.take("ps", Order::Forced).await.unwrap();
        sleep(LEASE_TERM / 2).await;
        site.store.fails("renew_lease", fault);
        let renewed = writer.renew_if_due().await;
        let told = writer.trouble().borrow().is_some();
        if renewed.is_ok() {
            writer.renew_if_due().await.unwrap();
            assert_eq!(site.store.calls("renew_lease"), 2, "it is due still");
            assert_eq!(*writer.trouble().borrow(), None);
        }
        (renewed.is_ok(), told)
    };
    assert_eq!(renewed(Fault::RequestLost).await, (true, true));
    assert_eq!(renewed(Fault::Refused(Refusal::Denied)).await, (true, true));
    assert_eq!(renewed(Fault::Refused(Refusal::NoContainer)).await, (true, true));
    assert_eq!(renewed(Fault::Refused(Refusal::Lease)).await, (false, false));
    assert_eq!(renewed(Fault::Refused(Refusal::NotFound)).await, (false, false));
}

/// Each run of a program has an id of its own: the names of its segments are made of it.
#[tokio::test(start_paused = true)]
async fn two_runs_of_a_program_have_two_ids() {
    let site = Site::new();
    let (one, other) =
        (site.take("ps", Order::Forced).await.unwrap(), site.take("ps", Order::Forced).await.unwrap());
    assert!(one.id().starts_with("ps ") && other.id().starts_with("ps "), "{} {}", one.id(), other.id());
    assert_ne!(one.id(), other.id());
}

#[tokio::test(start_paused = true)]
async fn going_on_in_another_part_costs_four_operations() {
    let site = Site::new();
    let mut writer = site.written(1).await;
    let operations = ["create_append", "acquire_lease", "append", "get", "properties", "list"];
    let calls = || operations.map(|operation| site.store.calls(operation));
    calls();
    writer.append(data(2)).await.unwrap();
    assert_eq!(calls(), [1, 1, 3, 0, 0, 0], "beside the record's own append");
    assert_eq!(writer.state().part_name(), name(1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_passed_over_when_the_log_goes_on() {
    let site = Site::new();
    let mut writer = site.written(1).await;
    for part in [1, 2] {
        site.store.create_append(&site.blob(name(1, part))).await.unwrap();
    }
    within_a_day(writer.append(data(2))).await.unwrap();
    assert_eq!(writer.state().part_name(), name(1, 3));
    assert_eq!(site.numbers().await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_makes_no_part_is_told_and_waited_for() {
    for fault in [Fault::RequestLost, Fault::Refused(Refusal::Denied)] {
        let site = Site::new();
        let mut writer = site.written(1).await;
        let mut trouble = writer.trouble();
        site.store.calls("create_append");
        site.store.fails_for(60 * MINUTE, "create_append", fault);
        let (appended, told) =
            within_a_day(async { join!(writer.append(data(2)), told(&mut trouble)) }).await;
        appended.unwrap();
        assert!(told.contains("planted"), "{told}");
        assert_eq!(writer.state().part_name(), name(1, 1), "{fault:?}: no name is used up");
        assert!(site.store.calls("create_append") < 1300, "{fault:?}");
        assert_eq!(site.numbers().await, [1, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_was_made_though_its_answer_was_lost_is_passed_over() {
    let site = Site::new();
    let mut writer = site.written(1).await;
    site.store.fails("create_append", Fault::AnswerLost);
    within_a_day(writer.append(data(2))).await.unwrap();
    assert_eq!(writer.state().part_name(), name(1, 2));
    assert_eq!(site.numbers().await, [1, 2]);
}
