//! Last stage: records enter the log, in order, and only then the agent hears `Durable`.
//!
//! In: [`Uploaded`] pieces of the session that began last. Out: appends, `Durable`. It owns the log's writer and
//! outlives sessions: a session that ends with the agent's server gone is still committed to its last whole record,
//! while a new session waits for the append under way and drops what the old one had not committed.
//!
//! Ordering: one append at a time. Completion: [`Commit::run`] ends when the log is lost, or when no session can come
//! any more and the last one is committed. Cancellation: dropping it leaves open whether the append under way is
//! committed; the log has to be taken over anew.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lifeboat_replication::{
    env::{Micros, Wall},
    errors::chain,
    ids::{Epoch, RecordNumber, ServerId},
    log::{LogState, LogWriter, WriteError},
    planted::Planted,
    wire::v1::{self, log_record::Body},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use super::{
    assembler::RecordEnd,
    hello::{self, HelloRefused, Judged},
    kept::record_name,
    spool::Spool,
    status::StatusSender,
    switchboard::Switchboard,
    upload::{Placed, Uploaded},
};

/// How often the lease is looked at; the writer decides whether renewing is due.
const LEASE_CHECK: Duration = Duration::from_secs(2);
/// Chain values kept to compare with what agents believe. An agent lags behind by what it has in flight.
const RECENT: usize = 1024;

/// A new source of records: the one before it is over.
pub(super) struct Begin {
    pub opening: Opening,
    pub pieces: mpsc::Receiver<Uploaded>,
}

pub(super) enum Opening {
    /// An agent's session.
    Agent {
        hello: v1::Hello,
        down: mpsc::Sender<v1::Down>,
        answer: oneshot::Sender<Result<Begun, HelloRefused>>,
    },
    /// What was received in a session before a restart.
    Leftover {
        session: u64,
        /// Dropped when all pieces are committed.
        done: oneshot::Sender<()>,
    },
}

/// Where the session starts.
#[derive(Debug)]
pub(super) struct Begun {
    pub epoch: Epoch,
    pub last_number: RecordNumber,
    pub judged: Judged,
    /// The log as the session finds it, its disks named.
    pub tip: LogState,
}

pub(super) struct Commit {
    pub server: ServerId,
    pub log: LogWriter,
    pub status: StatusSender,
    pub begins: mpsc::Receiver<Begin>,
    pub wall: Arc<dyn Wall>,
    pub groups: Switchboard,
    pub spool: Arc<dyn Spool>,
    /// Set by the simulation only.
    pub planted: Option<Planted>,
}

/// The session whose records are committed.
struct Current {
    session: u64,
    pieces: mpsc::Receiver<Uploaded>,
    /// `None`: nobody waits for what is committed.
    down: Option<mpsc::Sender<v1::Down>>,
    /// Said as soon as the connection takes it: a slow agent must not keep the lease from being renewed.
    owed: VecDeque<v1::Durable>,
    segments: Vec<v1::SegmentRef>,
    inline_segment: Vec<u8>,
    /// Dropped with it.
    _done: Option<oneshot::Sender<()>>,
}

enum Event {
    Begin(Option<Begin>),
    Piece(Option<Uploaded>),
    CanSay,
    CheckLease,
}

impl Commit {
    /// Gives the writer back when there is nothing more to commit.
    pub(super) async fn run(mut self) -> Result<LogWriter, WriteError> {
        let mut current: Option<Current> = None;
        let mut recent = BTreeMap::new();
        let mut closing = false;
        let mut lease = interval(LEASE_CHECK);
        lease.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(closing && current.is_none()) {
            let event = tokio::select! {
                biased;
                begin = self.begins.recv(), if !closing => Event::Begin(begin),
                _ = lease.tick() => Event::CheckLease,
                event = next_event(current.as_mut()) => event,
            };
            match (event, &mut current) {
                (Event::Begin(None), _) => closing = true,
                (Event::Begin(Some(begin)), _) => current = self.begin(begin, &recent).await?,
                (Event::CheckLease, _) => self.log.renew_if_due().await?,
                (Event::CanSay, Some(session)) => session.say(),
                (Event::Piece(Some(piece)), Some(session)) => self.take(session, piece, &mut recent).await?,
                (Event::Piece(None), Some(session)) => {
                    session.say();
                    current = None;
                }
                (Event::CanSay | Event::Piece(_), None) => {}
            }
        }
        Ok(self.log)
    }

    async fn begin(
        &mut self,
        begin: Begin,
        recent: &BTreeMap<u64, [u8; 32]>,
    ) -> Result<Option<Current>, WriteError> {
        let Begin { opening, pieces } = begin;
        let (mut hello, down, answer) = match opening {
            Opening::Agent { hello, down, answer } => (hello, down, answer),
            Opening::Leftover { session, done } => {
                return Ok(Some(Current { _done: Some(done), ..Current::new(session, pieces, None) }));
            }
        };
        if self.planted == Some(Planted::StreamsMixed) {
            hello.server_id = self.server.to_string();
        }
        let judged = match hello::judge(&hello, &self.server, self.log.state(), recent) {
            Ok(judged) => judged,
            Err(refused) => {
                let _ = answer.send(Err(refused));
                return Ok(None);
            }
        };
        if let Some(disks) = &judged.new_set {
            self.log.append(Body::Disks(v1::Disks { disks: disks.clone() })).await?;
        }
        let state = self.log.state();
        let begun = Begun { epoch: state.epoch, last_number: state.last_number, judged, tip: state.clone() };
        // The asker may have given up meanwhile; then its pieces end at once.
        let _ = answer.send(Ok(begun));
        Ok(Some(Current::new(hello.session, pieces, Some(down))))
    }

