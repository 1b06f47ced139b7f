//! The marks of both generations, and what was taken and is not durable: flip, take, forget, over any memory.
//!
//! In: words that the program marks at any time, and what the kernel says of it. Out: sets of blocks. The tracker runs
//! it over the pinned maps; the search over all orders (`sim/tests/bitmaps.rs`) over memory in which a program may do
//! a step before each access to a word.
//!
//! - Ordering: the barrier of a flip ends before anything is taken from the old generation, so that nothing marks it
//!   while it is read and cleared.
//! - Crash: a mark is added to the held set before it is cleared, word by word. A crash between the two leaves it in
//!   both. Marks of a flip that nobody took are moved at the next flip or start.
//! - What is counted as under way is asked first, then the time, then what the kernel has left out: what had landed by
//!   then and was missed is counted, or settles later, however long the agent stands still in between.

use super::{
    bits,
    extents::Extent,
    layout::{
        CONTROL_COMPLETE_MISSES, CONTROL_EXTENTS, CONTROL_GENERATION, CONTROL_ISSUE_MISSES,
        CONTROL_ISSUE_ONLY, CONTROL_LOST, CONTROL_LOST_WORDS, LOST_INTERNAL, LOST_MISSED_ISSUE,
        LOST_OVERFLOW, Layout, Set,
    },
    pins::kernel,
    suspects::{Seen, Suspects},
    words::{Kernel, Maps, Word},
};
use crate::edge::TrackError;
use lifeboat_replication::{
    blocks::{BlockSet, RoaringBitmap},
    ids::DiskSlot,
};

/// Above this many blocks, reading the whole live bitmap is cheaper than asking for each block.
const FEW_BLOCKS: u64 = 1 << 16;

/// A generation's marks.
#[derive(Debug, Default)]
struct Harvest {
    issued: BlockSet,
    completed: BlockSet,
}

impl Harvest {
    fn union(&mut self, other: &Self) {
        self.issued.union(&other.issued);
        self.completed.union(&other.completed);
    }
}

pub(super) fn slot(disk: usize) -> DiskSlot {
    DiskSlot(u32::try_from(disk + 1).unwrap_or(u32::MAX))
}

#[derive(Debug)]
pub struct Marks {
    layout: Layout,
    /// The old generation may have marks.
    flipped: bool,
    /// Moved to held by a second flip, and not returned by a take yet.
    carried: Harvest,
    /// The shared held set, as a set.
    held: BlockSet,
    suspects: Suspects,
}

impl Marks {
    /// What an earlier run flipped and did not take is held from now on. The barrier is also for one that stopped between
    /// its flip and its barrier.
    pub fn open<W: Word>(
        layout: Layout,
        maps: Maps<'_, W>,
        kernel: &mut impl Kernel,
    ) -> Result<Self, TrackError> {
        kernel.barrier()?;
        let mut marks = Self::of_new_maps(layout);
        marks.harvest(maps)?;
        Ok(marks)
    }

    /// Of maps that nothing was marked in before.
    pub(super) fn of_new_maps(layout: Layout) -> Self {
        let (carried, held, suspects) = (Harvest::default(), BlockSet::default(), Suspects::default());
        Self { layout, flipped: false, carried, held, suspects }
    }

    /// Goes on with what an earlier run held.
    pub fn resume<W: Word>(&mut self, maps: Maps<'_, W>) {
        self.held = self.collect(maps, Set::Held);
        self.suspects = Suspects::resumed(self.collect(maps, Set::Suspect));
    }

    /// Blocks that are read again, however they were read before.
    pub(super) fn hold<W: Word>(&mut self, maps: Maps<'_, W>, blocks: &BlockSet) {
        self.change(maps, Set::Suspect, blocks, bits::set);
        self.change(maps, Set::Held, blocks, bits::set);
        self.held.union(blocks);
        self.suspects.add(blocks);
    }

    /// Starts a new generation; `date` is asked for just before, so that whatever was written until then is in the old
    /// one.
    pub fn flip<W: Word, D>(
        &mut self,
        maps: Maps<'_, W>,
        kernel: &mut impl Kernel,
        date: impl FnOnce() -> D,
    ) -> Result<D, TrackError> {
        if self.flipped {
            let found = self.harvest(maps)?;
            self.carried.union(&found);
        }
        let date = date();
        maps.control[CONTROL_GENERATION].add(1);
        self.flipped = true;
        kernel.barrier()?;
        Ok(date)
    }

