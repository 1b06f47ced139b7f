//! One attempt at the point of a consistency group: all members stand still before any flips. Pure.
//!
//! ```text
//!   Preparing ── all Ready ──► Freezing ── all Frozen ──► Flipping ── all Flipped ──► Recording ── all durable ──► Over
//!       └────────────────────────┴── refused, gone, out of time: Cancel to all ─┴──────────────┘         (taken)
//!                                                   ▼
//!                                             Over (missed)
//! ```
//! Why the members have one instant: each stood still from before its `Frozen` until after its flip, or it refuses. The
//! instant is read when the last `Frozen` has been heard and before the first Flip is ordered; so what each flip shows
//! is what the member's disks were at that instant. Members thaw by themselves after their flip, or at a Cancel, or at
//! their own limit; no order is needed for any of them to go on.
//!
//! Answers may be lost, doubled, late, or of another attempt: only what a member has to say next counts.

use std::{collections::BTreeMap, time::Duration};

use lifeboat_replication::{
    env::Micros,
    wire::v1::{GroupAnswer, GroupMember, GroupOrder, GroupState, GroupStep},
};
use tokio::time::Instant;

/// Members write back what is dirty in memory (60 s at most) and send it.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// More than a freeze may last. Whoever froze first has thawed by then.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);
/// Flips follow at once; members give up by themselves.
const FLIP_LIMIT: Duration = Duration::from_secs(60);
/// The rest is read, sent, and committed.
const RECORD_LIMIT: Duration = Duration::from_secs(180);
/// What a broken connection had brought whole is still committed.
const AFTER_GONE: Duration = Duration::from_secs(15);

/// What an agent says is passed on so far.
const MESSAGE_CHARS: usize = 768;
const REASON_CHARS: usize = 64;

/// What has come about.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    Answer {
        server: &'a str,
        answer: &'a GroupAnswer,
    },
    /// Its session has ended, or takes no orders.
    Gone {
        server: &'a str,
    },
    /// A record with the attempt's id is durable.
    Durable {
        member: GroupMember,
    },
    /// Time has passed.
    Tick,
}

/// Why there is no point: a code that is part of the API (docs: troubleshooting), and words with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    pub code: String,
    pub message: String,
}

impl Missed {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// All members have the point in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub members: Vec<GroupMember>,
    pub longest_freeze_micros: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Preparing,
    Freezing,
    Flipping,
    Recording,
}

#[derive(Debug)]
struct Member {
    /// For people.
    name: String,
    /// It has said what this phase waits for.
    done: bool,
    recorded: Option<GroupMember>,
}

#[derive(Debug)]
pub struct Attempt {
    id: String,
    members: BTreeMap<String, Member>,
    phase: Phase,
    deadline: Instant,
    longest_freeze_micros: u64,
    over: Option<Result<Taken, Missed>>,
}

/// An order, and the server that it goes to.
pub type Ordered = (String, GroupOrder);

impl Attempt {
    /// `members`: ids of the servers with their names.
    pub fn begin(
        id: String,
        members: impl IntoIterator<Item = (String, String)>,
        now: Instant,
    ) -> (Self, Vec<Ordered>) {
        let members =
            members.into_iter().map(|(id, name)| (id, Member { name, done: false, recorded: None }));
        let attempt = Self {
            id,
            members: members.collect(),
            phase: Phase::Preparing,
            deadline: now + PREPARE_LIMIT,
            longest_freeze_micros: 0,
            over: None,
        };
        let orders = attempt.to_all(GroupStep::Prepare, Micros(0));
        (attempt, orders)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn has(&self, server: &str) -> bool {
        self.members.contains_key(server)
    }

    /// By then [`Input::Tick`] is due.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn outcome(&self) -> Option<&Result<Taken, Missed>> {
        self.over.as_ref()
    }

    /// What is to be ordered now. `date`: the process server's time, read for this call.
    pub fn handle(&mut self, input: Input<'_>, now: Instant, date: Micros) -> Vec<Ordered> {
        if self.over.is_some() {
            return Vec::new();
        }
        match input {
            Input::Answer { server, answer } if answer.id == self.id => {
                self.answered(server, answer, now, date)
            }
            Input::Answer { .. } => Vec::new(),
            Input::Gone { server } => self.gone(server, now),
            Input::Durable { member } => {
                // Its answer may come after it.
                if self.phase >= Phase::Flipping
                    && let Some(known) = self.members.get_mut(&member.server_id)
                {
                    known.done = true;
                    known.recorded = Some(member);
                }
                self.advance(now, date)
            }
            Input::Tick if now >= self.deadline => self.late(),
            Input::Tick => Vec::new(),
        }
    }

