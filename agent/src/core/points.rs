//! The points that are asked for: which ones wait, what has to be reached for them, what was answered. Pure.
//!
//! ```text
//!   told ──► waiting ──record of the flip is sent──► carried ──durable──► answered ──no longer told──► forgotten
//!              │  ▲                                     │             (told again: the same answer)
//!              │  └─────────── not in the log ──────────┘ (a connection broke)
//!              └── paused, copying, out of time ──► answered: refused
//! ```
//!
//! What cannot be reached is asked less of: each request remembers the first reason for which it got less.

use std::{collections::BTreeMap, time::Duration};

use lifeboat_replication::wire::v1::{Consistency, PointAnswer, PointRequest};
use tokio::time::Instant;

/// A request that no record carries by then is refused; hooks have their own time beside it.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// Requests that are answered at a time, and answered ones that are remembered.
const MOST: usize = 64;
/// Id of the request that the agent makes for its policy's interval.
const OWN: &str = "policy";
/// Rounds that are tried for what needs a freeze: a disturbed one may be bad luck, two are the load.
const CONSISTENT_TRIES: u32 = 2;

/// Why a point is less than asked for, or refused. The codes are part of the API (docs: troubleshooting).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub code: &'static str,
    pub message: String,
}

impl Obstacle {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

pub fn paused() -> Obstacle {
    Obstacle::new("Paused", "replication is paused: set spec.replication to Enabled")
}

pub fn copying() -> Obstacle {
    Obstacle::new("CopyNotComplete", "the disks are still being copied: ask again when the copy is complete")
}

fn not_exact() -> Obstacle {
    Obstacle::new(
        "NotExact",
        "the disks are written faster than they are read, so that no round is one instant: ask for a \
         FilesystemConsistent point, or at a calmer time",
    )
}

pub fn disturbed() -> Obstacle {
    Obstacle::new(
        "Disturbed",
        "blocks were written again before they were read, after every freeze that was tried: ask at a calmer time",
    )
}

/// What a record gives to the requests that it serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    pub number: u64,
    pub t0_micros: i64,
    pub consistency: Consistency,
    pub longest_freeze: Duration,
}

#[derive(Debug)]
struct Request {
    /// What may still be reached.
    wanted: Consistency,
    heard: Instant,
    tries: u32,
    /// A round was tried at once; further ones come at the usual interval.
    hurried: bool,
    less: Option<Obstacle>,
    state: State,
    /// Whether the last list has it. Requests that are over are remembered a while longer: an operator that starts anew
    /// may leave one out of its first list.
    told: bool,
    order: u64,
}

#[derive(Debug)]
enum State {
    Waiting,
    Carried(PointAnswer),
    Answered(PointAnswer),
}

impl Request {
    fn any_round_will_do(&self) -> bool {
        matches!(self.state, State::Waiting) && self.wanted == Consistency::CrashConsistent
    }
}

/// Lives longer than a session.
#[derive(Debug, Default)]
pub struct Requests {
    all: BTreeMap<String, Request>,
    /// How many have ever been heard.
    heard: u64,
}

impl Requests {
    /// The whole list of what is asked for.
    pub fn told(&mut self, requests: &[PointRequest], now: Instant) {
        for (id, request) in &mut self.all {
            request.told = id == OWN || requests.iter().any(|told| told.id == *id);
        }
        self.all.retain(|_, request| request.told || !matches!(request.state, State::Waiting));
        for request in requests.iter().filter(|request| request.id != OWN).take(MOST) {
            let wanted = match request.consistency() {
                Consistency::Unspecified => Consistency::CrashConsistent,
                asked => asked,
            };
            self.ask(&request.id, wanted, now);
        }
        while let Some(oldest) = self.one_too_many() {
            self.all.remove(&oldest);
        }
    }

    fn ask(&mut self, id: &str, wanted: Consistency, now: Instant) {
        self.heard += 1;
        self.all.entry(id.to_owned()).or_insert(Request {
            wanted,
            heard: now,
            tries: 0,
            hurried: false,
            less: None,
            state: State::Waiting,
            told: true,
            order: self.heard,
        });
    }

    /// The policy wants an application-consistent point.
    pub fn ask_own(&mut self, now: Instant) {
        self.ask(OWN, Consistency::AppConsistent, now);
    }

    /// What became of the policy's; told once.
    pub fn take_own(&mut self) -> Option<PointAnswer> {
        match self.all.get(OWN).map(|request| &request.state) {
            Some(State::Answered(answer)) => {
                let answer = answer.clone();
                self.all.remove(OWN);
                Some(answer)
            }
            _ => None,
        }
    }

    fn one_too_many(&self) -> Option<String> {
        let over = self.all.iter().filter(|(_, request)| !request.told);
        let oldest = over.min_by_key(|(_, request)| request.order).map(|(id, _)| id.clone());
        oldest.filter(|_| self.all.len() > 2 * MOST)
    }

