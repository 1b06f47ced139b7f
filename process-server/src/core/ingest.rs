//! One protected server on this process server: takes its log over when it is free, then serves its agent.
//!
//! ```text
//!   ┌─► acquiring ── log taken over ──► serving ── fenced, or the store went back ──┐
//!   │   (agents are refused:            (one session at a time)                     │
//!   │    come again soon)                   │ not assigned any more                 │
//!   │                                       ▼                                       │
//!   │                              last records committed, lease released           │
//!   └───────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::ServerId,
    log::{LogOptions, LogWriter, Order, TakeOverError},
    vault::Vault,
    wire::{Accepted, v1},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    assignment::Assigned,
    backoff,
    commit::Commit,
    fair::FairSlots,
    kept::Kept,
    leftover::{self, Leftover},
    sealing::Sealer,
    session::{self, SOON, Session},
    space::Space,
    spool::Spool,
    status::{Status, StatusSender, Trouble},
    switchboard::Switchboard,
};

/// What is under way is finished within this time when the server is no longer assigned; then the lease is left to
/// run out.
const FINISH_LIMIT: Duration = Duration::from_secs(10);
/// What a restart found in the spool has so long before an agent is served that waits. Most of it would have to be sent
/// again; but an uplink that takes longer than this for it is slow, and what is newer matters more.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(60);
/// How often a log that somebody holds is looked at: it is taken over so soon after it is free.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// A closed or damaged log waits for a person.
const HOPELESS_PAUSE: Duration = Duration::from_secs(20);

/// What all servers of a process server share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub vault: Vault,
    pub env: Env,
    /// The process server's name, by which assignments name it.
    pub name: String,
    /// Its name in the logs that it opens: the same after a restart, and nobody else's in any cluster.
    pub writer: String,
    pub spool: Arc<dyn Spool>,
    /// Of the spool.
    pub space: Arc<Space>,
    /// Plain text that may be in memory between the connections and the spool.
    pub memory: Arc<Space>,
    pub sealer: Arc<dyn Sealer>,
    /// Uploads of all servers at a time.
    pub uploads: Arc<FairSlots>,
    /// Segments of all servers that may wait for their upload in memory; others wait in the spool.
    pub unspooled: Arc<Semaphore>,
    pub log_options: LogOptions,
    /// To the coordinator of consistency groups.
    pub groups: Switchboard,
}

/// To an agent that comes before it can be served.
const WAITS: &str = "nothing is lost: what has changed stays marked and is sent later";

/// Why [`Ingest::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Not assigned any more: everything received is committed, the lease is released.
    Released,
    /// Not assigned any more, and the vault did not take the last records in time: the agent still holds them.
    GivenUp,
}

pub struct Ingest {
    shared: Shared,
    server: ServerId,
    assigned: watch::Receiver<Option<Assigned>>,
    status: StatusSender,
    /// The log has been held since this program began: whoever took it since is another one.
    held: bool,
}

impl Ingest {
    pub fn new(shared: Shared, server: ServerId, assigned: watch::Receiver<Option<Assigned>>) -> Self {
        let status = StatusSender::new(server.as_str());
        Self { shared, server, assigned, status, held: false }
    }

    /// What it reports; changes can be waited for.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Serves until the server is no longer assigned (or the sender of assignments or of connections is gone).
    pub async fn run(mut self, mut connections: mpsc::Receiver<Accepted>) -> Ended {
        loop {
            let Some(log) = self.acquire(&mut connections).await else { return Ended::Released };
            self.held = true;
            let kept = leftover::of(&self.shared, &self.server, &log).await;
            if kept.is_empty() {
                self.clear_spool().await;
            }
            if let Some(ended) = self.serve(log, kept, &mut connections).await {
                return ended;
            }
        }
    }

    async fn clear_spool(&self) {
        if let Err(error) = self.shared.spool.clear(self.server.as_str()).await {
            tracing::error!(server = %self.server, error = %chain(&error), "spool not cleared");
        }
    }

    /// True as long as the server is assigned here; keeps the name for reports.
    fn still_assigned(&mut self) -> bool {
        let assigned = self.assigned.borrow_and_update();
        if let Some(assigned) = &*assigned {
            self.status.named(&assigned.display_name);
        }
        assigned.is_some()
    }

