//! Second stage: compress, encrypt, keep in the spool, and, while uploads begin at once, in memory too.
//!
//! In: [`Admitted`] batches in order. Out: [`Piece`]s in the same order; once the last one of a record is kept and the
//! record written down for a restart, the agent hears `Received`. Bounds: a few segments of a server are sealed at a time,
//! within the memory budget; a few of all servers are kept in memory.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesOrdered};
use lifeboat_replication::{
    errors::chain,
    ids::{Epoch, RecordNumber, ServerId},
    keys::DataKeys,
    segment::{self, ExtentData, Sealed, SegmentError},
    vault::layout,
    wire::v1,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{
    assembler::RecordEnd,
    assignment::Assigned,
    intake::Admitted,
    kept::Keeper,
    space::Room,
    spool::{Spool, SpoolError},
};

/// A record whose only segment is at most this large travels inside its commit record: one store operation less.
const INLINE_BYTES: usize = 64 << 10;
/// Segments of one server that are sealed at a time.
const PARALLEL: usize = 2;

/// What to seal.
#[derive(Debug)]
pub struct SealJob {
    /// Whose.
    pub server: ServerId,
    pub keys: Arc<DataKeys>,
    pub name: String,
    pub extents: Vec<ExtentData>,
    /// zstd level.
    pub level: i32,
}

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("the sealing threads are gone: the process server is stopping")]
    Gone,
}

/// Does the work: inline in the simulation, on a bounded thread pool in production.
#[async_trait]
pub trait Sealer: fmt::Debug + Send + Sync + 'static {
    async fn seal(&self, job: SealJob) -> Result<Sealed, SealError>;

    /// A record whose only segment is at most this large carries it.
    fn inline_bytes(&self) -> usize {
        INLINE_BYTES
    }
}

/// Seals in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineSealer;

#[async_trait]
impl Sealer for InlineSealer {
    async fn seal(&self, job: SealJob) -> Result<Sealed, SealError> {
        seal_now(&job)
    }
}

/// The work itself.
pub fn seal_now(job: &SealJob) -> Result<Sealed, SealError> {
    Ok(segment::seal(&job.keys, &job.name, &job.extents, job.level)?)
}

/// A sealed segment and where it is.
#[derive(Debug)]
pub(super) enum Stored {
    /// Named like the others, so that it opens; no blob has that name.
    Inline { segment: v1::SegmentRef, content: Bytes },
    Segment {
        segment: v1::SegmentRef,
        room: Room,
        /// Of the content: it must come back from the spool as it went in.
        crc32c: u32,
        /// For the upload's first try.
        held: Option<Held>,
        /// False only if it is held.
        in_spool: bool,
    },
}

/// A segment that waits in memory.
#[derive(Debug)]
pub(super) struct Held {
    pub content: Bytes,
    /// Its place, free when the upload begins: from then on it is the upload's.
    pub place: OwnedSemaphorePermit,
}

/// One batch further on: a segment, the end of its record, or both.
#[derive(Debug)]
pub(super) struct Piece {
    pub number: RecordNumber,
    pub stored: Option<Stored>,
    pub end: Option<RecordEnd>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SealingError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

pub(super) struct Sealing {
    pub server: ServerId,
    pub epoch: Epoch,
    /// Random for each session, so that a segment's name is never used twice.
    pub writer: String,
    pub keys: Arc<DataKeys>,
    pub sealer: Arc<dyn Sealer>,
    pub spool: Arc<dyn Spool>,
    pub unspooled: Arc<Semaphore>,
    pub keeper: Keeper,
    pub assigned: watch::Receiver<Option<Assigned>>,
    pub input: mpsc::Receiver<Admitted>,
    pub out: mpsc::Sender<Piece>,
    pub down: mpsc::Sender<v1::Down>,
}

impl Sealing {
    /// Ends when the intake has ended and everything is passed on.
    pub(super) async fn run(mut self) -> Result<(), SealingError> {
        let mut running = FuturesOrdered::new();
        let mut open = true;
        while open || !running.is_empty() {
            tokio::select! {
                biased;
                Some(piece) = running.next(), if !running.is_empty() => {
                    let piece = piece?;
                    self.keeper.note(&piece).await;
                    if !self.pass_on(piece).await {
                        return Ok(());
                    }
                }
                admitted = self.input.recv(), if open && running.len() < PARALLEL => match admitted {
                    Some(admitted) => running.push_back(self.seal(admitted)),
                    None => open = false,
                },
            }
        }
        Ok(())
    }

    fn seal(&self, admitted: Admitted) -> impl Future<Output = Result<Piece, SealingError>> + Send + use<> {
        let Admitted { batch, mut room, memory } = admitted;
        let name = layout::segment(&self.server, self.epoch, batch.number, &self.writer, batch.part);
        let level = self.assigned.borrow().as_ref().map_or(1, |assigned| assigned.compression_level);
        let (keys, sealer, spool) =
            (Arc::clone(&self.keys), Arc::clone(&self.sealer), Arc::clone(&self.spool));
        let unspooled = Arc::clone(&self.unspooled);
        let spool_name = spool_name(&self.server, &name);
        let server = self.server.clone();
        async move {
            let (number, end) = (batch.number, batch.end);
            if batch.extents.is_empty() {
                return Ok(Piece { number, stored: None, end });
            }
            let only = batch.part == 0 && end.is_some();
            let job = SealJob { server, keys, name: name.clone(), extents: batch.extents, level };
            let sealed = sealer.seal(job).await?;
            drop(memory);
            let segment = sealed.named(name);
            let content = sealed.content;
            if only && content.len() <= sealer.inline_bytes() {
                return Ok(Piece { number, stored: Some(Stored::Inline { segment, content }), end });
            }
            room.shrink(segment.length);
            let crc32c = crc32c::crc32c(&content);
            let held = unspooled.try_acquire_owned().ok();
            let held = held.map(|place| Held { content: content.clone(), place });
            let in_spool = match spool.write(&spool_name, content).await {
                Ok(()) => true,
                // It goes on without: what the spool is for then is missing, a restart that needs nothing twice.
                Err(error) if held.is_some() => {
                    tracing::warn!(segment = segment.name, error = %chain(&error), "segment not kept for a restart");
                    false
                }
                Err(error) => return Err(error.into()),
            };
            Ok(Piece { number, stored: Some(Stored::Segment { segment, room, crc32c, held, in_spool }), end })
        }
    }

    /// False when nobody listens any more.
    async fn pass_on(&self, piece: Piece) -> bool {
        let ended = piece.end.is_some().then_some(piece.number);
        if self.out.send(piece).await.is_err() {
            return false;
        }
        if let Some(number) = ended {
            let message = Some(v1::down::Message::Received(v1::Received { number: number.0 }));
            // The agent may be gone; what it has sent is committed nevertheless.
            let _ = self.down.send(v1::Down { message }).await;
        }
        true
    }
}

/// Name of a segment in the spool.
pub(super) fn spool_name(server: &ServerId, segment: &str) -> String {
    format!("{server}/{}", segment.replace('/', "."))
}
