//! A machine in small: words that agent and program share, disks, and writes that the kernel carries out step by step.
//!
//! The kernel may do any of its steps before each access of the agent to a shared word, each read of a block, each
//! question to the kernel. What is chosen is one run; a state that was reached before is not gone on from again.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeSet,
    fmt::Write as _,
    rc::Rc,
    time::Duration,
};

use lifeboat_agent::kernel::{
    Disk,
    layout::{
        CONTROL_EXTENTS, CONTROL_GENERATION, CONTROL_ISSUE_ONLY, CONTROL_WORDS, EXTENT_WORDS, EXTENTS,
        Layout, Set,
    },
};
use lifeboat_sim::exhaustive::Choices;
use tokio::time::Instant;

use crate::{
    Fault, Scenario,
    memory::{Memory, SharedWord},
    program::{Phase, Writing, code},
};

/// What is in memory of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Regions {
    pub(crate) summary: usize,
    pub(crate) extents: usize,
    pub(crate) control: usize,
    pub(crate) all: usize,
}

/// Where the marks of a block are: words of the sets, and its bit in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) disk: usize,
    pub(crate) block: u32,
    pub(crate) marks: [usize; 5],
    pub(crate) suspect: usize,
    pub(crate) bit: u64,
}

pub(crate) struct State {
    pub(crate) choices: Choices,
    pub(crate) visited: BTreeSet<u64>,
    pub(crate) scenario: Scenario,
    pub(crate) fault: Option<Fault>,
    pub(crate) layout: Layout,
    pub(crate) places: Vec<Place>,
    pub(crate) regions: Regions,
    pub(crate) words: Vec<u64>,
    pub(crate) touched: Vec<usize>,
    /// Of all words that are not zero.
    pub(crate) words_hash: u64,
    pub(crate) writes: Vec<Writing>,
    pub(crate) disk: Vec<u8>,
    pub(crate) vault: Vec<u8>,
    /// What each block may be said to hold at the last flip, a bit for each value.
    pub(crate) instant: Vec<u64>,
    pub(crate) missed: u64,
    pub(crate) clock: Duration,
    pub(crate) began: Instant,
    /// Everything that the agent has seen since it, or its round, began.
    pub(crate) seen: u64,
    pub(crate) last_number: u64,
    pub(crate) rounds_left: u32,
    pub(crate) crashes_left: u32,
    pub(crate) breaks_left: u32,
    /// The agent has crashed: what it does has no effect until it is started again.
    pub(crate) dead: bool,
    /// What comes was seen in another run.
    pub(crate) over: bool,
    /// No more choices: the kernel finishes what is under way.
    pub(crate) calm: bool,
    pub(crate) bad: Option<String>,
    pub(crate) told: Option<String>,
}

fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ mixed >> 32
}

impl State {
    pub(crate) fn new(scenario: Scenario, fault: Option<Fault>) -> Self {
        let disk = |(number, blocks): (usize, &u32)| Disk {
            name: format!("disk{number}"),
            id: format!("disk-{number}"),
            size_bytes: u64::from(*blocks) * 4096,
            device: 0,
            sequence: 0,
            bio_based: false,
        };
        let disks: Vec<Disk> = scenario.disks.iter().enumerate().map(disk).collect();
        let layout = Layout::new(&disks);
        let summary = layout.mark_words().unwrap() as usize;
        let extents = summary + layout.summary_words();
        let control = extents + EXTENT_WORDS;
        let place = |(disk, block): (usize, u32)| {
            let word = |set| layout.start(set, disk) + block as usize / 64;
            let marks = [Set::Issued(0), Set::Issued(1), Set::Completed(0), Set::Completed(1), Set::Held];
            Place { disk, block, marks: marks.map(word), suspect: word(Set::Suspect), bit: 1 << (block % 64) }
        };
        let places: Vec<Place> = scenario.places.iter().copied().map(place).collect();
        let regions = Regions { summary, extents, control, all: control + CONTROL_WORDS };
        let mut state = Self {
            choices: Choices::default(),
            visited: BTreeSet::new(),
            fault,
            layout,
            places,
            regions,
            words: vec![0; regions.all],
            touched: Vec::new(),
            words_hash: 0,
            writes: Vec::new(),
            disk: Vec::new(),
            vault: Vec::new(),
            instant: Vec::new(),
            missed: 0,
            clock: Duration::ZERO,
            began: Instant::now(),
            seen: 0,
            last_number: 0,
            rounds_left: 0,
            crashes_left: 0,
            breaks_left: 0,
            dead: false,
            over: false,
            calm: false,
            bad: None,
            told: None,
            scenario,
        };
        state.begin();
        state
    }

