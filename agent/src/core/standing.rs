//! Points for which the file systems stand still: the steps that lead to one, and the round under the freeze.
//!
//! ```text
//!   Idle ─► WritingBack (syncfs, beside the rounds) ─► Bulk (a round takes what that wrote) ─► Bulked
//!    ▲                                                                                           │
//!    │        (only for applications) Holding (pre of every hook) ◄──────────────────────────────┤
//!    │                                          └─────────────────────────────────────► Ready ◄──┘
//!    │                                                                                    │ freeze, flip, take,
//!    └── what cannot be reached is asked less of ◄── End ◄── read the rest ◄── thaw ◄─────┘ read what fits
//!                                                     ▲                          └── post of every hook ──┐
//!                                                     └─────── what the hooks say in the end ◄────────────┘
//! ```
//!
//! Hooks that were begun are released whatever happens: here after the thaw or when nobody wants the point any more, by
//! the replicator after the end of a session, by themselves after their limit.
//! Nothing between freeze and thaw may return without thawing, or log.

use std::time::Duration;

use futures::future::BoxFuture;
use lifeboat_replication::{blocks::BlockSet, errors::chain, planted::Planted, wire::v1::Consistency};
use tokio::time::Instant;

use super::{
    issue,
    points::Obstacle,
    record::{Record, Round},
    session::{Session, SessionError},
};
use crate::edge::{FreezeError, Frozen, HookError, HookLimits, Thawed, TrackError};

/// Issue codes of status.
const FREEZE_FAILED: &str = "FreezeFailed";
const HOOK_FAILED: &str = "HookFailed";
const APP_POINT_MISSED: &str = "AppConsistentPointMissed";
/// Applications are held for this long at most, beside the time-out of a script and the freeze.
const HOLD_SLACK: Duration = Duration::from_secs(10);
/// Writing back takes this long at most before a point is asked less of: memory full of changes on a slow disk.
pub(super) const WRITE_BACK_LIMIT: Duration = Duration::from_secs(60);

