//! The replicator: makes the server's changes one numbered stream of records and forgets a block only when the
//! record that carries it is durable in the vault.
//!
//! ```text
//!   Replicator::run ── dial ─► session ─┬─ tracker   what is unsent, carried, awaiting its copy
//!        ▲   backoff                    ├─ round     exact, another pass, or given up
//!        └──── any break ◄──────────────┼─ freeze    when a freeze may help
//!                                       ├─ compare   which blocks differ from the vault, by checksums
//!                                       ├─ points    what is asked for, and what was answered
//!                                       ├─ standing  points of frozen file systems
//!                                       ├─ shutdown  takes the server out of service by order
//!                                       ├─ group     this server's part in the point of its consistency group
//!                                       ├─ chunk     reads blocks, leaves out zeros
//!                                       └─ clock     the process server's time
//! ```
//!
//! - Ordering: one task reads, in the order of record numbers; a later record's read of a block is the later one.
//! - Crash and break: nothing is kept here that the pinned marks do not hold. Dropping `run` is a crash.
//! - Memory: a chunk being read (4 MiB), the connection's depth, and compressed bitmaps of what is in flight.
//! - Time: durations by `tokio::time`; the date is only reported.

pub mod backoff;
pub mod chunk;
pub mod clock;
pub mod compare;
mod comparing;
pub mod freeze;
mod group;
mod heartbeat;
mod orders;
pub mod points;
mod progress;
mod record;
pub mod round;
mod session;
mod shutdown;
mod standing;
pub mod tracker;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    env::Env,
    errors::chain,
    ids::ServerId,
    planted::Planted,
    wire::{
        Dial, MAX_CHUNK_BYTES,
        v1::{AgentIssue, DiskSelector},
    },
};
use tokio::sync::watch;

use tokio::time::Instant;

pub use session::SessionError;

use self::{
    backoff::Backoff, freeze::FreezeBudget, points::Requests, progress::Progress, session::Session,
    shutdown::Shutdown,
};
use crate::edge::{BlockSource, DirtyMap, Freezer, Hooks, Power, TrackError};

/// What somebody has to do something about is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The machine, for status.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub hostname: String,
    pub os: String,
    pub kernel: String,
    pub machine_id: String,
    pub agent_version: String,
    /// SHA-256 of the program that runs; empty: not known.
    pub program_sha256: Vec<u8>,
}

/// Bounds. The defaults are for production; the simulation makes them small.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Data of one chunk, at most.
    pub chunk_bytes: u64,
    /// Data of one copy record and of one batch while catching up: what a broken connection has to send again.
    pub batch_bytes: u64,
    /// Blocks that one copy record covers, zeros included.
    pub batch_covers_bytes: u64,
    /// More than this to send (after an outage): it goes in batches first, since reading it takes too long for a
    /// round to become exact.
    pub catch_up_bytes: u64,
    /// No new record begins while this much is unacknowledged; changes gather in the bitmap meanwhile.
    pub window_bytes: u64,
    pub window_records: usize,
    /// A freeze lasts while this much is read, at most.
    pub frozen_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A quarter of what may be sent: both ends hold several, and the process server those of every server.
            chunk_bytes: MAX_CHUNK_BYTES as u64 / 4,
            batch_bytes: 64 << 20,
            batch_covers_bytes: 512 << 20,
            catch_up_bytes: 256 << 20,
            window_bytes: 128 << 20,
            window_records: 64,
            frozen_bytes: 16 << 20,
        }
    }
}

impl Limits {
    pub(crate) fn batch_blocks(&self) -> u64 {
        (self.batch_bytes / BLOCK_BYTES).max(1)
    }
}

