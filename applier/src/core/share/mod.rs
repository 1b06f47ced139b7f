//! Shares the vault's servers out among appliers, by leases.
//!
//! ```text
//!   wanted servers ─┐
//!   announcements ──┼─► plan ─► give up (release) · take (acquire) ─► announce what is held
//!   leases held ────┘                                   └─► Tenure: how long the server may be applied
//! ```
//! The lease of `servers/<id>/catalogue/lease` says who applies a server. **Nothing rests on it but the division of
//! work**: two appliers on one server are kept apart by sequence numbers and ETags, see [`super::Applier`].
//! **Order**: renewed first, then looked at the others, given up, taken, announced.
//! **Retries**: none here; a round comes every few seconds, and each is whole in itself.
//! **Cancellation and crash**: a lease that nobody renews runs out within its term. A [`Tenure`] ends by itself when
//! its lease may have run out, also while a round hangs in the store.
//! **Restart**: an applier that comes back with its former identity goes on with its own leases at once.
//! **Weakness we accept**: appliers whose announcements are late may try a lease in vain.
//! **Cost**, with a term of 60 s: a server's lease is renewed every 30 s, 2,880 operations a server-day, idle or not.
//! An applier writes its announcement every 30 s and lists the others' every 10 s, or every 30 s while it is alone: 2,880
//! put, 8,640 or 2,880 list, and 8,640 get operations for each other applier an applier-day, however many servers.

mod members;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lifeboat_replication::{
    appliers::{Announcement, standing},
    env::Env,
    ids::ServerId,
    planted::Planted,
    store::{LeaseId, PutCondition, Refusal, Result, StoreError},
    vault::{Vault, layout},
};
use tokio::{sync::watch, time::Instant};

use self::members::{Live, Members};
pub use self::plan::{Plan, View, plan};

/// Leases renewed or released at the same time: with 20 ms a call a thousand servers take three seconds.
const CALLS: usize = 8;

/// Who shares, and how long a lease lasts.
#[derive(Debug, Clone)]
pub struct ShareOptions {
    /// For people: the pod's name.
    pub name: String,
    /// UUID that is this applier's alone for as long as it lives, better still over its restarts.
    pub identity: LeaseId,
    /// The store allows 15 to 60 seconds. The longer, the fewer renewals, and the longer a dead applier's servers wait.
    pub term: Duration,
}

impl ShareOptions {
    /// The longest that the store allows: what the log holds can be recovered before it is applied, so nobody waits
    /// for a dead applier's successor.
    pub const TERM: Duration = Duration::from_secs(60);

    /// Two renewals may fail before a lease is lost: each round tries again.
    fn renew_after(&self) -> Duration {
        self.term / 2
    }

    /// Between two rounds.
    pub fn interval(&self) -> Duration {
        self.term / 6
    }
}

/// For how long a server may be applied.
#[derive(Debug, Clone)]
pub struct Tenure(watch::Receiver<Instant>);

