//! How much a server takes up in the vault: what is listed, and the pages of seed disks that hold something.
//! Snapshots share pages with their disk; what only they still hold is not counted.

use std::time::Duration;

use lifeboat_replication::{
    ids::ServerId,
    store::{BlobKind, BlobStore, Result},
    vault::{Vault, layout},
};

/// Listing costs an operation for 5000 names, so it is not done often.
const INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of one server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Segments.
    pub journal: u64,
    /// The commit log, with the segments that small records carry in themselves.
    pub log: u64,
    /// Seed disks and their checksums.
    pub seed_disks: u64,
}

impl Stored {
    pub fn total(&self) -> u64 {
        self.journal + self.log + self.seed_disks
    }
}

/// Measures again and again.
pub(super) async fn measure(vault: &Vault, server: &ServerId, tell: impl Fn(Stored)) {
    loop {
        match stored(vault, server).await {
            Ok(stored) => tell(stored),
            Err(error) => tracing::debug!(%server, %error, "what is stored cannot be measured now"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn stored(vault: &Vault, server: &ServerId) -> Result<Stored> {
    let store = &*vault.store;
    let seed_disks = listed(store, &layout::disks_prefix(server)).await?;
    let log = listed(store, &layout::log_prefix(server)).await?;
    let journal = listed(&*vault.cache, &layout::journal_prefix(server)).await?;
    Ok(Stored { journal, log, seed_disks })
}

async fn listed(store: &dyn BlobStore, prefix: &str) -> Result<u64> {
    let (mut bytes, mut after) = (0, None);
    loop {
        let page = store.list(prefix, false, after.as_deref()).await?;
        for blob in page.blobs {
            bytes += match blob.kind {
                BlobKind::Page => pages(store, &blob.name).await?,
                BlobKind::Block | BlobKind::Append => blob.length,
            };
        }
        after = page.next;
        if after.is_none() {
            return Ok(bytes);
        }
    }
}

async fn pages(store: &dyn BlobStore, name: &str) -> Result<u64> {
    Ok(store.page_ranges(name, None).await?.iter().map(|range| range.end - range.start).sum())
}
