//! Who may take the log from whom, and what a takeover finds.

use std::time::Duration;

use super::{super::TakeOverError, *};
use crate::{
    catalogue::{self, Points},
    log::{WriteError, state::Illegal, tests::scripted::Fault},
    store::{LEASE_TERM, Refusal},
};

fn failover(run: &str) -> Order {
    Order::Failover { run: run.to_owned() }
}

fn release(run: &str) -> Order {
    Order::Release { run: run.to_owned() }
}

fn is_busy(taken: &Result<LogWriter, TakeOverError>) -> bool {
    matches!(taken, Err(TakeOverError::Busy { .. }))
}

fn is_refused(taken: &Result<LogWriter, TakeOverError>, why: Refusal) -> bool {
    matches!(taken, Err(TakeOverError::Store(error)) if error.is(why))
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_holds_its_log_is_not_disturbed_by_who_waits_for_a_free_one() {
    let site = Site::new();
    let mut writer = site.take("ps-1", Order::WhenFree).await.unwrap();
    writer.append(data(1)).await.unwrap();
    for (who, order) in [
        ("ps-2", Order::WhenFree),
        ("ps-1", Order::WhenFree),
        ("ps-2", Order::Resume),
        // The beginning of a name is another name.
        ("ps", Order::Resume),
        ("ps-2", Order::Handover { lost: Epoch(0) }),
    ] {
        assert!(is_busy(&site.take(who, order.clone()).await), "{who} {order:?}");
        assert_eq!(site.parts().await, [name(1, 0)], "{who} {order:?}");
    }
    writer.append(data(2)).await.unwrap();
    assert_eq!(site.numbers().await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_log_is_free_once_its_writer_has_let_it_go_or_was_silent_for_a_lease() {
    let site = Site::new();
    site.take("ps-1", Order::WhenFree).await.unwrap().release().await;
    let silent = site.take("ps-2", Order::WhenFree).await.unwrap();
    tokio::time::sleep(LEASE_TERM - Duration::from_secs(1)).await;
    assert!(is_busy(&site.take("ps-3", Order::WhenFree).await));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut next = site.take("ps-3", Order::WhenFree).await.unwrap();
    assert_eq!(next.state().epoch, Epoch(3));
    next.append(data(1)).await.unwrap();
    drop(silent);
}

/// Also when it was stopped in the moment in which it went on in another part.
#[tokio::test(start_paused = true)]
async fn a_program_that_starts_again_takes_its_own_log_at_once() {
    for records in [1, 2, 3, 4] {
        let site = Site::new();
        let old = site.written(records).await;
        let mut new = site.take("ps", Order::Resume).await.unwrap();
        new.append(data(records + 1)).await.unwrap();
        assert_eq!(site.numbers().await, (1..=records + 1).collect::<Vec<_>>());
        drop(old);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handover_fences_the_writer_that_was_given_up_and_no_later_one() {
    for lost in 0..4 {
        let site = Site::new();
        for who in ["ps-1", "ps-2"] {
            site.take(who, Order::Forced).await.unwrap();
        }
        let handover = Order::Handover { lost: Epoch(lost) };
        let taken = site.take("ps-3", handover.clone()).await;
        assert_eq!(is_busy(&taken), lost < 2, "of epoch {lost}, and 2 is the newest");
        if lost < 2 {
            site.take("ps-2", handover).await.expect("its own earlier run is no other writer");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_log_is_left_as_it_is_by_all_but_the_run_that_closed_it() {
    let site = Site::new();
    site.written(3).await;
    let mut closer = site.take("failover", failover("a")).await.unwrap();
    assert_eq!(closer.state().closed_run.as_deref(), Some("a"));
    for order in [
        Order::WhenFree,
        Order::Resume,
        Order::Handover { lost: Epoch(9) },
        Order::Forced,
        failover("b"),
        release("b"),
    ] {
        let parts = site.parts().await;
        // Busy where it would have to wait in any case.
        let refused = site.take("failover", order.clone()).await.unwrap_err();
        assert!(
            matches!(&refused, TakeOverError::Closed { run, .. } if run == "a")
                || matches!((&refused, &order), (TakeOverError::Busy { .. }, Order::WhenFree)),
            "{order:?}: {refused}"
        );
        assert_eq!(site.parts().await, parts, "{order:?}");
    }
    closer.append(Body::Release(v1::Release { run: "a".into() })).await.expect("nobody has fenced it");
    assert_eq!(site.numbers().await, [1, 2, 3]);
}

/// The operator repeats an order whose answer it has not seen.
#[tokio::test(start_paused = true)]
async fn a_failover_closes_its_log_again_and_its_cancellation_opens_it() {
    let site = Site::new();
    site.written(3).await;
    site.take("failover", failover("a")).await.unwrap();
    let again = site.take("failover", failover("a")).await.unwrap();
    assert_eq!(again.state().closed_run.as_deref(), Some("a"));
    let opened = site.take("failover", release("a")).await.unwrap();
    assert_eq!(opened.state().closed_run, None);
    let again = site.take("failover", release("a")).await.unwrap();
    assert_eq!(again.state().closed_run, None);
    site.take("ps", Order::Forced).await.unwrap().append(data(4)).await.unwrap();
    assert_eq!(site.numbers().await, [1, 2, 3, 4]);
}

/// An epoch with one part after one with several: the newest part is sought among the epoch's own.
#[tokio::test(start_paused = true)]
async fn every_takeover_goes_on_behind_the_last_record_whatever_the_parts_before() {
    let site = Site::new();
    let mut next = 1;
    for records in [5, 1, 0, 3, 2, 7, 1, 1] {
        let mut writer = site.written(0).await;
        assert_eq!(writer.state().last_number.0 + 1, next);
        for _ in 0..records {
            writer.append(data(next)).await.unwrap();
            next += 1;
        }
    }
    assert_eq!(site.numbers().await, (1..next).collect::<Vec<_>>());
}

/// A taker that died after it had sealed the log: its lease runs on, but nobody can write.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_sealed_is_free_whoever_leases_it() {
    let site = Site::new();
    site.written(1).await;
    site.store.fails("create_append", Fault::Refused(Refusal::Denied));
    site.take("dies", Order::Forced).await.unwrap_err();
    let next = site.take("ps-2", Order::WhenFree).await.unwrap();
    assert_eq!(next.state().last_number.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_the_old_writer_begins_while_it_is_fenced_is_followed() {
    let site = Site::new();
    let mut old = site.written(1).await;
    site.store.meanwhile("break_lease", &first_blob(&site), async move {
        for number in [2, 3] {
            old.append(data(number)).await.unwrap();
        }
        assert_eq!(old.state().part_name(), name(1, 2));
    });
    let mut new = site.take("ps", Order::Forced).await.unwrap();
    assert!(site.store.all_struck());
    new.append(data(4)).await.unwrap();
    assert_eq!(site.numbers().await, [1, 2, 3, 4]);
}

/// The store puts back the fenced part alone, while the new epoch is begun: as it was fenced, or as it was before.
#[tokio::test(start_paused = true)]
async fn a_part_that_is_put_back_behind_a_takeover_is_fenced_again_if_it_holds_what_it_held() {
    for whole in [true, false] {
        let site = Site::new();
        let mut old = site.take("ps", Order::Forced).await.unwrap();
        old.append(data(1)).await.unwrap();
        let before = site.store.model.fork();
        old.append(data(2)).await.unwrap();
        let older = if whole { site.store.model.fork() } else { before };
        // Asked for by the look, by the fence, and when the epoch has begun.
        let (first, new) = (first_blob(&site), site.blob(name(2, 0)));
        let (store, model, blob) = (site.store.clone(), site.store.model.clone(), first.clone());
        site.store.meanwhile("append", &new, async move {
            store.meanwhile(
                "properties",
                &blob.clone(),
                async move { put_back(&model, &blob, &older).await },
            );
        });
        let taken = site.take("ps", Order::Forced).await;
        assert!(site.store.all_struck());
        if !whole {
            let source = Illegal::Base;
            assert!(
                matches!(&taken, Err(TakeOverError::Damaged { part, source: found, .. })
                    if *part == name(1, 0) && *found == source),
                "{taken:?}"
            );
            continue;
        }
        taken.unwrap().append(data(3)).await.unwrap();
        assert_eq!(site.numbers().await, [1, 2, 3]);
        assert!(site.store.properties(&first, None).await.unwrap().sealed);
    }
}

/// The writer has made the next part, with a header, and has died before it said so in the one before.
#[tokio::test(start_paused = true)]
async fn a_part_that_nothing_names_is_dead() {
    let site = Site::new();
    let mut writer = site.written(1).await;
    site.store.fails_on("append", &first_blob(&site), Fault::Refused(Refusal::Sealed));
    let fenced = writer.append(data(2)).await.unwrap_err();
    assert!(matches!(fenced, WriteError::Fenced { .. }), "{fenced}");
    assert_eq!(site.parts().await, [name(1, 0), name(1, 1)]);
    let mut next = site.take("ps", Order::Forced).await.unwrap();
    next.append(data(2)).await.unwrap();
    assert_eq!(site.numbers().await, [1, 2]);
}

fn first_blob(site: &Site) -> String {
    site.blob(name(1, 0))
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_cut_off_is_damage_and_not_the_end() {
    let site = Site::new();
    site.written(1).await;
    site.append_foreign(name(1, 0), b"\x20\0\0\0cut").await;
    let offset = match site.take("ps", Order::Forced).await {
        Err(TakeOverError::Damaged { part, offset, source: Illegal::Frame(_), .. }) => {
            assert_eq!(part, name(1, 0));
            offset
        }
        other => panic!("{other:?}"),
    };
    let length = site.store.properties(&first_blob(&site), None).await.unwrap().length;
    assert_eq!(offset, length - 7, "where it begins is said");
}

/// Another taker is between two of its steps.
#[tokio::test(start_paused = true)]
async fn a_lost_race_is_run_again_and_every_other_refusal_is_told() {
    for operation in ["acquire_lease", "seal"] {
        for why in [Refusal::Lease, Refusal::Denied] {
            let site = Site::new();
            site.written(1).await;
            site.store.fails_on(operation, &first_blob(&site), Fault::Refused(why));
            let taken = site.take("ps-2", Order::Forced).await;
            assert!(site.store.all_struck());
            match why {
                Refusal::Lease => assert_eq!(taken.unwrap().state().last_number.0, 1),
                why => assert!(is_refused(&taken, why), "{operation}: {taken:?}"),
            }
        }
    }
    let site = Site::new();
    site.written(1).await;
    site.store.fails_on("seal", &first_blob(&site), Fault::Refused(Refusal::Sealed));
    assert_eq!(site.take("ps-2", Order::Forced).await.unwrap().state().last_number.0, 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_free_log_waits_too_when_another_leases_it_first() {
    for (why, busy) in [(Refusal::Lease, true), (Refusal::Denied, false)] {
        let site = Site::new();
        site.written(1).await.release().await;
        site.store.fails_on("acquire_lease", &first_blob(&site), Fault::Refused(why));
        let taken = site.take("ps-2", Order::WhenFree).await;
        assert_eq!(is_busy(&taken), busy, "{taken:?}");
        assert_eq!(is_refused(&taken, why), !busy, "{taken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_new_epoch_is_whose_who_leases_and_begins_it() {
    let new = |site: &Site| site.blob(name(2, 0));
    let begun = async |operation, fault| {
        let site = Site::new();
        site.written(1).await;
        site.store.fails_on(operation, &new(&site), fault);
        let taken = site.take("ps-2", Order::Forced).await;
        assert!(site.store.all_struck(), "{operation}");
        (taken.map(|writer| writer.state().epoch), site)
    };
    // Its own first try, or another taker's that has died.
    let (epoch, _) = begun("create_append", Fault::AnswerLost).await;
    assert_eq!(epoch.unwrap(), Epoch(2));
    let (refused, _) = begun("create_append", Fault::Refused(Refusal::Denied)).await;
    assert!(matches!(refused, Err(TakeOverError::Store(error)) if error.is(Refusal::Denied)));
    // Another taker was faster.
    let (epoch, site) = begun("acquire_lease", Fault::Refused(Refusal::Lease)).await;
    assert_eq!(epoch.unwrap(), Epoch(3));
    assert_eq!(site.numbers().await, [1]);
    let (refused, _) = begun("acquire_lease", Fault::Refused(Refusal::Denied)).await;
    assert!(matches!(refused, Err(TakeOverError::Store(error)) if error.is(Refusal::Denied)));
}

#[tokio::test(start_paused = true)]
async fn takers_that_always_lose_say_so_in_the_end() {
    let site = Site::new();
    site.written(1).await;
    site.store.fails_for(Duration::from_secs(3600), "acquire_lease", Fault::Refused(Refusal::Lease));
    let taken = site.take("ps-2", Order::Forced).await.unwrap_err();
    assert!(matches!(taken, TakeOverError::Contended { .. }), "{taken}");
}

/// The newest part names a base that cannot be read just now: that says nothing about whether it is alive.
#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_to_be_read_is_not_taken_for_a_shorter_log() {
    let site = Site::new();
    site.written(3).await;
    assert_eq!(site.parts().await, [name(1, 0), name(1, 1), name(1, 2)]);
    site.store.fails_on("get", &site.blob(name(1, 1)), Fault::Refused(Refusal::Denied));
    let refused = site.take("ps", Order::Forced).await;
    assert!(is_refused(&refused, Refusal::Denied), "{refused:?}");
}

/// What is left of a log whose first parts retention has deleted begins with a part that only its header describes.
#[tokio::test(start_paused = true)]
async fn the_newest_part_is_found_though_its_epoch_has_lost_the_first_ones() {
    for epochs in [1, 2] {
        let site = Site::new();
        let mut writer = site.written(0).await;
        for number in 1..=9 {
            if epochs == 2 && number == 2 {
                writer = site.written(0).await;
            }
            writer.append(data(number)).await.unwrap();
        }
        let newest = writer.state().part_name();
        drop(writer);
        let parts = site.parts().await;
        let (kept, before) = (parts.len() - 2, &parts[..parts.len() - 2]);
        for part in before {
            site.store.break_lease(&site.blob(*part)).await.unwrap();
            site.store.delete(&site.blob(*part), None).await.unwrap();
        }
        let points = Points { log_begins: Some(parts[kept]), ..Points::none(&site.server) };
        catalogue::write(&site.vault, &site.server, &points, None).await.unwrap();
        let next = site.take("ps", Order::Forced).await.unwrap();
        assert_eq!(next.state().last_number.0, 9, "{newest}");
    }
}
