//! Collects blocks in any order and gives them back as few, large page writes. Pure.
//!
//! No block may be put in twice before [`Window::drain`]: what supersedes what is decided before.

use bytes::{Bytes, BytesMut};
use lifeboat_replication::{
    blocks::{BLOCK_BYTES, BlockRun},
    ids::DiskSlot,
    segment::ExtentData,
    store::MAX_WRITE_BYTES,
};

/// One call of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PageWrite {
    Write { disk: DiskSlot, offset: u64, content: Bytes },
    Clear { disk: DiskSlot, offset: u64, length: u64 },
}

#[derive(Debug, Default)]
pub(super) struct Window {
    extents: Vec<ExtentData>,
    bytes: usize,
}

impl Window {
    pub(super) fn push(&mut self, extent: ExtentData) {
        self.bytes += extent.data.as_ref().map_or(0, Bytes::len);
        self.extents.push(extent);
    }

    /// Bytes of data held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything held, in order of disk and block.
    pub(super) fn drain(&mut self) -> Vec<PageWrite> {
        self.bytes = 0;
        let mut extents = std::mem::take(&mut self.extents);
        extents.sort_by_key(|extent| extent.run);
        let mut writes = Vec::new();
        let mut run: Vec<ExtentData> = Vec::new();
        for extent in extents {
            if !run.last().is_some_and(|last| follows(last, &extent)) {
                flush(&mut run, &mut writes);
            }
            run.push(extent);
        }
        flush(&mut run, &mut writes);
        writes
    }
}

fn follows(last: &ExtentData, next: &ExtentData) -> bool {
    last.run.disk == next.run.disk
        && last.run.first.checked_add(last.run.blocks) == Some(next.run.first)
        && last.data.is_some() == next.data.is_some()
}

/// A run of neighbours of one kind becomes writes of at most [`MAX_WRITE_BYTES`], or one clear.
fn flush(run: &mut Vec<ExtentData>, writes: &mut Vec<PageWrite>) {
    let Some(first) = run.first() else { return };
    let BlockRun { disk, first, .. } = first.run;
    let offset = u64::from(first) * BLOCK_BYTES;
    let blocks: u64 = run.iter().map(|extent| u64::from(extent.run.blocks)).sum();
    let parts: Vec<Bytes> = run.drain(..).filter_map(|extent| extent.data).collect();
    match parts.as_slice() {
        [] => writes.push(PageWrite::Clear { disk, offset, length: blocks * BLOCK_BYTES }),
        [only] => split(disk, offset, only.clone(), writes),
        many => {
            let mut content = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|part| content.extend_from_slice(part));
            split(disk, offset, content.freeze(), writes);
        }
    }
}

fn split(disk: DiskSlot, mut offset: u64, mut content: Bytes, writes: &mut Vec<PageWrite>) {
    while !content.is_empty() {
        let part = content.split_to(content.len().min(MAX_WRITE_BYTES));
        let length = part.len() as u64;
        writes.push(PageWrite::Write { disk, offset, content: part });
        offset += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(disk: u32, first: u32, blocks: u32, byte: Option<u8>) -> ExtentData {
        let data = byte.map(|byte| Bytes::from(vec![byte; blocks as usize * BLOCK_BYTES as usize]));
        ExtentData { run: BlockRun { disk: DiskSlot(disk), first, blocks }, data }
    }

    #[test]
    fn neighbours_become_one_write_and_zeros_one_clear() {
        let mut window = Window::default();
        for extent in [
            extent(1, 5, 1, Some(2)),
            extent(1, 4, 1, Some(1)),
            extent(1, 7, 2, None),
            extent(1, 6, 1, None),
            extent(2, 9, 1, Some(3)),
        ] {
            window.push(extent);
        }
        let writes = window.drain();
        assert_eq!(writes.len(), 3, "{writes:?}");
        let PageWrite::Write { offset, content, .. } = &writes[0] else { panic!("{writes:?}") };
        assert_eq!((*offset, content[0], content[4096], content.len()), (4 * 4096, 1, 2, 8192));
        assert_eq!(writes[1], PageWrite::Clear { disk: DiskSlot(1), offset: 6 * 4096, length: 3 * 4096 });
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn no_write_is_larger_than_the_store_takes() {
        let mut window = Window::default();
        window.push(extent(1, 0, 1500, Some(1)));
        window.push(extent(1, 1500, 1500, Some(1)));
        let sizes: Vec<_> = window
            .drain()
            .iter()
            .map(|write| match write {
                PageWrite::Write { content, .. } => content.len(),
                PageWrite::Clear { .. } => 0,
            })
            .collect();
        assert!(sizes.iter().all(|size| *size <= MAX_WRITE_BYTES), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 3000 * 4096);
    }
}
