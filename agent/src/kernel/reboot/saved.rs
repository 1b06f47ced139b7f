//! What is saved at shutdown, as bytes. Pure.
//!
//! ```text
//!   length of the description (u32, little-endian) │ description (JSON) │ for each disk: dirty, to copy (Roaring)
//! ```
//! The sets are written as the Roaring format does it, each as long as the description says. A set that is too large
//! for the place is made coarser: whole pieces of 8, 16, … blocks are named where one of them is dirty. That names more
//! blocks than are dirty, which costs a few reads, and never fewer. So any number of disks fits.

use lifeboat_replication::blocks::{BlockSet, RoaringBitmap};
use serde::{Deserialize, Serialize};

use super::areas::Area;

/// Changes with every change of this format.
const VERSION: u32 = 1;
/// Coarsest piece: with it a disk is one bit and less.
const COARSEST: u32 = 31;

/// A disk as it was at shutdown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedDisk {
    pub(super) id: String,
    pub(super) size_bytes: u64,
    pub(super) areas: Vec<Area>,
}

/// The last record known to be durable, as `v1::DurableMark`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kernel) struct SavedMark {
    pub(in crate::kernel) number: u64,
    pub(in crate::kernel) epoch: u32,
    pub(in crate::kernel) chain: Vec<u8>,
}

/// Sets name disks by their place in `disks`, counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Saved {
    pub(super) boot: String,
    pub(super) server: String,
    pub(super) disks: Vec<SavedDisk>,
    pub(super) durable: Option<SavedMark>,
    /// Highest record that was ever begun with these marks.
    pub(super) sent: Option<u64>,
    pub(super) request: Option<String>,
    pub(super) copy_reason: Option<String>,
    pub(super) issue_only: bool,
    /// Everything that may differ from the vault, the copy aside.
    pub(super) dirty: BlockSet,
    pub(super) to_copy: BlockSet,
}

#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    boot: String,
    server: String,
    disks: Vec<SavedDisk>,
    durable: Option<SavedMark>,
    sent: Option<u64>,
    request: Option<String>,
    copy_reason: Option<String>,
    issue_only: bool,
    /// Bytes of the sets: dirty and to copy of the first disk, then of the next.
    lengths: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SavedError {
    #[error("it has the format of another version of the agent")]
    Version,
    #[error("its content is damaged")]
    Damaged,
    #[error("what is to be saved does not fit, even coarsened")]
    TooLarge,
}

impl Saved {
    /// At most `limit` bytes.
    pub(super) fn encode(&self, limit: usize) -> Result<Vec<u8>, SavedError> {
        for shift in std::iter::once(0).chain(3..=COARSEST) {
            let bytes = self.encode_with(shift)?;
            if bytes.len() <= limit {
                return Ok(bytes);
            }
        }
        Err(SavedError::TooLarge)
    }

    fn encode_with(&self, shift: u32) -> Result<Vec<u8>, SavedError> {
        let Self { boot, server, disks, durable, sent, request, copy_reason, issue_only, dirty, to_copy } =
            self;
        let (mut sets, mut lengths) = (Vec::new(), Vec::new());
        for (slot, disk) in (1..).map(lifeboat_replication::ids::DiskSlot).zip(disks) {
            for set in [dirty, to_copy] {
                let before = sets.len();
                let mut blocks =
                    set.disk(slot).map(|set| coarser(set, shift, blocks_of(disk))).unwrap_or_default();
                blocks.optimize();
                blocks.serialize_into(&mut sets).map_err(|_| SavedError::TooLarge)?;
                lengths.push(u32::try_from(sets.len() - before).map_err(|_| SavedError::TooLarge)?);
            }
        }
        let description = Description {
            version: VERSION,
            boot: boot.clone(),
            server: server.clone(),
            disks: disks.clone(),
            durable: durable.clone(),
            sent: *sent,
            request: request.clone(),
            copy_reason: copy_reason.clone(),
            issue_only: *issue_only,
            lengths,
        };
        let description = serde_json::to_vec(&description).map_err(|_| SavedError::TooLarge)?;
        let length = u32::try_from(description.len()).map_err(|_| SavedError::TooLarge)?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(description);
        bytes.extend(sets);
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SavedError> {
        let (length, rest) = bytes.split_first_chunk().ok_or(SavedError::Damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (description, mut rest) = rest.split_at_checked(length).ok_or(SavedError::Damaged)?;
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(description).map_err(|_| SavedError::Damaged)?;
        if version != VERSION {
            return Err(SavedError::Version);
        }
        let Description {
            version: _,
            boot,
            server,
            disks,
            durable,
            sent,
            request,
            copy_reason,
            issue_only,
            lengths,
        } = serde_json::from_slice(description).map_err(|_| SavedError::Damaged)?;
        if lengths.len() != disks.len() * 2 {
            return Err(SavedError::Damaged);
        }
        let (mut dirty, mut to_copy) = (BlockSet::default(), BlockSet::default());
        for (index, length) in lengths.iter().enumerate() {
            let (set, after) = rest.split_at_checked(*length as usize).ok_or(SavedError::Damaged)?;
            rest = after;
            let blocks = RoaringBitmap::deserialize_from(set).map_err(|_| SavedError::Damaged)?;
            let disk = disks.get(index / 2).ok_or(SavedError::Damaged)?;
            if blocks.max().is_some_and(|last| last >= blocks_of(disk)) {
                return Err(SavedError::Damaged);
            }
            let slot = u32::try_from(index / 2 + 1).map_err(|_| SavedError::Damaged)?;
            let target = if index % 2 == 0 { &mut dirty } else { &mut to_copy };
            target.insert_disk(lifeboat_replication::ids::DiskSlot(slot), blocks);
        }
        if !rest.is_empty() {
            return Err(SavedError::Damaged);
        }
        Ok(Self { boot, server, disks, durable, sent, request, copy_reason, issue_only, dirty, to_copy })
    }
}

fn blocks_of(disk: &SavedDisk) -> u32 {
    u32::try_from(disk.size_bytes.div_ceil(lifeboat_replication::blocks::BLOCK_BYTES)).unwrap_or(u32::MAX)
}

/// Every piece of 2^`shift` blocks that holds one of these, whole, up to the end of the disk.
fn coarser(blocks: &RoaringBitmap, shift: u32, end: u32) -> RoaringBitmap {
    if shift == 0 {
        return blocks.clone();
    }
    let mut pieces = RoaringBitmap::new();
    let mut next = 0;
    while let Some(block) = blocks.range(next..).next() {
        let first = block >> shift << shift;
        let after = u64::from(first) + (1 << shift);
        pieces.insert_range(first..u32::try_from(after).unwrap_or(u32::MAX).min(end));
        // Also at the very end, where the piece ends beyond what a number can say.
        let Ok(after) = u32::try_from(after) else { break };
        next = after;
    }
    pieces
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
