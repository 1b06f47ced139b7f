//! Room that all servers share: counted for each, so that one that takes all it can leaves some to the others.
//!
//! In: who wants how many bytes. Out: a [`Room`], given back when dropped. Bounds: a server may have a multiple of what
//! is left free, so the more it has the less it gets; one that has nothing gets its first piece as soon as that fits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// One server alone gets four fifths: a spool is there to be used.
const SPOOL_SHARE_OF_FREE: u64 = 4;
/// One server alone gets a half, which keeps its stages busy; ten that take what they can leave an eleventh free.
const MEMORY_SHARE_OF_FREE: u64 = 1;

/// Counts what servers hold and are about to hold.
#[derive(Debug)]
pub struct Space {
    size_bytes: u64,
    /// A server may take this many times what is left free.
    share_of_free: u64,
    used: Mutex<BTreeMap<String, u64>>,
    freed: Notify,
}

/// Room taken; given back when dropped.
#[derive(Debug)]
pub struct Room {
    space: Arc<Space>,
    server: String,
    bytes: u64,
}

impl Space {
    fn new(size_bytes: u64, share_of_free: u64) -> Arc<Self> {
        Arc::new(Self { size_bytes, share_of_free, used: Mutex::default(), freed: Notify::new() })
    }

    /// Of the spool, where one server may use most of an empty one.
    pub fn spool(size_bytes: u64) -> Arc<Self> {
        Self::new(size_bytes, SPOOL_SHARE_OF_FREE)
    }

    /// Of plain text in memory.
    pub fn memory(size_bytes: u64) -> Arc<Self> {
        Self::new(size_bytes, MEMORY_SHARE_OF_FREE)
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
        // What is larger than the whole of it goes through alone.
        let fits = bytes <= free || all == 0;
        let fair = mine == 0 || mine + bytes <= self.share_of_free.saturating_mul(free.saturating_sub(bytes));
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

    async fn waits(space: &Arc<Space>, server: &str, bytes: u64) -> bool {
        timeout(Duration::from_secs(1), space.reserve(server, bytes)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_spool_makes_wait_until_room_is_given_back() {
        let space = Space::spool(100);
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
        let space = Space::spool(100);
        let mut rooms = Vec::new();
        while let Ok(room) = timeout(Duration::from_secs(1), space.reserve("greedy", 10)).await {
            rooms.push(room);
        }
        assert_eq!(space.used_bytes(), 80);
        assert!(!waits(&space, "other", 10).await);
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_take_what_they_can_leave_room_for_one_that_takes_little() {
        let space = Space::memory(1000);
        let mut rooms: Vec<Vec<Room>> = Vec::new();
        rooms.resize_with(10, Vec::new);
        // Whoever comes first has more at first; as work is done and new work comes, the shares become even.
        for _ in 0..50 {
            for (greedy, rooms) in rooms.iter_mut().enumerate() {
                rooms.pop();
                while let Ok(room) =
                    timeout(Duration::from_secs(1), space.reserve(&greedy.to_string(), 20)).await
                {
                    rooms.push(room);
                }
            }
        }
        let shares: Vec<usize> = rooms.iter().map(Vec::len).collect();
        assert!(shares.iter().all(|share| (3..=5).contains(share)), "{shares:?}");
        assert!(!waits(&space, "other", 20).await, "{} of 1000 are used", space.used_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_the_spool_goes_through_alone() {
        let space = Space::spool(100);
        let mut large = space.reserve("a", 500).await;
        assert!(waits(&space, "b", 1).await);
        large.shrink(40);
        assert!(!waits(&space, "b", 1).await);
    }
}
