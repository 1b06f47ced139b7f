//! What the kernel's counters say about writes to the disks. Reads sysfs.
//!
//! The same counters at two moments, and nothing under way at the second, prove that nothing was written in between.
//! Commands past the block layer (SG_IO, NVMe passthrough) are not counted.

use std::{fs, path::Path};

use super::super::disks::{Disk, text};

/// Fields of `stat` that a change of the content moves (Documentation/block/stat.rst): writes, sectors written, discards,
/// sectors discarded. Kernels before 4.18 count discards as writes.
const FIELDS: [usize; 4] = [4, 6, 11, 13];
const SECTORS: [usize; 2] = [1, 3];
const SECTORS_PER_BLOCK: u64 = 8;

/// The counters of all disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Activity(Vec<[u64; 4]>);

impl Activity {
    /// `None`: a disk is not counted, so nothing can be proven.
    pub(super) fn now(sysfs: &Path, disks: &[Disk]) -> Option<Self> {
        let counters = |disk: &Disk| {
            let folder = sysfs.join("block").join(&disk.name);
            if text(&folder.join("queue/iostats"))? == "0" {
                return None;
            }
            parse(&fs::read_to_string(folder.join("stat")).ok()?)
        };
        disks.iter().map(counters).collect::<Option<_>>().map(Self)
    }

    /// Blocks written and discarded from here until `later`, at most.
    pub(super) fn blocks_until(&self, later: &Self) -> u64 {
        if self == later {
            return 0;
        }
        let of = |(before, after): (&[u64; 4], &[u64; 4])| -> u64 {
            SECTORS.iter().map(|field| after[*field].saturating_sub(before[*field])).sum()
        };
        let sectors: u64 = self.0.iter().zip(&later.0).map(of).sum();
        sectors.div_ceil(SECTORS_PER_BLOCK).max(1)
    }
}

fn parse(stat: &str) -> Option<[u64; 4]> {
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Eleven fields in the oldest kernels.
    (fields.len() >= 11).then(|| FIELDS.map(|field| fields.get(field).copied().unwrap_or(0)))
}

/// Writes under way; `None`: a disk is not counted.
pub(super) fn in_flight(sysfs: &Path, disks: &[Disk]) -> Option<u64> {
    disks.iter().map(|disk| super::super::in_flight::writes(sysfs, &disk.name)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_discards_move_it_and_reads_do_not() {
        let before = parse("5 0 40 1 10 2 80 3 0 4 5 6 0 48 0 0 0").unwrap();
        assert_eq!(before, [10, 80, 6, 48]);
        assert_eq!(parse("9 0 99 9 10 2 80 3 0 9 9 6 0 48 0 0 0"), Some(before));
        let activity = |counters| Activity(vec![counters]);
        assert_eq!(activity(before).blocks_until(&activity(before)), 0);
        assert_eq!(activity(before).blocks_until(&activity([11, 96, 7, 49])), 3);
        assert_eq!(activity(before).blocks_until(&activity([11, 80, 6, 48])), 1, "at least one");
    }

    #[test]
    fn kernels_without_counters_of_discards_are_understood() {
        assert_eq!(parse("5 0 40 1 10 2 80 3 0 4 5"), Some([10, 80, 0, 0]));
        assert_eq!(parse("5 0 40"), None);
    }
}
