//! A blob store that sends no faster than the operator allows: `spec.bandwidth` of the appliance.
//!
//! In: segments that are put and appends to logs, of all servers of this process server. What counts is the content;
//! headers of HTTP, TLS and TCP come to it (3 % with large segments). Reads and calls without content pass.
//!
//! - **Order.** Appends go before segments: an append is small, what it acknowledges is already in the vault, and the
//!   log's lease is renewed by the same task. None waits longer than [`LONGEST_APPEND`], whatever the limit says.
//! - **Fairness.** Segments go in the order of [`Queue`], looked at when the line is free: servers with much to send get the same bandwidth, and one
//!   with little waits for nothing but the segment whose bytes are being paid for.
//! - **Loss.** None: who waits here holds its place in the spool. A full spool stops reading from agents, and what they
//!   have not sent stays marked there.
//! - **Cancellation.** Dropping a call that waits gives its place up. One that is dropped later stays paid for.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lifeboat_replication::store::{
    Result,
    gated::{Call, Gate},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::core::{
    bandwidth::Bucket,
    fair::{Queue, Ticket},
};

/// A lease is renewed between appends, when half of its term is left: waiting and the call itself stay well below.
const LONGEST_APPEND: Duration = Duration::from_secs(5);

/// The limit of a process server, shared by its stores.
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<State>,
    /// The limit or who waits has changed.
    changed: Notify,
    /// First come, first served.
    appends: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    appends_waiting: usize,
    /// Whose segment goes next.
    puts: Queue,
}

/// Counts an append as waiting until it is dropped.
struct Waiting<'a>(&'a Throttle);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().appends_waiting -= 1;
        self.0.changed.notify_waiters();
    }
}

/// A place among the puts, given up when it is dropped.
struct Queued<'a> {
    throttle: &'a Throttle,
    ticket: Ticket,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.throttle.state().puts.leave(self.ticket) {
            self.throttle.changed.notify_waiters();
        }
    }
}

impl Default for Throttle {
    fn default() -> Self {
        let state = State { bucket: Bucket::new(Instant::now()), appends_waiting: 0, puts: Queue::default() };
        Self { state: Mutex::new(state), changed: Notify::new(), appends: tokio::sync::Mutex::default() }
    }
}

impl Throttle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a second from now on; 0: no limit.
    pub fn set_limit(&self, limit: u64) {
        self.state().bucket.set_limit(limit, Instant::now());
        self.changed.notify_waiters();
    }

    pub fn limit(&self) -> u64 {
        self.state().bucket.limit()
    }

    /// Returns when so many bytes of this asker may be put.
    async fn put(&self, asker: &str, bytes: u64) {
        let queued = Queued { throttle: self, ticket: self.state().puts.join(asker, bytes) };
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before looking, so that nothing in between is missed.
            changed.as_mut().enable();
            let wait = {
                let mut state = self.state();
                let now = Instant::now();
                let turn = state.puts.is_first(queued.ticket) && state.appends_waiting == 0;
                match turn.then(|| state.bucket.wait(now)) {
                    Some(Duration::ZERO) => {
                        state.puts.serve(queued.ticket);
                        state.bucket.charge(bytes, now);
                        self.changed.notify_waiters();
                        return;
                    }
                    wait => wait,
                }
            };
            let waited = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { biased;
                () = changed => {}
                () = waited => {}
            }
        }
    }

    /// Returns when so many bytes may be appended, at the latest after [`LONGEST_APPEND`].
    async fn append(&self, bytes: usize) {
        let deadline = Instant::now() + LONGEST_APPEND;
        self.state().appends_waiting += 1;
        let _waiting = Waiting(self);
        let ready = async {
            let _turn = self.appends.lock().await;
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                let wait = self.state().bucket.wait(Instant::now());
                if wait.is_zero() {
                    return self.state().bucket.charge(bytes as u64, Instant::now());
                }
                tokio::select! { biased;
                    () = changed => {}
                    () = sleep(wait) => {}
                }
            }
        };
        if timeout_at(deadline, ready).await.is_err() {
            self.state().bucket.charge(bytes as u64, Instant::now());
        }
    }
}

/// The server in a blob's name: `journal/<server>/…`, `servers/<server>/…`.
fn owner(name: &str) -> &str {
    name.split('/').nth(1).unwrap_or(name)
}

/// A store's way through the limit.
#[derive(Debug)]
pub struct Throttled(pub Arc<Throttle>);

impl Gate for Throttled {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match call.operation {
            "put" => self.0.put(owner(call.name), call.content.len() as u64).await,
            "append" => self.0.append(call.content.len()).await,
            _ => {}
        }
        request.await
    }
}

#[cfg(test)]
#[path = "throttled_tests.rs"]
mod tests;
