//! Upload limits by time of day.

use jiff::civil::Weekday as Civil;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::UnknownTimeZone;

/// Hours in which uploads are limited. Where several hold at once, the lowest limit counts; outside of all there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.from != self.to").message("from and to of a bandwidth window must differ; leave both out for the whole day"))]
#[serde(rename_all = "camelCase")]
pub struct BandwidthWindow {
    /// Days on which it begins; every day when absent. One that crosses midnight belongs to the day before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 7), extend("x-kubernetes-list-type" = "set"))]
    pub days: Vec<Weekday>,
    /// Its beginning, as in `08:00`.
    #[serde(default = "midnight")]
    #[schemars(length(max = 5), regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// Its end, as in `18:00`, up to `24:00`; earlier than `from` means the next day.
    #[serde(default = "next_midnight")]
    #[schemars(length(max = 5), regex(pattern = "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    pub to: String,
    /// Name of a time zone, as in `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// Bytes a second that the process servers may send to the vault together, as in `20Mi` (168 Mbit/s).
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('512Ki')) >= 0").message("limitPerSecond is at least 512Ki, bytes a second"))]
    pub limit_per_second: Quantity,
}

fn midnight() -> String {
    "00:00".to_owned()
}

fn next_midnight() -> String {
    "24:00".to_owned()
}

fn utc() -> String {
    "UTC".to_owned()
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Civil> for Weekday {
    fn from(day: Civil) -> Self {
        match day {
            Civil::Monday => Self::Mon,
            Civil::Tuesday => Self::Tue,
            Civil::Wednesday => Self::Wed,
            Civil::Thursday => Self::Thu,
            Civil::Friday => Self::Fri,
            Civil::Saturday => Self::Sat,
            Civil::Sunday => Self::Sun,
        }
    }
}

impl BandwidthWindow {
    /// Does it hold now? Its end does not belong to it.
    pub fn contains(&self, now: jiff::Timestamp) -> Result<bool, UnknownTimeZone> {
        let local = now.to_zoned(crate::policy::time_zone(&self.time_zone)?);
        let today = Weekday::from(local.weekday());
        let yesterday = Weekday::from(local.weekday().previous());
        // Two digits each, so the order of the texts is that of the times.
        let time = format!("{:02}:{:02}", local.hour(), local.minute());
        let on = |day: Weekday| self.days.is_empty() || self.days.contains(&day);
        let (after, before) = (time >= self.from, time < self.to);
        Ok(if self.from < self.to {
            after && before && on(today)
        } else {
            (after && on(today)) || (before && on(yesterday))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &[Weekday], from: &str, to: &str, time_zone: &str) -> BandwidthWindow {
        BandwidthWindow {
            days: days.to_vec(),
            from: from.into(),
            to: to.into(),
            time_zone: time_zone.into(),
            limit_per_second: Quantity("1Mi".into()),
        }
    }

    #[test]
    fn it_holds_on_its_days_in_its_time_zone() {
        use Weekday::{Fri, Mon, Sat};
        let berlin = "Europe/Berlin";
        // 2026-07-03 is a Friday; Berlin is two hours ahead of UTC.
        for (now, days, from, to, holds) in [
            ("2026-07-03T05:59:00Z", &[Fri][..], "08:00", "18:00", false),
            ("2026-07-03T06:00:00Z", &[Fri], "08:00", "18:00", true),
            ("2026-07-03T16:00:00Z", &[Fri], "08:00", "18:00", false),
            ("2026-07-03T12:00:00Z", &[Mon, Sat], "08:00", "18:00", false),
            ("2026-07-03T12:00:00Z", &[], "00:00", "24:00", true),
            // 00:30 on Saturday in Berlin: of the night that began on Friday.
            ("2026-07-03T22:30:00Z", &[Fri], "22:00", "06:00", true),
            ("2026-07-03T22:30:00Z", &[Sat], "22:00", "06:00", false),
            ("2026-07-03T21:00:00Z", &[Fri], "22:00", "06:00", true),
            ("2026-07-04T04:00:00Z", &[Fri], "22:00", "06:00", false),
        ] {
            let found = window(days, from, to, berlin).contains(now.parse().unwrap());
            assert_eq!(found, Ok(holds), "{now} in {days:?} {from} to {to}");
        }
    }

    #[test]
    fn an_unknown_time_zone_is_named() {
        let error = window(&[], "08:00", "18:00", "Europe/Atlantis").contains(jiff::Timestamp::UNIX_EPOCH);
        assert!(error.unwrap_err().to_string().contains("Europe/Atlantis"));
    }
}
