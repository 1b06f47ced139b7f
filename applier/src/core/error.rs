//! What can keep a server's log from being applied.

use lifeboat_replication::{
    catalogue::CatalogueError,
    ids::{DiskSlot, RecordId, ServerId},
    journal::JournalError,
    log::ReadError,
    store::StoreError,
};

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("seed disk {name} belongs to a newer batch of another applier: the position is read again")]
    Superseded { name: String },
    #[error("seed disk {name} is missing: it is made again from the log")]
    SeedLost { name: String },
    #[error(
        "seed disk {name} stands at an older record than the position says, so the store went back in time: it is \
         brought up to date again from the log"
    )]
    SeedBehind { name: String },
    #[error(
        "seed disk {name} carries record {record} of epoch {epoch}, which the log does not hold: the store's log went \
         back in time; it goes on when the server's full copy has opened a newer epoch"
    )]
    SeedAhead { name: String, epoch: u64, record: u64 },
    #[error(
        "{name} cannot be made longer, though its disk has grown: an account SAS may lack the right to (write), then \
         give the appliance an account key"
    )]
    NotGrown {
        name: String,
        #[source]
        source: StoreError,
    },
    #[error(
        "the seed disks of server {server} lost what the journal, which begins after record {collected}, cannot give back: \
         restore them from the store's soft-delete or versions, or remove the ProtectedServer and protect it anew"
    )]
    Collected { server: ServerId, collected: RecordId },
    #[error("seed disk {name} does not come to rest for a snapshot: look for a second applier and stop it")]
    Restless { name: String },
    #[error(
        "record {record} names block {block} of disk {disk}, which is not on any disk of the server: protect the server anew"
    )]
    OffDisk { record: u64, disk: DiskSlot, block: u32 },
    #[error(
        "disk {disk} shrank from {from} to {to} bytes, which a seed disk cannot follow: remove the ProtectedServer and protect it anew"
    )]
    DiskShrank { disk: String, from: u64, to: u64 },
    #[error(
        "disk {disk} came back as slot {second} after slot {first}: remove the ProtectedServer and protect it anew"
    )]
    SecondSlot { disk: String, first: u32, second: u32 },
    #[error("a page write was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

impl ApplyError {
    /// What the position says is not what the store holds any more.
    pub(super) fn needs_rebuild(&self) -> bool {
        matches!(
            self,
            Self::SeedLost { .. } | Self::SeedBehind { .. } | Self::Log(ReadError::WentBack { .. })
        )
    }
}
