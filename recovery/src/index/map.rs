//! Where each changed block of a disk stands. Pure.
//!
//! Built from the newest extent to the oldest: what is covered already stays. Then sorted once, 20 bytes a run, and
//! looked up by binary search.

use lifeboat_replication::{blocks::BlockRun, segment::Extent};
use roaring::RoaringBitmap;

/// A run of blocks and where its content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub first: u32,
    pub blocks: u32,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Zero,
    /// In this segment's extent, `skip` blocks after its beginning.
    Extent {
        segment: u32,
        extent: u32,
        skip: u32,
    },
    /// Not changed since the base.
    Base,
}

#[derive(Debug, Default)]
pub(super) struct Builder {
    covered: RoaringBitmap,
    runs: Vec<Run>,
}

impl Builder {
    /// An extent that is older than all before.
    pub(super) fn add_older(&mut self, segment: u32, number: u32, extent: &Extent) {
        let BlockRun { disk: _, first, blocks } = extent.run;
        if blocks == 0 {
            return;
        }
        let mut free = RoaringBitmap::new();
        free.insert_range(first..first + blocks);
        free -= &self.covered;
        let mut at = free.iter().peekable();
        while let Some(start) = at.next() {
            let mut length = 1;
            while at.next_if(|next| *next == start + length).is_some() {
                length += 1;
            }
            let place = match extent.zero {
                true => Place::Zero,
                false => Place::Extent { segment, extent: number, skip: start - first },
            };
            self.runs.push(Run { first: start, blocks: length, place });
        }
        self.covered |= free;
    }

    pub(super) fn build(mut self) -> DiskMap {
        self.runs.sort_unstable_by_key(|run| run.first);
        self.runs.shrink_to_fit();
        DiskMap { runs: self.runs }
    }
}

/// Runs in order, none overlapping.
#[derive(Debug, Default)]
pub(super) struct DiskMap {
    runs: Vec<Run>,
}

impl DiskMap {
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// First block and number of blocks of each run.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.runs.iter().map(|run| (run.first, run.blocks))
    }

    /// What the blocks `first..first + blocks` are made of, in order, without a gap.
    pub(super) fn pieces(&self, first: u32, blocks: u32) -> Vec<Run> {
        let end = first + blocks;
        let mut pieces = Vec::new();
        let mut at = first;
        let start = self.runs.partition_point(|run| run.first + run.blocks <= first);
        for run in self.runs[start..].iter().take_while(|run| run.first < end) {
            if at < run.first {
                pieces.push(Run { first: at, blocks: run.first - at, place: Place::Base });
                at = run.first;
            }
            let cut = at - run.first;
            let place = match run.place {
                Place::Extent { segment, extent, skip } => {
                    Place::Extent { segment, extent, skip: skip + cut }
                }
                place => place,
            };
            let blocks = (run.blocks - cut).min(end - at);
            pieces.push(Run { first: at, blocks, place });
            at += blocks;
        }
        if at < end {
            pieces.push(Run { first: at, blocks: end - at, place: Place::Base });
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::ids::DiskSlot;
    use proptest::prelude::*;

    use super::*;

    fn extent(first: u32, blocks: u32, zero: bool) -> Extent {
        Extent { run: BlockRun { disk: DiskSlot(1), first, blocks }, zero }
    }

    proptest! {
        #[test]
        fn every_block_is_where_the_newest_extent_put_it(
            extents in prop::collection::vec((0_u32..40, 1_u32..9, any::<bool>()), 0..30),
            from in 0_u32..50, length in 1_u32..30,
        ) {
            let mut plain = vec![Place::Base; 100];
            let mut builder = Builder::default();
            for (number, (first, blocks, zero)) in extents.iter().enumerate() {
                let number = number as u32;
                for block in *first..first + blocks {
                    plain[block as usize] = match zero {
                        true => Place::Zero,
                        false => Place::Extent { segment: number, extent: number + 7, skip: block - first },
                    };
                }
            }
            for (number, (first, blocks, zero)) in extents.iter().enumerate().rev() {
                builder.add_older(number as u32, number as u32 + 7, &extent(*first, *blocks, *zero));
            }
            let mut at = from;
            for piece in builder.build().pieces(from, length) {
                prop_assert_eq!(piece.first, at);
                for block in 0..piece.blocks {
                    let place = match piece.place {
                        Place::Extent { segment, extent, skip } => Place::Extent { segment, extent, skip: skip + block },
                        place => place,
                    };
                    prop_assert_eq!(place, plain[(at + block) as usize]);
                }
                at += piece.blocks;
            }
            prop_assert_eq!(at, from + length);
        }
    }
}
