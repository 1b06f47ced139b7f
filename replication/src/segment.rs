//! Segments: what a record's blocks look like in cache storage.
//!
//! ```text
//! offset  bytes  content
//!      0      8  "LBSEG" 0 0 1                         magic and version
//!      8      2  k, length of the key id               little endian, as all numbers here
//!     10      k  id of the data key
//!   10+k      4  length of the plain text before compression
//!   14+k      …  AES-256-GCM( zstd( plain text ) ), its last 16 bytes the tag
//!
//! plain text:
//!      0      4  n, number of extents
//!      4   16·n  extents: disk slot, first block, blocks, flags (bit 0: all zero, without data)
//!      …      …  data of the extents that are not zero, in their order, 4096 bytes a block
//! ```
//! The key is HKDF-SHA256(data key, "segment", name); what stands before the cipher text, followed by the name, is
//! authenticated with it. So a segment under another name, or with another header, does not open.
//! The nonce is zero: a key serves one name, and a name is written once (it carries the random id of its writer and
//! is put with If-None-Match), so a key never meets a nonce twice.
//!
//! The extents come first so that a reader can index a segment before it looks at the data.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::{
    blocks::{BLOCK_BYTES, BlockRun},
    ids::DiskSlot,
    keys::{DataKeys, KeyId, derive},
};

const MAGIC: &[u8; 8] = b"LBSEG\0\0\x01";
const EXTENT_BYTES: usize = 16;
const FLAG_ZERO: u32 = 1;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Plain text of a segment, at most: bounds what a reader allocates for foreign bytes.
pub const MAX_PLAIN_BYTES: usize = 32 << 20;

/// A sealed segment, at most: what does not compress grows a little, and header and tag come to it.
pub const MAX_SEALED_BYTES: u64 = MAX_PLAIN_BYTES as u64 + (1 << 20);

/// Blocks of a disk and their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentData {
    pub run: BlockRun,
    /// `run.blocks` × 4096 bytes; `None`: all zero.
    pub data: Option<Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("segment {name} is damaged: {what}; the vault's copy is not what was written")]
    Damaged { name: String, what: &'static str },
    #[error(
        "segment {name} is encrypted with data key {key}, which is not among the keys given: restore that key's entry"
    )]
    UnknownKey { name: String, key: KeyId },
    #[error("segment {name} cannot be made: {what}")]
    Invalid { name: String, what: &'static str },
}

/// Compresses and encrypts. `level` is zstd's (1 to 19).
pub fn seal(keys: &DataKeys, name: &str, extents: &[ExtentData], level: i32) -> Result<Bytes, SegmentError> {
    let invalid = |what| SegmentError::Invalid { name: name.to_owned(), what };
    let (plain_bytes, compressed) = compress(extents, level).map_err(invalid)?;
    let (key_id, key) = keys.current();
    let mut sealed = header(key_id, plain_bytes).ok_or_else(|| invalid("the key id is too long"))?;
    let aad = associated(&sealed, name);
    let mut cipher = compressed;
    segment_key(key, name)
        .and_then(|key| key.seal_in_place_append_tag(nonce(), Aad::from(aad), &mut cipher).ok())
        .ok_or_else(|| invalid("encryption failed"))?;
    sealed.extend_from_slice(&cipher);
    Ok(Bytes::from(sealed))
}

/// How long a segment of these extents would be under a key without a name: what there is to send, without a key.
pub fn sealed_length(extents: &[ExtentData], level: i32) -> Result<u64, SegmentError> {
    let (_, compressed) = compress(extents, level)
        .map_err(|what| SegmentError::Invalid { name: "without a name".to_owned(), what })?;
    Ok((MAGIC.len() + 2 + 4 + compressed.len() + AES_256_GCM.tag_len()) as u64)
}

/// The length of the plain text, and the plain text compressed.
fn compress(extents: &[ExtentData], level: i32) -> Result<(usize, Vec<u8>), &'static str> {
    let plain = plain_text(extents).ok_or("an extent's data is not as long as its blocks")?;
    if plain.len() > MAX_PLAIN_BYTES {
        return Err("it is larger than 32 MiB");
    }
    let compressed = zstd::bulk::compress(&plain, level).map_err(|_| "zstd failed")?;
    Ok((plain.len(), compressed))
}

