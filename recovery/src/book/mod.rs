//! The vault's book: what a vault holds, whether it is whole, and a disk of it as a file, without any cluster.
//!
//! ```text
//!   summary (ls)      inventory + the log's two ends
//!   verify            catalogue, seed disks, segments ─► walk (the log, past damage) ─► sweep (which points stand)
//!     ├─ content      deep: snapshots against the journal, block by block
//!     └─ sums         deep: seed disks against the applier's checksums
//!   export            a point's disk ─► raw file or VHD, resumable
//! ```
//! Nothing here writes to the vault. Everything may run while writers and appliers are at work.

pub(crate) mod content;
pub mod export;
pub mod finding;
pub mod inventory;
pub mod segments;
pub mod summary;
mod sums;
pub mod sweep;
pub mod verify;
mod walk;

use std::sync::Arc;

use lifeboat_replication::{
    log::Patience,
    vault::{
        Vault, VaultError,
        config::{ConfigError, VaultConfig},
        layout,
    },
};

pub use export::{Export, ExportError, Format, Progress};
pub use finding::{Finding, PointRange, Severity};
pub use inventory::{Held, InventoryError};
pub use summary::ServerSummary;
pub use verify::{ServerReport, VaultReport};

/// Opens a vault even when its `vault.json` is gone or damaged, if the data keys come from their file: everything else
/// can still be read with them.
///
/// # Errors
/// When the vault cannot be reached, there is none, or the keys are not its keys.
pub async fn open(config: &VaultConfig, patience: &Patience) -> Result<Vault, ConfigError> {
    let error = match config.open().await {
        Err(ConfigError::Vault(error)) if config.keys_file.is_some() => error,
        opened => return opened,
    };
    let only_the_document = matches!(
        error,
        VaultError::Missing
            | VaultError::Damaged { .. }
            | VaultError::TooLarge { .. }
            | VaultError::Format { .. }
    );
    if !only_the_document {
        return Err(error.into());
    }
    let (store, cache) = config.connect()?;
    match patience.sure(|| store.list(layout::SERVERS_PREFIX, false, None)).await {
        Ok(page) if !page.blobs.is_empty() => {
            Ok(Vault { store, cache, keys: Arc::new(config.keys()?), id: String::new() })
        }
        _ => Err(error.into()),
    }
}
