//! The end of a log as somebody has seen it, and whether the log still holds it.
//!
//! A vault that is put back to an older moment as a whole (a storage account restored from a backup) is consistent in
//! itself: everything in it is authentic, and only old. What shows it is a [`Head`] that was kept somewhere else: the
//! chain value of a frame authenticates everything before it, so a log that has this value at this place holds all that
//! was seen, and one that has not has lost some of it, whatever was written to it since.
//!
//! A head is looked for in the part where it was seen. One that was seen long ago may be in a part that retention has
//! deleted since: then the catalogue says that the log begins later, which that of an older vault could not.

use super::{
    LogState, PartName, Patience, beginning,
    frame::{CHAIN_BYTES, Chain},
};
use crate::{
    ids::{RecordNumber, ServerId},
    store::{Refusal, StoreError},
    vault::Vault,
};

/// An end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub part: PartName,
    /// Bytes of the part up to here.
    pub offset: u64,
    /// Of the last frame.
    pub chain: Chain,
    /// Of the last record.
    pub number: RecordNumber,
}

impl Head {
    pub fn of(state: &LogState) -> Self {
        Self { part: state.part_name(), offset: state.offset, chain: state.chain, number: state.last_number }
    }
}

/// Does the log hold `head` still, or has retention deleted it as a part of what it held? Costs one small read.
///
/// # Errors
/// When the store gives no answer, or has no container: then nothing can be said.
pub async fn holds(
    vault: &Vault,
    server: &ServerId,
    head: &Head,
    patience: &Patience,
) -> Result<bool, StoreError> {
    if stands(vault, server, head, patience).await? {
        return Ok(true);
    }
    let begins = beginning::begins_at(vault, server, patience).await?;
    Ok(begins.is_some_and(|begins| head.part < begins))
}

/// Does it stand in the log as it was seen?
pub(super) async fn stands(
    vault: &Vault,
    server: &ServerId,
    head: &Head,
    patience: &Patience,
) -> Result<bool, StoreError> {
    // A frame ends with its chain value.
    let Some(from) = head.offset.checked_sub(CHAIN_BYTES as u64) else { return Ok(false) };
    let name = head.part.blob(server);
    match patience.sure(|| vault.store.get(&name, None, Some(from..head.offset))).await {
        Ok(found) => Ok(found == head.chain.as_slice()),
        Err(error) if error.is(Refusal::NotFound) || error.is(Refusal::Range) => Ok(false),
        Err(error) => Err(error),
    }
}
