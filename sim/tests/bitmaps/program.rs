//! The kernel's side, step by step: the program of `agent/bpf/tracker.bpf.c` (the comments name its functions), and what a
//! disk does with a write.

use lifeboat_agent::kernel::layout::{
    CONTROL_EXTENTS, CONTROL_GENERATION, EXTENT_COMPLETED, EXTENT_VALID, EXTENTS, Set,
};

use crate::{Ending, Fault, Write, machine::State};

/// A run of the program for one write (`mark` in tracker.bpf.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// `current = bpf_map_lookup_elem(&CONTROL, GENERATION)`
    Generation,
    /// `mark_word`: `now = *word`, of this part of the write's words.
    Look(usize),
    /// `__sync_fetch_and_or(summary, …)`
    Summary(usize),
    /// `__sync_fetch_and_or(word, bits)`
    Mark(usize),
    /// `mark_extent`: `entry = __sync_fetch_and_add(used, 1)`
    Entry,
    /// `__sync_fetch_and_or(place, …)`
    Place(u64),
    /// `__sync_fetch_and_or(owner, …)`
    Owner(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not handed in yet, or handed back by the driver (`block_rq_requeue`).
    Waits,
    /// `issue` runs.
    Issue(Step),
    /// The kernel counts it as under way; so many of its blocks have landed.
    Device(usize),
    /// All have landed and it is not counted any more; nobody has been told.
    Landed,
    /// `complete` runs.
    Complete(Step),
    /// The writer knows.
    Done,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing {
    pub(crate) phase: Phase,
    pub(crate) generation: usize,
    /// What each of its blocks held when it landed there.
    pub(crate) replaced: [u8; 2],
    /// Runs of the program that have begun.
    pub(crate) runs: u32,
    pub(crate) requeues: u32,
    pub(crate) begun: bool,
    pub(crate) escaped: bool,
}

impl Writing {
    pub(crate) fn has_landed(&self, block: usize) -> bool {
        match self.phase {
            Phase::Waits | Phase::Issue(_) => false,
            Phase::Device(landed) => block < landed,
            Phase::Landed | Phase::Complete(_) | Phase::Done => true,
        }
    }
}

impl State {
    /// What the kernel can do: of each write, in one of these ways.
    pub(crate) fn steps(&self) -> Vec<(usize, usize)> {
        let mut steps = Vec::new();
        for (number, write) in self.writes.iter().enumerate() {
            let ways = match write.phase {
                Phase::Done => 0,
                Phase::Waits => {
                    let after = self.scenario.writes[number].after;
                    usize::from(after.is_none_or(|after| self.writes[after].phase == Phase::Done))
                }
                Phase::Device(0) if write.requeues < self.scenario.requeues => 2,
                Phase::Landed => self.scenario.endings.len(),
                _ => 1,
            };
            steps.extend((0..ways).map(|way| (number, way)));
        }
        steps
    }

    pub(crate) fn step(&mut self, (number, way): (usize, usize)) {
        let write = self.scenario.writes[number];
        self.tell_step(number, way);
        let next = match self.writes[number].phase {
            Phase::Waits => {
                self.writes[number].begun = true;
                Phase::Issue(self.starts(number))
            }
            Phase::Issue(step) => self.program(number, false, step).map_or(Phase::Device(0), Phase::Issue),
            Phase::Device(_) if way == 1 => {
                self.writes[number].requeues += 1;
                Phase::Waits
            }
            Phase::Device(landed) => {
                let place = self.scenario.place(write.disk, write.first + landed as u32);
                self.writes[number].replaced[landed] =
                    std::mem::replace(&mut self.disk[place], number as u8 + 1);
                if landed + 1 < write.blocks as usize { Phase::Device(landed + 1) } else { Phase::Landed }
            }
            Phase::Landed => match self.scenario.endings[way] {
                _ if self.fault == Some(Fault::NoCompletionMark) => Phase::Done,
                Ending::Seen => Phase::Complete(self.starts(number)),
                Ending::LeftOut => {
                    self.missed += 1;
                    Phase::Done
                }
                Ending::Escapes => {
                    self.writes[number].escaped = true;
                    Phase::Done
                }
            },
            Phase::Complete(step) => self.program(number, true, step).map_or(Phase::Done, Phase::Complete),
            Phase::Done => Phase::Done,
        };
        self.writes[number].phase = next;
        self.check();
    }

    pub(crate) fn tell_step(&mut self, number: usize, way: usize) {
        let phase = self.writes[number].phase;
        self.tell(|| format!("write {number}: {phase:?} goes on (way {way})"));
    }

    pub(crate) fn starts(&mut self, number: usize) -> Step {
        self.writes[number].runs += 1;
        // With nothing between: who has begun and not read it may as well not have begun.
        let (generation, kept) =
            (self.control(CONTROL_GENERATION) as usize & 1, self.writes[number].generation);
        let again = self.fault == Some(Fault::GenerationReadOnce) && self.writes[number].runs > 1;
        self.writes[number].generation = if again { kept } else { generation };
        Step::Generation
    }

    /// `mark`: one step of it; `None`: it returns.
    pub(crate) fn program(&mut self, number: usize, completed: bool, step: Step) -> Option<Step> {
        let write = self.scenario.writes[number];
        let generation = self.writes[number].generation;
        let set = if completed { Set::Completed(generation) } else { Set::Issued(generation) };
        let parts = words_of(write);
        let word = |state: &Self, part: usize| state.layout.start(set, write.disk) + parts[part].0;
        let after = |part: usize| (part + 1 < parts.len()).then_some(Step::Look(part + 1));
        let (extents, control) = (self.regions.extents, self.regions.control);
        match step {
            Step::Generation if write.long => Some(Step::Entry),
            Step::Generation => Some(Step::Look(0)),
            Step::Look(part) => match self.words[word(self, part)] {
                now if now & parts[part].1 == parts[part].1 => after(part),
                0 => Some(Step::Summary(part)),
                _ => Some(Step::Mark(part)),
            },
            Step::Summary(part) => {
                let word = word(self, part);
                let at = self.regions.summary + word / 64;
                self.set(at, self.words[at] | 1 << (word % 64));
                Some(Step::Mark(part))
            }
            Step::Mark(part) => {
                let at = word(self, part);
                self.set(at, self.words[at] | parts[part].1);
                after(part)
            }
            Step::Entry => {
                let used = control + CONTROL_EXTENTS + generation;
                let entry = self.words[used];
                self.set(used, entry + 1);
                Some(Step::Place((generation * EXTENTS) as u64 + entry))
            }
            Step::Place(entry) => {
                let at = extents + entry as usize * 2;
                self.set(at, self.words[at] | u64::from(write.first) | u64::from(write.blocks) << 32);
                Some(Step::Owner(entry))
            }
            Step::Owner(entry) => {
                let at = extents + entry as usize * 2 + 1;
                let kind = if completed { EXTENT_COMPLETED } else { 0 };
                self.set(at, self.words[at] | EXTENT_VALID | kind | write.disk as u64);
                None
            }
        }
    }
}

pub(crate) fn code(step: Step) -> u64 {
    match step {
        Step::Generation => 0,
        Step::Look(part) => 10 + part as u64,
        Step::Summary(part) => 20 + part as u64,
        Step::Mark(part) => 30 + part as u64,
        Step::Entry => 50,
        Step::Place(entry) => 1_000 + entry,
        Step::Owner(entry) => 10_000 + entry,
    }
}

/// Words of the write and its bits in them, in the order of `mark`: the last word first.
pub(crate) fn words_of(write: Write) -> Vec<(usize, u64)> {
    let (first, last) = (write.first, write.first + write.blocks - 1);
    let bits = |word: u32| {
        let of = |block: u32| (block / 64 == word).then(|| 1_u64 << (block % 64));
        (first..=last).filter_map(of).fold(0, |bits, bit| bits | bit)
    };
    (first / 64..=last / 64).rev().map(|word| (word as usize, bits(word))).collect()
}
