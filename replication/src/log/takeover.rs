//! Takeover: fence the old writer, find out what it had committed, open the next epoch on it.
//!
//! ```text
//!   list ─► look (closed? held by somebody?) ─► fence the newest epoch: break, acquire, seal each part of its chain
//!     ▲                                                        │ then read
//!     │                                                        ▼
//!     └── lost the race ◄── header refused ◄── create and lease <epoch+1>-0 ─► header (+ Closed | Release) ─► writer
//! ```
//! Every step may be repeated, and a crash after any of them leaves a log that the next taker continues from: a part
//! without a header is dead and passed over.

use tokio::{sync::watch, time::Instant};

use super::{
    Base, LogOptions, LogWriter, PartName, WriteError, beginning,
    frame::{self, ChainKey, FrameError, RawFrame},
    part,
    retry::Patience,
    state::{HeaderBase, Illegal, LogState, Start},
};
use crate::{
    env::Env,
    ids::{Epoch, ServerId},
    planted::Planted,
    store::{LeaseId, LeaseState, Refusal, StoreError},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

/// Why the log is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Only if no writer holds it.
    WhenFree,
    /// Only if no writer holds it, or an earlier run of the same writer does: at a program's start, when that run has
    /// ended. Never after being fenced: two runs by mistake would take the log from each other for ever.
    Resume,
    /// By order of the operator, which has given a writer up: that of epoch `lost` and earlier ones are fenced. A
    /// later one is left alone as with `Resume`, so that an order that comes late, or is read again after a restart,
    /// takes nothing from whoever has the log since.
    Handover { lost: Epoch },
    /// Whoever holds it is fenced.
    Forced,
    /// By a failover, which closes the log.
    Failover { run: String },
    /// The failover is off: the log is opened again.
    Release { run: String },
}

#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error(
        "another process server holds the log of server {server}: it is taken over when that one's lease runs out"
    )]
    Busy { server: ServerId },
    #[error(
        "the log of server {server} is closed by failover run {run}: replication goes on when that run is cancelled \
         before its commit, or the server is protected anew"
    )]
    Closed { server: ServerId, run: String },
    #[error("part {part} of the log of server {server} is damaged at byte {offset}")]
    Damaged {
        server: ServerId,
        part: PartName,
        offset: u64,
        #[source]
        source: Illegal,
    },
    #[error("several takers hinder each other at the log of server {server}: try again")]
    Contended { server: ServerId },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Lost races before a taker gives up and leaves it to its caller to try again.
const ATTEMPTS: u32 = 8;

impl LogWriter {
    /// Fences the writer there is and opens the next epoch. `who` is the writer's name, the same for all its runs and
    /// nobody else's; [`Order::Resume`] knows an earlier run by it.
    pub async fn take_over(
        vault: &Vault,
        server: &ServerId,
        who: &str,
        env: &Env,
        order: Order,
        options: LogOptions,
    ) -> Result<Self, TakeOverError> {
        let (name, who) = (who.to_owned(), format!("{who} {}", env.entropy.uuid()));
        let lease = LeaseId(env.entropy.uuid());
        let patience = Patience::new(env.clone());
        let taker = Taker { vault, server, name, who, env, order, options, lease, patience };
        for attempt in 0..ATTEMPTS {
            if let Some(writer) = taker.attempt().await? {
                return Ok(writer);
            }
            taker.patience.pause(attempt).await;
        }
        Err(TakeOverError::Contended { server: server.clone() })
    }
}

struct Taker<'a> {
    vault: &'a Vault,
    server: &'a ServerId,
    name: String,
    who: String,
    env: &'a Env,
    order: Order,
    options: LogOptions,
    lease: LeaseId,
    patience: Patience,
}

