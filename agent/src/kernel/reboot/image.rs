//! The file that holds what is saved, block by block. Pure.
//!
//! ```text
//!   every block of 4096 bytes:  magic (8) │ label (16, random, one for each file) │ its number (u32) │ 0 (u32) │ content (4064)
//!   content of block 0:         version u32 │ state u32 (0 empty, 1 saved, 2 refused) │ length u64 │ SHA-256 of the payload (32)
//!                               │ length of the reason u32 │ reason (≤ 256, UTF-8) │ CRC-32C of the 344 bytes before
//!   content of blocks 1…:       payload (`saved`), the rest zeros
//! ```
//! Numbers are little-endian. At shutdown the file is written past its file system, to the blocks that the file system
//! says are the file's. Each block is written only if it holds this magic, this label and its own number before: so a
//! wrong address can never overwrite what is not ours. Block 0 is written last; what counts of it lies in its first
//! sector, which disks write whole or not at all.

use ring::digest::{SHA256, digest};

pub(super) const BLOCK: usize = 4096;
/// 4 MiB: enough for some millions of scattered dirty blocks; with more, they are saved coarser.
pub(super) const BLOCKS: usize = 1024;
const MAGIC: [u8; 8] = *b"lbtshut1";
const VERSION: u32 = 1;
const LABEL: usize = 16;
const PREFIX: usize = 32;
const CONTENT: usize = BLOCK - PREFIX;
/// Bytes that can be saved.
pub(super) const CAPACITY: usize = CONTENT * (BLOCKS - 1);
const REASON: usize = 256;
const HEADER: usize = 4 + 4 + 8 + 32 + 4 + REASON;

pub(super) type Label = [u8; LABEL];

