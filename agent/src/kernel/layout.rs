//! Where everything is in the maps that agent and eBPF programs share. Pure numbers; `bpf/*.bpf.[ch]` say the same.
//!
//! ```text
//!   MARKS    issued[0] │ issued[1] │ completed[0] │ completed[1] │ held │ to copy │ suspect
//!            each: disk 1 │ disk 2 │ …   (1 bit per 4 KiB block, each disk begins at a multiple of 64 words)
//!   SUMMARY  1 bit per word of MARKS (only the four sets of the program use it)
//!   CONTROL  see the constants below
//! ```
//! Memory: 7 × 32 MiB per TiB of disk, in the kernel, allocated when tracking starts.

use std::ops::Range;

use lifeboat_replication::blocks::BLOCK_BYTES;

use super::disks::Disk;

/// Changes with every change of the layout here or in the program: older pins are then not taken up again.
pub const FORMAT: u64 = 1;
/// First word of CONTROL's description: "lifeboat".
pub const MAGIC: u64 = u64::from_le_bytes(*b"lifeboat");

pub const CONTROL_WORDS: usize = 1024;
pub const CONTROL_GENERATION: usize = 0;
/// Bits `LOST_*`.
pub const CONTROL_LOST: usize = 8;
/// A word for each of the reasons of a program without an atomic OR, in the order of their bits: not zero means set.
pub const CONTROL_LOST_WORDS: Range<usize> = 9..14;
/// Extents used, of generation 0 and 1.
pub const CONTROL_EXTENTS: usize = 16;
/// From here on the program touches nothing below `CONTROL_COUNTERS`. Magic, then the layout's digest (4 words).
pub const CONTROL_MAGIC: usize = 32;
pub const CONTROL_DIGEST: Range<usize> = 33..37;
/// 1 once everything is pinned, attached and filled.
pub const CONTROL_READY: usize = 37;
/// 1 when completions were seen to escape the program.
pub const CONTROL_ISSUE_ONLY: usize = 38;
/// Runs that the kernel left out, as far as they have been dealt with: of `issue`, of `complete`.
pub const CONTROL_ISSUE_MISSES: usize = 39;
pub const CONTROL_COMPLETE_MISSES: usize = 40;
/// Number of the highest record begun, plus one; 0: none was.
pub const CONTROL_SENT: usize = 41;
/// Length in bytes plus one, then the text, of why everything is copied again.
pub const CONTROL_REASON: Range<usize> = 64..128;
/// Two places for the durable mark, written in turn.
pub const CONTROL_DURABLE: [Range<usize>; 2] = [128..144, 144..160];
/// Length in bytes plus one, then the text, of the last request for a resynchronization.
pub const CONTROL_REQUEST: Range<usize> = 160..192;
pub const CONTROL_COUNTERS: usize = 512;
pub const COUNTERS_PER_DISK: usize = 8;
pub const COUNT_WRITES: usize = 0;
pub const COUNT_ISSUED_BYTES: usize = 1;
pub const COUNT_COMPLETED_BYTES: usize = 2;
pub const COUNT_REQUEUED_BYTES: usize = 3;
pub const COUNT_QUEUED_BIOS: usize = 4;
pub const COUNT_ENDED_BIOS: usize = 5;
/// Writes under way at once on disks without a request queue, at most: 80 bytes each.
pub const BIOS: u32 = 1 << 17;

pub const LOST_OVERFLOW: u64 = 1;
pub const LOST_PAST_END: u64 = 2;
pub const LOST_PASSTHROUGH: u64 = 4;
pub const LOST_ZONE: u64 = 8;
pub const LOST_INTERNAL: u64 = 16;
/// Set by the agent: the kernel left out a run of the program at issue.
pub const LOST_MISSED_ISSUE: u64 = 32;
/// More bios were under way than the program notes.
pub const LOST_BIOS: u64 = 64;
/// Set by the agent: completions of bios escape the program.
pub const LOST_ESCAPED_BIOS: u64 = 128;

