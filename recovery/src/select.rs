//! Which point is wanted, and whether a record is it.

use std::{fmt, str::FromStr};

use lifeboat_replication::{
    catalogue::{Point, is_point},
    env::Micros,
    wire::v1,
};

/// A point as a person or the operator names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointSelector {
    /// The newest exact and complete record.
    Latest,
    /// This record.
    Number(u64),
    /// The newest point whose instant is not later.
    At(Micros),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} names no point: use `latest`, the number of a record, or a time such as 2026-05-04T12:00:00Z"
)]
pub struct InvalidSelector {
    pub value: String,
}

impl FromStr for PointSelector {
    type Err = InvalidSelector;

    fn from_str(value: &str) -> Result<Self, InvalidSelector> {
        if value.eq_ignore_ascii_case("latest") {
            return Ok(Self::Latest);
        }
        if let Ok(number) = value.parse() {
            return Ok(Self::Number(number));
        }
        let time = value.parse::<jiff::Timestamp>();
        time.map(|time| Self::At(Micros(time.as_microsecond())))
            .map_err(|_| InvalidSelector { value: value.to_owned() })
    }
}

impl fmt::Display for PointSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the latest point"),
            Self::Number(number) => write!(f, "record {number}"),
            Self::At(time) => write!(f, "the newest point up to {}", time_text(*time)),
        }
    }
}

/// A time as people read it.
pub fn time_text(time: Micros) -> String {
    jiff::Timestamp::from_microsecond(time.0)
        .map_or_else(|_| format!("{} µs", time.0), |time| time.to_string())
}

/// What a record is to a selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Needed for a later point; not one itself that is wanted.
    Before,
    /// The best so far; a later one may be better.
    Candidate,
    /// The one; nothing later is needed.
    Found,
    /// Too late, and so is everything after it.
    Beyond,
}

impl PointSelector {
    /// May a snapshot be the base of the wanted point?
    pub(crate) fn may_start_at(&self, point: &Point) -> bool {
        match self {
            Self::Latest => true,
            Self::Number(number) => point.number <= *number,
            Self::At(time) => point.t0() <= *time,
        }
    }

    pub(crate) fn judge(&self, record: &v1::Data) -> Fit {
        match self {
            Self::Latest if is_point(record) => Fit::Candidate,
            Self::Number(number) if record.number > *number => Fit::Beyond,
            Self::Number(number) if record.number == *number => Fit::Found,
            Self::At(time) if is_point(record) && record.t0_micros <= time.0 => Fit::Candidate,
            Self::At(_) if is_point(record) => Fit::Beyond,
            _ => Fit::Before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_type() {
        assert_eq!("latest".parse(), Ok(PointSelector::Latest));
        assert_eq!("42".parse(), Ok(PointSelector::Number(42)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(PointSelector::At(Micros(1_000_000))));
        let error = "yesterday".parse::<PointSelector>().unwrap_err();
        assert!(error.to_string().contains("`latest`"), "{error}");
    }

    #[test]
    fn a_time_between_two_points_takes_the_earlier() {
        let record = |t0_micros| v1::Data {
            complete: true,
            kind: v1::RecordKind::Exact.into(),
            t0_micros,
            ..Default::default()
        };
        let selector = PointSelector::At(Micros(10));
        assert_eq!(selector.judge(&record(10)), Fit::Candidate);
        assert_eq!(selector.judge(&record(11)), Fit::Beyond);
    }
}
