//! A store of which one blob, or one snapshot, is not what was written: to whoever reads. It takes no writes.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_replication::store::{
    BlobStore, ETag, LeaseId, ListPage, Properties, PutCondition, Refusal, Result, SnapshotId, StoreError,
};

#[derive(Debug, Clone)]
pub enum Tamper {
    Missing,
    /// This bit of the byte at this many thousandths of the blob.
    Flip {
        permille: u64,
        bit: u8,
    },
    /// This bit of this byte.
    FlipAt {
        byte: usize,
        bit: u8,
    },
    /// Only so many thousandths are left.
    Truncated {
        permille: u64,
    },
    /// As it was once.
    Older {
        content: Bytes,
        sequence_number: u64,
    },
}

#[derive(Debug)]
pub struct Tampered {
    pub store: Arc<dyn BlobStore>,
    pub name: String,
    pub snapshot: Option<SnapshotId>,
    pub how: Tamper,
}

impl Tampered {
    fn is(&self, name: &str, snapshot: Option<&SnapshotId>) -> bool {
        self.name == name && self.snapshot.as_ref() == snapshot
    }

    async fn content(&self) -> Result<Bytes> {
        let whole = self.store.get(&self.name, self.snapshot.as_ref(), None).await?;
        let at = |permille: u64| (whole.len() as u64 * permille / 1000) as usize;
        let flipped = |byte: usize, bit: u8| {
            let mut changed = whole.to_vec();
            changed[byte] ^= 1 << bit;
            Bytes::from(changed)
        };
        match &self.how {
            Tamper::Missing => Err(refused(&self.name, Refusal::NotFound)),
            Tamper::Flip { permille, bit } => Ok(flipped(at(*permille), *bit)),
            Tamper::FlipAt { byte, bit } => Ok(flipped(*byte, *bit)),
            Tamper::Truncated { permille } => Ok(whole.slice(..at(*permille))),
            Tamper::Older { content, .. } => Ok(content.clone()),
        }
    }
}

fn refused(name: &str, why: Refusal) -> StoreError {
    StoreError::Refused { operation: "read", name: name.to_owned(), why, detail: "planted".to_owned() }
}

fn read_only<T>(operation: &'static str, name: &str) -> Result<T> {
    let (name, detail) = (name.to_owned(), "nothing may be written here".to_owned());
    Err(StoreError::Refused { operation, name, why: Refusal::Denied, detail })
}

#[async_trait]
impl BlobStore for Tampered {
    async fn ensure_container(&self) -> Result<()> {
        read_only("ensure container", "")
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        let mut properties = self.store.properties(name, snapshot).await?;
        if self.is(name, snapshot) {
            properties.length = self.content().await?.len() as u64;
            if let Tamper::Older { sequence_number, .. } = self.how {
                properties.sealed = false;
                properties.sequence_number = sequence_number;
            }
        }
        Ok(properties)
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        if !self.is(name, snapshot) {
            return self.store.get(name, snapshot, range).await;
        }
        let content = self.content().await?;
        let Some(range) = range else { return Ok(content) };
        let length = content.len() as u64;
        if range.start >= length {
            return Err(refused(name, Refusal::Range));
        }
        Ok(content.slice(range.start as usize..range.end.min(length) as usize))
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        let mut page = self.store.list(prefix, with_snapshots, after).await?;
        let length = self.content().await.map(|content| content.len() as u64).ok();
        page.blobs.retain_mut(|blob| {
            if blob.name != self.name || blob.snapshot != self.snapshot {
                return true;
            }
            blob.length = length.unwrap_or_default();
            length.is_some()
        });
        Ok(page)
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        if self.is(name, snapshot) && matches!(self.how, Tamper::Missing) {
            return Err(refused(name, Refusal::NotFound));
        }
        let mut ranges = self.store.page_ranges(name, snapshot).await?;
        if let Tamper::FlipAt { byte, .. } = self.how
            && self.is(name, snapshot)
        {
            let page = byte as u64 / 512 * 512;
            ranges.push(page..page + 512);
        }
        Ok(ranges)
    }

    async fn put(&self, name: &str, _: Bytes, _: &PutCondition) -> Result<ETag> {
        read_only("put", name)
    }

    async fn delete(&self, name: &str, _: Option<&SnapshotId>) -> Result<()> {
        read_only("delete", name)
    }

    async fn delete_if_match(&self, name: &str, _: &ETag) -> Result<()> {
        read_only("delete if match", name)
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        read_only("create append blob", name)
    }

    async fn append(&self, name: &str, _: Bytes, _: &LeaseId, _: u64) -> Result<()> {
        read_only("append", name)
    }

    async fn seal(&self, name: &str, _: &LeaseId) -> Result<()> {
        read_only("seal", name)
    }

    async fn create_page(&self, name: &str, _: u64) -> Result<ETag> {
        read_only("create page blob", name)
    }

    async fn write_pages(&self, name: &str, _: u64, _: Bytes, _: Option<&LeaseId>, _: u64) -> Result<ETag> {
        read_only("write pages", name)
    }

    async fn clear_pages(&self, name: &str, _: Range<u64>, _: Option<&LeaseId>, _: u64) -> Result<ETag> {
        read_only("clear pages", name)
    }

    async fn grow_page(&self, name: &str, _: u64, _: &ETag) -> Result<ETag> {
        read_only("grow page", name)
    }

    async fn raise_sequence(&self, name: &str, _: u64, _: Option<&LeaseId>) -> Result<u64> {
        read_only("raise sequence", name)
    }

    async fn snapshot(&self, name: &str, _: Option<&LeaseId>, _: Option<&ETag>) -> Result<SnapshotId> {
        read_only("snapshot", name)
    }

    async fn acquire_lease(&self, name: &str, _: &LeaseId, _: Duration) -> Result<()> {
        read_only("acquire lease", name)
    }

    async fn renew_lease(&self, name: &str, _: &LeaseId) -> Result<()> {
        read_only("renew lease", name)
    }

    async fn release_lease(&self, name: &str, _: &LeaseId) -> Result<()> {
        read_only("release lease", name)
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        read_only("break lease", name)
    }
}