/// What the image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    /// The payload.
    Saved(Vec<u8>),
    /// Nothing could be saved, and why.
    Refused(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ImageError {
    #[error("it has {0} bytes instead of {size}", size = BLOCK * BLOCKS)]
    Size(usize),
    #[error("its block {0} is not the one written there")]
    Label(usize),
    #[error("it has the format of another version of the agent")]
    Version,
    #[error("its content is damaged")]
    Damaged,
    #[error("{0} bytes do not fit")]
    TooLarge(usize),
}

/// All blocks of an image, in order.
pub(super) fn write(label: &Label, content: &Content) -> Result<Vec<u8>, ImageError> {
    let (state, payload, reason): (u32, &[u8], &str) = match content {
        Content::Empty => (0, &[], ""),
        Content::Saved(payload) => (1, payload, ""),
        Content::Refused(reason) => (2, &[], reason),
    };
    if payload.len() > CAPACITY {
        return Err(ImageError::TooLarge(payload.len()));
    }
    let mut header = Vec::with_capacity(CONTENT);
    header.extend(VERSION.to_le_bytes());
    header.extend(state.to_le_bytes());
    header.extend((payload.len() as u64).to_le_bytes());
    header.extend(digest(&SHA256, payload).as_ref());
    let mut end = reason.len().min(REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    header.extend((end as u32).to_le_bytes());
    header.extend(reason.bytes().take(end));
    header.resize(HEADER, 0);
    let checksum = crc32c::crc32c(&header);
    header.extend(checksum.to_le_bytes());

    let mut image = Vec::with_capacity(BLOCK * BLOCKS);
    let mut pieces = payload.chunks(CONTENT);
    for number in 0..BLOCKS {
        image.extend(prefix(label, number));
        image.extend(if number == 0 { &header } else { pieces.next().unwrap_or_default() });
        image.resize(BLOCK * (number + 1), 0);
    }
    Ok(image)
}

/// The label of an image whose blocks all are in their places.
pub(super) fn label(image: &[u8]) -> Result<Label, ImageError> {
    if image.len() != BLOCK * BLOCKS {
        return Err(ImageError::Size(image.len()));
    }
    let found = image.get(MAGIC.len()..).and_then(|rest| rest.first_chunk::<LABEL>());
    let label = *found.ok_or(ImageError::Label(0))?;
    for (number, block) in image.chunks(BLOCK).enumerate() {
        if !block.starts_with(&prefix(&label, number)) {
            return Err(ImageError::Label(number));
        }
    }
    Ok(label)
}

pub(super) fn read(image: &[u8]) -> Result<Content, ImageError> {
    label(image)?;
    let mut blocks = image.chunks(BLOCK).filter_map(|block| block.get(PREFIX..));
    let header = blocks.next().ok_or(ImageError::Damaged)?;
    let (header, rest) = header.split_at_checked(HEADER).ok_or(ImageError::Damaged)?;
    if rest.first_chunk().map(|sum| u32::from_le_bytes(*sum)) != Some(crc32c::crc32c(header)) {
        return Err(ImageError::Damaged);
    }
    let mut fields = Fields(header);
    if fields.number()? != VERSION {
        return Err(ImageError::Version);
    }
    let state = fields.number()?;
    let length = u64::from_le_bytes(*fields.take::<8>()?);
    let expected = *fields.take::<32>()?;
    let reason = fields.number()? as usize;
    let reason = fields.0.get(..reason).ok_or(ImageError::Damaged)?;
    match state {
        0 => Ok(Content::Empty),
        1 => {
            let length = usize::try_from(length).ok().filter(|length| *length <= CAPACITY);
            let length = length.ok_or(ImageError::Damaged)?;
            let mut payload: Vec<u8> = blocks.flatten().copied().take(length).collect();
            payload.truncate(length);
            match digest(&SHA256, &payload).as_ref() == expected {
                true => Ok(Content::Saved(payload)),
                false => Err(ImageError::Damaged),
            }
        }
        2 => Ok(Content::Refused(String::from_utf8_lossy(reason).into_owned())),
        _ => Err(ImageError::Damaged),
    }
}

fn prefix(label: &Label, number: usize) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    let number = (number as u32).to_le_bytes();
    let parts = MAGIC.iter().chain(label).chain(&number);
    prefix.iter_mut().zip(parts).for_each(|(place, byte)| *place = *byte);
    prefix
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], ImageError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(ImageError::Damaged)?;
        self.0 = rest;
        Ok(field)
    }

    fn number(&mut self) -> Result<u32, ImageError> {
        Ok(u32::from_le_bytes(*self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: Label = [7; 16];

    #[test]
    fn what_is_written_is_read() {
        let saved = Content::Saved((0..3 * BLOCK).map(|byte| byte as u8).collect());
        for content in [Content::Empty, saved, Content::Refused("ü: still mounted".into())] {
            let image = write(&LABEL, &content).unwrap();
            assert_eq!(image.len(), BLOCK * BLOCKS);
            assert_eq!(label(&image), Ok(LABEL));
            assert_eq!(read(&image), Ok(content));
        }
    }

    #[test]
    fn as_much_fits_as_is_promised_and_a_long_reason_is_cut() {
        let full = Content::Saved(vec![1; CAPACITY]);
        assert_eq!(read(&write(&LABEL, &full).unwrap()), Ok(full));
        assert_eq!(
            write(&LABEL, &Content::Saved(vec![1; CAPACITY + 1])),
            Err(ImageError::TooLarge(CAPACITY + 1))
        );
        let long = Content::Refused("ü".repeat(200));
        assert_eq!(read(&write(&LABEL, &long).unwrap()), Ok(Content::Refused("ü".repeat(128))));
    }

    /// A power cut between the payload and block 0 leaves the old block 0 over new payload, or a part of it.
    #[test]
    fn a_torn_save_is_empty_or_damaged_but_never_something_else() {
        let (empty, saved) = (Content::Empty, Content::Saved(vec![9; 2 * BLOCK]));
        let (old, new) = (write(&LABEL, &empty).unwrap(), write(&LABEL, &saved).unwrap());
        let mut torn = old.clone();
        torn[BLOCK..].copy_from_slice(&new[BLOCK..]);
        assert_eq!(read(&torn), Ok(Content::Empty));
        let mut torn = new;
        torn[2 * BLOCK..].copy_from_slice(&old[2 * BLOCK..]);
        assert_eq!(read(&torn), Err(ImageError::Damaged));
    }

    #[test]
    fn a_block_of_another_file_is_noticed() {
        let mut image = write(&LABEL, &Content::Empty).unwrap();
        let other = write(&[8; 16], &Content::Empty).unwrap();
        image[5 * BLOCK..6 * BLOCK].copy_from_slice(&other[5 * BLOCK..6 * BLOCK]);
        assert_eq!(label(&image), Err(ImageError::Label(5)));
        assert_eq!(label(&image[BLOCK..]), Err(ImageError::Size(BLOCK * (BLOCKS - 1))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_byte_is_noticed(place in 0..3 * BLOCK, change in 1..=255_u8) {
            let content = Content::Saved(vec![3; 2 * CONTENT]);
            let mut image = write(&LABEL, &content).unwrap();
            image[place] ^= change;
            // Bytes that mean nothing may change; whatever is read is what was written.
            if let Ok(read) = read(&image) {
                prop_assert_eq!(read, content);
            }
        }
    }
}
