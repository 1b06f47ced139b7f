//! The writer: appends records to the alive part under its lease.
//!
//! - **Completion.** `append` comes back when the record is committed, or when it is certain that this writer may
//!   not write any more. A store that does not answer is waited for as long as it takes; `LogWriter::trouble` says
//!   since when and why.
//! - **Cancellation.** Dropping a running `append` leaves open whether the record is committed: drop the writer with
//!   it and take the log over anew.
//! - **Crash consistency.** Nothing but the store's content counts; a writer is made by a takeover only.

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    LogOptions, PartName,
    decide::{self, Next},
    frame::{self, Chain, ChainKey, Encoded, TooLarge},
    part,
    retry::Patience,
    state::{HeaderBase, Illegal, LogState},
};
use crate::{
    env::Env,
    ids::{Epoch, RecordNumber, ServerId},
    planted::Planted,
    store::{LeaseId, Refusal, StoreError},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub epoch: Epoch,
    pub number: RecordNumber,
    pub chain: Chain,
}

/// What a writer's epoch was opened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The epoch before; 0: the log was empty.
    pub epoch: Epoch,
    /// Session of the last data record in the part that was taken over; `None`: that part has none.
    pub last_session: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("another writer has taken over the log of server {server}: this one (epoch {epoch}) stops")]
    Fenced { server: ServerId, epoch: Epoch },
    #[error(
        "part {part} of the log of server {server} ends before byte {position}, which was acknowledged: the store went \
         back in time (restored from a backup?); take the log over anew, the disks are copied again"
    )]
    WentBack { server: ServerId, part: PartName, position: u64 },
    #[error("the record is not legal here")]
    Illegal(#[from] Illegal),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("the current data key is missing")]
    NoKey,
}

/// Holds the lease of the alive part. Made by `LogWriter::take_over`.
#[derive(Debug)]
pub struct LogWriter {
    pub(super) vault: Vault,
    pub(super) server: ServerId,
    pub(super) who: String,
    pub(super) env: Env,
    pub(super) options: LogOptions,
    pub(super) lease: LeaseId,
    pub(super) state: LogState,
    pub(super) base: Base,
    pub(super) chain_key: ChainKey,
    pub(super) appends: u32,
    pub(super) renewed_at: Instant,
    /// When this writer began the part.
    pub(super) begun_at: Instant,
    /// Why the store does not take a record at the moment; `None`: it does.
    pub(super) trouble: watch::Sender<Option<String>>,
}

impl LogWriter {
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// What was found when the log was taken over.
    pub fn base(&self) -> Base {
        self.base
    }

    /// Of this run of the writer: another one has another, also when it has the same name.
    pub fn id(&self) -> &str {
        &self.who
    }

    /// Follows what hinders the store at the moment, also while an `append` waits for it.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Commits a record: `Data`, `Disks` or `Release`.
    pub async fn append(&mut self, body: Body) -> Result<Committed, WriteError> {
        if self.is_full() {
            self.rotate().await?;
        }
        let mut after = self.state.clone();
        after.apply(&body)?;
        let frame = frame::encode(&self.chain_key, &self.state.chain, body)?;
        self.commit(&frame).await?;
        after.chain = frame.chain;
        after.offset = self.state.offset + frame.bytes.len() as u64;
        self.state = after;
        Ok(Committed { epoch: self.state.epoch, number: self.state.last_number, chain: self.state.chain })
    }

    /// Is it time to go on in another part?
    fn is_full(&self) -> bool {
        let LogOptions {
            rotate_after_appends,
            rotate_after_bytes,
            rotate_after,
            worth_bytes,
            lease_term: _,
            planted: _,
        } = self.options;
        let bytes = self.state.offset;
        self.appends >= rotate_after_appends
            || bytes >= rotate_after_bytes
            || (bytes >= worth_bytes && self.begun_at.elapsed() >= rotate_after)
    }

    /// To be called every few seconds, also when there is nothing to write. A refusal means fenced; no answer means
    /// nothing: the store judges each append by itself.
    pub async fn renew_if_due(&mut self) -> Result<(), WriteError> {
        if self.renewed_at.elapsed() < self.options.lease_term / 2 {
            return Ok(());
        }
        match self.vault.store.renew_lease(&self.blob(), &self.lease).await {
            Ok(()) => {
                self.renewed_at = Instant::now();
                self.trouble.send_replace(None);
                Ok(())
            }
            Err(error @ StoreError::Unknown { .. }) => {
                self.trouble.send_replace(Some(error.to_string()));
                Ok(())
            }
            Err(error) if error.is(Refusal::Denied) || error.is(Refusal::NoContainer) => {
                self.trouble.send_replace(Some(error.to_string()));
                Ok(())
            }
            Err(_) => Err(self.fenced()),
        }
    }

    /// Lets another writer take the log over at once. Best effort: the lease runs out by itself.
    pub async fn release(self) {
        let released = self.vault.store.release_lease(&self.blob(), &self.lease).await;
        if let Err(error) = released {
            tracing::debug!(server = %self.server, %error, "lease not released; it runs out by itself");
        }
    }

