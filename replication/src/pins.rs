//! Pins: what a reader of the vault needs for long, so that it is not deleted under it.
//!
//! `servers/<id>/pins/<run>.json`, one blob a reader, documented in `docs/src/reference/catalogue.md`.
//!
//! **Order.** A reader chooses a point, writes its pin, and *then* looks whether the catalogue still lists what it has
//! pinned; if not, it chooses again. The applier takes what it will delete off the catalogue, *then* reads the pins, and
//! deletes what none of them names. So either the reader sees that it is gone, or the applier sees the pin.
//! **Expiry.** No two clocks are compared. A reader renews its pin, which changes the blob's ETag; the applier lets a
//! pin go when it has watched the same ETag for `held_for_seconds` of its own monotonic time: from the end of the look
//! that first showed it to the beginning of the last one, so that a look that took long (a program that stood still, a slow
//! store) never counts as time without a renewal. A restart of the applier makes it wait anew, a date that jumps changes
//! nothing. A pin is only taken away in the version that was seen.
//! **A pin that cannot be read** holds everything: nothing is deleted until it is mended or removed.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{RecordId, RecordNumber, ServerId},
    log::Patience,
    store::{BlobStore, ETag, PutCondition, Refusal, StoreError},
    vault::layout,
};

/// The only version of pins so far.
pub const FORMAT: u32 = 1;
/// Longest time that a pin may ask for: a reader that is gone must not hold storage for ever.
pub const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// What a reader needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    pub format: u32,
    pub server: String,
    /// Who reads: the name that the blob has.
    pub run: String,
    /// The point whose snapshots are read; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<RecordId>,
    /// Records whose segments are read; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<Records>,
    /// It counts for so long after it was last written.
    pub held_for_seconds: u64,
    /// By the reader's clock, for people.
    pub renewed_at_micros: i64,
    /// The catalogue still listed all of it after the pin had been written: from then on nothing of it was deleted.
    #[serde(default)]
    pub confirmed: bool,
}

/// Record numbers, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    pub from: u64,
    pub to: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "{name} cannot be read as a pin, so it holds everything: delete it if no recovery of this server is running"
    )]
    Damaged {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{name} has format {found}, this build knows {FORMAT}, so it holds everything: use the release that wrote it"
    )]
    Format { name: String, found: u32 },
    #[error(
        "{run:?} cannot name a pin: use letters, digits, dashes, dots and underscores, at most 200 of them"
    )]
    Name { run: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Pin {
    /// Does it need segments of this record?
    pub fn holds_record(&self, record: RecordNumber) -> bool {
        self.records.is_some_and(|records| (records.from..=records.to).contains(&record.0))
    }

    /// Does it need snapshots with this sequence number?
    pub fn holds_snapshot(&self, sequence: u64) -> bool {
        self.base.is_some_and(|base| base.sequence() == sequence)
    }

    pub fn held_for(&self) -> Duration {
        Duration::from_secs(self.held_for_seconds).min(LONGEST_HOLD)
    }
}

/// A pin as it stands in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub name: String,
    pub etag: ETag,
    pub pin: Pin,
}

/// All pins of a server.
///
/// # Errors
/// When one of them cannot be read: then nothing may be deleted.
pub async fn all(store: &dyn BlobStore, server: &ServerId) -> Result<Vec<Standing>, PinError> {
    let (mut pins, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&layout::pins_prefix(server), false, after.as_deref()).await?;
        for blob in page.blobs {
            pins.extend(read(store, blob.name).await?);
        }
        after = page.next;
        if after.is_none() {
            return Ok(pins);
        }
    }
}

/// The pin of one reader; `None`: it has none.
///
/// # Errors
/// When it cannot be read.
pub async fn of(store: &dyn BlobStore, server: &ServerId, run: &str) -> Result<Option<Standing>, PinError> {
    read(store, layout::pin(server, run)).await
}

/// `None`: it was removed. The ETag is taken before the content, so a renewal in between counts as one more.
async fn read(store: &dyn BlobStore, name: String) -> Result<Option<Standing>, PinError> {
    let read = async {
        let etag = store.properties(&name, None).await?.etag;
        Ok::<_, StoreError>((store.get(&name, None, None).await?, etag))
    };
    let (content, etag) = match read.await {
        Err(error) if error.is(Refusal::NotFound) => return Ok(None),
        read => read?,
    };
    let pin: Pin = match serde_json::from_slice(&content) {
        Ok(pin) => pin,
        Err(source) => return Err(PinError::Damaged { name, source }),
    };
    match pin.format {
        FORMAT => Ok(Some(Standing { name, etag, pin })),
        found => Err(PinError::Format { name, found }),
    }
}

