//! How old points are, and which of them stay as they grow older. Pure.
//!
//! Age is time that has passed *in the log*: the sum of the steps between neighbouring points up to the newest one.
//! A step back counts nothing, and a step of more than [`LONGEST_STEP`] counts as that. So a date that jumps by years,
//! on whatever machine, makes points at most eight hours older, and a server that is switched off loses nothing.
//!
//! Thinning keeps the first point of each span of time, of those that are worth most (a part of a group's point, then how
//! consistent it is), and the spans of a later age consist of whole spans of an earlier one. What a later age keeps was
//! therefore kept at every earlier age: thinning again and again keeps all that thinning once would. The base alone may
//! be another one, since a later point of its span may be worth more; `plan` keeps the one at which the journal begins.

use std::time::Duration;

use lifeboat_replication::{env::Micros, ids::RecordId};

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// Longest step between two points that counts as age: twice the widest distance that thinning leaves.
pub const LONGEST_STEP: Duration = Duration::from_secs(8 * 3600);

/// Spans by age, as in the reference system: everything in the last two hours, then hourly up to a day, every two
/// hours up to 7 days, every four hours up to 15 days.
const SPANS: [(i64, i64); 4] = [(2 * HOUR, 0), (DAY, HOUR), (7 * DAY, 2 * HOUR), (15 * DAY, WIDEST_SPAN)];
const WIDEST_SPAN: i64 = 4 * HOUR;
/// Of points that stay only because the journal may need them as a base, one an hour is enough.
const BASE_SPAN: i64 = HOUR;

/// What retention looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aging {
    pub id: RecordId,
    pub t0: Micros,
    /// Of the points of a span one that is worth more stays.
    pub worth: u8,
}

/// How long points and journal are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At most 15 days count.
    pub retention: Duration,
    pub journal: Duration,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Age of each point in microseconds; the points in order of the log.
pub fn ages(points: &[Aging]) -> Vec<i64> {
    let mut ages = vec![0; points.len()];
    let mut age: i64 = 0;
    let newest_first = points.windows(2).zip(ages.iter_mut()).rev();
    for (pair, slot) in newest_first {
        let step = match pair {
            [older, newer] => newer.t0.0.saturating_sub(older.t0.0),
            _ => 0,
        };
        age = age.saturating_add(step.clamp(0, micros(LONGEST_STEP)));
        *slot = age;
    }
    ages
}

/// Width of the spans at this age; `None`: too old for any.
fn span(age: i64) -> Option<i64> {
    SPANS.iter().find(|(until, _)| age <= *until).map(|(_, span)| *span)
}

/// Is it the point of its span that stays: the first in order of the log, of those that are worth most?
fn is_chosen(points: &[Aging], index: usize, span: i64) -> bool {
    let Some(point) = points.get(index) else { return false };
    let better = |(other_index, other): (usize, &Aging)| {
        let same = other.t0.0.div_euclid(span) == point.t0.0.div_euclid(span);
        same && (other.worth > point.worth || (other.worth == point.worth && other_index < index))
    };
    span == 0 || !points.iter().enumerate().any(better)
}

/// Spans in which a base of the journal is sought: such that bases are not thinned away before they are old enough.
fn base_span(age: i64, keep: Keep) -> i64 {
    let span = span(age).unwrap_or(WIDEST_SPAN);
    if keep.retention < keep.journal { span.max(BASE_SPAN) } else { span }
}

/// The point that the oldest instant of the journal needs: the newest that is at least as old as the journal is long.
/// `None`: the journal does not reach back that far yet.
pub fn base(points: &[Aging], keep: Keep) -> Option<usize> {
    let journal = micros(keep.journal);
    let span = base_span(journal, keep);
    let ages = ages(points);
    (0..points.len())
        .rev()
        .find(|index| ages.get(*index).is_some_and(|age| *age >= journal) && is_chosen(points, *index, span))
}

/// Which points stay by their age: in the same order, true for those. The newest always does, since
/// it has no age.
pub fn staying(points: &[Aging], keep: Keep) -> Vec<bool> {
    let retention = micros(keep.retention).min(15 * DAY);
    let base = base(points, keep);
    let ages = ages(points);
    let stays = |(index, age): (usize, &i64)| {
        let listed = *age <= retention && span(*age).is_some_and(|span| is_chosen(points, index, span));
        let may_be_base = *age < micros(keep.journal) && is_chosen(points, index, base_span(*age, keep));
        base == Some(index) || listed || may_be_base
    };
    ages.iter().enumerate().map(stays).collect()
}

#[cfg(test)]
mod tests;
