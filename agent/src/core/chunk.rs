//! Reads part of a set of blocks and makes it the content of a chunk: zero blocks carry no data.
//!
//! In: blocks still to read. Out: at most [`Limits::chunk_bytes`] of data and which blocks it covers. Bounded by
//! that, and by [`READS_AT_ONCE`] reads of [`RUN_BLOCKS`] under way.

use std::{io, ops::Range};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun, BlockSet},
    ids::DiskSlot,
};

use super::Limits;
use crate::edge::BlockSource;

/// Longest single read: 1 MiB, from where disks read at full speed.
const RUN_BLOCKS: u32 = 256;
/// This many are under way at a time: more than a disk's useful queue depth costs memory only.
const READS_AT_ONCE: usize = 16;
/// Scattered blocks are handed over together up to this much: waking a reader costs as much as a short read.
const TOGETHER_BLOCKS: u32 = 64;
/// A chunk of zeros covers at most this much, so that it is never long under way.
const COVERED_BLOCKS: u64 = (64 << 20) / BLOCK_BYTES;
/// Extents of one chunk, so that its message stays below the limit: 16 bytes each.
const MAX_EXTENTS: usize = 8192;

const BLOCK: usize = BLOCK_BYTES as usize;
static ZERO: [u8; BLOCK] = [0; BLOCK];

#[derive(Debug, thiserror::Error)]
#[error(
    "disk {disk} cannot be read at block {first} (+{blocks}): replication waits and tries again; check the disk (smartctl, dmesg)"
)]
pub struct ReadError {
    pub disk: DiskSlot,
    pub first: u32,
    pub blocks: u32,
    pub source: io::Error,
}

/// Neighbouring blocks of one disk that are all zero or all not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub run: BlockRun,
    pub zero: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub pieces: Vec<Piece>,
    /// Of the pieces that are not zero, one after the other.
    pub data: Bytes,
    pub blocks: BlockSet,
}

/// Reads the first blocks of `rest`.
pub async fn read(source: &dyn BlockSource, rest: &BlockSet, limits: &Limits) -> Result<Content, ReadError> {
    let data_blocks = (limits.chunk_bytes / BLOCK_BYTES).max(1);
    let mut content = Building::default();
    // Once for all: growing step by step would copy everything several times.
    content.data.reserve(usize::try_from(rest.bytes().min(limits.chunk_bytes)).unwrap_or_default());
    let mut runs = rest.runs(RUN_BLOCKS.min(u32::try_from(data_blocks).unwrap_or(RUN_BLOCKS))).peekable();
    while content.has_room() {
        let room = data_blocks.saturating_sub(content.data.len() as u64 / BLOCK_BYTES);
        let mut batch = Vec::new();
        let mut blocks = 0;
        while let Some(run) = runs.next_if(|run| blocks + u64::from(run.blocks) <= room) {
            blocks += u64::from(run.blocks);
            batch.push(run);
        }
        if batch.is_empty() {
            break;
        }
        let mut reads =
            stream::iter(together(batch)).map(|runs| source.read_each(runs)).buffered(READS_AT_ONCE);
        while let Some(answers) = reads.next().await {
            for (run, read) in answers {
                let fail =
                    |source| ReadError { disk: run.disk, first: run.first, blocks: run.blocks, source };
                content.add(run, &read.map_err(fail)?).map_err(fail)?;
            }
        }
    }
    Ok(content.finish())
}

/// Neighbours in order, in groups of [`TOGETHER_BLOCKS`]; a longer run is alone.
fn together(runs: Vec<BlockRun>) -> Vec<Vec<BlockRun>> {
    let mut groups: Vec<Vec<BlockRun>> = Vec::new();
    let mut blocks = 0;
    for run in runs {
        match groups.last_mut().filter(|_| blocks + run.blocks <= TOGETHER_BLOCKS) {
            Some(group) => group.push(run),
            None => {
                groups.push(vec![run]);
                blocks = 0;
            }
        }
        blocks += run.blocks;
    }
    groups
}

#[derive(Default)]
struct Building {
    pieces: Vec<Piece>,
    data: BytesMut,
    blocks: BlockSet,
    covered: u64,
}

