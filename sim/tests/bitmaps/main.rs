//! All orders around the dirty bitmaps: writes that are marked, land and are marked again, against flip, barrier, take,
//! read, judgement, acknowledgement, broken connections and crashes (level 1 of the ladder, docs/adr/0015).
//!
//! What the agent decides is the product's own code over memory of the test; the program in the kernel is a model. Each
//! way on from each state is taken once. A state is known by a hash of 64 bits: of a million states two are taken for one
//! with a chance of some 1 in 40 million.
//!
//! A program that marked the word before its bit in the summary would not be found here, since it would be harmless: a take
//! waits for all runs of the program that began before it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod agent;
mod machine;
mod memory;
mod program;
mod truth;

use machine::Machine;

/// Runs that a scenario must not exceed: a bound that grew by mistake is seen at once.
const MOST_RUNS: u64 = 500_000;

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The agent takes without waiting for runs of the program that began before the flip.
    NoBarrier,
    /// Nothing is marked at completion, and nobody says so.
    NoCompletionMark,
    /// The mark at completion goes to the generation of the mark at issue.
    GenerationReadOnce,
    /// A round counts as exact whatever was issued meanwhile.
    NeverDisturbed,
    /// It is asked before the read, and not after it, whether a block was issued again.
    JudgedBeforeRead,
    /// What is under way is not waited for: suspects are forgotten while they may still land.
    SuspectsForgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The program marks it.
    Seen,
    /// The kernel leaves the program out, and counts that.
    LeftOut,
    /// Nobody is told.
    Escapes,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Write {
    pub(crate) disk: usize,
    pub(crate) first: u32,
    pub(crate) blocks: u32,
    /// It is handed in when this one is over.
    pub(crate) after: Option<usize>,
    /// As one of more than 128 MiB: it goes to the table of extents.
    pub(crate) long: bool,
}

impl Write {
    pub(crate) fn covers(&self, disk: usize, block: u32) -> bool {
        self.disk == disk && (self.first..self.first + self.blocks).contains(&block)
    }
}

fn write(disk: usize, first: u32, blocks: u32) -> Write {
    Write { disk, first, blocks, after: None, long: false }
}

fn then(after: usize, write: Write) -> Write {
    Write { after: Some(after), ..write }
}

fn long(write: Write) -> Write {
    Write { long: true, ..write }
}

/// What happens, and how far the search goes.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// Blocks of each disk.
    pub(crate) disks: Vec<u32>,
    /// Blocks that are written: disk and block.
    pub(crate) places: Vec<(usize, u32)>,
    pub(crate) writes: Vec<Write>,
    pub(crate) endings: Vec<Ending>,
    pub(crate) issue_only: bool,
    pub(crate) rounds: u32,
    pub(crate) crashes: u32,
    /// Connections that break.
    pub(crate) breaks: u32,
    /// Times that the driver hands a request back.
    pub(crate) requeues: u32,
    /// More than two seconds may pass between two takes.
    pub(crate) time_passes: bool,
}

impl Scenario {
    fn of(writes: &[Write]) -> Self {
        let of = |write: &Write| (0..write.blocks).map(|block| (write.disk, write.first + block)).collect();
        let mut places: Vec<_> = writes.iter().flat_map(|write| -> Vec<_> { of(write) }).collect();
        places.sort_unstable();
        places.dedup();
        Self {
            places,
            disks: vec![130; 1 + writes.iter().map(|write| write.disk).max().unwrap_or(0)],
            writes: writes.to_vec(),
            endings: vec![Ending::Seen],
            issue_only: false,
            rounds: 2,
            crashes: 0,
            breaks: 0,
            requeues: 0,
            time_passes: false,
        }
    }

    pub(crate) fn place(&self, disk: usize, block: u32) -> usize {
        self.places.iter().position(|place| *place == (disk, block)).unwrap()
    }
}

/// Runs the scenario in every order; how many runs and states there were, or the first that breaks a promise.
fn every_order(scenario: &Scenario, fault: Option<Fault>) -> Result<(u64, usize), String> {
    let machine = Machine::new(scenario.clone(), fault);
    let memory = machine.memory();
    for runs in 1.. {
        assert!(runs <= MOST_RUNS, "more runs than were meant");
        machine.state().begin();
        agent::run(&machine, &memory);
        if machine.state().bad.is_some() {
            // Again, in words.
            machine.state().begin();
            machine.state().choices.rewind();
            machine.state().told = Some(String::new());
            agent::run(&machine, &memory);
            let mut state = machine.state();
            let told = state.told.take().unwrap_or_default();
            return Err(format!("{} (run {runs})\n{told}", state.bad.take().unwrap_or_default()));
        }
        if !machine.state().choices.advance() {
            return Ok((runs, machine.state().states()));
        }
    }
    Ok((0, 0))
}

