//! A disk at a point with a local, writable layer above it: what a recovered machine writes goes to a sparse file
//! and never to the vault.
//!
//! Two files a disk: `<name>.overlay` holds blocks at their own offsets, `<name>.map` says which of them are there
//! (format in [`map`]). Read: blocks in the map come from the file, others from the base. Write: whole blocks go
//! to the file, then into the map; a part of a block first fetches the rest of it.
//!
//! Crash: after `flush` data is durable before the map that names it, so a restart for the same point goes on with
//! everything that was flushed. What was not flushed may be lost, as on any disk.

mod map;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use lifeboat_replication::blocks::BLOCK_BYTES;
pub use map::OpenError;

use self::map::Map;
use crate::device::{Base, Device};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Pieces of one request that are fetched at the same time.
const PIECES: usize = 4;

#[derive(Debug)]
pub struct Overlay {
    base: Arc<dyn Base>,
    data: Arc<File>,
    map: Mutex<Map>,
    /// Held shared by writes of whole blocks, alone by writes of parts (which read, then write back).
    parts: tokio::sync::RwLock<()>,
}

/// Where a run of neighbouring blocks is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    first: u32,
    blocks: u32,
    local: bool,
}

impl Overlay {
    /// Opens or makes the overlay files. `identity` names what the base is (server, disk, point): an overlay of
    /// another one is refused.
    ///
    /// # Errors
    /// When the files cannot be used; the message says what to do.
    pub fn open(folder: &Path, name: &str, identity: &str, base: Arc<dyn Base>) -> Result<Self, OpenError> {
        let blocks = base.size().div_ceil(BLOCK_BYTES);
        let map = Map::open(&folder.join(format!("{name}.map")), identity, blocks)?;
        let path = folder.join(format!("{name}.overlay"));
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| file.set_len(blocks * BLOCK_BYTES).map(|()| file))
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { base, data: Arc::new(data), map: Mutex::new(map), parts: tokio::sync::RwLock::new(()) })
    }

    /// Bytes that stand in the overlay.
    pub fn written_bytes(&self) -> u64 {
        self.map().count() * BLOCK_BYTES
    }

    fn map(&self) -> std::sync::MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pieces(&self, first: u32, blocks: u32) -> Vec<Piece> {
        let map = self.map();
        let mut pieces: Vec<Piece> = Vec::new();
        for block in first..first + blocks {
            let local = map.contains(block);
            match pieces.last_mut() {
                Some(piece) if piece.local == local => piece.blocks += 1,
                _ => pieces.push(Piece { first: block, blocks: 1, local }),
            }
        }
        pieces
    }

    async fn read_piece(&self, piece: Piece) -> io::Result<Bytes> {
        if !piece.local {
            return self.base.read_blocks(piece.first, piece.blocks).await;
        }
        // A local file, mostly in the page cache: reading it at once is cheaper than handing it to a thread.
        let mut bytes = BytesMut::zeroed(piece.blocks as usize * BLOCK);
        self.data.read_exact_at(&mut bytes, u64::from(piece.first) * BLOCK_BYTES)?;
        Ok(bytes.freeze())
    }

    async fn read_blocks(&self, first: u32, blocks: u32) -> io::Result<Bytes> {
        let pieces = self.pieces(first, blocks);
        if let [only] = pieces.as_slice() {
            return self.read_piece(*only).await;
        }
        let parts: Vec<Bytes> = futures::stream::iter(pieces)
            .map(|piece| self.read_piece(piece))
            .buffered(PIECES)
            .try_collect()
            .await?;
        Ok(parts.concat().into())
    }

    fn write_blocks(&self, first: u32, data: &[u8]) -> io::Result<()> {
        self.data.write_all_at(data, u64::from(first) * BLOCK_BYTES)?;
        self.map().insert(first, (data.len() / BLOCK) as u32);
        Ok(())
    }

    fn zero_blocks(&self, first: u32, blocks: u32) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let (offset, length) = (u64::from(first) * BLOCK_BYTES, u64::from(blocks) * BLOCK_BYTES);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&*self.data, punch, offset.cast_signed(), length.cast_signed()) {
            Ok(()) => {}
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                for block in first..first + blocks {
                    self.data.write_all_at(&[0; BLOCK], u64::from(block) * BLOCK_BYTES)?;
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        self.map().insert(first, blocks);
        Ok(())
    }

    /// Changes `length` bytes at `offset`, all within one block, by fetching the rest of the block.
    async fn write_part(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let _alone = self.parts.write().await;
        let block = block_of(offset);
        let mut whole = BytesMut::from(self.read_blocks(block, 1).await?);
        let within = (offset % BLOCK_BYTES) as usize;
        whole[within..within + data.len()].copy_from_slice(data);
        self.write_blocks(block, &whole)
    }
}

/// A byte range as an optional part of a block, whole blocks, and another part.
#[derive(Debug, PartialEq, Eq)]
struct Split {
    /// Bytes before the first whole block (within one block).
    head: u64,
    first: u32,
    blocks: u32,
    tail: u64,
}

impl Split {
    fn of(offset: u64, length: u64) -> Self {
        let end = offset + length;
        let first = offset.next_multiple_of(BLOCK_BYTES);
        if first >= end {
            // All within one block, not from its beginning.
            return Self { head: length, first: block_of(first), blocks: 0, tail: 0 };
        }
        let blocks = (end - first) / BLOCK_BYTES;
        Self {
            head: first - offset,
            first: block_of(first),
            blocks: blocks as u32,
            tail: (end - first) % BLOCK_BYTES,
        }
    }
}

