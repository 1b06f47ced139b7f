//! Deep: is a snapshot, block by block, what the journal says the disk was?
//!
//! Pages carry no checksum of their own. But the journal is authenticated, so a snapshot is proven by replaying the
//! records between the snapshot before it (or nothing) and itself over that one's content. A flipped or rolled back
//! page shows as a difference, in whichever of the two it is.
//!
//! Every snapshot is read whole, and most of them once: what was proven of one is remembered by the sums of its chunks. A
//! chunk that the journal has not written since must have the same sum in the next one; where it has, or the sum is another,
//! the content of both is compared.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::{Point, PointDisk},
    env::Env,
    ids::{DiskSlot, RecordId, ServerId},
    log::Patience,
    store::{Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
    vhd,
};
use ring::digest::{Context, SHA256};
use roaring::RoaringBitmap;

use super::finding::{Finding, Severity};
use crate::index::{BlockIndex, IndexError, IndexOptions};

/// Blocks compared at once: 4 MiB.
const AT_ONCE: u32 = 1024;
/// Blocks of a chunk: 1 MiB. Few are touched by the journal between two snapshots, and a sum is small beside it.
const CHUNK_BLOCKS: u32 = 256;
/// Chunks that are read at a time: the store's latency is as long as a chunk takes.
const PARALLEL: usize = 4;
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

type Sum = [u8; 32];

/// The last point whose snapshots were found equal to the journal.
#[derive(Debug, Default)]
pub(super) struct Proven {
    of: Option<RecordId>,
    /// Of the chunks with content, by slot and number.
    sums: BTreeMap<(u32, u32), Sum>,
}

/// Compares all snapshots of `point`, replayed from `base` (`None`: from the log's first record). `proven` is what is
/// remembered of the base, and then of the point.
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
    proven: &mut Proven,
) -> Result<Compared, IndexError> {
    let options = IndexOptions { cache_bytes: CACHE_BYTES };
    let index = BlockIndex::replay(vault, server, env, point.number, base, &options).await?;
    let known = base.is_some_and(|base| proven.of == Some(base.id()));
    let mut compared = Compared::default();
    let mut sums = BTreeMap::new();
    for disk in &point.disks {
        let name = layout::seed_disk(server, &disk.disk_id);
        let (slot, snapshot) = (DiskSlot(disk.slot), SnapshotId(disk.snapshot.clone()));
        let mut blocks = index.used_blocks(slot).await?;
        let ranges = patience.sure(|| vault.store.page_ranges(&name, Some(&snapshot))).await?;
        ranges.iter().for_each(|range| insert(&mut blocks, range));
        blocks.remove_range(u32::try_from(disk.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)..);
        let journal = index.journal_blocks(slot)?;
        let (index, name, snapshot, journal, proven) = (&index, &name, &snapshot, &journal, &*proven);
        let mut chunks = stream::iter(chunks(&blocks))
            .map(|(chunk, span)| async move {
                let start = u64::from(span.start) * BLOCK_BYTES;
                let range = start..u64::from(span.end) * BLOCK_BYTES;
                let found =
                    patience.sure(|| vault.store.get(name, Some(snapshot), Some(range.clone()))).await?;
                let sum = sum(span.start, &found);
                let same = known
                    && journal.range_cardinality(span.clone()) == 0
                    && proven.sums.get(&(disk.slot, chunk)) == Some(&sum);
                let wrong = match same {
                    true => Vec::new(),
                    false => differing(&index.read(slot, span.start, span.end - span.start).await?, &found),
                };
                let wrong: Vec<u64> = wrong.into_iter().map(|at| start + at).collect();
                Ok::<_, IndexError>((chunk, sum, found.len() as u64, wrong))
            })
            .buffered(PARALLEL);
        let (mut first_byte, mut count) = (None, 0);
        while let Some((chunk, sum, bytes, wrong)) = chunks.try_next().await? {
            compared.bytes += bytes;
            first_byte = first_byte.or(wrong.first().copied());
            count += wrong.len();
            sums.insert((disk.slot, chunk), sum);
        }
        if let Some(byte) = first_byte {
            let what = format!("{count} blocks of 4 KiB are not what the journal says, the first one here");
            compared.findings.push(finding(name, disk, point, what).at(byte));
        }
        compared.findings.extend(footer(vault, server, patience, name, disk, point).await?);
    }
    if compared.findings.is_empty() {
        *proven = Proven { of: Some(point.id()), sums };
    }
    Ok(compared)
}

/// Places of blocks that are not as wanted. The image is padded with zeros to whole MiB, so whole blocks can be compared.
fn differing(wanted: &Bytes, found: &Bytes) -> Vec<u64> {
    let blocks = wanted.chunks(BLOCK_BYTES as usize).zip((0..).step_by(BLOCK_BYTES as usize));
    let differs = |(block, at): &(&[u8], usize)| found.get(*at..*at + block.len()) != Some(*block);
    blocks.filter(differs).map(|(_, at)| at as u64).collect()
}

/// Of the blocks that are not zero and where they are, so that it does not depend on what else was read around them.
fn sum(first: u32, content: &[u8]) -> Sum {
    let mut context = Context::new(&SHA256);
    for (number, block) in (first..).zip(content.chunks(BLOCK_BYTES as usize)) {
        if block.iter().any(|byte| *byte != 0) {
            context.update(&number.to_le_bytes());
            context.update(block);
        }
    }
    let mut sum = Sum::default();
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// Chunks that hold some of the blocks, each with the span from its first to its last one.
fn chunks(blocks: &RoaringBitmap) -> impl Iterator<Item = (u32, Range<u32>)> + '_ {
    let mut at = blocks.iter().peekable();
    std::iter::from_fn(move || {
        let first = at.next()?;
        let chunk = first / CHUNK_BLOCKS;
        let mut last = first;
        while let Some(block) = at.next_if(|block| block / CHUNK_BLOCKS == chunk) {
            last = block;
        }
        Some((chunk, first..last + 1))
    })
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
    fn a_chunk_is_read_from_its_first_block_to_its_last() {
        let blocks: RoaringBitmap = [3, 7, 255, 256, 900, u32::MAX - 1].into_iter().collect();
        let last = u32::MAX / CHUNK_BLOCKS;
        assert_eq!(
            chunks(&blocks).collect::<Vec<_>>(),
            [(0, 3..256), (1, 256..257), (3, 900..901), (last, u32::MAX - 1..u32::MAX)]
        );
    }

    #[test]
    fn a_sum_is_of_what_is_not_zero_and_of_its_place() {
        let block = |byte: u8| vec![byte; BLOCK_BYTES as usize];
        let one = sum(5, &[block(0), block(1)].concat());
        assert_eq!(sum(6, &[block(1), block(0), block(0)].concat()), one, "zeros around it do not count");
        assert_ne!(sum(5, &[block(1), block(0)].concat()), one, "another place");
        assert_ne!(sum(6, &block(2)), one, "another content");
        assert_ne!(sum(6, &block(1)[..4095]), one, "cut");
    }

    #[test]
    fn neighbours_are_read_together_up_to_the_limit() {
        let blocks: RoaringBitmap = (0..1500).chain([2000, 2001]).collect();
        assert_eq!(runs(&blocks).collect::<Vec<_>>(), [0..1024, 1024..1500, 2000..2002]);
    }
}
