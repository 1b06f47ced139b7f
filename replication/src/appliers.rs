//! What running appliers say of themselves: `appliers/<identity>.json`, documented in
//! `docs/src/reference/catalogue.md`. Nothing rests on it but the division of work, and what people are shown.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ids::ServerId,
    keys::KeyId,
    store::{BlobStore, Refusal, Result},
    vault::layout,
};

/// The only version of announcements so far.
const FORMAT: u32 = 1;

/// An applier, as it says itself. Another `beat` shows that it still lives; see the applier's `share`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    pub format: u32,
    pub identity: String,
    /// For people: the pod's name.
    pub name: String,
    /// Servers whose lease it holds.
    pub holds: Vec<String>,
    /// Ids of the data keys that it has: nobody writes with one before every applier can read it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyId>,
    /// Another one each time.
    pub beat: u64,
    /// By its own clock, for people.
    pub renewed_at_micros: i64,
}

impl Announcement {
    pub fn new(identity: &str, name: &str, holds: &BTreeSet<ServerId>) -> Self {
        Self {
            format: FORMAT,
            identity: identity.to_owned(),
            name: name.to_owned(),
            holds: holds.iter().map(ToString::to_string).collect(),
            keys: Vec::new(),
            beat: 0,
            renewed_at_micros: 0,
        }
    }

    /// `None`: it is none that this build knows.
    pub fn read(content: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(content).ok().filter(|said| said.format == FORMAT)
    }

    pub fn content(&self) -> Bytes {
        // A plain struct cannot fail to be written.
        let mut content = serde_json::to_vec(self).unwrap_or_default();
        content.push(b'\n');
        content.into()
    }
}

/// Announcements by blob name, without that of the identity `own`. One operation, and one for each other applier.
///
/// # Errors
/// The store's.
pub async fn standing(store: &dyn BlobStore, own: &str) -> Result<BTreeMap<String, Bytes>> {
    let own = layout::applier(own);
    let (mut found, mut after) = (BTreeMap::new(), None);
    loop {
        let page = store.list(layout::APPLIERS_PREFIX, false, after.as_deref()).await?;
        for blob in page.blobs.into_iter().filter(|blob| blob.name != own) {
            match store.get(&blob.name, None, None).await {
                Ok(content) => drop(found.insert(blob.name, content)),
                Err(error) if error.is(Refusal::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned bytes: the format of `docs/src/reference/catalogue.md`.
    #[test]
    fn stands_in_the_vault_as_documented() {
        let holds = BTreeSet::from([ServerId::from_random([1; 16])]);
        let keys = vec![KeyId("0123456789abcdef".to_owned())];
        let said = Announcement { beat: 7, keys, ..Announcement::new("b", "applier-1", &holds) };
        let content = said.content();
        let wanted = "{\"format\":1,\"identity\":\"b\",\"name\":\"applier-1\",\"holds\":[\"01010101-0101-4101-8101-010101010101\"],\"keys\":[\"0123456789abcdef\"],\"beat\":7,\"renewedAtMicros\":0}\n";
        assert_eq!(content, wanted);
        assert_eq!(Announcement::read(&content), Some(said));
        assert_eq!(Announcement::read(b"{"), None);
        // As versions before this field write it.
        let before =
            b"{\"format\":1,\"identity\":\"b\",\"name\":\"a\",\"holds\":[],\"beat\":7,\"renewedAtMicros\":0}";
        assert!(Announcement::read(before).is_some_and(|said| said.keys.is_empty()));
    }
}
