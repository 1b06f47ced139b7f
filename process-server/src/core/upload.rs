//! Third stage: segments go from the spool (or from memory, the first time) to cache storage, several at a time.
//!
//! In: [`Piece`]s in order. Out: [`Uploaded`] in the same order. Bounds: a few uploads a server, and a number of them
//! for all servers.
//!
//! - **Retries.** A put is repeated under the same name until the store has the segment: the name is this session's
//!   alone, so what stands under it is what was sent. A store that is away is waited for as long as it takes.
//! - **Crash consistency.** A segment that no record names is garbage, which the applier removes.

use std::sync::Arc;

use futures::{StreamExt as _, stream::FuturesOrdered};
use lifeboat_replication::{
    env::Env,
    ids::{RecordNumber, ServerId},
    store::{BlobStore, PutCondition, Refusal, StoreError},
    wire::v1,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    assembler::RecordEnd,
    backoff,
    sealing::{Piece, Stored, sha256, spool_name},
    spool::{Spool, SpoolError},
    status::StatusSender,
};

/// Segments of one server on their way at a time.
const PARALLEL: usize = 4;

#[derive(Debug)]
pub(super) enum Placed {
    Inline(v1::SegmentRef, bytes::Bytes),
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
    pub slots: Arc<Semaphore>,
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
            cache: Arc::clone(&self.cache),
            spool: Arc::clone(&self.spool),
            slots: Arc::clone(&self.slots),
            env: self.env.clone(),
            status: self.status.clone(),
        };
        let server = self.server.clone();
        async move {
            let placed = match stored {
                None => None,
                Some(Stored::Inline { segment, content }) => Some(Placed::Inline(segment, content)),
                Some(Stored::Spooled { segment, room, sha256 }) => {
                    one.upload(&spool_name(&server, &segment.name), &segment, sha256).await?;
                    drop(room);
                    Some(Placed::Blob(segment))
                }
                Some(Stored::Held { segment, room, content, place }) => {
                    one.upload_held(&spool_name(&server, &segment.name), &segment, content, place).await?;
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
    cache: Arc<dyn BlobStore>,
    spool: Arc<dyn Spool>,
    slots: Arc<Semaphore>,
    env: Env,
    status: StatusSender,
}

impl One {
    /// Tries once from memory; what the store did not take then waits in the spool like the others.
    async fn upload_held(
        &self,
        spooled: &str,
        segment: &v1::SegmentRef,
        content: bytes::Bytes,
        place: OwnedSemaphorePermit,
    ) -> Result<(), UploadError> {
        let slot = self.slots.acquire().await;
        drop(place);
        match self.put(segment, content.clone()).await {
            Ok(true) => {
                self.delivered(segment);
                Ok(())
            }
            Ok(false) => Err(UploadError::Taken { name: segment.name.clone() }),
            Err(error) => {
                self.status.upload_trouble(&error.to_string());
                let sum = sha256(&content);
                self.spool.write(spooled, content).await?;
                drop(slot);
                backoff::pause(&self.env, 0).await;
                self.upload(spooled, segment, sum).await
            }
        }
    }

    async fn upload(
        &self,
        spooled: &str,
        segment: &v1::SegmentRef,
        sum: [u8; 32],
    ) -> Result<(), UploadError> {
        let mut tried = 0;
        loop {
            let slot = self.slots.acquire().await;
            let content = self.spool.read(spooled).await?;
            if sha256(&content) != sum {
                return Err(UploadError::Damaged { name: segment.name.clone() });
            }
            let outcome = self.put(segment, content).await;
            // A store that is away must not keep others from trying.
            drop(slot);
            match outcome {
                Ok(true) => break,
                Ok(false) => return Err(UploadError::Taken { name: segment.name.clone() }),
                Err(error) => {
                    self.status.upload_trouble(&error.to_string());
                    backoff::pause(&self.env, tried).await;
                    tried += 1;
                }
            }
        }
        self.delivered(segment);
        Ok(self.spool.remove(spooled).await?)
    }

    fn delivered(&self, segment: &v1::SegmentRef) {
        self.status.upload_trouble("");
        self.status.sent(segment.length);
    }

    /// True: the store has the segment. An error is worth another try, for some of them after somebody mended it.
    async fn put(&self, segment: &v1::SegmentRef, content: bytes::Bytes) -> Result<bool, StoreError> {
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