    fn answered(&mut self, server: &str, answer: &GroupAnswer, now: Instant, date: Micros) -> Vec<Ordered> {
        let Some(member) = self.members.get_mut(server) else { return Vec::new() };
        match (answer.state(), self.phase) {
            (GroupState::Refused, _) if member.recorded.is_none() => {
                let message: String = answer.message.chars().take(MESSAGE_CHARS).collect();
                let message = format!("{}: {message}", member.name);
                let code = answer.reason.chars().take(REASON_CHARS).collect();
                return self.miss(Missed { code, message });
            }
            (GroupState::Ready, Phase::Preparing)
            | (GroupState::Frozen, Phase::Freezing)
            | (GroupState::Flipped, Phase::Flipping) => member.done = true,
            _ => return Vec::new(),
        }
        self.longest_freeze_micros = self.longest_freeze_micros.max(answer.longest_freeze_micros);
        self.advance(now, date)
    }

    /// Goes on when the last one has said what is waited for.
    fn advance(&mut self, now: Instant, date: Micros) -> Vec<Ordered> {
        if self.phase >= Phase::Flipping && self.members.values().all(|member| member.recorded.is_some()) {
            let members = self.members.values().filter_map(|member| member.recorded.clone()).collect();
            let longest_freeze_micros = self.longest_freeze_micros;
            self.over = Some(Ok(Taken { members, longest_freeze_micros }));
            return Vec::new();
        }
        if !self.members.values().all(|member| member.done) {
            return Vec::new();
        }
        let (next, limit, order) = match self.phase {
            Phase::Preparing => (Phase::Freezing, FREEZE_LIMIT, Some(GroupStep::Freeze)),
            Phase::Freezing => (Phase::Flipping, FLIP_LIMIT, Some(GroupStep::Flip)),
            Phase::Flipping => (Phase::Recording, RECORD_LIMIT, None),
            Phase::Recording => return Vec::new(),
        };
        (self.phase, self.deadline) = (next, now + limit);
        self.members.values_mut().for_each(|member| member.done = member.recorded.is_some());
        order.map(|step| self.to_all(step, date)).unwrap_or_default()
    }

    fn gone(&mut self, server: &str, now: Instant) -> Vec<Ordered> {
        let Some(member) = self.members.get(server) else { return Vec::new() };
        if member.recorded.is_some() {
            return Vec::new();
        }
        if self.phase >= Phase::Flipping {
            self.deadline = self.deadline.min(now + AFTER_GONE);
            return Vec::new();
        }
        let message = format!(
            "{}: its connection broke while the point was taken: see its condition AgentConnected, and ask again",
            member.name
        );
        self.miss(Missed::new("ConnectionLost", message))
    }

    fn late(&mut self) -> Vec<Ordered> {
        let late = |member: &&Member| match self.phase {
            Phase::Recording => member.recorded.is_none(),
            _ => !member.done,
        };
        let names: Vec<&str> =
            self.members.values().filter(late).map(|member| member.name.as_str()).collect();
        let (code, what) = match self.phase {
            Phase::Preparing => (
                "NotReady",
                "did not get ready in time: its disks are too busy, or its agent is older than consistency groups \
                 (update it)",
            ),
            Phase::Freezing => ("NotFrozen", "did not stand still in time: ask at a calmer time"),
            Phase::Flipping => {
                ("NotFlipped", "did not say that it has flipped: see its condition AgentConnected")
            }
            Phase::Recording => (
                "NotDurable",
                "did not bring its part into the vault in time: see its conditions and those of the appliance",
            ),
        };
        self.miss(Missed::new(code, format!("{} {what}", names.join(", "))))
    }

    fn miss(&mut self, why: Missed) -> Vec<Ordered> {
        self.over = Some(Err(why));
        self.to_all(GroupStep::Cancel, Micros(0))
    }

    fn to_all(&self, step: GroupStep, t0: Micros) -> Vec<Ordered> {
        let members = match step {
            GroupStep::Flip => self.members.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let order = GroupOrder { id: self.id.clone(), step: step.into(), t0_micros: t0.0, members };
        self.members.keys().map(|server| (server.clone(), order.clone())).collect()
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
