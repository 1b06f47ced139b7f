//! What a server's ingest says about itself: the stages write it, reports and metrics read it.

use std::sync::Arc;

use lifeboat_replication::{
    env::Micros,
    errors::chain,
    log::{LogState, TakeOverError, WriteError},
    wire::v1,
};
use tokio::sync::watch;

const WAITING: &str = "the agent waits: more is written than the uplink or the vault takes; nothing is lost, and the RPO \
    grows until it has caught up";

/// What hinders a server at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub kind: v1::Hindrance,
    /// Reason and remedy.
    pub words: String,
}

impl Trouble {
    pub(super) fn new(kind: v1::Hindrance, words: impl Into<String>) -> Self {
        Self { kind, words: words.into() }
    }

    pub(super) fn take_over(error: &TakeOverError) -> Self {
        let kind = match error {
            TakeOverError::Busy { .. } | TakeOverError::Contended { .. } => v1::Hindrance::Held,
            TakeOverError::Closed { .. } => v1::Hindrance::Closed,
            TakeOverError::Damaged { .. } => v1::Hindrance::Damaged,
            TakeOverError::Store(_) => v1::Hindrance::Store,
            TakeOverError::Write(error) => return Self::write(error),
        };
        Self::new(kind, chain(error))
    }

    pub(super) fn write(error: &WriteError) -> Self {
        let kind = match error {
            WriteError::Fenced { .. } => v1::Hindrance::Held,
            WriteError::WentBack { .. } => v1::Hindrance::Store,
            WriteError::Illegal(_) | WriteError::TooLarge(_) | WriteError::NoKey => v1::Hindrance::Damaged,
        };
        Self::new(kind, chain(error))
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// Counters and instants as the operator gets them; rates are left to who reports.
    pub report: v1::ServerReport,
    /// namespace/name.
    pub display_name: String,
    /// This process server holds the log.
    pub holds_log: bool,
    /// The agent waits for room in the spool or in memory.
    pub waiting_for_room: bool,
    /// Bytes of `Copy` records that are durable.
    pub copied_bytes: u64,
    /// Connections refused or ended for what the agent did.
    pub violations: u64,
    log_trouble: Option<Trouble>,
    upload_trouble: Option<Trouble>,
    /// Times that the log was taken over.
    pub takeovers: u64,
}

/// Shared by the stages of one server.
#[derive(Debug, Clone)]
pub(super) struct StatusSender(Arc<watch::Sender<Status>>);

impl StatusSender {
    pub(super) fn new(server_id: &str) -> Self {
        let report = v1::ServerReport { server_id: server_id.to_owned(), ..Default::default() };
        Self(Arc::new(watch::Sender::new(Status { report, ..Default::default() })))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    pub(super) fn named(&self, display_name: &str) {
        self.0.send_if_modified(|status| {
            let changed = status.display_name != display_name;
            if changed {
                display_name.clone_into(&mut status.display_name);
            }
            changed
        });
    }

    /// `writer` names this run of it.
    pub(super) fn log_taken(&self, log: &LogState, writer: &str) {
        self.0.send_modify(|status| {
            status.holds_log = true;
            status.takeovers += 1;
            status.log_trouble = None;
            status.upload_trouble = None;
            status.say(None);
            status.report.epoch = log.epoch.0;
            status.report.last_number = log.last_number.0;
            status.report.complete = log.complete;
            // What was known of another history of the log must not be taken for this one's.
            status.report.last_point_micros = 0;
            status.report.recoverable_until_micros = 0;
            status.report.last_app_point_micros = 0;
            if log.complete {
                status.point_at(log.last_t0);
            }
            status.report.head = Some(v1::LogHead {
                writer: writer.to_owned(),
                taken_number: log.last_number.0,
                taken_point_micros: status.report.last_point_micros,
                ..v1::LogHead::default()
            });
            status.head_at(log);
        });
    }

    /// The log is not (or no longer) this process server's: why, and what to do; `None`: it was given back.
    pub(super) fn log_lost(&self, why: Option<Trouble>) {
        self.0.send_modify(|status| {
            status.holds_log = false;
            status.report.connected = false;
            status.report.head = None;
            status.waiting_for_room = false;
            status.say(why);
        });
    }

    /// What keeps the log from being written at the moment; `None`: nothing.
    pub(super) fn log_trouble(&self, trouble: Option<Trouble>) {
        self.troubled(|status| &mut status.log_trouble, trouble);
    }

    /// What keeps segments from being uploaded at the moment; `None`: nothing.
    pub(super) fn upload_trouble(&self, trouble: Option<Trouble>) {
        self.troubled(|status| &mut status.upload_trouble, trouble);
    }

    fn troubled(&self, which: fn(&mut Status) -> &mut Option<Trouble>, trouble: Option<Trouble>) {
        self.0.send_if_modified(|status| {
            let changed = *which(status) != trouble;
            if changed {
                *which(status) = trouble;
                status.show_trouble();
            }
            changed
        });
    }

    pub(super) fn connected(&self, connected: bool, now: Micros) {
        self.0.send_modify(|status| {
            status.report.connected = connected;
            // That a connection was found dead is no sign of life.
            if connected {
                status.report.last_seen_micros = now.0;
            }
            status.waiting_for_room &= connected;
            status.show_trouble();
        });
    }

    pub(super) fn violated(&self) {
        self.0.send_modify(|status| status.violations += 1);
    }

    pub(super) fn received(&self, bytes: u64, now: Micros) {
        self.0.send_modify(|status| {
            status.report.received_bytes += bytes;
            status.report.last_seen_micros = now.0;
        });
    }

    pub(super) fn heartbeat(&self, heartbeat: v1::Heartbeat, now: Micros) {
        self.0.send_modify(|status| {
            status.report.last_seen_micros = now.0;
            // A proof that nothing is dirty says how far the vault is up to date, if it holds every block.
            if heartbeat.clean_at_micros > 0 && status.report.complete {
                let clean_at = heartbeat.clean_at_micros.min(now.0);
                status.report.recoverable_until_micros = status.report.recoverable_until_micros.max(clean_at);
            }
            status.report.heartbeat = Some(heartbeat);
        });
    }

    pub(super) fn waiting(&self, waiting: bool) {
        self.0.send_if_modified(|status| {
            let changed = std::mem::replace(&mut status.waiting_for_room, waiting) != waiting;
            if changed {
                status.show_trouble();
            }
            changed
        });
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.0.send_modify(|status| status.report.sent_bytes += bytes);
    }

    /// `log`: with the record as its last one.
    pub(super) fn durable(&self, data: &v1::Data, stored_bytes: u64, log: &LogState) {
        self.0.send_modify(|status| {
            status.report.last_number = data.number;
            status.report.records += 1;
            status.report.stored_bytes += stored_bytes;
            status.report.complete = data.complete;
            status.upload_trouble = None;
            status.show_trouble();
            match data.kind() {
                v1::RecordKind::Copy => status.copied_bytes += data.changed_bytes,
                v1::RecordKind::Exact if data.complete => {
                    status.point_at(Micros(data.t0_micros));
                    if data.consistency() == v1::Consistency::AppConsistent {
                        status.report.last_app_point_micros = data.t0_micros;
                    }
                }
                _ => {}
            }
            status.head_at(log);
        });
    }
}

impl Status {
    /// The most serious of what hinders this server at the moment; what lost the log stays until it is taken again.
    fn show_trouble(&mut self) {
        if !self.holds_log {
            return;
        }
        let waiting = || self.waiting_for_room.then(|| Trouble::new(v1::Hindrance::Uplink, WAITING));
        let first = self.log_trouble.clone().or_else(|| self.upload_trouble.clone()).or_else(waiting);
        self.say(first);
    }

    fn say(&mut self, trouble: Option<Trouble>) {
        let trouble = trouble.unwrap_or_else(|| Trouble::new(v1::Hindrance::Unspecified, ""));
        self.report.error = trouble.words;
        self.report.set_hindrance(trouble.kind);
    }

    fn head_at(&mut self, log: &LogState) {
        let point_micros = self.report.last_point_micros;
        if let Some(head) = &mut self.report.head {
            head.epoch = log.epoch.0;
            head.part = log.part;
            head.offset = log.offset;
            head.chain = log.chain.to_vec();
            head.number = log.last_number.0;
            head.point_micros = point_micros;
        }
    }

    fn point_at(&mut self, t0: Micros) {
        self.report.last_point_micros = t0.0;
        self.report.recoverable_until_micros = self.report.recoverable_until_micros.max(t0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_is_no_sign_of_life() {
        let status = StatusSender::new("db-1");
        status.connected(true, Micros(1));
        status.received(10, Micros(2));
        status.connected(false, Micros(9));
        let report = status.subscribe().borrow().report.clone();
        assert_eq!((report.connected, report.last_seen_micros), (false, 2));
    }
}
