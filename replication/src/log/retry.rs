//! Repeats calls that are safe to repeat until their answer is known.

use std::time::Duration;

use tokio::time::sleep;

use crate::{env::Env, store::StoreError};

/// How long a caller waits for an answer of the store, and the randomness for its pauses.
#[derive(Debug, Clone)]
pub struct Patience {
    pub env: Env,
    pub tries: u32,
}

/// First pause between tries; it doubles up to [`LONGEST_PAUSE`], and jitter of the same size is added.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Patience {
    /// Eight tries: about half a minute against a store that refuses connections.
    pub fn new(env: Env) -> Self {
        Self { env, tries: 8 }
    }

    /// Repeats a call until its answer is known. Only for calls that change nothing, or that may be done twice.
    pub async fn sure<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tried = 0;
        loop {
            match call().await {
                Err(StoreError::Unknown { .. }) if tried + 1 < self.tries => {
                    self.pause(tried).await;
                    tried += 1;
                }
                answer => return answer,
            }
        }
    }

    pub async fn pause(&self, tried: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << tried.min(10)).min(LONGEST_PAUSE);
        let jitter = self.env.entropy.next_u64() % (u64::try_from(pause.as_micros()).unwrap_or(1).max(1));
        sleep(pause + Duration::from_micros(jitter)).await;
    }
}
