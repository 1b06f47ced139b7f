//! Checksums of a seed disk in two levels: what they are, how they are keyed, and where they stand in `<disk>.sum`.
//!
//! ```text
//!   block (4 KiB) ──keyed hash──► sum ─┐
//!   …                                  ├─ 256 of them: a row ──keyed hash──► the row's sum (of 1 MiB)
//!   block ───────────────────────► sum ┘
//! ```
//! - **Hash**: BLAKE3 in keyed mode, cut to 128 bits, which its authors allow for any output length. Two different
//!   blocks meet by chance once in 2^128, also if somebody chooses them who does not know the key. It was preferred
//!   to SHA-256 since a comparison reads a whole disk: it is several times faster where the processor has no
//!   instructions for SHA, and its keyed mode needs no second pass.
//! - **What the store learns**: nothing. The key is derived from the data key, and each stored sum is masked with
//!   bytes that depend on its place, so that equal blocks do not show as equal.
//! - **Unknown**: sixteen zero bytes mean "not known". A reader takes it as different, so a sum may be lost, never
//!   invented. It follows that an empty file, one under another key, and one that has been overwritten with anything
//!   are all harmless: they make more blocks travel than needed.
//! - **A row that is all zeros** has a sum of its own that needs no hashing, so that empty disks cost nothing.

use crate::{
    blocks::BLOCK_BYTES,
    ids::ServerId,
    keys::{DataKey, DataKeys, KeyId, derive},
};

/// Bytes of a checksum.
pub const SUM_BYTES: usize = 16;
/// Blocks of a row: 1 MiB of the disk.
pub const ROW_BLOCKS: u32 = 256;
/// Bytes of a row's sums.
pub const ROW_BYTES: u64 = ROW_BLOCKS as u64 * SUM_BYTES as u64;
/// Rows that stand together, their own sums before those of their blocks: 16 GiB of the disk. So a disk may grow
/// without anything moving, and sums of rows are still read in large pieces.
pub const GROUP_ROWS: u32 = 16_384;

const HEADER_BYTES: u64 = 4096;
const GROUP_HEAD_BYTES: u64 = GROUP_ROWS as u64 * SUM_BYTES as u64;
const GROUP_BYTES: u64 = GROUP_HEAD_BYTES + GROUP_ROWS as u64 * ROW_BYTES;
/// Bytes of the header that carry something; a whole page.
pub const HEADER_PAGE: u64 = 512;
const MAGIC: [u8; 8] = *b"LBSUM\0\0\x01";
const KEY_ID_AT: usize = 26;

pub type Sum = [u8; SUM_BYTES];
/// The sums of a row's blocks.
pub type Row = [Sum; ROW_BLOCKS as usize];

/// Stands for a block or a row of which nothing is known.
pub const UNKNOWN: Sum = [0; SUM_BYTES];

const ZERO_BLOCK: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// Rows of a disk, the last one perhaps partial.
pub fn rows(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(u64::from(ROW_BLOCKS) * BLOCK_BYTES)).unwrap_or(u32::MAX)
}

/// Length of the blob for a disk of this size.
pub fn blob_bytes(size_bytes: u64) -> u64 {
    match rows(size_bytes).checked_sub(1) {
        Some(last) => row_at(last) + ROW_BYTES,
        None => HEADER_BYTES,
    }
}

/// Where the sums of the row's blocks stand.
pub fn row_at(row: u32) -> u64 {
    group_at(row) + GROUP_HEAD_BYTES + u64::from(row % GROUP_ROWS) * ROW_BYTES
}

/// Where the row's own sum stands.
pub fn row_sum_at(row: u32) -> u64 {
    group_at(row) + u64::from(row % GROUP_ROWS) * SUM_BYTES as u64
}

fn group_at(row: u32) -> u64 {
    HEADER_BYTES + u64::from(row / GROUP_ROWS) * GROUP_BYTES
}

/// First bytes of the blob: which data key the sums are keyed with, and which file this is.
///
/// ```text
///  0  8  `LBSUM`, 0, 0, 1
///  8 16  random, made with the file: part of the key's context
/// 24  2  k, length of the key id
/// 26  k  id of the data key
///        zeros up to 512
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub made: [u8; 16],
    pub key_id: KeyId,
}

