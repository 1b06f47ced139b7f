//! A program of a node: a task that can be crashed, stand still, and be started again.
//!
//! A crash drops the program's future: nothing survives but what was handed to a trait. It happens at a tick of the
//! world, or after so many more polls, which is at any await: between an answer and what follows from it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until},
};

use crate::net::lock;

/// How a crash comes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Crash {
    Now,
    /// When the program has been polled so often.
    After(u64),
}

#[derive(Debug)]
pub(crate) struct Program {
    task: JoinHandle<()>,
    leash: Arc<Leash>,
    /// How long it stays down after the crash that is under way.
    down: Option<Duration>,
    down_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Leash {
    /// Polls until it crashes; 0: it does not.
    polls_left: AtomicU64,
    stands_still_until: Mutex<Option<Instant>>,
}

impl Program {
    pub(crate) fn start(program: impl Future<Output = ()> + Send + 'static) -> Self {
        let leash = Arc::new(Leash::default());
        let held = Held { program: Some(Box::pin(program)), leash: Arc::clone(&leash), wake: None };
        Self { task: tokio::spawn(held), leash, down: None, down_until: None }
    }

    /// False when it is down already, or about to be. One that is to crash later, and may stand still until long
    /// after, does not outlive a crash that comes now.
    pub(crate) fn crash(&mut self, how: Crash, down: Duration) -> bool {
        let first = self.down.is_none();
        self.down.get_or_insert(down);
        match how {
            Crash::Now => self.task.abort(),
            Crash::After(polls) if first => self.leash.polls_left.store(polls.max(1), Ordering::Relaxed),
            Crash::After(_) => {}
        }
        first
    }

    /// It was told to end by itself, and stays down for so long then. False when it is down already, or about to be.
    pub(crate) fn ends(&mut self, down: Duration) -> bool {
        let first = self.down.is_none();
        self.down.get_or_insert(down);
        first
    }

    /// It does nothing for so long, and then goes on as if nothing had been.
    pub(crate) fn stand_still(&self, lasts: Duration) {
        *lock(&self.leash.stands_still_until) = Some(Instant::now() + lasts);
    }

    /// Time to start it again.
    pub(crate) fn due(&mut self) -> bool {
        if let (Some(down), true, None) = (self.down, self.task.is_finished(), self.down_until) {
            self.down_until = Some(Instant::now() + down);
        }
        self.down_until.is_some_and(|until| until <= Instant::now())
    }

    pub(crate) fn runs(&self) -> bool {
        !self.task.is_finished()
    }

    /// It ended without a crash.
    pub(crate) fn ended(&self) -> bool {
        self.down.is_none() && self.task.is_finished()
    }
}

/// The program on its leash.
struct Held {
    program: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    leash: Arc<Leash>,
    wake: Option<Pin<Box<Sleep>>>,
}

impl Future for Held {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let until = *lock(&self.leash.stands_still_until);
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            let wake = self.wake.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if wake.deadline() != until {
                wake.as_mut().reset(until);
            }
            if wake.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        self.wake = None;
        match self.leash.polls_left.load(Ordering::Relaxed) {
            0 => {}
            1 => {
                self.program = None;
                return Poll::Ready(());
            }
            more => self.leash.polls_left.store(more - 1, Ordering::Relaxed),
        }
        match &mut self.program {
            Some(program) => program.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}
