//! Third stage: segments go from memory, the first time, or from the spool to cache storage, several at a time.
//!
//! In: [`Piece`]s in order. Out: [`Uploaded`] in the same order. Bounds: a few uploads a server, and a number of them
//! for all servers, given out by [`FairSlots`].
//!
//! - **Retries.** A put is repeated under the same name until the store has the segment: the name is this session's
//!   alone, so what stands under it is what was sent. A store that is away is waited for as long as it takes.
//! - **Crash consistency.** A segment that no record names is garbage, which the applier removes. One that the spool has not
//!   any more after a restart may have been sent before it: then the store has it.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesOrdered};
use lifeboat_replication::{
    env::Env,
    errors::chain,
    ids::{RecordNumber, ServerId},
    store::{BlobStore, PutCondition, Refusal, StoreError},
    wire::v1,
};
use tokio::sync::mpsc;

use super::{
    assembler::RecordEnd,
    backoff,
    fair::FairSlots,
    ingest::Shared,
    sealing::{Held, Piece, Stored, spool_name},
    spool::{Spool, SpoolError},
    status::{StatusSender, Trouble},
};

/// Segments of one server on their way at a time.
const PARALLEL: usize = 4;

#[derive(Debug)]
pub(super) enum Placed {
    Inline(v1::SegmentRef, Bytes),
    Blob(v1::SegmentRef),
}

#[derive(Debug)]
pub(super) struct Uploaded {
    pub number: RecordNumber,
    pub placed: Option<Placed>,
    pub end: Option<RecordEnd>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("segment {name} came back from the spool changed: check the volume of the spool directory")]
    Damaged { name: String },
    #[error("another segment stands under the name {name} in cache storage")]
    Taken { name: String },
}

pub(super) struct Upload {
    server: ServerId,
    env: Env,
    cache: Arc<dyn BlobStore>,
    spool: Arc<dyn Spool>,
    /// Uploads of all servers.
    slots: Arc<FairSlots>,
    status: StatusSender,
    input: mpsc::Receiver<Piece>,
    out: mpsc::Sender<Uploaded>,
}

impl Upload {
    pub(super) fn new(
        shared: &Shared,
        server: ServerId,
        status: StatusSender,
        input: mpsc::Receiver<Piece>,
        out: mpsc::Sender<Uploaded>,
    ) -> Self {
        Self {
            server,
            env: shared.env.clone(),
            cache: Arc::clone(&shared.vault.cache),
            spool: Arc::clone(&shared.spool),
            slots: Arc::clone(&shared.uploads),
            status,
            input,
            out,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), UploadError> {
        let mut running = FuturesOrdered::new();
        let mut open = true;
        while open || !running.is_empty() {
            tokio::select! {
                biased;
                Some(uploaded) = running.next(), if !running.is_empty() => {
                    if self.out.send(uploaded?).await.is_err() {
                        return Ok(());
                    }
                }
                piece = self.input.recv(), if open && running.len() < PARALLEL => match piece {
                    Some(piece) => running.push_back(self.place(piece)),
                    None => open = false,
                },
            }
        }
        Ok(())
    }

    fn place(&self, piece: Piece) -> impl Future<Output = Result<Uploaded, UploadError>> + Send + use<> {
        let Piece { number, stored, end } = piece;
        let one = One {
            server: self.server.clone(),
            cache: Arc::clone(&self.cache),
            spool: Arc::clone(&self.spool),
            slots: Arc::clone(&self.slots),
            env: self.env.clone(),
            status: self.status.clone(),
        };
        async move {
            let placed = match stored {
                None => None,
                Some(Stored::Inline { segment, content }) => Some(Placed::Inline(segment, content)),
                Some(Stored::Segment { segment, room, crc32c, held, in_spool }) => {
                    one.upload(&segment, crc32c, held, in_spool).await?;
                    drop(room);
                    Some(Placed::Blob(segment))
                }
            };
            Ok(Uploaded { number, placed, end })
        }
    }
}

/// One segment's upload.
struct One {
    server: ServerId,
    cache: Arc<dyn BlobStore>,
    spool: Arc<dyn Spool>,
    slots: Arc<FairSlots>,
    env: Env,
    status: StatusSender,
}

impl One {
    /// What is in memory is tried once; what the store did not take then waits in the spool like the others.
    async fn upload(
        &self,
        segment: &v1::SegmentRef,
        crc32c: u32,
        mut held: Option<Held>,
        mut in_spool: bool,
    ) -> Result<(), UploadError> {
        let spooled = spool_name(&self.server, &segment.name);
        let mut tried = 0;
        loop {
            let slot = self.slots.acquire(self.server.as_str(), segment.length).await;
            let content = match held.take() {
                // The place is for what waits; from here on it is the upload's.
                Some(Held { content, place }) => {
                    drop(place);
                    Ok(content)
                }
                None => self.spooled(&spooled, segment, crc32c).await,
            };
            let sent = match &content {
                Ok(content) => self.put(segment, content.clone()).await,
                Err(_) => self.has(segment).await,
            };
            match (sent, content) {
                (Ok(true), _) => break,
                (Ok(false), Ok(_)) => return Err(UploadError::Taken { name: segment.name.clone() }),
                (Ok(false), Err(error)) => return Err(error),
                (Err(error), content) => {
                    let trouble = Trouble::new(v1::Hindrance::Store, error.to_string());
                    self.status.upload_trouble(Some(trouble));
                    if let (Ok(content), false) = (content, in_spool) {
                        self.spool.write(&spooled, content).await?;
                        in_spool = true;
                    }
                }
            }
            // A store that is away must not keep others from trying.
            drop(slot);
            backoff::pause(&self.env, tried).await;
            tried += 1;
        }
        self.status.upload_trouble(None);
        self.status.sent(segment.length);
        if in_spool && let Err(error) = self.spool.remove(&spooled).await {
            // It goes with the next session.
            tracing::warn!(server = %self.server, error = %chain(&error), "segment not removed from the spool");
        }
        Ok(())
    }

    async fn spooled(
        &self,
        spooled: &str,
        segment: &v1::SegmentRef,
        crc32c: u32,
    ) -> Result<Bytes, UploadError> {
        let content = self.spool.read(spooled).await?;
        match crc32c::crc32c(&content) == crc32c {
            true => Ok(content),
            false => Err(UploadError::Damaged { name: segment.name.clone() }),
        }
    }

    /// True: the store has the segment. An error is worth another try, for some of them after somebody mended it.
    async fn put(&self, segment: &v1::SegmentRef, content: Bytes) -> Result<bool, StoreError> {
        match self.cache.put(&segment.name, content, &PutCondition::IfAbsent).await {
            Ok(_) => Ok(true),
            // An earlier try whose answer was lost.
            Err(error) if error.is(Refusal::AlreadyExists) => self.has(segment).await,
            Err(error) => Err(error),
        }
    }

    /// Does the store have it? Only the segment's session knows the name, so the length is enough.
    async fn has(&self, segment: &v1::SegmentRef) -> Result<bool, StoreError> {
        match self.cache.properties(&segment.name, None).await {
            Ok(properties) => Ok(properties.length == segment.length),
            Err(error) if error.is(Refusal::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
