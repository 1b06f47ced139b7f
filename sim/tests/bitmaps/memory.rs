//! The machine as the agent sees it: words that the program touches, too, and what the kernel says.

use std::time::Duration;

use lifeboat_agent::{
    edge::TrackError,
    kernel::{
        extents::Ranges,
        layout::CONTROL_GENERATION,
        words::{Kernel, Maps, Word},
    },
};
use tokio::time::Instant;

use crate::{
    Ending, Fault,
    machine::{Machine, Regions, State},
    program::{Phase, Writing},
};

pub(crate) struct Memory {
    pub(crate) regions: Regions,
    pub(crate) words: Vec<SharedWord>,
}

impl Memory {
    pub(crate) fn maps(&self) -> Maps<'_, SharedWord> {
        let Regions { summary, extents, control, .. } = self.regions;
        Maps {
            marks: &self.words[..summary],
            summary: &self.words[summary..extents],
            extents: Ranges::Table(&self.words[extents..control]),
            control: &self.words[control..],
        }
    }
}

/// A word of the maps, as the agent has it.
pub(crate) struct SharedWord {
    pub(crate) at: usize,
    pub(crate) machine: Machine,
}

impl SharedWord {
    pub(crate) fn change(&self, to: impl Fn(u64) -> u64) -> u64 {
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
