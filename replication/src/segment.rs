//! Segments: what a record's blocks look like in cache storage.
//!
//! ```text
//! offset  bytes  content
//!      0      8  "LBSEG" 0 0 2                         magic and version
//!      8      2  k, length of the key id               little endian, as all numbers here
//!     10      k  id of the data key
//!   10+k      4  c, length of the sealed table
//!   14+k      4  length of the table before compression: 16 bytes an extent
//!   18+k      4  length of the data before compression
//!   22+k      c  AES-256-GCM( zstd( table ) ), its last 16 bytes the tag; nonce 1
//! 22+k+c      …  AES-256-GCM( zstd( data ) ), its last 16 bytes the tag; nonce 2
//!
//! table:  extents of 16 bytes: disk slot, first block, blocks, flags (bit 0: all zero, without data)
//! data:   of the extents that are not zero, in their order, 4096 bytes a block
//! ```
//! The key is HKDF-SHA256(data key, "segment", name); the bytes before the table, followed by the name, are
//! authenticated with both parts. So a segment under another name, or with another header, does not open, and neither
//! part opens beside one of another segment.
//! Each nonce is used once: a key serves one name, and a name is written once (it carries the random id of its writer
//! and is put with If-None-Match).
//!
//! The table stands in front and is sealed apart, so that whoever only wants to know where blocks are fetches a few
//! kilobytes of a segment of megabytes. The log says how many ([`Sealed::front_bytes`]), and what the two tags are: so
//! it names one content, and nothing has to be hashed for that besides what the encryption does anyway.
//!
//! Version 1 had one part and is read still: `version1`.

mod cipher;
mod table;
mod version1;

use bytes::Bytes;

use self::cipher::{Cipher, TAG_BYTES};
use crate::{
    blocks::BlockRun,
    keys::{DataKeys, KeyId},
    wire::v1,
};

const MAGIC: &[u8; 8] = b"LBSEG\0\0\x02";
/// Of the table and of the data.
const NONCES: (u8, u8) = (1, 2);

/// Plain text of a segment, at most: bounds what a reader allocates for foreign bytes.
pub const MAX_PLAIN_BYTES: usize = 32 << 20;

/// A sealed segment, at most: what does not compress grows a little, and header and tags come to it.
pub const MAX_SEALED_BYTES: u64 = MAX_PLAIN_BYTES as u64 + (1 << 20);

/// Both tags of a segment, the table's first.
pub type Tags = [u8; 2 * TAG_BYTES];

/// Blocks of a disk and their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentData {
    pub run: BlockRun,
    /// `run.blocks` × 4096 bytes; `None`: all zero.
    pub data: Option<Bytes>,
}

/// Blocks of a disk, without their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub run: BlockRun,
    /// All zero, without data.
    pub zero: bool,
}

impl ExtentData {
    pub fn extent(&self) -> Extent {
        Extent { run: self.run, zero: self.data.is_none() }
    }
}

/// A segment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub content: Bytes,
    /// Header and table: what a reader of the table fetches.
    pub front_bytes: u64,
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
pub fn seal(keys: &DataKeys, name: &str, extents: &[ExtentData], level: i32) -> Result<Sealed, SegmentError> {
    let invalid = |what| SegmentError::Invalid { name: name.to_owned(), what };
    let table =
        table::encode(extents).ok_or_else(|| invalid("an extent's data is not as long as its blocks"))?;
    let data = table::joined(extents);
    if table.len() + data.len() > MAX_PLAIN_BYTES {
        return Err(invalid("it is larger than 32 MiB"));
    }
    let zstd_failed = |_| invalid("zstd failed");
    let packed = zstd::bulk::compress(&table, level).map_err(zstd_failed)?;
    let (key_id, key) = keys.current();
    let head = header(key_id, [packed.len() + TAG_BYTES, table.len(), data.len()])
        .ok_or_else(|| invalid("the key id is too long"))?;
    let encryption_failed = || invalid("encryption failed");
    let cipher = Cipher::new(key, name, &head).ok_or_else(encryption_failed)?;
    // The data is compressed and encrypted where it stays.
    let room = zstd::zstd_safe::compress_bound(data.len()) + TAG_BYTES;
    let mut sealed = Vec::with_capacity(head.len() + packed.len() + TAG_BYTES + room);
    sealed.extend_from_slice(&head);
    sealed.extend_from_slice(&packed);
    cipher.seal(NONCES.0, &mut sealed, head.len()).ok_or_else(encryption_failed)?;
    let front = sealed.len();
    let mut end = std::io::Cursor::new(&mut sealed);
    end.set_position(front as u64);
    let mut compressor = zstd::bulk::Compressor::new(level).map_err(zstd_failed)?;
    compressor.compress_to_buffer(&data, &mut end).map_err(zstd_failed)?;
    cipher.seal(NONCES.1, &mut sealed, front).ok_or_else(encryption_failed)?;
    Ok(Sealed { content: Bytes::from(sealed), front_bytes: front as u64 })
}

