//! What the catalogue should list: the points that stay, and where the journal begins. Pure.

use lifeboat_replication::{
    catalogue::{Point, PointConsistency, Points},
    ids::RecordId,
    log::LogState,
    pins::Pin,
    recoverable::journal_begins,
};

use super::ages::{Aging, Keep, base, staying};

fn aging(points: &[Point]) -> Vec<Aging> {
    points.iter().map(|point| Aging { id: point.id(), t0: point.t0(), worth: worth(point) }).collect()
}

/// A group's points are of use only where all members keep theirs; what was frozen or prepared was asked for.
fn worth(point: &Point) -> u8 {
    match (&point.group, point.consistency) {
        (Some(_), _) => 3,
        (None, PointConsistency::AppConsistent) => 2,
        (None, PointConsistency::FilesystemConsistent) => 1,
        (None, PointConsistency::CrashConsistent) => 0,
    }
}

/// The list without the points that are too old, and with the journal's beginning moved up to the base that its oldest
/// instant needs. `applied` is the position: nothing after it may count as collected.
///
/// A pin keeps the point that it reads from on the list, so that its reader finds it again after a restart. Segments
/// under a pin are held by the sweep, not here.
pub fn plan(listed: &Points, applied: RecordId, pins: &[Pin], keep: Keep) -> Points {
    let points = &listed.points;
    let aging = aging(points);
    let begins = base(&aging, keep)
        .and_then(|index| aging.get(index))
        .map(|point| point.id)
        .filter(|base| *base <= applied && listed.collected.is_none_or(|collected| *base >= collected));
    let collected = begins.or(listed.collected);
    // Where the journal begins, also when the ages would now choose otherwise.
    let first_base =
        points.iter().position(|point| collected.is_some_and(|collected| point.id() >= collected));
    let stays = staying(&aging, keep);
    let points = points
        .iter()
        .zip(stays)
        .enumerate()
        .filter(|(index, (point, stays))| {
            let pinned = pins.iter().any(|pin| pin.holds_snapshot(point.sequence()));
            *stays || pinned || first_base == Some(*index)
        })
        .map(|(_, (point, _))| point.clone())
        .collect();
    Points { points, collected, ..listed.clone() }
}

/// Where reading of the log must be able to begin: the oldest base, and what pins need. `None`: at its first record.
/// `position` is the applier's own place.
pub fn log_floor<'a>(listed: &'a Points, position: &'a LogState, pins: &[Pin]) -> Option<&'a LogState> {
    let base = journal_begins(listed)?;
    let mut floor = earlier(&base.log, position);
    for pin in pins {
        match (pin.base, pin.records) {
            (None, None) => {}
            // Read from the first record.
            (None, Some(_)) => return None,
            (Some(id), _) => {
                let point = listed.points.iter().find(|point| point.id() == id)?;
                floor = earlier(floor, &point.log);
            }
        }
    }
    Some(floor)
}