    fn waiting(&mut self) -> impl Iterator<Item = (&String, &mut Request)> {
        self.all.iter_mut().filter(|(_, request)| matches!(request.state, State::Waiting))
    }

    /// The most that a waiting request wants.
    pub fn wanted(&self) -> Option<Consistency> {
        let waiting = self.all.values().filter(|request| matches!(request.state, State::Waiting));
        waiting.map(|request| request.wanted).max_by_key(|wanted| *wanted as i32)
    }

    /// The next exact round serves somebody.
    pub fn any_round_will_do(&self) -> bool {
        self.all.values().any(Request::any_round_will_do)
    }

    /// A round for which file systems were frozen serves somebody.
    pub fn frozen_round_will_do(&self) -> bool {
        self.wanted().is_some_and(|wanted| wanted != Consistency::AppConsistent)
    }

    /// And it should not wait for its time.
    pub fn in_a_hurry(&self) -> bool {
        self.all.values().any(|request| request.any_round_will_do() && !request.hurried)
    }

    /// A flip: the requests heard before it, which its record may serve.
    pub fn at_flip(&mut self) -> Vec<String> {
        self.waiting()
            .map(|(id, request)| {
                request.hurried = true;
                id.clone()
            })
            .collect()
    }

    /// More than `most` cannot be reached for those that wait.
    pub fn ask_less(&mut self, most: Consistency, why: &Obstacle) {
        for (_, request) in self.waiting().filter(|(_, request)| (request.wanted as i32) > most as i32) {
            request.wanted = most;
            request.hurried = false;
            request.less.get_or_insert_with(|| why.clone());
        }
    }

    /// The round for these was frozen for and is not exact.
    pub fn disturbed(&mut self, ids: &[String]) {
        for (_, request) in self.waiting().filter(|(id, _)| ids.contains(id)) {
            request.tries += 1;
            if request.tries >= CONSISTENT_TRIES && request.wanted != Consistency::CrashConsistent {
                request.wanted = Consistency::CrashConsistent;
                request.less.get_or_insert_with(disturbed);
            }
        }
    }

    /// The record of their flip is sent whole. Who wants more than it is goes on waiting.
    pub fn carried(&mut self, ids: &[String], taken: &Taken) {
        for (id, request) in self.waiting() {
            if !ids.contains(id) || request.wanted as i32 > taken.consistency as i32 {
                continue;
            }
            let Obstacle { code, message } = request.less.clone().unwrap_or(Obstacle::new("", ""));
            request.state = State::Carried(PointAnswer {
                id: id.clone(),
                number: taken.number,
                epoch: 0,
                t0_micros: taken.t0_micros,
                consistency: taken.consistency.into(),
                longest_freeze_micros: u64::try_from(taken.longest_freeze.as_micros()).unwrap_or(u64::MAX),
                reason: code.to_owned(),
                message,
            });
        }
    }

    /// Everything up to `number` is durable. True: there are new answers.
    pub fn durable(&mut self, number: u64, epoch: u32) -> bool {
        let mut answered = false;
        for request in self.all.values_mut() {
            if let State::Carried(answer) = &request.state
                && answer.number <= number
            {
                request.state = State::Answered(PointAnswer { epoch, ..answer.clone() });
                answered = true;
            }
        }
        answered
    }

    /// A session begins: what the broken one had sent is in the log, or was never committed and must be taken again.
    pub fn reconnected(&mut self, last_number: u64, epoch: u32) {
        self.durable(last_number, epoch);
        for request in self.all.values_mut() {
            if matches!(request.state, State::Carried(_)) {
                (request.state, request.hurried) = (State::Waiting, false);
            }
        }
    }

    /// Refuses what cannot be (for `why`), or was not to be had in time. True: there are new answers.
    pub fn review(&mut self, why: Option<&Obstacle>, limit: Duration, now: Instant) -> bool {
        let mut answered = false;
        for (id, request) in self.waiting() {
            let late = now.saturating_duration_since(request.heard) >= limit;
            let reason = match why {
                Some(why) => why.clone(),
                None if late => request.less.clone().unwrap_or_else(not_exact),
                None => continue,
            };
            let (reason, message) = (reason.code.to_owned(), reason.message);
            request.state =
                State::Answered(PointAnswer { id: id.clone(), reason, message, ..Default::default() });
            answered = true;
        }
        answered
    }

    pub fn answers(&self) -> Vec<PointAnswer> {
        let told = self.all.iter().filter(|(id, request)| request.told && *id != OWN);
        let told = told.map(|(_, request)| request);
        let answered = |request: &Request| match &request.state {
            State::Answered(answer) => Some(answer.clone()),
            State::Waiting | State::Carried(_) => None,
        };
        told.filter_map(answered).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, consistency: Consistency) -> PointRequest {
        PointRequest { id: id.to_owned(), consistency: consistency.into(), group: false }
    }

