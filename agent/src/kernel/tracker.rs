//! The marks of changed blocks, as the replicator takes them.
//!
//! In: the bitmaps that the eBPF program marks, block by block or eight at a time (`program`). Out: sets of blocks.
//!
//! **One instant.** The program reads the generation word at each mark. A flip stores the other generation and waits
//! until no program runs that may still have read the old one (`membarrier`); so whatever was issued before the date
//! of the flip is in the old set, and nothing marks the old set any more when it is read. That, and that nothing is lost
//! by a crash, is the work of [`super::marks`].
//!
//! **Weakness accepted.** Writes that reach a disk without a request of this kernel (another host on a shared disk,
//! commands without data through SG_IO) are not seen.

use std::{fs, path::PathBuf, sync::Arc, sync::atomic::Ordering::SeqCst};

use lifeboat_replication::{
    blocks::BlockSet,
    env::{Micros, Wall},
    ids::ServerId,
    resync::Cause,
    wire::v1,
};
mod carry;
mod counts;

use self::counts::{Running, kernel_in_flight, misses};
use super::{
    bios, bits, control,
    disks::Disk,
    first_start,
    layout::{
        CONTROL_LOST, CONTROL_LOST_WORDS, COUNT_COMPLETED_BYTES, COUNT_ISSUED_BYTES, COUNT_REQUEUED_BYTES,
        COUNT_WRITES, LOST_BIOS, LOST_ESCAPED_BIOS, LOST_INTERNAL, LOST_MISSED_ISSUE, LOST_OVERFLOW,
        LOST_PASSTHROUGH, LOST_PAST_END, LOST_ZONE, Layout, Set,
    },
    marks::{self, Marks, slot},
    pins::{Pins, Start, kernel},
    program::Program,
    reboot,
};
use crate::{
    edge::{DirtyMap, TrackError},
    restart_files::RestartPlaces,
};

/// Where a server's marks are kept.
#[derive(Debug, Clone)]
pub struct TrackerOptions {
    pub server: ServerId,
    /// Directory in a bpf file system; the server's pins are in a directory below, named by its id.
    pub pins: PathBuf,
    /// The agent's state directory: remembers over a restart of the machine that tracking had begun.
    pub state: PathBuf,
    pub sysfs: PathBuf,
    pub wall: Arc<dyn Wall>,
    /// `None`: nothing is expected from before a restart of the machine, and nothing is left for the next.
    pub reboot: Option<RebootPlaces>,
}

/// What an orderly restart of the machine needs besides.
#[derive(Debug, Clone)]
pub struct RebootPlaces {
    /// Directory that lives as long as the boot, from the initramfs on.
    pub run: PathBuf,
    /// File with the kernel's name for this boot.
    pub boot_id: PathBuf,
    /// The root file system, which has /boot in it.
    pub root: PathBuf,
    /// What `install` writes.
    pub files: RestartPlaces,
}

impl Default for RebootPlaces {
    fn default() -> Self {
        let (run, boot_id) = (reboot::RUN.into(), reboot::BOOT_ID.into());
        Self { run, boot_id, root: "/".into(), files: RestartPlaces::default() }
    }
}

impl RebootPlaces {
    pub(super) fn boot(&self) -> String {
        fs::read_to_string(&self.boot_id).unwrap_or_default().trim().to_owned()
    }
}

/// The default of [`TrackerOptions::pins`].
pub const PINS: &str = "/sys/fs/bpf/lifeboat";

/// [`DirtyMap`] over the pinned maps. Dropping it ends nothing: the kernel goes on marking.
pub struct Tracker {
    pins: Pins,
    marks: Marks,
    disks: Vec<Disk>,
    sysfs: PathBuf,
    wall: Arc<dyn Wall>,
    /// Of disks without a request queue.
    bios: bios::Watch,
    to_copy_left: u64,
    /// Why each restart of the machine will be followed by a comparison.
    restarts_compare: Option<String>,
}

/// Figures for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub writes: u64,
    pub issued_bytes: u64,
    pub completed_bytes: u64,
    pub requeued_bytes: u64,
    /// Runs of the program that the kernel left out, at issue and at completion.
    pub missed_issues: u64,
    pub missed_completions: u64,
}