impl Tenure {
    /// Ends when the lease was given up, or may have run out.
    pub async fn over(mut self) {
        loop {
            let until = *self.0.borrow_and_update();
            tokio::select! {
                biased;
                changed = self.0.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }
}

#[derive(Debug)]
struct Held {
    /// When the lease was renewed last: before the call was made.
    renewed: Instant,
    until: watch::Sender<Instant>,
}

enum Renewal {
    Renewed(Instant),
    /// Somebody else has it, or its blob is gone.
    Lost,
    /// The store gave no certain answer: it counts until it may have run out.
    Unsure(StoreError),
}

/// One applier's part in the division.
#[derive(Debug)]
pub struct Sharer {
    vault: Vault,
    env: Env,
    options: ShareOptions,
    held: BTreeMap<ServerId, Held>,
    members: Members,
    /// What was announced last, and when.
    said: Option<(BTreeSet<ServerId>, Instant)>,
    /// When nobody else was found at the last look: nobody gives anything up meanwhile, and a newcomer can wait.
    alone: Option<Instant>,
    planted: Option<Planted>,
}

impl Sharer {
    pub fn new(vault: Vault, env: Env, options: ShareOptions) -> Self {
        let (held, members) = (BTreeMap::new(), Members::default());
        Self { vault, env, options, held, members, said: None, alone: None, planted: None }
    }

    /// Set by the simulation only.
    #[must_use]
    pub fn with(self, planted: Option<Planted>) -> Self {
        Self { planted, ..self }
    }

    /// Servers that may be applied, and for how long.
    pub fn held(&self) -> impl Iterator<Item = (&ServerId, Tenure)> {
        self.held.iter().map(|(server, held)| (server, Tenure(held.until.subscribe())))
    }

    pub fn holds(&self, server: &ServerId) -> bool {
        self.held.contains_key(server)
    }

    /// Keeps, gives up and takes leases. `wanted`: all servers that the vault names; `None`: not known yet, so nothing
    /// is taken or given up. `extra`: servers that only some appliers know of, which are taken without counting.
    ///
    /// # Errors
    /// The store's; what is held then is as it was, or less.
    pub async fn round(
        &mut self,
        wanted: Option<&BTreeSet<ServerId>>,
        extra: &BTreeSet<ServerId>,
    ) -> Result<()> {
        self.renew().await;
        let Some(wanted) = wanted else { return Ok(()) };
        let live = self.look().await?;
        let held = self.servers();
        let counted: BTreeSet<ServerId> = held.difference(extra).cloned().collect();
        let view = View { own: &self.options.identity.0, wanted, held: &counted, others: &live.others };
        let Plan { give, take, room } = plan(view);
        self.give(give).await;
        let taken = self.take(take, room, extra).await;
        let said = self.announce().await;
        for name in live.over {
            // Nobody has written it for long; who is back writes it again.
            let _ = self.vault.store.delete(&name, None).await;
        }
        taken.and(said)
    }

    /// Lets others have everything at once. Best effort: leases run out by themselves.
    pub async fn leave(&mut self) {
        let all = self.held.keys().cloned().collect();
        self.give(all).await;
        let name = layout::applier(&self.options.identity.0);
        if let Err(error) = self.vault.store.delete(&name, None).await {
            tracing::debug!(%error, "announcement not removed; it runs out by itself");
        }
    }

    /// The others; while there are none, not at every round.
    async fn look(&mut self) -> Result<Live> {
        let now = Instant::now();
        if self.alone.is_some_and(|seen| now.duration_since(seen) < self.options.renew_after()) {
            return Ok(Live::default());
        }
        let found = standing(&*self.vault.store, &self.options.identity.0).await?;
        let live = self.members.judge(found, Instant::now(), self.options.term);
        self.alone = (live.others.is_empty() && live.over.is_empty()).then_some(now);
        Ok(live)
    }

    fn servers(&self) -> BTreeSet<ServerId> {
        self.held.keys().cloned().collect()
    }

    async fn renew(&mut self) {
        let now = Instant::now();
        let due: Vec<ServerId> = self
            .held
            .iter()
            .filter(|(_, held)| now.duration_since(held.renewed) >= self.options.renew_after())
            .map(|(server, _)| server.clone())
            .collect();
        let this = &*self;
        let answers: Vec<(ServerId, Renewal)> = stream::iter(due)
            .map(|server| async move {
                let renewal = this.prolong(&server).await;
                (server, renewal)
            })
            .buffered(CALLS)
            .collect()
            .await;
        for (server, renewal) in answers {
            match renewal {
                Renewal::Renewed(at) => self.hold(server, at),
                Renewal::Lost if self.planted == Some(Planted::LostLeaseIsKept) => {
                    self.hold(server, Instant::now());
                }
                Renewal::Lost => {
                    tracing::warn!(%server, "another applier has the server");
                    self.held.remove(&server);
                }
                Renewal::Unsure(error) => tracing::warn!(%server, %error, "lease not renewed"),
            }
        }
        let (now, term) = (Instant::now(), self.tenure());
        self.held.retain(|server, held| {
            let keep = held.renewed + term > now;
            if !keep {
                tracing::warn!(%server, "not applied any more: its lease could not be renewed in time");
            }
            keep
        });
    }

    /// No longer than the lease lasts.
    fn tenure(&self) -> Duration {
        match self.planted {
            Some(Planted::TenureOutlivesLease) => self.options.term * 2,
            _ => self.options.term,
        }
    }

    fn hold(&mut self, server: ServerId, renewed: Instant) {
        let until = renewed + self.tenure();
        match self.held.get_mut(&server) {
            Some(held) => {
                held.renewed = renewed;
                held.until.send_replace(until);
            }
            None => drop(self.held.insert(server, Held { renewed, until: watch::Sender::new(until) })),
        }
    }

    async fn prolong(&self, server: &ServerId) -> Renewal {
        let (blob, store, at) = (layout::apply_lease(server), &*self.vault.store, Instant::now());
        let refused = match store.renew_lease(&blob, &self.options.identity).await {
            Ok(()) => return Renewal::Renewed(at),
            Err(error) => error,
        };
        if refused.is(Refusal::NotFound) {
            return Renewal::Lost;
        }
        if !refused.is(Refusal::Lease) {
            return Renewal::Unsure(refused);
        }
        // It ran out or was broken; perhaps nobody has taken it since.
        let at = Instant::now();
        match store.acquire_lease(&blob, &self.options.identity, self.options.term).await {
            Ok(()) => Renewal::Renewed(at),
            Err(error) if error.is(Refusal::Lease) || error.is(Refusal::NotFound) => Renewal::Lost,
            Err(error) => Renewal::Unsure(error),
        }
    }

    /// Whoever applies them is stopped before the lease is free.
    async fn give(&mut self, servers: Vec<ServerId>) {
        self.held.retain(|server, _| !servers.contains(server));
        // What runs under these tenures drops itself as soon as it has its turn, mostly here. What it sent before may
        // land after another applier's writes: that is the sequence numbers' business.
        tokio::task::yield_now().await;
        let this = &*self;
        stream::iter(servers)
            .map(|server| async move {
                tracing::info!(%server, "given up");
                let blob = layout::apply_lease(&server);
                if let Err(error) = this.vault.store.release_lease(&blob, &this.options.identity).await {
                    tracing::debug!(%server, %error, "lease not released; it runs out by itself");
                }
            })
            .buffered(CALLS)
            .collect::<Vec<()>>()
            .await;
    }

    async fn take(
        &mut self,
        servers: Vec<ServerId>,
        mut room: usize,
        extra: &BTreeSet<ServerId>,
    ) -> Result<()> {
        for server in extra.iter().filter(|server| !self.holds(server)).cloned().collect::<Vec<_>>() {
            self.try_take(server).await?;
        }
        for server in servers {
            if room == 0 {
                break;
            }
            room -= usize::from(self.try_take(server).await?);
        }
        Ok(())
    }

    /// `false`: somebody else has it.
    async fn try_take(&mut self, server: ServerId) -> Result<bool> {
        let blob = layout::apply_lease(&server);
        let mut at = Instant::now();
        let mut acquired =
            self.vault.store.acquire_lease(&blob, &self.options.identity, self.options.term).await;
        if acquired.as_ref().is_err_and(|error| error.is(Refusal::NotFound)) {
            let text = Bytes::from_static(b"the lease of this blob says who applies the server\n");
            match self.vault.store.put(&blob, text, &PutCondition::IfAbsent).await {
                Err(error) if !error.is(Refusal::AlreadyExists) => return Err(error),
                _ => {}
            }
            at = Instant::now();
            acquired = self.vault.store.acquire_lease(&blob, &self.options.identity, self.options.term).await;
        }
        match acquired {
            Ok(()) => {
                tracing::info!(%server, "taken");
                self.hold(server, at);
                Ok(true)
            }
            Err(error) if error.is(Refusal::Lease) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// When something has changed, and from time to time.
    async fn announce(&mut self) -> Result<()> {
        let (holds, now) = (self.servers(), Instant::now());
        let said = self.said.as_ref();
        if said
            .is_some_and(|(said, at)| *said == holds && now.duration_since(*at) < self.options.renew_after())
        {
            return Ok(());
        }
        let announcement = Announcement {
            keys: self.vault.keys.ids().cloned().collect(),
            beat: self.env.entropy.next_u64(),
            renewed_at_micros: self.env.wall.now().0,
            ..Announcement::new(&self.options.identity.0, &self.options.name, &holds)
        };
        let name = layout::applier(&self.options.identity.0);
        self.vault.store.put(&name, announcement.content(), &PutCondition::Always).await?;
        self.said = Some((holds, now));
        Ok(())
    }
}
