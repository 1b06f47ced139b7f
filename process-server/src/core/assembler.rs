//! Checks one session's records and gathers them into batches, one for each segment. Pure.
//!
//! Records come in order of number, chunks in order of sequence, every chunk with its checksum; whatever else comes
//! is a [`Violation`] and ends the connection.

use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    ids::{DiskSlot, RecordNumber},
    segment::ExtentData,
    wire::{MAX_CHUNK_BYTES, MAX_CHUNK_EXTENTS, v1},
};

/// A batch is closed once it holds this much: with chunks of at most 4 MiB segments have 2 to 6 MiB of plain text.
const BATCH_BYTES: usize = 2 << 20;
/// What an extent takes in a segment's table.
const EXTENT_BYTES: usize = 16;
/// Segments of a record: their names and checksums have to fit into one append of 4 MiB.
const MAX_RECORD_SEGMENTS: u32 = 16_384;
/// The agent broke the protocol, or its data arrived damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a chunk of record {got} came where record {expected} was due")]
    Number { expected: u64, got: u64 },
    #[error("chunk {got} of record {number} came where chunk {expected} was due")]
    Sequence { number: u64, expected: u32, got: u32 },
    #[error("a chunk of record {number} has {bytes} bytes in {extents} extents")]
    Size { number: u64, bytes: usize, extents: usize },
    #[error(
        "a chunk of record {number} arrived damaged: its checksum is {got:08x} instead of {expected:08x}"
    )]
    Checksum { number: u64, expected: u32, got: u32 },
    #[error("record {number} names blocks {first}+{blocks} of disk slot {slot}, which are not there")]
    Extent { number: u64, slot: u32, first: u64, blocks: u32 },
    #[error("the extents of a chunk of record {number} do not fit its data")]
    Extents { number: u64 },
    #[error("record {number} ends with {got} chunks, {expected} have come")]
    Chunks { number: u64, expected: u32, got: u32 },
    #[error("record {number} has no kind")]
    Kind { number: u64 },
    #[error("record {number} is larger than one append can describe")]
    TooLarge { number: u64 },
    #[error("a second Hello on one connection")]
    SecondHello,
    #[error("a question for checksums before the last one was answered")]
    SecondQuestion,
    #[error("a {what} of {bytes} bytes, which is too long")]
    Long { what: &'static str, bytes: usize },
    #[error("an empty message")]
    Empty,
}

/// Blocks that become one segment.
#[derive(Debug)]
pub(super) struct Batch {
    pub number: RecordNumber,
    /// Number of the segment within the record.
    pub part: u32,
    pub extents: Vec<ExtentData>,
    pub plain_bytes: usize,
    /// Set on the last batch of a record, which may be without blocks.
    pub end: Option<RecordEnd>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct RecordEnd {
    pub end: v1::End,
    /// Bytes of changed blocks, zero ones included.
    pub changed_bytes: u64,
    /// Bytes as they came from the agent.
    pub received_bytes: u64,
}

/// Checks and gathers one session's records. Pure.
#[derive(Debug)]
pub(super) struct Assembler {
    /// Blocks of each disk by slot.
    disks: Vec<(u32, u64)>,
    number: RecordNumber,
    sequence: u32,
    part: u32,
    extents: Vec<ExtentData>,
    plain_bytes: usize,
    changed_bytes: u64,
    received_bytes: u64,
}

impl Assembler {
    pub(super) fn new(disks: &[v1::Disk], last_number: RecordNumber) -> Self {
        let disks = disks.iter().map(|disk| (disk.slot, disk.size_bytes.div_ceil(BLOCK_BYTES))).collect();
        Self {
            disks,
            number: last_number.next(),
            sequence: 0,
            part: 0,
            extents: Vec::new(),
            plain_bytes: 0,
            changed_bytes: 0,
            received_bytes: 0,
        }
    }

