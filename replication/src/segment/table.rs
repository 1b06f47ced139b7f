//! The table of extents: 16 bytes each, four little-endian numbers: disk slot, first block, blocks, flags.

use bytes::Bytes;

use super::{Extent, ExtentData};
use crate::{
    blocks::{BLOCK_BYTES, BlockRun},
    ids::DiskSlot,
};

pub(super) const EXTENT_BYTES: usize = 16;
const FLAG_ZERO: u32 = 1;
const BLOCK: usize = BLOCK_BYTES as usize;

/// `None`: the data of an extent is not as long as its blocks.
pub(super) fn encode(extents: &[ExtentData]) -> Option<Vec<u8>> {
    let mut table = Vec::with_capacity(EXTENT_BYTES * extents.len());
    for extent in extents {
        if extent.data.as_ref().is_some_and(|data| data.len() != extent.run.blocks as usize * BLOCK) {
            return None;
        }
        let flags = if extent.data.is_none() { FLAG_ZERO } else { 0 };
        for number in [extent.run.disk.0, extent.run.first, extent.run.blocks, flags] {
            table.extend_from_slice(&number.to_le_bytes());
        }
    }
    Some(table)
}

/// The data of all extents, one after the other; not copied when there is only one piece.
pub(super) fn joined(extents: &[ExtentData]) -> Bytes {
    let mut pieces = extents.iter().filter_map(|extent| extent.data.as_ref());
    match (pieces.next(), pieces.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        (Some(one), Some(two)) => {
            let rest: usize = pieces.clone().map(Bytes::len).sum();
            let mut data = Vec::with_capacity(one.len() + two.len() + rest);
            [one, two].into_iter().chain(pieces).for_each(|piece| data.extend_from_slice(piece));
            Bytes::from(data)
        }
    }
}

/// `None`: it is no table.
pub(super) fn parse(table: &[u8]) -> Option<Vec<Extent>> {
    let entries = table.chunks_exact(EXTENT_BYTES);
    if !entries.remainder().is_empty() {
        return None;
    }
    entries.map(entry).collect()
}

fn entry(bytes: &[u8]) -> Option<Extent> {
    let number = |index: usize| -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(index * 4..)?.first_chunk::<4>()?))
    };
    let run = BlockRun { disk: DiskSlot(number(0)?), first: number(1)?, blocks: number(2)? };
    run.first.checked_add(run.blocks)?;
    Some(Extent { run, zero: number(3)? & FLAG_ZERO != 0 })
}

/// Gives each extent its part of `data`. `None`: it does not fit.
pub(super) fn with_data(table: Vec<Extent>, data: Bytes) -> Option<Vec<ExtentData>> {
    let mut at = 0_usize;
    let mut extents = Vec::with_capacity(table.len());
    for Extent { run, zero } in table {
        let content = if zero {
            None
        } else {
            let end = at.checked_add((run.blocks as usize).checked_mul(BLOCK)?)?;
            if end > data.len() {
                return None;
            }
            let content = data.slice(at..end);
            at = end;
            Some(content)
        };
        extents.push(ExtentData { run, data: content });
    }
    (at == data.len()).then_some(extents)
}
