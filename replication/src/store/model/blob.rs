//! A blob: its current version, its snapshots, its lease.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{Denied, lease::Lease, pages::Pages};
use crate::store::{BlobKind, ETag, LeaseState, Listed, Properties, Refusal, SnapshotId};

#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) version: Version,
    /// In order of their making.
    pub(super) snapshots: BTreeMap<SnapshotId, Version>,
    pub(super) lease: Lease,
}

/// What a snapshot keeps.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) content: Content,
    pub(super) etag: u64,
    pub(super) sealed: bool,
    pub(super) appends: u32,
    pub(super) sequence: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Block(Bytes),
    /// Shared with snapshots until the next append.
    Append(Arc<Vec<u8>>),
    Page(Pages),
}

/// Proof that the range lies within the page blob.
pub(super) struct PagesWithin<'a> {
    pages: &'a mut Pages,
    sequence: u64,
}

impl Blob {
    pub(super) fn new(version: Version) -> Self {
        Self { version, snapshots: BTreeMap::new(), lease: Lease::default() }
    }
}

impl Version {
    pub(super) fn new(content: Content, etag: u64) -> Self {
        Self { content, etag, sealed: false, appends: 0, sequence: 0 }
    }

    pub(super) fn etag(&self) -> ETag {
        ETag(format!("\"0x{:016X}\"", self.etag))
    }

    pub(super) fn properties(&self, lease: LeaseState) -> Properties {
        Properties {
            kind: self.content.kind(),
            length: self.content.length(),
            etag: self.etag(),
            lease,
            sealed: self.sealed,
            appends: self.appends,
            sequence_number: self.sequence,
        }
    }

    pub(super) fn listed(&self, name: &str, snapshot: Option<SnapshotId>) -> Listed {
        Listed { name: name.to_owned(), snapshot, kind: self.content.kind(), length: self.content.length() }
    }

    pub(super) fn pages_within(&mut self, range: Range<u64>) -> Result<PagesWithin<'_>, Denied> {
        match &mut self.content {
            Content::Page(pages) if range.end <= pages.length => {
                Ok(PagesWithin { pages, sequence: self.sequence })
            }
            Content::Page(_) => Err((Refusal::Range, "InvalidPageRange")),
            Content::Block(_) | Content::Append(_) => Err((Refusal::Kind, "InvalidBlobType")),
        }
    }
}

impl<'a> PagesWithin<'a> {
    /// `x-ms-if-sequence-number-le`
    pub(super) fn sequence_at_most(self, most: u64) -> Result<&'a mut Pages, Denied> {
        if self.sequence <= most {
            Ok(self.pages)
        } else {
            Err((Refusal::Condition, "SequenceNumberConditionNotMet"))
        }
    }
}

impl Content {
    pub(super) fn zeros(length: u64) -> Self {
        Self::Page(Pages::zeros(length))
    }

    pub(super) fn resize(&mut self, length: u64) -> Result<(), Denied> {
        match self {
            Self::Page(pages) => {
                pages.resize(length);
                Ok(())
            }
            Self::Block(_) | Self::Append(_) => Err((Refusal::Kind, "InvalidBlobType")),
        }
    }

    pub(super) fn kind(&self) -> BlobKind {
        match self {
            Self::Block(_) => BlobKind::Block,
            Self::Append(_) => BlobKind::Append,
            Self::Page(_) => BlobKind::Page,
        }
    }

    pub(super) fn must_be(&self, kind: BlobKind) -> Result<(), Denied> {
        if self.kind() == kind { Ok(()) } else { Err((Refusal::Kind, "InvalidBlobType")) }
    }

    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Block(content) => content.len() as u64,
            Self::Append(content) => content.len() as u64,
            Self::Page(pages) => pages.length,
        }
    }

    /// `range` lies within.
    pub(super) fn read(&self, range: Range<u64>) -> Bytes {
        let bytes = range.start as usize..range.end as usize;
        match self {
            Self::Block(content) => content.slice(bytes),
            Self::Append(content) => content.get(bytes).map_or_else(Bytes::new, Bytes::copy_from_slice),
            Self::Page(pages) => pages.read(range),
        }
    }

    pub(super) fn append(&mut self, more: &[u8]) {
        if let Self::Append(content) = self {
            Arc::make_mut(content).extend_from_slice(more);
        }
    }

    pub(super) fn page_ranges(&self) -> Result<Vec<Range<u64>>, Denied> {
        match self {
            Self::Page(pages) => Ok(pages.written()),
            Self::Block(_) | Self::Append(_) => Err((Refusal::Kind, "InvalidBlobType")),
        }
    }
}
