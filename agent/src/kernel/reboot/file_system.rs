//! File systems of which a few blocks vouch for all: whoever mounts them for writing changes these first. Pure but for reads.
//!
//! ext2, ext3 and ext4 write their superblock (mount count, times, state) with the first mount for writing, before any
//! other block changes; XFS its log (`xfs`). What makes and repairs file systems writes there, too.

use std::io;

use super::{
    areas::{Kind, ReadAt},
    xfs,
};

/// What must be read of an area to see what it is.
pub(super) const HEAD: usize = 4096;
/// Superblock of ext: at byte 1024.
const EXT_SUPERBLOCK: usize = 1024;
const EXT_MAGIC: [u8; 2] = [0x53, 0xef];
const EXT_CLEAN: u8 = 1;
/// Incompatible features: the journal is to be replayed; block counts of 64 bits.
const EXT_NEEDS_RECOVERY: u8 = 4;
const EXT_64_BIT: u8 = 0x80;

/// A file system that nobody has mounted for writing, and that was unmounted cleanly.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clean {
    pub(super) kind: Kind,
    /// How long it is: it need not fill its area.
    pub(super) bytes: u64,
    /// What vouches for it, as first byte and length within the area.
    pub(super) ranges: Vec<(u64, u64)>,
}

/// The one that begins here, if there is one.
pub(super) fn clean(area: &dyn ReadAt) -> io::Result<Option<Clean>> {
    let head = area.read_at(0, HEAD as u64)?;
    if let Some(bytes) = clean_ext(&head) {
        return Ok(Some(Clean { kind: Kind::Ext, bytes, ranges: vec![(0, HEAD as u64)] }));
    }
    let found = xfs::clean(&head, area)?;
    Ok(found.map(|xfs::Clean { bytes, ranges }| Clean { kind: Kind::Xfs, bytes, ranges }))
}

/// How many bytes belong to the ext file system that begins here; `None`: there is none, or it was not unmounted
/// cleanly, or is mounted for writing.
fn clean_ext(head: &[u8]) -> Option<u64> {
    let superblock = head.get(EXT_SUPERBLOCK..)?;
    let byte = |offset: usize| superblock.get(offset).copied();
    let word = |offset: usize| Some(u32::from_le_bytes(*superblock.get(offset..)?.first_chunk()?));
    if superblock.get(56..58)? != EXT_MAGIC
        || byte(58)? & EXT_CLEAN == 0
        || byte(96)? & EXT_NEEDS_RECOVERY != 0
    {
        return None;
    }
    let high = if byte(96)? & EXT_64_BIT != 0 { word(336)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(word(4)?);
    let block_bytes = 1024_u64.checked_shl(word(24)?).filter(|bytes| *bytes <= 65_536)?;
    blocks.checked_mul(block_bytes).filter(|bytes| *bytes > 0)
}

/// The first bytes of a clean ext file system.
#[cfg(test)]
pub(super) fn ext_of(bytes: u64) -> Vec<u8> {
    let mut head = vec![0; HEAD];
    let superblock = &mut head[EXT_SUPERBLOCK..];
    superblock[4..8].copy_from_slice(&u32::try_from(bytes / 4096).unwrap().to_le_bytes());
    superblock[24] = 2;
    superblock[56..58].copy_from_slice(&EXT_MAGIC);
    superblock[58] = EXT_CLEAN;
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_ext_says_how_long_it_is_and_another_says_nothing() {
        let clean = ext_of(32 << 20);
        assert_eq!(clean_ext(&clean), Some(32 << 20));
        let with = |offset: usize, value: u8| {
            let mut changed = clean.clone();
            changed[EXT_SUPERBLOCK + offset] = value;
            clean_ext(&changed)
        };
        assert_eq!(with(96, EXT_NEEDS_RECOVERY), None);
        assert_eq!(with(58, 0), None);
        assert_eq!(with(56, 0), None);
        assert_eq!(with(24, 200), None);
        // The high half counts with 64 bits alone.
        assert_eq!(with(336, 1), Some(32 << 20));
        let mut large = clean.clone();
        large[EXT_SUPERBLOCK + 96] = EXT_64_BIT;
        large[EXT_SUPERBLOCK + 336] = 1;
        assert_eq!(clean_ext(&large), Some((32 << 20) + (4096 << 32)));
        assert_eq!(clean_ext(&clean[..1060]), None);
    }
}
