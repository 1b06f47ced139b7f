//! The marks of changed blocks, as the replicator takes them.
//!
//! In: the bitmaps that the eBPF program marks, block by block or eight at a time (`program`). Out: sets of blocks.
//!
//! **One instant.** The program reads the generation word at each mark. A flip stores the other generation and waits
//! until no program runs that may still have read the old one (`membarrier`); so whatever was issued before the date
//! of the flip is in the old set, and nothing marks the old set any more when it is read.
//!
//! **Nothing lost.** A mark is added to the held set before it is cleared, word by word. A kill between the two
//! leaves it in both. Marks of a flip that nobody took are moved at the next flip or start.
//!
//! **Weakness accepted.** Writes that reach a disk without a request of this kernel (another host on a shared disk,
//! commands without data through SG_IO) are not seen.

use std::{fs, path::PathBuf, sync::Arc, sync::atomic::Ordering::SeqCst};

use lifeboat_replication::{
    blocks::{BlockSet, RoaringBitmap},
    env::{Micros, Wall},
    ids::{DiskSlot, ServerId},
    resync::Cause,
    wire::v1,
};
use tokio::time::Instant;

mod carry;

use super::{
    bios::{self, Counts},
    bits, control,
    disks::Disk,
    extents::Extent,
    first_start, in_flight,
    layout::{
        CONTROL_COMPLETE_MISSES, CONTROL_EXTENTS, CONTROL_GENERATION, CONTROL_ISSUE_MISSES,
        CONTROL_ISSUE_ONLY, CONTROL_LOST, CONTROL_LOST_WORDS, COUNT_COMPLETED_BYTES, COUNT_ENDED_BIOS,
        COUNT_ISSUED_BYTES, COUNT_QUEUED_BIOS, COUNT_REQUEUED_BYTES, COUNT_WRITES, LOST_BIOS,
        LOST_ESCAPED_BIOS, LOST_INTERNAL, LOST_MISSED_ISSUE, LOST_OVERFLOW, LOST_PASSTHROUGH, LOST_PAST_END,
        LOST_ZONE, Layout, Set,
    },
    pins::{Pins, Start, kernel},
    program::Program,
    reboot,
    suspects::{Seen, Suspects},
    sys,
};
use crate::{
    edge::{DirtyMap, TrackError},
    restart_files::RestartPlaces,
};

/// Above this many blocks, reading the whole live bitmap is cheaper than asking for each block.
const FEW_BLOCKS: u64 = 1 << 16;

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
    /// What `install` writes.
    pub files: RestartPlaces,
}

