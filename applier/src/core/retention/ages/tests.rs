//! Properties of thinning.

use lifeboat_replication::ids::{Epoch, RecordNumber};
use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60_000_000;
const DEFAULT: Keep = Keep { retention: Duration::from_secs(86_400), journal: Duration::from_secs(7200) };

fn points(t0s: impl IntoIterator<Item = i64>) -> Vec<Aging> {
    (1..)
        .zip(t0s)
        .map(|(number, t0)| Aging {
            id: RecordId { epoch: Epoch(1), number: RecordNumber(number) },
            t0: Micros(t0),
            worth: 0,
        })
        .collect()
}

fn survivors(points: &[Aging], keep: Keep) -> Vec<Aging> {
    points.iter().zip(staying(points, keep)).filter(|(_, stays)| *stays).map(|(point, _)| *point).collect()
}

/// A point every five minutes for `days`, ending at a full four hours.
fn every_five_minutes(days: i64) -> Vec<Aging> {
    let end = 1_000 * DAY;
    points((0..=days * 288).map(|step| end - days * DAY + step * 5 * MINUTE))
}

fn count(all: &[Aging], kept: &[Aging], from: i64, to: i64) -> usize {
    let newest = all.last().unwrap().t0.0;
    kept.iter().filter(|point| (from..to).contains(&(newest - point.t0.0))).count()
}

#[test]
fn points_thin_out_as_the_reference_system_does() {
    let all = every_five_minutes(20);
    let keep = Keep { retention: Duration::from_secs(15 * 86_400), journal: Duration::from_secs(7200) };
    let kept = survivors(&all, keep);
    assert_eq!(count(&all, &kept, 0, 2 * HOUR + 1), 25, "everything in the last two hours");
    assert_eq!(count(&all, &kept, 2 * HOUR + 1, DAY + 1), 22, "hourly up to day 1");
    assert_eq!(count(&all, &kept, DAY + 1, 7 * DAY + 1), 72, "every 2 h up to day 7");
    assert_eq!(count(&all, &kept, 7 * DAY + 1, 15 * DAY + 1), 48, "every 4 h up to day 15");
    assert_eq!(count(&all, &kept, 15 * DAY + 1, 99 * DAY), 0);
}

#[test]
fn a_gap_of_months_ages_points_by_eight_hours() {
    assert_eq!(ages(&points([0, 7 * HOUR, 100 * DAY])), [15 * HOUR, 8 * HOUR, 0]);
}

#[test]
fn a_retention_of_nothing_leaves_the_newest_and_what_the_journal_needs() {
    let all = every_five_minutes(1);
    let nothing = Keep { retention: Duration::ZERO, journal: Duration::ZERO };
    assert_eq!(survivors(&all, nothing), all[all.len() - 1..]);
    let with_journal = Keep { journal: Duration::from_secs(7200), ..nothing };
    let kept = survivors(&all, with_journal);
    assert!(kept.len() <= 5, "{}", kept.len());
    let newest = all.last().unwrap().t0.0;
    assert!(newest - kept[0].t0.0 >= 2 * HOUR, "the journal's oldest instant has no base");
}

#[test]
fn the_base_is_the_newest_point_that_is_as_old_as_the_journal() {
    let all = every_five_minutes(1);
    let newest = all.last().unwrap().t0.0;
    let base = base(&all, DEFAULT).unwrap();
    assert_eq!(newest - all[base].t0.0, 2 * HOUR);
    assert_eq!(super::base(&all[all.len() - 20..], DEFAULT), None, "not two hours yet");
}

#[test]
fn a_date_that_jumps_by_years_costs_eight_hours_and_comes_back_for_nothing() {
    let before = every_five_minutes(1);
    let kept = survivors(&before, DEFAULT).len();
    for years in [-30_i64, 30] {
        let mut all = before.clone();
        let newest = all.last().unwrap().t0.0;
        all.extend(points([newest + years * 365 * DAY, newest + 10 * MINUTE]));
        let now = survivors(&all, DEFAULT).len();
        // Hourly points of eight hours, and those of the last two hours that became hourly ones.
        assert!(now + 8 + 25 >= kept, "{years} years: {kept} points became {now}");
    }
}

#[test]
fn a_server_that_was_off_for_a_month_keeps_points_from_before() {
    let mut all = every_five_minutes(1);
    let newest = all.last().unwrap().t0.0;
    all.extend(points([newest + 30 * DAY]));
    assert!(survivors(&all, DEFAULT).len() > 10);
}

fn keep() -> impl Strategy<Value = Keep> {
    (0_u64..16 * 24, 0_u64..50).prop_map(|(retention, journal)| Keep {
        retention: Duration::from_secs(retention * 3600),
        journal: Duration::from_secs(journal * 1800),
    })
}

