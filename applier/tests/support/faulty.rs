//! A store that fails at a chosen call, as a network or a crash would.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use lifeboat_replication::store::{
    BlobStore, Result,
    gated::{Call, Gate, Gated},
};
use tokio::time::Instant;

/// What happens at the chosen call and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done any more.
    Gone,
    /// It is done, but its answer and everything after it is lost: a crash right after the call.
    DoneThenGone,
    /// It is done, its answer is lost, and all goes on: a network that drops one answer.
    AnswerLost,
    /// It is not done, and all goes on.
    RequestLost,
    /// Nothing is done for so long; then all goes on.
    Away(Duration),
}

#[derive(Debug)]
pub struct Faulty {
    fault: Fault,
    left: AtomicI64,
    struck_at: OnceLock<Instant>,
}

impl Faulty {
    /// The first `calls` calls work.
    pub fn before(store: Arc<dyn BlobStore>, fault: Fault, calls: i64) -> Arc<Gated<Self>> {
        Gated::new(store, Self { fault, left: AtomicI64::new(calls), struck_at: OnceLock::new() })
    }

    /// How many calls still work.
    pub fn left(&self) -> i64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Was the chosen call reached?
    pub fn struck(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

impl Gate for Faulty {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        let lost = || call.unknown("planted");
        match (left, self.fault) {
            (1.., _) => request.await,
            (0, Fault::DoneThenGone | Fault::AnswerLost) => {
                let _ = request.await;
                Err(lost())
            }
            (_, Fault::Gone | Fault::DoneThenGone) | (0, Fault::RequestLost) => Err(lost()),
            (_, Fault::Away(time)) if self.struck_at.get_or_init(Instant::now).elapsed() < time => {
                // As a network does it: the answer is missed only after a while.
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(lost())
            }
            (_, Fault::Away(_)) => request.await,
            (_, Fault::AnswerLost | Fault::RequestLost) => request.await,
        }
    }
}
