//! What the operator is told: the servers' statuses, the spool, the vault, and rates.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use lifeboat_replication::{env::Env, wire::v1};
use tokio::{sync::watch, time::Instant};

use crate::{
    core::{agent_program::Served, space::Space},
    directory::Directory,
    groups::Reports,
    servers::Members,
};

/// Rates are means over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Where reports come from; each attached operator has a [`Reporter`] of its own.
#[derive(Debug, Clone)]
pub struct Sources {
    pub name: String,
    pub env: Env,
    pub directory: watch::Receiver<Option<Arc<Directory>>>,
    pub members: watch::Receiver<Arc<Members>>,
    pub space: Arc<Space>,
    /// Why the vault cannot be opened; empty: it is open.
    pub vault_closed: watch::Receiver<String>,
    /// Why the store cannot be used at the moment; empty: it can.
    pub store_trouble: watch::Receiver<String>,
    pub groups: watch::Receiver<Reports>,
    pub served_agent: Served,
}

/// Counters at one time.
#[derive(Debug)]
struct Sample {
    at: Instant,
    received: u64,
    sent: u64,
    copied: Vec<(String, u64)>,
}

#[derive(Debug)]
pub struct Reporter {
    sources: Sources,
    samples: VecDeque<Sample>,
}

/// What is worth telling at once: connections, errors, who holds which log, the first point, answers to requests, points
/// of groups.
pub type Turn = Vec<(String, bool, u32, bool, bool, String)>;

impl Sources {
    pub fn vault_error(&self) -> String {
        let closed = self.vault_closed.borrow().clone();
        if closed.is_empty() { self.store_trouble.borrow().clone() } else { closed }
    }

    /// Bytes a second that may be uploaded; 0: no limit.
    pub fn upload_limit(&self) -> u64 {
        self.directory.borrow().as_ref().map_or(0, |directory| directory.upload_limit)
    }

    /// Compared with the one before.
    pub fn turn(&self) -> Turn {
        let members = self.members.borrow().clone();
        let mut turn: Turn = members
            .iter()
            .map(|(id, member)| {
                let status = member.status.borrow();
                let report = &status.report;
                let point = report.last_point_micros > 0;
                let answered = report.heartbeat.iter().flat_map(|heartbeat| &heartbeat.points);
                let words: Vec<&str> =
                    answered.map(|answer| answer.id.as_str()).chain([&*report.error]).collect();
                (id.clone(), report.connected, report.epoch, report.complete, point, words.join("\n"))
            })
            .collect();
        let generation = self.directory.borrow().as_ref().map_or(0, |directory| directory.generation);
        for group in self.groups.borrow().iter() {
            let over = [&group.taken, &group.missed].into_iter().flatten().map(|outcome| outcome.id.as_str());
            turn.push((group.name.clone(), true, 0, false, false, over.collect()));
        }
        turn.push((self.vault_error(), true, 0, false, false, generation.to_string()));
        turn
    }
}

impl Reporter {
    pub fn new(sources: Sources) -> Self {
        Self { sources, samples: VecDeque::new() }
    }

    pub fn report(&mut self) -> v1::Report {
        let members = self.sources.members.borrow().clone();
        let mut copied = Vec::new();
        let mut servers = Vec::new();
        for (id, member) in members.iter() {
            let status = member.status.borrow();
            copied.push((id.clone(), status.copied_bytes));
            let mut report = status.report.clone();
            report.set_agent_program(self.sources.served_agent.judge(report.heartbeat.as_ref()));
            servers.push(report);
        }
        let sum = |count: fn(&v1::ServerReport) -> u64| servers.iter().map(count).sum::<u64>();
        let now = Sample {
            at: Instant::now(),
            received: sum(|server| server.received_bytes),
            sent: sum(|server| server.sent_bytes),
            copied,
        };
        let rates = Rates { before: self.samples.front(), now: &now };
        for server in &mut servers {
            server.copy_bytes_per_second = rates.copied(&server.server_id);
        }
        let spool_used_bytes = self.sources.space.used_bytes();
        let report = v1::Report {
            name: self.sources.name.clone(),
            configuration_generation: self
                .sources
                .directory
                .borrow()
                .as_ref()
                .map_or(0, |directory| directory.generation),
            spool_used_bytes,
            spool_size_bytes: self.sources.space.size_bytes(),
            upload_backlog_seconds: spool_used_bytes / rates.of(|sample| sample.sent).max(1 << 20),
            ingest_bytes_per_second: rates.of(|sample| sample.received),
            vault_error: self.sources.vault_error(),
            servers,
            time_micros: self.sources.env.wall.now().0,
            upload_limit_bytes_per_second: self.sources.upload_limit(),
            groups: self.sources.groups.borrow().clone(),
        };
        let oldest = now.at.checked_sub(RATE_WINDOW);
        self.samples.push_back(now);
        while self.samples.front().is_some_and(|sample| oldest.is_some_and(|oldest| sample.at < oldest)) {
            self.samples.pop_front();
        }
        report
    }
}

/// Bytes a second between two samples.
struct Rates<'a> {
    before: Option<&'a Sample>,
    now: &'a Sample,
}

impl Rates<'_> {
    fn of(&self, count: fn(&Sample) -> u64) -> u64 {
        self.before.map_or(0, |before| self.rate(count(before), count(self.now)))
    }

    fn copied(&self, server: &str) -> u64 {
        let of = |sample: &Sample| {
            sample.copied.iter().find(|(id, _)| id == server).map_or(0, |(_, bytes)| *bytes)
        };
        self.before.map_or(0, |before| self.rate(of(before), of(self.now)))
    }

    fn rate(&self, before: u64, now: u64) -> u64 {
        let seconds = self.before.map_or(0.0, |before| (self.now.at - before.at).as_secs_f64());
        // A server that came or went changes the sums by more than what was received.
        if seconds <= 0.0 { 0 } else { (now.saturating_sub(before) as f64 / seconds) as u64 }
    }
}
