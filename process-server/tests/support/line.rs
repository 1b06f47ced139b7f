//! A store behind a line of so many bytes a second, on which all that is sent at a time gets the same share, as
//! connections of TCP do.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::store::{
    BlobStore, Result,
    gated::{Call, Gate, Gated},
};
use tokio::{sync::Mutex, time::sleep};

/// Sent in a turn.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
pub struct Line {
    bytes_per_second: u64,
    /// Its waiters take turns in order of arrival.
    turn: Arc<Mutex<()>>,
}

impl Line {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, turn: Arc::default() }
    }

    pub fn store(&self, store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        Gated::new(store, self.clone())
    }

    async fn send(&self, content: &[u8]) {
        for piece in content.chunks(PIECE_BYTES) {
            let _turn = self.turn.lock().await;
            sleep(Duration::from_secs_f64(piece.len() as f64 / self.bytes_per_second as f64)).await;
        }
    }
}

impl Gate for Line {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.send(call.content).await;
        request.await
    }
}