impl Building {
    fn has_room(&self) -> bool {
        self.covered < COVERED_BLOCKS && self.pieces.len() < MAX_EXTENTS - 1024
    }

    fn add(&mut self, run: BlockRun, data: &Bytes) -> io::Result<()> {
        if data.len() as u64 != u64::from(run.blocks) * BLOCK_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} bytes instead of {} blocks", data.len(), run.blocks),
            ));
        }
        self.blocks.insert_run(run);
        self.covered += u64::from(run.blocks);
        for (zero, range) in alternate(data) {
            let first = run.first + range.start;
            let piece = BlockRun { disk: run.disk, first, blocks: range.end - range.start };
            if !zero {
                self.data.extend_from_slice(&data[range.start as usize * BLOCK..range.end as usize * BLOCK]);
            }
            match self.pieces.last_mut() {
                Some(last)
                    if last.zero == zero
                        && last.run.disk == piece.disk
                        && last.run.first.checked_add(last.run.blocks) == Some(first) =>
                {
                    last.run.blocks += piece.blocks;
                }
                _ => self.pieces.push(Piece { run: piece, zero }),
            }
        }
        Ok(())
    }

    fn finish(self) -> Content {
        Content { pieces: self.pieces, data: self.data.freeze(), blocks: self.blocks }
    }
}

/// Splits whole blocks into stretches that are zero or not, in block numbers relative to `data`.
fn alternate(data: &[u8]) -> Vec<(bool, Range<u32>)> {
    let mut stretches: Vec<(bool, Range<u32>)> = Vec::new();
    for (block, number) in data.chunks_exact(BLOCK).zip(0u32..) {
        let zero = *block == ZERO;
        match stretches.last_mut() {
            Some((same, range)) if *same == zero => range.end = number + 1,
            _ => stretches.push((zero, number..number + 1)),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use lifeboat_replication::wire::v1;

    use super::*;

    /// Blocks whose number ends in 0 or 1 are zero; each other holds its number.
    struct Pattern;

    #[async_trait]
    impl BlockSource for Pattern {
        fn disks(&self) -> Vec<v1::Disk> {
            Vec::new()
        }

        async fn read(&self, run: BlockRun) -> io::Result<Bytes> {
            let block = |number: u32| {
                if number % 10 < 2 { [0; BLOCK] } else { [u8::try_from(number % 251).unwrap(); BLOCK] }
            };
            Ok((run.first..run.first + run.blocks).flat_map(block).collect::<Vec<_>>().into())
        }
    }

    fn set(first: u32, blocks: u32) -> BlockSet {
        let mut set = BlockSet::default();
        set.insert_run(BlockRun { disk: DiskSlot(1), first, blocks });
        set
    }

    #[tokio::test]
    async fn zero_blocks_carry_no_data_and_the_pieces_cover_what_was_read() {
        let content = read(&Pattern, &set(0, 12), &Limits::default()).await.unwrap();
        let pieces: Vec<_> =
            content.pieces.iter().map(|piece| (piece.run.first, piece.run.blocks, piece.zero)).collect();
        assert_eq!(pieces, [(0, 2, true), (2, 8, false), (10, 2, true)]);
        assert_eq!(content.data.len(), 8 * BLOCK);
        assert_eq!(content.data[0], 2);
        assert_eq!(content.blocks, set(0, 12));
    }

    #[tokio::test]
    async fn a_chunk_stays_below_its_limit_and_the_rest_follows() {
        let limits = Limits { chunk_bytes: 64 * BLOCK_BYTES, ..Limits::default() };
        let mut rest = set(0, 1000);
        let mut seen = BlockSet::default();
        while !rest.is_empty() {
            let content = read(&Pattern, &rest, &limits).await.unwrap();
            assert!(content.data.len() as u64 <= limits.chunk_bytes, "{}", content.data.len());
            assert!(!content.blocks.is_empty() && !seen.intersects(&content.blocks));
            rest.subtract(&content.blocks);
            seen.union(&content.blocks);
        }
        assert_eq!(seen, set(0, 1000));
    }
}
