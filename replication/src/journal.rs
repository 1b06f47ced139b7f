//! The journal: the segments that a data record names, fetched, verified and opened.
//!
//! A small record carries its only segment in `inline_segment`; its `SegmentRef` then says the name that it was
//! sealed under, and no blob has that name. A segment is believed when its length and SHA-256 are what the
//! authenticated record says and when it opens with its key.

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::{
    log::Patience,
    segment::{self, ExtentData, SegmentError},
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
        "segment {name} of record {record} is not what was written (its length or SHA-256 differs): restore it from \
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
    pub sha256: [u8; 32],
    pub inline: Option<Bytes>,
}

/// The segments of a record in the order in which they are applied.
pub fn sources(record: &v1::Data) -> Result<Vec<Source>, JournalError> {
    let unnamed = || JournalError::Unnamed { record: record.number };
    let inline = Some(&record.inline_segment).filter(|inline| !inline.is_empty());
    if inline.is_some() && record.segments.len() != 1 {
        return Err(unnamed());
    }
    let source = |segment: &v1::SegmentRef| {
        let v1::SegmentRef { name, length, sha256 } = segment;
        Ok(Source {
            record: record.number,
            name: name.clone(),
            length: *length,
            sha256: sha256.as_slice().try_into().map_err(|_| unnamed())?,
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
            None => self.fetch(vault, patience).await?,
        };
        let right = sealed.len() as u64 == self.length && digest(&SHA256, &sealed).as_ref() == self.sha256;
        if !right {
            return Err(JournalError::Rotten { name: self.name.clone(), record: self.record });
        }
        segment::open(&vault.keys, &self.name, &sealed)
            .map_err(|source| JournalError::Segment { record: self.record, source })
    }

    async fn fetch(&self, vault: &Vault, patience: &Patience) -> Result<Bytes, JournalError> {
        // One byte more than there should be shows that it is too long, and bounds what is fetched.
        let range = 0..self.length.min(segment::MAX_SEALED_BYTES) + 1;
        match patience.sure(|| vault.cache.get(&self.name, None, Some(range.clone()))).await {
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
        let named = v1::SegmentRef { name: "n".into(), length: 1, sha256: vec![0; 32] };
        let record = v1::Data { segments: vec![named], ..record };
        assert_eq!(sources(&record).unwrap()[0].inline.as_deref(), Some([1].as_slice()));
    }
}
