//! Content of a page blob: sparse, and cheap to clone, since snapshots clone it.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;

use crate::store::PAGE_BYTES;

/// Kept together: what the data plane writes is a multiple of it, so pages seldom have to be split.
const CHUNK_BYTES: u64 = 8 * PAGE_BYTES;

#[derive(Debug, Clone)]
pub(super) struct Pages {
    pub(super) length: u64,
    /// By offset. Absent ones are zeros.
    chunks: BTreeMap<u64, Chunk>,
}

#[derive(Debug, Clone)]
struct Chunk {
    /// One bit a page: written and not cleared since.
    written: u8,
    /// `CHUNK_BYTES` of them; zero where nothing is written.
    bytes: Bytes,
}

impl Pages {
    pub(super) fn zeros(length: u64) -> Self {
        Self { length, chunks: BTreeMap::new() }
    }

    /// What is cut off is gone.
    pub(super) fn resize(&mut self, length: u64) {
        if length < self.length {
            self.clear(length..self.length);
        }
        self.length = length;
    }

    /// The caller has checked alignment and end.
    pub(super) fn write(&mut self, offset: u64, content: &Bytes) {
        for piece in pieces(offset..offset + content.len() as u64) {
            let start = (piece.start - offset) as usize;
            let content = content.slice(start..start + (piece.end - piece.start) as usize);
            self.replace(piece, Some(content));
        }
    }

    pub(super) fn clear(&mut self, range: Range<u64>) {
        for piece in pieces(range) {
            self.replace(piece, None);
        }
    }

    pub(super) fn read(&self, range: Range<u64>) -> Bytes {
        let mut content = vec![0; (range.end - range.start) as usize];
        for piece in pieces(range.clone()) {
            if let Some(chunk) = self.chunks.get(&chunk_of(piece.start)) {
                let from = (piece.start % CHUNK_BYTES) as usize;
                let to = (piece.start - range.start) as usize;
                let length = (piece.end - piece.start) as usize;
                content[to..to + length].copy_from_slice(&chunk.bytes[from..from + length]);
            }
        }
        content.into()
    }

    pub(super) fn written(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (start, chunk) in &self.chunks {
            for page in (0..CHUNK_BYTES / PAGE_BYTES).filter(|page| chunk.written & (1 << page) != 0) {
                let page = start + page * PAGE_BYTES;
                match ranges.last_mut() {
                    Some(last) if last.end == page => last.end += PAGE_BYTES,
                    _ => ranges.push(page..page + PAGE_BYTES),
                }
            }
        }
        ranges
    }

    /// `piece` lies within one chunk.
    fn replace(&mut self, piece: Range<u64>, content: Option<Bytes>) {
        let start = chunk_of(piece.start);
        if piece.end - piece.start == CHUNK_BYTES {
            match content {
                Some(bytes) => self.chunks.insert(start, Chunk { written: u8::MAX, bytes }),
                None => self.chunks.remove(&start),
            };
            return;
        }
        let old = self.chunks.get(&start);
        let mut written = old.map_or(0, |chunk| chunk.written);
        let mut bytes = old.map_or_else(|| vec![0; CHUNK_BYTES as usize], |chunk| chunk.bytes.to_vec());
        let within = (piece.start - start) as usize..(piece.end - start) as usize;
        for page in (piece.start - start) / PAGE_BYTES..(piece.end - start) / PAGE_BYTES {
            if content.is_some() {
                written |= 1 << page;
            } else {
                written &= !(1 << page);
            }
        }
        match content {
            Some(content) => bytes[within].copy_from_slice(&content),
            None => bytes[within].fill(0),
        }
        if written == 0 {
            self.chunks.remove(&start);
        } else {
            self.chunks.insert(start, Chunk { written, bytes: bytes.into() });
        }
    }
}

fn chunk_of(offset: u64) -> u64 {
    offset - offset % CHUNK_BYTES
}

/// `range` cut where chunks end.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let piece = start..range.end.min(chunk_of(start) + CHUNK_BYTES);
        start = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}
