//! The block index: any point of a server as readable disks, at once and without copying.
//!
//! Built from the journal after the base snapshot: each block is in a segment, zero, or as in the base. To open a point
//! only the tables of the segments are fetched. Reads fetch whole segments (4 MiB) and aligned pieces of the snapshot,
//! and keep them in a bounded cache. Each part of a segment is believed when its tag is what the authenticated log says
//! and it opens with its key; a snapshot when it is the one that the catalogue lists, at the point's sequence number.
//! So a damaged table fails the opening, damaged data the read that needs it.

mod map;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    catalogue::Point,
    env::Env,
    ids::{DiskSlot, ServerId},
    journal::{self, JournalError, Source},
    log::{LogDisk, Patience},
    segment::{Extent, ExtentData},
    store::{Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
};
use roaring::RoaringBitmap;
use tokio::sync::Semaphore;

use self::map::{Builder, DiskMap, Place, Run};
use crate::{
    book::content::insert,
    cache::{Cache, CacheFigures},
    scan::{self, Found, Reach, ScanError},
    select::PointSelector,
};

/// Aligned piece of a snapshot that is fetched at once: a booting machine reads neighbours soon after.
const CHUNK_BYTES: u64 = 256 << 10;
/// Pieces fetched ahead once a client reads in order.
const AHEAD: u64 = 4;
/// Fetches under way for one read.
const PARALLEL: usize = 8;
/// Tables under way to build the index: each is a few kilobytes, so what counts is the way to the store and back. Of
/// segments of version 1 everything is fetched: 32 of 4 MiB.
const PARALLEL_TABLES: usize = 32;
const BLOCK: usize = BLOCK_BYTES as usize;

#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Memory for what was read.
    pub cache_bytes: u64,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(
        "{what} is missing although the point needs it: restore it from the store's soft-delete, or choose another point"
    )]
    Missing { what: String },
    #[error("the point has no disk {0}")]
    NoDisk(DiskSlot),
    #[error(
        "{what} gave {got} bytes instead of {wanted}: restore it from the store's versions or soft-delete, or choose another \
         point"
    )]
    Short { what: String, got: usize, wanted: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is fetched as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Segment(u32),
    Chunk(DiskSlot, u64),
}

#[derive(Debug, Clone)]
enum Kept {
    Extents(Arc<Vec<ExtentData>>),
    Bytes(Bytes),
}

#[derive(Debug)]
struct Disk {
    disk: LogDisk,
    map: DiskMap,
    /// Seed disk and its snapshot at the base.
    base: Option<(String, SnapshotId)>,
}

/// A server's disks at one point.
#[derive(Debug)]
pub struct BlockIndex {
    vault: Vault,
    patience: Patience,
    point: Found,
    disks: BTreeMap<DiskSlot, Disk>,
    segments: Vec<Source>,
    cache: Cache<Key, Kept>,
    fetched_bytes: AtomicU64,
    fetches: AtomicU64,
    ahead: Arc<Semaphore>,
}

/// What was read since the index was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexFigures {
    pub fetched_bytes: u64,
    pub fetches: u64,
    pub cache: CacheFigures,
}

impl BlockIndex {
    /// Opens the point that `selector` wants.
    ///
    /// # Errors
    /// When there is no such point, or what it needs cannot be read or verified; the message names the blob.
    pub async fn open(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        selector: PointSelector,
        options: &IndexOptions,
    ) -> Result<Arc<Self>, IndexError> {
        let point = scan::find(vault, server, env, selector).await?;
        Self::of(vault, server, env, point, options).await
    }

    /// Opens a point as the journal gives it after `base` (`None`: after nothing), whatever nearer base there is.
    ///
    /// # Errors
    /// As [`BlockIndex::open`].
    pub async fn replay(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        number: u64,
        base: Option<&Point>,
        options: &IndexOptions,
    ) -> Result<Arc<Self>, IndexError> {
        let selector = PointSelector::Number(number);
        let base = base.map(|base| (base, Reach::Journal));
        let point = scan::from_base(vault, server, env, selector, base).await?;
        Self::of(vault, server, env, point, options).await
    }

    /// Opens a point that was found before: whoever keeps it open for long pins it first ([`crate::hold::Hold`]).
    ///
    /// # Errors
    /// When what the point needs cannot be read or verified; the message names the blob.
    pub async fn of(
        vault: &Vault,
        server: &ServerId,
        env: &Env,
        point: Found,
        options: &IndexOptions,
    ) -> Result<Arc<Self>, IndexError> {
        let mut segments = Vec::new();
        for record in &point.records {
            segments.extend(journal::sources(record)?);
        }
        let mut index = Self {
            vault: vault.clone(),
            patience: Patience::new(env.clone()),
            disks: BTreeMap::new(),
            segments,
            cache: Cache::new(options.cache_bytes),
            fetched_bytes: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            ahead: Arc::new(Semaphore::new(AHEAD as usize)),
            point,
        };
        let mut maps = index.maps().await?;
        let base = |disk: &LogDisk| {
            let snapshot = index.point.base.as_ref()?.disk(disk.slot)?.snapshot.clone();
            Some((layout::seed_disk(server, &disk.id), SnapshotId(snapshot)))
        };
        index.disks = index
            .point
            .disks
            .iter()
            .filter(|disk| !disk.left_out)
            .map(|disk| {
                let map = maps.remove(&disk.slot).map(Builder::build).unwrap_or_default();
                (disk.slot, Disk { base: base(disk), disk: disk.clone(), map })
            })
            .collect();
        Ok(Arc::new(index))
    }

