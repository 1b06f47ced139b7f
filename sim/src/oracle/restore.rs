//! A store that went back in time: what was acknowledged and is lost must be found out and copied again.

use std::collections::BTreeSet;

use lifeboat_replication::{errors::chain, log::LogReader, recoverable::journal_begins};

use super::Oracle;

impl Oracle {
    /// The store was restored from an older copy: what it holds now is the truth. Until the agent has been told to copy
    /// everything again, blocks of lost records may count as clean.
    pub fn went_back(&mut self) -> Result<(), String> {
        let before = self.last_number();
        // Of a log that was shortened the beginning is known only from what was read before.
        let base = self.listed()?;
        let base = base.log_begins.and_then(|_| journal_begins(&base).cloned());
        let begun = match &base {
            Some(base) => LogReader::resume(&self.vault, &self.server, &self.env, base.log.clone()),
            None => Ok(LogReader::from_start(&self.vault, &self.server, &self.env)),
        };
        self.reader = begun.map_err(|error| chain(&error))?;
        let known = base.as_ref().map(|base| base.number);
        let image = known.map(|number| self.images.get(&number).cloned().ok_or(number)).transpose();
        self.replay = image
            .map_err(|number| format!("the base {number} of the restored log was never seen"))?
            .unwrap_or_default();
        self.images.retain(|number, _| known.is_some_and(|known| *number <= known));
        // What was acknowledged before may still be on the wire.
        self.lost_epochs.append(&mut self.epochs.clone());
        self.epochs.retain(|number, _| known.is_some_and(|known| *number <= known));
        self.last_part = None;
        self.closed_in = None;
        self.compared = BTreeSet::new();
        self.kept.went_back();
        let ordered = self.machine.copies_ordered();
        self.lost = Some(ordered);
        // What was counted is not counted again.
        let reached = self.reached;
        let read = self.log_changed();
        self.reached = reached;
        if self.last_number() == before {
            self.lost = None;
        }
        read
    }

    /// The run that the log is closed by.
    pub fn closed_run(&self) -> Option<String> {
        self.reader.state().and_then(|state| state.closed_run.clone())
    }

    /// True while the agent has not been told of records that the store lost.
    pub(super) fn loss_unknown(&mut self) -> bool {
        let Some(ordered) = self.lost else { return false };
        if self.machine.copies_ordered() == ordered {
            return true;
        }
        self.lost = None;
        self.reached.losses_noticed += 1;
        false
    }
}
