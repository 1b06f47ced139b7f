//! One connection from Hello to its break.
//!
//! ```text
//!   dial ─► Hello ─► Welcome ─► ┌ hear (Durable, Settings, heartbeat answers)
//!                               │ heartbeat every second
//!                               │ step: plan a record, or send the next message of the record under way
//!                               └ until: broken, silent, redirected, refused, disk unreadable, tracking failed
//! ```
//!
//! Choosing is apart from doing: the loop waits for one thing at a time, a step is never cancelled half done, and
//! no message waits while another is being written: both directions are bounded and both keep moving.

use std::{collections::BTreeMap, time::Duration};

use lifeboat_replication::{
    env::Micros,
    ids::{DiskSlot, RecordNumber},
    planted::Planted,
    wire::{Connection, DialError, PROTOCOL_VERSION, v1},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, sleep_until, timeout},
};

use super::{
    Kept, Options, Parts,
    chunk::ReadError,
    clock::Clock,
    compare::Compare,
    freeze::FreezeLimits,
    group::Group,
    orders,
    points::{self, REQUEST_LIMIT},
    record::Record,
    standing::{Releasing, Stage},
    tracker::{NeverSent, Tracker},
};
use crate::edge::TrackError;

/// A dial that is not done by then never will be; the dialler's own time-outs are shorter.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// A process server may have to take the log over first, and wait for a lease of 60 seconds to end.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(90);
/// Hearing nothing for this long ends the session. Every heartbeat is answered, so only a dead peer or one that
/// holds everything back is this silent.
const SILENCE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(1);
const DEFAULT_ROUND_INTERVAL: Duration = Duration::from_secs(15);
const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(30);
const SHORTEST_ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("no connection")]
    Dial(#[source] DialError),
    #[error("dialling took longer than {limit:?}; check the network path to the appliance")]
    DialTimeout { limit: Duration },
    #[error("the process server did not welcome this server within {limit:?}; see its log")]
    NoWelcome { limit: Duration },
    #[error("the connection was closed; see the process server's log if this repeats")]
    Closed,
    #[error(
        "nothing was heard for {limit:?}; check the network path, or the process server is held up by its vault"
    )]
    Silent { limit: Duration },
    #[error("process server {address} has this server now")]
    Redirected { address: String },
    #[error("the process server refused: {reason}; {remedy}")]
    Refused { reason: String, remedy: String, retry_after: Duration },
    #[error(
        "the process server broke the protocol: {what}; agent and appliance may be at most one minor version apart"
    )]
    Protocol { what: String },
    #[error("an acknowledgement cannot be")]
    NeverSent(#[from] NeverSent),
    #[error("reading failed")]
    Read(#[from] ReadError),
    #[error(
        "tracking was lost: the disks are compared with the vault, or copied, in a new session ({reason})"
    )]
    Lost { reason: String },
    #[error("the disks are compared with the vault in a new session ({reason})")]
    Again { reason: String },
    #[error("tracking failed")]
    Track(#[from] TrackError),
}

/// The tracker's numbers of disks and the vault's.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<DiskSlot, u32>);

impl Slots {
    pub(super) fn vault(&self, local: DiskSlot) -> Option<u32> {
        self.0.get(&local).copied()
    }
}

/// Settings as durations, within sane bounds.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) paused: bool,
    pub(super) freeze: FreezeLimits,
    /// Longest freeze of an application-consistent point.
    pub(super) app_freeze: Duration,
    /// Application-consistent points by policy; zero: none.
    pub(super) app_interval: Duration,
    pub(super) hook_timeout: Duration,
}

impl Policy {
    fn from_wire(settings: &v1::Settings) -> Self {
        let interval = match settings.round_interval_micros {
            0 => DEFAULT_ROUND_INTERVAL,
            micros => Duration::from_micros(micros).max(SHORTEST_ROUND_INTERVAL),
        };
        let timeout = Duration::from_micros(settings.freeze_timeout_micros);
        let or = |micros: u64, usual: Duration| match micros {
            0 => usual,
            micros => Duration::from_micros(micros),
        };
        Self {
            paused: settings.paused,
            freeze: FreezeLimits {
                per_hour: settings.max_freezes_per_hour,
                timeout,
                round_interval: interval,
            },
            app_freeze: or(settings.app_freeze_timeout_micros, timeout),
            app_interval: Duration::from_micros(settings.app_consistent_interval_micros),
            hook_timeout: or(settings.hook_timeout_micros, DEFAULT_HOOK_TIMEOUT),
        }
    }

    pub(super) fn round_interval(&self) -> Duration {
        self.freeze.round_interval
    }
}