    /// The point that was opened.
    pub fn point(&self) -> &Found {
        &self.point
    }

    pub fn disks(&self) -> impl Iterator<Item = &LogDisk> {
        self.disks.values().map(|disk| &disk.disk)
    }

    /// Blocks of a disk that may hold something else than zeros: what the journal has written, and pages of the base.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub async fn used_blocks(&self, slot: DiskSlot) -> Result<RoaringBitmap, IndexError> {
        let mut blocks = self.journal_blocks(slot)?;
        let disk = self.disks.get(&slot).ok_or(IndexError::NoDisk(slot))?;
        if let Some((name, snapshot)) = &disk.base {
            let ranges = self.patience.sure(|| self.vault.store.page_ranges(name, Some(snapshot))).await?;
            ranges.iter().for_each(|range| insert(&mut blocks, range));
        }
        Ok(blocks)
    }

    /// Blocks of a disk that the journal has written since the base.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn journal_blocks(&self, slot: DiskSlot) -> Result<RoaringBitmap, IndexError> {
        let disk = self.disks.get(&slot).ok_or(IndexError::NoDisk(slot))?;
        let mut blocks = RoaringBitmap::new();
        for (first, count) in disk.map.all() {
            blocks.insert_range(first..first.saturating_add(count));
        }
        Ok(blocks)
    }

    /// Runs of blocks that come from the journal.
    pub fn journal_runs(&self) -> usize {
        self.disks.values().map(|disk| disk.map.runs()).sum()
    }

    pub fn figures(&self) -> IndexFigures {
        IndexFigures {
            fetched_bytes: self.fetched_bytes.load(Ordering::Relaxed),
            fetches: self.fetches.load(Ordering::Relaxed),
            cache: self.cache.figures(),
        }
    }

    /// Reads the tables of all segments, newest first, and notes where each block is.
    async fn maps(&self) -> Result<BTreeMap<DiskSlot, Builder>, IndexError> {
        let mut maps: BTreeMap<DiskSlot, Builder> = BTreeMap::new();
        let newest_first = (0..self.segments.len() as u32).rev();
        let mut opened = stream::iter(newest_first)
            .map(|segment| async move { Ok::<_, IndexError>((segment, self.table(segment).await?)) })
            .buffered(PARALLEL_TABLES);
        while let Some((segment, extents)) = opened.try_next().await? {
            for (number, extent) in extents.iter().enumerate().rev() {
                maps.entry(extent.run.disk).or_default().add_older(segment, number as u32, extent);
            }
        }
        Ok(maps)
    }

    async fn table(&self, segment: u32) -> Result<Vec<Extent>, IndexError> {
        let table = self.segments[segment as usize].table(&self.vault, &self.patience).await?;
        self.count(table.fetched_bytes);
        if let Some(whole) = table.whole {
            // Likely to be read soon.
            let kept = async { Ok::<_, IndexError>(kept(whole)) };
            self.cache.get(&Key::Segment(segment), kept).await?;
        }
        Ok(table.extents)
    }

    /// `blocks * 4096` bytes of a disk, verified.
    ///
    /// # Errors
    /// When a part cannot be read or verified; the message names the blob.
    pub async fn read(
        self: &Arc<Self>,
        slot: DiskSlot,
        first: u32,
        blocks: u32,
    ) -> Result<Bytes, IndexError> {
        let disk = self.disks.get(&slot).ok_or(IndexError::NoDisk(slot))?;
        let pieces: Vec<Vec<Bytes>> = stream::iter(disk.map.pieces(first, blocks))
            .map(|run| self.piece(slot, disk, run))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut all = pieces.into_iter().flatten();
        let mut whole = match (all.next(), blocks as usize * BLOCK) {
            (Some(only), wanted) if only.len() == wanted => return Ok(only),
            (None, _) => return Ok(Bytes::new()),
            (Some(piece), wanted) => {
                let mut whole = BytesMut::with_capacity(wanted);
                whole.extend_from_slice(&piece);
                whole
            }
        };
        all.for_each(|piece| whole.extend_from_slice(&piece));
        Ok(whole.freeze())
    }

    async fn piece(
        self: &Arc<Self>,
        slot: DiskSlot,
        disk: &Disk,
        run: Run,
    ) -> Result<Vec<Bytes>, IndexError> {
        let bytes = run.blocks as usize * BLOCK;
        match (run.place, &disk.base) {
            (Place::Zero, _) | (Place::Base, None) => Ok(vec![BytesMut::zeroed(bytes).freeze()]),
            (Place::Base, Some((name, snapshot))) => self.from_snapshot(slot, name, snapshot, run).await,
            (Place::Extent { segment, extent, skip }, _) => {
                let extents = self.segment(segment).await?;
                let data = extents.get(extent as usize).and_then(|extent| extent.data.as_ref());
                let from = skip as usize * BLOCK;
                let what = || self.segments[segment as usize].name.clone();
                match data.filter(|data| data.len() >= from + bytes) {
                    Some(data) => Ok(vec![data.slice(from..from + bytes)]),
                    None => Err(IndexError::Short {
                        what: what(),
                        got: data.map_or(0, Bytes::len),
                        wanted: from + bytes,
                    }),
                }
            }
        }
    }

    async fn segment(&self, segment: u32) -> Result<Arc<Vec<ExtentData>>, IndexError> {
        let load = async {
            let source = &self.segments[segment as usize];
            let extents = source.read(&self.vault, &self.patience).await?;
            self.count(source.fetched_bytes());
            Ok::<_, IndexError>(kept(extents))
        };
        match self.cache.get(&Key::Segment(segment), load).await? {
            Kept::Extents(extents) => Ok(extents),
            Kept::Bytes(_) => Ok(Arc::default()),
        }
    }

    async fn from_snapshot(
        self: &Arc<Self>,
        slot: DiskSlot,
        name: &str,
        snapshot: &SnapshotId,
        run: Run,
    ) -> Result<Vec<Bytes>, IndexError> {
        let start = u64::from(run.first) * BLOCK_BYTES;
        let end = start + u64::from(run.blocks) * BLOCK_BYTES;
        let chunks = start / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
        self.read_ahead(slot, chunks.start, chunks.end);
        stream::iter(chunks)
            .map(|chunk| async move {
                let content = self.chunk(slot, name, snapshot, chunk).await?;
                let base = chunk * CHUNK_BYTES;
                let (from, to) = (start.max(base) - base, end.min(base + CHUNK_BYTES) - base);
                let (from, to) = (from as usize, to as usize);
                if content.len() < to {
                    let what = format!("{name} (snapshot {})", snapshot.0);
                    return Err(IndexError::Short { what, got: content.len(), wanted: to });
                }
                Ok(content.slice(from..to))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await
    }

    async fn chunk(
        &self,
        slot: DiskSlot,
        name: &str,
        snapshot: &SnapshotId,
        chunk: u64,
    ) -> Result<Bytes, IndexError> {
        let load = async {
            let start = chunk * CHUNK_BYTES;
            let content = self.fetch(name, snapshot, start..start + CHUNK_BYTES).await?;
            self.count(content.len() as u64);
            let bytes = content.len() as u64;
            Ok::<_, IndexError>((Kept::Bytes(content), bytes))
        };
        match self.cache.get(&Key::Chunk(slot, chunk), load).await? {
            Kept::Bytes(content) => Ok(content),
            Kept::Extents(_) => Ok(Bytes::new()),
        }
    }

    async fn fetch(
        &self,
        name: &str,
        snapshot: &SnapshotId,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, IndexError> {
        match self.patience.sure(|| self.vault.store.get(name, Some(snapshot), Some(range.clone()))).await {
            Err(error) if error.is(Refusal::NotFound) => {
                Err(IndexError::Missing { what: format!("{name} (snapshot {})", snapshot.0) })
            }
            content => Ok(content?),
        }
    }

    /// When the chunk before was read, the next ones are likely to be: fetches them in the background.
    fn read_ahead(self: &Arc<Self>, slot: DiskSlot, first: u64, end: u64) {
        let in_order =
            first.checked_sub(1).is_some_and(|before| self.cache.contains(&Key::Chunk(slot, before)));
        let Some(disk) = self.disks.get(&slot).filter(|_| in_order) else { return };
        let last = disk.disk.size_bytes.div_ceil(CHUNK_BYTES);
        for chunk in
            (end..last.min(end + AHEAD)).filter(|chunk| !self.cache.contains(&Key::Chunk(slot, *chunk)))
        {
            let Ok(permit) = Arc::clone(&self.ahead).try_acquire_owned() else { return };
            let Some((name, snapshot)) = disk.base.clone() else { return };
            let index = Arc::clone(self);
            tokio::spawn(async move {
                // Whoever needs the chunk tries again and sees the error.
                let _ = index.chunk(slot, &name, &snapshot, chunk).await;
                drop(permit);
            });
        }
    }

    fn count(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.fetches.fetch_add(u64::from(bytes > 0), Ordering::Relaxed);
    }
}

/// A segment for the cache, and how much memory it takes there.
fn kept(extents: Vec<ExtentData>) -> (Kept, u64) {
    let bytes = extents.iter().map(|extent| 64 + extent.data.as_ref().map_or(0, Bytes::len) as u64).sum();
    (Kept::Extents(Arc::new(extents)), bytes)
}