/// What the replicator works with.
pub struct Parts {
    pub server: ServerId,
    pub dial: Arc<dyn Dial>,
    pub map: Box<dyn DirtyMap>,
    pub source: Arc<dyn BlockSource>,
    pub freezer: Box<dyn Freezer>,
    pub hooks: Box<dyn Hooks>,
    pub env: Env,
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    pub machine: Machine,
    /// Problems found at start, reported with each heartbeat (for example refused disks).
    pub issues: Vec<AgentIssue>,
    pub limits: Limits,
    /// Told which disks the appliance wants left out; whoever runs the replicator starts it anew without them.
    pub excluded: watch::Sender<Vec<DiskSelector>>,
    /// By which the appliance may shut the server down; `None`: it may not.
    pub power: Option<Arc<dyn Power>>,
    /// Set by the simulation only.
    pub planted: Option<Planted>,
}

/// Lives longer than a session.
struct Kept {
    freezes: FreezeBudget,
    requests: Requests,
    shutdown: Shutdown,
    /// Applications may be held: they are released before anything else is tried.
    holding: bool,
    /// When policy wants the next application-consistent point.
    app_due: Option<Instant>,
    progress: Progress,
    /// Why checksums cannot be used, and everything is copied.
    not_compared: Option<String>,
    /// By code.
    issues: BTreeMap<String, AgentIssue>,
    /// Slots of the vault by disk id, once they are known.
    slots: BTreeMap<String, u32>,
}

pub struct Replicator {
    parts: Parts,
    options: Options,
    kept: Kept,
}

/// One issue a code, in which every disk that it is about is named: the server's status has one of each.
fn by_code(issues: &[AgentIssue]) -> BTreeMap<String, AgentIssue> {
    let mut all: BTreeMap<String, AgentIssue> = BTreeMap::new();
    for issue in issues {
        match all.get_mut(&issue.code) {
            Some(known) => {
                join(&mut known.message, &issue.message);
                join(&mut known.remedy, &issue.remedy);
            }
            None => _ = all.insert(issue.code.clone(), issue.clone()),
        }
    }
    all
}

fn join(text: &mut String, more: &str) {
    if !text.contains(more) {
        text.push_str("; ");
        text.push_str(more);
    }
}

impl Replicator {
    pub fn new(parts: Parts, options: Options) -> Self {
        let issues = by_code(&options.issues);
        let kept = Kept {
            freezes: FreezeBudget::default(),
            requests: Requests::default(),
            shutdown: Shutdown::default(),
            holding: false,
            app_due: None,
            progress: Progress::default(),
            not_compared: None,
            issues,
            slots: BTreeMap::new(),
        };
        Self { parts, options, kept }
    }

    /// Replicates until tracking fails. Every other trouble ends the session only, and the next one begins after a
    /// wait.
    pub async fn run(mut self) -> TrackError {
        let mut backoff = Backoff::default();
        loop {
            let (error, useful) = Session::run(&mut self.parts, &self.options, &mut self.kept).await;
            if useful {
                backoff.reset();
            }
            if std::mem::take(&mut self.kept.holding)
                && let Err(error) = self.parts.hooks.release().await
            {
                tracing::warn!(error = %chain(&error), "applications were released after the session had ended");
            }
            let random = self.parts.env.entropy.next_u64();
            let wait = match &error {
                SessionError::Track(_) | SessionError::Lost { .. } | SessionError::Again { .. } => {
                    Duration::ZERO
                }
                SessionError::Refused { retry_after, .. } if retry_after.is_zero() => {
                    backoff::jittered(ASK_AGAIN, random)
                }
                SessionError::Refused { retry_after, .. } => {
                    *retry_after + backoff::jittered(*retry_after / 4, random)
                }
                _ => backoff.next(random),
            };
            if let SessionError::Track(error) = error {
                return error;
            }
            tracing::warn!(error = %chain(&error), retry_in_seconds = wait.as_secs_f64(), "session ended");
            tokio::time::sleep(wait).await;
        }
    }
}

/// An issue for status.
fn issue(code: &str, severity: &str, message: String, remedy: &str) -> AgentIssue {
    AgentIssue { code: code.to_owned(), severity: severity.to_owned(), message, remedy: remedy.to_owned() }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