pub(super) struct Session<'a> {
    pub(super) parts: &'a mut Parts,
    pub(super) options: &'a Options,
    pub(super) kept: &'a mut Kept,
    pub(super) disks: Vec<v1::Disk>,
    pub(super) slots: Slots,
    pub(super) policy: Policy,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) work: Option<Record>,
    /// What awaits its copy is compared with the vault first.
    pub(super) compare: Option<Compare>,
    /// A resynchronization is due, and has to wait.
    pub(super) waits: bool,
    pub(super) last_round: Option<Instant>,
    /// More was taken than a round can read in time; batches go first.
    pub(super) catching_up: bool,
    /// A round went last, so a copy record goes next.
    pub(super) owe_copy: bool,
    /// The last record of the log is not known to be a point.
    pub(super) need_point: bool,
    pub(super) last_exact: Instant,
    pub(super) stage: Stage,
    pub(super) releasing: Releasing,
    pub(super) group: Group,
    /// As it was when the session began; swap and mounts change rarely.
    pub(super) not_freezable: Vec<String>,
    /// Something has come about that the next heartbeat should tell at once.
    tell: bool,
    useful: bool,
}

impl<'a> Session<'a> {
    /// Runs one session to its end; also returns whether it was of use.
    pub(super) async fn run(
        parts: &'a mut Parts,
        options: &'a Options,
        kept: &'a mut Kept,
    ) -> (SessionError, bool) {
        let dialled = match options.planted {
            Some(Planted::DialWithoutTimeOut) => Ok(parts.dial.dial().await),
            _ => timeout(DIAL_TIMEOUT, parts.dial.dial()).await,
        };
        let mut connection = match dialled {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return (SessionError::Dial(error), false),
            Err(_) => return (SessionError::DialTimeout { limit: DIAL_TIMEOUT }, false),
        };
        let begun = timeout(WELCOME_TIMEOUT, Self::begin(parts, options, kept, &mut connection)).await;
        match begun {
            Ok(Ok(mut session)) => {
                let error = session.serve(connection).await;
                (error, session.useful)
            }
            Ok(Err(error)) => (error, false),
            Err(_) => (SessionError::NoWelcome { limit: WELCOME_TIMEOUT }, false),
        }
    }

    async fn begin(
        parts: &'a mut Parts,
        options: &'a Options,
        kept: &'a mut Kept,
        connection: &mut Connection,
    ) -> Result<Self, SessionError> {
        let disks = parts.source.disks();
        if let Some(reason) = parts.map.lost() {
            parts.map.copy_all(&reason)?;
        }
        let own_reason = parts.map.copy_reason();
        let asked = Instant::now();
        let hello = v1::Hello {
            protocol: PROTOCOL_VERSION,
            server_id: parts.server.to_string(),
            session: parts.env.entropy.next_u64(),
            agent_version: options.machine.agent_version.clone(),
            disks: disks
                .iter()
                .map(|disk| v1::Disk { slot: kept.slots.get(&disk.id).copied().unwrap_or(0), ..disk.clone() })
                .collect(),
            believes: parts.map.durable_mark(),
            resynchronizing: own_reason.is_some(),
        };
        let session_id = hello.session;
        connection.up.send(up(v1::up::Message::Hello(hello))).await.map_err(|_| SessionError::Closed)?;
        let welcome = match connection.down.recv().await.ok_or(SessionError::Closed)?.message {
            Some(v1::down::Message::Welcome(welcome)) => welcome,
            Some(v1::down::Message::Redirect(redirect)) => {
                return Err(SessionError::Redirected { address: redirect.address });
            }
            Some(v1::down::Message::Refused(refused)) => return Err(refusal(refused)),
            _ => return Err(SessionError::Protocol { what: "the first answer is not a welcome".to_owned() }),
        };
        let heard = Instant::now();
        let settings = welcome.settings.clone().unwrap_or_default();
        let slots = learn_slots(&disks, &welcome)?;
        for (disk, given) in disks.iter().zip(&welcome.disks) {
            kept.slots.insert(disk.id.clone(), given.slot);
        }
        if !welcome.full_copy_reason.is_empty() {
            // An agent that knows why it has forgotten everything says so better.
            let own = own_reason.filter(|_| parts.map.durable_mark().is_none());
            parts.map.copy_all(&own.unwrap_or_else(|| welcome.full_copy_reason.clone()))?;
            // From here on the marks are about this log: the next session may go on where this one ends.
            if let Some(last) = &welcome.last {
                parts.map.set_durable_mark(last)?;
            }
            parts.map.set_sent(welcome.last_number)?;
        } else if let Some(reason) = orders::put_back(parts.map.sent(), welcome.last_number) {
            parts.map.copy_all(&reason)?;
            // Last: a crash in between finds it out again.
            parts.map.set_sent(welcome.last_number)?;
            return Err(SessionError::Again { reason });
        }
        let not_freezable = parts.freezer.not_freezable();
        // A log that has gone back does not hold what was sent.
        let in_log = if welcome.full_copy_reason.is_empty() { welcome.last_number } else { 0 };
        kept.requests.reconnected(in_log, welcome.epoch);
        kept.requests.told(&welcome.points.clone().unwrap_or_default().requests, heard);
        orders::exclude(options, &settings);
        if let Some(reason) = orders::heed(&mut *parts.map, &settings)? {
            return Err(SessionError::Again { reason });
        }
        // An earlier run may have stopped between a flip and its taking.
        parts.map.take()?;
        let tracker =
            Tracker::new(RecordNumber(welcome.last_number), parts.map.held()?, parts.map.to_copy()?);
        let offer = welcome.sums.unwrap_or_default();
        let compare = (!offer.disks.is_empty() && !tracker.complete())
            .then(|| Compare::new(&offer, &disks, |disk| slots.vault(disk), tracker.awaiting_copy()));
        kept.not_compared = Some(offer.unusable).filter(|why| !why.is_empty());
        tracing::info!(
            session = session_id,
            epoch = welcome.epoch,
            last_record = welcome.last_number,
            full_copy = welcome.full_copy_reason,
            "session begins"
        );
        let mut session = Self {
            policy: Policy::from_wire(&settings),
            waits: orders::has_to_wait(&*parts.map, &settings),
            clock: Clock::new(Micros(welcome.process_server_time_micros), heard, heard - asked),
            parts,
            options,
            kept,
            disks,
            slots,
            tracker,
            work: None,
            compare,
            last_round: None,
            catching_up: false,
            owe_copy: false,
            need_point: true,
            last_exact: heard,
            stage: Stage::default(),
            releasing: Releasing::default(),
            group: Group::default(),
            tell: false,
            not_freezable,
            useful: false,
        };
        session.shut_down(&settings);
        Ok(session)
    }

