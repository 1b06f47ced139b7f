//! Small JSON documents in the vault: read with their ETag, written under a condition.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::VaultError;
use crate::store::{BlobStore, ETag, PutCondition, Refusal, StoreError};

/// Bytes of a document, at most: bounds what a reader allocates for foreign bytes. The largest, `vault.json`, has a few
/// KiB.
const MAX_BYTES: u64 = 4 << 20;

/// `None` when there is no such document. The ETag is taken before the content: if somebody writes in between, a later
/// write with this ETag is refused, and nothing of theirs is lost.
pub(super) async fn read<T: DeserializeOwned>(
    store: &dyn BlobStore,
    name: &str,
) -> Result<Option<(T, ETag)>, VaultError> {
    let read = async {
        let properties = store.properties(name, None).await?;
        if properties.length > MAX_BYTES {
            return Ok(Err(properties.length));
        }
        let content = store.get(name, None, Some(0..MAX_BYTES)).await;
        let content = match content {
            // Of an empty blob there is no range.
            Err(error) if error.is(Refusal::Range) => Bytes::new(),
            content => content?,
        };
        Ok::<_, StoreError>(Ok((content, properties.etag)))
    };
    let read = match read.await {
        Ok(Err(bytes)) => return Err(VaultError::TooLarge { name: name.to_owned(), bytes }),
        Ok(Ok(read)) => Ok(read),
        Err(error) => Err(error),
    };
    match read {
        Ok((content, etag)) => match serde_json::from_slice(&content) {
            Ok(value) => Ok(Some((value, etag))),
            Err(source) => Err(VaultError::Damaged { name: name.to_owned(), source }),
        },
        Err(error) if error.is(Refusal::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn write<T: Serialize>(
    store: &dyn BlobStore,
    name: &str,
    value: &T,
    condition: &PutCondition,
) -> Result<ETag, StoreError> {
    // Documents are plain structs with string keys, which cannot fail to be written.
    let mut content = serde_json::to_vec_pretty(value).unwrap_or_default();
    content.push(b'\n');
    store.put(name, Bytes::from(content), condition).await
}