/// How long a segment of these extents would be under a key without a name: what there is to send, without a key.
pub fn sealed_length(extents: &[ExtentData], level: i32) -> Result<u64, SegmentError> {
    let invalid = |what| SegmentError::Invalid { name: "without a name".to_owned(), what };
    let table =
        table::encode(extents).ok_or_else(|| invalid("an extent's data is not as long as its blocks"))?;
    let mut length = MAGIC.len() + 2 + 3 * 4 + 2 * TAG_BYTES;
    for part in [Bytes::from(table), table::joined(extents)] {
        length += zstd::bulk::compress(&part, level).map_err(|_| invalid("zstd failed"))?.len();
    }
    Ok(length as u64)
}

impl Sealed {
    /// As a record of the log names it.
    pub fn named(&self, name: String) -> v1::SegmentRef {
        v1::SegmentRef {
            name,
            length: self.content.len() as u64,
            sha256: Vec::new(),
            front_bytes: self.front_bytes,
            tags: tags(&self.content, self.front_bytes).map(|tags| tags.to_vec()).unwrap_or_default(),
        }
    }
}

/// The tags of a segment of version 2 whose front is so long; `None`: it is too short to have any.
pub fn tags(sealed: &[u8], front_bytes: u64) -> Option<Tags> {
    let front = sealed.get(..usize::try_from(front_bytes).ok()?)?;
    let rest = sealed.get(front.len()..)?;
    let both = [*front.last_chunk::<TAG_BYTES>()?, *rest.last_chunk::<TAG_BYTES>()?];
    both.concat().try_into().ok()
}

/// Decrypts, verifies and decompresses a whole segment of any version.
pub fn open(keys: &DataKeys, name: &str, sealed: &[u8]) -> Result<Vec<ExtentData>, SegmentError> {
    if version1::is(sealed) {
        return version1::open(keys, name, sealed);
    }
    let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
    let front = Front::split(keys, name, sealed)?;
    let table = front.table(name)?;
    let data =
        front.cipher.open(NONCES.1, front.after).ok_or_else(|| damaged("its authentication failed"))?;
    let data = unpack(&data, front.data_bytes).map_err(damaged)?;
    table::with_data(table, Bytes::from(data)).ok_or_else(|| damaged("its extents do not fit its data"))
}

/// Decrypts and verifies the table alone, of the first [`Sealed::front_bytes`] bytes of a segment of version 2.
pub fn open_table(keys: &DataKeys, name: &str, front: &[u8]) -> Result<Vec<Extent>, SegmentError> {
    Front::split(keys, name, front)?.table(name)
}

/// What stands before the data, taken apart.
struct Front<'a> {
    cipher: Cipher,
    sealed_table: &'a [u8],
    table_bytes: usize,
    data_bytes: usize,
    /// The sealed data, as far as it is here.
    after: &'a [u8],
}

impl<'a> Front<'a> {
    fn split(keys: &DataKeys, name: &str, sealed: &'a [u8]) -> Result<Self, SegmentError> {
        let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
        let short = || damaged("it is too short");
        let rest = sealed
            .strip_prefix(MAGIC)
            .ok_or_else(|| damaged("it does not start with the mark of a segment"))?;
        let (key_id, rest) = cipher::split_key_id(rest).ok_or_else(short)?;
        let (numbers, rest) = rest.split_first_chunk::<12>().ok_or_else(short)?;
        let number = |index: usize| {
            let bytes = numbers.get(index * 4..).and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map(|bytes| u32::from_le_bytes(*bytes) as usize).ok_or_else(short)
        };
        let (sealed_table, table_bytes, data_bytes) = (number(0)?, number(1)?, number(2)?);
        if table_bytes.saturating_add(data_bytes) > MAX_PLAIN_BYTES {
            return Err(damaged("it says to be larger than 32 MiB"));
        }
        let head = sealed.get(..sealed.len() - rest.len()).ok_or_else(short)?;
        let (sealed_table, after) = rest.split_at_checked(sealed_table).ok_or_else(short)?;
        let cipher = cipher::find(keys, name, key_id, head)?;
        Ok(Self { cipher, sealed_table, table_bytes, data_bytes, after })
    }

    fn table(&self, name: &str) -> Result<Vec<Extent>, SegmentError> {
        let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
        let packed = self.cipher.open(NONCES.0, self.sealed_table);
        let packed = packed.ok_or_else(|| damaged("its authentication failed"))?;
        let table = unpack(&packed, self.table_bytes).map_err(damaged)?;
        table::parse(&table).ok_or_else(|| damaged("its table of extents is not one"))
    }
}

fn unpack(packed: &[u8], length: usize) -> Result<Vec<u8>, &'static str> {
    let plain = zstd::bulk::decompress(packed, length).map_err(|_| "zstd failed")?;
    if plain.len() == length { Ok(plain) } else { Err("its length is not what it says") }
}

