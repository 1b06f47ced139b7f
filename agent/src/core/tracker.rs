//! Which blocks a session still has to send, and which may be forgotten when a record is durable. Pure.
//!
//! ```text
//!   took ──► unsent ──read for record n──► carried by n ──durable(n)──► forget, unless taken again since (unsent)
//!                                                                       or carried by a later record
//!   to copy: awaiting ──read for record n──► carried, copied by n ──durable(n)──► copied
//! ```
//!
//! - A block that is still awaiting its copy need not be sent by rounds: the copy reads it later.
//! - A block that was copied by a record in flight and written since *is* sent by the next round.
//! - Dropping a tracker (end of a session) loses nothing: held and to-copy marks stand in the `DirtyMap`.

use std::collections::VecDeque;

use lifeboat_replication::{
    blocks::BlockSet,
    ids::{DiskSlot, RecordNumber},
};

/// The process server acknowledged something that was not sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process server called record {number} durable, but only records up to {sent} were sent; this is a defect, report it"
)]
pub struct NeverSent {
    pub number: RecordNumber,
    pub sent: RecordNumber,
}

/// What became durable.
#[derive(Debug, Default, PartialEq)]
pub struct Settled {
    pub forget: BlockSet,
    pub copied: BlockSet,
}

#[derive(Debug)]
struct Carried {
    number: RecordNumber,
    blocks: BlockSet,
    copied: BlockSet,
    bytes: u64,
}

#[derive(Debug)]
pub struct Tracker {
    next: RecordNumber,
    unsent: BlockSet,
    awaiting_copy: BlockSet,
    /// Ended and not durable, oldest first.
    in_flight: VecDeque<Carried>,
    building: Option<Carried>,
}

impl Tracker {
    /// At the beginning of a session: everything that is not durable is unsent.
    pub fn new(last: RecordNumber, held: BlockSet, to_copy: BlockSet) -> Self {
        Self {
            next: last.next(),
            unsent: held,
            awaiting_copy: to_copy,
            in_flight: VecDeque::new(),
            building: None,
        }
    }

    /// Marks were moved from a finished generation to the held ones.
    pub fn took(&mut self, taken: &BlockSet) {
        self.unsent.union(taken);
    }

    /// What a round has to carry.
    pub fn sendable(&self) -> BlockSet {
        let mut sendable = self.unsent.clone();
        sendable.subtract(&self.awaiting_copy);
        sendable
    }

    pub fn awaiting_copy(&self) -> &BlockSet {
        &self.awaiting_copy
    }

    /// Starts the next record; the one before has to be ended.
    pub fn begin(&mut self) -> RecordNumber {
        self.end();
        let number = self.next;
        self.next = number.next();
        self.building =
            Some(Carried { number, blocks: BlockSet::default(), copied: BlockSet::default(), bytes: 0 });
        number
    }

    /// These blocks were read for the record under way, `copy` when they were read as part of the copy.
    pub fn read(&mut self, blocks: &BlockSet, bytes: u64, copy: bool) {
        self.unsent.subtract(blocks);
        if copy {
            self.awaiting_copy.subtract(blocks);
        }
        if let Some(building) = &mut self.building {
            building.blocks.union(blocks);
            building.bytes += bytes;
            if copy {
                building.copied.union(blocks);
            }
        }
    }

    /// The record under way is complete.
    pub fn end(&mut self) {
        self.in_flight.extend(self.building.take());
    }

    /// True when the stream up to and including the record under way holds every block of every disk.
    pub fn complete(&self) -> bool {
        self.awaiting_copy.is_empty()
    }

    /// Every record up to `number` is durable. Repeating it is harmless.
    pub fn durable(&mut self, number: RecordNumber) -> Result<Settled, NeverSent> {
        let sent = RecordNumber(self.building.as_ref().map_or(self.next, |building| building.number).0 - 1);
        if number > sent {
            return Err(NeverSent { number, sent });
        }
        let mut settled = Settled::default();
        while self.in_flight.front().is_some_and(|record| record.number <= number) {
            if let Some(record) = self.in_flight.pop_front() {
                settled.forget.union(&record.blocks);
                settled.copied.union(&record.copied);
            }
        }
        settled.forget.subtract(&self.unsent);
        for later in self.in_flight.iter().chain(&self.building) {
            settled.forget.subtract(&later.blocks);
        }
        Ok(settled)
    }

    /// These blocks were compared with the vault and are the same: they need no copy. What was written to them
    /// since they were read is unsent, or will be taken.
    pub fn proven(&mut self, same: &BlockSet) {
        self.awaiting_copy.subtract(same);
    }

    pub fn records_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub fn bytes_in_flight(&self) -> u64 {
        self.in_flight.iter().map(|record| record.bytes).sum()
    }

    /// Nothing is left to send or to hear about.
    pub fn is_clean(&self) -> bool {
        self.unsent.is_empty()
            && self.awaiting_copy.is_empty()
            && self.in_flight.is_empty()
            && self.building.is_none()
    }

    /// Blocks of a disk whose copy is not durable.
    pub fn copy_left(&self, disk: DiskSlot) -> u64 {
        let of = |set: &BlockSet| set.disk(disk).map_or(0, |blocks| blocks.len());
        let carried: u64 = self.in_flight.iter().chain(&self.building).map(|record| of(&record.copied)).sum();
        of(&self.awaiting_copy) + carried
    }

    /// Changed blocks of a disk that are not durable, the copy aside.
    pub fn dirty(&self, disk: DiskSlot) -> u64 {
        let mut all = BlockSet::default();
        let mut add = |set: &BlockSet| {
            if let Some(blocks) = set.disk(disk) {
                all.insert_disk(disk, blocks.clone());
            }
        };
        add(&self.unsent);
        for record in self.in_flight.iter().chain(&self.building) {
            let mut changed = record.blocks.clone();
            changed.subtract(&record.copied);
            add(&changed);
        }
        all.len()
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
