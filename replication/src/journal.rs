//! The journal: the segments that a data record names, fetched, verified and opened.
//!
//! A small record carries its only segment in `inline_segment`; its `SegmentRef` then says the name that it was
//! sealed under, and no blob has that name. A segment is believed when its length and its tags (version 1: its SHA-256)
//! are what the authenticated record says and when it opens with its key.
//!
//! Whoever only wants to know where blocks are reads the table: a few kilobytes, verified alike. What is wrong with the
//! data shows when that is read.

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::{
    log::Patience,
    segment::{self, Extent, ExtentData, SegmentError},
    store::{Refusal, StoreError},
    vault::Vault,
    wire::v1,
};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(
        "segment {name} is missing from cache storage although record {record} needs it: restore it from the store's \
         soft-delete or versions, or choose a point before record {record}"
    )]
    Missing { name: String, record: u64 },
    #[error(
        "segment {name} of record {record} is not what was written (its length or checksum differs): restore it from \
         the store's versions, or choose a point before record {record}"
    )]
    Rotten { name: String, record: u64 },
    #[error(
        "record {record} carries a segment without its name or checksum: it was written by another version of Lifeboat"
    )]
    Unnamed { record: u64 },
    #[error("record {record} cannot be read")]
    Segment {
        record: u64,
        #[source]
        source: SegmentError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One segment of a record, in the record itself or in cache storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub record: u64,
    pub name: String,
    pub length: u64,
    pub proof: Proof,
    pub inline: Option<Bytes>,
}

/// What the record says of a segment's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Version 1: of the whole content.
    Sha256([u8; 32]),
    /// The tags of its two parts, which with the segment's key stand for their content.
    Tags { front_bytes: u64, tags: segment::Tags },
}

impl Proof {
    fn of(segment: &v1::SegmentRef) -> Option<Self> {
        match (segment.sha256.as_slice(), segment.front_bytes) {
            ([], 0) => None,
            ([], front_bytes) => {
                Some(Self::Tags { front_bytes, tags: segment.tags.as_slice().try_into().ok()? })
            }
            (sha256, _) => Some(Self::Sha256(sha256.try_into().ok()?)),
        }
    }

    fn fits(&self, sealed: &[u8]) -> bool {
        match self {
            Self::Sha256(sum) => digest(&SHA256, sealed).as_ref() == sum,
            Self::Tags { front_bytes, tags } => segment::tags(sealed, *front_bytes).as_ref() == Some(tags),
        }
    }

    /// The same of the front alone.
    fn fits_front(&self, front: &[u8]) -> bool {
        match self {
            Self::Sha256(_) => false,
            Self::Tags { front_bytes, tags } => {
                let tag = tags.first_chunk::<16>();
                front.len() as u64 == *front_bytes && front.last_chunk::<16>() == tag
            }
        }
    }
}

/// A segment's table, and what of the segment was fetched for it.
#[derive(Debug)]
pub struct Table {
    pub extents: Vec<Extent>,
    pub fetched_bytes: u64,
    /// The whole segment, where it had to be read: within a record, or of version 1.
    pub whole: Option<Vec<ExtentData>>,
}

/// The segments of a record in the order in which they are applied.
pub fn sources(record: &v1::Data) -> Result<Vec<Source>, JournalError> {
    let unnamed = || JournalError::Unnamed { record: record.number };
    let inline = Some(&record.inline_segment).filter(|inline| !inline.is_empty());
    if inline.is_some() && record.segments.len() != 1 {
        return Err(unnamed());
    }
    let source = |segment: &v1::SegmentRef| {
        Ok(Source {
            record: record.number,
            name: segment.name.clone(),
            length: segment.length,
            proof: Proof::of(segment).ok_or_else(unnamed)?,
            inline: inline.map(|inline| Bytes::copy_from_slice(inline)),
        })
    };
    record.segments.iter().map(source).collect()
}

impl Source {
    /// Bytes that were fetched from cache storage for it.
    pub fn fetched_bytes(&self) -> u64 {
        if self.inline.is_some() { 0 } else { self.length }
    }