    /// Goes on in the next part: creates and leases it, writes its header, and only then says so in this one.
    async fn rotate(&mut self) -> Result<(), WriteError> {
        let patience = Patience { env: self.env.clone(), tries: u32::MAX };
        let mut part = self.state.part + 1;
        let mut tried = 0;
        loop {
            let name = PartName { epoch: self.state.epoch, part };
            match self.vault.store.create_append(&name.blob(&self.server)).await {
                Ok(_) => break,
                // Perhaps by a try of ours whose answer was lost; nothing refers to it, so it may stay as it is.
                Err(error) if error.is(Refusal::AlreadyExists) => part += 1,
                Err(error) => {
                    self.note(&Err(error));
                    patience.pause(tried).await;
                    tried += 1;
                }
            }
            self.renew_if_due().await?;
        }
        let name = PartName { epoch: self.state.epoch, part };
        let lease = LeaseId(self.env.entropy.uuid());
        let blob = name.blob(&self.server);
        let leased =
            patience.sure(|| self.vault.store.acquire_lease(&blob, &lease, self.options.lease_term)).await;
        if leased.is_err() {
            return Err(self.fenced());
        }
        let rotate = frame::encode(&self.chain_key, &self.state.chain, Body::Rotate(v1::Rotate { part }))?;
        let key_id = self.state.key_id.clone();
        let base = HeaderBase {
            epoch: self.state.epoch,
            part,
            base_part: Some(self.state.part_name()),
            base_offset: self.state.offset,
            key_id: key_id.clone(),
        };
        let mut here = self.state.clone();
        here.chain = rotate.chain;
        let header = here.header(self.server.as_str(), base, &self.who, self.env.wall.now());
        let header = frame::encode(&self.chain_key, &rotate.chain, Body::Header(header))?;
        let mut next = here;
        next.part = part;
        next.offset = 0;
        // The header goes to the new part, with its lease; the old one is still the alive one.
        let mut writer = LogWriter {
            vault: self.vault.clone(),
            server: self.server.clone(),
            who: self.who.clone(),
            env: self.env.clone(),
            options: self.options.clone(),
            lease,
            state: next,
            base: self.base,
            chain_key: self.chain_key.clone(),
            appends: 0,
            renewed_at: Instant::now(),
            begun_at: Instant::now(),
            trouble: self.trouble.clone(),
        };
        writer.commit(&header).await?;
        writer.state.offset = header.bytes.len() as u64;
        writer.state.chain = header.chain;
        self.commit(&rotate).await?;
        *self = writer;
        Ok(())
    }

    /// Appends the frame at the end of the part as this writer knows it, and settles what became of it.
    pub(super) async fn commit(&mut self, frame: &Encoded) -> Result<(), WriteError> {
        let blob = self.blob();
        let patience = Patience { env: self.env.clone(), tries: 2 };
        let content = Bytes::copy_from_slice(&frame.bytes);
        let mut position = self.state.offset;
        let mut next = Next::SendAgain;
        let mut tried = 0;
        loop {
            next = match next {
                Next::Committed => {
                    self.appends += 1;
                    self.trouble.send_replace(None);
                    return Ok(());
                }
                Next::SendAgain | Next::Wait => {
                    // The first time at once. Then with pauses, also when the store answers reads and takes nothing.
                    if tried > 0 {
                        patience.pause(tried).await;
                    }
                    tried += 1;
                    let outcome =
                        self.vault.store.append(&blob, content.clone(), &self.lease, position).await;
                    self.note(&outcome);
                    match (self.options.planted, &outcome) {
                        (Some(Planted::RetryAtNewEnd), Err(StoreError::Unknown { .. })) => {
                            if let Ok(now) = self.vault.store.properties(&blob, None).await {
                                position = now.length;
                            }
                            Next::SendAgain
                        }
                        (Some(Planted::UnknownIsDone), Err(StoreError::Unknown { .. })) => Next::Committed,
                        _ => decide::after_append(&outcome),
                    }
                }
                Next::ReadTail => match self.tail(position, content.len(), &patience).await {
                    Ok(found) => decide::after_tail(&content, found.as_deref()),
                    Err(error) if error.is(Refusal::NotFound) => Next::WentBack,
                    Err(error) => {
                        self.note(&Err(error));
                        patience.pause(tried).await;
                        tried += 1;
                        self.renew_if_due().await?;
                        Next::ReadTail
                    }
                },
                Next::RenewLease => {
                    let outcome = self.vault.store.renew_lease(&blob, &self.lease).await;
                    self.note(&outcome);
                    if outcome.is_ok() {
                        self.renewed_at = Instant::now();
                    }
                    let next = decide::after_renew(&outcome);
                    if next == Next::RenewLease {
                        patience.pause(tried).await;
                        tried += 1;
                    }
                    next
                }
                Next::Fenced => return Err(self.fenced()),
                Next::WentBack => {
                    let part = self.state.part_name();
                    return Err(WriteError::WentBack { server: self.server.clone(), part, position });
                }
            };
        }
    }

    /// What stands from `position` on, at most one byte more than the frame has; `None`: the blob ends before.
    async fn tail(
        &self,
        position: u64,
        frame_length: usize,
        patience: &Patience,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let found = part::read(&self.vault, &self.server, self.state.part_name(), position, patience).await?;
        Ok(found.map(|bytes| bytes.iter().take(frame_length + 1).copied().collect()))
    }

    fn note(&self, outcome: &Result<(), StoreError>) {
        if let Err(error) = outcome {
            self.trouble.send_replace(Some(error.to_string()));
        }
    }

    fn fenced(&self) -> WriteError {
        WriteError::Fenced { server: self.server.clone(), epoch: self.state.epoch }
    }

    pub(super) fn blob(&self) -> String {
        self.state.part_name().blob(&self.server)
    }
}
