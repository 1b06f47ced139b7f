//! What `assess` says, as JSON: names, units and order of the fields. The book's page *Plan capacity* tells each.
//!
//! Bytes are whole, spans are seconds, rates are bytes a second but for lines, which people know in Mbit/s (10^6 bits).
//! A field is added without notice; one that changes its meaning changes [`SCHEMA`].

use std::time::Duration;

use lifeboat_replication::wire::v1::AgentIssue;
use serde::Serialize;

use super::{measurement::Figures, sizing};
use crate::core::Machine;

pub const SCHEMA: &str = "lifeboat.dev/assess/v2";

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: &'static str,
    pub server: Server,
    pub measurement: Measured,
    pub disks: Vec<DiskReport>,
    pub issues: Vec<Issue>,
    pub churn: Churn,
    pub first_copy: FirstCopy,
    pub needs: Needs,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub hostname: String,
    pub os: String,
    pub kernel: String,
    /// How the agent would track changes here.
    pub tracking: String,
    pub agent_version: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    pub asked_seconds: u64,
    pub seconds: f64,
    /// As long as was asked for.
    pub complete: bool,
    pub round_interval_seconds: u64,
    pub rounds: u64,
    /// Rounds with changes that were judged, and those that would be consistent points at their first pass.
    pub judged_rounds: u64,
    pub exact_rounds: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    pub id: String,
    pub path: String,
    pub size_bytes: u64,
    pub changed_bytes: u64,
    pub written_bytes: u64,
    /// `None`: less than a minute was measured.
    pub page_writes: Option<PageWrites>,
}

/// Requests that the applier would make to the disk's page blob, in batches of a minute.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageWrites {
    pub average_per_second: f64,
    pub peak_per_second: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Issue {
    pub code: String,
    pub severity: String,
    pub message: String,
    pub remedy: String,
}

impl From<&AgentIssue> for Issue {
    fn from(issue: &AgentIssue) -> Self {
        let AgentIssue { code, severity, message, remedy } = issue.clone();
        Self { code, severity, message, remedy }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Churn {
    /// Of all requests: what a block is written twice counts twice.
    pub written_bytes: u64,
    /// Of distinct blocks, round by round: what would be sent, before compression.
    pub changed_bytes: u64,
    /// Percentiles and peak are of spans this long.
    pub span_seconds: f64,
    pub compression: Compression,
    pub bytes_per_second: Rates,
    pub sent_bytes_per_second: Rates,
    pub longer_rounds: Vec<Wider>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// Sent for each byte.
    pub ratio: f64,
    pub samples: u64,
    pub sampled_bytes: u64,
    /// Nothing was sampled, so nothing is taken to compress.
    pub assumed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    pub average: u64,
    pub median: u64,
    pub p95: u64,
    pub p99: u64,
    pub peak: u64,
}

/// If rounds were longer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wider {
    pub interval_seconds: u64,
    pub bytes_per_second: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstCopy {
    pub disk_bytes: u64,
    /// Not zero: what the seed disks will hold.
    pub used_bytes: u64,
    /// 19 times of 20 `used_bytes` is not further off.
    pub used_error_bytes: Option<u64>,
    pub sent_bytes: u64,
    pub compression: Compression,
    pub times: Vec<LineTime>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LineTime {
    pub megabits_per_second: u64,
    /// `None`: the changes alone fill the line.
    pub seconds: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    pub uplink: Vec<Uplink>,
    /// This server's part of `spec.processServers.spool.size`.
    pub spool_bytes: u64,
    pub outages: Vec<Outage>,
    pub vault: Vec<VaultNeed>,
    pub store_operations: StoreOperations,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    pub rpo_seconds: u64,
    /// `None`: a round alone lasts as long.
    pub needed: Option<Bandwidth>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    pub bytes_per_second: u64,
    pub megabits_per_second: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outage {
    pub outage_seconds: u64,
    /// What is to be sent after it.
    pub bytes: u64,
    /// Until the vault is up to date again.
    pub times: Vec<LineTime>,
    pub extrapolated: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultNeed {
    pub journal_seconds: u64,
    pub seed_disk_bytes: u64,
    pub journal_bytes: u64,
    pub recovery_point_bytes: u64,
    pub total_bytes: u64,
    pub extrapolated: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreOperations {
    pub log_appends_per_day: u64,
    pub segment_puts_per_day: u64,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub length: Duration,
    pub interval: Duration,
    pub rpo: Duration,
}

impl Report {
    pub fn new(
        figures: &Figures,
        asked: Asked,
        machine: &Machine,
        tracking: &str,
        issues: &[AgentIssue],
    ) -> Self {
        let Machine { hostname, os, kernel, machine_id: _, agent_version, program_sha256: _ } =
            machine.clone();
        let seconds = figures.changed.total().seconds;
        let measured = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Self {
            schema: SCHEMA,
            server: Server { hostname, os, kernel, tracking: tracking.to_owned(), agent_version },
            measurement: Measured {
                asked_seconds: asked.length.as_secs(),
                seconds: (seconds * 10.0).round() / 10.0,
                complete: measured + asked.interval >= asked.length,
                round_interval_seconds: asked.interval.as_secs(),
                rounds: figures.rounds,
                judged_rounds: figures.judged,
                exact_rounds: figures.exact,
            },
            disks: sizing::disks(figures),
            issues: issues.iter().map(Issue::from).collect(),
            churn: sizing::churn(figures),
            first_copy: sizing::first_copy(figures),
            needs: sizing::needs(figures, asked.rpo),
            notes: sizing::notes(figures, measured, asked.length, asked.interval),
        }
    }
}
