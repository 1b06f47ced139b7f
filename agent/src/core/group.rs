//! This server's part in the point of a consistency group (docs/adr/0009): the process server orders, we answer.
//!
//! ```text
//!   Idle ─Prepare─► Wanted ─► WritingBack (syncfs) ─► Bulk (a round takes what that wrote) ─► Bulked
//!    ▲                                                                                          │ Ready
//!    │                                                  Due ◄──────────────Freeze────────── Ready
//!    └─ Cancel, refused, forgotten                       │ freeze, Frozen; Flip: flip, read what fits, thaw, Flipped
//!    ▲                                                   ▼
//!    └───────────────────────────────────────────── a round whose record bears the id, if it becomes exact
//! ```
//!
//! From before `Frozen` is said until after the flip every file system stands still, or the answer is `Refused` and no
//! record bears the id. So all members stand still at the instant that comes with Flip: it was chosen when all had said
//! `Frozen`. Nobody waits for it longer than a part of the policy's freezeTimeout; then we thaw, and a late Flip is
//! refused. Beside that the watchdog thaws, whatever happens to us.
//!
//! While it stands still nothing here may log, touch a file, or return without thawing; what is heard meanwhile is
//! acted on afterwards. A crash or a break at any point leaves an ordinary round, or none.

use std::{collections::VecDeque, time::Duration};

