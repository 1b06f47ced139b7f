//! The reader: follows a log from its beginning, or from a state that was kept, over parts and epochs.
//!
//! It changes nothing and needs no lease. Every frame is verified against the chain, so what it returns is what the
//! writers committed, in order, once. A dead part is passed over.

use bytes::{Buf as _, Bytes};

use super::{
    LogState, PartName, beginning,
    frame::{ChainKey, FrameError, RawFrame},
    part,
    retry::Patience,
    state::{Illegal, Start},
};
use crate::{
    env::Env,
    ids::{Epoch, ServerId},
    store::{Refusal, StoreError},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

/// A record and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub epoch: Epoch,
    pub part: u32,
    /// Byte offset of its frame in the part.
    pub offset: u64,
    pub body: Body,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(
        "part {part} of the log of server {server} is damaged at byte {offset}: records before it are readable, take \
         the store's copy back from its versions or soft-delete, or have the disks copied again"
    )]
    Damaged {
        server: ServerId,
        part: PartName,
        offset: u64,
        #[source]
        source: Illegal,
    },
    #[error(
        "the log of server {server} ends before part {part}, byte {offset}, up to which it was read: the store went \
         back in time; the seed disks must be rebuilt from the log"
    )]
    WentBack { server: ServerId, part: PartName, offset: u64 },
    #[error(
        "retention has deleted the beginning of the log of server {server}: it now begins with part {part}, and what \
         reading could begin at is not known; restore servers/{server}/catalogue/points.json from the store's versions \
         or soft-delete, or have the disks copied again"
    )]
    Shortened { server: ServerId, part: PartName },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads one record after the other.
#[derive(Debug)]
pub struct LogReader {
    vault: Vault,
    server: ServerId,
    patience: Patience,
    at: Option<(LogState, ChainKey)>,
    /// Unread bytes of the part from `at.offset` on.
    buffer: Bytes,
}

impl LogReader {
    /// From the first record of the server. Not for a log that retention has shortened: that one is read from a base.
    pub fn from_start(vault: &Vault, server: &ServerId, env: &Env) -> Self {
        let patience = Patience { env: env.clone(), tries: 3 };
        Self { vault: vault.clone(), server: server.clone(), patience, at: None, buffer: Bytes::new() }
    }

    /// From a state that an earlier reader was in.
    pub fn resume(vault: &Vault, server: &ServerId, env: &Env, state: LogState) -> Result<Self, ReadError> {
        let mut reader = Self::from_start(vault, server, env);
        let Some(key) = vault.keys.get(&state.key_id) else {
            let source = Illegal::UnknownKey { key: state.key_id.clone() };
            return Err(reader.damaged(state.part_name(), state.offset, source));
        };
        let key = ChainKey::new(key, server.as_str());
        reader.at = Some((state, key));
        Ok(reader)
    }

    /// Where the next record will be read; `None` before the first part was found.
    pub fn state(&self) -> Option<&LogState> {
        self.at.as_ref().map(|(state, _)| state)
    }