/// How far the next point of frozen file systems is.
#[derive(Default)]
pub(super) enum Stage {
    #[default]
    Idle,
    WritingBack(BoxFuture<'static, bool>),
    Bulk,
    Bulked,
    Holding(BoxFuture<'static, Result<(), HookError>>),
    Ready,
}

/// What came about beside the rounds.
pub(super) enum Beside {
    WrittenBack { in_time: bool },
    Held(Result<(), HookError>),
}

/// The `post` of the hooks, under way.
#[derive(Default)]
pub(super) struct Releasing(Option<BoxFuture<'static, Result<(), HookError>>>);

impl Releasing {
    pub(super) fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Never ends when nothing is under way.
    pub(super) async fn done(&mut self) -> Result<(), HookError> {
        match &mut self.0 {
            Some(release) => release.await,
            None => std::future::pending().await,
        }
    }
}

impl Stage {
    /// Something has to be done for it now.
    pub(super) fn is_due(&self) -> bool {
        matches!(self, Self::Bulk | Self::Bulked | Self::Ready)
    }

    /// What goes on beside the rounds; never ends when there is nothing.
    pub(super) async fn beside(&mut self) -> Beside {
        match self {
            Self::WritingBack(done) => Beside::WrittenBack { in_time: done.await },
            Self::Holding(held) => Beside::Held(held.await),
            Self::Idle | Self::Bulk | Self::Bulked | Self::Ready => std::future::pending().await,
        }
    }
}

/// A freeze that is over, as its round tells it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stood {
    pub(super) consistency: Consistency,
    pub(super) longest: Duration,
}

impl Session<'_> {
    /// Starts what a point of frozen file systems needs, or finds that it cannot be had.
    pub(super) fn prepare(&mut self, now: Instant) {
        let wants_freeze =
            |wanted: Option<Consistency>| wanted.is_some_and(|wanted| wanted != Consistency::CrashConsistent);
        if !wants_freeze(self.kept.requests.wanted()) {
            self.stage = Stage::Idle;
            // A record under way releases by itself when it is thawed.
            self.release();
            return;
        }
        let busy = self.releasing.is_under_way() || self.work.is_some() || !self.group.is_idle();
        if !matches!(self.stage, Stage::Idle) || busy {
            return;
        }
        if self.kept.requests.wanted() == Some(Consistency::AppConsistent) {
            let missing = match self.parts.hooks.installed() {
                Ok(names) if names.is_empty() => Some(Obstacle::new(
                    "HooksMissing",
                    "no hooks of applications are installed: run `lifeboat-agent hooks enable postgresql` (or mariadb) \
                     on the server, or write some into /etc/lifeboat/hooks.d",
                )),
                Ok(_) => None,
                Err(error) => Some(self.hook_failed(&error)),
            };
            if let Some(missing) = missing {
                self.kept.requests.ask_less(Consistency::FilesystemConsistent, &missing);
            }
        }
        if let Err(why) = self.kept.freezes.allows(&self.policy.freeze, now) {
            self.kept.requests.ask_less(Consistency::CrashConsistent, &why);
            return;
        }
        let written = self.parts.freezer.write_back();
        let bounded = async move { tokio::time::timeout(WRITE_BACK_LIMIT, written).await.is_ok() };
        self.stage = Stage::WritingBack(Box::pin(bounded));
    }

    /// What went on beside the rounds is over.
    pub(super) fn prepared(&mut self, done: Beside) {
        match done {
            Beside::WrittenBack { in_time: true } => self.stage = Stage::Bulk,
            Beside::Held(Ok(())) => self.stage = Stage::Ready,
            Beside::Held(Err(error)) => {
                // The file systems can still be frozen, once the applications go on.
                self.stage = Stage::Idle;
                let why = self.hook_failed(&error);
                self.kept.requests.ask_less(Consistency::FilesystemConsistent, &why);
                self.release();
            }
            Beside::WrittenBack { in_time: false } => {
                let message = format!(
                    "writing back what is dirty in memory took longer than {} s: ask at a calmer time",
                    WRITE_BACK_LIMIT.as_secs()
                );
                self.kept
                    .requests
                    .ask_less(Consistency::CrashConsistent, &Obstacle::new("TooMuchDirty", message));
                self.stage = Stage::Idle;
            }
        }
    }

    /// Has the applications prepared if their consistency is wanted; else all is ready.
    pub(super) fn hold(&mut self) {
        if self.kept.requests.wanted() != Some(Consistency::AppConsistent) {
            self.stage = Stage::Ready;
            return;
        }
        let timeout = self.policy.hook_timeout;
        let limits = HookLimits { timeout, hold: timeout + self.policy.app_freeze + HOLD_SLACK };
        self.kept.holding = true;
        self.stage = Stage::Holding(self.parts.hooks.hold(limits));
    }

    /// Lets applications go on, if they may be held.
    fn release(&mut self) {
        if self.kept.holding && !self.releasing.is_under_way() {
            self.releasing = Releasing(Some(self.parts.hooks.release()));
        }
    }

    /// The applications go on; only now it is known whether they were held for the whole time.
    pub(super) fn released(&mut self, released: Result<(), HookError>) {
        self.kept.holding = false;
        self.releasing = Releasing::default();
        let stood = self.work.as_mut().and_then(Record::round).and_then(|round| round.stood.as_mut());
        let app = stood.filter(|stood| stood.consistency == Consistency::AppConsistent);
        match (released, app) {
            (Ok(()), Some(_)) => _ = self.kept.issues.remove(HOOK_FAILED),
            (Ok(()), None) => {}
            (Err(error), app) => {
                if let Some(stood) = app {
                    stood.consistency = Consistency::FilesystemConsistent;
                }
                let why = self.hook_failed(&error);
                self.kept.requests.ask_less(Consistency::FilesystemConsistent, &why);
            }
        }
    }

    /// Asks for the points that the policy wants, and tells in the status when one was missed.
    pub(super) fn policy_points(&mut self, possible: bool, now: Instant) {
        if let Some(answer) = self.kept.requests.take_own() {
            tracing::info!(
                record = answer.number,
                reason = answer.reason,
                "application-consistent point by policy"
            );
            if answer.reason.is_empty() {
                self.kept.issues.remove(APP_POINT_MISSED);
            } else {
                let message =
                    format!("the last point by policy is not application-consistent: {}", answer.reason);
                let missed = issue(APP_POINT_MISSED, "Warning", message, &answer.message);
                self.kept.issues.insert(APP_POINT_MISSED.to_owned(), missed);
            }
        }
        let interval = self.policy.app_interval;
        if interval.is_zero() {
            self.kept.app_due = None;
            return;
        }
        let since = || self.parts.hooks.since_last().unwrap_or(interval).min(interval);
        let due = *self.kept.app_due.get_or_insert_with(|| now + (interval - since()));
        if possible && now >= due {
            self.kept.app_due = Some(now + interval);
            self.kept.requests.ask_own(now);
        }
    }

    fn hook_failed(&mut self, error: &HookError) -> Obstacle {
        let remedy =
            "run `lifeboat-agent hooks check` on the server; points go on without the applications' help";
        let message = error.to_string();
        tracing::warn!(error = message, "a hook failed");
        self.kept
            .issues
            .insert(HOOK_FAILED.to_owned(), issue(HOOK_FAILED, "Warning", message.clone(), remedy));
        Obstacle::new(HOOK_FAILED, format!("{message}; {remedy}"))
    }

    /// The round that the file systems are frozen for. `None`: it cannot be had, and less is asked for.
    pub(super) async fn standing_round(&mut self) -> Result<Option<Record>, SessionError> {
        self.stage = Stage::Idle;
        let began = Instant::now();
        let limit = if self.kept.holding { self.policy.app_freeze } else { self.policy.freeze.timeout };
        let frozen = match self.freeze(began, limit).await {
            Ok(frozen) => frozen,
            Err(why) => {
                self.kept.requests.ask_less(Consistency::CrashConsistent, &why);
                self.release();
                return Ok(None);
            }
        };
        let record = self.begin_standing(began, limit).await;
        let most = match self.kept.holding {
            // Until the hooks' last word.
            true => Consistency::AppConsistent,
            false => Consistency::FilesystemConsistent,
        };
        let stood = self.thaw(frozen, most).await;
        self.release();
        let mut record = record?;
        if let Some(round) = record.round() {
            round.stood = Some(stood);
        }
        Ok(Some(record))
    }

    /// No round becomes exact but one for which everything stands still, and it is time for one.
    pub(super) fn only_standing_helps(&mut self, now: Instant) -> bool {
        let limits = &self.policy.freeze;
        let free =
            matches!(self.stage, Stage::Idle) && self.group.is_idle() && !self.releasing.is_under_way();
        let due = free && !self.catching_up && self.tracker.complete() && now >= self.next_round();
        let without = now.saturating_duration_since(self.last_exact);
        due && self.parts.map.may_stand(limits.timeout)
            && self.kept.freezes.helps(limits, without, now)
            && !self.parts.map.stood()
    }

    async fn begin_standing(&mut self, began: Instant, limit: Duration) -> Result<Record, SessionError> {
        self.last_round = Some(began);
        self.parts.map.stand(limit)?;
        let flip = self.flip_and_take()?;
        let sendable = self.tracker.sendable();
        let round = Round::new(flip, sendable.len(), true);
        let mut record = self.begin_round(round, sendable)?;
        self.read_standing(&mut record, began, limit).await?;
        Ok(record)
    }

    /// Freezes for a round that gave up, flips, reads what fits, thaws. False: no freeze came about.
    pub(super) async fn frozen_pass(&mut self, record: &mut Record) -> Result<bool, SessionError> {
        let began = Instant::now();
        let limit = self.policy.freeze.timeout;
        let Ok(frozen) = self.freeze(began, limit).await else { return Ok(false) };
        let looked = self.parts.map.stand(limit);
        let read = match looked.and_then(|()| self.next_pass(record)) {
            Ok(true) => self.read_standing(record, began, limit).await.map(|()| true),
            other => other.map_err(SessionError::from),
        };
        let stood = self.thaw(frozen, Consistency::FilesystemConsistent).await;
        if let Some(round) = record.round() {
            round.stood = Some(stood);
        }
        read
    }

    pub(super) async fn freeze(&mut self, now: Instant, limit: Duration) -> Result<Frozen, Obstacle> {
        self.kept.freezes.allows(&self.policy.freeze, now)?;
        match self.parts.freezer.estimate().await {
            Some(estimate) if estimate <= limit / 2 => {}
            Some(estimate) => {
                let message = format!(
                    "writing back what is dirty would take about {} s under the freeze, and half of the policy's \
                     freezeTimeout is {} s: ask at a calmer time, or raise freezeTimeout",
                    estimate.as_secs_f32().ceil(),
                    limit.as_secs_f32() / 2.0
                );
                return Err(Obstacle::new("TooMuchDirty", message));
            }
            None => {
                let message = "no file system of the protected disks can be frozen, or lifeboat-thaw.service does not \
                               run: see `systemctl status lifeboat-thaw` on the server";
                return Err(Obstacle::new("NothingToFreeze", message));
            }
        }
        self.kept.freezes.spend(now);
        self.parts.freezer.freeze(limit).await.map_err(|error| self.freeze_failed(&error))
    }

    /// `most`: what the round is when everything was frozen the whole time.
    async fn thaw(&mut self, frozen: Frozen, most: Consistency) -> Stood {
        let (thawed, less) = self.thaw_quietly(&frozen).await;
        let consistency = match less {
            Some(why) => {
                self.kept.requests.ask_less(Consistency::CrashConsistent, &why);
                Consistency::CrashConsistent
            }
            None => most,
        };
        Stood { consistency, longest: thawed.longest }
    }

    /// Thaws; also why nothing may be concluded from the freeze, if so.
    pub(super) async fn thaw_quietly(&mut self, frozen: &Frozen) -> (Thawed, Option<Obstacle>) {
        let thawed = self.parts.freezer.thaw().await;
        let left_out = [frozen.left_out.clone(), self.parts.freezer.moved()].concat();
        self.kept.freezes.thawed(thawed.longest);
        self.kept.issues.remove(FREEZE_FAILED);
        tracing::info!(
            longest_ms = u64::try_from(thawed.longest.as_millis()).unwrap_or(u64::MAX),
            held_until_thaw = thawed.held_until_now,
            ?left_out,
            "froze the file systems"
        );
        let trusted = self.options.planted == Some(Planted::TrustExpiredFreeze);
        let less = if !thawed.held_until_now && !trusted {
            Some(Obstacle::new(
                "FreezeExpired",
                "the watchdog thawed before the point was taken: the disks are too slow for the policy's freezeTimeout",
            ))
        } else if !left_out.is_empty() {
            Some(Obstacle::new(
                "NotAllFrozen",
                format!(
                    "{} cannot be frozen: mount it read-only (as /boot/efi may be), or have the disk left out",
                    left_out.join(", ")
                ),
            ))
        } else {
            None
        };
        (thawed, less)
    }

    /// Reads while nothing writes, for half of the time that a freeze may last.
    pub(super) async fn read_standing(
        &mut self,
        record: &mut Record,
        began: Instant,
        limit: Duration,
    ) -> Result<(), SessionError> {
        let half = limit / 2;
        let before = record.data_bytes;
        while !record.rest.is_empty()
            && began.elapsed() < half
            && record.data_bytes - before < self.options.limits.frozen_bytes
        {
            let content = self.read(record).await?;
            record.ready.push_back(content);
        }
        self.end_of_pass(record);
        Ok(())
    }

    fn freeze_failed(&mut self, error: &FreezeError) -> Obstacle {
        let remedy = "look at `systemctl status lifeboat-thaw` and the file system named; rounds go on without freezing";
        let message = chain(error);
        tracing::warn!(error = message, "could not freeze");
        self.kept
            .issues
            .insert(FREEZE_FAILED.to_owned(), issue(FREEZE_FAILED, "Warning", message.clone(), remedy));
        Obstacle::new(FREEZE_FAILED, format!("{message}; {remedy}"))
    }

    /// Flips and takes for another pass. False: too much was written meanwhile to be worth it; the next round
    /// carries it.
    pub(super) fn next_pass(&mut self, record: &mut Record) -> Result<bool, TrackError> {
        let flip = self.flip_and_take()?;
        let rest: BlockSet = self.tracker.sendable();
        if rest.bytes() > self.options.limits.catch_up_bytes {
            return Ok(false);
        }
        if let Some(round) = record.round() {
            round.another(flip, rest.len());
        }
        record.rest = rest;
        self.end_of_pass(record);
        Ok(true)
    }
}