fn block_of(offset: u64) -> u32 {
    (offset / BLOCK_BYTES) as u32
}

#[async_trait]
impl Device for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let (first, last) = (block_of(offset), block_of(offset + u64::from(length) - 1));
        let blocks = self.read_blocks(first, last - first + 1).await?;
        let within = (offset % BLOCK_BYTES) as usize;
        Ok(blocks.slice(within..within + length as usize))
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        let Split { head, first, blocks, tail } = Split::of(offset, data.len() as u64);
        let (start, end) = (head as usize, data.len() - tail as usize);
        if head > 0 {
            self.write_part(offset, &data[..start]).await?;
        }
        if blocks > 0 {
            let _shared = self.parts.read().await;
            self.write_blocks(first, &data[start..end])?;
        }
        if tail > 0 {
            self.write_part(offset + end as u64, &data[end..]).await?;
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let Split { head, first, blocks, tail } = Split::of(offset, length);
        if head > 0 {
            self.write_part(offset, &[0; BLOCK][..head as usize]).await?;
        }
        if blocks > 0 {
            let _shared = self.parts.read().await;
            self.zero_blocks(first, blocks)?;
        }
        if tail > 0 {
            self.write_part(offset + length - tail, &[0; BLOCK][..tail as usize]).await?;
        }
        Ok(())
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "an edge: syncing a file may take long and must not stop other requests"
    )]
    async fn flush(&self) -> io::Result<()> {
        // The map is taken before the data is synced: what it names then is in the data file already.
        let changed = Arc::new(self.map().take_changed());
        let (data, pages) = (Arc::clone(&self.data), Arc::clone(&changed));
        let written =
            tokio::task::spawn_blocking(move || data.sync_data().and_then(|()| pages.write())).await;
        let written = written.map_err(io::Error::other).flatten();
        if written.is_err() {
            self.map().put_back(&changed);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk whose every byte is told by its place.
    #[derive(Debug)]
    struct Pattern(u64);

    fn pattern(size: u64) -> Vec<u8> {
        (0..size).map(|at| (at % 251) as u8 | 1).collect()
    }

    #[async_trait]
    impl Base for Pattern {
        fn size(&self) -> u64 {
            self.0
        }

        async fn read_blocks(&self, first: u32, blocks: u32) -> io::Result<Bytes> {
            let mut all = pattern(self.0);
            all.resize(self.0.next_multiple_of(BLOCK_BYTES) as usize, 0);
            Ok(Bytes::from(all).slice(first as usize * BLOCK..(first + blocks) as usize * BLOCK))
        }
    }

    fn open(folder: &Path, identity: &str, size: u64) -> Result<Overlay, OpenError> {
        Overlay::open(folder, "1", identity, Arc::new(Pattern(size)))
    }

    const SIZE: u64 = 10 * BLOCK_BYTES + 512;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..SIZE, 0..=SIZE).prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
        prop_oneof![
            4 => (range(), any::<u8>()).prop_map(|((offset, length), byte)| Step::Write(offset, length, byte)),
            2 => range().prop_map(|(offset, length)| Step::Zero(offset, length)),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_plain_disk_also_after_flush_and_restart(steps in prop::collection::vec(step(), 1..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let folder = tempfile::tempdir().unwrap();
                let mut disk = pattern(SIZE);
                let mut overlay = open(folder.path(), "a", SIZE).unwrap();
                for step in steps {
                    match step {
                        Step::Write(offset, length, byte) => {
                            disk[offset as usize..(offset + length) as usize].fill(byte);
                            overlay.write(offset, vec![byte; length as usize].into()).await.unwrap();
                        }
                        Step::Zero(offset, length) => {
                            disk[offset as usize..(offset + length) as usize].fill(0);
                            overlay.zero(offset, length).await.unwrap();
                        }
                        Step::Reopen => {
                            overlay.flush().await.unwrap();
                            drop(overlay);
                            overlay = open(folder.path(), "a", SIZE).unwrap();
                        }
                    }
                    assert!(overlay.read(0, SIZE as u32).await.unwrap() == disk, "the disk differs");
                }
            });
        }
    }

    #[tokio::test]
    async fn an_overlay_of_another_point_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), "point 7", SIZE).unwrap());
        let refused = open(folder.path(), "point 8", SIZE).unwrap_err().to_string();
        assert!(refused.contains("point 7") && refused.contains("another --overlay-dir"), "{refused}");
    }

    #[tokio::test]
    async fn two_programs_cannot_share_an_overlay() {
        let folder = tempfile::tempdir().unwrap();
        let _first = open(folder.path(), "a", SIZE).unwrap();
        assert!(matches!(open(folder.path(), "a", SIZE), Err(OpenError::InUse { .. })));
    }

    #[tokio::test]
    async fn only_what_was_written_stands_in_the_overlay() {
        let folder = tempfile::tempdir().unwrap();
        let overlay = open(folder.path(), "a", SIZE).unwrap();
        overlay.write(100, Bytes::from_static(b"x")).await.unwrap();
        overlay.write(2 * BLOCK_BYTES, vec![1; BLOCK].into()).await.unwrap();
        assert_eq!(overlay.written_bytes(), 2 * BLOCK_BYTES);
    }
}