/// Writes or renews a pin. Conditional on what stands there, so that a late copy of an earlier write cannot replace a
/// later one.
///
/// # Errors
/// When it is not certain that the pin stands.
pub async fn write(
    store: &dyn BlobStore,
    server: &ServerId,
    pin: &Pin,
    patience: &Patience,
) -> Result<(), PinError> {
    if !is_name(&pin.run) {
        return Err(PinError::Name { run: pin.run.clone() });
    }
    let name = layout::pin(server, &pin.run);
    // Plain structs with string keys cannot fail to be written.
    let mut content = serde_json::to_vec(pin).unwrap_or_default();
    content.push(b'\n');
    let content = Bytes::from(content);
    let mut tried = 0;
    loop {
        let written = async {
            let condition = match store.properties(&name, None).await {
                Ok(found) => PutCondition::IfMatch(found.etag),
                Err(error) if error.is(Refusal::NotFound) => PutCondition::IfAbsent,
                Err(error) => return Err(error),
            };
            store.put(&name, content.clone(), &condition).await
        };
        match written.await {
            Ok(_) => return Ok(()),
            // An own earlier try has landed meanwhile, or the applier removed it: look again.
            Err(error)
                if tried + 1 < patience.tries
                    && (error.refusal().is_none()
                        || error.is(Refusal::Condition)
                        || error.is(Refusal::AlreadyExists)) =>
            {
                patience.pause(tried).await;
                tried += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes a pin away; done, too, when there is none.
///
/// # Errors
/// When the store does not answer: the pin then expires by itself.
pub async fn remove(store: &dyn BlobStore, server: &ServerId, run: &str) -> Result<(), StoreError> {
    match store.delete(&layout::pin(server, run), None).await {
        Err(error) if !error.is(Refusal::NotFound) => Err(error),
        _ => Ok(()),
    }
}

/// Takes the pin of a reader that is gone away, unless it has been written again since it was seen.
///
/// # Errors
/// When the store does not answer: it is looked at again.
pub async fn remove_seen(store: &dyn BlobStore, seen: &Standing) -> Result<(), StoreError> {
    match store.delete_if_match(&seen.name, &seen.etag).await {
        Err(error) if !error.is(Refusal::NotFound) && !error.is(Refusal::Condition) => Err(error),
        _ => Ok(()),
    }
}

/// Safe in a blob name and never outside of the server's folder.
fn is_name(run: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=200).contains(&run.len()) && run.bytes().all(safe) && !run.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::Env,
        ids::{Epoch, sequence_number},
        store::model::ModelStore,
    };

    fn server() -> ServerId {
        ServerId::from_random([1; 16])
    }

    fn pin(run: &str, to: u64) -> Pin {
        Pin {
            format: FORMAT,
            server: server().to_string(),
            run: run.to_owned(),
            base: Some(RecordId { epoch: Epoch(2), number: RecordNumber(7) }),
            records: Some(Records { from: 8, to }),
            held_for_seconds: 3600,
            renewed_at_micros: 1_000_000,
            confirmed: true,
        }
    }

    fn patience() -> Patience {
        Patience::new(Env::system())
    }

    #[test]
    fn holds_its_records_and_the_snapshots_of_its_base() {
        let pin = pin("a", 9);
        let held: Vec<u64> = (6..12).filter(|number| pin.holds_record(RecordNumber(*number))).collect();
        assert_eq!(held, [8, 9]);
        assert!(pin.holds_snapshot(sequence_number(Epoch(2), RecordNumber(7))));
        assert!(!pin.holds_snapshot(sequence_number(Epoch(3), RecordNumber(7))));
    }

    /// Pinned bytes: the format of `docs/src/reference/catalogue.md`.
    #[test]
    fn stands_in_the_vault_as_documented() {
        let text = serde_json::to_string(&pin("run-1", 9)).unwrap();
        let wanted = r#"{"format":1,"server":"01010101-0101-4101-8101-010101010101","run":"run-1","base":{"epoch":2,"number":7},"records":{"from":8,"to":9},"heldForSeconds":3600,"renewedAtMicros":1000000,"confirmed":true}"#;
        assert_eq!(text, wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_changes_what_the_applier_watches() {
        let store = ModelStore::new();
        write(&store, &server(), &pin("a", 9), &patience()).await.unwrap();
        let first = all(&store, &server()).await.unwrap();
        write(&store, &server(), &pin("a", 10), &patience()).await.unwrap();
        let second = all(&store, &server()).await.unwrap();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first[0].etag, second[0].etag);
        assert_eq!(second[0].pin, pin("a", 10));
        remove(&store, &server(), "a").await.unwrap();
        remove(&store, &server(), "a").await.unwrap();
        assert!(all(&store, &server()).await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_that_cannot_be_read_is_an_error_and_not_ignored() {
        let store = ModelStore::new();
        let name = layout::pin(&server(), "a");
        store.put(&name, Bytes::from_static(b"{"), &PutCondition::Always).await.unwrap();
        let error = all(&store, &server()).await.unwrap_err().to_string();
        assert!(error.contains("holds everything"), "{error}");
        let newer = serde_json::to_vec(&Pin { format: 2, ..pin("a", 9) }).unwrap();
        store.put(&name, newer.into(), &PutCondition::Always).await.unwrap();
        assert!(matches!(all(&store, &server()).await, Err(PinError::Format { found: 2, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_cannot_leave_its_folder() {
        let store = ModelStore::new();
        for run in ["", "../server", ".", "a/b", "a b"] {
            let written = write(&store, &server(), &pin(run, 9), &patience()).await;
            assert!(matches!(written, Err(PinError::Name { .. })), "{run:?}");
        }
    }
}