impl Default for RebootPlaces {
    fn default() -> Self {
        Self { run: reboot::RUN.into(), boot_id: reboot::BOOT_ID.into(), files: RestartPlaces::default() }
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
    layout: Layout,
    disks: Vec<Disk>,
    sysfs: PathBuf,
    wall: Arc<dyn Wall>,
    /// The old generation may have marks.
    flipped: bool,
    /// Moved to held by a second flip, and not returned by a take yet.
    carried: Harvest,
    /// The pinned held set, as a set.
    held: BlockSet,
    suspects: Suspects,
    /// Of disks without a request queue.
    bios: bios::Watch,
    to_copy_left: u64,
    /// Why each restart of the machine will be followed by a comparison.
    restarts_compare: Option<String>,
}

#[derive(Debug, Default)]
struct Harvest {
    issued: BlockSet,
    completed: BlockSet,
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

fn slot(disk: usize) -> DiskSlot {
    DiskSlot(u32::try_from(disk + 1).unwrap_or(u32::MAX))
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
        let mut tracker = Self::over(pins, layout, disks, options.sysfs.clone(), options.wall.clone());
        // A barrier also for the old generation of a run that was killed between its flip and the barrier.
        sys::membarrier_global().map_err(no_membarrier)?;
        // What an earlier run flipped and did not take is held from now on.
        tracker.harvest()?;
        if start == Start::Resumed {
            tracker.held = tracker.collect(Set::Held);
            tracker.suspects = Suspects::resumed(tracker.collect(Set::Suspect));
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
        sys::membarrier_global().map_err(no_membarrier)?;
        let mut tracker = Self::over(pins, layout, disks, sysfs, wall);
        tracker.flipped = false;
        Ok(tracker)
    }

    fn over(pins: Pins, layout: Layout, disks: &[Disk], sysfs: PathBuf, wall: Arc<dyn Wall>) -> Self {
        Self {
            pins,
            layout,
            disks: disks.to_vec(),
            sysfs,
            wall,
            flipped: true,
            carried: Harvest::default(),
            held: BlockSet::default(),
            suspects: Suspects::default(),
            bios: bios::Watch::default(),
            to_copy_left: 0,
            restarts_compare: None,
        }
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

    fn word(&self, index: usize) -> u64 {
        self.pins.control[index].load(SeqCst)
    }

    fn generation(&self) -> usize {
        (self.word(CONTROL_GENERATION) & 1) as usize
    }

    fn issue_only(&self) -> bool {
        self.word(CONTROL_ISSUE_ONLY) == 1
    }

    fn collect(&self, set: Set) -> BlockSet {
        let mut all = BlockSet::default();
        for disk in 0..self.disks.len() {
            all.insert_disk(slot(disk), bits::collect(&self.pins.marks[self.layout.words(set, disk)]));
        }
        all
    }

    /// Changes a set of the agent's own (held, to copy, suspect).
    fn change(
        &self,
        set: Set,
        blocks: &BlockSet,
        change: impl Fn(&[std::sync::atomic::AtomicU64], &RoaringBitmap),
    ) {
        for disk in 0..self.disks.len() {
            if let Some(blocks) = blocks.disk(slot(disk)) {
                change(&self.pins.marks[self.layout.words(set, disk)], blocks);
            }
        }
    }

    /// Calls `visit` with disk, index of the word within the disk, and the bits of issue and of completion, for each
    /// word of this generation that may have marks.
    fn visit(&self, generation: usize, mut visit: impl FnMut(usize, usize, u64, u64)) {
        let Pins { marks, summary, .. } = &self.pins;
        for disk in 0..self.disks.len() {
            let issued = self.layout.words(Set::Issued(generation), disk);
            let completed = self.layout.words(Set::Completed(generation), disk);
            for group in 0..issued.len() / 64 {
                let mut words = summary[issued.start / 64 + group].load(SeqCst)
                    | summary[completed.start / 64 + group].load(SeqCst);
                while words != 0 {
                    let index = group * 64 + words.trailing_zeros() as usize;
                    words &= words - 1;
                    let bits = |start: usize| marks[start + index].load(SeqCst);
                    visit(disk, index, bits(issued.start), bits(completed.start));
                }
            }
        }
    }

    /// Extents of this generation whose entry is whole.
    fn extents(&self, generation: usize) -> Result<Vec<Extent>, TrackError> {
        let used = self.word(CONTROL_EXTENTS + generation);
        self.pins.extents.read(generation, used).map_err(kernel("read the long ranges that were noted"))
    }

    /// Bits `LOST_*`, wherever they were set.
    fn reasons(&self) -> u64 {
        let set = CONTROL_LOST_WORDS.enumerate().filter(|(_, index)| self.word(*index) != 0);
        self.word(CONTROL_LOST) | set.map(|(bit, _)| 1 << bit).sum::<u64>()
    }

    /// Moves the marks of the old generation to held (and suspect), then clears them.
    fn harvest(&mut self) -> Result<Harvest, TrackError> {
        let old = 1 - self.generation();
        // Before anything is cleared: an error here leaves all as it was.
        let extents = self.extents(old)?;
        let mut found = Harvest::default();
        let mut bitmaps = vec![(RoaringBitmap::new(), RoaringBitmap::new()); self.disks.len()];
        let Pins { marks, summary, .. } = &self.pins;
        self.visit(old, |disk, index, issued, completed| {
            let start = |set| self.layout.start(set, disk) + index;
            for set in [Set::Suspect, Set::Held] {
                marks[start(set)].fetch_or(issued | completed, SeqCst);
            }
            marks[start(Set::Issued(old))].store(0, SeqCst);
            marks[start(Set::Completed(old))].store(0, SeqCst);
            bits::insert(&mut bitmaps[disk].0, index, issued);
            bits::insert(&mut bitmaps[disk].1, index, completed);
        });
        for (disk, (issued, completed)) in bitmaps.into_iter().enumerate() {
            for set in [Set::Issued(old), Set::Completed(old)] {
                let words = self.layout.words(set, disk);
                for word in &summary[words.start / 64..words.end / 64] {
                    word.store(0, SeqCst);
                }
            }
            found.issued.insert_disk(slot(disk), issued);
            found.completed.insert_disk(slot(disk), completed);
        }
        let mut long = BlockSet::default();
        for (run, completed) in extents {
            long.insert_run(run);
            let set = if completed { &mut found.completed } else { &mut found.issued };
            set.insert_run(run);
        }
        self.change(Set::Suspect, &long, bits::set);
        self.change(Set::Held, &long, bits::set);
        let used = self.word(CONTROL_EXTENTS + old);
        match self.pins.extents.clear(old, used) {
            Ok(()) => self.pins.control[CONTROL_EXTENTS + old].store(0, SeqCst),
            // They come again with another flip: more work, and nothing lost.
            Err(error) => tracing::warn!(%error, "long ranges that were noted could not be removed"),
        }
        self.held.union(&found.issued);
        self.held.union(&found.completed);
        self.flipped = false;
        Ok(found)
    }

    /// Writes under way to disks with requests (or with bios), by the kernel's own count, which does not depend on the
    /// program; `None` when a disk has its statistics switched off.
    pub(super) fn kernel_in_flight(&self, bio_based: bool) -> Option<u64> {
        let disks = self.disks.iter().filter(|disk| disk.bio_based == bio_based);
        disks.map(|disk| in_flight::writes(&self.sysfs, &disk.name)).sum()
    }

    /// Of disks without a request queue. Also finds out whether completions escape there.
    fn bios(&mut self) -> Counts {
        let sum = |counter| -> u64 {
            let of = self.disks.iter().enumerate().filter(|(_, disk)| disk.bio_based);
            of.map(|(disk, _)| self.pins.counter(disk, counter)).sum()
        };
        let ended = sum(COUNT_ENDED_BIOS);
        let counts = Counts {
            queued: sum(COUNT_QUEUED_BIOS),
            ended,
            missed: misses(&self.pins.complete).unwrap_or(0),
            kernel_quiet: self.kernel_in_flight(true) == Some(0),
        };
        if self.bios.see(counts, Instant::now()) {
            self.pins.control[CONTROL_LOST].fetch_or(LOST_ESCAPED_BIOS, SeqCst);
        }
        counts
    }

    /// How many runs of the programs the kernel has left out since this was last settled, and the sum to settle.
    fn new_misses(
        &self,
        programs: &[std::os::fd::OwnedFd],
        settled: usize,
    ) -> Result<(u64, u64), TrackError> {
        let misses = misses(programs).map_err(kernel("count the runs that were left out"))?;
        Ok((misses.saturating_sub(self.word(settled)), misses))
    }

    /// A run left out at issue may hide a write from the judgement of exactness, and with its completion for good.
    fn watch_issues(&self) -> Result<(), TrackError> {
        let (new, sum) = self.new_misses(&self.pins.issue, CONTROL_ISSUE_MISSES)?;
        if new > 0 {
            self.pins.control[CONTROL_LOST].fetch_or(LOST_MISSED_ISSUE, SeqCst);
            self.pins.control[CONTROL_ISSUE_MISSES].store(sum, SeqCst);
        }
        Ok(())
    }
}

/// How many runs of these programs the kernel has left out.
fn misses(programs: &[std::os::fd::OwnedFd]) -> std::io::Result<u64> {
    use std::os::fd::AsFd as _;
    programs.iter().map(|program| sys::recursion_misses(program.as_fd())).sum()
}

fn no_membarrier(source: std::io::Error) -> TrackError {
    TrackError::Unsupported {
        reason: format!("the kernel does not offer a global memory barrier ({source})"),
        remedy: "boot without the kernel parameter nohz_full".to_owned(),
    }
}

impl DirtyMap for Tracker {
    fn flip(&mut self) -> Result<Micros, TrackError> {
        if self.flipped {
            let Harvest { issued, completed } = self.harvest()?;
            self.carried.issued.union(&issued);
            self.carried.completed.union(&completed);
        }
        // Before the store, so that whatever was written until this date is in the old generation.
        let date = self.wall.now();
        self.pins.control[CONTROL_GENERATION].fetch_add(1, SeqCst);
        self.flipped = true;
        sys::membarrier_global().map_err(no_membarrier)?;
        Ok(date)
    }

    fn take(&mut self) -> Result<BlockSet, TrackError> {
        let quiet = self.bios().under_way() == 0 && self.kernel_in_flight(false) == Some(0);
        // After the count: what had landed by then and was missed is counted here, or settles later.
        let (missed, sum) = self.new_misses(&self.pins.complete, CONTROL_COMPLETE_MISSES)?;
        self.watch_issues()?;
        if self.flipped {
            let Harvest { issued, completed } = self.harvest()?;
            self.carried.issued.union(&issued);
            self.carried.completed.union(&completed);
        }
        let found = std::mem::take(&mut self.carried);
        let verdict = self.suspects.see(Seen {
            issued: &found.issued,
            completed: &found.completed,
            quiet,
            missed: missed > 0,
            issue_only: self.issue_only(),
            now: Instant::now(),
        });
        if verdict.escaped {
            tracing::warn!("completions of writes escape the tracking program: going on by issue only");
            self.pins.control[CONTROL_ISSUE_ONLY].store(1, SeqCst);
        }
        self.change(Set::Held, &verdict.read_again, bits::set);
        self.held.union(&verdict.read_again);
        self.pins.control[CONTROL_COMPLETE_MISSES].store(sum, SeqCst);
        self.change(Set::Suspect, &verdict.forgotten, |words, blocks| _ = bits::clear(words, blocks));
        let mut taken = found.issued;
        taken.union(&found.completed);
        taken.union(&verdict.read_again);
        Ok(taken)
    }

    fn issued_now(&mut self, within: &BlockSet) -> Result<BlockSet, TrackError> {
        self.watch_issues()?;
        if self.reasons() & (LOST_OVERFLOW | LOST_MISSED_ISSUE | LOST_INTERNAL) != 0 {
            return Ok(within.clone());
        }
        let generation = self.generation();
        let mut issued = BlockSet::default();
        if within.len() <= FEW_BLOCKS {
            for (number, blocks) in within.disks() {
                let disk = (number.0 as usize).wrapping_sub(1);
                let start = self.layout.start(Set::Issued(generation), disk);
                let mut found = RoaringBitmap::new();
                for (index, bits) in bits::words_of(blocks) {
                    let now = self.pins.marks.get(start + index).map_or(0, |word| word.load(SeqCst));
                    bits::insert(&mut found, index, now & bits);
                }
                issued.insert_disk(number, found);
            }
        } else {
            let mut found = vec![RoaringBitmap::new(); self.disks.len()];
            self.visit(generation, |disk, index, issued, _| bits::insert(&mut found[disk], index, issued));
            for (disk, blocks) in found.into_iter().enumerate() {
                issued.insert_disk(slot(disk), blocks);
            }
        }
        for (run, completed) in self.extents(generation)? {
            if !completed {
                issued.insert_run(run);
            }
        }
        Ok(issued.intersection(within))
    }

    fn held(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.held.clone())
    }

    fn forget(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        let mut durable = blocks.clone();
        if self.issue_only() {
            // They come again with the next take; until then a restart must find them held.
            durable.subtract(&self.collect(Set::Suspect));
        }
        self.change(Set::Held, &durable, |words, blocks| _ = bits::clear(words, blocks));
        self.held.subtract(&durable);
        Ok(())
    }

    fn to_copy(&mut self) -> Result<BlockSet, TrackError> {
        Ok(self.collect(Set::ToCopy))
    }

    fn copied(&mut self, blocks: &BlockSet) -> Result<(), TrackError> {
        for disk in 0..self.disks.len() {
            if let Some(blocks) = blocks.disk(slot(disk)) {
                let words = &self.pins.marks[self.layout.words(Set::ToCopy, disk)];
                self.to_copy_left = self.to_copy_left.saturating_sub(bits::clear(words, blocks));
            }
        }
        Ok(())
    }

    fn copy_all(&mut self, reason: &str) -> Result<(), TrackError> {
        let reasons = self.reasons();
        control::set_reason(&self.pins.control, reason);
        self.to_copy_left = 0;
        for disk in 0..self.disks.len() {
            let blocks = self.layout.blocks(disk);
            bits::set_first(&self.pins.marks[self.layout.words(Set::ToCopy, disk)], blocks);
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
        let generation = self.generation();
        let mut blocks: u64 = self.extents(generation)?.iter().map(|(run, _)| u64::from(run.blocks)).sum();
        self.visit(generation, |_, _, issued, completed| {
            blocks += u64::from((issued | completed).count_ones())
        });
        Ok(blocks)
    }

    fn in_flight(&mut self) -> Option<u64> {
        let counted = self.kernel_in_flight(false)? + self.bios().not_known_to_have_ended();
        // Without trusted completions, whatever has not been read again since it landed counts as under way.
        Some(if self.issue_only() { counted.max(self.suspects.len()) } else { counted })
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
        _ = self.watch_issues();
        let lost = self.reasons();
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