    async fn serve(&mut self, connection: Connection) -> SessionError {
        let Connection { up, mut down } = connection;
        match self.exchange(&up, &mut down).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn exchange(
        &mut self,
        up: &mpsc::Sender<v1::Up>,
        down: &mut mpsc::Receiver<v1::Down>,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heartbeat_due = false;
        let mut heard = Instant::now();
        let patient = self.options.planted == Some(Planted::SilenceIsPatience);
        loop {
            heartbeat_due |= std::mem::take(&mut self.tell);
            self.advance_group(Instant::now());
            if self.group.is_due() && self.work.is_none() {
                self.stand_for_group(up, down).await?;
                heard = Instant::now();
                continue;
            }
            let ready = heartbeat_due || self.group.has_answer() || self.has_work(Instant::now());
            let next_round = self.next_round();
            tokio::select! { biased;
                message = down.recv() => {
                    heard = Instant::now();
                    self.hear(message.ok_or(SessionError::Closed)?, heard)?;
                }
                () = sleep_until(heard + SILENCE), if !patient => return Err(SessionError::Silent { limit: SILENCE }),
                _ = heartbeat.tick() => {
                    heartbeat_due = true;
                    self.review(Instant::now());
                }
                done = self.stage.beside() => self.prepared(done),
                released = self.releasing.done() => self.released(released),
                stopped = self.kept.shutdown.stopped() => {
                    self.kept.shutdown.has_stopped(stopped);
                    self.tell = true;
                }
                in_time = self.group.written_back() => self.group_written_back(in_time),
                permit = up.reserve(), if ready => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if let Some(answer) = self.group.take_answer() {
                        permit.send(answer);
                    } else if std::mem::take(&mut heartbeat_due) {
                        permit.send(self.heartbeat()?);
                    } else if let Some(message) = self.step().await? {
                        permit.send(message);
                    }
                }
                // Not while a record waits for the hooks to end: the round that is due would wake it again and again.
                () = sleep_until(next_round), if !ready && self.work.is_none() && self.may_begin() => {}
            }
        }
    }

    pub(super) fn hear(&mut self, message: v1::Down, now: Instant) -> Result<(), SessionError> {
        match message.message {
            Some(v1::down::Message::Durable(durable)) => {
                self.useful = true;
                let mark =
                    v1::DurableMark { number: durable.number, epoch: durable.epoch, chain: durable.chain };
                self.settle(RecordNumber(durable.number), Some(mark))?;
                self.tell |= self.kept.requests.durable(durable.number, durable.epoch);
            }
            Some(v1::down::Message::Received(received))
                if self.options.planted == Some(Planted::ForgetOnReceived) =>
            {
                self.settle(RecordNumber(received.number), None)?;
            }
            Some(v1::down::Message::Received(_)) => {} // in the spool is not in the vault
            Some(v1::down::Message::HeartbeatAnswer(answer)) => {
                self.useful = true;
                let theirs = Micros(answer.process_server_time_micros);
                self.clock.answered(Micros(answer.agent_time_micros), theirs, now);
                if self.kept.shutdown.answered() {
                    self.go_off()?;
                }
            }
            Some(v1::down::Message::Sums(sums)) => self.compared(&sums)?,
            Some(v1::down::Message::Settings(settings)) => {
                self.policy = Policy::from_wire(&settings);
                self.obey(&settings)?;
                self.review(now);
            }
            Some(v1::down::Message::Points(points)) => {
                self.kept.requests.told(&points.requests, now);
                self.review(now);
            }
            Some(v1::down::Message::Group(order)) => self.ordered(order),
            Some(v1::down::Message::Redirect(redirect)) => {
                return Err(SessionError::Redirected { address: redirect.address });
            }
            Some(v1::down::Message::Refused(refused)) => return Err(refusal(refused)),
            Some(v1::down::Message::Welcome(_)) => {
                return Err(SessionError::Protocol { what: "a second welcome".to_owned() });
            }
            None => {} // of a newer protocol
        }
        Ok(())
    }

