//! The tracker against a plain truth: versions of blocks on a disk, in records and in the vault.

use std::collections::VecDeque;

use lifeboat_replication::{
    blocks::{BlockRun, BlockSet},
    ids::{DiskSlot, RecordNumber},
};
use proptest::prelude::*;

use super::{NeverSent, Tracker};

const BLOCKS: usize = 6;

fn set(blocks: &[u32]) -> BlockSet {
    let mut set = BlockSet::default();
    for block in blocks {
        set.insert_run(BlockRun { disk: DiskSlot(1), first: *block, blocks: 1 });
    }
    set
}

#[test]
fn a_block_taken_again_in_flight_is_forgotten_only_with_the_later_record() {
    let mut tracker = Tracker::new(RecordNumber(7), set(&[1, 2]), BlockSet::default());
    assert_eq!(tracker.begin(), RecordNumber(8));
    tracker.read(&set(&[1, 2]), 0, false);
    tracker.end();
    tracker.took(&set(&[2]));
    tracker.begin();
    tracker.read(&set(&[2]), 0, false);
    tracker.end();
    assert_eq!(tracker.durable(RecordNumber(8)).unwrap().forget, set(&[1]));
    assert_eq!(tracker.durable(RecordNumber(9)).unwrap().forget, set(&[2]));
    assert!(tracker.is_clean());
}

#[test]
fn rounds_leave_to_the_copy_what_it_will_read_later() {
    let mut tracker = Tracker::new(RecordNumber(0), set(&[1, 2]), set(&[2, 3]));
    assert_eq!(tracker.sendable(), set(&[1]));
    tracker.begin();
    tracker.read(&set(&[2]), 0, true);
    tracker.end();
    tracker.took(&set(&[2]));
    assert_eq!(tracker.sendable(), set(&[1, 2]), "written since its copy was read");
}

#[test]
fn a_block_that_is_the_same_needs_no_copy_but_what_was_written_since_is_sent() {
    let mut tracker = Tracker::new(RecordNumber(0), set(&[2]), set(&[1, 2]));
    assert!(tracker.sendable().is_empty());
    tracker.proven(&set(&[1, 2]));
    assert!(tracker.complete());
    assert_eq!(tracker.sendable(), set(&[2]));
}

#[test]
fn refuses_an_acknowledgement_of_a_record_that_is_not_ended() {
    let mut tracker = Tracker::new(RecordNumber(4), set(&[1]), BlockSet::default());
    tracker.begin();
    let refused = tracker.durable(RecordNumber(5)).unwrap_err();
    assert_eq!(refused, NeverSent { number: RecordNumber(5), sent: RecordNumber(4) });
}

/// What the agent reports, and what bounds the memory of a session.
#[test]
fn what_is_in_flight_dirty_and_left_to_copy_is_counted_until_it_is_durable() {
    let disk = DiskSlot(1);
    let mut tracker = Tracker::new(RecordNumber(0), set(&[1, 2, 3]), set(&[4, 5, 6, 7]));
    let counts = |tracker: &Tracker| {
        let flight = (tracker.records_in_flight(), tracker.bytes_in_flight());
        (flight, tracker.dirty(disk), tracker.copy_left(disk), tracker.complete())
    };
    assert_eq!(counts(&tracker), ((0, 0), 3, 4, false));
    tracker.begin();
    tracker.read(&set(&[1]), 100, false);
    tracker.read(&set(&[2]), 20, false);
    assert_eq!(counts(&tracker), ((0, 0), 3, 4, false), "under way");
    assert!(!tracker.is_clean());
    tracker.begin();
    tracker.read(&set(&[4, 5]), 7, true);
    tracker.end();
    assert_eq!(counts(&tracker), ((2, 127), 3, 4, false), "sent");
    tracker.begin();
    tracker.read(&set(&[6, 7]), 3, true);
    assert_eq!(counts(&tracker), ((2, 127), 3, 4, true), "read is what the record under way will hold");
    assert_eq!(tracker.durable(RecordNumber(1)).unwrap().forget, set(&[1, 2]));
    assert_eq!(counts(&tracker), ((1, 7), 1, 4, true));
    let settled = tracker.durable(RecordNumber(2)).unwrap();
    assert_eq!((settled.forget, settled.copied), (set(&[4, 5]), set(&[4, 5])));
    assert_eq!(counts(&tracker), ((0, 0), 1, 2, true));
    assert_eq!(tracker.copy_left(DiskSlot(2)) + tracker.dirty(DiskSlot(2)), 0);
    tracker.took(&set(&[3]));
    tracker.end();
    tracker.durable(RecordNumber(3)).unwrap();
    assert_eq!(counts(&tracker), ((0, 0), 1, 0, true));
    assert!(!tracker.is_clean());
    tracker.begin();
    tracker.read(&set(&[3]), 1, false);
    assert!(!tracker.is_clean(), "under way");
    tracker.end();
    assert!(!tracker.is_clean(), "in flight");
    tracker.durable(RecordNumber(4)).unwrap();
    assert!(tracker.is_clean());
}

/// A copy alone, and a record without blocks, keep a session from being clean as well.
#[test]
fn each_kind_of_work_left_keeps_a_session_from_being_clean() {
    let none = BlockSet::default;
    assert!(Tracker::new(RecordNumber(0), none(), none()).is_clean());
    assert!(!Tracker::new(RecordNumber(0), set(&[1]), none()).is_clean());
    assert!(!Tracker::new(RecordNumber(0), none(), set(&[1])).is_clean());
    let mut tracker = Tracker::new(RecordNumber(0), none(), none());
    tracker.begin();
    assert!(!tracker.is_clean());
    tracker.end();
    assert!(!tracker.is_clean());
    assert_eq!(
        tracker.durable(RecordNumber(2)),
        Err(NeverSent { number: RecordNumber(2), sent: RecordNumber(1) })
    );
    tracker.durable(RecordNumber(1)).unwrap();
    assert!(tracker.is_clean());
}

