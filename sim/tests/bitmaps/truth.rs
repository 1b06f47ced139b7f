//! What must hold: nothing that differs from the vault counts as clean, and a record that is called exact is the disks at the
//! flip.

use lifeboat_agent::kernel::layout::{CONTROL_COMPLETE_MISSES, CONTROL_EXTENTS, EXTENT_VALID, EXTENTS};

use crate::{
    machine::{Place, State},
    program::Phase,
};

impl State {
    /// The disks at this instant: a write under way may be found old or new, landed or not.
    pub(crate) fn remember_instant(&mut self) {
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
    pub(crate) fn check(&mut self) {
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

    pub(crate) fn is_dirty(&self, place: Place) -> bool {
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

    pub(crate) fn is_in_extents(&self, place: Place) -> bool {
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
}
