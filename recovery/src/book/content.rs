//! Deep: is a snapshot, block by block, what the journal says the disk was?
//!
//! Pages carry no checksum of their own. But the journal is authenticated, so a snapshot is proven by replaying the
//! records between the snapshot before it (or nothing) and itself over that one's content. A flipped or rolled back
//! page shows as a difference, in whichever of the two it is.

use std::ops::Range;

use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::{Point, PointDisk},
    env::Env,
    ids::{DiskSlot, ServerId},
    log::Patience,
    store::{Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
    vhd,
};
use roaring::RoaringBitmap;

use super::finding::{Finding, Severity};
use crate::index::{BlockIndex, IndexError, IndexOptions};

/// Blocks compared at once: 4 MiB.
const AT_ONCE: u32 = 1024;
/// Memory for segments that several blocks are read from.
const CACHE_BYTES: u64 = 64 << 20;

const DIFFERS: &str = "do not use it and points that start from it: take a point whose snapshots are whole, or one that \
    the journal gives alone; the applier cuts a new one at the next recovery point";

/// How much was compared, and what differs.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub bytes: u64,
    pub findings: Vec<Finding>,
}

/// Compares all snapshots of `point`, replayed from `base` (`None`: from the log's first record).
///
/// # Errors
/// When the replay itself cannot be read: then nothing is proven, and the log's own findings say why.
pub(super) async fn compare(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    patience: &Patience,
    point: &Point,
    base: Option<&Point>,
) -> Result<Compared, IndexError> {
    let options = IndexOptions { cache_bytes: CACHE_BYTES };
    let index = BlockIndex::replay(vault, server, env, point.number, base, &options).await?;
    let mut compared = Compared::default();
    for disk in &point.disks {
        let name = layout::seed_disk(server, &disk.disk_id);
        let snapshot = SnapshotId(disk.snapshot.clone());
        let mut blocks = index.used_blocks(DiskSlot(disk.slot)).await?;
        let ranges = patience.sure(|| vault.store.page_ranges(&name, Some(&snapshot))).await?;
        ranges.iter().for_each(|range| insert(&mut blocks, range));
        blocks.remove_range(u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)..);
        let (mut first_byte, mut wrong) = (None, 0_u64);
        for run in runs(&blocks) {
            let count = run.end - run.start;
            let wanted = index.read(DiskSlot(disk.slot), run.start, count).await?;
            let start = u64::from(run.start) * BLOCK_BYTES;
            let range = start..start + u64::from(count) * BLOCK_BYTES;
            let found =
                patience.sure(|| vault.store.get(&name, Some(&snapshot), Some(range.clone()))).await?;
            compared.bytes += found.len() as u64;
            // The image is padded with zeros to whole MiB, so whole blocks can be compared.
            for (number, block) in wanted.chunks(BLOCK_BYTES as usize).enumerate() {
                let at = number * BLOCK_BYTES as usize;
                if found.get(at..at + block.len()) != Some(block) {
                    wrong += 1;
                    first_byte.get_or_insert(start + at as u64);
                }
            }
        }
        if let Some(byte) = first_byte {
            let what = format!("{wrong} blocks of 4 KiB are not what the journal says, the first one here");
            compared.findings.push(finding(&name, disk, point, what).at(byte));
        }
        compared.findings.extend(footer(vault, server, patience, &name, disk, point).await?);
    }
    Ok(compared)
}

async fn footer(
    vault: &Vault,
    server: &ServerId,
    patience: &Patience,
    name: &str,
    disk: &PointDisk,
    point: &Point,
) -> Result<Option<Finding>, StoreError> {
    let at = vhd::virtual_bytes(disk.size_bytes);
    let snapshot = SnapshotId(disk.snapshot.clone());
    let get = || vault.store.get(name, Some(&snapshot), Some(at..at + vhd::FOOTER_BYTES));
    let found = match patience.sure(get).await {
        Ok(found) => found,
        Err(error) if error.is(Refusal::Range) => bytes::Bytes::new(),
        Err(error) => return Err(error),
    };
    let right = found == vhd::footer(server.as_str(), &disk.disk_id, disk.size_bytes).as_slice();
    let what = "the footer of the VHD is not the one of this disk";
    Ok((!right).then(|| finding(name, disk, point, what.to_owned()).at(at)))
}

fn finding(name: &str, disk: &PointDisk, point: &Point, what: String) -> Finding {
    Finding::new(Severity::Damage, name, what, DIFFERS).of_snapshot(&disk.snapshot).of_record(point.number)
}

/// The blocks that a range of bytes touches.
pub(crate) fn insert(blocks: &mut RoaringBitmap, range: &Range<u64>) {
    let (first, end) =
        (u32::try_from(range.start / BLOCK_BYTES), u32::try_from(range.end.div_ceil(BLOCK_BYTES)));
    if let (Ok(first), Ok(end)) = (first, end) {
        blocks.insert_range(first..end);
    }
}

/// Runs of at most [`AT_ONCE`] blocks.
pub(super) fn runs(blocks: &RoaringBitmap) -> impl Iterator<Item = Range<u32>> + '_ {
    let mut at = blocks.iter().peekable();
    std::iter::from_fn(move || {
        let start = at.next()?;
        let mut end = start + 1;
        while end - start < AT_ONCE && at.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_up_to_the_limit() {
        let blocks: RoaringBitmap = (0..1500).chain([2000, 2001]).collect();
        assert_eq!(runs(&blocks).collect::<Vec<_>>(), [0..1024, 1024..1500, 2000..2002]);
    }
}
