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

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use tokio::time::Instant;

    use super::*;
    use crate::{env::Entropy, store::Refusal};

    /// Gives the same number each time.
    #[derive(Debug)]
    struct Always(u64);

    impl Entropy for Always {
        fn fill(&self, bytes: &mut [u8]) {
            for (byte, number) in bytes.iter_mut().zip(self.0.to_le_bytes().into_iter().cycle()) {
                *byte = number;
            }
        }
    }

    fn patience(tries: u32, random: u64) -> Patience {
        Patience { env: Env { entropy: Arc::new(Always(random)), ..Env::system() }, tries }
    }

    fn unknown() -> StoreError {
        StoreError::Unknown { operation: "get", name: "log".into(), detail: "cut".into() }
    }

    /// Calls until there was an answer, of which the first `lost` are lost.
    async fn calls(tries: u32, lost: u32) -> (Result<(), StoreError>, u32) {
        let called = Cell::new(0);
        let patience = patience(tries, 0);
        let answer = patience.sure(|| {
            called.set(called.get() + 1);
            let answer = if called.get() > lost { Ok(()) } else { Err(unknown()) };
            std::future::ready(answer)
        });
        (answer.await, called.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_until_it_has_an_answer_or_its_tries_are_over() {
        for tries in 1..10 {
            for lost in 0..15 {
                let expected = if lost < tries { (Ok(()), lost + 1) } else { (Err(unknown()), tries) };
                assert_eq!(calls(tries, lost).await, expected, "{lost} lost, {tries} tries");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_an_answer() {
        let called = Cell::new(0);
        let refused = StoreError::Refused {
            operation: "get",
            name: "log".into(),
            why: Refusal::NotFound,
            detail: String::new(),
        };
        let answer: Result<(), _> = patience(8, 0)
            .sure(|| {
                called.set(called.get() + 1);
                std::future::ready(Err(refused.clone()))
            })
            .await;
        assert_eq!((answer, called.get()), (Err(refused), 1));
    }

    /// So that a store that is away is not flooded, and many callers do not come back in the same moment.
    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_jitter_at_most_doubles_them() {
        for random in [0, 1, 30_000, u64::MAX] {
            let mut shortest = FIRST_PAUSE;
            for tried in 0..40 {
                let before = Instant::now();
                patience(8, random).pause(tried).await;
                let paused = before.elapsed();
                // The timer's grain is a millisecond.
                assert!(
                    shortest <= paused && paused <= 2 * shortest + Duration::from_millis(1),
                    "pause {tried} was {paused:?}, jitter {random}"
                );
                assert!(random > 0 || paused == shortest, "pause {tried} was {paused:?} without jitter");
                shortest = (2 * shortest).min(LONGEST_PAUSE);
            }
        }
    }
}