    async fn take(
        &mut self,
        session: &mut Current,
        piece: Uploaded,
        recent: &mut BTreeMap<u64, [u8; 32]>,
    ) -> Result<(), WriteError> {
        let Uploaded { number, placed, end } = piece;
        match placed {
            Some(Placed::Inline(segment, content)) => {
                session.segments.push(segment);
                session.inline_segment = content.to_vec();
            }
            Some(Placed::Blob(segment)) => session.segments.push(segment),
            None => {}
        }
        let Some(RecordEnd { end, changed_bytes, received_bytes: _ }) = end else { return Ok(()) };
        let told = Micros(end.t0_micros);
        // What an agent says of a group counts only if the coordinator waits for it.
        let named = end.group.as_ref().filter(|_| end.kind() == v1::RecordKind::Exact && end.complete);
        let group = named.and_then(|group| self.groups.borne(self.server.as_str(), &group.id));
        let t0 = match end.kind() {
            v1::RecordKind::Exact => instant(told, self.log.state().last_t0, self.wall.now()),
            _ => told,
        };
        let data = v1::Data {
            first_number: number.0,
            number: number.0,
            kind: end.kind,
            consistency: end.consistency,
            t0_micros: t0.0,
            clock_offset_micros: end.clock_offset_micros.saturating_add(t0.0.saturating_sub(told.0)),
            complete: end.complete,
            segments: std::mem::take(&mut session.segments),
            inline_segment: std::mem::take(&mut session.inline_segment),
            changed_bytes,
            session: session.session,
            copy_remaining_blocks: end.copy_remaining_blocks,
            group,
        };
        if self.planted == Some(Planted::AcknowledgeBeforeAppend) {
            let state = self.log.state();
            session.owe(v1::Durable { number: number.0, epoch: state.epoch.0, chain: state.chain.to_vec() });
        }
        let inline = data.inline_segment.len() as u64;
        let stored = data.segments.iter().map(|segment| segment.length).sum();
        let committed = self.log.append(Body::Data(data.clone())).await?;
        self.status.sent(inline);
        self.status.durable(&data, stored, self.log.state());
        if let Some(group) = data.group {
            let member = v1::GroupMember {
                server_id: self.server.to_string(),
                epoch: committed.epoch.0,
                number: committed.number.0,
                t0_micros: data.t0_micros,
            };
            self.groups.durable(group.id, member);
        }
        recent.insert(committed.number.0, committed.chain);
        while recent.len() > RECENT {
            recent.pop_first();
        }
        session.owe(v1::Durable {
            number: committed.number.0,
            epoch: committed.epoch.0,
            chain: committed.chain.to_vec(),
        });
        let kept = record_name(&self.server, session.session, committed.number);
        if let Err(error) = self.spool.remove(&kept).await {
            tracing::warn!(server = %self.server, error = %chain(&error), "record not removed from the spool");
        }
        Ok(())
    }
}

impl Current {
    fn new(session: u64, pieces: mpsc::Receiver<Uploaded>, down: Option<mpsc::Sender<v1::Down>>) -> Self {
        let owed = VecDeque::new();
        Self { session, pieces, down, owed, segments: Vec::new(), inline_segment: Vec::new(), _done: None }
    }

    fn owe(&mut self, durable: v1::Durable) {
        self.owed.push_back(durable);
        self.say();
    }

    /// Says what the connection takes now.
    fn say(&mut self) {
        let Some(down) = &self.down else { return self.owed.clear() };
        while let Some(durable) = self.owed.front() {
            let message = Some(v1::down::Message::Durable(durable.clone()));
            match down.try_send(v1::Down { message }) {
                Err(mpsc::error::TrySendError::Full(_)) => return,
                // Said, or the connection is gone and the agent learns it from the next Welcome.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => _ = self.owed.pop_front(),
            }
        }
    }
}

/// The instant of a point as the log bears it: not after it was heard, and later than that of the point before,
/// although agents measure the time and process servers have clocks of their own. Whoever asks for a time gets what
/// was written until then.
fn instant(told: Micros, last: Micros, now: Micros) -> Micros {
    told.min(now).max(Micros(last.0.saturating_add(1)))
}

/// What the session has next: room for something owed, or a piece.
async fn next_event(current: Option<&mut Current>) -> Event {
    let Some(session) = current else { return std::future::pending().await };
    let can_say = async {
        match &session.down {
            Some(down) if !session.owed.is_empty() => _ = down.reserve().await,
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = can_say => Event::CanSay,
        piece = session.pieces.recv() => Event::Piece(piece),
    }
}
