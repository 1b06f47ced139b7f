//! What figures lead to, by hand.

use std::collections::BTreeSet;

use lifeboat_replication::wire::v1;
use proptest::prelude::*;

use super::*;
use crate::{
    assess::{
        measurement::{DiskFigures, Wider},
        pages::PageWrites,
        report::{Asked, Report},
        series::Series,
    },
    core::Machine,
};

const MIB: u64 = 1 << 20;

/// Rounds of one second each, a disk of 1 GiB, nothing sampled.
fn figures(rounds: &[u64]) -> Figures {
    let mut changed = Series::default();
    for bytes in rounds {
        changed.push(Span { seconds: 1.0, bytes: *bytes });
    }
    let disk = v1::Disk { slot: 1, id: "a".into(), size_bytes: 1 << 30, ..Default::default() };
    Figures {
        rounds: rounds.len() as u64,
        changed,
        wider: Vec::new(),
        disks: vec![DiskFigures { disk, changed_bytes: 0, written_bytes: 0, pages: PageWrites::default() }],
        churn: Sample::default(),
        content: Sample::default(),
        content_complete: false,
        judged: 0,
        exact: 0,
        appends: rounds.len() as u64,
        puts: 2 * rounds.len() as u64,
        losses: BTreeSet::new(),
        unreadable: None,
    }
}

#[test]
fn the_first_copy_goes_beside_the_rounds_and_never_ends_on_a_line_they_fill() {
    // 10 Mbit/s are 1.25 MB/s.
    let copy = first_copy(&figures(&[1_250_000; 10]));
    assert_eq!(copy.sent_bytes, 1 << 30);
    assert_eq!(copy.times[0], LineTime { megabits_per_second: 10, seconds: None });
    // 50 Mbit/s leave 5 MB/s.
    assert_eq!(copy.times[1].seconds, Some((1_u64 << 30).div_ceil(5_000_000)));
    assert_eq!((copy.used_bytes, copy.used_error_bytes, copy.compression.assumed), (1 << 30, None, true));
}

#[test]
fn a_disk_that_asks_more_of_a_page_blob_than_it_gives_is_named() {
    let told = |average: u64, peak: f64, peak_bytes: f64| {
        let mut figures = figures(&[MIB; 60]);
        let disk = &mut figures.disks[0];
        disk.disk.path = "/dev/sda".into();
        disk.pages = PageWrites {
            seconds: 60.0,
            requests: 60 * average,
            bytes: 60 * MIB,
            peak_requests: peak,
            peak_bytes,
        };
        let notes = notes(&figures, Duration::from_secs(60), Duration::from_secs(60), Duration::from_secs(1));
        notes.into_iter().find(|note| note.starts_with("/dev/sda"))
    };
    let mebibytes = |count: u64| (count * MIB) as f64;
    assert_eq!(told(500, 500.0, mebibytes(60)), None);
    let always = told(501, 600.0, mebibytes(1)).unwrap();
    assert!(always.contains("501 page writes") && always.contains("for good"), "{always}");
    let at_times = told(100, 600.0, mebibytes(1)).unwrap();
    assert!(at_times.contains("600 page writes") && at_times.contains("catches up"), "{at_times}");
    assert!(told(100, 100.0, mebibytes(61)).unwrap().contains("61 MiB/s at times"));
}

#[test]
fn after_an_outage_each_block_is_sent_once_beside_what_is_written() {
    // 1 MiB/s, of which 0.5 MiB/s are other blocks than in the hour before.
    let mut measured = figures(&vec![MIB; 7200]);
    let total = Span { seconds: 7200.0, bytes: 3600 * MIB };
    measured.wider = vec![Wider::of(Duration::from_secs(3600), total)];
    let needs = needs(&measured, Duration::from_secs(300));
    let [hour, shift] = &needs.outages[..] else { panic!("{:?}", needs.outages) };
    assert_eq!((hour.outage_seconds, hour.bytes, hour.extrapolated), (3600, 1800 * MIB, false));
    // 10 Mbit/s are 1.25 MB/s.
    let left = 1_250_000 - MIB;
    assert_eq!(hour.times[0].seconds, Some((1800 * MIB).div_ceil(left)));
    assert!(shift.extrapolated && shift.bytes == 1 << 30, "no more than the disk: {shift:?}");
    assert!(needs.spool_bytes as f64 >= 64.0 * MIB as f64 / 0.63, "room below the warning");
}