    /// A run begins: everything is as it was.
    pub(crate) fn begin(&mut self) {
        for at in self.touched.drain(..) {
            self.words[at] = 0;
        }
        self.words_hash = 0;
        let idle = Writing {
            phase: Phase::Waits,
            generation: 0,
            replaced: [0; 2],
            runs: 0,
            requeues: 0,
            begun: false,
            escaped: false,
        };
        self.writes = vec![idle; self.scenario.writes.len()];
        let places = self.places.len();
        (self.disk, self.vault, self.instant) = (vec![0; places], vec![0; places], vec![1; places]);
        (self.missed, self.clock, self.seen, self.last_number) = (0, Duration::ZERO, 0, 0);
        self.rounds_left = self.scenario.rounds;
        self.crashes_left = self.scenario.crashes;
        self.breaks_left = self.scenario.breaks;
        (self.dead, self.over, self.calm, self.bad) = (false, false, false, None);
        if self.scenario.issue_only {
            self.set(self.regions.control + CONTROL_ISSUE_ONLY, 1);
        }
    }

    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            let _ = writeln!(told, "  {}", what());
        }
    }

    pub(crate) fn set(&mut self, at: usize, value: u64) {
        let of = |value: u64| if value == 0 { 0 } else { mix(at as u64 + 1, value) };
        self.words_hash ^= of(self.words[at]) ^ of(value);
        self.words[at] = value;
        self.touched.push(at);
    }

    pub(crate) fn control(&self, index: usize) -> u64 {
        self.words[self.regions.control + index]
    }

    pub(crate) fn stopped(&self) -> bool {
        self.dead || self.over || self.bad.is_some()
    }

    /// The agent's own state is this and nothing else: what led to it does not matter any more.
    pub(crate) fn agent_is(&mut self, what: &str) {
        self.seen = what.bytes().fold(1, |hash, byte| mix(hash, u64::from(byte)));
    }

    pub(crate) fn saw(&mut self, value: u64) {
        self.seen = mix(self.seen, value);
    }

    /// Everything that decides what can come, but for the choices.
    pub(crate) fn key(&self, at: u64) -> u64 {
        let mut key = mix(self.words_hash, self.seen);
        for write in &self.writes {
            let phase = match write.phase {
                Phase::Waits => 0,
                Phase::Device(landed) => 1 + landed as u64,
                Phase::Landed => 100,
                Phase::Done => 101,
                Phase::Issue(step) => 200 + code(step),
                Phase::Complete(step) => 1_000_000 + code(step),
            };
            key = mix(key, phase);
            key = mix(key, write.generation as u64 | u64::from(write.requeues) << 8);
            let [first, second] = write.replaced.map(u64::from);
            key =
                mix(key, u64::from(write.begun) | u64::from(write.escaped) << 1 | first << 8 | second << 16);
        }
        for place in 0..self.disk.len() {
            key = mix(key, u64::from(self.disk[place]) | u64::from(self.vault[place]) << 8);
            key = mix(key, self.instant[place]);
        }
        key = mix(key, self.missed << 32 | self.last_number << 16 | u64::from(self.rounds_left));
        mix(key, self.clock.as_secs() << 16 | u64::from(self.crashes_left) << 8 | u64::from(self.breaks_left))
            ^ at
    }

    /// The kernel may do something, if that makes a difference to what the agent does next; perhaps the agent crashes.
    pub(crate) fn turn(&mut self, matters: bool, may_crash: bool) {
        while !self.stopped() && !self.calm {
            let steps = if matters { self.steps() } else { Vec::new() };
            let crash = may_crash && self.crashes_left > 0;
            if !crash && steps.is_empty() {
                return;
            }
            if self.seen_before(1) {
                return;
            }
            match self.choices.choose(1 + steps.len() + usize::from(crash)) {
                0 => return,
                chosen if chosen <= steps.len() => self.step(steps[chosen - 1]),
                _ => self.crash(),
            }
        }
    }

    /// The agent waits until these runs of the program have ended.
    pub(crate) fn wait_for(&mut self, running: &[(usize, u32)]) {
        let runs_still = |state: &Self| {
            running.iter().any(|(write, run)| {
                state.writes[*write].runs == *run
                    && matches!(state.writes[*write].phase, Phase::Issue(_) | Phase::Complete(_))
            })
        };
        while !self.stopped() && runs_still(self) {
            let steps = self.steps();
            if self.calm {
                self.step(steps[0]);
                continue;
            }
            if self.seen_before(2) {
                return;
            }
            let crash = self.crashes_left > 0;
            match self.choices.choose(steps.len() + usize::from(crash)) {
                chosen if chosen < steps.len() => self.step(steps[chosen]),
                _ => self.crash(),
            }
        }
    }

    /// One of so many.
    pub(crate) fn choose(&mut self, options: usize) -> usize {
        if self.stopped() || self.calm || options < 2 || self.seen_before(3) {
            return 0;
        }
        let chosen = self.choices.choose(options);
        self.saw(chosen as u64);
        chosen
    }

    pub(crate) fn seen_before(&mut self, at: u64) -> bool {
        self.over = self.choices.is_new() && !self.visited.insert(self.key(at));
        self.over
    }

    pub(crate) fn states(&self) -> usize {
        self.visited.len()
    }

    pub(crate) fn crash(&mut self) {
        self.tell(|| "the agent crashes".to_owned());
        self.crashes_left -= 1;
        self.dead = true;
    }

    /// May the program touch this word before the next flip? If not, it makes no difference whether the kernel's next
    /// steps come before the access or after it, and they come after it.
    pub(crate) fn may_still_touch(&self, at: usize) -> bool {
        let Some(generation) = self.generation_of(at) else { return false };
        let current = self.control(CONTROL_GENERATION) as usize & 1;
        let runs = |write: &Writing| {
            matches!(write.phase, Phase::Issue(_) | Phase::Complete(_)) && write.generation == generation
        };
        generation == current || self.fault == Some(Fault::GenerationReadOnce) || self.writes.iter().any(runs)
    }

    /// Which generation's marks the word is part of; `None`: the program does not change it.
    pub(crate) fn generation_of(&self, at: usize) -> Option<usize> {
        let Regions { summary, extents, control, .. } = self.regions;
        let of_word = |word: usize| {
            let set = word / self.layout.start(Set::Issued(1), 0);
            (set < 4).then_some(set % 2)
        };
        match at {
            _ if at < summary => of_word(at),
            _ if at < extents => of_word((at - summary) * 64),
            _ if at < control => Some((at - extents) / (EXTENTS * 2)),
            _ => at.checked_sub(control + CONTROL_EXTENTS).filter(|generation| *generation < 2),
        }
    }

    pub(crate) fn may_still_land(&self, place: usize) -> bool {
        let Place { disk, block, .. } = self.places[place];
        self.writes.iter().zip(&self.scenario.writes).any(|(writing, write)| {
            write.covers(disk, block) && !writing.has_landed((block - write.first) as usize)
        })
    }

    /// Nothing more is chosen: the kernel finishes what is under way.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        while let (Some(step), None) = (self.steps().first().copied(), &self.bad) {
            self.step(step);
        }
    }
}

/// The machine as the agent sees it.
#[derive(Clone)]
pub(crate) struct Machine(Rc<RefCell<State>>);

impl Machine {
    pub(crate) fn new(scenario: Scenario, fault: Option<Fault>) -> Self {
        Self(Rc::new(RefCell::new(State::new(scenario, fault))))
    }

    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    pub(crate) fn layout(&self) -> Layout {
        self.state().layout.clone()
    }

    pub(crate) fn memory(&self) -> Memory {
        let regions = self.state().regions;
        let word = |at| SharedWord { at, machine: self.clone() };
        Memory { regions, words: (0..regions.all).map(word).collect() }
    }

    /// The agent reads a block.
    pub(crate) fn read(&self, place: usize) -> u8 {
        let mut state = self.state();
        let matters = state.may_still_land(place);
        state.turn(matters, false);
        let value = if state.stopped() { 0 } else { state.disk[place] };
        state.saw(u64::from(value));
        state.tell(|| format!("the agent reads place {place}: {value}"));
        value
    }
}