    fn requests(all: &[PointRequest]) -> Requests {
        let mut requests = Requests::default();
        requests.told(all, Instant::now());
        requests
    }

    fn taken(number: u64, consistency: Consistency) -> Taken {
        Taken { number, t0_micros: 5, consistency, longest_freeze: Duration::from_millis(30) }
    }

    use Consistency::{AppConsistent, CrashConsistent, FilesystemConsistent};

    #[tokio::test(start_paused = true)]
    async fn a_request_is_answered_when_its_record_is_durable_and_only_once() {
        let mut all = requests(&[asked("a", CrashConsistent)]);
        let ids = all.at_flip();
        all.carried(&ids, &taken(7, CrashConsistent));
        assert_eq!((all.wanted(), all.answers()), (None, vec![]));
        assert!(!all.durable(6, 2));
        assert!(all.durable(8, 2));
        assert!(!all.durable(8, 2));
        all.told(&[asked("a", CrashConsistent)], Instant::now());
        assert_eq!(all.wanted(), None, "the same id asks for nothing more");
        let answer = &all.answers()[0];
        assert_eq!((answer.number, answer.epoch, answer.reason.as_str()), (7, 2, ""));
        all.told(&[], Instant::now());
        assert!(all.answers().is_empty());
        all.told(&[asked("a", CrashConsistent)], Instant::now());
        assert_eq!(
            (all.wanted(), all.answers().len()),
            (None, 1),
            "an operator that started anew asks again"
        );
        for id in 0..1000 {
            all.told(&[asked(&id.to_string(), CrashConsistent)], Instant::now());
            all.review(Some(&paused()), REQUEST_LIMIT, Instant::now());
        }
        assert!(all.all.len() <= 2 * MOST, "{}", all.all.len());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_break_the_log_decides_whether_the_point_was_taken() {
        for (last, again) in [(7, false), (6, true)] {
            let mut all = requests(&[asked("a", CrashConsistent)]);
            let ids = all.at_flip();
            all.carried(&ids, &taken(7, CrashConsistent));
            all.reconnected(last, 3);
            assert_eq!(all.wanted().is_some(), again);
            assert_eq!(all.answers().len(), usize::from(!again));
            assert_eq!(all.in_a_hurry(), again);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_came_after_the_flip_is_not_served_by_it() {
        let mut all = requests(&[asked("a", CrashConsistent)]);
        let ids = all.at_flip();
        all.told(&[asked("a", CrashConsistent), asked("b", CrashConsistent)], Instant::now());
        all.carried(&ids, &taken(7, CrashConsistent));
        assert_eq!(all.at_flip(), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lesser_record_serves_only_those_that_want_no_more() {
        let mut all = requests(&[asked("app", AppConsistent), asked("crash", CrashConsistent)]);
        let ids = all.at_flip();
        all.carried(&ids, &taken(7, FilesystemConsistent));
        all.durable(7, 1);
        assert_eq!(all.answers().iter().map(|answer| answer.id.as_str()).collect::<Vec<_>>(), ["crash"]);
        all.ask_less(FilesystemConsistent, &Obstacle::new("HookFailed", "pre of db"));
        all.ask_less(CrashConsistent, &Obstacle::new("Later", "not the first reason"));
        assert_eq!(all.wanted(), Some(CrashConsistent));
        let ids = all.at_flip();
        all.carried(&ids, &taken(8, CrashConsistent));
        all.durable(8, 1);
        let answer = &all.answers()[0];
        assert_eq!((answer.consistency(), answer.reason.as_str()), (CrashConsistent, "HookFailed"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_is_refused_at_once_and_what_does_not_come_in_time() {
        let now = Instant::now();
        let mut all = requests(&[asked("a", CrashConsistent)]);
        assert!(!all.review(None, REQUEST_LIMIT, now + REQUEST_LIMIT / 2));
        assert!(all.review(None, REQUEST_LIMIT, now + REQUEST_LIMIT));
        assert_eq!((all.answers()[0].number, all.answers()[0].reason.as_str()), (0, "NotExact"));
        let mut all = requests(&[asked("a", CrashConsistent)]);
        assert!(all.review(Some(&paused()), REQUEST_LIMIT, now));
        assert_eq!(all.answers()[0].reason, "Paused");
    }

    #[tokio::test(start_paused = true)]
    async fn two_disturbed_freezes_are_enough() {
        let mut all = requests(&[asked("a", FilesystemConsistent)]);
        let ids = all.at_flip();
        all.disturbed(&ids);
        assert_eq!(all.wanted(), Some(FilesystemConsistent));
        all.disturbed(&ids);
        assert_eq!(all.wanted(), Some(CrashConsistent));
    }
}
