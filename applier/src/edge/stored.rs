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

/// Measures again and again.
pub(super) async fn measure(vault: &Vault, server: &ServerId, tell: impl Fn(u64)) {
    loop {
        match stored_bytes(vault, server).await {
            Ok(bytes) => tell(bytes),
            Err(error) => tracing::debug!(%server, %error, "what is stored cannot be measured now"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn stored_bytes(vault: &Vault, server: &ServerId) -> Result<u64> {
    let own = listed(&*vault.store, &layout::server_prefix(server)).await?;
    Ok(own + listed(&*vault.cache, &layout::journal_prefix(server)).await?)
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