impl Header {
    pub fn to_page(&self) -> [u8; HEADER_PAGE as usize] {
        let mut page = [0; HEADER_PAGE as usize];
        let id = self.key_id.0.as_bytes();
        let id = id.get(..HEADER_PAGE as usize - KEY_ID_AT).unwrap_or(id);
        page[..8].copy_from_slice(&MAGIC);
        page[8..24].copy_from_slice(&self.made);
        page[24..26].copy_from_slice(&u16::try_from(id.len()).unwrap_or(0).to_le_bytes());
        if let Some(place) = page.get_mut(KEY_ID_AT..KEY_ID_AT + id.len()) {
            place.copy_from_slice(id);
        }
        page
    }

    /// `None`: there is none (yet), or it is not one of this version.
    pub fn from_page(page: &[u8]) -> Option<Self> {
        if page.get(..8)? != MAGIC {
            return None;
        }
        let made = page.get(8..24)?.try_into().ok()?;
        let length = usize::from(u16::from_le_bytes(page.get(24..26)?.try_into().ok()?));
        let id = std::str::from_utf8(page.get(KEY_ID_AT..KEY_ID_AT + length)?).ok()?;
        Some(Self { made, key_id: KeyId(id.to_owned()) })
    }

    /// The secret that makes and reads the sums of this file; `None`: its data key is not among those given.
    pub fn secret(&self, keys: &DataKeys, server: &ServerId, disk_id: &str) -> Option<[u8; 32]> {
        keys.get(&self.key_id).map(|key| secret(key, server, disk_id, &self.made))
    }
}

fn secret(key: &DataKey, server: &ServerId, disk_id: &str, made: &[u8; 16]) -> [u8; 32] {
    derive(key, "block sums", format!("{server}/{disk_id}/{}", hex::encode(made)).as_bytes())
}

/// Makes sums, and masks them for the store.
#[derive(Clone)]
pub struct SumKeys {
    block: [u8; 32],
    row: [u8; 32],
    mask_block: [u8; 32],
    mask_row: [u8; 32],
    zero_block: Sum,
    zero_row: Sum,
}

impl std::fmt::Debug for SumKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SumKeys(secret)")
    }
}

fn cut(hash: &blake3::Hash) -> Sum {
    let mut sum = UNKNOWN;
    sum.copy_from_slice(hash.as_bytes().split_at(SUM_BYTES).0);
    sum
}

impl SumKeys {
    pub fn new(secret: &[u8; 32]) -> Self {
        let sub = |purpose: &[u8]| *blake3::keyed_hash(secret, purpose).as_bytes();
        let (block, row) = (sub(b"block"), sub(b"row"));
        let zero_block = cut(&blake3::keyed_hash(&block, &ZERO_BLOCK));
        let mut keys = Self {
            block,
            row,
            mask_block: sub(b"mask block"),
            mask_row: sub(b"mask row"),
            zero_block,
            zero_row: UNKNOWN,
        };
        keys.zero_row = keys.hash_row(&[zero_block; ROW_BLOCKS as usize]);
        keys
    }

    /// Of a block's 4096 bytes.
    pub fn block(&self, content: &[u8]) -> Sum {
        if *content == ZERO_BLOCK { self.zero_block } else { cut(&blake3::keyed_hash(&self.block, content)) }
    }

    pub fn zero_block(&self) -> Sum {
        self.zero_block
    }

    /// Of the sums of a row's blocks; blocks behind the end of the disk count as unknown.
    pub fn row(&self, row: &Row) -> Sum {
        if row.iter().all(|sum| *sum == self.zero_block) { self.zero_row } else { self.hash_row(row) }
    }

    fn hash_row(&self, row: &Row) -> Sum {
        cut(&blake3::keyed_hash(&self.row, row.as_flattened()))
    }

