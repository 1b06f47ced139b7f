//! Where a log begins once retention has deleted its first parts.
//!
//! Whoever deletes parts must leave two things behind:
//! - the part in which reading begins: the one of the oldest base's place in the log (or of what a pin needs), and all
//!   after it: readers go on from that place, and verify the chain from there;
//! - the part that this one continues. Its last frame names the next part, and a takeover believes only in a part that
//!   the one before it names: without it the newest part could not be told from one whose maker died.
//!
//! A place of a history that the store has lost is noticed: the log must hold the chain value of the place.

use super::{Head, LogState, PartName, frame::RawFrame, head, part, retry::Patience, state::Start};
use crate::{
    catalogue::{self, CatalogueError, Points},
    ids::ServerId,
    store::{Refusal, StoreError},
    vault::Vault,
};

/// The first part that has to stay for reading to begin at `floor`. `None`: this cannot be said now, so all parts stay.
/// Costs two small reads.
///
/// # Errors
/// When the store gives no answer.
pub async fn first_part(
    vault: &Vault,
    server: &ServerId,
    floor: &LogState,
    patience: &Patience,
) -> Result<Option<PartName>, StoreError> {
    if !head::stands(vault, server, &Head::of(floor), patience).await? {
        return Ok(None);
    }
    let name = floor.part_name();
    let bytes = match part::read(vault, server, name, 0, patience).await {
        Err(error) if error.is(Refusal::NotFound) => return Ok(None),
        bytes => bytes?.unwrap_or_default(),
    };
    let Ok(Some(header)) = RawFrame::split(&bytes) else { return Ok(None) };
    let Ok((start, _)) = Start::read(&vault.keys, server.as_str(), &name, &header) else { return Ok(None) };
    Ok(match start.base_part {
        None => Some(name),
        Some(base) => base.parse().ok().filter(|base| *base < name),
    })
}

/// Where the catalogue says that the log begins; `None`: at its first record, or the catalogue cannot be read as what
/// it should be.
///
/// # Errors
/// When the store gives no answer.
pub(super) async fn begins_at(
    vault: &Vault,
    server: &ServerId,
    patience: &Patience,
) -> Result<Option<PartName>, StoreError> {
    let mut tried = 0;
    loop {
        match catalogue::read::<Points>(vault, server).await {
            Ok(read) => return Ok(read.and_then(|(points, _)| points.log_begins)),
            Err(CatalogueError::Store(error @ StoreError::Unknown { .. })) if tried + 1 < patience.tries => {
                tracing::debug!(%server, %error, "the catalogue is read again");
                patience.pause(tried).await;
                tried += 1;
            }
            Err(CatalogueError::Store(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(%server, %error, "where the log begins is not known");
                return Ok(None);
            }
        }
    }
}
