//! Whether a program lives: what the network knows of it. Who waits for its end is woken in the order of waiting, which
//! a `watch` channel does not promise.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    over: AtomicBool,
    ended: Notify,
}

/// Held by the program; dropped with it.
#[derive(Debug, Default)]
pub(crate) struct Alive(Arc<State>);

/// Held by what ends with the program.
#[derive(Debug, Clone)]
pub(crate) struct Life(Arc<State>);

impl Alive {
    pub(crate) fn life(&self) -> Life {
        Life(Arc::clone(&self.0))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
        self.0.ended.notify_waiters();
    }
}

impl Life {
    pub(crate) async fn over(&self) {
        let mut ended = pin!(self.0.ended.notified());
        // In the queue before the look, so that an end between the two is not missed.
        ended.as_mut().enable();
        if !self.0.over.load(Ordering::Relaxed) {
            ended.await;
        }
    }
}
