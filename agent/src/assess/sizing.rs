//! From figures to what a server needs. Pure.
//!
//! Where less was measured than asked for, the average stands in and the figure says `extrapolated`. Nothing here adds
//! a reserve but the spool's part, which stays below the mark at which the appliance warns.

use std::time::Duration;

use lifeboat_replication::wire::MAX_ON_THE_WAY_BYTES;

use super::{
    measurement::{DiskFigures, Figures},
    pages::{TARGET_BYTES, TARGET_REQUESTS},
    report::{
        Bandwidth, Churn, Compression, DiskReport, FirstCopy, LineTime, Needs, Outage, PageWrites, Rates,
        StoreOperations, Uplink, VaultNeed, Wider,
    },
    sample::Sample,
    series::Span,
};

/// Lines for which times are given, in Mbit/s.
const LINES: [u64; 4] = [10, 50, 100, 1000];
/// Outages of the store or the line to it.
const OUTAGES: [u64; 2] = [3600, 8 * 3600];
/// `ReplicationPolicy.spec.journalRetention` to choose from.
const JOURNALS: [u64; 3] = [2 * 3600, 24 * 3600, 72 * 3600];
/// Goals for the RPO beside the one asked for.
const GOALS: [u64; 3] = [60, 300, 900];
/// Nine tenths of the volume are the spool's, and at seven tenths of that the appliance warns.
const SPOOL_USABLE: f64 = 0.9 * 0.7;
const MEBI: f64 = 1048576.0;
const DAY: f64 = 86400.0;
/// Recovery points with the policy's defaults: all of two hours, every five minutes; then one an hour up to a day.
const POINTS: [(u64, f64); 2] = [(300, 7200.0), (3600, 79200.0)];

/// Bytes of compressed blocks for each byte; 1 where nothing was sampled.
fn ratio(sample: &Sample) -> f64 {
    sample.ratio().unwrap_or(1.0)
}

