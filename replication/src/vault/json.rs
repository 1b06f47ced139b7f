//! Small JSON documents in the vault: read with their ETag, written under a condition.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::VaultError;
use crate::store::{BlobStore, ETag, PutCondition, Refusal, StoreError};

/// `None` when there is no such document. The ETag is taken before the content: if somebody writes in between, a later
/// write with this ETag is refused, and nothing of theirs is lost.
pub(super) async fn read<T: DeserializeOwned>(
    store: &dyn BlobStore,
    name: &str,
) -> Result<Option<(T, ETag)>, VaultError> {
    let read = async {
        let etag = store.properties(name, None).await?.etag;
        Ok::<_, StoreError>((store.get(name, None, None).await?, etag))
    };
    match read.await {
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