    /// Takes a chunk in; gives a batch when enough has gathered.
    pub(super) fn chunk(&mut self, chunk: v1::Chunk) -> Result<Option<Batch>, Violation> {
        let v1::Chunk { number, sequence, extents, data, crc32c } = chunk;
        if number != self.number.0 {
            return Err(Violation::Number { expected: self.number.0, got: number });
        }
        if sequence != self.sequence {
            return Err(Violation::Sequence { number, expected: self.sequence, got: sequence });
        }
        if data.len() > MAX_CHUNK_BYTES || extents.is_empty() || extents.len() > MAX_CHUNK_EXTENTS {
            return Err(Violation::Size { number, bytes: data.len(), extents: extents.len() });
        }
        let computed = crc32c::crc32c(&data);
        if computed != crc32c {
            return Err(Violation::Checksum { number, expected: crc32c, got: computed });
        }
        let (bytes, count) = (data.len(), extents.len());
        self.take_extents(&extents, &data)?;
        self.sequence += 1;
        self.received_bytes += bytes as u64;
        self.plain_bytes += bytes + count * EXTENT_BYTES;
        if self.plain_bytes < BATCH_BYTES {
            return Ok(None);
        }
        if self.part >= MAX_RECORD_SEGMENTS {
            return Err(Violation::TooLarge { number });
        }
        Ok(Some(self.batch(None)))
    }

    fn take_extents(&mut self, extents: &[v1::Extent], data: &Bytes) -> Result<(), Violation> {
        let number = self.number.0;
        let mut at = 0usize;
        for v1::Extent { disk_slot, first_block, blocks, zero } in extents.iter().copied() {
            let wrong = || Violation::Extent { number, slot: disk_slot, first: first_block, blocks };
            let disk_blocks = self
                .disks
                .iter()
                .find(|(slot, _)| *slot == disk_slot)
                .map(|(_, blocks)| *blocks)
                .ok_or_else(wrong)?;
            let end = first_block.checked_add(u64::from(blocks)).ok_or_else(wrong)?;
            let first = u32::try_from(first_block).map_err(|_| wrong())?;
            if blocks == 0 || end > disk_blocks {
                return Err(wrong());
            }
            let bytes = u64::from(blocks) * BLOCK_BYTES;
            let content = if zero {
                None
            } else {
                let end = usize::try_from(bytes).ok().and_then(|bytes| at.checked_add(bytes));
                let end = end.filter(|end| *end <= data.len()).ok_or(Violation::Extents { number })?;
                let content = data.slice(at..end);
                at = end;
                Some(content)
            };
            // Zero runs cost an agent nothing: it may send more of them than there is disk.
            self.changed_bytes = self.changed_bytes.saturating_add(bytes);
            self.extents.push(ExtentData {
                run: BlockRun { disk: DiskSlot(disk_slot), first, blocks },
                data: content,
            });
        }
        if at == data.len() { Ok(()) } else { Err(Violation::Extents { number }) }
    }

    /// Ends the record; the batch carries what is left of it, if anything.
    pub(super) fn end(&mut self, end: v1::End) -> Result<Batch, Violation> {
        let number = self.number.0;
        if end.number != number {
            return Err(Violation::Number { expected: number, got: end.number });
        }
        if end.chunks != self.sequence {
            return Err(Violation::Chunks { number, expected: self.sequence, got: end.chunks });
        }
        if end.kind() == v1::RecordKind::Unspecified {
            return Err(Violation::Kind { number });
        }
        let ended = RecordEnd { end, changed_bytes: self.changed_bytes, received_bytes: self.received_bytes };
        let batch = self.batch(Some(ended));
        self.number = self.number.next();
        self.sequence = 0;
        self.part = 0;
        self.changed_bytes = 0;
        self.received_bytes = 0;
        Ok(batch)
    }