impl Tracker {
    /// Goes on with the pinned marks, or starts anew with every block to copy.
    pub fn open(options: &TrackerOptions, disks: &[Disk]) -> Result<Self, TrackError> {
        if disks.is_empty() {
            return Err(TrackError::Unsupported {
                reason: "there is no disk to protect".to_owned(),
                remedy: "see `lifeboat-agent disks` for why each disk is refused".to_owned(),
            });
        }
        let layout = Layout::new(disks);
        let folder = options.pins.join(options.server.as_str());
        let (pins, start) = Pins::open(&folder, options.server.as_str(), disks, &layout)?;
        let mut tracker = Self::over(pins, layout, disks, options.sysfs.clone(), options.wall.clone())?;
        if start == Start::Resumed {
            tracker.marks.resume(tracker.pins.maps());
            tracker.discard_saved(options);
        } else {
            let reason = first_start::reason(options, &start);
            // At once: whoever finds the maps full after a crash in the next steps finds the reason with them.
            control::set_reason(&tracker.pins.control, reason.as_deref().unwrap_or_default());
            if start == Start::Absent && first_start::is_after_restart(reason.as_deref()) {
                tracker.take_over_saved(options);
            } else {
                tracker.discard_saved(options);
            }
            first_start::remember(options).map_err(kernel("write to the state directory"))?;
            let reason = control::reason(&tracker.pins.control);
            tracing::info!(
                reason,
                to_copy_blocks = tracker.count_to_copy(),
                "tracking starts with new marks"
            );
        }
        if let Some(places) = &options.reboot {
            tracker.restarts_compare = tracker.prepare_restart(options, places);
        }
        tracker.to_copy_left = tracker.count_to_copy();
        Ok(tracker)
    }

    /// Only watches: begins with nothing to copy, disturbs no agent that replicates, and leaves nothing in the kernel
    /// when it is dropped or its process is killed.
    pub fn unpinned(sysfs: PathBuf, wall: Arc<dyn Wall>, disks: &[Disk]) -> Result<Self, TrackError> {
        let layout = Layout::new(disks);
        let pins = Pins::unpinned(disks, &layout)?;
        Self::over(pins, layout, disks, sysfs, wall)
    }

    fn over(
        pins: Pins,
        layout: Layout,
        disks: &[Disk],
        sysfs: PathBuf,
        wall: Arc<dyn Wall>,
    ) -> Result<Self, TrackError> {
        let mut bios = bios::Watch::default();
        let mut kernel = Running { pins: &pins, disks, sysfs: &sysfs, bios: &mut bios };
        let marks = Marks::open(layout, pins.maps(), &mut kernel)?;
        let (disks, restarts_compare) = (disks.to_vec(), None);
        Ok(Self { pins, marks, disks, sysfs, wall, bios, to_copy_left: 0, restarts_compare })
    }

    fn issue_only(&self) -> bool {
        marks::issue_only(self.pins.maps())
    }

    /// Writes under way to disks with requests, by the kernel's own count.
    pub(super) fn kernel_in_flight(&self) -> Option<u64> {
        kernel_in_flight(&self.disks, &self.sysfs, false)
    }

    fn running(&mut self) -> Running<'_> {
        let Self { pins, disks, sysfs, bios, .. } = self;
        Running { pins, disks, sysfs, bios }
    }

    /// Bytes that requests were issued for so far (written or discarded), of each disk in the order given.
    pub fn issued_bytes(&self) -> Vec<u64> {
        (0..self.disks.len()).map(|disk| self.pins.counter(disk, COUNT_ISSUED_BYTES)).collect()
    }

    pub fn counters(&self) -> Counters {
        let sum = |counter| (0..self.disks.len()).map(|disk| self.pins.counter(disk, counter)).sum();
        let misses = |programs: &[std::os::fd::OwnedFd]| misses(programs).unwrap_or(0);
        Counters {
            writes: sum(COUNT_WRITES),
            issued_bytes: sum(COUNT_ISSUED_BYTES),
            completed_bytes: sum(COUNT_COMPLETED_BYTES),
            requeued_bytes: sum(COUNT_REQUEUED_BYTES),
            missed_issues: misses(&self.pins.issue),
            missed_completions: misses(&self.pins.complete),
        }
    }
}

fn no_membarrier(source: std::io::Error) -> TrackError {
    TrackError::Unsupported {
        reason: format!("the kernel does not offer a global memory barrier ({source})"),
        remedy: "boot without the kernel parameter nohz_full".to_owned(),
    }
}

impl DirtyMap for Tracker {
    fn flip(&mut self) -> Result<Micros, TrackError> {
        let Self { marks, pins, disks, sysfs, bios, wall, .. } = self;
        let mut kernel = Running { pins, disks, sysfs, bios };
        marks.flip(pins.maps(), &mut kernel, || wall.now())
    }

    fn take(&mut self) -> Result<BlockSet, TrackError> {
        let Self { marks, pins, disks, sysfs, bios, .. } = self;
        marks.take(pins.maps(), &mut Running { pins, disks, sysfs, bios })
    }

    fn issued_now(&mut self, within: &BlockSet) -> Result<BlockSet, TrackError> {
        let Self { marks, pins, disks, sysfs, bios, .. } = self;
        marks.issued_now(pins.maps(), &mut Running { pins, disks, sysfs, bios }, within)
    }