    /// The old generation's marks, held from now on, and what has to be read again.
    pub fn take<W: Word>(
        &mut self,
        maps: Maps<'_, W>,
        kernel: &mut impl Kernel,
    ) -> Result<BlockSet, TrackError> {
        let quiet = kernel.is_quiet();
        // After the first count, so that what settles has been quiet for that long; before the second one, so that
        // whatever was left out until then is counted.
        let now = kernel.now();
        // What had landed by then and was missed is counted here, or settles later.
        let missed = kernel.missed_completions()?;
        watch_issues(maps, kernel)?;
        if self.flipped {
            let found = self.harvest(maps)?;
            self.carried.union(&found);
        }
        let found = std::mem::take(&mut self.carried);
        let verdict = self.suspects.see(Seen {
            issued: &found.issued,
            completed: &found.completed,
            quiet,
            missed: missed > maps.control[CONTROL_COMPLETE_MISSES].get(),
            issue_only: issue_only(maps),
            now,
        });
        if verdict.escaped {
            tracing::warn!("completions of writes escape the tracking program: going on by issue only");
            maps.control[CONTROL_ISSUE_ONLY].put(1);
        }
        self.change(maps, Set::Held, &verdict.read_again, bits::set);
        self.held.union(&verdict.read_again);
        maps.control[CONTROL_COMPLETE_MISSES].put(missed);
        self.change(maps, Set::Suspect, &verdict.forgotten, |words, blocks| _ = bits::clear(words, blocks));
        let mut taken = found.issued;
        taken.union(&found.completed);
        taken.union(&verdict.read_again);
        Ok(taken)
    }

