//! First stage: what the agent sends becomes batches, one for each segment.
//!
//! In: `Up` messages in order. Out: [`Admitted`] batches in order, the last of a record with its end.
//! Bounds: one batch is below 6 MiB; a batch goes on only when the spool has room for it and the memory budget of
//! all servers allows it. Until then nothing more is read from the connection: that is the back-pressure.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    env::Env,
    ids::{DiskSlot, RecordNumber},
    segment::ExtentData,
    wire::{MAX_CHUNK_BYTES, v1},
};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::timeout,
};

use super::{
    assignment::Assigned,
    spool::{Room, SpoolSpace},
    status::StatusSender,
};

/// A batch is closed once it holds this much: with chunks of at most 4 MiB segments have 2 to 6 MiB of plain text.
const BATCH_BYTES: usize = 2 << 20;
/// What an extent takes in a segment's table.
const EXTENT_BYTES: usize = 16;
/// Extents of a chunk: one for each block of its data, and zero runs between and around them; 256 KiB in memory.
const MAX_CHUNK_EXTENTS: usize = 16 * MAX_CHUNK_BYTES / BLOCK_BYTES as usize;
/// Segments of a record: their names and checksums have to fit into one append of 4 MiB.
const MAX_RECORD_SEGMENTS: u32 = 16_384;
/// A connection that says nothing for this long is dead: agents send a heartbeat each second.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// While the intake waits for room it says so this often, lest the agent take the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The memory budget counts in units of this, since semaphores count in 32 bits.
pub(super) const BUDGET_UNIT: usize = 4096;

/// The agent broke the protocol, or its data arrived damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
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

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RecordEnd {
    pub end: v1::End,
    /// Bytes of changed blocks, zero ones included.
    pub changed_bytes: u64,
    /// Bytes as they came from the agent.
    pub received_bytes: u64,
}

/// A batch with everything it needs to go on.
#[derive(Debug)]
pub(super) struct Admitted {
    pub batch: Batch,
    pub room: Room,
    /// Given back when the batch's plain text is gone.
    pub memory: OwnedSemaphorePermit,
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
            self.changed_bytes += bytes;
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

/// What the stage works with.
pub(super) struct Intake {
    pub env: Env,
    pub status: StatusSender,
    pub space: Arc<SpoolSpace>,
    pub memory: Arc<Semaphore>,
    /// Units in `memory`, so that a batch larger than all of it is still admitted, alone.
    pub memory_units: usize,
    pub server: String,
    pub assigned: watch::Receiver<Option<Assigned>>,
    pub up: mpsc::Receiver<v1::Up>,
    pub down: mpsc::Sender<v1::Down>,
    pub out: mpsc::Sender<Admitted>,
}

impl Intake {
    /// Reads until the connection ends; dropping `out` then lets the stages behind it finish what they have.
    pub(super) async fn run(mut self, mut assembler: Assembler) -> Result<(), Violation> {
        while let Some(up) = self.next().await {
            let batch = match up.message.ok_or(Violation::Empty)? {
                v1::up::Message::Hello(_) => return Err(Violation::SecondHello),
                v1::up::Message::Heartbeat(heartbeat) => {
                    self.answer(heartbeat).await;
                    None
                }
                v1::up::Message::Chunk(chunk) => {
                    self.status.received(chunk.data.len() as u64, self.env.wall.now());
                    assembler.chunk(chunk)?
                }
                v1::up::Message::End(end) => Some(assembler.end(end)?),
            };
            let Some(batch) = batch else { continue };
            let Some(admitted) = self.admit(batch).await else { break };
            if self.out.send(admitted).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The next message; `None` when the connection is gone or the server is no longer assigned here.
    async fn next(&mut self) -> Option<v1::Up> {
        loop {
            tokio::select! {
                biased;
                changed = self.assigned.changed() => {
                    changed.ok()?;
                    let settings = self.settings()?;
                    let _ = self.down.send(settings).await;
                }
                up = timeout(SILENCE_LIMIT, self.up.recv()) => return up.ok().flatten(),
            }
        }
    }

    /// `None`: not assigned any more.
    fn settings(&mut self) -> Option<v1::Down> {
        let settings = self.assigned.borrow_and_update().as_ref().map(|assigned| assigned.settings)?;
        Some(v1::Down { message: Some(v1::down::Message::Settings(settings)) })
    }

    /// An agent that is gone hears nothing; what it has sent before is taken in nevertheless.
    async fn answer(&self, heartbeat: v1::Heartbeat) {
        let now = self.env.wall.now();
        let answer = v1::HeartbeatAnswer {
            agent_time_micros: heartbeat.agent_time_micros,
            process_server_time_micros: now.0,
        };
        self.status.heartbeat(heartbeat, now);
        let message = Some(v1::down::Message::HeartbeatAnswer(answer));
        let _ = self.down.send(v1::Down { message }).await;
    }

    /// Waits for room in the spool and in memory; `None` when the server is not assigned any more.
    async fn admit(&mut self, batch: Batch) -> Option<Admitted> {
        let units = batch.plain_bytes.div_ceil(BUDGET_UNIT).min(self.memory_units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let (space, memory) = (Arc::clone(&self.space), Arc::clone(&self.memory));
        let (server, bytes) = (self.server.clone(), sealed_bound(batch.plain_bytes));
        let admission = async move {
            let room = space.reserve(&server, bytes).await;
            Some((room, memory.acquire_many_owned(units).await.ok()?))
        };
        let mut admission = std::pin::pin!(admission);
        loop {
            match timeout(KEEP_ALIVE, &mut admission).await {
                Ok(admitted) => {
                    self.status.waiting(false);
                    let (room, memory) = admitted?;
                    return Some(Admitted { batch, room, memory });
                }
                Err(_) => {
                    self.status.waiting(true);
                    let sign_of_life = self.settings()?;
                    // The agent may be gone for good: then what came from it is all the more worth keeping.
                    if let Err(TrySendError::Closed(_)) = self.down.try_send(sign_of_life) {
                        self.status.connected(false, self.env.wall.now());
                    }
                }
            }
        }
    }
}

/// Most bytes that so much plain text can become: zstd's bound, header and authentication tag.
fn sealed_bound(plain_bytes: usize) -> u64 {
    (plain_bytes + plain_bytes / 256 + 1024) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler() -> Assembler {
        let disk = v1::Disk { slot: 1, id: "a".into(), size_bytes: 1024 * BLOCK_BYTES, path: String::new() };
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
    fn blocks_beyond_the_disk_and_extents_beyond_the_data_are_refused() {
        assert!(matches!(assembler().chunk(chunk(5, 0, 1023, 2)), Err(Violation::Extent { .. })));
        assert!(matches!(assembler().chunk(chunk(5, 0, u64::MAX, 2)), Err(Violation::Extent { .. })));
        let mut short = chunk(5, 0, 1, 2);
        short.data = short.data.slice(..4096);
        short.crc32c = crc32c::crc32c(&short.data);
        assert_eq!(assembler().chunk(short).unwrap_err(), Violation::Extents { number: 5 });
    }
}
