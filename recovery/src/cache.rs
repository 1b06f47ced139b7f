//! What was read from the vault and verified, kept in memory up to a limit; the least recently used goes first.
//! Several readers of the same piece wait for one fetch.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OnceCell;

#[derive(Debug)]
pub struct Cache<K, V> {
    limit_bytes: u64,
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    slots: BTreeMap<K, Slot<V>>,
    /// Filled slots by their last use.
    order: BTreeMap<u64, K>,
    bytes: u64,
    tick: u64,
    hits: u64,
    misses: u64,
}

#[derive(Debug)]
struct Slot<V> {
    cell: Arc<OnceCell<V>>,
    /// Tick of the last use, and size; `None`: still empty.
    filled: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheFigures {
    pub hits: u64,
    pub misses: u64,
    pub bytes: u64,
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    pub fn new(limit_bytes: u64) -> Self {
        let inner =
            Inner { slots: BTreeMap::new(), order: BTreeMap::new(), bytes: 0, tick: 0, hits: 0, misses: 0 };
        Self { limit_bytes, inner: Mutex::new(inner) }
    }

    pub fn figures(&self) -> CacheFigures {
        let inner = self.lock();
        CacheFigures { hits: inner.hits, misses: inner.misses, bytes: inner.bytes }
    }

    pub fn contains(&self, key: &K) -> bool {
        self.lock().slots.get(key).is_some_and(|slot| slot.filled.is_some())
    }

    /// The value of `key`. If it is not here, `load` is awaited, which gives it with its size in bytes.
    ///
    /// # Errors
    /// What `load` fails with; the next caller tries again.
    pub async fn get<E>(&self, key: &K, load: impl Future<Output = Result<(V, u64), E>>) -> Result<V, E> {
        let cell = self.lock().cell(key);
        let mut size = None;
        let loaded = cell
            .get_or_try_init(|| async {
                let (value, bytes) = load.await?;
                size = Some(bytes);
                Ok(value)
            })
            .await
            .cloned();
        let mut inner = self.lock();
        match (&loaded, size) {
            (Ok(_), Some(bytes)) => inner.fill(key, bytes, self.limit_bytes),
            (Ok(_), None) => inner.hits += 1,
            (Err(_), _) => inner.forget(key, &cell),
        }
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone, V> Inner<K, V> {
    fn cell(&mut self, key: &K) -> Arc<OnceCell<V>> {
        self.tick += 1;
        let tick = self.tick;
        let slot =
            self.slots.entry(key.clone()).or_insert_with(|| Slot { cell: Arc::default(), filled: None });
        if let Some((used, _)) = &mut slot.filled {
            self.order.remove(used);
            self.order.insert(tick, key.clone());
            *used = tick;
        }
        Arc::clone(&slot.cell)
    }

    fn fill(&mut self, key: &K, bytes: u64, limit: u64) {
        self.misses += 1;
        self.tick += 1;
        if let Some(slot) = self.slots.get_mut(key)
            && slot.filled.is_none()
        {
            slot.filled = Some((self.tick, bytes));
            self.order.insert(self.tick, key.clone());
            self.bytes += bytes;
        }
        while self.bytes > limit && self.order.len() > 1 {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some((_, bytes)) = self.slots.remove(&oldest).and_then(|slot| slot.filled) {
                self.bytes -= bytes;
            }
        }
    }

    /// After a failure: others may still wait on the cell, who then try themselves.
    fn forget(&mut self, key: &K, cell: &Arc<OnceCell<V>>) {
        let ours =
            self.slots.get(key).is_some_and(|slot| slot.filled.is_none() && Arc::ptr_eq(&slot.cell, cell));
        if ours && Arc::strong_count(cell) <= 2 {
            self.slots.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(cache: &Cache<u32, u32>, key: u32) -> u32 {
        cache.get(&key, async { Ok::<_, ()>((key * 10, 100)) }).await.unwrap()
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let cache = Cache::new(250);
        for key in [1, 2, 1, 3] {
            assert_eq!(get(&cache, key).await, key * 10);
        }
        assert!(cache.contains(&1) && !cache.contains(&2) && cache.contains(&3));
        assert_eq!(cache.figures(), CacheFigures { hits: 1, misses: 3, bytes: 200 });
    }

    #[tokio::test]
    async fn several_readers_wait_for_one_fetch() {
        let cache = Cache::<u32, u32>::new(1000);
        let load = || {
            cache.get(&1, async {
                tokio::task::yield_now().await;
                Ok::<_, ()>((7, 1))
            })
        };
        assert_eq!(tokio::join!(load(), load()), (Ok(7), Ok(7)));
        assert_eq!(cache.figures().misses, 1);
    }

    #[tokio::test]
    async fn a_failed_fetch_is_tried_again() {
        let cache = Cache::<u32, u32>::new(1000);
        assert_eq!(cache.get(&1, async { Err("no") }).await, Err("no"));
        assert_eq!(get(&cache, 1).await, 10);
    }
}