#[test]
fn the_uplink_is_given_for_the_goal_asked_for_and_the_usual_ones() {
    let needs = needs(&figures(&[MIB; 100]), Duration::from_secs(120));
    let goals: Vec<u64> = needs.uplink.iter().map(|uplink| uplink.rpo_seconds).collect();
    assert_eq!(goals, [60, 120, 300, 900]);
    let rates: Vec<u64> =
        needs.uplink.iter().map(|uplink| uplink.needed.as_ref().unwrap().bytes_per_second).collect();
    assert!(rates.is_sorted_by(|a, b| a >= b), "a longer goal never needs more: {rates:?}");
    // 100 MiB within 99 + 60 - 1 seconds.
    assert_eq!(rates[0], (100 * MIB).div_ceil(158));
}

#[test]
fn operations_are_scaled_to_a_day() {
    let operations = needs(&figures(&[MIB; 60]), Duration::from_secs(300)).store_operations;
    assert_eq!((operations.log_appends_per_day, operations.segment_puts_per_day), (86400, 172_800));
}

#[test]
fn a_short_or_idle_measurement_says_so() {
    let said = |rounds: &[u64], elapsed: u64, asked: u64| {
        let (elapsed, asked) = (Duration::from_secs(elapsed), Duration::from_secs(asked));
        notes(&figures(rounds), elapsed, asked, Duration::from_secs(1)).join("\n")
    };
    let cut = said(&[0; 60], 60, 86400);
    assert!(cut.contains("stopped after 1m of 1d") && cut.contains("nothing was written"), "{cut}");
    let whole = said(&[MIB; 60], 86400, 86400);
    assert!(!whole.contains("stopped") && !whole.contains("less than a day"), "{whole}");
    assert!(whole.contains("--sample"), "nothing was sampled: {whole}");
}

fn report(figures: &Figures) -> Report {
    let hour = Duration::from_secs(3600);
    let asked = Asked { length: hour, interval: Duration::from_secs(1), rpo: Duration::from_secs(120) };
    let issue = v1::AgentIssue { code: "DiskTooLarge".to_owned(), ..Default::default() };
    Report::new(figures, asked, &Machine::default(), "ebpf-tp_btf", &[issue])
}

fn names(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            names.insert(name.clone());
            self::names(value, names);
        }),
        serde_json::Value::Array(all) => all.iter().for_each(|value| self::names(value, names)),
        _ => {}
    }
}

#[test]
fn the_book_tells_every_field() {
    let mut figures = figures(&[MIB; 60]);
    let total = Span { seconds: 60.0, bytes: MIB };
    figures.wider = vec![Wider::of(Duration::from_secs(60), total)];
    let mut found = BTreeSet::new();
    names(&serde_json::to_value(report(&figures)).unwrap(), &mut found);
    assert!(found.contains("intervalSeconds") && found.contains("remedy"), "{found:?}");
    let book = include_str!("../../../docs/src/tasks/plan-capacity.md");
    let missing: Vec<_> = found
        .iter()
        .filter(|name| !book.contains(&format!("`{name}`")) && !book.contains(&format!(".{name}")))
        .filter(|name| !["needs", "needed", "times"].contains(&name.as_str()))
        .filter(|name| !book.contains(&format!("`{name}[]`")))
        .collect();
    assert!(missing.is_empty(), "docs/src/tasks/plan-capacity.md does not tell {missing:?}");
}

#[test]
fn people_read_what_is_not_certain() {
    let said = report(&figures(&[MIB; 60])).to_string();
    for words in [
        "stopped after 1m of 1h",
        "DiskTooLarge",
        "not sampled, taken as they are",
        "for an RPO of 2m:",
        "from the average: less was measured",
    ] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
}

proptest! {
    #[test]
    fn more_churn_never_needs_less(
        rounds in prop::collection::vec(0_u64..MIB, 1..50), at in any::<prop::sample::Index>(), more in 1..MIB,
    ) {
        let mut larger = rounds.clone();
        larger[at.index(rounds.len())] += more;
        let goal = Duration::from_secs(60);
        let (before, after) = (needs(&figures(&rounds), goal), needs(&figures(&larger), goal));
        for (before, after) in before.uplink.iter().zip(&after.uplink) {
            let rate = |uplink: &Uplink| uplink.needed.as_ref().map(|needed| needed.bytes_per_second);
            // Equal but for the last halving step.
            prop_assert!(rate(before) <= rate(after).map(|rate| rate + 1));
        }
        for (before, after) in before.outages.iter().zip(&after.outages) {
            prop_assert!(before.bytes <= after.bytes);
        }
        for (before, after) in before.vault.iter().zip(&after.vault) {
            prop_assert!(before.total_bytes <= after.total_bytes);
        }
    }
}