    /// The belief is kept before anything is forgotten: a vault that loses the record is then found out.
    fn settle(&mut self, number: RecordNumber, mark: Option<v1::DurableMark>) -> Result<(), SessionError> {
        let settled = self.tracker.durable(number)?;
        if let Some(mark) = mark {
            self.parts.map.set_durable_mark(&mark)?;
        }
        self.parts.map.forget(&settled.forget)?;
        self.parts.map.copied(&settled.copied)?;
        Ok(())
    }

    /// What the moment means for requests for points, and for the record under way.
    fn review(&mut self, now: Instant) {
        let why = if self.policy.paused {
            // At once: the record under way ends with what is read, and the rest stays marked.
            self.work.iter_mut().for_each(Record::stop_short);
            Some(points::paused())
        } else {
            (!self.tracker.complete()).then(points::copying)
        };
        let limit = REQUEST_LIMIT + 2 * self.policy.hook_timeout;
        self.tell |= self.kept.requests.review(why.as_ref(), limit, now);
        self.policy_points(why.is_none(), now);
        self.prepare(now);
    }

    /// A record should begin before the next round is due: for a point that was asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.stage.is_due() || self.group.wants_round() || self.kept.requests.in_a_hurry()
    }

    /// A new record may begin.
    fn may_begin(&self) -> bool {
        let limits = &self.options.limits;
        !self.policy.paused
            && !matches!(self.stage, Stage::Holding(_))
            && !self.group.holds_rounds(Instant::now())
            && self.tracker.bytes_in_flight() < limits.window_bytes
            && self.tracker.records_in_flight() < limits.window_records
    }

    fn has_work(&self, now: Instant) -> bool {
        let wanted =
            || now >= self.next_round() || self.is_asked() || self.catching_up || self.copy_can_go_on();
        match &self.work {
            Some(record) => !(record.is_read() && self.releasing.is_under_way()),
            None => self.may_begin() && wanted(),
        }
    }

    /// The first round of a session is due at once.
    pub(super) fn next_round(&self) -> Instant {
        let interval = match self.kept.shutdown.is_in_a_hurry() {
            true => self.policy.round_interval().min(HEARTBEAT),
            false => self.policy.round_interval(),
        };
        self.last_round.map_or(self.last_exact, |last| last + interval)
    }

    /// Looks whether marks may be missing; if so, the session is over.
    pub(super) fn check_lost(&mut self) -> Result<(), SessionError> {
        match self.parts.map.lost() {
            Some(reason) => Err(SessionError::Lost { reason }),
            None => Ok(()),
        }
    }
}

pub(super) fn up(message: v1::up::Message) -> v1::Up {
    v1::Up { message: Some(message) }
}

fn refusal(refused: v1::Refused) -> SessionError {
    let retry_after = Duration::from_micros(refused.retry_after_micros);
    SessionError::Refused { reason: refused.reason, remedy: refused.remedy, retry_after }
}

fn learn_slots(disks: &[v1::Disk], welcome: &v1::Welcome) -> Result<Slots, SessionError> {
    let protocol = |what: String| Err(SessionError::Protocol { what });
    if welcome.protocol == 0 || welcome.protocol > PROTOCOL_VERSION {
        return protocol(format!("it speaks version {}, this agent {PROTOCOL_VERSION}", welcome.protocol));
    }
    if welcome.disks.len() != disks.len() {
        return protocol(format!("{} disks named, {} answered", disks.len(), welcome.disks.len()));
    }
    let mut slots = Slots::default();
    for (disk, given) in disks.iter().zip(&welcome.disks) {
        if given.slot == 0 || given.id != disk.id || slots.0.values().any(|slot| *slot == given.slot) {
            return protocol(format!("disk {} was answered as {} in slot {}", disk.id, given.id, given.slot));
        }
        slots.0.insert(DiskSlot(disk.slot), given.slot);
    }
    Ok(slots)
}
