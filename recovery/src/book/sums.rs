//! Deep: is a seed disk, as it is now, what its checksums say?
//!
//! The applier keeps a keyed checksum of each block beside the seed disk. They are those of the seed disk itself and not
//! of its snapshots, so this finds a page that was changed behind the applier's back before the next snapshot has it.
//! Only while nothing is applied: a page and its checksum are two writes.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    ids::ServerId,
    log::Patience,
    store::{Refusal, StoreError},
    sums::{self, HEADER_PAGE, Header, ROW_BLOCKS, ROW_BYTES, SumKeys, UNKNOWN},
    vault::{Vault, layout},
};

use super::finding::{Finding, Severity, remedy};

/// Rows of 1 MiB under way.
const PARALLEL: usize = 4;
const ROW_OF_DISK: u64 = ROW_BLOCKS as u64 * BLOCK_BYTES;

const CHANGED: &str = "the next snapshots would have it: delete the seed disk and position.json while no applier runs; it \
    makes both anew from the log. Points that stand in snapshots of this disk are lost then, those of the journal stay";

/// Compares the blocks whose checksums are known. `None`: there are no checksums, or the disk is being written to.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn compare(
    vault: &Vault,
    server: &ServerId,
    patience: &Patience,
    disk_id: &str,
    size_bytes: u64,
) -> Result<Option<Vec<Finding>>, StoreError> {
    let (seed, file) = (layout::seed_disk(server, disk_id), layout::seed_sum(server, disk_id));
    let Some(before) = state(vault, patience, &seed, &file).await? else { return Ok(None) };
    if before.0.1 != before.1.1 {
        return Ok(None);
    }
    let page = patience.sure(|| vault.store.get(&file, None, Some(0..HEADER_PAGE))).await?;
    let Some(header) = Header::from_page(&page) else {
        let what = "the checksums of the seed disk have no readable header";
        return Ok(Some(vec![Finding::new(Severity::Degraded, file, what, remedy::REBUILT)]));
    };
    let Some(secret) = header.secret(&vault.keys, server, disk_id) else { return Ok(None) };
    let keys = SumKeys::new(&secret);
    let (seed, file, keys) = (&seed, &file, &keys);
    let mut rows = stream::iter(0..sums::rows(size_bytes))
        .map(|row| async move {
            let at = sums::row_at(row);
            let stored = patience.sure(|| vault.store.get(file, None, Some(at..at + ROW_BYTES))).await?;
            let mut stored = sums::row_from(&stored);
            if stored.iter().all(|sum| *sum == UNKNOWN) {
                return Ok::<_, StoreError>(Vec::new());
            }
            keys.mask_blocks(row, &mut stored);
            let start = u64::from(row) * ROW_OF_DISK;
            let range = start..start + ROW_OF_DISK;
            let content = patience.sure(|| vault.store.get(seed, None, Some(range.clone()))).await?;
            let blocks = content.chunks_exact(BLOCK_BYTES as usize).zip(stored).enumerate();
            let wrong = blocks.filter(|(_, (block, sum))| *sum != UNKNOWN && keys.block(block) != *sum);
            Ok(wrong.map(|(number, _)| start + number as u64 * BLOCK_BYTES).collect())
        })
        .buffered(PARALLEL);
    let (mut first, mut count) = (None, 0);
    while let Some(wrong) = rows.try_next().await? {
        first = first.or(wrong.first().copied());
        count += wrong.len();
    }
    drop(rows);
    if state(vault, patience, seed, file).await? != Some(before) {
        return Ok(None);
    }
    let finding = first.map(|byte| {
        let what = format!("{count} blocks of 4 KiB are not what their checksums say, the first one here");
        Finding::new(Severity::Degraded, seed, what, CHANGED).at(byte)
    });
    Ok(Some(finding.into_iter().collect()))
}

type Version = (lifeboat_replication::store::ETag, u64);

/// ETag and sequence number of both blobs; `None`: one is missing.
async fn state(
    vault: &Vault,
    patience: &Patience,
    seed: &str,
    file: &str,
) -> Result<Option<(Version, Version)>, StoreError> {
    let mut found = Vec::new();
    for name in [seed, file] {
        match patience.sure(|| vault.store.properties(name, None)).await {
            Ok(properties) => found.push((properties.etag, properties.sequence_number)),
            Err(error) if error.is(Refusal::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let file = found.pop();
    Ok(found.pop().zip(file))
}