pub fn compression(sample: &Sample) -> Compression {
    Compression {
        ratio: round(ratio(sample), 3),
        samples: sample.samples,
        sampled_bytes: sample.bytes,
        assumed: sample.samples == 0,
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}

fn whole(value: f64) -> u64 {
    value.max(0.0).ceil() as u64
}

pub fn disks(figures: &Figures) -> Vec<DiskReport> {
    let report = |disk: &super::measurement::DiskFigures| DiskReport {
        id: disk.disk.id.clone(),
        path: disk.disk.path.clone(),
        size_bytes: disk.disk.size_bytes,
        changed_bytes: disk.changed_bytes,
        written_bytes: disk.written_bytes,
        page_writes: disk.pages.average_requests().map(|average| PageWrites {
            average_per_second: round(average, 1),
            peak_per_second: round(disk.pages.peak_requests, 1),
        }),
    };
    figures.disks.iter().map(report).collect()
}

pub fn churn(figures: &Figures) -> Churn {
    let ratio = ratio(&figures.churn);
    let [median, p95, p99, peak] = figures.changed.percentiles([0.5, 0.95, 0.99, 1.0]);
    let rates = |factor: f64| Rates {
        average: whole(figures.changed.average() * factor),
        median: whole(median * factor),
        p95: whole(p95 * factor),
        p99: whole(p99 * factor),
        peak: whole(peak * factor),
    };
    Churn {
        written_bytes: figures.disks.iter().map(|disk| disk.written_bytes).sum(),
        changed_bytes: figures.changed.total().bytes,
        span_seconds: round(figures.changed.span_seconds(), 1),
        compression: compression(&figures.churn),
        bytes_per_second: rates(1.0),
        sent_bytes_per_second: rates(ratio),
        longer_rounds: figures
            .wider
            .iter()
            .filter(|wider| wider.total.seconds > 0.0)
            .map(|wider| Wider {
                interval_seconds: wider.interval.as_secs(),
                bytes_per_second: whole(wider.total.bytes as f64 / wider.total.seconds),
            })
            .collect(),
    }
}

/// Blocks that are not zero are sent once; the rounds go on beside them.
pub fn first_copy(figures: &Figures) -> FirstCopy {
    let size: u64 = figures.disks.iter().map(|disk| disk.disk.size_bytes).sum();
    let used = figures.content.used().unwrap_or(1.0);
    let sent = size as f64 * ratio(&figures.content);
    FirstCopy {
        disk_bytes: size,
        used_bytes: whole(size as f64 * used),
        used_error_bytes: match (figures.content_complete, figures.content.used_error()) {
            (true, _) => Some(0),
            (false, error) => error.map(|error| whole(size as f64 * error)),
        },
        sent_bytes: whole(sent),
        compression: compression(&figures.content),
        times: times(figures, sent),
    }
}

/// How long so many bytes take beside the rounds.
fn times(figures: &Figures, bytes: f64) -> Vec<LineTime> {
    let beside = figures.changed.average() * ratio(&figures.churn);
    let time = |megabits: u64| {
        let left = megabits as f64 * 1e6 / 8.0 - beside;
        LineTime { megabits_per_second: megabits, seconds: (left > 0.0).then(|| whole(bytes / left)) }
    };
    LINES.map(time).into()
}

/// Bytes of this many seconds, compressed: the most measured, or the average where less was measured.
fn in_worst(figures: &Figures, seconds: f64) -> (u64, bool) {
    let ratio = ratio(&figures.churn);
    match figures.changed.worst(seconds) {
        Some(bytes) => (whole(bytes as f64 * ratio), false),
        None => (whole(figures.changed.average() * seconds * ratio), true),
    }
}

pub fn needs(figures: &Figures, goal: Duration) -> Needs {
    let mut goals = GOALS.to_vec();
    if !goals.contains(&goal.as_secs()) {
        goals.push(goal.as_secs());
        goals.sort_unstable();
    }
    let uplink = goals.into_iter().map(|goal| {
        let rate = figures.changed.rate_for(goal as f64, ratio(&figures.churn));
        Uplink { rpo_seconds: goal, needed: rate.map(bandwidth) }
    });
    Needs {
        uplink: uplink.collect(),
        spool_bytes: whole((MAX_ON_THE_WAY_BYTES as f64 / SPOOL_USABLE / MEBI).ceil() * MEBI),
        outages: OUTAGES.map(|length| outage(figures, length)).into(),
        vault: JOURNALS.map(|journal| vault(figures, journal)).into(),
        store_operations: operations(figures),
    }
}

/// What has changed waits on the server, each block once, however often it was written.
fn outage(figures: &Figures, seconds: u64) -> Outage {
    let ratio = ratio(&figures.churn);
    let measured = figures.wider.iter().find(|wider| wider.interval.as_secs() == seconds && wider.most > 0);
    let (bytes, extrapolated) = match measured {
        Some(wider) => (whole(wider.most as f64 * ratio), false),
        None => {
            let all: u64 = figures.disks.iter().map(|disk| disk.disk.size_bytes).sum();
            let changed = distinct_rate(figures, seconds) * seconds as f64;
            (whole(changed.min(all as f64) * ratio), true)
        }
    };
    Outage { outage_seconds: seconds, bytes, times: times(figures, bytes as f64), extrapolated }
}

fn bandwidth(rate: f64) -> Bandwidth {
    Bandwidth { bytes_per_second: whole(rate), megabits_per_second: (rate * 8.0 / 1e5).ceil() / 10.0 }
}

/// The seed disks hold what is not zero as it is; the first copy stays in the journal until it is applied and old
/// enough, so it counts whole.
fn vault(figures: &Figures, journal: u64) -> VaultNeed {
    let copy = first_copy(figures);
    let (rounds, extrapolated) = in_worst(figures, journal as f64);
    let points: f64 = POINTS.iter().map(|(interval, age)| distinct_rate(figures, *interval) * age).sum();
    let journal_bytes = copy.sent_bytes + rounds;
    let recovery_point_bytes = whole(points);
    VaultNeed {
        journal_seconds: journal,
        seed_disk_bytes: copy.used_bytes,
        journal_bytes,
        recovery_point_bytes,
        total_bytes: copy.used_bytes + journal_bytes + recovery_point_bytes,
        extrapolated,
    }
}

/// Distinct bytes a second when what is changed is looked at this seldom; of the longest interval that was measured.
fn distinct_rate(figures: &Figures, interval: u64) -> f64 {
    let measured = |wider: &&super::measurement::Wider| {
        wider.interval.as_secs() <= interval && wider.total.seconds > 0.0
    };
    let longest = figures.wider.iter().rfind(measured);
    longest.map_or_else(
        || figures.changed.average(),
        |wider| {
            let Span { seconds, bytes } = wider.total;
            bytes as f64 / seconds
        },
    )
}

fn operations(figures: &Figures) -> StoreOperations {
    let seconds = figures.changed.total().seconds;
    let a_day = |count: u64| if seconds > 0.0 { whole(count as f64 * DAY / seconds) } else { 0 };
    StoreOperations { log_appends_per_day: a_day(figures.appends), segment_puts_per_day: a_day(figures.puts) }
}

/// Whether a disk asks more of its seed disk than Azure means a page blob to give.
fn beyond_a_page_blob(disk: &DiskFigures) -> Option<String> {
    let pages = &disk.pages;
    let (requests, bytes) = (pages.average_requests()?, pages.average_bytes()?);
    let over = |requests: f64, bytes: f64| requests > TARGET_REQUESTS as f64 || bytes > TARGET_BYTES as f64;
    let (when, requests, bytes, then) = if over(requests, bytes) {
        let then = "the seed disk would fall behind for good: points stay recoverable, from a journal that grows and that a \
                    recovery reads more and more of. Spread what is written over several disks, or write less scattered";
        ("on average", requests, bytes, then)
    } else if over(pages.peak_requests, pages.peak_bytes) {
        let then = "the seed disk falls behind at such times, and catches up";
        ("at times", pages.peak_requests, pages.peak_bytes, then)
    } else {
        return None;
    };
    Some(format!(
        "{} needs up to {} page writes and {}/s {when}, and Azure's targets for a page blob of a standard account are \
         {TARGET_REQUESTS} a second and {}/s: {then}",
        disk.disk.path,
        requests.ceil(),
        super::text::bytes(whole(bytes)),
        super::text::bytes(TARGET_BYTES)
    ))
}

/// What a person should know before trusting the figures.
pub fn notes(figures: &Figures, elapsed: Duration, asked: Duration, interval: Duration) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: String| notes.push(text);
    let said = super::length::format;
    if elapsed + interval < asked {
        note(format!(
            "stopped after {} of {}: the figures are of that time only",
            said(elapsed.as_secs_f64()),
            said(asked.as_secs_f64())
        ));
    }
    if elapsed.as_secs_f64() < DAY * 0.99 {
        note(
            "less than a day was measured: backups, imports and the end of the month may write much more"
                .to_owned(),
        );
    }
    if figures.rounds > 0 && figures.changed.average() == 0.0 {
        note("nothing was written: measure while the server does its work".to_owned());
    }
    if figures.churn.samples == 0 && !figures.changed.is_empty() && figures.changed.average() > 0.0 {
        note(
            "no changed block was sampled, so none is taken to compress: give --sample more than 0"
                .to_owned(),
        );
    }
    if figures.content.samples == 0 {
        note("the disks were not sampled, so they are taken to be full and not to compress".to_owned());
    }
    figures.disks.iter().filter_map(beyond_a_page_blob).for_each(&mut note);
    for loss in &figures.losses {
        note(format!("some changes were not counted ({loss}): the figures are too low for that time"));
    }
    if let Some(trouble) = &figures.unreadable {
        note(format!("sampling ended early: {trouble}"));
    }
    notes
}

#[cfg(test)]
#[path = "sizing_tests.rs"]
mod tests;
