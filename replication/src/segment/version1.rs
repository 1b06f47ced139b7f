//! Version 1 of segments, read and never written: the table stands before the data in one cipher text.
//!
//! ```text
//! offset  bytes  content
//!      0      8  "LBSEG" 0 0 1
//!      8      2  k, length of the key id
//!     10      k  id of the data key
//!   10+k      4  length of the plain text before compression
//!   14+k      …  AES-256-GCM( zstd( plain text ) ), its last 16 bytes the tag; the nonce is zero
//!
//! plain text:
//!      0      4  n, number of extents
//!      4   16·n  table
//!      …      …  data
//! ```

use bytes::Bytes;

use super::{ExtentData, MAX_PLAIN_BYTES, SegmentError, cipher, table, unpack};
use crate::keys::DataKeys;

pub(super) const MAGIC: &[u8; 8] = b"LBSEG\0\0\x01";
const NONCE: u8 = 0;

pub(super) fn is(sealed: &[u8]) -> bool {
    sealed.starts_with(MAGIC)
}

pub(super) fn open(keys: &DataKeys, name: &str, sealed: &[u8]) -> Result<Vec<ExtentData>, SegmentError> {
    let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
    let short = || damaged("it is too short");
    let rest = sealed.get(MAGIC.len()..).ok_or_else(short)?;
    let (key_id, rest) = cipher::split_key_id(rest).ok_or_else(short)?;
    let (plain_length, sealed_text) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let plain_length = u32::from_le_bytes(*plain_length) as usize;
    if plain_length > MAX_PLAIN_BYTES {
        return Err(damaged("it says to be larger than 32 MiB"));
    }
    let head = sealed.get(..sealed.len() - sealed_text.len()).ok_or_else(short)?;
    let packed = cipher::find(keys, name, key_id, head)?.open(NONCE, sealed_text);
    let packed = packed.ok_or_else(|| damaged("its authentication failed"))?;
    let plain = unpack(&packed, plain_length).map_err(damaged)?;
    parse(Bytes::from(plain)).ok_or_else(|| damaged("its extents do not fit its data"))
}

pub(super) fn parse(plain: Bytes) -> Option<Vec<ExtentData>> {
    let count = u32::from_le_bytes(*plain.first_chunk::<4>()?) as usize;
    let table_end = count.checked_mul(table::EXTENT_BYTES)?.checked_add(4)?;
    let extents = table::parse(plain.get(4..table_end)?)?;
    table::with_data(extents, plain.slice(table_end..))
}
