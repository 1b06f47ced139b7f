//! Marks that are carried over a restart of the machine: out of the pins at shutdown, into new ones at the next start.

use std::{path::Path, sync::Arc};

use lifeboat_replication::{blocks::BlockSet, env::Wall, wire::v1};

use super::{RebootPlaces, Tracker, TrackerOptions};
use crate::{
    edge::{DirtyMap as _, TrackError},
    kernel::{
        bits, control,
        disks::Disk,
        layout::{CONTROL_ISSUE_ONLY, Layout, Set},
        pins::Pins,
        reboot::{self, Believed, Resumption},
    },
};
use std::sync::atomic::Ordering::SeqCst;

impl Tracker {
    /// Takes up the pins of a server's agent that has ended, or says why it cannot.
    pub(in crate::kernel) fn reopen(
        pins: &Path,
        server: &str,
        disks: &[Disk],
        sysfs: &Path,
        wall: Arc<dyn Wall>,
    ) -> Result<Self, String> {
        Self::reopen_as(&pins.join(server), server, disks, sysfs, wall)
    }

    pub(in crate::kernel) fn reopen_as(
        folder: &Path,
        identity: &str,
        disks: &[Disk],
        sysfs: &Path,
        wall: Arc<dyn Wall>,
    ) -> Result<Self, String> {
        let layout = Layout::new(disks);
        let pins = Pins::reopen(folder, identity, disks, &layout)?;
        let mut tracker =
            Self::over(pins, layout, disks, sysfs.to_owned(), wall).map_err(|error| error.to_string())?;
        tracker.marks.resume(tracker.pins.maps());
        tracker.to_copy_left = tracker.count_to_copy();
        Ok(tracker)
    }

    /// Everything that may differ from the vault, the copy aside: marks of both generations, what is held, and what
    /// may have been read before it landed.
    pub(in crate::kernel) fn everything_dirty(&mut self) -> Result<BlockSet, TrackError> {
        self.flip()?;
        self.take()?;
        let mut dirty = self.held()?;
        dirty.union(&self.marks.collect(self.pins.maps(), Set::Suspect));
        Ok(dirty)
    }

    pub(in crate::kernel) fn is_issue_only(&self) -> bool {
        self.issue_only()
    }

    pub(super) fn count_to_copy(&self) -> u64 {
        (0..self.disks.len())
            .map(|disk| bits::count(&self.pins.marks[self.marks.layout().words(Set::ToCopy, disk)]))
            .sum()
    }

    pub(super) fn discard_saved(&self, options: &TrackerOptions) {
        if options.reboot.is_some() {
            reboot::discard(&options.state, &options.pins);
        }
    }

    /// Goes on with what was saved at shutdown, if it can be believed; says why not otherwise.
    pub(super) fn take_over_saved(&mut self, options: &TrackerOptions) {
        let Some(places) = &options.reboot else { return };
        let believed = reboot::resume(&Resumption {
            server: options.server.as_str(),
            state: &options.state,
            pins: &options.pins,
            places,
            sysfs: &options.sysfs,
            disks: &self.disks,
            wall: options.wall.clone(),
        });
        match believed {
            Ok(believed) => {
                self.carry(believed);
                tracing::info!(
                    dirty_blocks = self.marks.held().len(),
                    to_copy_blocks = self.count_to_copy(),
                    "the changes of before the restart and of the boot are known: no comparison of what is unchanged"
                );
            }
            Err(reason) => control::set_reason(&self.pins.control, &reason),
        }
    }

    /// Makes the image for the next shutdown, and leaves word of what is tracked. Returns why the next restart will be
    /// followed by a comparison.
    pub(super) fn prepare_restart(&self, options: &TrackerOptions, places: &RebootPlaces) -> Option<String> {
        let made = reboot::prepare(&options.state)
            .and_then(|()| reboot::note_tracked(places, options.server.as_str(), &self.disks))
            .map_err(|error| error.to_string());
        let ready = || reboot::ready(&options.state, &options.sysfs, places);
        let why = made.and_then(|()| reboot::carried(&self.disks)).and_then(|()| ready()).err();
        if let Some(why) = &why {
            tracing::warn!(why, "each restart of this server is followed by a comparison of its disks");
        }
        why
    }

    /// All blocks are to be copied until the last step, so a crash before it only makes more work.
    fn carry(&mut self, believed: Believed) {
        let Believed { dirty, to_copy, durable, sent, request, reason, issue_only } = believed;
        // Read before they landed or not: they are read again.
        self.marks.hold(self.pins.maps(), &dirty);
        let control = &self.pins.control;
        if issue_only {
            control[CONTROL_ISSUE_ONLY].store(1, SeqCst);
        }
        if let Some(request) = &request {
            control::set_request(control, request);
        }
        if let Some(sent) = sent {
            control::set_sent(control, sent);
        }
        let known = durable.is_some_and(|mark| {
            let mark = v1::DurableMark { number: mark.number, epoch: mark.epoch, chain: mark.chain };
            control::set_durable_mark(control, &mark)
        });
        if !known {
            // Nobody knows what the vault holds; it will say that all is to be copied, too.
            return;
        }
        control::set_reason(control, reason.as_deref().unwrap_or_default());
        let maps = self.pins.maps();
        let mut done = self.marks.collect(maps, Set::ToCopy);
        done.subtract(&to_copy);
        self.marks.change(maps, Set::ToCopy, &done, |words, blocks| _ = bits::clear(words, blocks));
    }
}