    /// Tries to take the log over until it is free; `None`: not assigned any more.
    async fn acquire(&mut self, connections: &mut mpsc::Receiver<Accepted>) -> Option<LogWriter> {
        let mut changes = self.assigned.clone();
        let mut tried = 0;
        if !self.still_assigned() {
            return None;
        }
        let mut attempt = Box::pin(self.attempt(tried));
        loop {
            tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() || changes.borrow_and_update().is_none() {
                        return None;
                    }
                }
                accepted = connections.recv() => {
                    let reason = self.status.subscribe().borrow().report.error.clone();
                    let reason = if reason.is_empty() { "the server's log is being taken over" } else { &reason };
                    session::refuse(&accepted?.down, reason, WAITS, Some(SOON));
                }
                taken = &mut attempt => match taken {
                    Some(log) => return Some(log),
                    None => {
                        tried += 1;
                        attempt = Box::pin(self.attempt(tried));
                    }
                },
            }
        }
    }

    /// One try, with the pause after it when it fails.
    async fn attempt(&self, tried: u32) -> Option<LogWriter> {
        let Shared { vault, env, writer, log_options, .. } = &self.shared;
        let lost = self.assigned.borrow().as_ref().and_then(|assigned| assigned.lost);
        let order = match lost {
            // What this program has held itself is later than what was given up before.
            _ if self.held => Order::WhenFree,
            Some(lost) => Order::Handover { lost },
            None => Order::Resume,
        };
        let taken = LogWriter::take_over(vault, &self.server, writer, env, order, log_options.clone()).await;
        let error = match taken {
            Ok(log) => {
                let state = log.state();
                tracing::info!(server = %self.server, epoch = %state.epoch, last_number = %state.last_number, "log taken over");
                self.status.log_taken(state, log.id());
                return Some(log);
            }
            Err(error) => error,
        };
        tracing::warn!(server = %self.server, error = %chain(&error), "log not taken over");
        self.status.log_lost(Some(Trouble::take_over(&error)));
        match error {
            TakeOverError::Busy { .. } => backoff::jittered(env, BUSY_PAUSE).await,
            TakeOverError::Closed { .. } | TakeOverError::Damaged { .. } => {
                backoff::jittered(env, HOPELESS_PAUSE).await;
            }
            _ => backoff::pause(env, tried).await,
        }
        None
    }

    /// Brings what is left over to the log, then serves agents as long as the log can be written; `None`: it was lost.
    async fn serve(
        &mut self,
        log: LogWriter,
        leftover: Vec<Kept>,
        connections: &mut mpsc::Receiver<Accepted>,
    ) -> Option<Ended> {
        let mut trouble = log.trouble();
        let (begins, to_begin) = mpsc::channel(1);
        let mut current: Option<BoxFuture<'static, ()>> = None;
        // Until then an agent waits.
        let mut reserved = None;
        if !leftover.is_empty() {
            current = Some(Box::pin(self.leftover(leftover, begins.clone()).run()));
            reserved = Some(Instant::now() + LEFTOVER_LIMIT);
        }
        let mut begins = Some(begins);
        let commit = Commit {
            server: self.server.clone(),
            log,
            status: self.status.clone(),
            begins: to_begin,
            wall: self.shared.env.wall.clone(),
            planted: self.shared.log_options.planted,
            groups: self.shared.groups.clone(),
            spool: Arc::clone(&self.shared.spool),
        };
        let mut commit = std::pin::pin!(commit.run());
        let mut greeting: Option<BoxFuture<'static, Option<(Accepted, v1::Hello)>>> = None;
        let mut deadline = Instant::now();
        loop {
            tokio::select! {
                biased;
                ended = &mut commit => match ended {
                    Ok(log) => {
                        log.release().await;
                        self.status.log_lost(None);
                        return Some(Ended::Released);
                    }
                    Err(error) => {
                        tracing::error!(server = %self.server, error = %chain(&error), "log lost");
                        self.status.log_lost(Some(Trouble::write(&error)));
                        return None;
                    }
                },
                () = sleep_until(deadline), if begins.is_none() => {
                    self.status.log_lost(None);
                    return Some(Ended::GivenUp);
                }
                changed = self.assigned.changed(), if begins.is_some() => {
                    if changed.is_err() || !self.still_assigned() {
                        // The session's intake ends by itself, and the commit stage when all is committed.
                        (begins, greeting) = (None, None);
                        deadline = Instant::now() + FINISH_LIMIT;
                    }
                }
                accepted = connections.recv(), if begins.is_some() => match accepted {
                    Some(accepted) => greeting = Some(Box::pin(session::greeting(accepted))),
                    None => {
                        (begins, greeting) = (None, None);
                        deadline = Instant::now() + FINISH_LIMIT;
                    }
                },
                greeted = some(&mut greeting) => {
                    greeting = None;
                    if let (Some((accepted, hello)), Some(begins)) = (greeted, &begins) {
                        if reserved.take_if(|until| Instant::now() >= *until).is_none() && reserved.is_some() {
                            let reason = "what was received before a restart is being brought to the log";
                            session::refuse(&accepted.down, reason, WAITS, Some(SOON));
                            continue;
                        }
                        // What the session before this one had not committed, the agent still holds.
                        if current.take().is_some() {
                            self.status.connected(false, self.shared.env.wall.now());
                        }
                        self.clear_spool().await;
                        current = Some(Box::pin(self.session(accepted, hello, begins.clone()).run()));
                    }
                }
                () = some(&mut current) => (current, reserved) = (None, None),
                Ok(()) = trouble.changed() => {
                    let trouble = trouble.borrow_and_update().clone();
                    self.status.log_trouble(trouble.map(|why| Trouble::new(v1::Hindrance::Store, why)));
                }
            }
        }
    }

    fn leftover(&self, records: Vec<Kept>, begins: mpsc::Sender<super::commit::Begin>) -> Leftover {
        Leftover {
            shared: self.shared.clone(),
            server: self.server.clone(),
            status: self.status.clone(),
            begins,
            records,
        }
    }

    fn session(
        &self,
        accepted: Accepted,
        hello: v1::Hello,
        begins: mpsc::Sender<super::commit::Begin>,
    ) -> Session {
        Session {
            shared: self.shared.clone(),
            server: self.server.clone(),
            status: self.status.clone(),
            assigned: self.assigned.clone(),
            begins,
            accepted,
            hello,
        }
    }
}

/// Waits for the future if there is one.
async fn some<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
