//! Third stage: segments go from the spool (or from memory, the first time) to cache storage, several at a time.
//!
//! In: [`Piece`]s in order. Out: [`Uploaded`] in the same order. Bounds: a few uploads a server, and a number of them
//! for all servers, given out by [`FairSlots`].
//!
//! - **Retries.** A put is repeated under the same name until the store has the segment: the name is this session's
//!   alone, so what stands under it is what was sent. A store that is away is waited for as long as it takes.
//! - **Crash consistency.** A segment that no record names is garbage, which the applier removes.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesOrdered};
use lifeboat_replication::{
    env::Env,
    ids::{RecordNumber, ServerId},
    store::{BlobStore, PutCondition, Refusal, StoreError},
    wire::v1,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    assembler::RecordEnd,
    backoff,
    fair::FairSlots,
    sealing::{Piece, Stored, sha256, spool_name},
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
    pub server: ServerId,
    pub env: Env,
    pub cache: Arc<dyn BlobStore>,
    pub spool: Arc<dyn Spool>,
    /// Uploads of all servers.
    pub slots: Arc<FairSlots>,
    pub status: StatusSender,
    pub input: mpsc::Receiver<Piece>,
    pub out: mpsc::Sender<Uploaded>,
}

impl Upload {
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
            let (segment, room, content) = match stored {
                None => return Ok(Uploaded { number, placed: None, end }),
                Some(Stored::Inline { segment, content }) => {
                    return Ok(Uploaded { number, placed: Some(Placed::Inline(segment, content)), end });
                }
                Some(Stored::Spooled { segment, room, sha256 }) => (segment, room, Content::Spooled(sha256)),
                Some(Stored::Held { segment, room, content, place }) => {
                    (segment, room, Content::Held(content, place))
                }
            };
            one.upload(&spool_name(&one.server, &segment.name), &segment, content).await?;
            drop(room);
            let placed = Some(Placed::Blob(segment));
            Ok(Uploaded { number, placed, end })
        }
    }
}

/// Where a segment's content is.
enum Content {
    /// In memory, and its place among what waits there.
    Held(Bytes, OwnedSemaphorePermit),
    /// In the spool, with its checksum.
    Spooled([u8; 32]),
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
        spooled: &str,
        segment: &v1::SegmentRef,
        mut content: Content,
    ) -> Result<(), UploadError> {
        let mut tried = 0;
        let in_spool = loop {
            let slot = self.slots.acquire(self.server.as_str(), segment.length).await;
            let (bytes, sum) = match content {
                Content::Held(bytes, place) => {
                    // The place is for what waits; from here on it is the upload's.
                    drop(place);
                    (bytes, None)
                }
                Content::Spooled(sum) => (self.spooled(spooled, segment, &sum).await?, Some(sum)),
            };
            match self.put(segment, bytes.clone()).await {
                Ok(true) => break sum.is_some(),
                Ok(false) => return Err(UploadError::Taken { name: segment.name.clone() }),
                Err(error) => {
                    let trouble = Trouble::new(v1::Hindrance::Store, error.to_string());
                    self.status.upload_trouble(Some(trouble));
                }
            }
            content = Content::Spooled(match sum {
                Some(sum) => sum,
                None => {
                    let sum = sha256(&bytes);
                    self.spool.write(spooled, bytes).await?;
                    sum
                }
            });
            // A store that is away must not keep others from trying.
            drop(slot);
            backoff::pause(&self.env, tried).await;
            tried += 1;
        };
        self.status.upload_trouble(None);
        self.status.sent(segment.length);
        if in_spool {
            self.spool.remove(spooled).await?;
        }
        Ok(())
    }

    async fn spooled(
        &self,
        spooled: &str,
        segment: &v1::SegmentRef,
        sum: &[u8; 32],
    ) -> Result<Bytes, UploadError> {
        let content = self.spool.read(spooled).await?;
        match sha256(&content) == *sum {
            true => Ok(content),
            false => Err(UploadError::Damaged { name: segment.name.clone() }),
        }
    }

    /// True: the store has the segment. An error is worth another try, for some of them after somebody mended it.
    async fn put(&self, segment: &v1::SegmentRef, content: Bytes) -> Result<bool, StoreError> {
        match self.cache.put(&segment.name, content, &PutCondition::IfAbsent).await {
            Ok(_) => Ok(true),
            // An earlier try whose answer was lost. Only this session knows the name, so the length is enough.
            Err(error) if error.is(Refusal::AlreadyExists) => {
                Ok(self.cache.properties(&segment.name, None).await?.length == segment.length)
            }
            Err(error) => Err(error),
        }
    }
}
