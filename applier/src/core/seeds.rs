//! Seed disks in the store: creating, fencing and writing page blobs.
//!
//! **Ordering.** A lease cannot order writes here: one whose answer was lost may land after its successor. The page
//! blob's sequence number can: it is raised to that of the batch's last record before the first page is written, and
//! every write is refused once somebody has raised it further. Writes of one batch touch no block twice, so they may
//! run in parallel, be repeated, and land late.

use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::Seed,
    ids::{ServerId, sequence_number},
    log::{LogDisk, LogState, Patience},
    planted::Planted,
    store::{ETag, Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
    vhd,
};

use super::ApplyError;

/// The store, patiently: for calls that may be done twice.
#[derive(Debug, Clone)]
pub(super) struct Seeds {
    pub vault: Vault,
    pub server: ServerId,
    pub patience: Patience,
    pub planted: Option<Planted>,
}

impl Seeds {
    pub(super) fn name(&self, disk_id: &str) -> String {
        layout::seed_disk(&self.server, disk_id)
    }

    /// Makes the page blob of a new disk, of the right length and all zeros.
    pub(super) async fn create(&self, disk: &LogDisk) -> Result<(), ApplyError> {
        let name = self.name(&disk.id);
        let length = vhd::blob_bytes(disk.size_bytes);
        match self.patience.sure(|| self.vault.store.create_page(&name, length)).await {
            Ok(_) => Ok(()),
            // Ours, from before a crash, or an answer that was lost.
            Err(error) if error.is(Refusal::AlreadyExists) => self.grow(&name, length).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a blob at least so long. A disk grows only, so two appliers that do this never spoil it: the length is
    /// looked at with the ETag that growing it must meet.
    pub(super) async fn grow(&self, name: &str, length: u64) -> Result<(), ApplyError> {
        for tried in 0..self.patience.tries {
            let properties = match self.patience.sure(|| self.vault.store.properties(name, None)).await {
                Err(error) if error.is(Refusal::NotFound) => {
                    return Err(ApplyError::SeedLost { name: name.to_owned() });
                }
                properties => properties?,
            };
            if properties.length >= length {
                return Ok(());
            }
            match self.vault.store.grow_page(name, length, &properties.etag).await {
                Ok(_) => return Ok(()),
                // Written or grown meanwhile, or nobody knows: looked at again.
                Err(StoreError::Unknown { .. }) => {}
                Err(error) if error.is(Refusal::Condition) => {}
                Err(source) => return Err(ApplyError::NotGrown { name: name.to_owned(), source }),
            }
            self.patience.pause(tried).await;
        }
        Err(ApplyError::Restless { name: name.to_owned() })
    }

    /// The blob's sequence number; `None`: there is no such blob.
    pub(super) async fn sequence(&self, seed: &Seed) -> Result<Option<u64>, StoreError> {
        self.sequence_of(&seed.disk_id).await
    }

    pub(super) async fn sequence_of(&self, disk_id: &str) -> Result<Option<u64>, StoreError> {
        let name = self.name(disk_id);
        match self.patience.sure(|| self.vault.store.properties(&name, None)).await {
            Ok(properties) => Ok(Some(properties.sequence_number)),
            Err(error) if error.is(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The sequence number that a snapshot carries; `None`: there is no such snapshot.
    pub(super) async fn snapshot_sequence(
        &self,
        disk_id: &str,
        snapshot: &str,
    ) -> Result<Option<u64>, StoreError> {
        let (name, snapshot) = (self.name(disk_id), SnapshotId(snapshot.to_owned()));
        match self.patience.sure(|| self.vault.store.properties(&name, Some(&snapshot))).await {
            Ok(properties) => Ok(Some(properties.sequence_number)),
            Err(error) if error.is(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Raises the sequence number and returns what it is then.
    pub(super) async fn raise(&self, seed: &Seed, sequence: u64) -> Result<u64, ApplyError> {
        let name = self.name(&seed.disk_id);
        match self.patience.sure(|| self.vault.store.raise_sequence(&name, sequence, None)).await {
            Err(error) if error.is(Refusal::NotFound) => Err(ApplyError::SeedLost { name }),
            raised => Ok(raised?),
        }
    }

    /// Writes the footer. It is always the same.
    pub(super) async fn write_footer(&self, seed: &Seed, sequence: u64) -> Result<(), ApplyError> {
        let footer = vhd::footer(self.server.as_str(), &seed.disk_id, seed.size_bytes).to_vec();
        self.write(seed, vhd::virtual_bytes(seed.size_bytes), footer.into(), sequence).await
    }

    pub(super) async fn write(
        &self,
        seed: &Seed,
        offset: u64,
        content: bytes::Bytes,
        sequence: u64,
    ) -> Result<(), ApplyError> {
        let name = self.name(&seed.disk_id);
        let sequence = self.tag(sequence);
        let store = &self.vault.store;
        let written =
            self.patience.sure(|| store.write_pages(&name, offset, content.clone(), None, sequence)).await;
        fenced(written, name).map(drop)
    }

    pub(super) async fn clear(
        &self,
        seed: &Seed,
        offset: u64,
        length: u64,
        sequence: u64,
    ) -> Result<(), ApplyError> {
        let name = self.name(&seed.disk_id);
        let sequence = self.tag(sequence);
        let range = offset..offset + length;
        let store = &self.vault.store;
        let cleared = self.patience.sure(|| store.clear_pages(&name, range.clone(), None, sequence)).await;
        fenced(cleared, name).map(drop)
    }

    /// The highest sequence number at which a write of this batch may land.
    fn tag(&self, sequence: u64) -> u64 {
        if self.planted == Some(Planted::PagesWithoutTag) { u64::MAX } else { sequence }
    }

    /// A snapshot of the seed disk at exactly `sequence`.
    ///
    /// The number is read with the ETag that the snapshot must meet: if anybody raised it since, or wrote, the
    /// snapshot is refused. A late copy of one of our own writes changes the ETag too, but no content: then it is
    /// tried again.
    pub(super) async fn snapshot(&self, seed: &Seed, sequence: u64) -> Result<SnapshotId, ApplyError> {
        let name = self.name(&seed.disk_id);
        for tried in 0..self.patience.tries {
            let properties = match self.patience.sure(|| self.vault.store.properties(&name, None)).await {
                Err(error) if error.is(Refusal::NotFound) => return Err(ApplyError::SeedLost { name }),
                properties => properties?,
            };
            if properties.sequence_number != sequence {
                return Err(ApplyError::Superseded { name });
            }
            let etag: ETag = properties.etag;
            match self.vault.store.snapshot(&name, None, Some(&etag)).await {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) if error.is(Refusal::Condition) => {}
                // A snapshot that was made without an answer is not listed by any point: it costs only its changes.
                Err(StoreError::Unknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.patience.pause(tried).await;
        }
        Err(ApplyError::Restless { name })
    }
}

/// A refused page write means that a newer applier has raised the sequence number.
pub(super) fn fenced(result: Result<ETag, StoreError>, name: String) -> Result<ETag, ApplyError> {
    match result {
        Err(error) if error.is(Refusal::Condition) => Err(ApplyError::Superseded { name }),
        Err(error) if error.is(Refusal::NotFound) => Err(ApplyError::SeedLost { name }),
        result => Ok(result?),
    }
}

/// Is a blob with this sequence number older than the position says?
pub(super) fn is_behind(sequence: u64, position: &LogState) -> bool {
    // The epoch of the position may be newer than that of its last record: only the record is compared.
    sequence & 0xffff_ffff < position.last_number.0 & 0xffff_ffff
        && sequence < sequence_number(position.epoch, position.last_number)
}

/// Blocks that an extent of this disk may name.
pub(super) fn blocks(seed: &Seed) -> u64 {
    vhd::virtual_bytes(seed.size_bytes) / BLOCK_BYTES
}