impl Taker<'_> {
    /// One attempt; `None`: another taker was faster.
    async fn attempt(&self) -> Result<Option<LogWriter>, TakeOverError> {
        let parts = part::list(self.vault, self.server, &self.patience).await?;
        let newest = parts.last().map_or(Epoch(0), |name| name.epoch);
        // Look before anything is broken: a closed log is left as it is, a busy one too.
        if let Some(seen) = self.look(&parts).await? {
            self.allowed(&seen.state)?;
        }
        let unfenced = match self.plants(Planted::LogReadBeforeFence) {
            true => self.look(&parts).await?,
            false => None,
        };
        let Fence::Done(fenced) = self.fence(&parts).await? else { return Ok(None) };
        let base = unfenced.or(fenced);
        if base.is_none() {
            self.is_really_empty(&parts).await?;
        }
        if let Some(tail) = &base {
            self.allowed(&tail.state)?;
        }
        self.open(Epoch(newest.0 + 1), base).await
    }

    /// May an epoch be opened on this state?
    fn allowed(&self, state: &LogState) -> Result<(), TakeOverError> {
        let Some(closed) = &state.closed_run else { return Ok(()) };
        match &self.order {
            Order::Failover { run } | Order::Release { run } if run == closed => Ok(()),
            _ if self.plants(Planted::TakeoverIgnoresClosed) => Ok(()),
            _ => Err(TakeOverError::Closed { server: self.server.clone(), run: closed.clone() }),
        }
    }

    /// Nothing alive was found. That is how a log begins, but not one that retention has shortened: then parts that must
    /// be there are not, and an epoch that continues nothing would hide all that the others hold.
    async fn is_really_empty(&self, parts: &[PartName]) -> Result<(), TakeOverError> {
        let Some(last) = parts.last() else { return Ok(()) };
        let begins = beginning::begins_at(self.vault, self.server, &self.patience).await?;
        match begins {
            None => Ok(()),
            Some(part) => Err(TakeOverError::Damaged {
                server: self.server.clone(),
                part,
                offset: 0,
                source: Illegal::BeginningLost { last: *last },
            }),
        }
    }

    /// State at the end of the log as far as it can be seen without fencing anybody.
    async fn look(&self, parts: &[PartName]) -> Result<Option<Tail>, TakeOverError> {
        for epoch in epochs(parts) {
            let Some(mut part) = self.newest_alive(parts, epoch).await? else { continue };
            loop {
                let properties = part::properties(self.vault, self.server, part, &self.patience).await?;
                let held = properties.lease != LeaseState::Free && !properties.sealed;
                if self.waits_for(part) && held && !self.is_own(part).await? {
                    return Err(TakeOverError::Busy { server: self.server.clone() });
                }
                match self.read(part).await? {
                    None => break,
                    Some(tail) => match tail.state.next_part {
                        Some(next) => part = PartName { epoch, part: next },
                        None => return Ok(Some(tail)),
                    },
                }
            }
        }
        Ok(None)
    }

    fn plants(&self, planted: Planted) -> bool {
        self.options.planted == Some(planted)
    }

    /// The writer of this part is not fenced, if it is another one.
    fn waits_for(&self, part: PartName) -> bool {
        match self.order {
            Order::WhenFree | Order::Resume => true,
            Order::Handover { lost } => part.epoch > lost,
            Order::Forced | Order::Failover { .. } | Order::Release { .. } => false,
        }
    }

    /// Opened by an earlier run of this writer, which has ended?
    async fn is_own(&self, name: PartName) -> Result<bool, TakeOverError> {
        if !matches!(self.order, Order::Resume | Order::Handover { .. }) {
            return Ok(false);
        }
        let bytes = part::read_all(self.vault, self.server, name, &self.patience).await?;
        let Ok(Some(first)) = RawFrame::split(&bytes) else { return Ok(false) };
        let start = Start::read(&self.vault.keys, self.server.as_str(), &name, &first);
        Ok(start.is_ok_and(|(start, _)| {
            start.writer.rsplit_once(' ').is_some_and(|(writer, _run)| writer == self.name)
        }))
    }

    /// Seals everything that an older writer could still write to, and reads the state that the log ends with.
    async fn fence(&self, parts: &[PartName]) -> Result<Fence, TakeOverError> {
        for epoch in epochs(parts) {
            let Some(mut part) = self.newest_alive(parts, epoch).await? else { continue };
            loop {
                if !self.seal(part).await? {
                    return Ok(Fence::Lost);
                }
                match self.read(part).await? {
                    // Its maker died, or was fenced just now, before the header: the epoch before is the base.
                    None => break,
                    Some(tail) => {
                        let next = tail.state.next_part;
                        match next.filter(|_| !self.plants(Planted::RotateNotFollowed)) {
                            Some(next) => part = PartName { epoch, part: next },
                            None => return Ok(Fence::Done(Some(tail))),
                        }
                    }
                }
            }
        }
        Ok(Fence::Done(None))
    }

    /// The newest part of an epoch that its base's last frame names, so that not every part has to be read. `None`: the
    /// epoch has no first part, since the store went back in time while its writer began another one: it is dead.
    async fn newest_alive(
        &self,
        parts: &[PartName],
        epoch: Epoch,
    ) -> Result<Option<PartName>, TakeOverError> {
        let later = parts.iter().rev().filter(|name| name.epoch == epoch && name.part > 0);
        let later = later.filter(|_| !self.plants(Planted::RotateNotFollowed));
        for name in later {
            let bytes = part::read_all(self.vault, self.server, *name, &self.patience).await?;
            let Ok(Some(first)) = RawFrame::split(&bytes) else { continue };
            let Ok((start, _)) = Start::read(&self.vault.keys, self.server.as_str(), name, &first) else {
                continue;
            };
            let Some(Ok(base)) = start.base_part.as_deref().map(str::parse::<PartName>) else { continue };
            let at = match part::read(self.vault, self.server, base, start.base_offset, &self.patience).await
            {
                Err(error) if error.is(Refusal::NotFound) => continue,
                at => at?.unwrap_or_default(),
            };
            if let Ok(Some(frame)) = RawFrame::split(&at)
                && frame.decode_unverified() == Ok(Body::Rotate(v1::Rotate { part: name.part }))
                && frame.chain() == start.base_chain
            {
                return Ok(Some(*name));
            }
        }
        let first = PartName { epoch, part: 0 };
        Ok(parts.contains(&first).then_some(first))
    }

    /// Takes the part's lease and seals it; `false`: another taker was faster.
    async fn seal(&self, part: PartName) -> Result<bool, TakeOverError> {
        let blob = part.blob(self.server);
        let store = &self.vault.store;
        if part::properties(self.vault, self.server, part, &self.patience).await?.sealed {
            return Ok(true);
        }
        let waits = self.waits_for(part);
        if !waits || self.is_own(part).await? {
            self.patience.sure(|| store.break_lease(&blob)).await?;
        }
        match self.patience.sure(|| store.acquire_lease(&blob, &self.lease, self.options.lease_term)).await {
            Ok(()) => {}
            Err(error) if error.is(Refusal::Lease) && waits => {
                return Err(TakeOverError::Busy { server: self.server.clone() });
            }
            Err(error) if error.is(Refusal::Lease) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        match self.patience.sure(|| store.seal(&blob, &self.lease)).await {
            Ok(()) => Ok(true),
            Err(error) if error.is(Refusal::Lease) || error.is(Refusal::Sealed) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The end of a part; `None`: it has no header.
    async fn read(&self, name: PartName) -> Result<Option<Tail>, TakeOverError> {
        let bytes = part::read_all(self.vault, self.server, name, &self.patience).await?;
        let damaged = |offset: u64, source: Illegal| TakeOverError::Damaged {
            server: self.server.clone(),
            part: name,
            offset,
            source,
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        let frame_at = |offset: u64| -> Result<Option<RawFrame<'_>>, TakeOverError> {
            let rest =
                usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
            match RawFrame::split(rest) {
                Ok(None) if !rest.is_empty() => Err(damaged(offset, Illegal::Frame(FrameError::Record))),
                Ok(frame) => Ok(frame),
                Err(error) => Err(damaged(offset, error.into())),
            }
        };
        let Some(first) = frame_at(0)? else { return Ok(None) };
        let start = Start::read(&self.vault.keys, self.server.as_str(), &name, &first);
        let (start, key) = start.map_err(|source| damaged(0, source))?;
        let (mut state, mut last_session) = (start.state, None);
        while let Some(frame) = frame_at(state.offset)? {
            let offset = state.offset;
            let body = state.read(&key, &frame).map_err(|source| damaged(offset, source))?;
            if let Body::Data(data) = body {
                last_session = Some(data.session);
            }
        }
        Ok(Some(Tail { state, last_session }))
    }

    /// Opens `epoch` on what the log ends with; `None`: another taker was faster.
    async fn open(&self, epoch: Epoch, tail: Option<Tail>) -> Result<Option<LogWriter>, TakeOverError> {
        let name = PartName { epoch, part: 0 };
        let blob = name.blob(self.server);
        // Who made the blob does not matter: whoever leases it and writes the header opens the epoch.
        match self.patience.sure(|| self.vault.store.create_append(&blob)).await {
            Ok(_) => {}
            Err(error) if error.is(Refusal::AlreadyExists) => {}
            Err(error) => return Err(error.into()),
        }
        match self
            .patience
            .sure(|| self.vault.store.acquire_lease(&blob, &self.lease, self.options.lease_term))
            .await
        {
            Ok(()) => {}
            Err(error) if error.is(Refusal::Lease) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let (key_id, key) = self.vault.keys.current();
        let chain_key = ChainKey::new(key, self.server.as_str());
        let last_session = tail.as_ref().and_then(|tail| tail.last_session);
        let fenced = tail.map(|tail| tail.state);
        let base_part = fenced.as_ref().map(LogState::part_name);
        let mut state = fenced.clone().unwrap_or_else(|| LogState::empty(key_id.clone()));
        let base = Base { epoch: state.epoch, last_session };
        let place =
            HeaderBase { epoch, part: 0, base_part, base_offset: state.offset, key_id: key_id.clone() };
        let header = state.header(self.server.as_str(), place, &self.who, self.env.wall.now());
        let mut first =
            frame::encode(&chain_key, &state.chain, Body::Header(header)).map_err(WriteError::from)?;
        let order = match (&self.order, &state.closed_run) {
            (Order::Failover { run }, _) => Some(Body::Closed(v1::Closed { run: run.clone() })),
            (Order::Release { run }, Some(_)) => Some(Body::Release(v1::Release { run: run.clone() })),
            (Order::Release { .. }, None)
            | (Order::WhenFree | Order::Resume | Order::Handover { .. } | Order::Forced, _) => None,
        };
        if let Some(order) = order {
            state.apply(&order).map_err(WriteError::from)?;
            let second = frame::encode(&chain_key, &first.chain, order).map_err(WriteError::from)?;
            first.bytes.extend_from_slice(&second.bytes);
            first.chain = second.chain;
        }
        state.epoch = epoch;
        state.part = 0;
        state.offset = 0;
        state.next_part = None;
        state.key_id = key_id.clone();
        let mut writer = LogWriter {
            vault: self.vault.clone(),
            server: self.server.clone(),
            who: self.who.clone(),
            env: self.env.clone(),
            options: self.options.clone(),
            lease: self.lease.clone(),
            state,
            base,
            chain_key,
            appends: 0,
            renewed_at: Instant::now(),
            begun_at: Instant::now(),
            trouble: watch::Sender::new(None),
        };
        match writer.commit(&first).await {
            Ok(()) => {}
            Err(WriteError::Fenced { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        writer.state.offset = first.bytes.len() as u64;
        writer.state.chain = first.chain;
        if let Some(fenced) = fenced {
            self.stays_fenced(&fenced).await?;
        }
        Ok(Some(writer))
    }

    /// What was fenced is fenced still, asked before anything is acknowledged on it. It is not if the store was put back
    /// to an older moment while this takeover was under way: readers would stop at a part that is not sealed, and its
    /// writer could go on in it.
    async fn stays_fenced(&self, fenced: &LogState) -> Result<(), TakeOverError> {
        let part = fenced.part_name();
        if part::properties(self.vault, self.server, part, &self.patience).await?.sealed {
            return Ok(());
        }
        let (blob, store) = (part.blob(self.server), &self.vault.store);
        self.patience.sure(|| store.break_lease(&blob)).await?;
        self.patience.sure(|| store.acquire_lease(&blob, &self.lease, self.options.lease_term)).await?;
        self.patience.sure(|| store.seal(&blob, &self.lease)).await?;
        let same = |state: &LogState| (state.offset, state.chain) == (fenced.offset, fenced.chain);
        match self.read(part).await?.is_some_and(|tail| same(&tail.state)) {
            true => Ok(()),
            false => Err(TakeOverError::Damaged {
                server: self.server.clone(),
                part,
                offset: fenced.offset,
                source: Illegal::Base,
            }),
        }
    }
}

/// What came of fencing.
enum Fence {
    /// Another taker is at it.
    Lost,
    /// Nobody older can write any more; the end of the log, `None` when there is nothing in it.
    Done(Option<Tail>),
}

/// What a part ends with.
struct Tail {
    state: LogState,
    /// Session of its last data record; `None`: it has none.
    last_session: Option<u64>,
}

/// Newest first.
fn epochs(parts: &[PartName]) -> impl Iterator<Item = Epoch> {
    let epochs: std::collections::BTreeSet<Epoch> = parts.iter().map(|name| name.epoch).collect();
    epochs.into_iter().rev()
}