use futures::future::BoxFuture;
use lifeboat_replication::{
    env::Micros,
    wire::v1::{self, Consistency, GroupAnswer, GroupOrder, GroupPoint, GroupState, GroupStep},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{
    points::{self, Obstacle},
    record::{Record, Round},
    session::{Session, SessionError, up},
    standing::{Stage, Stood, WRITE_BACK_LIMIT},
};
use crate::edge::TrackError;

/// No round begins for this long after Ready, so that Freeze finds nothing under way.
const HOLD_ROUNDS: Duration = Duration::from_secs(10);
/// Whoever asked is gone: the coordinator waits less for a member that is late.
const READY_LIMIT: Duration = Duration::from_secs(180);
/// How much of the limit of a freeze may pass before Flip is heard: three quarters. The rest is for flip and thaw.
const PATIENCE: (u32, u32) = (3, 4);

/// How far this server is with the point of its group.
#[derive(Default)]
pub(super) struct Group {
    stage: GroupStage,
    /// Not sent yet.
    answers: VecDeque<GroupAnswer>,
}

#[derive(Default)]
enum GroupStage {
    #[default]
    Idle,
    /// Waits for the record under way, and for another point that is being prepared.
    Wanted(String),
    WritingBack(String, BoxFuture<'static, bool>),
    Bulk(String),
    Bulked(String),
    Ready(String, Instant),
    /// Freeze was ordered.
    Due(String),
}

impl GroupStage {
    fn id(&self) -> Option<&str> {
        match self {
            Self::Idle => None,
            Self::Wanted(id)
            | Self::WritingBack(id, _)
            | Self::Bulk(id)
            | Self::Bulked(id)
            | Self::Ready(id, _)
            | Self::Due(id) => Some(id),
        }
    }
}

impl Group {
    /// No other point is prepared meanwhile.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.stage, GroupStage::Idle)
    }

    /// A round should take what was written back.
    pub(super) fn wants_round(&self) -> bool {
        matches!(self.stage, GroupStage::Bulk(_))
    }

    /// A round has flipped.
    pub(super) fn round_began(&mut self) {
        if let GroupStage::Bulk(id) = &mut self.stage {
            self.stage = GroupStage::Bulked(std::mem::take(id));
        }
    }

    pub(super) fn holds_rounds(&self, now: Instant) -> bool {
        match &self.stage {
            GroupStage::Due(_) => true,
            GroupStage::Ready(_, since) => now.saturating_duration_since(*since) < HOLD_ROUNDS,
            _ => false,
        }
    }

    pub(super) fn is_due(&self) -> bool {
        matches!(self.stage, GroupStage::Due(_))
    }

    /// The next answer to be sent.
    pub(super) fn take_answer(&mut self) -> Option<v1::Up> {
        self.answers.pop_front().map(|answer| up(v1::up::Message::Group(answer)))
    }

    pub(super) fn has_answer(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Never ends when nothing is written back for it.
    pub(super) async fn written_back(&mut self) -> bool {
        match &mut self.stage {
            GroupStage::WritingBack(_, done) => done.await,
            _ => std::future::pending().await,
        }
    }

    fn say(&mut self, id: &str, state: GroupState) {
        self.answers.push_back(answer(id, state));
    }

    pub(super) fn refuse(&mut self, id: &str, why: Obstacle) {
        if self.stage.id() == Some(id) {
            self.stage = GroupStage::Idle;
        }
        let reason = why.code.to_owned();
        self.answers.push_back(GroupAnswer {
            reason,
            message: why.message,
            ..answer(id, GroupState::Refused)
        });
    }
}

fn answer(id: &str, state: GroupState) -> GroupAnswer {
    GroupAnswer { id: id.to_owned(), state: state.into(), ..GroupAnswer::default() }
}

fn not_ready() -> Obstacle {
    Obstacle::new("NotReady", "the agent began anew meanwhile: ask for the point again")
}

fn too_late() -> Obstacle {
    Obstacle::new(
        "FreezeExpired",
        "the other members did not stand still in time, so this one went on: ask at a calmer time, or raise \
         freezeTimeout of the ReplicationPolicy",
    )
}

/// What was heard while everything stood still.
enum Heard {
    Flip(GroupOrder),
    Cancelled,
    /// Nothing, for as long as we wait.
    Nothing,
}

impl Session<'_> {
    pub(super) fn ordered(&mut self, order: GroupOrder) {
        let GroupOrder { id, .. } = &order;
        let known = self.group.stage.id() == Some(id);
        match order.step() {
            // What is asked last counts: whoever asked before has given up.
            GroupStep::Prepare => match self.group_obstacle() {
                Some(why) => self.group.refuse(id, why),
                None => self.group.stage = GroupStage::Wanted(id.clone()),
            },
            GroupStep::Freeze => {
                let obstacle = self.group_obstacle();
                let ready = matches!(&self.group.stage, GroupStage::Ready(ready, _) if ready == id);
                match obstacle {
                    Some(why) => self.group.refuse(id, why),
                    None if ready => self.group.stage = GroupStage::Due(id.clone()),
                    None => self.group.refuse(id, not_ready()),
                }
            }
            GroupStep::Flip => self.group.refuse(id, too_late()),
            GroupStep::Cancel => {
                if known {
                    self.group.stage = GroupStage::Idle;
                }
                if let Some(round) = self.work.as_mut().and_then(Record::round)
                    && round.group.as_ref().is_some_and(|group| group.id == *id)
                {
                    round.group = None;
                }
            }
            GroupStep::Unspecified => {} // of a newer protocol
        }
    }

    /// Why there can be no such point here.
    fn group_obstacle(&mut self) -> Option<Obstacle> {
        if self.policy.paused {
            return Some(points::paused());
        }
        if !self.tracker.complete() {
            return Some(points::copying());
        }
        // Swap holds nothing that is recovered; another disk would not stand still with the file systems.
        let raw: Vec<String> =
            self.parts.freezer.not_freezable().into_iter().filter(|what| !what.ends_with("(swap)")).collect();
        if !raw.is_empty() {
            let message = format!(
                "{} cannot be frozen, so the group has no common instant: mount it, or have the disk left out by \
                 spec.disks.exclude",
                raw.join(", ")
            );
            return Some(Obstacle::new("NotFreezable", message));
        }
        self.kept.freezes.allows(&self.policy.freeze, Instant::now()).err()
    }

    /// Goes on with what waits for the moment.
    pub(super) fn advance_group(&mut self, now: Instant) {
        let free = matches!(self.stage, Stage::Idle) && !self.releasing.is_under_way() && self.work.is_none();
        match &mut self.group.stage {
            GroupStage::Wanted(id) if free => {
                let written = self.parts.freezer.write_back();
                let bounded = async move { timeout(WRITE_BACK_LIMIT, written).await.is_ok() };
                self.group.stage = GroupStage::WritingBack(std::mem::take(id), Box::pin(bounded));
            }
            GroupStage::Bulked(id) if self.work.is_none() && !self.catching_up => {
                let id = std::mem::take(id);
                self.group.say(&id, GroupState::Ready);
                self.group.stage = GroupStage::Ready(id, now);
            }
            GroupStage::Ready(_, since) if now.saturating_duration_since(*since) >= READY_LIMIT => {
                self.group.stage = GroupStage::Idle;
            }
            _ => {}
        }
    }

    pub(super) fn group_written_back(&mut self, in_time: bool) {
        let GroupStage::WritingBack(id, _) = &mut self.group.stage else { return };
        let id = std::mem::take(id);
        self.group.stage = GroupStage::Bulk(id.clone());
        if !in_time {
            let message = format!(
                "writing back what is dirty in memory took longer than {} s: ask at a calmer time",
                WRITE_BACK_LIMIT.as_secs()
            );
            self.group.refuse(&id, Obstacle::new("TooMuchDirty", message));
        }
    }

    /// Freezes, says so, and flips when it is told to.
    pub(super) async fn stand_for_group(
        &mut self,
        up: &mpsc::Sender<v1::Up>,
        down: &mut mpsc::Receiver<v1::Down>,
    ) -> Result<(), SessionError> {
        let GroupStage::Due(id) = std::mem::take(&mut self.group.stage) else { return Ok(()) };
        let began = Instant::now();
        let limit = self.policy.freeze.timeout;
        let frozen = match self.freeze(began, limit).await {
            Ok(frozen) => frozen,
            Err(why) => {
                self.group.refuse(&id, why);
                return Ok(());
            }
        };
        let mut stash = Vec::new();
        // The limit began with the freeze or later, so this is never too long.
        let until = began + limit * PATIENCE.0 / PATIENCE.1;
        let stood = match frozen.left_out.is_empty() {
            true => self.stand(&id, until, limit, (up, down), &mut stash).await,
            false => Ok(Err(Heard::Nothing)),
        };
        let (thawed, less) = self.thaw_quietly(&frozen).await;
        match (stood?, less) {
            (Err(Heard::Cancelled), _) => {}
            (Err(_), less) => self.group.refuse(&id, less.unwrap_or_else(too_late)),
            (Ok((mut record, order)), less) => {
                let consistency = match &less {
                    None => Consistency::FilesystemConsistent,
                    Some(_) => Consistency::CrashConsistent,
                };
                if let Some(round) = record.round() {
                    round.stood = Some(Stood { consistency, longest: thawed.longest });
                    if less.is_none() {
                        let GroupOrder { id, members, t0_micros, .. } = order;
                        round.bear(GroupPoint { id, members }, Micros(t0_micros));
                    }
                }
                self.work = Some(record);
                match less {
                    Some(why) => self.group.refuse(&id, why),
                    None => {
                        let longest_freeze_micros =
                            u64::try_from(thawed.longest.as_micros()).unwrap_or(u64::MAX);
                        let flipped = answer(&id, GroupState::Flipped);
                        self.group.answers.push_back(GroupAnswer { longest_freeze_micros, ..flipped });
                    }
                }
            }
        }
        let now = Instant::now();
        stash.into_iter().try_for_each(|message| self.hear(message, now))
    }

    /// While everything stands still. The round, if there was a flip.
    async fn stand(
        &mut self,
        id: &str,
        until: Instant,
        limit: Duration,
        (up_to, down): (&mpsc::Sender<v1::Up>, &mut mpsc::Receiver<v1::Down>),
        stash: &mut Vec<v1::Down>,
    ) -> Result<Result<(Record, GroupOrder), Heard>, SessionError> {
        let frozen = up(v1::up::Message::Group(answer(id, GroupState::Frozen)));
        match timeout_at(until, up_to.send(frozen)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(SessionError::Closed),
            Err(_) => return Ok(Err(Heard::Nothing)),
        }
        let order = match listen(id, until, down, stash).await? {
            Heard::Flip(order) => order,
            other => return Ok(Err(other)),
        };
        let now = Instant::now();
        let record = self.begin_group_round(now, limit).await?;
        Ok(Ok((record, order)))
    }

    async fn begin_group_round(&mut self, now: Instant, limit: Duration) -> Result<Record, SessionError> {
        self.last_round = Some(now);
        let flip = self.flip_and_take().map_err(|error: TrackError| SessionError::from(error))?;
        let sendable = self.tracker.sendable();
        let mut record = self.begin_round(Round::new(flip, sendable.len(), true), sendable)?;
        // A quarter is left when patience is at its end; what does not fit is read after the thaw.
        self.read_standing(&mut record, now, limit / 4).await?;
        Ok(record)
    }
}

async fn listen(
    id: &str,
    until: Instant,
    down: &mut mpsc::Receiver<v1::Down>,
    stash: &mut Vec<v1::Down>,
) -> Result<Heard, SessionError> {
    loop {
        let Ok(message) = timeout_at(until, down.recv()).await else { return Ok(Heard::Nothing) };
        let message = message.ok_or(SessionError::Closed)?;
        match message.message {
            Some(v1::down::Message::Group(order)) if order.id == id && order.step() == GroupStep::Flip => {
                return Ok(Heard::Flip(order));
            }
            Some(v1::down::Message::Group(order)) if order.id == id && order.step() == GroupStep::Cancel => {
                return Ok(Heard::Cancelled);
            }
            other => stash.push(v1::Down { message: other }),
        }
    }
}