    /// Fetches, verifies and opens it.
    pub async fn read(&self, vault: &Vault, patience: &Patience) -> Result<Vec<ExtentData>, JournalError> {
        let sealed = match &self.inline {
            Some(inline) => inline.clone(),
            // One byte more than there should be shows that it is too long, and bounds what is fetched.
            None => self.fetch(self.length.min(segment::MAX_SEALED_BYTES) + 1, vault, patience).await?,
        };
        if sealed.len() as u64 != self.length || !self.proof.fits(&sealed) {
            return Err(self.rotten());
        }
        segment::open(&vault.keys, &self.name, &sealed).map_err(|source| self.unreadable(source))
    }

    /// Where its blocks are: as little is fetched as shows it.
    pub async fn table(&self, vault: &Vault, patience: &Patience) -> Result<Table, JournalError> {
        match (&self.inline, self.proof) {
            (None, Proof::Tags { front_bytes, .. }) => {
                let front = self.fetch(front_bytes.min(segment::MAX_SEALED_BYTES), vault, patience).await?;
                if !self.proof.fits_front(&front) {
                    return Err(self.rotten());
                }
                let extents = segment::open_table(&vault.keys, &self.name, &front)
                    .map_err(|source| self.unreadable(source))?;
                Ok(Table { extents, fetched_bytes: front_bytes, whole: None })
            }
            _ => {
                let whole = self.read(vault, patience).await?;
                let extents = whole.iter().map(ExtentData::extent).collect();
                Ok(Table { extents, fetched_bytes: self.fetched_bytes(), whole: Some(whole) })
            }
        }
    }

    fn rotten(&self) -> JournalError {
        JournalError::Rotten { name: self.name.clone(), record: self.record }
    }

    fn unreadable(&self, source: SegmentError) -> JournalError {
        match source {
            // The tags were right: what does not fit them was changed.
            SegmentError::Damaged { .. } => self.rotten(),
            source => JournalError::Segment { record: self.record, source },
        }
    }

    /// The first `bytes` of the blob, or what there is.
    async fn fetch(&self, bytes: u64, vault: &Vault, patience: &Patience) -> Result<Bytes, JournalError> {
        match patience.sure(|| vault.cache.get(&self.name, None, Some(0..bytes))).await {
            // Of an empty blob there is no range.
            Err(error) if error.is(Refusal::Range) => Ok(Bytes::new()),
            Err(error) if error.is(Refusal::NotFound) => {
                Err(JournalError::Missing { name: self.name.clone(), record: self.record })
            }
            sealed => Ok(sealed?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inline_segment_needs_the_name_it_was_sealed_under() {
        let record = v1::Data { number: 4, inline_segment: vec![1], ..Default::default() };
        assert!(matches!(sources(&record), Err(JournalError::Unnamed { record: 4 })));
        let named = v1::SegmentRef { name: "n".into(), length: 1, sha256: vec![0; 32], ..Default::default() };
        let record = v1::Data { segments: vec![named], ..record };
        assert_eq!(sources(&record).unwrap()[0].inline.as_deref(), Some([1].as_slice()));
    }

    #[test]
    fn a_segment_needs_a_proof_of_its_content() {
        let of = |sha256: &[u8], front_bytes, tags: &[u8]| {
            let (sha256, tags) = (sha256.to_vec(), tags.to_vec());
            let named = v1::SegmentRef { name: "n".into(), length: 1, sha256, front_bytes, tags };
            sources(&v1::Data { segments: vec![named], ..Default::default() }).map(|sources| sources[0].proof)
        };
        assert_eq!(of(&[1; 32], 0, &[]).unwrap(), Proof::Sha256([1; 32]));
        assert_eq!(of(&[], 60, &[2; 32]).unwrap(), Proof::Tags { front_bytes: 60, tags: [2; 32] });
        for (sha256, front_bytes, tags) in [(0, 0, 0), (31, 0, 0), (0, 60, 31), (0, 60, 0), (0, 0, 32)] {
            let refused = of(&vec![0; sha256], front_bytes, &vec![0; tags]).unwrap_err();
            assert!(matches!(refused, JournalError::Unnamed { .. }), "{refused}");
        }
    }
}
