//! Level 1 of the ladder: all orders in which a few programs can reach the store, within bounds.
//!
//! The programs are the product's own. Each request waits for its turn; when all that runs waits, one choice is made:
//! which request reaches the store, or what goes wrong with it. A run is the list of its choices; the next run changes
//! the last choice that has another option (depth first), until there is none.
//!
//! ```text
//!   programs ── requests that wait ─► turn (choice 3 of 5) ─► model
//!                                       └► lost, answer lost, late (a choice later)
//! ```
//! Bounds: how often a program that could go on is made to wait for another, and how many requests go wrong.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use lifeboat_replication::store::{Result, StoreError, model::ModelStore};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use crate::{net::lock, store::Way};

/// What is chosen, in order: the option that was taken, and how many there were.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    taken: Vec<(usize, usize)>,
    next: usize,
}

impl Choices {
    /// The next choice among so many options.
    pub fn choose(&mut self, options: usize) -> usize {
        let chosen = self.taken.get(self.next).map_or(0, |(chosen, _)| *chosen);
        if self.next == self.taken.len() {
            self.taken.push((0, options));
        }
        self.next += 1;
        chosen
    }

    /// True when the next choice was not made in a run before.
    pub fn is_new(&self) -> bool {
        self.next == self.taken.len()
    }

    /// From the beginning, as before.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The next run; false: all were run.
    #[must_use]
    pub fn advance(&mut self) -> bool {
        self.next = 0;
        while let Some((chosen, options)) = self.taken.pop() {
            if chosen + 1 < options {
                self.taken.push((chosen + 1, options));
                return true;
            }
        }
        false
    }
}

/// How far the search goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How often a program that could go on waits for another one.
    pub preemptions: usize,
    /// Requests that go wrong.
    pub faults: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Lost,
    AnswerLost,
    Late,
}

struct Waiting {
    program: usize,
    operation: &'static str,
    turn: oneshot::Sender<Fate>,
}

#[derive(Default)]
struct State {
    /// Before that, requests go straight to the model.
    begun: bool,
    waiting: Vec<Waiting>,
    late: Vec<(String, BoxFuture<'static, ()>)>,
    /// What happened in this run, to be printed when it fails.
    story: Vec<String>,
}

/// Where requests wait.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<State>>);

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turns")
    }
}

/// The way from one program.
#[derive(Debug, Clone)]
pub struct TurnWay {
    pub model: ModelStore,
    pub turns: Turns,
    pub program: usize,
}

impl Way for TurnWay {
    async fn call<T, F>(&self, operation: &'static str, name: &str, request: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(ModelStore) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    {
        let Some(decided) = self.turns.wait(self.program, operation) else {
            return request(self.model.clone()).await;
        };
        let fate = decided.await.unwrap_or(Fate::Lost);
        self.turns.tell(format!("{} {operation} {name}: {fate:?}", self.program));
        let unknown =
            || StoreError::Unknown { operation, name: name.to_owned(), detail: "no answer".to_owned() };
        match fate {
            Fate::Done => request(self.model.clone()).await,
            Fate::Lost => Err(unknown()),
            Fate::AnswerLost => {
                let _ = request(self.model.clone()).await;
                Err(unknown())
            }
            Fate::Late => {
                let request = request(self.model.clone());
                let what = format!("late: {} {operation} {name}", self.program);
                lock(&self.turns.0).late.push((what, Box::pin(async move { _ = request.await })));
                Err(unknown())
            }
        }
    }
}

impl Turns {
    fn wait(&self, program: usize, operation: &'static str) -> Option<oneshot::Receiver<Fate>> {
        let mut state = lock(&self.0);
        let (turn, decided) = oneshot::channel();
        state.begun.then(|| {
            state.waiting.push(Waiting { program, operation, turn });
            decided
        })
    }

    pub fn tell(&self, what: String) {
        lock(&self.0).story.push(what);
    }

    pub fn story(&self) -> String {
        lock(&self.0).story.join("\n")
    }

    /// Lets `programs` run to their ends by these choices. The clock is paused: all that can run has run when a sleep
    /// is over.
    pub async fn play(&self, choices: &mut Choices, bounds: Bounds, programs: &[JoinHandle<()>]) {
        let Bounds { mut preemptions, mut faults } = bounds;
        let mut last = 0;
        lock(&self.0).begun = true;
        while programs.iter().any(|program| !program.is_finished()) {
            sleep(Duration::from_millis(1)).await;
            let running = programs.iter().filter(|program| !program.is_finished()).count();
            let (mut options, asleep) = {
                let mut state = lock(&self.0);
                // The one whose turn it was first, then by number.
                state.waiting.sort_by_key(|waiting| (waiting.program != last, waiting.program));
                (self.options(&state, last, preemptions, faults), running > state.waiting.len())
            };
            if options.is_empty() {
                continue;
            }
            // One that waits for a time to pass comes first.
            let waits = asleep && preemptions > 0;
            if waits {
                options.push(Step::Wait);
            }
            match options.get(choices.choose(options.len())) {
                Some(Step::Turn { at, fate }) => {
                    let Waiting { program, turn, .. } = lock(&self.0).waiting.remove(*at);
                    let could_go_on =
                        *at > 0 && lock(&self.0).waiting.iter().any(|other| other.program == last);
                    preemptions -= usize::from(could_go_on);
                    faults -= usize::from(*fate != Fate::Done);
                    last = program;
                    let _ = turn.send(*fate);
                }
                Some(Step::Late(at)) => {
                    let (what, request) = lock(&self.0).late.remove(*at);
                    self.tell(what);
                    request.await;
                }
                Some(Step::Wait) | None => {
                    preemptions -= 1;
                    self.until_another_waits().await;
                }
            }
        }
        // What is late and has not come yet comes now.
        let late = std::mem::take(&mut lock(&self.0).late);
        for (what, request) in late {
            self.tell(what);
            request.await;
        }
    }

    fn options(&self, state: &State, last: usize, preemptions: usize, faults: usize) -> Vec<Step> {
        let mut options = Vec::new();
        let could_go_on = state.waiting.first().is_some_and(|first| first.program == last);
        for (at, waiting) in state.waiting.iter().enumerate() {
            if at > 0 && could_go_on && preemptions == 0 {
                break;
            }
            options.push(Step::Turn { at, fate: Fate::Done });
            if faults > 0 && changes(waiting.operation) {
                options
                    .extend([Fate::Lost, Fate::AnswerLost, Fate::Late].map(|fate| Step::Turn { at, fate }));
            }
        }
        if !options.is_empty() {
            options.extend((0..state.late.len()).map(Step::Late));
        }
        options
    }

    async fn until_another_waits(&self) {
        let before = lock(&self.0).waiting.len();
        // A pause of the product's is shorter.
        for _ in 0..12_000 {
            sleep(Duration::from_millis(1)).await;
            if lock(&self.0).waiting.len() > before {
                return;
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Turn { at: usize, fate: Fate },
    Late(usize),
    Wait,
}

/// Losing a request that only looks is the same as its caller looking later.
fn changes(operation: &str) -> bool {
    !matches!(operation, "get" | "get properties" | "list" | "ensure container")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_of_choices_is_run_once() {
        let mut choices = Choices::default();
        let mut seen = std::collections::BTreeSet::new();
        loop {
            // The second choice is there only after the first option.
            let first = choices.choose(2);
            let run = if first == 0 { vec![first, choices.choose(3)] } else { vec![first] };
            assert!(seen.insert(run));
            if !choices.advance() {
                break;
            }
        }
        assert_eq!(seen.len(), 4);
    }
}