fn earlier<'a>(one: &'a LogState, other: &'a LogState) -> &'a LogState {
    std::cmp::min_by_key(one, other, |state| (state.part_name(), state.offset))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lifeboat_replication::{
        ids::{Epoch, RecordNumber, ServerId},
        keys::KeyId,
        log::LogState,
        pins::Records,
    };
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> RecordId {
        RecordId { epoch: Epoch(1), number: RecordNumber(number) }
    }

    fn list(t0s: &[i64]) -> Points {
        let server = ServerId::from_random([1; 16]);
        let points = (1..)
            .zip(t0s)
            .map(|(number, t0)| Point {
                number: number * 10,
                epoch: 1,
                t0_micros: *t0 * 60_000_000,
                consistency: PointConsistency::CrashConsistent,
                group: None,
                disks: Vec::new(),
                log: LogState::empty(KeyId("k".into())),
            })
            .collect();
        Points { points, ..Points::none(&server) }
    }

    fn pin(number: u64) -> Pin {
        Pin {
            format: 1,
            server: String::new(),
            run: "run".into(),
            base: Some(id(number)),
            records: None,
            held_for_seconds: 60,
            renewed_at_micros: 0,
            confirmed: true,
        }
    }

    fn keep(retention_minutes: u64, journal_minutes: u64) -> Keep {
        Keep {
            retention: Duration::from_secs(retention_minutes * 60),
            journal: Duration::from_secs(journal_minutes * 60),
        }
    }

    fn numbers(points: &Points) -> Vec<u64> {
        points.points.iter().map(|point| point.number).collect()
    }

    #[test]
    fn the_journal_begins_at_the_newest_point_that_is_old_enough() {
        let planned = plan(&list(&[0, 10, 20, 30]), id(45), &[], keep(60, 15));
        assert_eq!((planned.collected, numbers(&planned)), (Some(id(20)), vec![10, 20, 30, 40]));
    }

    #[test]
    fn a_point_is_worth_more_the_more_was_done_for_it() {
        let of = |group: Option<&str>, consistency| {
            let [point] = &list(&[0]).points[..] else { panic!("one point") };
            worth(&Point { group: group.map(str::to_owned), consistency, ..point.clone() })
        };
        let rising = [
            of(None, PointConsistency::CrashConsistent),
            of(None, PointConsistency::FilesystemConsistent),
            of(None, PointConsistency::AppConsistent),
            of(Some("group"), PointConsistency::CrashConsistent),
        ];
        assert!(rising.is_sorted_by(|one, next| one < next), "{rising:?}");
    }

    #[test]
    fn what_is_not_applied_is_never_collected() {
        let planned = plan(&list(&[0, 10, 20, 30]), id(15), &[], keep(60, 0));
        assert_eq!(planned.collected, None);
    }

    #[test]
    fn a_longer_journal_does_not_bring_back_what_was_collected() {
        let listed = Points { collected: Some(id(30)), ..list(&[0, 10, 20, 30]) };
        let planned = plan(&listed, id(45), &[], keep(0, 1000));
        assert_eq!(planned.collected, Some(id(30)));
        assert!(numbers(&planned).contains(&30), "the journal's beginning must stay listed");
    }

    #[test]
    fn a_pinned_point_stays_however_old_it_is() {
        let without = plan(&list(&[0, 10, 20, 30]), id(45), &[], keep(0, 0));
        assert_eq!(numbers(&without), [40]);
        let with = plan(&list(&[0, 10, 20, 30]), id(45), &[pin(20)], keep(0, 0));
        assert_eq!(numbers(&with), [20, 40]);
    }

    /// Each point in a part of its own.
    fn shortened(collected: u64) -> Points {
        let mut listed = Points { collected: Some(id(collected)), ..list(&[0, 10, 20, 30]) };
        for point in &mut listed.points {
            point.log = LogState { epoch: Epoch(1), part: point.number as u32, ..point.log.clone() };
        }
        listed
    }

    fn floor(listed: &Points, position_part: u32, pins: &[Pin]) -> Option<u32> {
        let position =
            LogState { epoch: Epoch(1), part: position_part, ..LogState::empty(KeyId("k".into())) };
        log_floor(listed, &position, pins).map(|state| state.part)
    }

    #[test]
    fn the_log_is_needed_from_the_oldest_base_on_and_from_where_pins_and_position_are() {
        assert_eq!(floor(&list(&[0, 10]), 99, &[]), None, "nothing was collected");
        assert_eq!(floor(&shortened(30), 99, &[]), Some(30));
        assert_eq!(floor(&shortened(30), 25, &[]), Some(25));
        assert_eq!(floor(&shortened(30), 99, &[pin(20)]), Some(20));
        assert_eq!(floor(&shortened(30), 99, &[pin(40)]), Some(30));
        let from_the_start = Pin { base: None, records: Some(Records { from: 1, to: 9 }), ..pin(20) };
        assert_eq!(floor(&shortened(30), 99, &[from_the_start]), None);
        assert_eq!(floor(&shortened(30), 99, &[pin(25)]), None, "a pinned point that is not listed");
    }

    #[test]
    fn a_history_that_the_store_lost_is_not_mixed_up_with_its_successor() {
        // Numbers were given again, in a later epoch: those records are not the ones that were collected.
        let mut listed = Points { collected: Some(id(35)), ..list(&[0, 10]) };
        for point in &mut listed.points {
            point.epoch = 2;
        }
        assert!(listed.points.iter().all(|point| listed.is_base(point)));
        let applied = RecordId { epoch: Epoch(2), number: RecordNumber(25) };
        let planned = plan(&listed, applied, &[], keep(60, 5));
        assert_eq!(planned.collected, Some(RecordId { epoch: Epoch(2), number: RecordNumber(10) }));
    }

    fn t0s() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![8 => 1_i64..200, 1 => 200_i64..100_000, 1 => -100_000_i64..0];
        prop::collection::vec(step, 1..80).prop_map(|steps| {
            steps
                .into_iter()
                .scan(0, |now, step| {
                    *now += step;
                    Some(*now)
                })
                .collect()
        })
    }

    proptest! {
        /// As the applier does it: a point more, a plan, and so on, while the policy changes now and then.
        #[test]
        fn where_the_journal_begins_only_moves_on_and_always_has_its_base(
            t0s in t0s(),
            policies in prop::collection::vec((0_u64..30_000, 0_u64..3000), 80),
        ) {
            let all = list(&t0s);
            let mut listed = Points { points: Vec::new(), ..all.clone() };
            for (point, (retention, journal)) in all.points.iter().zip(policies) {
                listed.points.push(point.clone());
                let before = listed.collected;
                listed = plan(&listed, point.id(), &[], keep(retention, journal));
                prop_assert!(listed.collected >= before);
                prop_assert_eq!(listed.points.last(), Some(point));
                if let Some(collected) = listed.collected {
                    let first = listed.points.iter().find(|point| listed.is_base(point));
                    prop_assert_eq!(first.map(Point::id), Some(collected), "the journal's beginning is not listed");
                }
            }
        }

        /// With one policy, every instant of the journal stays recoverable.
        #[test]
        fn every_instant_of_the_journal_keeps_a_base(steps in prop::collection::vec(1_i64..200, 2..80), retention in 0_u64..30_000, journal in 0_u64..3000) {
            let t0s: Vec<i64> = steps.into_iter().scan(0, |now, step| { *now += step; Some(*now) }).collect();
            let all = list(&t0s);
            let mut listed = Points { points: Vec::new(), ..all.clone() };
            for point in &all.points {
                listed.points.push(point.clone());
                listed = plan(&listed, point.id(), &[], keep(retention, journal));
                let oldest = point.t0_micros - journal as i64 * 60_000_000;
                if let Some(collected) = listed.collected {
                    let begins = all.points.iter().find(|point| point.id() == collected).unwrap();
                    prop_assert!(begins.t0_micros <= oldest);
                }
            }
        }
    }
}