#[derive(Debug, Clone)]
enum Step {
    Write(u32),
    Take,
    BeginRound,
    BeginCopy,
    Read(u32),
    End,
    Commit,
    Answer,
    Break,
    LoseTracking,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = 0..BLOCKS as u32;
    let step = prop_oneof![
        4 => block.clone().prop_map(Step::Write),
        2 => Just(Step::Take),
        2 => Just(Step::BeginRound),
        2 => Just(Step::BeginCopy),
        4 => block.prop_map(Step::Read),
        2 => Just(Step::End),
        2 => Just(Step::Commit),
        2 => Just(Step::Answer),
        1 => Just(Step::Break),
        1 => Just(Step::LoseTracking),
    ];
    prop::collection::vec(step, 1..120)
}

struct Record {
    number: RecordNumber,
    content: Vec<(u32, u64)>,
    complete: bool,
}

/// What stands outside of the tracker: disk, marks, wire, vault.
struct World {
    disk: [u64; BLOCKS],
    marked: BlockSet,
    held: BlockSet,
    to_copy: BlockSet,
    vault: [u64; BLOCKS],
    committed: RecordNumber,
    wire: VecDeque<Record>,
    tracker: Tracker,
    building: Option<(Record, bool)>,
}

impl World {
    fn new() -> Self {
        let all = set(&(0..BLOCKS as u32).collect::<Vec<_>>());
        Self {
            disk: [1; BLOCKS],
            marked: BlockSet::default(),
            held: BlockSet::default(),
            to_copy: all.clone(),
            vault: [0; BLOCKS],
            committed: RecordNumber(0),
            wire: VecDeque::new(),
            tracker: Tracker::new(RecordNumber(0), BlockSet::default(), all),
            building: None,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Write(block) => {
                self.disk[block as usize] += 1;
                self.marked.union(&set(&[block]));
            }
            Step::Take => {
                let taken = std::mem::take(&mut self.marked);
                self.held.union(&taken);
                self.tracker.took(&taken);
            }
            Step::BeginRound => self.begin(false),
            Step::BeginCopy => self.begin(true),
            Step::Read(block) => self.read(block),
            Step::End => self.end(),
            Step::Commit => {
                if let Some(record) = self.wire.pop_front() {
                    for (block, version) in record.content {
                        self.vault[block as usize] = version;
                    }
                    self.committed = record.number;
                    if record.complete {
                        assert!(
                            self.vault.iter().all(|version| *version > 0),
                            "complete, but a block is missing"
                        );
                    }
                }
            }
            Step::Answer => {
                let settled = self.tracker.durable(self.committed).unwrap();
                self.held.subtract(&settled.forget);
                self.to_copy.subtract(&settled.copied);
            }
            Step::Break => {
                self.wire.clear();
                self.building = None;
                self.tracker = Tracker::new(self.committed, self.held.clone(), self.to_copy.clone());
            }
            Step::LoseTracking => {
                // Marks are lost, and whatever was written meanwhile went unseen.
                self.marked = BlockSet::default();
                self.disk[0] += 1;
                self.to_copy = set(&(0..BLOCKS as u32).collect::<Vec<_>>());
                // The session is over.
                self.wire.clear();
                self.building = None;
                self.tracker = Tracker::new(self.committed, self.held.clone(), self.to_copy.clone());
            }
        }
    }

    fn begin(&mut self, copy: bool) {
        self.end();
        let number = self.tracker.begin();
        self.building = Some((Record { number, content: Vec::new(), complete: false }, copy));
    }

    fn read(&mut self, block: u32) {
        let Some((record, copy)) = &mut self.building else { return };
        let wanted = if *copy { self.tracker.awaiting_copy().clone() } else { self.tracker.sendable() };
        if wanted.contains(DiskSlot(1), block) {
            record.content.push((block, self.disk[block as usize]));
            self.tracker.read(&set(&[block]), 4096, *copy);
        }
    }

    fn end(&mut self) {
        if let Some((mut record, _)) = self.building.take() {
            record.complete = self.tracker.complete();
            self.tracker.end();
            self.wire.push_back(record);
        }
    }

    /// Clean means in the vault.
    fn check(&self) {
        for block in 0..BLOCKS as u32 {
            let dirty =
                [&self.marked, &self.held, &self.to_copy].iter().any(|set| set.contains(DiskSlot(1), block));
            assert!(
                dirty || self.vault[block as usize] == self.disk[block as usize],
                "block {block} counts as clean, but the vault has version {} of {}",
                self.vault[block as usize],
                self.disk[block as usize]
            );
        }
    }

    fn come_to_rest(&mut self) {
        self.apply(Step::Take);
        for step in [Step::BeginCopy, Step::BeginRound] {
            self.apply(step);
            (0..BLOCKS as u32).for_each(|block| self.read(block));
        }
        self.end();
        while !self.wire.is_empty() {
            self.apply(Step::Commit);
        }
        self.apply(Step::Answer);
    }
}

proptest! {
    #[test]
    fn whatever_happens_a_clean_block_is_in_the_vault_and_everything_becomes_clean(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
            world.check();
        }
        world.come_to_rest();
        world.check();
        prop_assert!(world.tracker.is_clean());
        prop_assert!(world.held.is_empty() && world.to_copy.is_empty());
        prop_assert_eq!(world.vault, world.disk);
    }
}
