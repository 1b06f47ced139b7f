//! The agent: the product's own marks, round tracker and judgement; what is between them is `Session` in small
//! (agent/src/core/record.rs and session.rs: `flip_and_take`, `read`, `judge`, `end`, `settle`).

use lifeboat_agent::{
    core::{
        round::{Passes, Verdict},
        tracker::Tracker,
    },
    kernel::marks::Marks,
};
use lifeboat_replication::{blocks::BlockSet, ids::RecordNumber};

use crate::{Fault, machine::Machine, memory::Memory};

/// Blocks that are read before it is asked whether they were issued again.
const CHUNK: usize = 2;
/// Rounds within which everything must have come to rest when nothing is written any more.
const UNTIL_REST: u32 = 8;

/// How a session ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The connection broke, or the agent crashed.
    Broke,
    AtRest,
}

struct Agent<'a> {
    machine: Machine,
    memory: &'a Memory,
    marks: Marks,
}

/// From its first start to rest, with whatever is chosen in between.
pub(crate) fn run(machine: &Machine, memory: &Memory) {
    loop {
        machine.state().dead = false;
        machine.state().agent_is("started");
        let mut kernel = machine.clone();
        let Ok(mut marks) = Marks::open(machine.layout(), memory.maps(), &mut kernel) else { return };
        marks.resume(memory.maps());
        let mut agent = Agent { machine: machine.clone(), memory, marks };
        while !machine.state().stopped() {
            if agent.session() == End::AtRest {
                return;
            }
        }
        if !machine.state().dead {
            return;
        }
    }
}

impl Agent<'_> {
    fn take(&mut self) -> BlockSet {
        self.marks.take(self.memory.maps(), &mut self.machine).unwrap_or_default()
    }

    /// `begin`: what an earlier run flipped and did not take is taken; everything held is unsent.
    fn session(&mut self) -> End {
        self.take();
        let last = RecordNumber(self.machine.state().last_number);
        let mut tracker = Tracker::new(last, self.marks.held().clone(), BlockSet::default());
        let mut unheard = None;
        let mut quiet_rounds = 0;
        while !self.machine.state().stopped() {
            let local = format!("{:?} {tracker:?} {unheard:?}", self.marks);
            let mut state = self.machine.state();
            state.agent_is(&local);
            if state.rounds_left == 0 && !state.calm {
                state.calm_down();
            }
            state.rounds_left = state.rounds_left.saturating_sub(1);
            if state.calm {
                if quiet_rounds == UNTIL_REST {
                    return self.judge_rest(&tracker, &mut state);
                }
                quiet_rounds += 1;
            }
            drop(state);
            if !self.round(&mut tracker, &mut unheard) {
                return End::Broke;
            }
        }
        End::Broke
    }

    fn judge_rest(&self, tracker: &Tracker, state: &mut crate::machine::State) -> End {
        if state.bad.is_none() && state.vault != state.disk {
            let (vault, disk) = (&state.vault, &state.disk);
            state.bad = Some(format!("at rest the vault has {vault:?} and the disks {disk:?}"));
        } else if state.bad.is_none() && (!tracker.is_clean() || self.marks.suspects() > 0) {
            state.bad = Some("it does not come to rest".to_owned());
        }
        End::AtRest
    }

    /// One record; false: the connection broke.
    fn round(&mut self, tracker: &mut Tracker, unheard: &mut Option<RecordNumber>) -> bool {
        self.flip_and_take(tracker);
        let mut passes = Passes::default();
        let number = tracker.begin();
        let mut content = Vec::new();
        let exact = loop {
            let rest = tracker.sendable();
            let disturbed = self.read(&rest, tracker, &mut content);
            if self.machine.state().stopped() {
                return false;
            }
            match passes.finished(rest.len(), disturbed) {
                Verdict::Exact => break true,
                Verdict::GiveUp => break false,
                Verdict::Again => self.flip_and_take(tracker),
            }
        };
        tracker.end();
        // What was not heard of until now is.
        if let Some(earlier) = unheard.take() {
            self.durable(tracker, earlier);
        }
        let breaks = self.machine.state().breaks_left > 0;
        let fate = self.machine.state().choose(if breaks { 4 } else { 2 });
        self.machine.state().tell(|| format!("record {number} ends, fate {fate}"));
        if fate >= 2 {
            self.machine.state().breaks_left -= 1;
        }
        if fate != 3 {
            self.machine.state().commit(&content, exact);
        }
        match fate {
            0 => self.durable(tracker, number),
            1 => *unheard = Some(number),
            _ => return false,
        }
        true
    }

    fn flip_and_take(&mut self, tracker: &mut Tracker) {
        let _ = self.marks.flip(self.memory.maps(), &mut self.machine, || ());
        let taken = self.take();
        self.machine.state().tell(|| format!("the agent takes {taken:?}"));
        tracker.took(&taken);
    }

    /// Reads blocks of the pass, and asks after each chunk whether one was issued again. True: one was.
    fn read(&mut self, rest: &BlockSet, tracker: &mut Tracker, content: &mut Vec<(usize, u8)>) -> bool {
        let fault = self.machine.state().fault;
        let mut disturbed = false;
        let runs: Vec<_> = rest.runs(1).collect();
        for chunk in runs.chunks(CHUNK) {
            let mut blocks = BlockSet::default();
            chunk.iter().for_each(|run| blocks.insert_run(*run));
            let early = fault == Some(Fault::JudgedBeforeRead) && self.issued(&blocks);
            for run in chunk {
                let place = self.machine.state().scenario.place(run.disk.0 as usize - 1, run.first);
                content.push((place, self.machine.read(place)));
            }
            tracker.read(&blocks, blocks.bytes(), false);
            disturbed |= match fault {
                Some(Fault::JudgedBeforeRead) => early,
                Some(Fault::NeverDisturbed) => false,
                _ => self.issued(&blocks),
            };
        }
        disturbed
    }

    fn issued(&mut self, blocks: &BlockSet) -> bool {
        let issued = self.marks.issued_now(self.memory.maps(), &mut self.machine, blocks);
        issued.is_ok_and(|issued| !issued.is_empty())
    }

    /// `settle`.
    fn durable(&mut self, tracker: &mut Tracker, number: RecordNumber) {
        if self.machine.state().stopped() {
            return;
        }
        if let Ok(settled) = tracker.durable(number) {
            self.marks.forget(self.memory.maps(), &settled.forget);
        }
    }
}