fn header(key: &KeyId, lengths: [usize; 3]) -> Option<Vec<u8>> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&u16::try_from(key.0.len()).ok()?.to_le_bytes());
    header.extend_from_slice(key.0.as_bytes());
    for length in lengths {
        header.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{blocks::BLOCK_BYTES, env::Env, ids::DiskSlot};

    fn extent(disk: u32, first: u32, data: Option<&[u8]>, blocks: u32) -> ExtentData {
        let data = data.map(|byte| Bytes::from(byte.repeat(BLOCK_BYTES as usize * blocks as usize)));
        ExtentData { run: BlockRun { disk: DiskSlot(disk), first, blocks }, data }
    }

    fn keys() -> DataKeys {
        DataKeys::generate(&*Env::system().entropy)
    }

    fn some() -> Vec<ExtentData> {
        vec![extent(1, 7, Some(b"a"), 3), extent(2, 0, None, 900), extent(1, 8, Some(b"z"), 1)]
    }

    #[test]
    fn opens_to_what_was_sealed() {
        let keys = keys();
        for extents in [some(), vec![extent(2, 0, None, 900)], Vec::new()] {
            let sealed = seal(&keys, "journal/x", &extents, 1).unwrap();
            assert_eq!(open(&keys, "journal/x", &sealed.content).unwrap(), extents);
        }
    }

    #[test]
    fn the_front_alone_says_where_blocks_are() {
        let keys = keys();
        let sealed = seal(&keys, "journal/x", &some(), 1).unwrap();
        let front = &sealed.content[..sealed.front_bytes as usize];
        let table: Vec<Extent> = some().iter().map(ExtentData::extent).collect();
        assert_eq!(open_table(&keys, "journal/x", front).unwrap(), table);
        for (front, name) in [(&front[..front.len() - 1], "journal/x"), (front, "journal/y")] {
            open_table(&keys, name, front).unwrap_err();
        }
    }

    #[test]
    fn a_table_does_not_open_with_the_data_of_another_segment() {
        let keys = keys();
        let [one, two] = [b"a", b"b"].map(|byte| {
            let sealed = seal(&keys, "journal/x", &[extent(1, 7, Some(byte), 3)], 1).unwrap();
            let front = sealed.front_bytes as usize;
            (sealed.content.slice(..front), sealed.content.slice(front..), sealed)
        });
        let exchanged = [one.0.clone(), two.1].concat();
        let tags = |content: &[u8]| tags(content, one.2.front_bytes).unwrap();
        assert_ne!(tags(&exchanged), tags(&one.2.content), "under one name, the log would tell them apart");
        let other = seal(&keys, "journal/y", &[extent(1, 7, Some(b"c"), 3)], 1).unwrap();
        let other = other.content.slice(other.front_bytes as usize..);
        open(&keys, "journal/x", &[one.0, other].concat()).unwrap_err();
    }

    #[test]
    fn the_length_is_known_without_a_key() {
        let keys = keys();
        let sealed = seal(&keys, "journal/x", &some(), 1).unwrap().content.len() - keys.current().0.0.len();
        assert_eq!(sealed_length(&some(), 1).unwrap(), sealed as u64);
    }

    #[test]
    fn does_not_open_under_another_name() {
        let keys = keys();
        let sealed = seal(&keys, "journal/x", &[extent(1, 7, Some(b"a"), 3)], 1).unwrap();
        let error = open(&keys, "journal/y", &sealed.content).unwrap_err();
        assert!(error.to_string().contains("authentication failed"), "{error}");
    }

    #[test]
    fn names_the_key_that_is_missing() {
        let sealed = seal(&keys(), "journal/x", &[extent(1, 7, Some(b"a"), 3)], 1).unwrap();
        let error = open(&keys(), "journal/x", &sealed.content).unwrap_err();
        assert!(matches!(error, SegmentError::UnknownKey { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(bit in 0usize..4000) {
            let keys = keys();
            let extents = [extent(1, 7, Some(b"ab"), 0), extent(1, 9, Some(b"c"), 1)];
            let sealed = seal(&keys, "journal/x", &extents, 1).unwrap();
            let mut bytes = sealed.content.to_vec();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&keys, "journal/x", &bytes).is_err());
            let front = sealed.front_bytes as usize;
            prop_assert_eq!(open_table(&keys, "journal/x", &bytes[..front]).is_err(), bit / 8 < front);
        }

        #[test]
        fn foreign_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for magic in [b"", MAGIC.as_slice(), version1::MAGIC] {
                let framed = [magic, bytes.as_slice()].concat();
                prop_assert!(open(&keys(), "journal/x", &framed).is_err());
                prop_assert!(open_table(&keys(), "journal/x", &framed).is_err());
                let _ = tags(&framed, 40);
            }
            let _ = table::parse(&bytes);
            let _ = version1::parse(Bytes::from(bytes));
        }
    }
}