    /// Moves the marks of the old generation to held (and suspect), then clears them.
    fn harvest<W: Word>(&mut self, maps: Maps<'_, W>) -> Result<Harvest, TrackError> {
        let old = 1 - generation(maps);
        // Before anything is cleared: an error here leaves all as it was.
        let extents = extents_of(maps, old)?;
        let mut found = Harvest::default();
        let mut bitmaps = vec![(RoaringBitmap::new(), RoaringBitmap::new()); self.layout.disks()];
        let Maps { marks, summary, control, .. } = maps;
        self.visit(maps, old, |disk, index, issued, completed| {
            let start = |set| self.layout.start(set, disk) + index;
            for set in [Set::Suspect, Set::Held] {
                marks[start(set)].or(issued | completed);
            }
            marks[start(Set::Issued(old))].put(0);
            marks[start(Set::Completed(old))].put(0);
            bits::insert(&mut bitmaps[disk].0, index, issued);
            bits::insert(&mut bitmaps[disk].1, index, completed);
        });
        for (disk, (issued, completed)) in bitmaps.into_iter().enumerate() {
            for set in [Set::Issued(old), Set::Completed(old)] {
                let words = self.layout.words(set, disk);
                for word in &summary[words.start / 64..words.end / 64] {
                    word.put(0);
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
        self.change(maps, Set::Suspect, &long, bits::set);
        self.change(maps, Set::Held, &long, bits::set);
        match maps.extents.clear(old, control[CONTROL_EXTENTS + old].get()) {
            Ok(()) => control[CONTROL_EXTENTS + old].put(0),
            // They come again with another flip: more work, and nothing lost.
            Err(error) => tracing::warn!(%error, "long ranges that were noted could not be removed"),
        }
        self.held.union(&found.issued);
        self.held.union(&found.completed);
        self.flipped = false;
        Ok(found)
    }

    /// Which of these blocks have been issued for writing in the current generation.
    pub fn issued_now<W: Word>(
        &self,
        maps: Maps<'_, W>,
        kernel: &mut impl Kernel,
        within: &BlockSet,
    ) -> Result<BlockSet, TrackError> {
        watch_issues(maps, kernel)?;
        if reasons(maps) & (LOST_OVERFLOW | LOST_MISSED_ISSUE | LOST_INTERNAL) != 0 {
            return Ok(within.clone());
        }
        let generation = generation(maps);
        let mut issued = BlockSet::default();
        if within.len() <= FEW_BLOCKS {
            for (number, blocks) in within.disks() {
                let disk = (number.0 as usize).wrapping_sub(1);
                let start = self.layout.start(Set::Issued(generation), disk);
                let mut found = RoaringBitmap::new();
                for (index, bits) in bits::words_of(blocks) {
                    let now = maps.marks.get(start + index).map_or(0, Word::get);
                    bits::insert(&mut found, index, now & bits);
                }
                issued.insert_disk(number, found);
            }
        } else {
            let mut found = vec![RoaringBitmap::new(); self.layout.disks()];
            self.visit(maps, generation, |disk, index, issued, _| {
                bits::insert(&mut found[disk], index, issued);
            });
            for (disk, blocks) in found.into_iter().enumerate() {
                issued.insert_disk(slot(disk), blocks);
            }
        }
        for (run, completed) in extents_of(maps, generation)? {
            if !completed {
                issued.insert_run(run);
            }
        }
        Ok(issued.intersection(within))
    }

    /// Number of blocks marked in the current generation.
    pub(super) fn marked_now<W: Word>(&self, maps: Maps<'_, W>) -> Result<u64, TrackError> {
        let generation = generation(maps);
        let extents = extents_of(maps, generation)?;
        let mut blocks: u64 = extents.iter().map(|(run, _)| u64::from(run.blocks)).sum();
        self.visit(maps, generation, |_, _, issued, completed| {
            blocks += u64::from((issued | completed).count_ones());
        });
        Ok(blocks)
    }

    /// Everything taken and not forgotten.
    pub fn held(&self) -> &BlockSet {
        &self.held
    }

    /// Blocks that are not yet certain to have been read after they landed.
    pub fn suspects(&self) -> u64 {
        self.suspects.len()
    }

    /// These blocks are durable as they were when last taken.
    pub fn forget<W: Word>(&mut self, maps: Maps<'_, W>, blocks: &BlockSet) {
        let mut durable = blocks.clone();
        if issue_only(maps) {
            // They come again with the next take; until then a restart must find them held.
            durable.subtract(&self.collect(maps, Set::Suspect));
        }
        self.change(maps, Set::Held, &durable, |words, blocks| _ = bits::clear(words, blocks));
        self.held.subtract(&durable);
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn collect<W: Word>(&self, maps: Maps<'_, W>, set: Set) -> BlockSet {
        let mut all = BlockSet::default();
        for disk in 0..self.layout.disks() {
            all.insert_disk(slot(disk), bits::collect(&maps.marks[self.layout.words(set, disk)]));
        }
        all
    }

    /// Changes a set of the agent's own (held, to copy, suspect).
    pub(super) fn change<W: Word>(
        &self,
        maps: Maps<'_, W>,
        set: Set,
        blocks: &BlockSet,
        change: impl Fn(&[W], &RoaringBitmap),
    ) {
        for disk in 0..self.layout.disks() {
            if let Some(blocks) = blocks.disk(slot(disk)) {
                change(&maps.marks[self.layout.words(set, disk)], blocks);
            }
        }
    }

    /// Calls `visit` with disk, index of the word within the disk, and the bits of issue and of completion, for each
    /// word of this generation that may have marks.
    fn visit<W: Word>(
        &self,
        maps: Maps<'_, W>,
        generation: usize,
        mut visit: impl FnMut(usize, usize, u64, u64),
    ) {
        let Maps { marks, summary, .. } = maps;
        for disk in 0..self.layout.disks() {
            let issued = self.layout.words(Set::Issued(generation), disk);
            let completed = self.layout.words(Set::Completed(generation), disk);
            for group in 0..issued.len() / 64 {
                let mut words =
                    summary[issued.start / 64 + group].get() | summary[completed.start / 64 + group].get();
                while words != 0 {
                    let index = group * 64 + words.trailing_zeros() as usize;
                    words &= words - 1;
                    let bits = |start: usize| marks[start + index].get();
                    visit(disk, index, bits(issued.start), bits(completed.start));
                }
            }
        }
    }
}

fn generation<W: Word>(maps: Maps<'_, W>) -> usize {
    (maps.control[CONTROL_GENERATION].get() & 1) as usize
}

pub(super) fn issue_only<W: Word>(maps: Maps<'_, W>) -> bool {
    maps.control[CONTROL_ISSUE_ONLY].get() == 1
}

/// A run left out at issue may hide a write from the judgement of exactness, and with its completion for good.
pub(super) fn watch_issues<W: Word>(maps: Maps<'_, W>, kernel: &mut impl Kernel) -> Result<(), TrackError> {
    let missed = kernel.missed_issues()?;
    if missed > maps.control[CONTROL_ISSUE_MISSES].get() {
        maps.control[CONTROL_LOST].or(LOST_MISSED_ISSUE);
        maps.control[CONTROL_ISSUE_MISSES].put(missed);
    }
    Ok(())
}

/// Extents of this generation whose entry is whole.
fn extents_of<W: Word>(maps: Maps<'_, W>, generation: usize) -> Result<Vec<Extent>, TrackError> {
    let used = maps.control[CONTROL_EXTENTS + generation].get();
    maps.extents.read(generation, used).map_err(kernel("read the long ranges that were noted"))
}

/// Bits `LOST_*`, wherever they were set.
pub(super) fn reasons<W: Word>(maps: Maps<'_, W>) -> u64 {
    let set = CONTROL_LOST_WORDS.enumerate().filter(|(_, index)| maps.control[*index].get() != 0);
    maps.control[CONTROL_LOST].get() | set.map(|(bit, _)| 1 << bit).sum::<u64>()
}