/// Steps between points in minutes: usual ones, long ones, and jumps of the date.
fn t0s() -> impl Strategy<Value = Vec<i64>> {
    let step = prop_oneof![8 => 1_i64..30, 4 => 30_i64..600, 1 => 600_i64..100_000, 1 => -100_000_i64..0];
    prop::collection::vec(step, 1..120).prop_map(|steps| {
        steps
            .into_iter()
            .scan(500 * DAY, |now, step| {
                *now += step * MINUTE;
                Some(*now)
            })
            .collect()
    })
}

/// Some of them worth more than others.
fn worthy(t0s: impl IntoIterator<Item = i64>) -> Vec<Aging> {
    let worth = |(index, point): (u64, Aging)| Aging { worth: (index * 7919 % 11 % 4) as u8, ..point };
    (0..).zip(points(t0s)).map(worth).collect()
}

#[test]
fn of_points_that_are_worth_the_same_the_first_of_each_hour_stays() {
    let all = every_five_minutes(1);
    let newest = all.last().unwrap().t0.0;
    let kept = survivors(&all, Keep { journal: Duration::ZERO, ..DEFAULT });
    let old: Vec<&Aging> = kept.iter().filter(|point| newest - point.t0.0 > 3 * HOUR).collect();
    // Of the oldest hour retention may leave the end only.
    assert!(old.len() >= 20 && old.iter().skip(1).all(|point| point.t0.0 % HOUR == 0), "{old:?}");
}

/// Without the points in between the journal could only begin at the newest, when the base has grown too old.
#[test]
fn of_the_journals_time_a_base_an_hour_stays_though_no_point_does() {
    let all = every_five_minutes(1);
    let newest = all.last().unwrap().t0.0;
    let keep = Keep { retention: Duration::ZERO, journal: Duration::from_secs(5 * 3600) };
    let kept = survivors(&all, keep);
    let younger = kept.iter().filter(|point| newest - point.t0.0 < 5 * HOUR).count();
    assert!((5..=6).contains(&younger) && kept.len() == younger + 1, "{kept:?}");
}

#[test]
fn of_each_hour_the_point_of_the_group_stays() {
    let mut all = every_five_minutes(1);
    // The fifth of each hour.
    let is_group = |point: &Aging| point.t0.0.rem_euclid(HOUR) == 20 * MINUTE;
    for point in all.iter_mut().filter(|point| is_group(point)) {
        point.worth = 3;
    }
    let newest = all.last().unwrap().t0.0;
    let kept = survivors(&all, Keep { journal: Duration::ZERO, ..DEFAULT });
    let old: Vec<&Aging> = kept.iter().filter(|point| newest - point.t0.0 > 3 * HOUR).collect();
    assert!(old.len() >= 20 && old.iter().all(|point| is_group(point)), "{old:?}");
}

proptest! {
    #[test]
    fn the_newest_point_always_stays(t0s in t0s(), keep in keep()) {
        let all = worthy(t0s);
        let kept = survivors(&all, keep);
        prop_assert_eq!(kept.last(), all.last());
    }

    /// Retention runs whenever there is a new point, on what earlier runs have left. The base aside: one that was chosen
    /// is passed over once a later point of its span is worth more, while older ones may be gone. Where the journal
    /// begins is kept all the same, see `plan`.
    #[test]
    fn running_often_keeps_all_that_running_once_would(t0s in t0s(), keep in keep(), runs in prop::collection::vec(any::<bool>(), 120)) {
        let all = worthy(t0s);
        let mut often: Vec<Aging> = Vec::new();
        for (point, run) in all.iter().zip(runs) {
            often.push(*point);
            if run {
                often = survivors(&often, keep);
            }
        }
        often = survivors(&often, keep);
        let once = survivors(&all, keep);
        let base = base(&all, keep).map(|base| all[base]);
        let lost = once.iter().filter(|point| !often.contains(point) && Some(**point) != base);
        let lost: Vec<_> = lost.collect();
        prop_assert!(lost.is_empty(), "{lost:?} would have been kept by a single run");
    }

    #[test]
    fn ages_never_shrink_towards_older_points(t0s in t0s()) {
        let all = worthy(t0s);
        let ages = ages(&all);
        prop_assert!(ages.windows(2).all(|pair| pair[0] >= pair[1]));
        prop_assert_eq!(ages.last(), Some(&0));
    }

    #[test]
    fn nothing_younger_than_two_hours_goes_within_the_retention(t0s in t0s(), keep in keep()) {
        let all = worthy(t0s);
        let ages = ages(&all);
        let limit = micros(keep.retention).min(2 * HOUR);
        for (age, stays) in ages.iter().zip(staying(&all, keep)) {
            prop_assert!(stays || *age > limit);
        }
    }
}