    /// From a row's sums to what is stored, and back.
    pub fn mask_blocks(&self, row: u32, sums: &mut Row) {
        let mut mask = [0; ROW_BYTES as usize];
        let mut hasher = blake3::Hasher::new_keyed(&self.mask_block);
        hasher.update(&row.to_le_bytes()).finalize_xof().fill(&mut mask);
        for (sum, mask) in sums.iter_mut().zip(mask.chunks_exact(SUM_BYTES)) {
            xor(sum, mask);
        }
    }

    /// From a row's own sum to what is stored, and back.
    pub fn mask_row(&self, row: u32, sum: Sum) -> Sum {
        let mut masked = sum;
        xor(&mut masked, blake3::keyed_hash(&self.mask_row, &row.to_le_bytes()).as_bytes());
        masked
    }
}

/// What is unknown stays so.
fn xor(sum: &mut Sum, mask: &[u8]) {
    if *sum != UNKNOWN {
        sum.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// A row's sums out of their bytes; what is missing is unknown.
pub fn row_from(bytes: &[u8]) -> Row {
    let mut row = [UNKNOWN; ROW_BLOCKS as usize];
    for (sum, bytes) in row.iter_mut().zip(bytes.chunks_exact(SUM_BYTES)) {
        sum.copy_from_slice(bytes);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> SumKeys {
        SumKeys::new(&[7; 32])
    }

    #[test]
    fn rows_and_their_sums_never_overlap_and_stay_where_they_are_when_a_disk_grows() {
        let mut places = Vec::new();
        for row in [0, 1, GROUP_ROWS - 1, GROUP_ROWS, GROUP_ROWS + 1, 8 << 20] {
            places.push((row_at(row), ROW_BYTES));
            places.push((row_sum_at(row), SUM_BYTES as u64));
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{places:?}");
        assert!(places[0].0 >= HEADER_PAGE);
        assert_eq!(blob_bytes(1), row_at(0) + ROW_BYTES);
        assert_eq!(blob_bytes(8 << 40) % 512, 0);
        assert_eq!(blob_bytes((16 << 30) + 1), row_at(GROUP_ROWS) + ROW_BYTES);
    }

    #[test]
    fn a_masked_row_reads_as_it_was_and_unknown_stays_unknown() {
        let keys = keys();
        let mut row = [keys.block(&[3; 4096]); ROW_BLOCKS as usize];
        row[5] = UNKNOWN;
        let (before, mut stored) = (row, row);
        keys.mask_blocks(9, &mut stored);
        assert_eq!(stored[5], UNKNOWN);
        assert!(stored[0] != stored[1], "equal blocks show as equal");
        keys.mask_blocks(9, &mut stored);
        assert_eq!(stored, before);
        let sum = keys.row(&row);
        assert_eq!(keys.mask_row(9, keys.mask_row(9, sum)), sum);
        assert_ne!(keys.mask_row(9, sum), keys.mask_row(10, sum));
    }

    #[test]
    fn zeros_have_the_sum_that_hashing_them_gives() {
        let keys = keys();
        assert_eq!(keys.zero_block(), cut(&blake3::keyed_hash(&keys.block, &ZERO_BLOCK)));
        let zeros = [keys.zero_block(); ROW_BLOCKS as usize];
        assert_eq!(keys.row(&zeros), keys.hash_row(&zeros));
    }

    #[test]
    fn a_header_reads_as_it_was_written_and_anything_else_is_none() {
        let header = Header { made: [4; 16], key_id: KeyId("0011aabb".into()) };
        assert_eq!(Header::from_page(&header.to_page()), Some(header));
        assert_eq!(Header::from_page(&[0; 512]), None);
        assert_eq!(Header::from_page(&[]), None);
        let mut page = Header { made: [4; 16], key_id: KeyId("k".into()) }.to_page();
        page[24] = 0xff;
        page[25] = 0xff;
        assert_eq!(Header::from_page(&page), None);
    }

    #[test]
    fn another_file_of_the_same_disk_has_other_sums() {
        let (one, two) = (SumKeys::new(&[1; 32]), SumKeys::new(&[2; 32]));
        assert_ne!(one.block(&[1; 4096]), two.block(&[1; 4096]));
    }
}