    fn held(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.marks.held().clone())
    }

    fn forget(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        self.marks.forget(self.pins.maps(), blocks);
        Ok(())
    }

    fn to_copy(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.marks.collect(self.pins.maps(), Set::ToCopy))
    }

    fn copied(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        for disk in 0..self.disks.len() {
            if let Some(blocks) = blocks.disk(slot(disk)) {
                let words = &self.pins.marks[self.marks.layout().words(Set::ToCopy, disk)];
                self.to_copy_left = self.to_copy_left.saturating_sub(bits::clear(words, blocks));
            }
        }
        Ok(())
    }

    fn copy_all(&mut self, reason: &str) -> Result<(), TrackError> {
        let reasons = marks::reasons(self.pins.maps());
        control::set_reason(&self.pins.control, reason);
        self.to_copy_left = 0;
        for disk in 0..self.disks.len() {
            let blocks = self.marks.layout().blocks(disk);
            bits::set_first(&self.pins.marks[self.marks.layout().words(Set::ToCopy, disk)], blocks);
            self.to_copy_left += u64::from(blocks);
        }
        // Last, and only what was there before: what is lost from now on is lost for the new copy too.
        self.pins.control[CONTROL_LOST].fetch_and(!reasons, SeqCst);
        for (_, index) in CONTROL_LOST_WORDS.enumerate().filter(|(bit, _)| reasons & (1 << bit) != 0) {
            self.pins.control[index].store(0, SeqCst);
        }
        Ok(())
    }

    fn copy_reason(&self) -> Option<String> {
        if self.to_copy_left == 0 { None } else { control::reason(&self.pins.control) }
    }

    fn request(&self) -> Option<String> {
        control::request(&self.pins.control)
    }

    fn set_request(&mut self, request: &str) -> Result<(), TrackError> {
        control::set_request(&self.pins.control, request);
        Ok(())
    }

    fn dirty_now(&mut self) -> Result<u64, TrackError> {
        self.marks.marked_now(self.pins.maps())
    }

    fn in_flight(&mut self) -> Option<u64> {
        let counted = self.kernel_in_flight()? + self.running().bios().not_known_to_have_ended();
        // Without trusted completions, whatever has not been read again since it landed counts as under way.
        Some(if self.issue_only() { counted.max(self.marks.suspects()) } else { counted })
    }

    fn lost(&mut self) -> Option<String> {
        let reasons = [
            (LOST_OVERFLOW, "more large ranges were discarded at once than the table holds"),
            (
                LOST_PAST_END,
                "a disk was written beyond its size at start: it has grown; start the agent again",
            ),
            (
                LOST_PASSTHROUGH,
                "a program sent commands with data to a disk past the block layer (SG_IO or NVMe passthrough)",
            ),
            (LOST_ZONE, "zones of a disk were reset"),
            (LOST_INTERNAL, "the tracking program could not reach its maps"),
            (LOST_MISSED_ISSUE, "the kernel left out a run of the tracking program"),
            (LOST_BIOS, "more writes were under way at once than the tracking program notes"),
            (
                LOST_ESCAPED_BIOS,
                "the ends of writes to a disk without a request queue are not seen on this machine: protect the \
                 disks below it instead",
            ),
        ];
        // An error here shows again, and is reported, at the next take.
        let Self { pins, disks, sysfs, bios, .. } = self;
        _ = marks::watch_issues(pins.maps(), &mut Running { pins, disks, sysfs, bios });
        let lost = marks::reasons(self.pins.maps());
        let seen: Vec<_> = reasons.iter().filter(|(bit, _)| lost & bit != 0).map(|(_, text)| *text).collect();
        let cause = match lost {
            lost if lost & LOST_PASSTHROUGH != 0 => Cause::PassthroughWrites,
            lost if lost & LOST_PAST_END != 0 => Cause::DiskResized,
            _ => Cause::TrackingLost,
        };
        (!seen.is_empty()).then(|| cause.because(seen.join("; ")))
    }

    fn durable_mark(&self) -> Option<v1::DurableMark> {
        control::durable_mark(&self.pins.control)
    }

    fn set_durable_mark(&mut self, mark: &v1::DurableMark) -> Result<(), TrackError> {
        if control::set_durable_mark(&self.pins.control, mark) {
            return Ok(());
        }
        let length = mark.chain.len();
        let source = std::io::Error::other(format!("the chain value has {length} bytes, more than 64"));
        Err(TrackError::Kernel { operation: "keep the durable mark", source })
    }

    fn sent(&self) -> Option<u64> {
        control::sent(&self.pins.control)
    }

    fn set_sent(&mut self, number: u64) -> Result<(), TrackError> {
        control::set_sent(&self.pins.control, number);
        Ok(())
    }

    fn tracking(&self) -> String {
        let how = match (self.pins.program, self.issue_only()) {
            (Program::Bytes, false) => "ebpf-32k",
            (Program::Bytes, true) => "ebpf-32k-issue-only",
            (Program::Bits, true) => "ebpf-issue-only",
            (Program::Bits, false) if self.disks.iter().any(|disk| disk.bio_based) => "ebpf-bio",
            (Program::Bits, false) => "ebpf-tp_btf",
        };
        match &self.restarts_compare {
            None => how.to_owned(),
            Some(why) => format!("{how} (each restart is followed by a comparison: {why})"),
        }
    }
}