pub const EXTENTS: usize = 1024;
pub const EXTENT_WORDS: usize = 2 * EXTENTS * 2;
pub const EXTENT_VALID: u64 = 1 << 63;
pub const EXTENT_COMPLETED: u64 = 2 << 32;
/// Only in the set of `Program::Bytes`: its generation is 1 and not 0.
pub const EXTENT_SECOND_GENERATION: u64 = 1 << 40;

/// Disks of a server, at most (entries of DISKS, counters in CONTROL).
pub const MAX_DISKS: usize = 64;

/// The bitmaps in MARKS, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    Issued(usize),
    Completed(usize),
    Held,
    ToCopy,
    Suspect,
}

impl Set {
    const COUNT: usize = 7;

    fn position(self) -> usize {
        match self {
            Self::Issued(generation) => generation & 1,
            Self::Completed(generation) => 2 + (generation & 1),
            Self::Held => 4,
            Self::ToCopy => 5,
            Self::Suspect => 6,
        }
    }
}

/// Sizes and places for the disks given, in their order.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Blocks of each disk, the last one perhaps partial.
    blocks: Vec<u32>,
    /// First word of each disk within a set.
    starts: Vec<usize>,
    set_words: usize,
}

impl Layout {
    pub fn new(disks: &[Disk]) -> Self {
        let blocks: Vec<u32> = disks
            .iter()
            .map(|disk| u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX))
            .collect();
        let mut starts = Vec::new();
        let mut set_words = 0;
        for blocks in &blocks {
            starts.push(set_words);
            set_words += (*blocks as usize).div_ceil(64).next_multiple_of(64);
        }
        Self { blocks, starts, set_words }
    }

    pub fn disks(&self) -> usize {
        self.blocks.len()
    }

    pub fn blocks(&self, disk: usize) -> u32 {
        self.blocks.get(disk).copied().unwrap_or(0)
    }

    /// Entries of MARKS, or `None` when the map's 32-bit index cannot reach them (146 TiB of disks).
    pub fn mark_words(&self) -> Option<u32> {
        u32::try_from(self.set_words * Set::COUNT).ok()
    }

    /// Entries of SUMMARY: the four sets of the program come first in MARKS.
    pub fn summary_words(&self) -> usize {
        self.set_words * Set::COUNT / 64
    }

    /// Index in MARKS of the disk's first word.
    pub fn start(&self, set: Set, disk: usize) -> usize {
        set.position() * self.set_words + self.starts.get(disk).copied().unwrap_or(self.set_words)
    }

    /// The disk's words in MARKS, whole summary words (a multiple of 64).
    pub fn words(&self, set: Set, disk: usize) -> Range<usize> {
        let start = self.start(set, disk);
        start..start + (self.blocks(disk) as usize).div_ceil(64).next_multiple_of(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size_bytes: u64) -> Disk {
        Disk { name: "x".into(), id: "x".into(), size_bytes, device: 0, sequence: 0, bio_based: false }
    }

    #[test]
    fn sets_and_disks_do_not_overlap_and_begin_at_whole_summary_words() {
        let layout = Layout::new(&[disk(4096 * 65), disk(1 << 30), disk(512)]);
        let mut end = 0;
        for set in [
            Set::Issued(0),
            Set::Issued(1),
            Set::Completed(0),
            Set::Completed(1),
            Set::Held,
            Set::ToCopy,
            Set::Suspect,
        ] {
            for index in 0..layout.disks() {
                let words = layout.words(set, index);
                assert_eq!(words.start, end, "{set:?} {index}");
                assert_eq!(words.start % 64, 0);
                assert!((words.len() * 64) as u64 >= u64::from(layout.blocks(index)));
                end = words.end;
            }
        }
        assert_eq!(layout.mark_words(), Some(end as u32));
    }

    #[test]
    fn the_last_partial_block_counts() {
        assert_eq!(Layout::new(&[disk(4096 * 3 + 512)]).blocks(0), 4);
    }
}
