//! The spool: encrypted segments on their way to the vault. It hides the uplink; nothing is lost when it is.
//!
//! [`SpoolSpace`] counts and bounds what is in it, [`Spool`] keeps the bytes (memory, or files in production).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

/// A server may take this many times what is left free, so that one that floods the spool leaves room for others
/// (alone it gets four fifths).
const SHARE_OF_FREE: u64 = 4;

#[derive(Debug, thiserror::Error)]
#[error("the spool cannot {what} {name}: check the volume of the spool directory")]
pub struct SpoolError {
    pub what: &'static str,
    pub name: String,
    #[source]
    pub source: std::io::Error,
}

/// Keeps bytes by name. Names are `<server>/<rest>`.
#[async_trait]
pub trait Spool: fmt::Debug + Send + Sync + 'static {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError>;
    async fn read(&self, name: &str) -> Result<Bytes, SpoolError>;
    /// Removing what is not there is done.
    async fn remove(&self, name: &str) -> Result<(), SpoolError>;
    /// Removes everything of a server.
    async fn clear(&self, server: &str) -> Result<(), SpoolError>;
}

/// A spool in memory: for tests and the simulation.
#[derive(Debug, Default)]
pub struct MemSpool {
    files: Mutex<BTreeMap<String, Bytes>>,
}

impl MemSpool {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.files().values().map(|content| content.len() as u64).sum()
    }
}

#[async_trait]
impl Spool for MemSpool {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError> {
        self.files().insert(name.to_owned(), content);
        Ok(())
    }

    async fn read(&self, name: &str) -> Result<Bytes, SpoolError> {
        let missing = || SpoolError {
            what: "read",
            name: name.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        self.files().get(name).cloned().ok_or_else(missing)
    }

    async fn remove(&self, name: &str) -> Result<(), SpoolError> {
        self.files().remove(name);
        Ok(())
    }

    async fn clear(&self, server: &str) -> Result<(), SpoolError> {
        let prefix = format!("{server}/");
        self.files().retain(|name, _| !name.starts_with(&prefix));
        Ok(())
    }
}

/// Counts what the spool holds and is about to hold.
#[derive(Debug)]
pub struct SpoolSpace {
    size_bytes: u64,
    used: Mutex<BTreeMap<String, u64>>,
    freed: Notify,
}

/// Room taken; given back when dropped.
#[derive(Debug)]
pub struct Room {
    space: Arc<SpoolSpace>,
    server: String,
    bytes: u64,
}

impl SpoolSpace {
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Arc::new(Self { size_bytes, used: Mutex::default(), freed: Notify::new() })
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub fn used_bytes(&self) -> u64 {
        self.used().values().sum()
    }

    /// Waits until the server may have so much more.
    pub async fn reserve(self: &Arc<Self>, server: &str, bytes: u64) -> Room {
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Listen before looking, so that room freed in between is not missed.
            freed.as_mut().enable();
            if self.take(server, bytes) {
                return Room { space: Arc::clone(self), server: server.to_owned(), bytes };
            }
            freed.await;
        }
    }

    fn take(&self, server: &str, bytes: u64) -> bool {
        let mut used = self.used();
        let all: u64 = used.values().sum();
        let mine = used.get(server).copied().unwrap_or(0);
        let free = self.size_bytes.saturating_sub(all);
        // What is larger than the whole spool goes through it alone.
        let fits = bytes <= free || all == 0;
        let fair = mine == 0 || mine + bytes <= SHARE_OF_FREE.saturating_mul(free.saturating_sub(bytes));
        if fits && fair {
            *used.entry(server.to_owned()).or_insert(0) += bytes;
        }
        fits && fair
    }

    fn give_back(&self, server: &str, bytes: u64) {
        let mut used = self.used();
        if let Some(mine) = used.get_mut(server) {
            *mine = mine.saturating_sub(bytes);
            if *mine == 0 {
                used.remove(server);
            }
        }
        drop(used);
        self.freed.notify_waiters();
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Gives back what turned out not to be needed.
    pub fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.space.give_back(&self.server, self.bytes - bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.space.give_back(&self.server, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn waits(space: &Arc<SpoolSpace>, server: &str, bytes: u64) -> bool {
        timeout(Duration::from_secs(1), space.reserve(server, bytes)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_spool_makes_wait_until_room_is_given_back() {
        let space = SpoolSpace::new(100);
        let first = space.reserve("a", 60).await;
        assert!(waits(&space, "b", 50).await);
        let waiting = tokio::spawn({
            let space = Arc::clone(&space);
            async move { space.reserve("b", 50).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        let room = waiting.await.unwrap();
        assert_eq!(space.used_bytes(), 50);
        drop(room);
        assert_eq!(space.used_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_server_cannot_take_all_of_it() {
        let space = SpoolSpace::new(100);
        let mut rooms = Vec::new();
        while let Ok(room) = timeout(Duration::from_secs(1), space.reserve("greedy", 10)).await {
            rooms.push(room);
        }
        assert_eq!(space.used_bytes(), 80);
        assert!(!waits(&space, "other", 10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_the_spool_goes_through_alone() {
        let space = SpoolSpace::new(100);
        let mut large = space.reserve("a", 500).await;
        assert!(waits(&space, "b", 1).await);
        large.shrink(40);
        assert!(!waits(&space, "b", 1).await);
    }
}