    fn batch(&mut self, end: Option<RecordEnd>) -> Batch {
        let part = self.part;
        self.part += 1;
        Batch {
            number: self.number,
            part,
            extents: std::mem::take(&mut self.extents),
            plain_bytes: std::mem::take(&mut self.plain_bytes),
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler() -> Assembler {
        let disk = v1::Disk { slot: 1, id: "a".into(), size_bytes: 1024 * BLOCK_BYTES, ..Default::default() };
        Assembler::new(&[disk], RecordNumber(4))
    }

    fn chunk(number: u64, sequence: u32, first: u64, blocks: u32) -> v1::Chunk {
        let data = Bytes::from(vec![5; blocks as usize * BLOCK_BYTES as usize]);
        let extents = vec![
            v1::Extent { disk_slot: 1, first_block: first, blocks, zero: false },
            v1::Extent { disk_slot: 1, first_block: 0, blocks: 1, zero: true },
        ];
        v1::Chunk { number, sequence, extents, crc32c: crc32c::crc32c(&data), data }
    }

    fn end(number: u64, chunks: u32) -> v1::End {
        v1::End { number, chunks, kind: v1::RecordKind::Exact.into(), ..Default::default() }
    }

    #[test]
    fn small_chunks_share_a_batch_and_large_ones_do_not() {
        let mut assembler = assembler();
        assert!(assembler.chunk(chunk(5, 0, 1, 2)).unwrap().is_none());
        assert!(assembler.chunk(chunk(5, 1, 9, 2)).unwrap().is_none());
        let batch = assembler.chunk(chunk(5, 2, 20, 600)).unwrap().unwrap();
        assert_eq!((batch.number.0, batch.part, batch.extents.len(), batch.end), (5, 0, 6, None));
        let last = assembler.end(end(5, 3)).unwrap();
        assert_eq!((last.part, last.extents.len()), (1, 0));
        assert_eq!(last.end.unwrap().changed_bytes, (604 + 3) * BLOCK_BYTES);
        let next = assembler.end(end(6, 0)).unwrap();
        assert_eq!((next.number.0, next.part), (6, 0));
    }

    #[test]
    fn a_damaged_chunk_is_refused() {
        let mut damaged = chunk(5, 0, 1, 1);
        damaged.crc32c ^= 1;
        let violation = assembler().chunk(damaged).unwrap_err();
        assert!(violation.to_string().contains("arrived damaged"), "{violation}");
    }

    #[test]
    fn records_and_chunks_out_of_order_are_refused() {
        assert_eq!(
            assembler().chunk(chunk(6, 0, 1, 1)).unwrap_err(),
            Violation::Number { expected: 5, got: 6 }
        );
        assert_eq!(
            assembler().chunk(chunk(4, 0, 1, 1)).unwrap_err(),
            Violation::Number { expected: 5, got: 4 }
        );
        assert!(matches!(assembler().chunk(chunk(5, 1, 1, 1)), Err(Violation::Sequence { .. })));
        assert!(matches!(assembler().end(end(5, 1)), Err(Violation::Chunks { .. })));
    }

    #[test]
    fn a_record_that_never_ends_is_refused_before_one_append_cannot_describe_it() {
        let mut assembler = assembler();
        assembler.part = MAX_RECORD_SEGMENTS - 1;
        assert_eq!(assembler.chunk(chunk(5, 0, 1, 600)).unwrap().unwrap().part, MAX_RECORD_SEGMENTS - 1);
        assert_eq!(assembler.chunk(chunk(5, 1, 1, 600)).unwrap_err(), Violation::TooLarge { number: 5 });
    }

    /// Sums that overflow stop a program that checks for it, and with it the sessions of others.
    #[test]
    fn zero_runs_without_end_do_not_overflow_the_sums() {
        let disk =
            v1::Disk { slot: 1, id: "a".into(), size_bytes: 8 << 40, path: String::new(), left_out: false };
        let mut assembler = Assembler::new(&[disk], RecordNumber(0));
        let all = v1::Extent { disk_slot: 1, first_block: 0, blocks: (8_u64 << 40 >> 12) as u32, zero: true };
        for sequence in 0..160 {
            let extents = vec![all; MAX_CHUNK_EXTENTS];
            assembler.chunk(v1::Chunk { number: 1, sequence, extents, ..Default::default() }).unwrap();
        }
        let batch = assembler.end(end(1, 160)).unwrap();
        assert_eq!(batch.end.unwrap().changed_bytes, u64::MAX);
    }

    #[test]
    fn blocks_beyond_the_disk_and_extents_beyond_the_data_are_refused() {
        assert!(matches!(assembler().chunk(chunk(5, 0, 1023, 2)), Err(Violation::Extent { .. })));
        assert!(matches!(assembler().chunk(chunk(5, 0, u64::MAX, 2)), Err(Violation::Extent { .. })));
        let mut short = chunk(5, 0, 1, 2);
        short.data = short.data.slice(..4096);
        short.crc32c = crc32c::crc32c(&short.data);
        assert_eq!(assembler().chunk(short).unwrap_err(), Violation::Extents { number: 5 });
    }
}