fn holds(what: &str, scenario: &Scenario) {
    let (runs, states) = every_order(scenario, None).unwrap_or_else(|why| panic!("{what}: {why}"));
    println!("bitmaps: {what}: all orders keep the promises ({runs} runs, {states} states)");
}

#[test]
fn a_block_that_is_written_again_is_neither_lost_nor_called_exact_too_early() {
    let twice = [write(0, 0, 1), then(0, write(0, 0, 1))];
    holds("a block written twice", &Scenario { crashes: 1, breaks: 1, ..Scenario::of(&twice) });
    holds("for longer", &Scenario { rounds: 3, ..Scenario::of(&twice) });
}

#[test]
fn writes_side_by_side_in_one_word_lose_nothing() {
    let both = [write(0, 0, 1), write(0, 1, 1)];
    holds("two blocks of a word", &Scenario { crashes: 1, ..Scenario::of(&both) });
    holds(
        "two writes to a block",
        &Scenario { rounds: 1, breaks: 1, ..Scenario::of(&[write(0, 0, 1), write(0, 0, 1)]) },
    );
}

#[test]
fn a_write_that_depends_on_one_of_another_disk_is_never_found_without_it() {
    let pair = [write(0, 0, 1), then(0, write(1, 0, 1)), then(1, write(0, 0, 1))];
    holds("dependent writes on two disks", &Scenario { rounds: 2, ..Scenario::of(&pair) });
}

#[test]
fn a_write_over_two_words_and_a_request_that_is_handed_back_are_marked_whole() {
    let wide = [write(0, 63, 2)];
    holds("a write over two words", &Scenario { crashes: 1, breaks: 1, requeues: 1, ..Scenario::of(&wide) });
    let beside = [write(0, 63, 2), write(0, 64, 1)];
    holds("another one in its second word", &Scenario { rounds: 1, ..Scenario::of(&beside) });
}

#[test]
fn ranges_in_the_table_of_extents_lose_nothing() {
    let discard = [write(0, 0, 1), then(0, long(write(0, 0, 2)))];
    holds("a long discard", &Scenario { crashes: 1, ..Scenario::of(&discard) });
}

#[test]
fn completions_that_the_kernel_leaves_out_are_made_good() {
    let endings = vec![Ending::Seen, Ending::LeftOut];
    let scenario = Scenario { endings, time_passes: true, ..Scenario::of(&[write(0, 0, 1)]) };
    holds("completions left out", &Scenario { rounds: 3, crashes: 1, ..scenario.clone() });
    let two = Scenario::of(&[write(0, 0, 1), then(0, write(0, 1, 1))]);
    holds("of two writes", &Scenario { writes: two.writes, places: two.places, ..scenario });
}

#[test]
fn completions_that_escape_are_made_good() {
    let once = Scenario { crashes: 1, time_passes: true, rounds: 3, ..Scenario::of(&[write(0, 0, 1)]) };
    holds("not known before", &Scenario { endings: vec![Ending::Seen, Ending::Escapes], ..once.clone() });
    let known = Scenario { issue_only: true, endings: vec![Ending::Escapes], ..once };
    holds("issue-only", &Scenario { breaks: 1, ..known.clone() });
    let two = Scenario::of(&[write(0, 0, 1), then(0, write(0, 1, 1))]);
    let two = Scenario { writes: two.writes, places: two.places, time_passes: false, ..known };
    holds("issue-only, two writes", &two);
}

/// What is wrong on purpose is found: else the search would prove nothing.
#[test]
fn what_would_lose_a_write_is_found() {
    let twice = Scenario { rounds: 3, ..Scenario::of(&[write(0, 0, 1), then(0, write(0, 0, 1))]) };
    let pair = Scenario::of(&[write(0, 0, 1), then(0, write(1, 0, 1)), then(1, write(0, 0, 1))]);
    let escapes =
        Scenario { endings: vec![Ending::Escapes], issue_only: true, ..Scenario::of(&[write(0, 0, 1)]) };
    for (fault, scenario) in [
        (Fault::NoBarrier, &twice),
        (Fault::NoCompletionMark, &twice),
        (Fault::GenerationReadOnce, &twice),
        (Fault::NeverDisturbed, &pair),
        (Fault::JudgedBeforeRead, &pair),
        (Fault::SuspectsForgotten, &escapes),
    ] {
        let found = every_order(scenario, Some(fault));
        let why = found.err().unwrap_or_else(|| panic!("{fault:?} was not found: the search has gone blind"));
        println!("bitmaps: {fault:?} found: {}", why.lines().next().unwrap_or_default());
    }
}
