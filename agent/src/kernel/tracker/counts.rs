//! What the kernel and the program count, beside the marks: writes under way, runs of the program that were left out.

use std::{os::fd::OwnedFd, path::Path, sync::atomic::Ordering::SeqCst};

use tokio::time::Instant;

use super::no_membarrier;
use crate::{
    edge::TrackError,
    kernel::{
        bios::{self, Counts},
        disks::Disk,
        in_flight,
        layout::{CONTROL_LOST, COUNT_ENDED_BIOS, COUNT_QUEUED_BIOS, LOST_ESCAPED_BIOS},
        pins::{Pins, kernel},
        sys,
        words::Kernel,
    },
};

/// The running kernel, asked about these disks.
pub(super) struct Running<'a> {
    pub(super) pins: &'a Pins,
    pub(super) disks: &'a [Disk],
    pub(super) sysfs: &'a Path,
    pub(super) bios: &'a mut bios::Watch,
}

impl Kernel for Running<'_> {
    fn barrier(&mut self) -> Result<(), TrackError> {
        sys::membarrier_global().map_err(no_membarrier)
    }

    fn is_quiet(&mut self) -> bool {
        self.bios().under_way() == 0 && kernel_in_flight(self.disks, self.sysfs, false) == Some(0)
    }

    fn missed_issues(&mut self) -> Result<u64, TrackError> {
        misses(&self.pins.issue).map_err(kernel("count the runs that were left out"))
    }

    fn missed_completions(&mut self) -> Result<u64, TrackError> {
        misses(&self.pins.complete).map_err(kernel("count the runs that were left out"))
    }

    fn now(&mut self) -> Instant {
        Instant::now()
    }
}

impl Running<'_> {
    /// Of disks without a request queue. Also finds out whether completions escape there.
    pub(super) fn bios(&mut self) -> Counts {
        let sum = |counter| -> u64 {
            let of = self.disks.iter().enumerate().filter(|(_, disk)| disk.bio_based);
            of.map(|(disk, _)| self.pins.counter(disk, counter)).sum()
        };
        let ended = sum(COUNT_ENDED_BIOS);
        let counts = Counts {
            queued: sum(COUNT_QUEUED_BIOS),
            ended,
            missed: misses(&self.pins.complete).unwrap_or(0),
            kernel_quiet: kernel_in_flight(self.disks, self.sysfs, true) == Some(0),
        };
        if self.bios.see(counts, Instant::now()) {
            self.pins.control[CONTROL_LOST].fetch_or(LOST_ESCAPED_BIOS, SeqCst);
        }
        counts
    }
}

/// Writes under way to disks with requests (or with bios), by the kernel's own count, which does not depend on the
/// program; `None` when a disk has its statistics switched off.
pub(super) fn kernel_in_flight(disks: &[Disk], sysfs: &Path, bio_based: bool) -> Option<u64> {
    let disks = disks.iter().filter(|disk| disk.bio_based == bio_based);
    disks.map(|disk| in_flight::writes(sysfs, &disk.name)).sum()
}

/// How many runs of these programs the kernel has left out.
pub(super) fn misses(programs: &[OwnedFd]) -> std::io::Result<u64> {
    use std::os::fd::AsFd as _;
    programs.iter().map(|program| sys::recursion_misses(program.as_fd())).sum()
}
