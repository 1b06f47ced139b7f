//! How often figures are written: all servers together share [`WRITES_PER_SECOND`], so that an API server with many
//! servers is not kept busy by numbers that the metrics have anyway. Changes of state are not counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const WRITES_PER_SECOND: u32 = 20;
/// A few servers are shown nearly live.
const SHORTEST: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
pub struct Budget(Arc<Mutex<BTreeMap<(String, String), Instant>>>);

impl Budget {
    /// Whether it is this server's turn: each waits for as long as one write of every server takes.
    pub fn allows(&self, namespace: &str, name: &str) -> bool {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u32::try_from(written.len()).unwrap_or(u32::MAX);
        let interval = SHORTEST.max(Duration::from_secs(1) * count / WRITES_PER_SECOND);
        let key = (namespace.to_owned(), name.to_owned());
        if written.get(&key).is_some_and(|last| last.elapsed() < interval) {
            return false;
        }
        written.insert(key, Instant::now());
        true
    }

    pub fn forget(&self, namespace: &str, name: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_servers_share_twenty_writes_a_second() {
        let budget = Budget::default();
        let names: Vec<String> = (0..400).map(|index| index.to_string()).collect();
        let mut writes = 0;
        for _ in 0..100 {
            writes += names.iter().filter(|name| budget.allows("prod", name)).count();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // The first write of each is free.
        assert!(writes <= 400 + 100 * 20, "{writes}");
        assert!(writes >= 100 * 20 - 400, "{writes}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_server_is_written_every_few_seconds() {
        let budget = Budget::default();
        assert!(budget.allows("prod", "db-1"));
        assert!(!budget.allows("prod", "db-1"));
        tokio::time::advance(SHORTEST).await;
        assert!(budget.allows("prod", "db-1"));
    }
}
