//! A machine in small: words that agent and program share, disks, and writes that the kernel carries out step by step.
//!
//! The kernel's side is a model: the few steps of `agent/bpf/tracker.bpf.c` (the comments name its functions), and what
//! a disk does. It may do any of them before each access of the agent to a shared word, each read of a block, each
//! question to the kernel. What is chosen is one run; a state that was reached before is not gone on from again.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeSet,
    fmt::Write as _,
    rc::Rc,
    time::Duration,
};

use lifeboat_agent::{
    edge::TrackError,
    kernel::{
        Disk,
        layout::{
            CONTROL_COMPLETE_MISSES, CONTROL_EXTENTS, CONTROL_GENERATION, CONTROL_ISSUE_ONLY, CONTROL_WORDS,
            EXTENT_COMPLETED, EXTENT_VALID, EXTENT_WORDS, EXTENTS, Layout, Set,
        },
        words::{Kernel, Maps, Word},
    },
};
use lifeboat_sim::exhaustive::Choices;
use tokio::time::Instant;

use crate::{Ending, Fault, Scenario, Write};

/// What is in memory of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Regions {
    summary: usize,
    extents: usize,
    control: usize,
    all: usize,
}

/// A run of the program for one write (`mark` in tracker.bpf.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
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
enum Phase {
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
struct Writing {
    phase: Phase,
    generation: usize,
    /// What each of its blocks held when it landed there.
    replaced: [u8; 2],
    /// Runs of the program that have begun.
    runs: u32,
    requeues: u32,
    begun: bool,
    escaped: bool,
}

impl Writing {
    fn has_landed(&self, block: usize) -> bool {
        match self.phase {
            Phase::Waits | Phase::Issue(_) => false,
            Phase::Device(landed) => block < landed,
            Phase::Landed | Phase::Complete(_) | Phase::Done => true,
        }
    }
}

/// Where the marks of a block are: words of the sets, and its bit in them.
#[derive(Debug, Clone, Copy)]
struct Place {
    disk: usize,
    block: u32,
    marks: [usize; 5],
    suspect: usize,
    bit: u64,
}

pub(crate) struct State {
    pub(crate) choices: Choices,
    visited: BTreeSet<u64>,
    pub(crate) scenario: Scenario,
    pub(crate) fault: Option<Fault>,
    layout: Layout,
    places: Vec<Place>,
    regions: Regions,
    words: Vec<u64>,
    touched: Vec<usize>,
    /// Of all words that are not zero.
    words_hash: u64,
    writes: Vec<Writing>,
    pub(crate) disk: Vec<u8>,
    pub(crate) vault: Vec<u8>,
    /// What each block may be said to hold at the last flip, a bit for each value.
    instant: Vec<u64>,
    missed: u64,
    clock: Duration,
    began: Instant,
    /// Everything that the agent has seen since it, or its round, began.
    seen: u64,
    pub(crate) last_number: u64,
    pub(crate) rounds_left: u32,
    crashes_left: u32,
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
    fn new(scenario: Scenario, fault: Option<Fault>) -> Self {
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

    fn set(&mut self, at: usize, value: u64) {
        let of = |value: u64| if value == 0 { 0 } else { mix(at as u64 + 1, value) };
        self.words_hash ^= of(self.words[at]) ^ of(value);
        self.words[at] = value;
        self.touched.push(at);
    }

    fn control(&self, index: usize) -> u64 {
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
    fn key(&self, at: u64) -> u64 {
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
    fn turn(&mut self, matters: bool, may_crash: bool) {
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
    fn wait_for(&mut self, running: &[(usize, u32)]) {
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

    fn seen_before(&mut self, at: u64) -> bool {
        self.over = self.choices.is_new() && !self.visited.insert(self.key(at));
        self.over
    }

    pub(crate) fn states(&self) -> usize {
        self.visited.len()
    }

    fn crash(&mut self) {
        self.tell(|| "the agent crashes".to_owned());
        self.crashes_left -= 1;
        self.dead = true;
    }

    /// May the program touch this word before the next flip? If not, it makes no difference whether the kernel's next
    /// steps come before the access or after it, and they come after it.
    fn may_still_touch(&self, at: usize) -> bool {
        let Some(generation) = self.generation_of(at) else { return false };
        let current = self.control(CONTROL_GENERATION) as usize & 1;
        let runs = |write: &Writing| {
            matches!(write.phase, Phase::Issue(_) | Phase::Complete(_)) && write.generation == generation
        };
        generation == current || self.fault == Some(Fault::GenerationReadOnce) || self.writes.iter().any(runs)
    }

    /// Which generation's marks the word is part of; `None`: the program does not change it.
    fn generation_of(&self, at: usize) -> Option<usize> {
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

    fn may_still_land(&self, place: usize) -> bool {
        let Place { disk, block, .. } = self.places[place];
        self.writes.iter().zip(&self.scenario.writes).any(|(writing, write)| {
            write.covers(disk, block) && !writing.has_landed((block - write.first) as usize)
        })
    }

    /// What the kernel can do: of each write, in one of these ways.
    fn steps(&self) -> Vec<(usize, usize)> {
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

    fn step(&mut self, (number, way): (usize, usize)) {
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

    fn tell_step(&mut self, number: usize, way: usize) {
        let phase = self.writes[number].phase;
        self.tell(|| format!("write {number}: {phase:?} goes on (way {way})"));
    }

    fn starts(&mut self, number: usize) -> Step {
        self.writes[number].runs += 1;
        // With nothing between: who has begun and not read it may as well not have begun.
        let (generation, kept) =
            (self.control(CONTROL_GENERATION) as usize & 1, self.writes[number].generation);
        let again = self.fault == Some(Fault::GenerationReadOnce) && self.writes[number].runs > 1;
        self.writes[number].generation = if again { kept } else { generation };
        Step::Generation
    }

    /// `mark`: one step of it; `None`: it returns.
    fn program(&mut self, number: usize, completed: bool, step: Step) -> Option<Step> {
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

    /// The disks at this instant: a write under way may be found old or new, landed or not.
    fn remember_instant(&mut self) {
        self.instant = self.disk.iter().map(|value| 1 << value).collect();
        for (number, (writing, write)) in self.writes.iter().zip(&self.scenario.writes).enumerate() {
            if writing.begun && writing.phase != Phase::Done {
                for block in 0..write.blocks {
                    let place = self.scenario.place(write.disk, write.first + block);
                    self.instant[place] |= 1 << (number + 1);
                    if writing.has_landed(block as usize) {
                        self.instant[place] |= 1 << writing.replaced[block as usize];
                    }
                }
            }
        }
    }

    /// A block that differs from the vault is marked, held, or being written.
    fn check(&mut self) {
        if self.bad.is_some() {
            return;
        }
        for (at, place) in self.places.iter().enumerate() {
            if self.disk[at] != self.vault[at] && !self.is_dirty(*place) {
                let Place { disk, block, .. } = *place;
                let (found, has) = (self.disk[at], self.vault[at]);
                self.bad = Some(format!(
                    "block {block} of disk {disk} counts as clean: it holds {found}, the vault {has}"
                ));
                return;
            }
        }
    }

    fn is_dirty(&self, place: Place) -> bool {
        let is_marked = |word: usize| self.words[word] & place.bit != 0;
        // The agent knows that completions were left out, and what was under way: it is read again.
        let known = self.missed > self.control(CONTROL_COMPLETE_MISSES) && is_marked(place.suspect);
        let being_written = self.writes.iter().zip(&self.scenario.writes).any(|(writing, write)| {
            let under_way = writing.begun && writing.phase != Phase::Done;
            // Until they are found out, completions that escape are what the tracker cannot know of.
            let escaped = writing.escaped && !self.scenario.issue_only;
            (under_way || escaped) && write.covers(place.disk, place.block)
        });
        known || being_written || place.marks.into_iter().any(is_marked) || self.is_in_extents(place)
    }

    fn is_in_extents(&self, place: Place) -> bool {
        (0..2).any(|generation| {
            let begins = self.regions.extents + generation * EXTENTS * 2;
            let used = self.control(CONTROL_EXTENTS + generation) as usize;
            self.words[begins..begins + used * 2].chunks_exact(2).any(|entry| {
                let (first, blocks) = (entry[0] as u32, (entry[0] >> 32) as u32);
                entry[1] & EXTENT_VALID != 0
                    && entry[1] as u32 as usize == place.disk
                    && (first..first + blocks).contains(&place.block)
            })
        })
    }

    /// What a record carries has reached the vault.
    pub(crate) fn commit(&mut self, content: &[(usize, u8)], exact: bool) {
        if self.stopped() {
            return;
        }
        self.last_number += 1;
        content.iter().for_each(|(place, value)| self.vault[*place] = *value);
        let number = self.last_number;
        self.tell(|| format!("record {number} is in the vault, exact: {exact}, {content:?}"));
        // An exact record of a time in which completions escaped unnoticed promises too much.
        let trusted = self.scenario.issue_only || !self.writes.iter().any(|write| write.escaped);
        let wrong = (0..self.vault.len()).find(|place| self.instant[*place] >> self.vault[*place] & 1 == 0);
        if let (true, true, Some(place)) = (exact, trusted, wrong) {
            let Place { disk, block, .. } = self.places[place];
            let has = self.vault[place];
            self.bad = Some(format!(
                "record {number} is called exact: block {block} of disk {disk} is {has}, which it was not at T0"
            ));
        }
        self.check();
    }

    /// Nothing more is chosen: the kernel finishes what is under way.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        while let (Some(step), None) = (self.steps().first().copied(), &self.bad) {
            self.step(step);
        }
    }
}

fn code(step: Step) -> u64 {
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
fn words_of(write: Write) -> Vec<(usize, u64)> {
    let (first, last) = (write.first, write.first + write.blocks - 1);
    let bits = |word: u32| {
        let of = |block: u32| (block / 64 == word).then(|| 1_u64 << (block % 64));
        (first..=last).filter_map(of).fold(0, |bits, bit| bits | bit)
    };
    (first / 64..=last / 64).rev().map(|word| (word as usize, bits(word))).collect()
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

pub(crate) struct Memory {
    regions: Regions,
    words: Vec<SharedWord>,
}

impl Memory {
    pub(crate) fn maps(&self) -> Maps<'_, SharedWord> {
        let Regions { summary, extents, control, .. } = self.regions;
        Maps {
            marks: &self.words[..summary],
            summary: &self.words[summary..extents],
            extents: &self.words[extents..control],
            control: &self.words[control..],
        }
    }
}

/// A word of the maps, as the agent has it.
pub(crate) struct SharedWord {
    at: usize,
    machine: Machine,
}

impl SharedWord {
    fn change(&self, to: impl Fn(u64) -> u64) -> u64 {
        let mut state = self.machine.state();
        let changes = |state: &State| to(state.words[self.at]) != state.words[self.at];
        // A crash before or after an access that changes nothing is the same.
        let crash = changes(&state);
        let matters = self.at == state.regions.control + CONTROL_GENERATION || state.may_still_touch(self.at);
        state.turn(matters, crash);
        if state.stopped() {
            return 0;
        }
        let before = state.words[self.at];
        state.set(self.at, to(before));
        if self.at == state.regions.control + CONTROL_GENERATION {
            state.remember_instant();
            state.tell(|| "the agent flips".to_owned());
        }
        state.saw(before);
        state.check();
        before
    }
}

impl Word for SharedWord {
    fn get(&self) -> u64 {
        let mut state = self.machine.state();
        let matters = state.may_still_touch(self.at);
        state.turn(matters, false);
        let value = if state.stopped() { 0 } else { state.words[self.at] };
        state.saw(value);
        value
    }

    fn put(&self, value: u64) {
        self.change(|_| value);
    }

    fn or(&self, bits: u64) -> u64 {
        self.change(|before| before | bits)
    }

    fn and(&self, bits: u64) -> u64 {
        self.change(|before| before & bits)
    }

    fn add(&self, value: u64) -> u64 {
        self.change(|before| before.wrapping_add(value))
    }
}

impl Kernel for Machine {
    fn barrier(&mut self) -> Result<(), TrackError> {
        let mut state = self.state();
        if state.fault == Some(Fault::NoBarrier) {
            return Ok(());
        }
        let running = |(number, write): (usize, &Writing)| match write.phase {
            Phase::Issue(_) | Phase::Complete(_) => Some((number, write.runs)),
            _ => None,
        };
        let running: Vec<_> = state.writes.iter().enumerate().filter_map(running).collect();
        state.wait_for(&running);
        Ok(())
    }

    fn is_quiet(&mut self) -> bool {
        let mut state = self.state();
        state.turn(true, false);
        let counted = state.writes.iter().any(|write| matches!(write.phase, Phase::Device(_)));
        let quiet = !counted || state.fault == Some(Fault::SuspectsForgotten);
        state.saw(u64::from(quiet));
        quiet
    }

    fn missed_issues(&mut self) -> Result<u64, TrackError> {
        Ok(0)
    }

    fn missed_completions(&mut self) -> Result<u64, TrackError> {
        let mut state = self.state();
        let matters = state.scenario.endings.contains(&Ending::LeftOut);
        state.turn(matters, false);
        let missed = state.missed;
        state.saw(missed);
        Ok(missed)
    }

    /// Time passes while nothing is between the device's answer and the run of the program for it.
    fn now(&mut self) -> Instant {
        let mut state = self.state();
        let matters = state.scenario.time_passes;
        state.turn(matters, false);
        let held_up = |write: &Writing| matches!(write.phase, Phase::Landed | Phase::Complete(_));
        let passes = state.scenario.time_passes && !state.writes.iter().any(held_up);
        if state.calm || (passes && state.choose(2) == 1) {
            state.clock += Duration::from_secs(3);
        }
        let now = state.began + state.clock;
        let clock = state.clock.as_secs();
        state.saw(clock);
        now
    }
}