/// Decrypts, verifies and decompresses.
pub fn open(keys: &DataKeys, name: &str, sealed: &[u8]) -> Result<Vec<ExtentData>, SegmentError> {
    let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
    let short = || damaged("it is too short");
    let rest =
        sealed.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not start with the mark of a segment"))?;
    let (key_length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (key_id, rest) =
        rest.split_at_checked(usize::from(u16::from_le_bytes(*key_length))).ok_or_else(short)?;
    let (plain_length, cipher) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let plain_length = u32::from_le_bytes(*plain_length) as usize;
    if plain_length > MAX_PLAIN_BYTES {
        return Err(damaged("it says to be larger than 32 MiB"));
    }
    let key_id = std::str::from_utf8(key_id).map_err(|_| damaged("its key id is not readable"))?;
    let key_id = KeyId(key_id.to_owned());
    let key =
        keys.get(&key_id).ok_or_else(|| SegmentError::UnknownKey { name: name.to_owned(), key: key_id })?;
    let head = sealed.get(..sealed.len() - cipher.len()).ok_or_else(short)?;
    let mut buffer = cipher.to_vec();
    let compressed = segment_key(key, name)
        .and_then(|key| key.open_in_place(nonce(), Aad::from(associated(head, name)), &mut buffer).ok())
        .ok_or_else(|| damaged("its authentication failed"))?;
    let plain = zstd::bulk::decompress(compressed, plain_length).map_err(|_| damaged("zstd failed"))?;
    if plain.len() != plain_length {
        return Err(damaged("its length is not what it says"));
    }
    parse(Bytes::from(plain)).ok_or_else(|| damaged("its extents do not fit its data"))
}

fn plain_text(extents: &[ExtentData]) -> Option<Vec<u8>> {
    let data: usize = extents.iter().map(|extent| extent.data.as_ref().map_or(0, Bytes::len)).sum();
    let mut plain = Vec::with_capacity(4 + EXTENT_BYTES * extents.len() + data);
    plain.extend_from_slice(&u32::try_from(extents.len()).ok()?.to_le_bytes());
    for extent in extents {
        if extent.data.as_ref().is_some_and(|data| data.len() != extent.run.blocks as usize * BLOCK) {
            return None;
        }
        let flags = if extent.data.is_none() { FLAG_ZERO } else { 0 };
        for number in [extent.run.disk.0, extent.run.first, extent.run.blocks, flags] {
            plain.extend_from_slice(&number.to_le_bytes());
        }
    }
    for data in extents.iter().filter_map(|extent| extent.data.as_ref()) {
        plain.extend_from_slice(data);
    }
    Some(plain)
}

fn parse(plain: Bytes) -> Option<Vec<ExtentData>> {
    let count = u32::from_le_bytes(*plain.first_chunk::<4>()?) as usize;
    let table_end = count.checked_mul(EXTENT_BYTES)?.checked_add(4)?;
    let table = plain.get(4..table_end)?;
    let mut at = table_end;
    let mut extents = Vec::with_capacity(count);
    for entry in table.chunks_exact(EXTENT_BYTES) {
        let number = |index: usize| -> Option<u32> {
            Some(u32::from_le_bytes(*entry.get(index * 4..)?.first_chunk::<4>()?))
        };
        let run = BlockRun { disk: DiskSlot(number(0)?), first: number(1)?, blocks: number(2)? };
        run.first.checked_add(run.blocks)?;
        let data = if number(3)? & FLAG_ZERO == 0 {
            let end = at.checked_add((run.blocks as usize).checked_mul(BLOCK)?)?;
            if end > plain.len() {
                return None;
            }
            let data = plain.slice(at..end);
            at = end;
            Some(data)
        } else {
            None
        };
        extents.push(ExtentData { run, data });
    }
    (at == plain.len()).then_some(extents)
}

fn header(key: &KeyId, plain_length: usize) -> Option<Vec<u8>> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&u16::try_from(key.0.len()).ok()?.to_le_bytes());
    header.extend_from_slice(key.0.as_bytes());
    header.extend_from_slice(&u32::try_from(plain_length).ok()?.to_le_bytes());
    Some(header)
}

fn associated(header: &[u8], name: &str) -> Vec<u8> {
    [header, name.as_bytes()].concat()
}

fn segment_key(key: &crate::keys::DataKey, name: &str) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &derive(key, "segment", name.as_bytes())).ok().map(LessSafeKey::new)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::Env;

    fn extent(disk: u32, first: u32, data: Option<&[u8]>, blocks: u32) -> ExtentData {
        let data = data.map(|byte| Bytes::from(byte.repeat(BLOCK * blocks as usize)));
        ExtentData { run: BlockRun { disk: DiskSlot(disk), first, blocks }, data }
    }

    fn keys() -> DataKeys {
        DataKeys::generate(&*Env::system().entropy)
    }

    #[test]
    fn opens_to_what_was_sealed() {
        let keys = keys();
        let extents = [extent(1, 7, Some(b"a"), 3), extent(2, 0, None, 900), extent(1, 8, Some(b"z"), 1)];
        let sealed = seal(&keys, "journal/x", &extents, 1).unwrap();
        assert_eq!(open(&keys, "journal/x", &sealed).unwrap(), extents);
    }

    #[test]
    fn the_length_is_known_without_a_key() {
        let keys = keys();
        let extents = [extent(1, 7, Some(b"a"), 3), extent(2, 0, None, 900)];
        let sealed = seal(&keys, "journal/x", &extents, 1).unwrap().len() - keys.current().0.0.len();
        assert_eq!(sealed_length(&extents, 1).unwrap(), sealed as u64);
    }

    #[test]
    fn does_not_open_under_another_name() {
        let keys = keys();
        let sealed = seal(&keys, "journal/x", &[extent(1, 7, Some(b"a"), 3)], 1).unwrap();
        let error = open(&keys, "journal/y", &sealed).unwrap_err();
        assert!(error.to_string().contains("authentication failed"), "{error}");
    }

    #[test]
    fn names_the_key_that_is_missing() {
        let sealed = seal(&keys(), "journal/x", &[extent(1, 7, Some(b"a"), 3)], 1).unwrap();
        let error = open(&keys(), "journal/x", &sealed).unwrap_err();
        assert!(
            matches!(error, SegmentError::UnknownKey { .. } | SegmentError::Damaged { .. }),
            "another key set must never open it: {error}"
        );
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(bit in 0usize..2000) {
            let keys = keys();
            let sealed = seal(&keys, "journal/x", &[extent(1, 7, Some(b"ab"), 0), extent(1, 9, Some(b"c"), 1)], 1);
            let mut bytes = sealed.unwrap().to_vec();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&keys, "journal/x", &bytes).is_err());
        }

        #[test]
        fn foreign_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&keys(), "journal/x", &bytes).is_err());
            let mut framed = MAGIC.to_vec();
            framed.extend_from_slice(&bytes);
            prop_assert!(open(&keys(), "journal/x", &framed).is_err());
            let _ = parse(Bytes::from(bytes));
        }
    }
}
