//! Segments in cache storage against what the log names: that they exist with their length, or deep: fetched,
//! checksum compared, decrypted.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use lifeboat_replication::{
    errors::chain,
    ids::ServerId,
    journal::{JournalError, Source},
    log::Patience,
    store::{Refusal, StoreError},
    vault::{Vault, layout},
};
use serde::Serialize;

use super::finding::{Finding, Severity, remedy};

/// Fetches under way.
const PARALLEL: usize = 8;
/// Listed names kept: more than a record ever names.
const WINDOW: usize = 20_000;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentFigures {
    /// Named by the log, those within records among them.
    pub named: u64,
    pub named_bytes: u64,
    /// Blobs in cache storage.
    pub stored: u64,
    pub stored_bytes: u64,
    /// Fetched or taken from a record, compared and decrypted.
    pub opened: u64,
    pub opened_bytes: u64,
}

/// The names in cache storage, listed page by page alongside the log, whose order is almost theirs.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    vault: &'a Vault,
    prefix: String,
    patience: &'a Patience,
    window: BTreeMap<String, u64>,
    /// Where the next page starts; `None`: all pages were read.
    next: Option<Option<String>>,
    pub(super) figures: SegmentFigures,
}

impl<'a> Segments<'a> {
    pub(super) fn new(vault: &'a Vault, server: &ServerId, patience: &'a Patience) -> Self {
        Self {
            vault,
            prefix: layout::journal_prefix(server),
            patience,
            window: BTreeMap::new(),
            next: Some(None),
            figures: SegmentFigures::default(),
        }
    }

    /// What is wrong with each of the segments.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn check(
        &mut self,
        sources: &[Source],
        deep: bool,
    ) -> Result<Vec<Option<Finding>>, StoreError> {
        self.figures.named += sources.len() as u64;
        self.figures.named_bytes += sources.iter().map(|source| source.length).sum::<u64>();
        if deep {
            return self.open(sources).await;
        }
        let mut findings = Vec::with_capacity(sources.len());
        for source in sources {
            let length = match source.inline {
                Some(_) => Some(source.length),
                None => self.length(&source.name).await?,
            };
            findings.push(match length {
                Some(length) if length == source.length => None,
                Some(length) => {
                    Some(rotten(source, format!("it has {length} bytes instead of {}", source.length)))
                }
                None => Some(missing(source)),
            });
        }
        Ok(findings)
    }

    /// The rest of the listing, so that the figures are of all that is stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn finish(&mut self) -> Result<(), StoreError> {
        while self.next.is_some() {
            self.page().await?;
            self.window.clear();
        }
        Ok(())
    }

    async fn open(&mut self, sources: &[Source]) -> Result<Vec<Option<Finding>>, StoreError> {
        let (vault, patience) = (self.vault, self.patience);
        let opened: Vec<_> = stream::iter(sources)
            .map(|source| async move { source.read(vault, patience).await.map(drop) })
            .buffered(PARALLEL)
            .collect()
            .await;
        let mut findings = Vec::with_capacity(sources.len());
        for (source, opened) in sources.iter().zip(opened) {
            findings.push(match opened {
                Ok(()) => {
                    self.figures.opened += 1;
                    self.figures.opened_bytes += source.length;
                    None
                }
                Err(JournalError::Store(error)) => return Err(error),
                Err(JournalError::Missing { .. }) => Some(missing(source)),
                Err(JournalError::Rotten { .. }) => {
                    Some(rotten(source, "its length or checksum is not what the log says".to_owned()))
                }
                Err(error @ (JournalError::Segment { .. } | JournalError::Unnamed { .. })) => {
                    Some(rotten(source, chain(&error)))
                }
            });
        }
        Ok(findings)
    }

    /// Length of a blob; `None`: there is none.
    async fn length(&mut self, name: &str) -> Result<Option<u64>, StoreError> {
        while self.next.is_some() && self.window.last_key_value().is_none_or(|(last, _)| last.as_str() < name)
        {
            if self.window.len() > WINDOW {
                self.window = self.window.split_off(name);
            }
            self.page().await?;
        }
        if let Some(length) = self.window.get(name) {
            return Ok(Some(*length));
        }
        // Written since the page was read, or out of order.
        match self.patience.sure(|| self.vault.cache.properties(name, None)).await {
            Ok(properties) => Ok(Some(properties.length)),
            Err(error) if error.is(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn page(&mut self) -> Result<(), StoreError> {
        let Some(after) = self.next.take() else { return Ok(()) };
        let list = || self.vault.cache.list(&self.prefix, false, after.as_deref());
        let page = match self.patience.sure(list).await {
            Ok(page) => page,
            Err(error) => {
                self.next = Some(after);
                return Err(error);
            }
        };
        self.next = page.next.map(Some);
        for blob in page.blobs {
            self.figures.stored += 1;
            self.figures.stored_bytes += blob.length;
            self.window.insert(blob.name, blob.length);
        }
        Ok(())
    }
}

fn missing(source: &Source) -> Finding {
    Finding::new(Severity::Damage, &source.name, "the segment is missing from cache storage", remedy::RESTORE)
        .of_record(source.record)
}

fn rotten(source: &Source, what: String) -> Finding {
    Finding::new(Severity::Damage, &source.name, what, remedy::RESTORE).of_record(source.record)
}
