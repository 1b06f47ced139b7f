//! Keeps `<disk>.sum` in step with the log: the checksums by which a resynchronization finds what differs.
//!
//! **Order.** The files are fenced as the seed disks are: the sequence number is raised before the batch, and every
//! write is refused once somebody has raised it further. They are written after the batch's pages and before the
//! position. So a sum is that of a record from the position on: of the position's own, or of one that a batch was
//! applied up to which did not come to its end. Whoever compares counts blocks of records behind the position as
//! different.
//! **Crash** at any point: the next batch holds the same records at least, and writes the sums of all their blocks
//! again. A page is written once in a batch, with what the batch makes of it, so copies that land late are the same.
//! **A file that is missing, or went back in time**, begins anew: nothing is known of its disk until blocks are
//! written, and what is not known counts as different.
//! **Bounds.** What a batch brings is 20 bytes for each block with data, of [`MOST_SUMS`] blocks at most (others
//! become unknown), and a compressed bitmap of zero blocks. Rows are read and written in [`AT_ONCE`] windows of at
//! most 1 MiB. Neighbouring rows share a call.

use std::ops::Range;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::Seed,
    env::Entropy,
    log::LogState,
    segment::ExtentData,
    store::{PAGE_BYTES, Refusal},
    sums::{self, GROUP_ROWS, HEADER_PAGE, Header, ROW_BLOCKS, ROW_BYTES, SUM_BYTES, Sum, SumKeys, UNKNOWN},
    vault::layout,
};
use roaring::RoaringBitmap;

use super::{
    ApplyError, Figures,
    seeds::{self, Seeds, fenced},
};

/// Sums of data that a batch may bring; 20 MiB. A batch of an honest agent has a fifth of it.
const MOST_SUMS: usize = 1 << 20;
/// Windows under way for one disk.
const AT_ONCE: usize = 4;
/// Rows of a window: 1 MiB of sums.
const WINDOW_ROWS: u32 = 256;
/// Rows that nobody changed are read and written along to save a call.
const GAP_ROWS: u32 = 8;
/// Sums of rows that are written with one call: 64 KiB. A group holds a whole number of these.
const HEAD_ROWS: u32 = 4096;

/// What a batch does to the sums of one disk.
#[derive(Debug)]
pub(super) struct Pending {
    keys: SumKeys,
    /// In no order; no block twice.
    sums: Vec<(u32, Sum)>,
    zeros: RoaringBitmap,
    unknown: RoaringBitmap,
}

impl Pending {
    pub(super) fn new(keys: SumKeys) -> Self {
        Self { keys, sums: Vec::new(), zeros: RoaringBitmap::new(), unknown: RoaringBitmap::new() }
    }

    /// Blocks as they are at the end of the batch; none may be given twice.
    pub(super) fn take(&mut self, extent: &ExtentData) {
        let (first, end) = (extent.run.first, extent.run.first.saturating_add(extent.run.blocks));
        match &extent.data {
            None => _ = self.zeros.insert_range(first..end),
            Some(data) if self.sums.len() + data.len() / BLOCK_BYTES as usize <= MOST_SUMS => {
                for (block, content) in (first..end).zip(data.chunks_exact(BLOCK_BYTES as usize)) {
                    self.sums.push((block, self.keys.block(content)));
                }
            }
            Some(_) => _ = self.unknown.insert_range(first..end),
        }
    }