    /// The next record; `None`: there is none yet. Safe to call again after an error of the store.
    pub async fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some((state, key)) = &mut self.at else {
                if self.begin().await? {
                    continue;
                }
                return Ok(None);
            };
            let name = state.part_name();
            let offset = state.offset;
            if let Some(part) = state.next_part {
                self.go_on(PartName { epoch: name.epoch, part }).await?;
                continue;
            }
            match RawFrame::split(&self.buffer) {
                Ok(Some(frame)) => {
                    let length = frame.len();
                    let body = state.read(key, &frame);
                    let body = body.map_err(|source| self.damaged(name, offset, source))?;
                    self.buffer.advance(usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len()));
                    if matches!(body, Body::Rotate(_)) {
                        continue;
                    }
                    return Ok(Some(Entry { epoch: name.epoch, part: name.part, offset, body }));
                }
                Ok(None) if !self.buffer.is_empty() => {
                    self.fill(name, offset).await?;
                    // Appends are whole, and one fits a read: a frame that stays incomplete was cut off.
                    if matches!(RawFrame::split(&self.buffer), Ok(None)) {
                        return Err(self.damaged(name, offset, FrameError::Record.into()));
                    }
                }
                Ok(None) => {
                    if !self.fetch(name, offset).await? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(self.damaged(name, offset, error.into())),
            }
        }
    }

    /// Once [`LogReader::next`] has said that there is no more: is this where the log ends? A part is sealed before
    /// another epoch is opened on it, so one that is not sealed although a later epoch has begun was cut off or put
    /// back to an older version. Costs a listing, so whoever polls leaves it out.
    ///
    /// # Errors
    /// When the log goes on somewhere that cannot be reached from here.
    pub async fn check_end(&mut self) -> Result<(), ReadError> {
        let Some((state, _)) = &self.at else { return Ok(()) };
        let (name, offset) = (state.part_name(), state.offset);
        let parts = part::list(&self.vault, &self.server, &self.patience).await?;
        for later in parts.into_iter().filter(|part| part.epoch > name.epoch && part.part == 0) {
            if part::properties(&self.vault, &self.server, later, &self.patience).await?.length == 0 {
                continue;
            }
            // It may have been sealed and continued just now.
            let properties = part::properties(&self.vault, &self.server, name, &self.patience).await?;
            if properties.sealed || properties.length > offset {
                return Ok(());
            }
            return Err(self.damaged(name, offset, Illegal::CutOff { later }));
        }
        Ok(())
    }

    /// Looks for more: in this part, else in an epoch that continues it.
    async fn fetch(&mut self, name: PartName, offset: u64) -> Result<bool, ReadError> {
        let properties = match part::properties(&self.vault, &self.server, name, &self.patience).await {
            Err(error) if error.is(Refusal::NotFound) => return Err(self.went_back(name, offset)),
            properties => properties?,
        };
        if properties.length < offset {
            return Err(self.went_back(name, offset));
        }
        if properties.length > offset {
            self.fill(name, offset).await?;
            return Ok(true);
        }
        if !properties.sealed {
            return Ok(false);
        }
        let parts = part::list(&self.vault, &self.server, &self.patience).await?;
        for next in parts.into_iter().filter(|next| next.epoch > name.epoch && next.part == 0) {
            if self.go_on(next).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn fill(&mut self, name: PartName, offset: u64) -> Result<(), ReadError> {
        match part::read(&self.vault, &self.server, name, offset, &self.patience).await? {
            Some(bytes) => self.buffer = bytes,
            None => return Err(self.went_back(name, offset)),
        }
        Ok(())
    }

    /// Finds the part that continues nothing.
    async fn begin(&mut self) -> Result<bool, ReadError> {
        let parts = part::list(&self.vault, &self.server, &self.patience).await?;
        let mut found = Ok(false);
        for name in parts.iter().filter(|name| name.part == 0) {
            found = self.go_on(*name).await;
            if !matches!(found, Ok(false)) {
                break;
            }
        }
        let beginning = match &found {
            Ok(true) => return found,
            // Without its first part a log would look as if there were none.
            Ok(false) => parts.first().copied(),
            Err(ReadError::Damaged { part, source: Illegal::Base, .. }) => Some(*part),
            Err(_) => None,
        };
        let Some(part) = beginning else { return found };
        match beginning::begins_at(&self.vault, &self.server, &self.patience).await? {
            Some(_) => Err(ReadError::Shortened { server: self.server.clone(), part }),
            None => found,
        }
    }

    /// Goes to the beginning of a part that continues the log here; `false`: it has no header.
    async fn go_on(&mut self, name: PartName) -> Result<bool, ReadError> {
        let bytes = match part::read(&self.vault, &self.server, name, 0, &self.patience).await {
            Err(error) if error.is(Refusal::NotFound) => return Err(self.went_back(name, 0)),
            bytes => bytes?.unwrap_or_default(),
        };
        let frame = match RawFrame::split(&bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) if bytes.is_empty() => return Ok(false),
            Ok(None) => return Err(self.damaged(name, 0, FrameError::Record.into())),
            Err(error) => return Err(self.damaged(name, 0, error.into())),
        };
        let start = Start::read(&self.vault.keys, self.server.as_str(), &name, &frame);
        let (start, key) = start.map_err(|source| self.damaged(name, 0, source))?;
        let fits = match &self.at {
            Some((state, _)) => start.continues(&state.part_name(), state),
            None => start.base_part.is_none(),
        };
        if !fits {
            return Err(self.damaged(name, 0, Illegal::Base));
        }
        let length = usize::try_from(frame.len()).unwrap_or(usize::MAX);
        self.buffer = bytes.slice(length.min(bytes.len())..);
        self.at = Some((start.state, key));
        Ok(true)
    }

    fn damaged(&self, part: PartName, offset: u64, source: Illegal) -> ReadError {
        ReadError::Damaged { server: self.server.clone(), part, offset, source }
    }

    fn went_back(&self, part: PartName, offset: u64) -> ReadError {
        ReadError::WentBack { server: self.server.clone(), part, offset }
    }
}

/// All data records that the log holds now, each with its epoch.
pub async fn history(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
) -> Result<Vec<(Epoch, v1::Data)>, ReadError> {
    let mut reader = LogReader::from_start(vault, server, env);
    let mut records = Vec::new();
    while let Some(entry) = reader.next().await? {
        if let Body::Data(data) = entry.body {
            records.push((entry.epoch, data));
        }
    }
    Ok(records)
}