    fn rows(&self) -> RoaringBitmap {
        let data = self.sums.iter().map(|(block, _)| block / ROW_BLOCKS);
        let mut rows: RoaringBitmap = data.collect();
        for set in [&self.zeros, &self.unknown] {
            let mut from = 0;
            // Row by row, not block by block: a set may name a whole disk.
            while let Some(block) = set.range(from..).next() {
                rows.insert(block / ROW_BLOCKS);
                match (block / ROW_BLOCKS + 1).checked_mul(ROW_BLOCKS) {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        rows
    }

    /// Blocks of the row that it sets.
    fn in_row(&self, row: u32) -> usize {
        let blocks = blocks_of(row);
        let of = |set: &RoaringBitmap| set.range_cardinality(blocks.clone()) as usize;
        self.data_of(row).len() + of(&self.zeros) + of(&self.unknown)
    }

    /// `sums` have to be sorted.
    fn data_of(&self, row: u32) -> &[(u32, Sum)] {
        let blocks = blocks_of(row);
        let from = self.sums.partition_point(|(block, _)| block < blocks.start());
        let to = self.sums.partition_point(|(block, _)| block <= blocks.end());
        self.sums.get(from..to).unwrap_or_default()
    }

    /// What is stored of a row becomes what is stored after the batch; returns what is stored as its own sum.
    fn apply(&self, row: u32, stored: &mut [u8]) -> Sum {
        let mut sums = sums::row_from(stored);
        self.keys.mask_blocks(row, &mut sums);
        let mut set = |block: u32, sum: Sum| {
            if let Some(place) = sums.get_mut((block % ROW_BLOCKS) as usize) {
                *place = sum;
            }
        };
        self.data_of(row).iter().for_each(|(block, sum)| set(*block, *sum));
        self.zeros.range(blocks_of(row)).for_each(|block| set(block, self.keys.zero_block()));
        self.unknown.range(blocks_of(row)).for_each(|block| set(block, UNKNOWN));
        let own = self.keys.mask_row(row, self.keys.row(&sums));
        self.keys.mask_blocks(row, &mut sums);
        stored.copy_from_slice(sums.as_flattened());
        own
    }
}

fn blocks_of(row: u32) -> std::ops::RangeInclusive<u32> {
    let first = row.saturating_mul(ROW_BLOCKS);
    first..=first.saturating_add(ROW_BLOCKS - 1)
}

/// Rows that are read and written together: a range, and which of its rows change.
#[derive(Debug, PartialEq)]
struct RowWindow {
    range: Range<u32>,
    rows: Vec<u32>,
}

/// Few calls for many rows. Pure.
fn windows(rows: &RoaringBitmap) -> impl Iterator<Item = RowWindow> + '_ {
    let mut rows = rows.iter().peekable();
    std::iter::from_fn(move || {
        let first = rows.next()?;
        let mut window = RowWindow { range: first..first + 1, rows: vec![first] };
        while let Some(row) = rows.next_if(|row| {
            row / GROUP_ROWS == first / GROUP_ROWS
                && row - first < WINDOW_ROWS
                && row - window.range.end <= GAP_ROWS
        }) {
            window.range.end = row + 1;
            window.rows.push(row);
        }
        Some(window)
    })
}

impl Seeds {
    fn sum_name(&self, seed: &Seed) -> String {
        layout::seed_sum(&self.server, &seed.disk_id)
    }

    /// Raises the sequence number, of a new file when there is none, and returns what it is then.
    pub(super) async fn raise_sums(&self, seed: &Seed, sequence: u64) -> Result<u64, ApplyError> {
        let (name, store) = (self.sum_name(seed), &self.vault.store);
        let raise = || self.patience.sure(|| store.raise_sequence(&name, sequence, None));
        match raise().await {
            Err(error) if error.is(Refusal::NotFound) => {}
            raised => return Ok(raised?),
        }
        let length = sums::blob_bytes(seed.size_bytes);
        match self.patience.sure(|| store.create_page(&name, length)).await {
            Err(error) if !error.is(Refusal::AlreadyExists) => Err(error.into()),
            _ => Ok(raise().await?),
        }
    }

    /// The disk has grown: nothing is known of what was added.
    pub(super) async fn grow_sums(&self, seed: &Seed) -> Result<(), ApplyError> {
        match self.grow(&self.sum_name(seed), sums::blob_bytes(seed.size_bytes)).await {
            // It is made with the right length when it is fenced.
            Err(ApplyError::SeedLost { .. }) => Ok(()),
            grown => grown,
        }
    }

    /// The keys of the file, which gets a header when it has none that can be used.
    pub(super) async fn sum_keys(
        &self,
        seed: &Seed,
        sequence: u64,
        entropy: &dyn Entropy,
    ) -> Result<SumKeys, ApplyError> {
        let name = self.sum_name(seed);
        let page = self.read_sums(&name, 0..HEADER_PAGE).await?;
        let secret = |header: Header| header.secret(&self.vault.keys, &self.server, &seed.disk_id);
        if let Some(secret) = Header::from_page(&page).and_then(secret) {
            return Ok(SumKeys::new(&secret));
        }
        let header = self.begin_sums(&name, sequence, entropy).await?;
        // The current key is always there.
        Ok(SumKeys::new(&secret(header).unwrap_or_default()))
    }

    /// A new header: whatever else stands in the file means nothing any more.
    async fn begin_sums(
        &self,
        name: &str,
        sequence: u64,
        entropy: &dyn Entropy,
    ) -> Result<Header, ApplyError> {
        let mut made = [0; 16];
        entropy.fill(&mut made);
        let header = Header { made, key_id: self.vault.keys.current().0.clone() };
        self.write_sum_pages(name, 0, header.to_page().to_vec(), sequence).await?;
        Ok(header)
    }

    /// A file whose number is below the position's went back in time: it begins anew, before its number is raised.
    pub(super) async fn check_sums(
        &self,
        seed: &Seed,
        position: &LogState,
        entropy: &dyn Entropy,
    ) -> Result<(), ApplyError> {
        let name = self.sum_name(seed);
        let found = match self.patience.sure(|| self.vault.store.properties(&name, None)).await {
            Err(error) if error.is(Refusal::NotFound) => return Ok(()),
            properties => properties?.sequence_number,
        };
        if seeds::is_behind(found, position) {
            tracing::warn!(server = %self.server, name, "checksums went back in time: they begin anew");
            self.begin_sums(&name, found, entropy).await?;
        }
        Ok(())
    }

    /// Brings the sums of the batch into the disk's file. When it returns `Ok`, all are durable.
    pub(super) async fn write_sums(
        &self,
        seed: &Seed,
        mut pending: Pending,
        sequence: u64,
        figures: &mut Figures,
    ) -> Result<(), ApplyError> {
        let name = self.sum_name(seed);
        pending.sums.sort_unstable_by_key(|(block, _)| *block);
        let rows = pending.rows();
        let (pending, name) = (&pending, name.as_str());
        let write = |window: RowWindow| self.write_window(name, pending, window, sequence);
        let mut written = stream::iter(windows(&rows)).map(write).buffered(AT_ONCE);
        let mut heads: Vec<(u32, Sum)> = Vec::new();
        while let Some((reads, own)) = written.try_next().await? {
            figures.sum_calls += 1 + reads;
            for (row, sum) in own {
                if heads.first().is_some_and(|(first, _)| first / HEAD_ROWS != row / HEAD_ROWS) {
                    self.write_heads(name, &heads, sequence).await?;
                    figures.sum_calls += 2;
                    heads.clear();
                }
                heads.push((row, sum));
            }
        }
        if !heads.is_empty() {
            self.write_heads(name, &heads, sequence).await?;
            figures.sum_calls += 2;
        }
        Ok(())
    }

    /// The sums of blocks. Returns how often it read, and the rows' own sums.
    async fn write_window(
        &self,
        name: &str,
        pending: &Pending,
        window: RowWindow,
        sequence: u64,
    ) -> Result<(u64, Vec<(u32, Sum)>), ApplyError> {
        let from = sums::row_at(window.range.start);
        let bytes = u64::from(window.range.end - window.range.start) * ROW_BYTES;
        let gaps = window.rows.len() < window.range.len();
        let whole = |row: &u32| pending.in_row(*row) == ROW_BLOCKS as usize;
        let read = gaps || !window.rows.iter().all(whole);
        let mut content = match read {
            true => self.read_sums(name, from..from + bytes).await?,
            false => Vec::new(),
        };
        content.resize(usize::try_from(bytes).unwrap_or_default(), 0);
        let mut own = Vec::with_capacity(window.rows.len());
        for row in window.rows {
            let at = (row - window.range.start) as usize * ROW_BYTES as usize;
            if let Some(stored) = content.get_mut(at..at + ROW_BYTES as usize) {
                own.push((row, pending.apply(row, stored)));
            }
        }
        self.write_sum_pages(name, from, content, sequence).await?;
        Ok((u64::from(read), own))
    }

    /// The sums of rows, all from one stretch of [`HEAD_ROWS`].
    async fn write_heads(&self, name: &str, heads: &[(u32, Sum)], sequence: u64) -> Result<(), ApplyError> {
        let (Some((first, _)), Some((last, _))) = (heads.first(), heads.last()) else { return Ok(()) };
        let from = sums::row_sum_at(*first) / PAGE_BYTES * PAGE_BYTES;
        let to = (sums::row_sum_at(*last) + SUM_BYTES as u64).next_multiple_of(PAGE_BYTES);
        let mut content = self.read_sums(name, from..to).await?;
        content.resize(usize::try_from(to - from).unwrap_or_default(), 0);
        for (row, sum) in heads {
            let at = usize::try_from(sums::row_sum_at(*row) - from).unwrap_or(usize::MAX);
            if let Some(place) = content.get_mut(at..at + SUM_BYTES) {
                place.copy_from_slice(sum);
            }
        }
        self.write_sum_pages(name, from, content, sequence).await
    }

    async fn read_sums(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, ApplyError> {
        let get = || self.vault.store.get(name, None, Some(range.clone()));
        match self.patience.sure(get).await {
            // Gone since it was fenced: the next batch begins it anew.
            Err(error) if error.is(Refusal::NotFound) => {
                Err(ApplyError::Superseded { name: name.to_owned() })
            }
            content => Ok(content?.to_vec()),
        }
    }

    async fn write_sum_pages(
        &self,
        name: &str,
        offset: u64,
        content: Vec<u8>,
        sequence: u64,
    ) -> Result<(), ApplyError> {
        let content = bytes::Bytes::from(content);
        let write = || self.vault.store.write_pages(name, offset, content.clone(), None, sequence);
        match self.patience.sure(write).await {
            Err(error) if error.is(Refusal::NotFound) => {
                Err(ApplyError::Superseded { name: name.to_owned() })
            }
            written => fenced(written, name.to_owned()).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_a_call_when_they_are_near_each_other_and_in_one_group() {
        let rows: RoaringBitmap =
            [0, 1, 5, 100, 300, GROUP_ROWS - 1, GROUP_ROWS].into_iter().chain(400..1000).collect();
        let found: Vec<_> = windows(&rows).map(|window| (window.range, window.rows.len())).collect();
        let last = GROUP_ROWS - 1;
        assert_eq!(
            found,
            [
                (0..6, 3),
                (100..101, 1),
                (300..301, 1),
                (400..656, 256),
                (656..912, 256),
                (912..1000, 88),
                (last..last + 1, 1),
                (GROUP_ROWS..GROUP_ROWS + 1, 1),
            ]
        );
    }

    #[test]
    fn more_data_than_fits_is_unknown_and_a_whole_disk_of_zeros_is_few_bytes() {
        let mut pending = Pending::new(SumKeys::new(&[1; 32]));
        let run = lifeboat_replication::blocks::BlockRun {
            disk: lifeboat_replication::ids::DiskSlot(1),
            first: 0,
            blocks: u32::MAX,
        };
        pending.take(&ExtentData { run, data: None });
        assert_eq!(pending.rows().len(), u64::from(u32::MAX / ROW_BLOCKS + 1));
        assert!(pending.sums.is_empty());
        pending.sums = vec![(0, UNKNOWN); MOST_SUMS];
        let run = lifeboat_replication::blocks::BlockRun { first: 7, blocks: 1, ..run };
        pending.take(&ExtentData { run, data: Some(vec![1; 4096].into()) });
        assert!(pending.unknown.contains(7));
    }
}
